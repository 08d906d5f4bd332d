"""The best of a training's checkpoints is kept, and a curriculum orders its rows."""

import json
from pathlib import Path

import pytest
import torch
from datasets import Dataset
from safetensors.torch import load_file
from small_run import make_trainer

from dataset_builders.catalog import load_task
from dataset_builders.problem_sets import TRAINING, ProblemSet, ReferenceTrajectories
from hf_toolssm.evaluation import evaluate_free_running
from hf_toolssm.training.curriculum import short_rows_first

KEEP_BEST = {
    "eval_strategy": "steps",
    "eval_steps": 3,
    "load_best_model_at_end": True,
    "metric_for_best_model": "selection",
    "greater_is_better": True,
}


def trained(tmp_path, accuracy_at):
    """A training of nine steps, measured at 3, 6 and 9, that keeps its best checkpoint."""
    trainer = make_trainer(tmp_path, 8, 9, accuracy=lambda model: accuracy_at[trainer.state.global_step], **KEEP_BEST)
    trainer.train()
    return trainer


def assert_weights_are_those_of(trainer, step):
    saved = load_file(Path(trainer.args.output_dir) / f"checkpoint-{step}" / "model.safetensors")
    weights = trainer.model.state_dict()
    assert all(torch.equal(weights[name], value) for name, value in saved.items())


def test_the_most_accurate_checkpoint_is_kept_though_others_have_a_lower_loss(tmp_path):
    trainer = trained(tmp_path, {3: 0.75, 6: 0.5, 9: 0.5})
    assert trainer.state.best_global_step == 3
    assert_weights_are_those_of(trainer, 3)
    state = json.loads((tmp_path / "checkpoint-9" / "trainer_state.json").read_text(encoding="utf-8"))
    logged = [entry["eval_accuracy"] for entry in state["log_history"] if "eval_accuracy" in entry]
    assert logged == [0.75, 0.5, 0.5]


def test_among_checkpoints_of_equal_accuracy_the_one_of_the_lowest_loss_is_kept(tmp_path):
    trainer = trained(tmp_path, {3: 0.5, 6: 0.5, 9: 0.5})
    losses = {e["step"]: e["eval_loss"] for e in trainer.state.log_history if "eval_loss" in e}
    assert trainer.state.best_global_step == min(losses, key=losses.get)
    assert_weights_are_those_of(trainer, trainer.state.best_global_step)


@pytest.mark.parametrize("lora_rank", [0, 2])
def test_measuring_by_free_runs_does_not_change_the_training(tmp_path, lora_rank):
    problems = ProblemSet(load_task("addition"), TRAINING, 4, (("validation", 2),), "local")
    references = ReferenceTrajectories(problems, "validation")

    def accuracy(model):
        return evaluate_free_running(model, measured.processing_class, "validation", 4, references).trajectory_accuracy

    measured = make_trainer(
        tmp_path / "measured", 8, 9, lora_rank, accuracy=accuracy, eval_strategy="steps", eval_steps=3
    )
    measured.train()
    assert sum("eval_accuracy" in entry for entry in measured.state.log_history) == 3
    alone = make_trainer(tmp_path / "alone", 8, 9, lora_rank)
    alone.train()
    for name, value in alone.model.state_dict().items():
        torch.testing.assert_close(measured.model.state_dict()[name], value, msg=name)


@pytest.mark.parametrize("total", [10, 30, 75])
def test_a_curriculum_goes_from_short_to_long_and_then_shows_all_rows_in_any_order(total):
    rows = Dataset.from_dict({"input_ids": [[0] * (1 + index * 7 % 30) for index in range(30)]})
    ordered = short_rows_first(rows, total, seed=0)
    lengths = [len(ids) for ids in ordered["input_ids"]]
    first, second = lengths[: total // 2], lengths[total // 2 :]
    assert len(ordered) == total
    assert first == sorted(first)
    assert second != sorted(second)
    assert len(set(second)) == min(30, len(second))  # every length once before one comes twice
    assert short_rows_first(rows, total, seed=0)["input_ids"] == ordered["input_ids"]
    assert short_rows_first(rows, total, seed=1)["input_ids"] != ordered["input_ids"]
