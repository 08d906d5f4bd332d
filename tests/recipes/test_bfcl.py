"""Categories of BFCL: calls go into BFCL's files, BFCL's own code scores them, and Inspect finds the same."""

import json
import os
import sys
from contextlib import closing
from pathlib import Path

import pytest
from bfcl_package import install, lines
from conftest import import_recipe, run_script

sys.path.append(str(Path(__file__).parents[1] / "generation"))
from scripts import Script, call, says
from test_sft_messages import dataset, trained  # noqa: F401 - fixtures

from hf_toolssm import Chat

CHECKER = """
from bfcl_eval.constants.model_config import MODEL_CONFIG_MAPPING

def ast_checker(functions, calls, truth, language, category, model):
    assert language == "Python" and MODEL_CONFIG_MAPPING[model].underscore_to_dot is False
    if len(calls) != len(truth):
        return {"valid": False, "error_type": "wrong_count"}
    for said, right in zip(calls, truth):
        (name, arguments), (wanted, values) = *said.items(), *right.items()
        if name != wanted:
            return {"valid": False, "error_type": "wrong_func_name"}
        if arguments.keys() != values.keys() or any(arguments[key] not in values[key] for key in values):
            return {"valid": False, "error_type": "value_error"}
    return {"valid": True}
"""

STAND_IN = {
    "__init__.py": "",
    "constants/default_prompts.py": 'DEFAULT_USER_PROMPT_FOR_ADDITIONAL_FUNCTION_FC = ""',
    "constants/executable_backend_config.py": "MULTI_TURN_FUNC_DOC_FILE_MAPPING = {}",
    "constants/enums.py": 'class Language:\n    PYTHON = "Python"',
    "constants/model_config.py": "raise ImportError('it would import the clients of every model')",
    "eval_checker/multi_turn_eval/multi_turn_checker.py": "state_checker = None",
    "eval_checker/multi_turn_eval/multi_turn_utils.py": "",
    "eval_checker/ast_eval/ast_checker.py": CHECKER,
}
"""A package of our own, of the shape of which `bfcl_worker.py` uses bfcl-eval."""


def function(name, **types):
    properties = {parameter: {"type": kind, "description": parameter} for parameter, kind in types.items()}
    parameters = {"type": "dict", "properties": properties, "required": [*types]}
    return {"name": name, "description": f"It can {name}.", "parameters": parameters}


AREA, ROOTS = function("geometry.area", base="integer", height="float"), function("math.roots", of="any")
ENTRIES = {
    "multiple": [
        ("The area of 3 by 2?", [{"geometry.area": {"base": [3], "height": [2, 2.0]}}]),
        ("The area of 4 by 2?", [{"geometry.area": {"base": [4], "height": [2]}}]),
        ("The roots of 9?", [{"math.roots": {"of": [9, "9"]}}]),
        ("The roots of 4, and of 9?", [{"math.roots": {"of": [4]}}, {"math.roots": {"of": [9]}}]),
        ("What is it?", [{"math.roots": {"of": [1]}}]),
    ],
    "irrelevance": [("Tell me a joke.", None), ("Sing.", None)],
}
WRITTEN = {
    "The area of 3 by 2?": says("", call("geometry.area", base=3, height=2)),
    "The area of 4 by 2?": says("", call("geometry.area", base=5, height=2)),
    "The roots of 9?": says("", call("geometry.area", base=9, height=9)),
    "The roots of 4, and of 9?": says("", call("math.roots", of=4), call("math.roots", of=9)),
    "What is it?": says("I cannot say."),
    "Tell me a joke.": says("", call("math.roots", of="a joke")),
    "Sing.": says("La."),
}
RIGHT = ["multiple_0", "multiple_3", "irrelevance_1"]


@pytest.fixture(autouse=True)
def stand_in(tmp_path, monkeypatch):
    """The entries, where the worker's Python finds them."""
    files = dict(STAND_IN)
    for category, entries in ENTRIES.items():
        said = [
            {"id": f"{category}_{at}", "question": [[{"role": "user", "content": text}]], "function": [AREA, ROOTS]}
            for at, (text, _) in enumerate(entries)
        ]
        truths = [{"id": f"{category}_{at}", "ground_truth": truth} for at, (_, truth) in enumerate(entries) if truth]
        files[f"data/BFCL_v4_{category}.json"] = lines(said)
        if truths:
            files[f"data/possible_answer/BFCL_v4_{category}.json"] = lines(truths)
    install(files, tmp_path, monkeypatch)


@pytest.fixture
def asked(monkeypatch):
    """What the model was asked; it writes what `WRITTEN` says."""
    asked = []
    whole = Chat.send

    def send(self, content, **options):
        asked.append(content)
        return whole(self, content, **{**options, "sampler": Script(self, WRITTEN[content])})

    monkeypatch.setattr(Chat, "send", send)
    return asked


def run(folder, output, *words):
    categories = ["--categories", *ENTRIES, "--bfcl_python", sys.executable]
    printed = run_script("recipes/harness/bfcl.py", "--model", folder, "--output", output, *categories, *words)
    results = json.loads((output / "results.json").read_text(encoding="utf-8"))["categories"]
    return printed, {each["category"]: each for each in results}


def test_calls_are_scored_by_bfcls_own_code_from_its_own_files(trained, tmp_path, asked):  # noqa: F811
    printed, found = run(trained, tmp_path / "out")
    multiple, irrelevance = found["multiple"], found["irrelevance"]
    assert {name: multiple[name] for name in ("entries", "well_formed", "right_function", "right")} == {
        "entries": 5,
        "well_formed": 4,
        "right_function": 3,
        "right": 2,
    }
    assert multiple["faults"] == {"value_error": 1, "wrong_func_name": 1, "no call": 1}
    assert (irrelevance["right"], irrelevance["faults"]) == (1, {"a call": 1})
    assert "| multiple | 5 | 4 | 3 | 2 |" in printed
    written = (tmp_path / "out" / "BFCL_v4_multiple_result.json").read_text(encoding="utf-8").splitlines()
    first, *_, last = map(json.loads, written)
    assert first == {"id": "multiple_0", "result": [{"geometry.area": '{"base": 3, "height": 2}'}]}
    assert last == {"id": "multiple_4", "result": "I cannot say."}


def test_the_same_command_goes_on_where_it_was(trained, tmp_path, asked):  # noqa: F811
    run(trained, tmp_path / "out", "--entries", "2")
    assert asked == [text for entries in ENTRIES.values() for text, _ in entries[:2]]
    asked.clear()
    _, found = run(trained, tmp_path / "out")
    assert asked == [text for text, _ in ENTRIES["multiple"][2:]]
    assert found["multiple"]["right"] == 2


def test_results_of_another_model_are_not_taken_for_this_ones(trained, tmp_path, asked):  # noqa: F811
    run(trained, tmp_path / "out", "--entries", "1")
    path = tmp_path / "out" / "model.json"
    path.write_text(
        path.read_text(encoding="utf-8").replace('"weights_sha256": "', '"weights_sha256": "0'), encoding="utf-8"
    )
    with pytest.raises(SystemExit, match="the results of other weights"):
        run(trained, tmp_path / "out")


def test_a_category_that_is_none_is_refused_before_anything_is_loaded(tmp_path):
    with pytest.raises(SystemExit, match="simple_pithon is none of simple_python"):
        run_script(
            "recipes/harness/bfcl.py", "--model", "none", "--bfcl_python", "no", "--categories", "simple_pithon"
        )


def test_inspect_finds_the_same(trained, tmp_path, asked):  # noqa: F811
    inspect_ai = pytest.importorskip("inspect_ai", reason="inspect-ai is not installed: pip install -e '.[inspect]'")
    task = import_recipe("inspect_bfcl", "recipes/harness")
    right = []
    for category in ENTRIES:
        (log,) = inspect_ai.eval(
            task.bfcl(category, sys.executable), model=f"toolssm/{trained}", log_dir=str(tmp_path), display="none"
        )
        assert log.status == "success", log.error
        right += [sample.id for sample in log.samples if sample.scores["right"].value]
    assert right == RIGHT


@pytest.mark.slow
def test_every_answer_that_bfcl_allows_is_right_for_its_checker(monkeypatch):
    python = os.environ.get("BFCL_PYTHON")
    if not python:
        pytest.skip("needs the Python of an environment with bfcl-eval: set BFCL_PYTHON")
    monkeypatch.delenv("PYTHONPATH")
    with closing(import_recipe("bfcl_backend", "recipes/harness").Worker(python)) as worker:
        results, others = [], []
        for name, (truth,) in worker.ask("truths", "multiple").items():
            ((function, values),) = truth.items()
            arguments = {key: allowed[0] for key, allowed in values.items() if "" not in allowed}
            results.append({"id": name, "result": [{function: json.dumps(arguments)}]})
            others.append({"id": name, "result": [{function + "s": json.dumps(arguments)}]})
        said, denied = worker.ask("judge", "multiple", results), worker.ask("judge", "multiple", others)
    assert sum(not fault for fault in said.values()) >= 190  # a few have values of several parts
    assert {*denied.values()} == {"simple_function_checker:wrong_func_name"}
