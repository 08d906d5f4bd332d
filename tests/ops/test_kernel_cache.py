"""Compiled kernels are kept where that is possible, are never stale, and may be called from several threads."""

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

PACKAGE = Path(__file__).parents[2] / "hf_toolssm"

NORM = """
import sys
import torch
from hf_toolssm.ops.rms_norm import _FORWARD, rms_norm
print(float(rms_norm(torch.ones(1, 4), torch.ones(4), 0.0).sum()), *_FORWARD._serial.stats.cache_hits.values())
"""


def run(code, folder, **environment):
    words = [sys.executable, "-c", code]
    environment = {**os.environ, "PYTHONPATH": str(folder), "PYTHONDONTWRITEBYTECODE": "1", **environment}
    return subprocess.run(words, capture_output=True, encoding="utf-8", env=environment, cwd=folder)


def copy_package(folder):
    shutil.copytree(PACKAGE, folder / "hf_toolssm", ignore=shutil.ignore_patterns("__pycache__"))


def test_a_change_in_a_file_that_a_kernel_calls_is_compiled(tmp_path):
    """`normalize` stands in cpu_kernels.py, and the kernel that calls it in rms_norm.py."""
    copy_package(tmp_path)
    cache = {"NUMBA_CACHE_DIR": str(tmp_path / "cache")}
    assert run(NORM, tmp_path, **cache).stdout.split() == ["4.0"]
    assert run(NORM, tmp_path, **cache).stdout.split() == ["4.0", "1"]  # compiled once
    path = tmp_path / "hf_toolssm" / "ops" / "cpu_kernels.py"
    source = path.read_text(encoding="utf-8")
    path.write_text(source.replace("out[i] = values[i] * factor", "out[i] = values[i] * 2 * factor"), encoding="utf-8")
    assert run(NORM, tmp_path, **cache).stdout.split() == ["8.0"]


def test_where_nothing_can_be_written_kernels_are_compiled_in_memory_and_it_is_said(tmp_path):
    copy_package(tmp_path)
    (tmp_path / "hf_toolssm" / "ops" / "__pycache__").write_text("in the way", encoding="utf-8")
    nowhere = dict.fromkeys(("HOME", "XDG_CACHE_HOME", "NUMBA_CACHE_DIR"), "/dev/null/nowhere")
    done = run(NORM, tmp_path, **nowhere)
    assert done.stdout.split() == ["4.0"], done.stderr
    assert "set NUMBA_CACHE_DIR" in done.stderr


@pytest.mark.parametrize("ending", ["nbi", "nbc"])
def test_kernels_that_were_half_written_are_compiled_anew(tmp_path, ending):
    cache = {"NUMBA_CACHE_DIR": str(tmp_path / "cache")}
    assert run(NORM, PACKAGE.parent, **cache).stdout.split() == ["4.0"]
    for path in (tmp_path / "cache").rglob(f"*.{ending}"):
        path.write_bytes(path.read_bytes()[:300])
    done = run(NORM, PACKAGE.parent, **cache)
    assert done.stdout.split() == ["4.0"], done.stderr
    assert "are damaged and compiled anew" in done.stderr
    assert run(NORM, PACKAGE.parent, **cache).stdout.split() == ["4.0", "1"]  # and kept again


@pytest.mark.parametrize("at", [0, 300, 4096])
def test_kernels_with_a_block_that_was_lost_are_compiled_anew(tmp_path, at):
    cache = {"NUMBA_CACHE_DIR": str(tmp_path / "cache")}
    assert run(NORM, PACKAGE.parent, **cache).stdout.split() == ["4.0"]
    for path in (tmp_path / "cache").rglob("*.nbc"):
        content = bytearray(path.read_bytes())
        content[at : at + 4096] = bytes(len(content[at : at + 4096]))
        path.write_bytes(content)
    done = run(NORM, PACKAGE.parent, **cache)
    assert done.stdout.split() == ["4.0"], done.stderr
    assert "are damaged and compiled anew" in done.stderr


CHANGED_WHILE_IT_RUNS = f"""
import hf_toolssm.ops.rms_norm
from pathlib import Path
path = Path(hf_toolssm.ops.cpu_kernels.__file__)
source = path.read_text(encoding="utf-8")
path.write_text(source.replace("out[i] = values[i] * factor", "out[i] = values[i] * 2 * factor"), encoding="utf-8")
{NORM}
"""


def test_what_a_process_compiles_after_its_source_was_changed_is_not_taken_for_the_new_source(tmp_path):
    copy_package(tmp_path)
    cache = {"NUMBA_CACHE_DIR": str(tmp_path / "cache")}
    done = run(CHANGED_WHILE_IT_RUNS, tmp_path, **cache)
    assert done.stdout.split() == ["4.0"], done.stderr
    assert run(NORM, tmp_path, **cache).stdout.split() == ["8.0"]


THREADS = """
import threading
import torch
from hf_toolssm.ops.rms_norm import PARALLEL_VALUES, rms_norm
torch.set_num_threads(2)
x, weight = torch.rand(2 * PARALLEL_VALUES // 64, 64), torch.ones(64)
rms_norm(x, weight, 1e-5)
threads = [threading.Thread(target=lambda: [rms_norm(x, weight, 1e-5) for _ in range(200)]) for _ in range(2)]
for thread in threads:
    thread.start()
for thread in threads:
    thread.join()
import numba
print(numba.threading_layer())
"""


def test_threads_may_run_kernels_at_once_on_a_threading_layer_that_is_not_safe():
    """workqueue is what numba has on a machine without OpenMP and TBB."""
    threads = {"NUMBA_THREADING_LAYER": "workqueue", "OMP_NUM_THREADS": "2", "NUMBA_NUM_THREADS": "2"}
    done = run(THREADS, PACKAGE.parent, **threads)
    assert done.stdout.split() == ["workqueue"], done.stderr


SETTING = """
import torch
from hf_toolssm.ops.rms_norm import PARALLEL_VALUES, rms_norm
x, weight = torch.rand(2 * PARALLEL_VALUES // 64, 64), torch.ones(64)
for threads in (1, 3):
    torch.set_num_threads(threads)
    rms_norm(x, weight, 1e-5)
    print(torch.get_num_threads())
"""


def test_torch_keeps_the_number_of_threads_that_it_was_given():
    done = run(SETTING, PACKAGE.parent, NUMBA_NUM_THREADS="2")
    assert done.stdout.split() == ["1", "3"], done.stderr
