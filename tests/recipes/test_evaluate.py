"""An evaluation that was interrupted goes on, and takes no result for another than it is."""

import importlib.util
import json
import sys

import pytest
from conftest import ROOT, in_sandbox, random_model

from dataset_builders.catalog import load_task
from hf_toolssm.errors import SandboxUnavailableError, UnfinishedModelError
from hf_toolssm.evaluation import LengthResult
from hf_toolssm.evaluation.exactness import FirstError
from hf_toolssm.evaluation.report import hardware, write_report
from hf_toolssm.tools.sandbox import check_sandbox


@pytest.fixture(autouse=True)
def recipes(monkeypatch):
    monkeypatch.syspath_prepend(ROOT / "recipes")


@pytest.fixture
def recipe(recipes, monkeypatch):
    # Not by its name, which is also that of a library.
    spec = importlib.util.spec_from_file_location("recipe", ROOT / "recipes" / "evaluate.py")
    module = importlib.util.module_from_spec(spec)
    monkeypatch.setitem(sys.modules, "recipe", module)
    spec.loader.exec_module(module)
    return module


def test_what_was_measured_of_the_same_weights_problems_and_machine_is_not_measured_again(recipe, tmp_path):
    measured_before = recipe.measured_before

    error = FirstError(1, 2, "a", "b", ("c", "d"))
    results = [
        LengthResult("length_2", 2, "free-running", 4, 4, 4, 2, 0.5, None, None, 10, 1.0),
        LengthResult("length_2", 2, "teacher-forced", 8, 8, 8, 4, 0.5, 0.5, error, 10, 1.0),
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


def test_a_command_for_more_sets_that_is_interrupted_loses_none(recipe, tokenizer, specs, tmp_path, monkeypatch):
    model = tmp_path / "model"
    random_model(tokenizer, specs).save_pretrained(model)
    tokenizer.save_pretrained(model)
    measure, words = recipe.free_running, ["--task", "addition", "--num_problems", "2", "--adversarial_lengths", "3"]

    def evaluate(*lengths):
        monkeypatch.setattr(sys, "argv", ["evaluate.py", "--model", str(model), *words, "--lengths", *lengths])
        recipe.main()

    def interrupted(model, tokenizer, references, batch_size):
        if references.problem_set.name == "length_2":
            raise KeyboardInterrupt
        return measure(model, tokenizer, references, batch_size)

    def known():
        results = json.loads((model / "evaluation" / "results.json").read_text(encoding="utf-8"))
        return [result["problem_set"] for result in results["by_length"] + results["adversarial"]]

    evaluate("1")
    before = known()
    assert len(before) > 2
    monkeypatch.setattr(recipe, "free_running", interrupted)
    with pytest.raises(KeyboardInterrupt):
        evaluate("1", "2")
    assert known() == before


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
