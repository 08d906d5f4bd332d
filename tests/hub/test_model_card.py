"""A card shows what was measured, and nothing else."""

import ast
import json
import re
from pathlib import Path

import pytest
from conftest import in_sandbox
from huggingface_hub import ModelCard
from matplotlib.image import imread

from dataset_builders.catalog import load_task
from hf_toolssm.errors import UnfinishedModelError
from hf_toolssm.evaluation.exactness import LengthResult
from hf_toolssm.evaluation.report import write_report
from hf_toolssm.hub.model_card import model_card, write_model_card
from hf_toolssm.models.tool_models import from_scratch

TEMPLATE = Path(__file__).parents[2] / "model_cards" / "template.md"
ABOUT = {
    "task": "addition",
    "variant": "local",
    "unit": "digits",
    "train_max_length": 5,
    "example_problem": "12345+678=",
    "dataset": "built: 123 rows, seed 4",
    "base_model": None,
    "seed": 3,
    "num_parameters": 67_264,
    "steps": 600,
    "batch_size": 64,
    "learning_rate": 0.003,
    "state_passing_share": 0.5,
    "train_minutes": 2.71,
    "resumed": False,
}


def finished_folder(folder, model, about=ABOUT, trajectories=0.875):
    model.save_pretrained(folder)
    row = LengthResult("length_77", 77, "free-running", 16, 16, 16, 15, 0.9375, trajectories, None, 1_000, 0.5)
    write_report(folder, [row], [], about)


def test_the_card_shows_the_results_and_every_figure_on_it_is_in_the_folder(model, tmp_path):
    finished_folder(tmp_path, model)
    card = write_model_card(tmp_path, TEMPLATE).read_text(encoding="utf-8")
    assert "| length_77 | 77 | 0.9375 | 0.875 | 16 |" in card
    assert "free-running" in card
    assert "seed 3" in card
    measured = (
        (tmp_path / "results.json").read_text(encoding="utf-8")
        + (tmp_path / "config.json").read_text(encoding="utf-8")
        + "67,264 50 2.0"
    )
    body = card.split("---", 2)[2]
    for figure in re.findall(r"\d[\d,.]*\d|\d", body):
        assert figure in measured, figure


def test_the_picture_on_the_card_is_in_the_folder(model, tmp_path):
    finished_folder(tmp_path, model)
    card = write_model_card(tmp_path, TEMPLATE).read_text(encoding="utf-8")
    for link in re.findall(r"!\[[^]]*\]\(([^)]+)\)", card):
        assert (tmp_path / link).exists()


def test_a_figure_that_was_not_recorded_stops_the_card(model, tmp_path):
    finished_folder(tmp_path, model, {key: value for key, value in ABOUT.items() if key != "seed"})
    with pytest.raises(UnfinishedModelError, match="seed"):
        write_model_card(tmp_path, TEMPLATE)
    assert not (tmp_path / "README.md").exists()


def test_a_model_that_was_not_measured_gets_no_card(model, tmp_path):
    model.save_pretrained(tmp_path)
    with pytest.raises(UnfinishedModelError):
        write_model_card(tmp_path, TEMPLATE)


@pytest.mark.parametrize("proved", [True, False])
def test_the_card_says_proved_where_a_certificate_does(model, tmp_path, proved):
    finished_folder(tmp_path, model)
    about = {"task": "addition", "variant": "local", "task_version": "3", "theorem": "Let a run begin.", "j": 10}
    counts = {"contexts": 4_894, "asked": 4_313, "margin": 7.0816 if proved else -1.0, "seconds": 90.0}
    certificate = {"proved": proved, **about, **counts, "hardware": {"cpu": "a processor", "cores": 2}}
    (tmp_path / "certificate.json").write_text(json.dumps(certificate), encoding="utf-8")
    card = write_model_card(tmp_path, TEMPLATE).read_text(encoding="utf-8")
    for text in ("Proved at every length", "Let a run begin.", "of 10 tokens", "4,894, in 4,313 of", "7.082"):
        assert (text in card) == proved


def test_results_are_valid_json(model, tmp_path):
    finished_folder(tmp_path, model)
    assert json.loads((tmp_path / "results.json").read_text(encoding="utf-8"))["by_length"][0]["first_error"] is None


COMMITTED = sorted(path.parent for path in TEMPLATE.parent.glob("*/README.md"))


@pytest.mark.parametrize("folder", COMMITTED, ids=lambda folder: folder.name)
def test_a_committed_card_is_what_its_results_generate_and_its_links_resolve(folder):
    card = (folder / "README.md").read_text(encoding="utf-8")
    assert card == model_card(folder, TEMPLATE)
    links = re.findall(r"\]\(([^)]+)\)", card)
    assert links
    for link in links:
        assert (folder / link).exists(), link
    assert min(imread(folder / "length_generalization.png").shape[:2]) > 300


def test_the_hub_can_read_the_metadata_of_every_committed_card():
    assert COMMITTED
    for folder in COMMITTED:
        data = ModelCard((folder / "README.md").read_text(encoding="utf-8")).data
        results = json.loads((folder / "results.json").read_text(encoding="utf-8"))
        measured = [r["answer_accuracy"] for r in results["by_length"] + results["adversarial"]]
        assert [r.metric_value for r in data.eval_results if "answers" in r.metric_name] == measured


def test_an_example_of_several_lines_is_one_python_text_on_the_card(model, tmp_path):
    finished_folder(tmp_path, model, {**ABOUT, "example_problem": "1:abc\n>abc\n"})
    card = write_model_card(tmp_path, TEMPLATE).read_text(encoding="utf-8")
    for code in re.findall(r"```python\n(.*?)```", card, re.DOTALL):
        assert "1:abc\n>abc\n" in {n.value for n in ast.walk(ast.parse(code)) if isinstance(n, ast.Constant)}


@in_sandbox
def test_the_card_of_a_model_of_many_turns_says_them_one_after_the_other(model, tmp_path):
    turns = ['remember that "a" is "1".', 'tell me "a"?']
    finished_folder(tmp_path, model, {**ABOUT, "example_problem": turns[0], "example_turns": turns})
    card = write_model_card(tmp_path, TEMPLATE).read_text(encoding="utf-8")
    (code,) = re.findall(r"```python\n(.*?)```", card, re.DOTALL)  # transformers alone says no second turn
    compile(code, "card", "exec")
    assert "session.append" in code
    assert "trust_remote_code" not in card


def test_the_card_of_a_model_that_runs_commands_gives_it_its_tools(tmp_path, monkeypatch):
    task, (variant, *_) = load_task("code_fixing"), load_task("code_fixing").variants
    shape = {"width": 16, "depth": 1, "state_size": 4, "mamba": {}}
    model, tokenizer = from_scratch("tool_mamba", task.cells(variant), task.tools(variant), **shape)
    tokenizer.save_pretrained(tmp_path)
    facts = {"task": task.name, "variant": variant, "unit": task.unit, "environment": task.environment}
    example = "2 functions, bugs variable; seed 1"
    finished_folder(tmp_path, model, {**ABOUT, **facts, "example_problem": example}, trajectories=None)
    card = write_model_card(tmp_path, TEMPLATE).read_text(encoding="utf-8")
    assert "| length_77 | 77 | 0.9375 |  | 16 |" in card
    assert "the task's own check" in card
    assert task.environment in card
    (code,) = re.findall(r"```python\n(.*?)```", card, re.DOTALL)
    monkeypatch.chdir(tmp_path)
    exec(code.replace("**prompts, ", "**prompts, max_new_tokens=4, "), {})
