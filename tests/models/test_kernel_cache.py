"""A compiled kernel on disk is not taken for that of other source, whichever file the change is in."""

import importlib
import sys

import numpy as np
import pytest

KERNEL = """
import numba
from small_package.helper import change
from hf_toolssm.models.cpu_kernels import CpuKernel

def _run(values):
    for at in numba.prange(values.shape[0]):
        values[at] = change(values[at])

RUN = CpuKernel(_run, 1_000)
"""
HELPER = """
from hf_toolssm.models.cpu_kernels import inlined
{}
@inlined
def change(value):
    return value + np.float32({})
"""


@pytest.fixture
def changed_by(tmp_path, monkeypatch):
    """Runs the kernel on a 0, with a helper in another file that adds a number, in what is a new process for it."""
    package = tmp_path / "small_package"
    package.mkdir()
    (package / "kernel.py").write_text(KERNEL, encoding="utf-8")
    monkeypatch.syspath_prepend(tmp_path)

    def changed_by(number):
        (package / "helper.py").write_text(HELPER.format("import numpy as np\n", number), encoding="utf-8")
        for name in [name for name in sys.modules if name.startswith("small_package")]:
            del sys.modules[name]
        importlib.invalidate_caches()
        kernel = importlib.import_module("small_package.kernel").RUN
        values = np.zeros(1, np.float32)
        kernel(1, values)
        return values[0], sum(kernel._serial.stats.cache_hits.values())

    return changed_by


def test_a_kernel_is_compiled_anew_when_another_file_of_it_changes_and_only_then(changed_by):
    assert changed_by("1.0") == (1, 0)
    assert changed_by("1.0") == (1, 1)
    assert changed_by("20.0") == (20, 0)
