"""Heads learn from the hidden states that the language model's head reads, in one forward and one objective."""

import copy

import pytest
import torch
import torch.nn.functional as F
from small_run import losses, make_trainer, parities, parity_head
from test_trainer import launch
from torch import nn

from hf_toolssm import ToolMambaForCausalLM
from hf_toolssm.errors import NoCheckpointError, UnsafeTrainingError
from hf_toolssm.training.heads import Head, binary_loss, cross_entropy_loss, load_heads
from hf_toolssm.training.trainer import ToolSFTTrainer

PLAIN = {"state_passing_share": 0.0}


def weights(trainer):
    modules = (trainer.model, *(head.module for head in trainer.heads))
    return [weight.detach().clone() for module in modules for weight in module.parameters()]


def one_batch(trainer):
    batches, count = trainer.get_batch_samples(iter(trainer.get_train_dataloader()), 1, trainer.args.device)
    return batches[0], count


def gradients(trainer, batch, count):
    """The loss of one step, and the gradients of model and head."""
    loss = trainer.training_step(trainer.model, dict(batch), count)
    modules = nn.ModuleList([trainer.model, *(head.module for head in trainer.heads)])
    return loss.item(), {n: p.grad.clone() for n, p in modules.named_parameters() if p.requires_grad}


def test_the_objective_is_the_language_models_loss_and_each_heads_weighted_mean_over_its_targets(tmp_path):
    torch.manual_seed(0)
    classes = Head("classes", nn.Linear(16, 2), "parity", cross_entropy_loss, weight=2.0)
    trainer = make_trainer(tmp_path, 4, 1, heads=[parity_head(), classes], **PLAIN)
    batch, count = one_batch(trainer)
    for row, targets, length in zip(batch["input_ids"], batch["parity"], batch["attention_mask"].sum(1).tolist()):
        assert targets[:length].tolist() == parities(row[:length].tolist())
        assert (targets[length:] == -100).all()
    loss, found = gradients(trainer, batch, count)

    trainer.model.zero_grad()
    inputs = {name: batch[name] for name in ("input_ids", "attention_mask", "labels")}
    hidden = trainer.model.backbone(inputs["input_ids"], attention_mask=inputs["attention_mask"]).last_hidden_state
    mask = batch["parity"] != -100
    chosen, targets = hidden[mask], batch["parity"][mask]
    binary = F.binary_cross_entropy_with_logits(trainer.heads[0].module(chosen)[:, 0], targets.float())
    expected = trainer.model(**inputs).loss + 0.5 * binary + 2.0 * F.cross_entropy(classes.module(chosen), targets)
    for head in trainer.heads:
        head.module.zero_grad()
    expected.backward()
    assert loss == pytest.approx(expected.item(), rel=1e-5)
    modules = nn.ModuleList([trainer.model, *(head.module for head in trainer.heads)])
    for name, weight in modules.named_parameters():
        assert (found[name] - weight.grad).abs().max() < 1e-5 * max(1, weight.grad.abs().max()), name


def test_one_forward_serves_the_language_model_and_every_head(tmp_path):
    trainer = make_trainer(tmp_path, 4, 3, heads=[parity_head(), parity_head("twin")])
    calls = []
    trainer.model.backbone.register_forward_hook(lambda *args: calls.append(1))
    trainer.train()
    assert len(calls) == 3


def test_a_head_learns_and_its_loss_is_logged_in_training_and_evaluation(tmp_path):
    trainer = make_trainer(tmp_path, 16, 30, heads=[parity_head(weight=1.0)], accuracy=lambda model: 1.0)
    trainer.train()
    found = losses(trainer, "parity_loss")
    assert found[-1] < 0.5 * found[0]
    for total, lm, head in zip(losses(trainer), losses(trainer, "lm_loss"), found):
        assert total == pytest.approx(lm + head, rel=1e-5)
    assert trainer.evaluate()["eval_parity_loss"] == pytest.approx(found[-1], rel=0.5)


@pytest.mark.parametrize("bptt_length", [None, 16])
def test_accumulated_half_batches_give_the_losses_and_weights_of_the_batch(tmp_path, bptt_length):
    def run(accumulated):
        steps = {"gradient_accumulation_steps": accumulated, "bptt_length": bptt_length}
        trainer = make_trainer(
            tmp_path / str(accumulated), 8 // accumulated, 3, heads=[parity_head()], **steps, **PLAIN
        )
        trainer.train()
        return trainer

    whole, halves = run(1), run(2)
    for name in ("loss", "lm_loss", "parity_loss"):
        assert losses(halves, name) == pytest.approx(losses(whole, name), rel=1e-4), name


def test_pieces_give_a_head_the_loss_of_the_whole_row(tmp_path):
    found = []
    for name, length in (("whole", None), ("pieces", 16)):
        trainer = make_trainer(tmp_path / name, 6, 1, heads=[parity_head()], bptt_length=length, **PLAIN)
        batch, count = one_batch(trainer)
        found.append(gradients(trainer, batch, count))
    (loss, whole), (loss_in_pieces, pieces) = found
    assert loss_in_pieces == pytest.approx(loss, rel=1e-5)
    for name in ("1.weight", "1.bias"):  # the head's: no gradient of it crosses a cut
        assert (pieces[name] - whole[name]).abs().max() < 1e-5


@pytest.mark.parametrize(
    "options",
    [
        {"lora_rank": 4},
        {"gradient_checkpointing": True},
        {"bf16": True},
        {"label_smoothing_factor": 0.1},
        {"train_sampling_strategy": "batch_rebalance", "gradient_accumulation_steps": 4, "bptt_length": 16},
        {"architecture": "lstm"},
        {"architecture": "gpt_neox", **PLAIN},
    ],
    ids=str,
)
def test_a_head_trains_with_whatever_trains_the_model_and_leaves_nothing_on_it(tmp_path, options):
    trainer = make_trainer(tmp_path, 4, 3, heads=[parity_head()], **options)
    before = weights(trainer)[-2:]
    names = [name for name, _ in trainer.model.named_modules()]
    trainer.train()
    assert all((a != b).any() for a, b in zip(before, weights(trainer)[-2:]))
    assert [name for name, _ in trainer.model.named_modules()] == names
    assert losses(trainer, "parity_loss")[0] == pytest.approx(0.7, abs=0.3)


def test_a_run_resumed_with_heads_has_the_weights_of_an_uninterrupted_one(tmp_path):
    def make(name):
        dropping = Head("parity", nn.Sequential(nn.Dropout(0.5), nn.Linear(16, 1)), "parity", binary_loss)
        return make_trainer(tmp_path / name, 8, 6, heads=[dropping])

    torch.manual_seed(1)
    whole = make("whole")
    start = copy.deepcopy(whole.heads[0].module.state_dict())
    whole.train()
    parts = make("parts")
    parts.heads[0].module.load_state_dict(start)
    parts.train()
    resumed = make("parts")
    resumed.train(resume_from_checkpoint=str(tmp_path / "parts" / "checkpoint-3"))
    assert all(torch.equal(a, b) for a, b in zip(weights(resumed), weights(whole)))


def test_a_saved_model_loads_as_any_other_and_its_heads_beside_it(tmp_path):
    trainer = make_trainer(tmp_path, 4, 3, heads=[parity_head()])
    trainer.train()
    trainer.save_model()
    _, report = ToolMambaForCausalLM.from_pretrained(tmp_path, output_loading_info=True)
    assert not report["unexpected_keys"]
    assert not report["missing_keys"]
    loaded = parity_head()
    load_heads([loaded], tmp_path)
    assert torch.equal(loaded.module.weight, trainer.heads[0].module.weight)
    with pytest.raises(NoCheckpointError, match=r"heads\.safetensors is missing"):
        load_heads([loaded], tmp_path / "elsewhere")
    with pytest.raises(NoCheckpointError, match="holds other heads than key"):
        load_heads([parity_head("key")], tmp_path)


def test_the_best_checkpoint_brings_its_heads_and_its_accuracy_is_of_the_model_alone(tmp_path):
    steps = []

    def accuracy(model):
        steps.append(model.compiled_step())
        return 1.0 - 0.1 * len(steps)  # the first is the best

    best = {"load_best_model_at_end": True, "metric_for_best_model": "selection", "greater_is_better": True}
    evaluated = {"eval_strategy": "steps", "eval_steps": 3, "save_strategy": "steps"}
    trainer = make_trainer(tmp_path, 4, 6, heads=[parity_head()], accuracy=accuracy, **best, **evaluated)
    trainer.train()
    assert len(steps) == 2
    assert None not in steps  # what has a head on it is no model that a compiled step knows
    saved = parity_head()
    load_heads([saved], tmp_path / "checkpoint-3")
    assert torch.equal(saved.module.weight, trainer.heads[0].module.weight)
    load_heads([saved], tmp_path / "checkpoint-6")
    assert not torch.equal(saved.module.weight, trainer.heads[0].module.weight)


@pytest.mark.slow
def test_two_processes_give_the_losses_of_one_with_a_head(tmp_path):
    one = launch("cpu", tmp_path / "one", 8, 5, 16, "--head")
    two = launch("cpu_two_processes", tmp_path / "two", 4, 5, 16, "--head")
    assert (one["processes"], two["processes"]) == (1, 2)
    for name in ("losses", "head"):
        assert two[name] == pytest.approx(one[name], rel=1e-4), name


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"weight": 0.0}, "weight 0.0.*learns nothing"),
        ({"weight": float("nan")}, "weight nan"),
        ({"name": "lm"}, "cannot be named 'lm'"),
        ({"name": "a.b"}, "cannot be named 'a.b'"),
        ({"column": "labels"}, "targets from labels, which the language model reads"),
        ({"column": "absent"}, "no absent, from which head controller takes its targets"),
        ({"module": nn.Linear(17, 1)}, "does not run on hidden states of width 16"),
        ({"module": nn.Linear(16, 1).bfloat16()}, "does not run on hidden states of width 16 in float32"),
        ({"module": nn.Linear(16, 2)}, "does not run"),
        ({"module": nn.Flatten(0)}, "must give a prediction for every token"),
        ({"module": nn.Linear(16, 1), "loss": cross_entropy_loss}, "does not run.*out of bounds"),
        ({"loss": lambda predictions, targets: predictions.mean()}, "one for each, without a mean"),
    ],
)
def test_a_head_that_does_not_fit_is_refused_with_the_reason(tmp_path, fields, message):
    with pytest.raises(UnsafeTrainingError, match=message):
        make_trainer(tmp_path, 4, 1, heads=[Head(**{**vars(parity_head("controller")), **fields})])


def test_rows_that_do_not_fit_a_head_are_refused(tmp_path):
    trainer = make_trainer(tmp_path, 4, 1, heads=[parity_head()])
    shorter = trainer.train_dataset.map(lambda row: {"parity": row["parity"][1:]})
    other = trainer.train_dataset.map(lambda row: {"parity": [2] * len(row["parity"])})
    options = {"processing_class": trainer.processing_class}
    for rows, heads, message in (
        (shorter, [parity_head()], "row 0 has .* targets in parity: give one for each token"),
        (other, [parity_head()], r"targets of \[2\]: a binary one has 0 and 1"),
        (trainer.train_dataset, [parity_head(), parity_head()], "two heads are named parity"),
    ):
        with pytest.raises(UnsafeTrainingError, match=message):
            ToolSFTTrainer(trainer.model, trainer.args, rows, heads=heads, **options)
    for found in (True, None):
        args = copy.copy(trainer.args)
        args.ddp_find_unused_parameters = found
        with pytest.raises(UnsafeTrainingError, match="ddp_find_unused_parameters: false"):
            ToolSFTTrainer(trainer.model, args, trainer.train_dataset, heads=[parity_head()], **options)
    none = trainer.train_dataset.map(lambda row: {"parity": [-100] * len(row["parity"])})
    for bad, options_of_bad in ((none, {}), (trainer.train_dataset, {"eval_dataset": other})):
        with pytest.raises(UnsafeTrainingError, match=r"has no target|targets of \[2\]"):
            ToolSFTTrainer(trainer.model, trainer.args, bad, heads=[parity_head()], **options, **options_of_bad)


def test_heads_that_would_quietly_not_learn_are_refused(tmp_path):
    trainer = make_trainer(tmp_path, 4, 1)
    rows = trainer.train_dataset.map(lambda row: {"parity": parities(row["input_ids"])})
    options = {"heads": [parity_head()], "processing_class": trainer.processing_class}
    own = torch.optim.SGD(trainer.model.parameters(), lr=0.1)
    with pytest.raises(UnsafeTrainingError, match="the trainer's own optimizer"):
        ToolSFTTrainer(trainer.model, trainer.args, rows, optimizers=(own, None), **options)

    class OwnLoss(ToolSFTTrainer):
        def compute_loss(self, model, inputs, return_outputs=False, num_items_in_batch=None):
            return model(input_ids=inputs["input_ids"], labels=inputs["labels"]).loss

    with pytest.raises(UnsafeTrainingError, match="OwnLoss.compute_loss trains no head"):
        OwnLoss(trainer.model, trainer.args, rows, **options).train()


@pytest.mark.parametrize("fields", [{"name": 3}, {"weight": "1"}, {"module": len}, {"loss": None}, {"column": 3}])
def test_what_is_no_head_is_refused_at_once(fields):
    with pytest.raises(UnsafeTrainingError, match="a head has a name, a module"):
        Head(**{**vars(parity_head()), **fields})


@pytest.mark.parametrize("name", ["values", "type", "forward", "half"])
def test_a_head_may_be_called_what_a_module_calls_a_method(tmp_path, name):
    trainer = make_trainer(tmp_path, 4, 1, heads=[parity_head(name)])
    trainer.train()
    assert losses(trainer, f"{name}_loss")


def test_heads_may_be_given_in_another_order_when_a_run_is_resumed(tmp_path):
    def make(name, *order):
        heads = {name: parity_head(name) for name in ("first", "second")}
        return make_trainer(tmp_path / name, 8, 6, heads=[heads[each] for each in order])

    torch.manual_seed(1)
    whole = make("whole", "first", "second")
    start = {head.name: copy.deepcopy(head.module.state_dict()) for head in whole.heads}
    whole.train()
    parts = make("parts", "first", "second")
    for head in parts.heads:
        head.module.load_state_dict(start[head.name])
    parts.train()
    resumed = make("parts", "second", "first")
    resumed.train(resume_from_checkpoint=str(tmp_path / "parts" / "checkpoint-3"))
    expected = {head.name: head.module.state_dict() for head in whole.heads}
    for head in resumed.heads:
        assert all(torch.equal(head.module.state_dict()[n], weight) for n, weight in expected[head.name].items())
    with pytest.raises(UnsafeTrainingError, match="was trained with heads"):
        make_trainer(tmp_path / "parts", 8, 6).train(resume_from_checkpoint=str(tmp_path / "parts" / "checkpoint-3"))


def test_evaluation_sets_have_losses_of_their_own_and_a_prediction_before_is_forgotten(tmp_path):
    rows = make_trainer(tmp_path, 4, 1, heads=[parity_head()]).train_dataset
    sets = {"few": rows.select(range(4)), "others": rows.select(range(8, 16))}
    trainer = make_trainer(tmp_path, 4, 1, heads=[parity_head()])
    trainer.eval_dataset = sets
    found = trainer.evaluate()
    assert found["eval_few_parity_loss"] != found["eval_others_parity_loss"]
    trainer.predict(sets["others"])
    assert trainer.evaluate(sets["few"])["eval_parity_loss"] == pytest.approx(found["eval_few_parity_loss"])


def test_a_model_that_is_saved_without_heads_has_none_of_an_earlier_training_beside_it(tmp_path):
    make_trainer(tmp_path, 4, 1, heads=[parity_head()]).save_model(str(tmp_path / "model"))
    assert (tmp_path / "model" / "heads.safetensors").exists()
    make_trainer(tmp_path, 4, 1).save_model(str(tmp_path / "model"))
    with pytest.raises(NoCheckpointError, match="saved without heads"):
        load_heads([parity_head()], tmp_path / "model")
    (tmp_path / "model" / "heads.safetensors").write_bytes(b"cut")
    with pytest.raises(NoCheckpointError):
        load_heads([parity_head()], tmp_path / "model")
