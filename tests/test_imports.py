"""Imports go one way, and the packages that promise to need no torch need none."""

import ast
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]

PACKAGES = (
    *("errors", "files", "sources", "tools", "protocol", "cache", "ops", "generation", "models", "training"),
    *("evaluation", "hub"),
)
"""The packages of hf_toolssm, in order: each may import itself and those before it."""

WITHOUT_TORCH = ("hf_toolssm/tools", "hf_toolssm/protocol/trajectory.py", "hf_toolssm/protocol/recorder.py")
WITHOUT_TORCH += ("hf_toolssm/protocol/locality.py", "dataset_builders")


def modules():
    """Every module of the two packages, and those of them that it imports, wherever the imports stand."""
    files = {}
    for path in (p for package in ("hf_toolssm", "dataset_builders") for p in (ROOT / package).rglob("*.py")):
        parts = path.relative_to(ROOT).with_suffix("").parts
        files[".".join(parts[:-1] if parts[-1] == "__init__" else parts)] = path
    return {name: {imported for imported in imports(path) if imported in files} for name, path in files.items()}


def imports(path):
    """Every module that a file names in an import, wherever it stands."""
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: imports are absolute"
            yield node.module


def package_of(module):
    return ".".join(module.split(".")[:2])


def test_a_room_imports_only_rooms_before_it():
    assert {package_of(m).partition(".")[2] for m in modules() if m.startswith("hf_toolssm.")} == set(PACKAGES)
    places = {f"hf_toolssm.{package}": place for place, package in enumerate(PACKAGES)}
    for module, imported in modules().items():
        if module == "hf_toolssm":
            continue  # names what is public
        for other in imported:
            if module.startswith("dataset_builders"):
                assert other.split(".")[0] == "dataset_builders" or package_of(other) not in _BEHIND_DATA, module
            else:
                assert places[package_of(other)] <= places[package_of(module)], f"{module} imports {other}"


_BEHIND_DATA = {
    f"hf_toolssm.{package}" for package in ("ops", "cache", "generation", "models", "training", "evaluation")
}


def test_no_two_files_import_each_other_not_even_by_way_of_others():
    graph = modules()
    seen = {}

    def walk(module, path):
        assert module not in path, " imports ".join([*path[path.index(module) :], module])
        if module not in seen:
            for other in graph[module]:
                walk(other, [*path, module])
            seen[module] = True

    for module in graph:
        walk(module, [])


@pytest.mark.parametrize("place", WITHOUT_TORCH)
def test_rooms_without_torch_name_no_torch(place):
    path = ROOT / place
    for file in [path] if path.suffix else path.rglob("*.py"):
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
    code = (
        "import sys, hf_toolssm.protocol.recorder, hf_toolssm.tools.pointer_memory; assert 'torch' not in sys.modules"
    )
    assert run_python(code) == ""


def test_every_public_name_exists():
    assert run_python("import hf_toolssm\nfor name in hf_toolssm.__all__: getattr(hf_toolssm, name)") == ""


def test_no_subprocess_is_read_in_the_encoding_of_the_locale():
    for path in (
        path
        for package in ("hf_toolssm", "dataset_builders", "recipes", "tests")
        for path in (ROOT / package).rglob("*.py")
    ):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.Call):
                options = {keyword.arg for keyword in node.keywords}
                runs = isinstance(node.func, ast.Attribute) and node.func.attr in ("run", "Popen", "check_output")
                in_locale = runs and options & {"text", "universal_newlines"} and "encoding" not in options
                assert not in_locale, f"{path}:{node.lineno}"
