"""Training learns what the labels say, passes states on, resumes exactly, and is the same on two processes."""

import copy
import json
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from datasets import Dataset
from peft import LoraConfig
from small_run import losses, make_trainer
from transformers import MambaConfig, MambaForCausalLM, set_seed

from hf_toolssm import MambaState, ToolMambaForCausalLM
from hf_toolssm.errors import NoCheckpointError, UnsafeTrainingError
from hf_toolssm.training.checkpoints import last_whole_checkpoint
from hf_toolssm.training.labelled_scores import score_labels
from hf_toolssm.training.sft_config import ToolSFTConfig
from hf_toolssm.training.trainer import ToolSFTTrainer

ROOT = Path(__file__).parents[2]
SCRIPT = Path(__file__).parent / "small_run.py"


def states_given_to_the_model(trainer):
    """Runs the trainer and returns, batch by batch, the scan state that the first layer started from and ended in."""
    seen = []
    backbone = trainer.model.backbone
    forward = type(backbone).forward

    def recording(*args, **kwargs):
        state = kwargs["cache_params"]
        before = state.clone()
        output = forward(backbone, *args, **kwargs)
        seen.append((before, state.clone()))
        return output

    backbone.forward = recording
    trainer.train()
    return seen


def test_training_learns(tmp_path):
    trainer = make_trainer(tmp_path, 16, 30)
    trainer.train()
    assert losses(trainer)[-1] < 0.5 * losses(trainer)[0]


def test_the_loss_is_the_mean_over_labelled_tokens_only(tmp_path):
    trainer = make_trainer(tmp_path, 4, 1, state_passing_share=0.0)
    batch = next(iter(trainer.get_train_dataloader()))
    with torch.no_grad():
        logits = trainer.model(batch["input_ids"], attention_mask=batch["attention_mask"]).logits
        loss = trainer.compute_loss(trainer.model, dict(batch)).item()
    labels = batch["labels"][:, 1:]
    assert (labels == -100).sum() > (labels != -100).sum() * 0.2
    expected = torch.nn.functional.cross_entropy(logits[:, :-1][labels != -100], labels[labels != -100])
    assert loss == pytest.approx(expected.item(), rel=1e-5)


def test_only_labelled_tokens_are_scored_and_their_scores_are_those_of_the_full_logits(tmp_path):
    trainer = make_trainer(tmp_path, 4, 1)
    batch = next(iter(trainer.get_train_dataloader()))
    model, labels = trainer.model, batch["labels"][:, 1:]
    mask = labels != -100
    hidden = model.backbone(batch["input_ids"], attention_mask=batch["attention_mask"]).last_hidden_state
    scored = score_labels(model.lm_head, hidden[:, :-1][mask], labels[mask])
    logits = model(batch["input_ids"], attention_mask=batch["attention_mask"]).logits[:, :-1]
    log_probs = logits.log_softmax(-1)
    chosen = log_probs.gather(2, labels.clamp(min=0)[:, :, None])[:, :, 0]
    entropy = -(log_probs.exp() * log_probs).sum(-1)
    assert torch.allclose(scored.log_probs, chosen[mask], atol=1e-5)
    assert torch.allclose(scored.entropy, entropy[mask], atol=1e-5)
    assert torch.equal(scored.is_top1, (logits.argmax(-1) == labels)[mask])
    found = torch.autograd.grad(scored.log_probs.sum(), list(model.parameters()))
    expected = torch.autograd.grad(chosen[mask].sum(), list(model.parameters()))
    for a, b in zip(found, expected):
        assert (a - b).abs().max() < 1e-4 * max(1, b.abs().max())


def test_a_trained_model_generates_and_its_copy_is_its_own(tmp_path):
    trainer = make_trainer(tmp_path, 4, 1)
    trainer.train()
    model = trainer.accelerator.unwrap_model(trainer.model).eval()
    ids = torch.tensor([[5, 6, 7]])
    assert model.generate(ids, max_new_tokens=5).shape[1] <= 8
    copied = copy.deepcopy(model)
    with torch.no_grad():
        copied.lm_head.weight.zero_()
        assert not copied(ids).logits.any()
        assert model(ids).logits.any()


def test_a_model_that_was_trained_still_gives_its_state_without_being_asked(tmp_path):
    trainer = make_trainer(tmp_path, 4, 1)
    trainer.save_model(tmp_path / "saved")
    saved = ToolMambaForCausalLM.from_pretrained(tmp_path / "saved")
    assert saved(torch.tensor([[3, 4]])).cache_params.batch_size == 1


@pytest.mark.parametrize("share", [0.0, 0.5, 1.0])
def test_the_given_share_of_batches_starts_from_the_states_before(tmp_path, share):
    trainer = make_trainer(tmp_path, 8, 24, state_passing_share=share)
    if share == 0:
        trainer.model.backbone.register_forward_pre_hook(
            lambda module, args, kwargs: pytest.fail("a state was passed") if kwargs.get("cache_params") else None,
            with_kwargs=True,
        )
        trainer.train()
        return
    seen = states_given_to_the_model(trainer)
    carried = 0
    for (_, after), (before, _) in zip(seen, seen[1:]):
        if before.batch_size is not None:
            carried += 1
            for layer in range(2):
                for a, b in zip(before.read(layer), after.read(layer)):
                    assert torch.equal(a, b)  # row i goes on from row i
                    assert not a.requires_grad
    assert carried == 23 if share == 1 else 6 <= carried <= 18


def test_a_padded_rows_carried_state_is_that_of_its_last_token(tmp_path):
    trainer = make_trainer(tmp_path, 4, 1)
    batch = next(iter(trainer.get_train_dataloader()))
    assert not batch["attention_mask"].all()
    trainer.training_step(trainer.model, dict(batch), (batch["labels"][:, 1:] != -100).sum())
    for row in range(4):
        ids = batch["input_ids"][row, batch["attention_mask"][row].bool()][None]
        solo = MambaState(trainer.model.config)
        with torch.no_grad():
            trainer.model(ids, cache_params=solo)
        for layer in range(2):
            for a, b in zip(trainer.states.states.select([row]).read(layer), solo.read(layer)):
                assert (a - b).abs().max() < 1e-4


def test_a_resumed_run_equals_an_uninterrupted_one(tmp_path):
    whole = make_trainer(tmp_path / "whole", 8, 6)
    whole.train()
    make_trainer(tmp_path / "parts", 8, 6, save_steps=3).train()
    resumed = make_trainer(tmp_path / "parts", 8, 6)
    set_seed(123)  # whatever random state the new process is in
    resumed.train(resume_from_checkpoint=str(tmp_path / "parts" / "checkpoint-3"))
    assert losses(resumed)[-3:] == pytest.approx(losses(whole)[-3:], rel=1e-6)
    for a, b in zip(whole.model.parameters(), resumed.model.parameters()):
        assert torch.allclose(a, b, atol=1e-6)


def test_a_short_last_batch_does_not_end_the_passing_of_states(tmp_path):
    trainer = make_trainer(tmp_path, 12, 12, state_passing_share=1.0)  # 64 rows: five batches of 12, one of 4
    seen = states_given_to_the_model(trainer)
    assert [before.batch_size for before, _ in seen[1:]] == [12, 12, 12, 12, 4, 12, 12, 12, 12, 12, 4]


REBALANCED = {"train_sampling_strategy": "batch_rebalance", "gradient_accumulation_steps": 4}


def test_micro_batches_of_any_size_go_on_from_the_last_state_of_every_row(tmp_path):
    trainer = make_trainer(tmp_path, 4, 3, state_passing_share=1.0, **REBALANCED)
    seen = states_given_to_the_model(trainer)
    sizes = [after.batch_size for _, after in seen]
    assert len(set(sizes)) > 1
    assert sum(sizes) == 3 * 16
    last: list = []  # of every row, its latest state
    for before, after in seen:
        for row in range(after.batch_size if last else 0):
            expected = last[row % len(last)]
            for a, b in zip(before.select([row]).read(1), expected.read(1)):
                assert torch.equal(a, b)
        last[: after.batch_size] = [after.select([row]) for row in range(after.batch_size)]


def test_rebalanced_batches_are_less_padded_and_every_seed_has_its_own(tmp_path):
    def rows(name, **options):
        trainer = make_trainer(tmp_path / name, 4, 1, **options)
        return [batch["attention_mask"] for batch in trainer.get_train_dataloader()]

    random_order = rows("random", gradient_accumulation_steps=4)
    sorted_order, again, other = (rows(str(seed), seed=seed, **REBALANCED) for seed in (0, 0, 1))
    padding = [sum(int((mask == 0).sum()) for mask in masks) for masks in (random_order, sorted_order)]
    assert padding[1] < padding[0] / 2
    lengths = [[mask.sum(1).tolist() for mask in masks] for masks in (sorted_order, again, other)]
    assert lengths[0] == lengths[1] != lengths[2]


def test_a_rebalanced_order_knows_its_epoch_when_a_run_is_resumed(tmp_path):
    trainer = make_trainer(tmp_path, 4, 1, **REBALANCED)
    sampler = trainer._get_train_sampler()
    trainer.state.epoch = 2.25
    trainer.callback_handler.on_epoch_begin(trainer.args, trainer.state, trainer.control)
    assert sampler.epoch == 2


def test_a_cut_off_checkpoint_is_passed_over(tmp_path):
    make_trainer(tmp_path, 8, 6, save_steps=2).train()
    assert last_whole_checkpoint(tmp_path).name == "checkpoint-6"
    (tmp_path / "checkpoint-6" / "trainer_state.json").write_text('{"epoch": ', encoding="utf-8")
    (tmp_path / "checkpoint-4" / "trainer_state.json").unlink()
    assert last_whole_checkpoint(tmp_path).name == "checkpoint-2"
    with pytest.raises(NoCheckpointError, match="without resume_from_checkpoint"):
        last_whole_checkpoint(tmp_path / "checkpoint-2")


def launch(config, output, *words):
    """Runs small_run.py under accelerate and returns its report."""
    command = [sys.executable, "-m", "accelerate.commands.launch"]
    command += ["--config_file", str(ROOT / "recipes" / "accelerate" / f"{config}.yaml")]
    command += ["--main_process_port", "0", str(SCRIPT), str(output), *map(str, words)]
    done = subprocess.run(command, capture_output=True, encoding="utf-8", cwd=ROOT)
    # Not the exit code: a process of two now and then aborts while it exits, when all is done and written.
    assert (output / "report.json").exists(), done.stderr[-3000:]
    return json.loads((output / "report.json").read_text(encoding="utf-8"))


@pytest.mark.parametrize("bptt_length", [1_000, 16])
def test_two_processes_give_the_losses_of_one_at_equal_global_batch(tmp_path, bptt_length):
    one = launch("cpu", tmp_path / "one", 8, 5, bptt_length)
    two = launch("cpu_two_processes", tmp_path / "two", 4, 5, bptt_length)
    assert (one["processes"], two["processes"]) == (1, 2)
    assert two["losses"] == pytest.approx(one["losses"], rel=1e-4)


@pytest.mark.parametrize(
    ("option", "message"),
    [
        ({"packing": True, "max_length": 64}, "packing=True is refused.*leaks"),
        ({"eval_packing": True}, "eval_packing=True is refused"),
        ({"padding_free": True}, "padding_free=True is refused.*leaks"),
        ({"max_length": 1024}, "max_length=1024 is refused.*loses its answer"),
        ({"completion_only_loss": True}, "completion_only_loss=True is refused.*labels"),
        ({"assistant_only_loss": True}, "assistant_only_loss=True is refused.*labels"),
        ({"chat_template_path": "other"}, "chat_template_path=other is refused.*by another template"),
        ({"eos_token": "1"}, "eos_token=1 is refused.*rendered already"),
        ({"train_sampling_strategy": "group_by_length"}, "train_sampling_strategy=group_by_length is refused"),
        ({"state_passing_share": 1.5}, "shares from 0 to 1"),
        ({"bptt_length": 0}, "at least 1, not 0"),
    ],
)
def test_options_that_would_quietly_train_something_else_are_refused(tmp_path, option, message):
    with pytest.raises(UnsafeTrainingError, match=message):
        ToolSFTConfig(output_dir=str(tmp_path), use_cpu=True, **option)


def test_a_model_that_this_trainer_cannot_train_is_refused(model, tokenizer, tmp_path):
    rows = Dataset.from_list([{"input_ids": [1, 2], "labels": [-100, 2]}])
    config = ToolSFTConfig(output_dir=str(tmp_path), use_cpu=True, state_passing_share=0.5)
    stock = MambaForCausalLM(MambaConfig(vocab_size=30, hidden_size=16, num_hidden_layers=1))
    with pytest.raises(UnsafeTrainingError, match="MambaForCausalLM has no state.*state_passing_share: 0"):
        ToolSFTTrainer(stock, config, rows, processing_class=tokenizer)
    with pytest.raises(UnsafeTrainingError, match="IterableDataset, whose labels cannot be checked"):
        ToolSFTTrainer(model, config, rows.to_iterable_dataset(), processing_class=tokenizer)
    lora = LoraConfig(r=64, target_modules=["in_proj", "conv1d"])
    with pytest.raises(UnsafeTrainingError, match="conv1d would not train"):
        ToolSFTTrainer(model, config, rows, processing_class=tokenizer, peft_config=lora)


@pytest.mark.parametrize(
    ("rows", "message"),
    [
        ([{"input_ids": [1, 2]}], "no labels.*Renderer"),
        ([{"input_ids": [1, 2], "labels": [-100, -100]}], "no token of row 0 carries loss"),
        (
            [{"input_ids": [1, 2], "labels": [-100, 2]}, {"input_ids": [1, 2], "labels": [1, 2]}],
            "every token of row 1",
        ),
        ([{"input_ids": [1, 2], "labels": [2]}], "2 tokens and 1 labels"),
    ],
)
def test_rows_without_proper_labels_are_refused(model, tokenizer, tmp_path, rows, message):
    config = ToolSFTConfig(output_dir=str(tmp_path), use_cpu=True)
    with pytest.raises(UnsafeTrainingError, match=message):
        ToolSFTTrainer(model, config, Dataset.from_list(rows), processing_class=tokenizer)
