"""An evaluation that was interrupted goes on, and takes no result for another than it is."""

import importlib.util
import sys

import pytest
from conftest import ROOT, in_sandbox

from dataset_builders.catalog import load_task
from hf_toolssm.errors import SandboxUnavailableError, UnfinishedModelError
from hf_toolssm.evaluation import LengthResult
from hf_toolssm.evaluation.exactness import FirstError
from hf_toolssm.evaluation.report import hardware, write_report
from hf_toolssm.tools.sandbox import check_sandbox


@pytest.fixture(autouse=True)
def recipes(monkeypatch):
    monkeypatch.syspath_prepend(ROOT / "recipes")


def test_what_was_measured_of_the_same_weights_problems_and_machine_is_not_measured_again(tmp_path, monkeypatch):
    # Not by its name, which is also that of a library.
    spec = importlib.util.spec_from_file_location("recipe", ROOT / "recipes" / "evaluate.py")
    recipe = importlib.util.module_from_spec(spec)
    monkeypatch.setitem(sys.modules, "recipe", recipe)
    spec.loader.exec_module(recipe)
    measured_before = recipe.measured_before

    error = FirstError(1, 2, "a", "b", ("c", "d"))
    results = [
        LengthResult("length_2", 2, "free-running", 4, 4, 0.5, None, None, 10, 1.0),
        LengthResult("length_2", 2, "teacher-forced", 8, 8, 0.5, 0.5, error, 10, 1.0),
    ]
    facts = {"task": "code_fixing", "task_version": "1", "weights_sha256": "0", "problem_seed": 0}
    write_report(tmp_path, results[:1], [], {**facts, "teacher_forced": [results[1].to_dict()]})
    path, here = tmp_path / "results.json", {**facts, "hardware": hardware()}
    assert measured_before(path, here, 4) == {("free-running", "length_2"): results[0]}
    assert measured_before(path, here, 8) == {("teacher-forced", "length_2"): results[1]}
    for name in here:
        assert measured_before(path, {**here, name: "another"}, 4) == {}
    assert measured_before(tmp_path / "none.json", here, 4) == {}
    path.write_text("{", encoding="utf-8")
    with pytest.raises(UnfinishedModelError, match="delete it"):
        measured_before(path, here, 4)


@in_sandbox
def test_where_no_sandbox_is_a_task_that_needs_one_is_refused_at_once(monkeypatch, tmp_path):
    from free_running import check_tools

    check_tools(load_task("code_fixing"), "interactive")
    monkeypatch.setenv("PATH", str(tmp_path))
    check_sandbox.cache_clear()
    try:
        check_tools(load_task("addition"), "local")
        with pytest.raises(SandboxUnavailableError):
            check_tools(load_task("code_fixing"), "interactive")
    finally:
        check_sandbox.cache_clear()
