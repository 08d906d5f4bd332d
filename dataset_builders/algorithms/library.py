"""Modules of Python's standard library, as /usr/bin/python3 has them, and what each is checked by.

The check imports a copy of one module under the module's own name, while all others come from the library, and runs
the doctests that it has. It runs in the sandbox alone, and shows a failure as a traceback. A module is used whose
unchanged copy passes.
"""

import re
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache
from pathlib import Path

from dataset_builders.algorithms.repair import LAST_FRAME
from hf_toolssm.tools.bash import Bash, Shell

CHECK, PASSED = "check.py", "passed"
FILE = "module.py"
"""A module's copy: none has to be told by its name, and what a command copies of an observation is a line."""

RUN = rf"python3 {CHECK} 2>&1 | sed -En '/\/work/{{p;n;p}};/^\w[^ ]*(:|$)/p' | {LAST_FRAME}"
"""The check: of a failure the error and the last frame of a file in /work."""

_LEFT_OUT = re.compile(
    r"test|idlelib|turtledemo|distutils|_distutils_system_mod|socket|encodings\..*|(.*\.)?(tests|__.*)"
)
"""Tests, programs, what setuptools replaces, a doctest that waits for a client, and some 120 codecs that are the same
code with other tables."""

_CHECK = """\
import sys

sys.path.pop(0)

import doctest
import importlib.util

NAME = {name!r}
original = importlib.util.find_spec(NAME)
spec = importlib.util.spec_from_file_location(
    NAME, "/work/{file}", submodule_search_locations=original.submodule_search_locations
)
module = sys.modules[NAME] = importlib.util.module_from_spec(spec)
spec.loader.exec_module(module)
for test in doctest.DocTestFinder().find(module):
    try:
        doctest.DebugRunner().run(test)
    except doctest.UnexpectedException as failure:
        raise failure.exc_info[1] from None
print("{passed}")
"""

_SURVEY = """\
import sys

folder = sys.path.pop(0)

import runpy

lines, copy = set(), sys.argv.pop()

def trace(frame, event, argument):
    if frame.f_code.co_filename == copy:
        lines.add(frame.f_lineno)
        return trace

sys.path.insert(0, folder)
sys.settrace(trace)
try:
    runpy.run_path("check.py", run_name="__main__")
finally:
    sys.settrace(None)
    print(*sorted(lines))
"""


@dataclass(frozen=True)
class Module:
    """A module that passes its check.

    Attributes:
        name: its dotted name.
        text: unchanged.
        executed: the lines, from 1 on, that its check executes.
    """

    name: str
    text: str
    executed: frozenset[int]

    def files(self, text: str) -> dict[str, str]:
        """Its copy with this text, and the check."""
        return {FILE: text, CHECK: _CHECK.format(name=self.name, file=FILE, passed=PASSED)}


def run_check(files: dict[str, str]) -> str:
    """What the check prints."""
    return start(files).call("bash", RUN)


def start(files: dict[str, str]) -> Shell:
    """A shell with these files.

    Raises:
        SandboxUnavailableError: there is no sandbox here.
    """
    return Bash(workdir=files, output="256K").start("")


@cache
def module_names() -> tuple[str, ...]:
    """The modules that there may be a problem of, sorted.

    Raises:
        SandboxUnavailableError: there is no sandbox here.
    """
    return tuple(sorted(_paths()))


@cache
def _paths() -> dict[str, Path]:
    library = Path(start({}).call("bash", "python3 -c 'import os; print(os.path.dirname(os.__file__))'").strip())
    return dict(_found(library, ""))


def _found(folder: Path, package: str) -> Iterator[tuple[str, Path]]:
    for path in folder.iterdir():
        name = package + path.stem
        if not path.stem.isidentifier() or _LEFT_OUT.fullmatch(name) or path.is_symlink():
            continue
        if path.suffix == ".py":
            yield name, path
        elif (path / "__init__.py").is_file():
            yield name, path / "__init__.py"
            yield from _found(path, f"{name}.")


@cache
def module(name: str) -> Module | None:
    """A module; None where there is none of that name that passes its check here.

    Raises:
        SandboxUnavailableError: there is no sandbox here.
    """
    path = _paths().get(name)
    if path is None:
        return None
    text = path.read_bytes().decode("utf-8", "replace")
    files = Module(name, text, frozenset()).files(text) | {"survey.py": _SURVEY}
    lines = start(files).call("bash", f"python3 survey.py /work/{FILE}").splitlines()
    if PASSED not in lines[-2:-1]:
        return None
    return Module(name, text, frozenset(map(int, lines[-1].split())))


_SAME = """\
import ast
import sys

def said(path):
    with open(path, "rb") as file:
        body = ast.parse(file.read()).body
    imports = [isinstance(statement, ast.Import) for statement in body]
    dumps = [ast.dump(statement) for statement in body]
    return [d for d, i in zip(dumps, imports) if not i], sorted(d for d, i in zip(dumps, imports) if i)

sys.exit(said("original") != said(sys.argv[1]))
"""


def is_original(module: Module, repaired: bytes) -> bool:
    """Whether a copy has the original's syntax tree up to the order of top-level `import`s, and passes the check."""
    shell = start({**module.files(module.text), "original": module.text, "same/same.py": _SAME})
    shell.put(FILE, repaired)
    return shell.call("bash", f"python3 same/same.py {FILE} && {RUN}").startswith(f"{PASSED}\n")
