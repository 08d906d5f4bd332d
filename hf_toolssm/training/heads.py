"""Auxiliary heads: what else is learned from the hidden states that the language model's head reads.

A head may say, before an answer, whether the state alone will be right. Its targets are a column of the rows, one for
every token and `IGNORED` where there is none; nothing is shifted, so a target belongs to the state after its token::

    controller = Head("controller", nn.Linear(width, 1), "knows", binary_loss, weight=0.3)
    rows = rows.add_column("knows", targets)  # of each row as many as input_ids: 0, 1 or IGNORED
    trainer = ToolSFTTrainer(model, config, rows, heads=[controller])
    trainer.train()  # logs loss (of all), lm_loss and controller_loss
    trainer.save_model("folder")  # the heads beside the model, which loads as any other

    load_heads([controller], "folder")
    probability = controller.module(model.backbone(ids).last_hidden_state).sigmoid()  # (b, l, 1)
"""

import math
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from datasets import Dataset
from safetensors import SafetensorError
from safetensors.torch import load_model, save_model
from torch import Tensor, nn

from hf_toolssm.errors import NoCheckpointError, UnsafeTrainingError
from hf_toolssm.protocol.render import IGNORED

_PLACE = "auxiliary_heads"
HEADS_FILE = "heads.safetensors"
_OTHER_LOSSES = ("lm", "train", "eval")
_OTHER_COLUMNS = ("input_ids", "labels", "shift_labels", "attention_mask")


def binary_loss(predictions: Tensor, targets: Tensor) -> Tensor:
    """Binary cross entropies (n,) of logits (n,) or (n, 1) and targets (n,) from 0 to 1."""
    logits = predictions.float().reshape(targets.shape)
    return F.binary_cross_entropy_with_logits(logits, targets.float(), reduction="none")


def cross_entropy_loss(predictions: Tensor, targets: Tensor) -> Tensor:
    """Cross entropies (n,) of logits (n, classes) and targets (n,), the numbers of classes."""
    return F.cross_entropy(predictions.float(), targets, reduction="none")


@dataclass(frozen=True, eq=False)
class Head:
    """A loss of its own on the final hidden states, trained with the language model's.

    Attributes:
        name: its loss is logged as `{name}_loss`, in evaluations as `eval_{name}_loss`.
        module: the final hidden states (b, l, e), in float32, to predictions (b, l) or (b, l, k). Rows are padded on
            the right, and with `bptt_length` come in pieces.
        column: of the rows: one target for each token, `IGNORED` where there is none.
        loss: predictions (n,) or (n, k) and targets (n,) of the tokens that have one, to a loss (n,) for each.
        weight: the objective is the language model's loss and `weight` times the mean of this one over its targets,
            those of all micro-batches and processes of a step.

    Raises:
        UnsafeTrainingError: the name, the column or the weight cannot be one.
    """

    name: str
    module: nn.Module
    column: str
    loss: Callable[[Tensor, Tensor], Tensor]
    weight: float = 1.0

    def __post_init__(self) -> None:
        numbers = isinstance(self.weight, int | float) and isinstance(self.name, str) and isinstance(self.column, str)
        if not numbers or not isinstance(self.module, nn.Module) or not callable(self.loss):
            raise UnsafeTrainingError(
                f"a head has a name, a module, the name of a column, a function and a number as its weight: {self}"
            )
        if not self.name.isidentifier() or self.name in _OTHER_LOSSES:
            raise UnsafeTrainingError(
                f"a head cannot be named {self.name!r}: use a word, and none of {', '.join(_OTHER_LOSSES)}, whose "
                "losses are logged already"
            )
        if self.column in _OTHER_COLUMNS:
            raise UnsafeTrainingError(
                f"head {self.name} takes its targets from {self.column}, which the language model reads: copy it to a "
                "column of another name"
            )
        if not (math.isfinite(self.weight) and self.weight > 0):
            raise UnsafeTrainingError(
                f"head {self.name} has the weight {self.weight}: with none above 0 it learns nothing"
            )

    def sums(self, hidden: Tensor, targets: Tensor) -> tuple[Tensor, Tensor]:
        """The sum of its losses over hidden states (b, l, e) with targets (b, l), and how many targets these are."""
        has_target = targets != IGNORED
        return self.loss(self.module(hidden.float())[has_target], targets[has_target]).sum(), has_target.sum()


class TargetCollator:
    """Pads the columns of targets as the collator of the batches pads the labels.

    Args:
        collate: makes a batch of rows of `input_ids` and `labels`.
        columns: of the targets.
    """

    def __init__(self, collate: Callable[[list[dict[str, Any]]], dict[str, Any]], columns: Iterable[str]) -> None:
        self._collate = collate
        self._columns = set(columns)

    def __call__(self, rows: list[dict[str, Any]]) -> dict[str, Any]:
        batch = self._collate(rows)
        for column in self._columns:
            as_labels = [{"input_ids": row["input_ids"], "labels": row[column]} for row in rows]
            batch[column] = self._collate(as_labels)["labels"]
        return batch


def modules_of(heads: Sequence[Head]) -> nn.ModuleDict:
    """What is trained, by the heads' names.

    Raises:
        UnsafeTrainingError: two have one name.
    """
    names = [head.name for head in heads]
    if twice := sorted({name for name in names if names.count(name) > 1}):
        raise UnsafeTrainingError(f"two heads are named {twice[0]}: their losses and weights would be one")
    # In one order, because an optimizer's state goes by it; under names that no method of a module has.
    return nn.ModuleDict({f"{head.name}_head": head.module for head in sorted(heads, key=lambda head: head.name)})


@contextmanager
def heads_on_model(model: nn.Module, modules: nn.ModuleDict, on: bool) -> Iterator[None]:
    """Lets the heads be a part of the model, or not: what trains its weights then trains theirs."""
    before = model._modules.pop(_PLACE, None)
    if on and len(modules):
        model.add_module(_PLACE, modules)
    try:
        yield
    finally:
        model._modules.pop(_PLACE, None)
        if before is not None:
            model.add_module(_PLACE, before)


def save_heads(heads: Sequence[Head], folder: str | Path) -> None:
    """Writes the weights of the heads into a folder, beside a model; of none, removes those of an earlier training."""
    Path(folder).mkdir(parents=True, exist_ok=True)
    (Path(folder) / HEADS_FILE).unlink(missing_ok=True)
    if heads:
        save_model(modules_of(heads), str(Path(folder) / HEADS_FILE))


def load_heads(heads: Sequence[Head], folder: str | Path) -> None:
    """Reads what `save_heads` wrote, into heads of the same names and modules.

    Raises:
        NoCheckpointError: the folder holds none, or other ones.
    """
    path = Path(folder) / HEADS_FILE
    if not path.exists():
        raise NoCheckpointError(f"{path} is missing: the model in this folder was saved without heads")
    try:
        load_model(modules_of(heads), str(path))
    except (RuntimeError, SafetensorError) as error:
        names = ", ".join(head.name for head in heads)
        raise NoCheckpointError(f"{path} holds other heads than {names}: {error}") from error


def try_head(head: Head, width: int, rows: Dataset) -> None:
    """Runs a head and its loss once on what targets the first 100 rows hold.

    Args:
        width: of the hidden states.

    Raises:
        UnsafeTrainingError: they do not fit each other or the model.
    """
    targets = torch.tensor([target for row in rows.select(range(min(len(rows), 100)))[head.column] for target in row])
    targets = targets[targets != IGNORED].unique()
    if not len(targets) or not bool(targets.isfinite().all()):
        raise UnsafeTrainingError(
            f"head {head.name} has no target, or one that is no number, in the first 100 rows: see {head.column}"
        )
    if head.loss is binary_loss and bool(((targets < 0) | (targets > 1)).any()):
        raise UnsafeTrainingError(f"head {head.name} has targets of {targets.tolist()[:5]}: a binary one has 0 and 1")
    device = next((weight.device for weight in head.module.parameters()), torch.device("cpu"))
    targets, training = targets.to(device)[None], head.module.training
    try:
        with torch.no_grad():
            predictions = head.module.eval()(torch.zeros(1, targets.shape[1], width, device=device))
            if predictions.shape[:2] != targets.shape:
                raise UnsafeTrainingError(
                    f"head {head.name} makes {tuple(predictions.shape)} of hidden states (1, {targets.shape[1]}, "
                    f"{width}): it must give a prediction for every token, (b, l) or (b, l, k)"
                )
            losses = head.loss(predictions[0], targets[0])
    except UnsafeTrainingError:
        raise
    except (RuntimeError, IndexError, TypeError, ValueError) as error:
        raise UnsafeTrainingError(
            f"head {head.name} does not run on hidden states of width {width} in float32 and the targets in "
            f"{head.column}: {error}"
        ) from error
    finally:
        head.module.train(training)
    if losses.shape != targets[0].shape:
        raise UnsafeTrainingError(
            f"the loss of head {head.name} is {tuple(losses.shape)} for {targets.shape[1]} targets: it must be one "
            "for each, without a mean or a sum"
        )
