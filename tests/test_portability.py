"""Nothing needs Unix to be imported, and an ASCII terminal or locale changes no file and stops no command."""

import ast
import os
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import psutil
import pytest

from dataset_builders.build import build_folder
from dataset_builders.catalog import load_task
from dataset_builders.mixture import parse_share
from dataset_builders.problem_sets import evaluation_sets
from hf_toolssm.errors import UnknownTaskError
from hf_toolssm.evaluation.report import peak_memory_mib
from hf_toolssm.hub.model_card import write_model_card

ROOT = Path(__file__).parents[1]
COMMANDS = [
    path
    for path in [ROOT / "dataset_builders" / "build.py", *(ROOT / "recipes").rglob("*.py")]
    if "\ndef main(" in path.read_text(encoding="utf-8") and "print(" in path.read_text(encoding="utf-8")
    if not path.stem.endswith("_worker")  # it runs where this package is not, and prints JSON for a program
]

UNIX = {"resource", "fcntl", "pwd", "grp", "termios", "tty", "pty", "syslog"}
WITHOUT_UNIX = """
import builtins, importlib, pkgutil, sys
from pathlib import Path

real = builtins.__import__

def on_windows(name, globals=None, *more, **options):
    path = str((globals or {}).get("__file__", ""))
    ours = path.startswith(str(Path.cwd())) and "site-packages" not in path  # a virtual environment may lie in here
    if ours and name in sys.argv[1:]:
        raise ModuleNotFoundError(name)
    return real(name, globals, *more, **options)

builtins.__import__ = on_windows
names = []

def load(name):
    try:
        names.append(importlib.import_module(name).__name__)
    except ModuleNotFoundError as error:
        if error.name != "inspect_ai":  # an extra; where it is installed, its modules are imported too
            raise

for folder in ("hf_toolssm", "dataset_builders"):
    for module in pkgutil.walk_packages([folder], folder + "."):
        load(module.name)
here = list(sys.path)
for package in ["recipes", *map(str, Path("recipes").iterdir())]:
    sys.path[:] = [package, "recipes", *here]  # as for a command of that folder, whose files import each other by name
    for path in Path(package).glob("*.py"):
        sys.modules.pop(path.stem, None)
    for path in Path(package).glob("*.py"):
        if not path.stem.endswith("_worker"):  # it runs where another package is
            load(path.stem)
print(len(names))
"""

ASCII_CODE = """
import sys
from pathlib import Path
from dataset_builders.build import main
from hf_toolssm.hub.model_card import write_model_card

main(["addition", "--output", sys.argv[1], "--lengths", "4", "--num-problems", "3"])
write_model_card(Path(sys.argv[2]), Path("model_cards/template.md"))
"""


def run(code_or_module, *words, **environment):
    command = [sys.executable, *code_or_module, *map(str, words)]
    return subprocess.run(
        command, cwd=ROOT, env=os.environ | environment, capture_output=True, encoding="utf-8", errors="replace"
    )


def test_no_file_imports_a_module_of_unix_while_it_is_imported_itself():
    for path in (
        path for package in ("hf_toolssm", "dataset_builders", "recipes") for path in (ROOT / package).rglob("*.py")
    ):
        for node in ast.parse(path.read_text(encoding="utf-8")).body:
            names = [alias.name for alias in node.names] if isinstance(node, ast.Import) else []
            names += [node.module] if isinstance(node, ast.ImportFrom) else []
            assert UNIX.isdisjoint(names), f"{path}:{node.lineno}"


@pytest.mark.slow
def test_every_module_of_the_library_and_of_the_recipes_is_imported_without_a_module_of_unix():
    done = run(["-c", WITHOUT_UNIX], *UNIX)
    assert done.returncode == 0, done.stderr[-2000:]
    assert int(done.stdout) > 90


def test_the_peak_of_memory_is_in_mib():
    held = np.ones(100 * 2**20, dtype=np.uint8)
    resident = psutil.Process().memory_info().rss / 2**20
    assert resident - 2 < peak_memory_mib() < psutil.virtual_memory().total / 2**20
    assert peak_memory_mib() > held.nbytes / 2**20


def test_a_share_of_a_mixture_may_name_a_drive():
    with pytest.raises(UnknownTaskError, match="mine.tm"):
        parse_share("C:/folder/mine.tm:5=0.25")


def test_cards_are_the_same_bytes_in_an_ascii_locale(tmp_path):
    for folder in ("here", "ascii"):
        shutil.copytree(ROOT / "model_cards" / "addition", tmp_path / folder)
    build_folder(evaluation_sets(load_task("addition"), "local", [4], [], 3), tmp_path / "here" / "rows")
    write_model_card(tmp_path / "here", ROOT / "model_cards" / "template.md")
    locale = {"LC_ALL": "C", "PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0"}
    done = run(["-c", ASCII_CODE], tmp_path / "ascii" / "rows", tmp_path / "ascii", **locale)
    assert done.returncode == 0, done.stderr[-2000:]
    for card in ("README.md", "rows/README.md"):
        assert (tmp_path / "ascii" / card).read_bytes() == (tmp_path / "here" / card).read_bytes()
    assert "→".encode() in (tmp_path / "ascii" / "rows" / "README.md").read_bytes()


def test_a_command_escapes_what_an_ascii_terminal_cannot_show(tmp_path):
    table = ROOT / "dataset_builders" / "machines" / "binary_increment.tm"
    shutil.copy(table, tmp_path / "größer.tm")
    words = [tmp_path / "größer.tm", "--output", tmp_path / "größer", "--lengths", "20", "--num-problems", "2"]
    done = run(["-m", "dataset_builders.build"], *words, PYTHONIOENCODING="ascii")
    assert done.returncode == 0, done.stderr[-2000:]
    assert r"gr\xf6\xdfer: length_20" in done.stdout


@pytest.mark.parametrize("path", COMMANDS, ids=lambda path: path.stem)
def test_every_command_escapes_what_its_terminal_cannot_show(path):
    _, _, main = path.read_text(encoding="utf-8").partition("\ndef main(")
    assert main.split("\n")[1].strip() == "escape_unprintable()"
