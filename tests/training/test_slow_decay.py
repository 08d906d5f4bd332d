"""The penalty on slow decay: what it is, that training lowers it, and where it is refused."""

import math

import pytest
import torch
import torch.nn.functional as F
from small_run import make_trainer
from torch import nn

from hf_toolssm.errors import UnsafeTrainingError
from hf_toolssm.training.checks import check_model
from hf_toolssm.training.heads import Head, binary_loss
from hf_toolssm.training.sft_config import ToolSFTConfig
from hf_toolssm.training.slow_decay import FREE, slow_decays


def batch_of(trainer):
    return next(iter(trainer.get_train_dataloader()))


def shares_by_hand(model, batch, at_worst):
    """Of each layer, from what goes into its x_proj, in plain torch."""
    found = []
    real = batch["attention_mask"].bool()
    for block in model.backbone.layers:
        mixer, inputs = block.mixer, []
        handle = mixer.x_proj.register_forward_hook(lambda module, args, output, inputs=inputs: inputs.append(args[0]))
        model(batch["input_ids"], attention_mask=batch["attention_mask"])
        handle.remove()
        rank, rates = mixer.time_step_rank, torch.exp(mixer.A_log)
        times = mixer.dt_proj(mixer.x_proj(inputs[0][real])[..., :rank])
        if at_worst:  # of each channel, what the scan would have to read for the smallest step
            signs = (mixer.dt_proj.weight @ mixer.x_proj.weight[:rank]).sign()
            corners = -signs * inputs[0][real].abs().amax(0)  # (d, d)
            lowest = mixer.dt_proj(mixer.x_proj(corners)[..., :rank]).diagonal()
            assert (lowest <= times + 1e-6).all()
            free = lowest.new_tensor([math.log(math.expm1(FREE / rate)) for rate in rates.amin(1).tolist()])
            found.append((free - lowest).clamp(min=0).mean())
            continue
        kept = torch.exp(-F.softplus(times)[..., None] * rates).amax(-1)
        found.append((1 + torch.log(kept) / FREE).clamp(min=0).mean())
    return found


@pytest.mark.parametrize("at_worst", [False, True])
def test_it_is_the_mean_over_real_tokens_and_channels_or_over_channels_at_worst(tmp_path, at_worst):
    trainer = make_trainer(tmp_path, 4, 1, state_passing_share=0.0)
    batch = batch_of(trainer)
    assert not batch["attention_mask"].all()
    with slow_decays(trainer.model, batch["attention_mask"], at_worst) as found:
        trainer.model(batch["input_ids"], attention_mask=batch["attention_mask"])
        with torch.no_grad():
            trainer.model(batch["input_ids"], attention_mask=batch["attention_mask"])
    torch.testing.assert_close(found, shares_by_hand(trainer.model, batch, at_worst), rtol=1e-4, atol=1e-6)
    assert all(share > 0 for share in found)
    assert at_worst or all(share < 1 for share in found)


def test_padding_may_stand_on_either_side(tmp_path):
    trainer = make_trainer(tmp_path, 4, 1, state_passing_share=0.0)
    batch = batch_of(trainer)
    order = batch["attention_mask"].long().argsort(dim=1, stable=True)  # padding first
    turned = {name: batch[name].gather(1, order) for name in ("input_ids", "attention_mask")}
    assert not turned["attention_mask"][:, 0].all()
    found = []
    for each in (batch, turned):
        with slow_decays(trainer.model, each["attention_mask"], False) as shares:
            trainer.model(each["input_ids"], attention_mask=each["attention_mask"])
        found.append(torch.stack(shares))
    torch.testing.assert_close(found[0], found[1], rtol=1e-6, atol=0)


def test_beside_a_head_the_language_models_own_loss_is_logged_without_it(tmp_path):
    head = Head("parity", nn.Linear(16, 1), "parity", binary_loss, weight=1e-9)
    logged = []
    for weight in (0.0, 1.0):
        trainer = make_trainer(tmp_path, 4, 1, heads=[head], state_passing_share=0.0, slow_decay_weight=weight)
        trainer.train()
        logged.append(trainer.state.log_history[0])
    assert logged[0]["lm_loss"] == pytest.approx(logged[1]["lm_loss"])
    assert logged[1]["loss"] == pytest.approx(logged[0]["loss"] + logged[1]["slow_decay"], rel=1e-2)


@pytest.mark.parametrize("items", [None, 57])
def test_the_loss_has_it_by_its_weight(tmp_path, items):
    """As large a part of a step's as the batch's labels are of the step's."""
    plain, penalized = (
        make_trainer(tmp_path, 4, 1, state_passing_share=0.0, slow_decay_weight=weight) for weight in (0.0, 0.3)
    )
    batch = batch_of(plain)
    loss, more = (t.compute_loss(t.model, dict(batch), num_items_in_batch=items) for t in (plain, penalized))
    share = 1 if items is None else (batch["labels"][:, 1:] != -100).sum() / items
    expected = 0.3 * torch.stack(shares_by_hand(plain.model, batch, False)).mean() * share
    assert (more - loss).item() == pytest.approx(expected.item(), rel=1e-3)


@pytest.mark.parametrize(("at_worst", "steps", "share"), [(False, 20, 0.5), (True, 60, 0.7)])
def test_training_lowers_it(tmp_path, at_worst, steps, share):
    options = {"slow_decay_weight": 100.0, "slow_decay_at_worst": at_worst, "learning_rate": 3e-2}
    trainer = make_trainer(tmp_path, 16, steps, **options)
    trainer.train()
    shares = [entry["slow_decay"] for entry in trainer.state.log_history if "slow_decay" in entry]
    assert shares[-1] < share * shares[0]


def test_an_evaluation_is_without_it(tmp_path):
    found = []
    for weight in (0.0, 1.0):
        trainer = make_trainer(tmp_path, 4, 1, accuracy=lambda model: 1.0, slow_decay_weight=weight)
        found.append(trainer.evaluate()["eval_loss"])
    assert found[0] == found[1]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"architecture": "lstm"}, "leave it out"),
        ({"architecture": "gpt_neox", "state_passing_share": 0.0}, "leave it out"),
        ({"gradient_checkpointing": True}, "leave out one of the two"),
        ({"bptt_length": 32}, "leave out bptt_length"),
    ],
)
def test_where_it_means_nothing_it_is_refused(tmp_path, options, message):
    with pytest.raises(UnsafeTrainingError, match=message):
        make_trainer(tmp_path, 4, 1, slow_decay_weight=0.1, **options)


@pytest.mark.parametrize("weight", [-0.1, float("nan"), float("inf")])
def test_a_weight_that_is_none_is_refused(tmp_path, weight):
    with pytest.raises(UnsafeTrainingError, match="at least 0"):
        ToolSFTConfig(output_dir=str(tmp_path), use_cpu=True, slow_decay_weight=weight)


def test_at_worst_a_step_that_costs_nothing_is_finite_whatever_the_rate(tmp_path):
    trainer = make_trainer(tmp_path, 4, 1, state_passing_share=0.0)
    batch = batch_of(trainer)
    for rate in (-8.0, 20.0):
        for block in trainer.model.backbone.layers:
            block.mixer.A_log.data.fill_(rate)
        with slow_decays(trainer.model, batch["attention_mask"], True) as found:
            trainer.model(batch["input_ids"], attention_mask=batch["attention_mask"])
        torch.stack(found).sum().backward()
        assert torch.stack(found).isfinite().all()
        assert all(block.mixer.A_log.grad.isfinite().all() for block in trainer.model.backbone.layers)


def test_at_worst_beside_an_adapter_is_refused(tmp_path):
    trainer = make_trainer(tmp_path, 4, 1)
    for block in trainer.model.backbone.layers:
        block.mixer.x_proj = nn.Sequential(block.mixer.x_proj)
    trainer.args.slow_decay_weight, trainer.args.slow_decay_at_worst = 0.1, True
    with pytest.raises(UnsafeTrainingError, match="an adapter stands beside them"):
        check_model(trainer.model, trainer.model, trainer.model, trainer.args)


def test_at_worst_without_a_weight_is_refused(tmp_path):
    with pytest.raises(UnsafeTrainingError, match="set it too"):
        ToolSFTConfig(output_dir=str(tmp_path), use_cpu=True, slow_decay_at_worst=True)
