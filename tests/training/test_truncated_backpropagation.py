"""Rows trained in pieces: the loss of the whole row, the gradient of truncated back-propagation, a piece's memory."""

import pytest
import torch
import torch.nn.functional as F
from small_run import losses, make_trainer

from hf_toolssm import MambaState

PIECE = 16


def first_batch(trainer):
    return next(iter(trainer.get_train_dataloader()))


def step(trainer, batch):
    """The loss and the gradients of one training step."""
    trainer.model.zero_grad()
    count = (batch["labels"][:, 1:] != -100).sum()
    loss = trainer.training_step(trainer.model, dict(batch), count)
    return loss.item(), {name: p.grad.clone() for name, p in trainer.model.named_parameters() if p.requires_grad}


def truncated_by_hand(model, batch, start):
    """One row at a time, without padding: the reference that knows nothing of pieces of a batch."""
    model.zero_grad()
    count = (batch["labels"][:, 1:] != -100).sum()
    whole = 0.0
    for row in range(len(batch["input_ids"])):
        length = int(batch["attention_mask"][row].sum())
        state = MambaState(model.config) if start is None else start.select([row])
        for first in range(0, length, PIECE):
            state = state.detach()
            ids = batch["input_ids"][row : row + 1, first : min(first + PIECE, length)]
            logits = model(ids, cache_params=state, use_cache=True).logits[0]
            labels = batch["labels"][row, first + 1 : first + 1 + len(logits)]
            loss = F.cross_entropy(logits[: len(labels)], labels, reduction="sum") / count
            loss.backward()
            whole += loss.item()
    return whole, {name: p.grad.clone() for name, p in model.named_parameters() if p.requires_grad}


@pytest.mark.parametrize("lora_rank", [0, 4])
@pytest.mark.parametrize("carried", [False, True])
def test_loss_and_gradient_are_those_of_truncation_written_by_hand(tmp_path, lora_rank, carried):
    share = 1.0 if carried else 0.0
    trainer = make_trainer(tmp_path, 6, 1, lora_rank=lora_rank, bptt_length=PIECE, state_passing_share=share)
    batch = first_batch(trainer)
    lengths = batch["attention_mask"].sum(1)
    assert lengths.max() > 2 * PIECE
    assert lengths.min() <= lengths.max() - 3  # rows end in different places
    if carried:
        step(trainer, batch)
    start = trainer.states.states if carried else None
    loss, gradients = step(trainer, batch)
    expected_loss, expected = truncated_by_hand(trainer.model, batch, start)
    assert loss == pytest.approx(expected_loss, rel=1e-5)
    for name, gradient in expected.items():
        assert (gradients[name] - gradient).abs().max() < 1e-5 * max(1, gradient.abs().max()), name


def test_the_loss_and_the_carried_state_are_those_of_the_whole_row(tmp_path):
    whole = make_trainer(tmp_path / "whole", 6, 1, state_passing_share=1.0)
    pieces = make_trainer(tmp_path / "pieces", 6, 1, state_passing_share=1.0, bptt_length=PIECE)
    batch = first_batch(whole)
    (whole_loss, whole_gradients), (loss, gradients) = step(whole, batch), step(pieces, batch)
    assert loss == pytest.approx(whole_loss, rel=1e-5)
    assert any((gradients[name] - whole_gradients[name]).abs().max() > 1e-4 for name in gradients)  # truncated
    assert pieces.states.batches == whole.states.batches == 1
    for layer in range(2):
        for a, b in zip(pieces.states.states.read(layer), whole.states.states.read(layer)):
            assert (a - b).abs().max() < 1e-4
    for name in ("entropy", "mean_token_accuracy", "num_tokens"):
        assert pieces._metrics["train"][name] == pytest.approx(whole._metrics["train"][name], rel=1e-5), name


def test_pieces_longer_than_every_row_change_nothing(tmp_path):
    runs = [make_trainer(tmp_path / str(length), 8, 4, bptt_length=length) for length in (None, 10_000)]
    for trainer in runs:
        trainer.train()
    assert losses(runs[0]) == losses(runs[1])
    for a, b in zip(runs[0].model.parameters(), runs[1].model.parameters()):
        assert torch.equal(a, b)


def test_gradient_accumulation_over_two_half_batches_equals_the_batch(tmp_path):
    runs = [
        make_trainer(
            tmp_path / str(accumulated),
            8 // accumulated,
            4,
            bptt_length=PIECE,
            state_passing_share=0.0,
            gradient_accumulation_steps=accumulated,
        )
        for accumulated in (1, 2)
    ]
    for trainer in runs:
        trainer.train()
    assert losses(runs[0]) == pytest.approx(losses(runs[1]), rel=1e-4)


def test_what_is_kept_for_the_backward_does_not_grow_with_the_row(tmp_path):
    def peak(length):
        saved = [0]

        def pack(tensor):
            saved[-1] += tensor.numel()
            return tensor

        trainer = make_trainer(tmp_path, 2, 1, bptt_length=PIECE)
        ids = torch.randint(3, 12, (2, length))
        batch = {"input_ids": ids, "labels": ids.clone(), "attention_mask": torch.ones_like(ids)}
        batch["labels"][:, ::2] = -100
        backward = trainer.accelerator.backward

        def freeing_backward(*args, **kwargs):
            backward(*args, **kwargs)
            saved.append(0)

        trainer.accelerator.backward = freeing_backward
        with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
            step(trainer, batch)
        assert len(saved) == 1 + length // PIECE
        return max(saved[:-1])

    assert peak(8 * PIECE) < 1.1 * peak(2 * PIECE)
