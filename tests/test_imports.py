"""Imports go one way, and the rooms that promise to need no torch need none."""

import ast
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]

# room -> the rooms of this project that it may import
ALLOWED = {
    "hf_toolssm/errors.py": set(),
    "hf_toolssm/files.py": set(),
    "hf_toolssm/sources.py": set(),
    "hf_toolssm/trajectory.py": {"errors"},
    "hf_toolssm/locality.py": {"trajectory"},
    "hf_toolssm/tools": {"errors", "trajectory", "tools"},
    "hf_toolssm/protocols": {"errors", "trajectory", "tools", "protocols"},
    "hf_toolssm/models": {"errors", "sources", "trajectory", "tools", "protocols", "models", "generation"},
    "hf_toolssm/generation": {
        "errors",
        "files",
        "sources",
        "trajectory",
        "tools",
        "protocols",
        "models",
        "generation",
    },
    "hf_toolssm/training": {"errors", "trajectory", "tools", "protocols", "models", "training"},
    "hf_toolssm/evaluation": {
        *("errors", "files", "trajectory", "locality", "tools", "protocols", "models", "generation", "evaluation")
    },
    "hf_toolssm/hub": {"errors", "evaluation", "files", "hub"},
    "dataset_builders": {"errors", "files", "trajectory", "locality", "tools", "hub", "dataset_builders"},
}


def imports(path):
    """Every module that a file names in an import, wherever it stands."""
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: imports are absolute"
            yield node.module


def room_of(module):
    parts = module.split(".")
    if parts[0] == "hf_toolssm":
        return parts[1] if len(parts) > 1 else "hf_toolssm"
    return parts[0] if parts[0] in ("dataset_builders", "recipes") else None


@pytest.mark.parametrize("room", ALLOWED)
def test_a_room_imports_only_what_it_may(room):
    path = ROOT / room
    files = [path] if path.suffix else sorted(path.glob("*.py"))
    assert files
    for file in files:
        used = {room_of(module) for module in imports(file)} - {None}
        assert used <= ALLOWED[room], f"{file} imports {used - ALLOWED[room]}"


def test_no_room_is_left_out():
    found = {p.name for p in (ROOT / "hf_toolssm").iterdir() if p.suffix == ".py" or (p / "__init__.py").exists()}
    assert found == {Path(room).name for room in ALLOWED if room.startswith("hf_toolssm")} | {"__init__.py"}


@pytest.mark.parametrize("room", ["hf_toolssm/tools", "dataset_builders", "hf_toolssm/trajectory.py"])
def test_rooms_without_torch_name_no_torch(room):
    path = ROOT / room
    for file in [path] if path.suffix else path.glob("*.py"):
        assert not {module.split(".")[0] for module in imports(file)} & {"torch", "transformers"}, file


def run_python(code):
    return subprocess.run(
        [sys.executable, "-c", code], capture_output=True, encoding="utf-8", check=True, cwd=ROOT
    ).stdout


def test_importing_the_package_does_no_work_and_prints_nothing():
    code = "import sys, hf_toolssm; assert not {'torch', 'transformers', 'numba', 'datasets'} & set(sys.modules)"
    assert run_python(code) == ""


def test_the_build_command_starts_without_what_it_does_not_need_at_once():
    code = "import sys, dataset_builders.build; print(*{module.partition('.')[0] for module in sys.modules})"
    heavy = {"torch", "transformers", "trl", "matplotlib", "datasets", "huggingface_hub", "jinja2", "pandas"}
    assert heavy.isdisjoint(run_python(code).split())


def test_tools_and_trajectories_load_no_torch():
    code = "import sys, hf_toolssm.tools.recorder, hf_toolssm.tools.pointer_memory; assert 'torch' not in sys.modules"
    assert run_python(code) == ""


def test_every_public_name_exists():
    assert run_python("import hf_toolssm\nfor name in hf_toolssm.__all__: getattr(hf_toolssm, name)") == ""


def test_no_subprocess_is_read_in_the_encoding_of_the_locale():
    for path in (
        path for room in ("hf_toolssm", "dataset_builders", "recipes", "tests") for path in (ROOT / room).rglob("*.py")
    ):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.Call):
                options = {keyword.arg for keyword in node.keywords}
                assert not options & {"text", "universal_newlines"} or "encoding" in options, f"{path}:{node.lineno}"
