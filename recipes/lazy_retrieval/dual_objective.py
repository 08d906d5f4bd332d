"""Trains a model on, by the language model's loss and, with a weight, those of a controller and of the key (TASS).

The controller's targets are whether the model was right out of its state when it was asked: its own greedy choices on
the rows, before this training. An answer is one letter, so what it chooses behind a row's own tokens is what it would
write. The key's target is the key that is asked for. While the model trains on, its targets grow stale; so it has seen
sessions of all these loads before it is asked (measure_retrieval.py).
"""

import random
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from datasets import Dataset
from torch import Tensor, nn

from dataset_builders.tasks.short_recall import KEY_LENGTH, LETTERS
from hf_toolssm.evaluation.exactness import in_evaluation_mode
from hf_toolssm.generation.model_runner import ModelRunner
from hf_toolssm.protocol.render import IGNORED, Renderer
from hf_toolssm.protocol.trajectory import StepKind, Trajectory
from hf_toolssm.training.checkpoints import whole_checkpoint
from hf_toolssm.training.heads import Head, binary_loss
from hf_toolssm.training.sft_config import ToolSFTConfig
from hf_toolssm.training.trainer import ToolSFTTrainer
from questions import TASK, VARIANT, drawn_problems, key_number

LOADS = (4, 8, 16, 32, 64, 128, 256)
"""Pairs of the sessions that the controller learns from."""

QUESTIONS = 32
"""Of a session; some ask for the same key."""

FITTING_STEPS = 600
Loss = Callable[[Tensor, Tensor], Tensor]
_ROWS_AT_ONCE = 16


class Controller(nn.Module):
    """Hidden states (b, l, e) to logits (b, l) that the state is right.

    Args:
        width: e.
    """

    def __init__(self, width: int) -> None:
        super().__init__()
        self.layers = nn.Sequential(nn.Linear(width, 64), nn.GELU(), nn.Linear(64, 1))

    def forward(self, hidden: Tensor) -> Tensor:
        return self.layers(hidden)[..., 0]


def key_loss(predictions: Tensor, targets: Tensor) -> Tensor:
    """The sum (n,) of the cross entropies of a key's letters, given logits (n, letters of a key x alphabet)."""
    letters, wanted = _letters(predictions, targets)
    return F.cross_entropy(letters.flatten(0, 1), wanted.flatten(), reduction="none").view(-1, KEY_LENGTH).sum(1)


def _letters(predictions: Tensor, targets: Tensor) -> tuple[Tensor, Tensor]:
    """Logits (n, letters of a key, alphabet), and which letters (n, letters of a key) the keys (n,) have."""
    places = len(LETTERS) ** torch.arange(KEY_LENGTH, device=targets.device)
    return predictions.unflatten(1, (KEY_LENGTH, len(LETTERS))), targets[:, None] // places % len(LETTERS)


@torch.no_grad()
def keys_read(reader: nn.Module, hidden: np.ndarray, keys: np.ndarray) -> float:
    """The share of keys (n,) all of whose letters are the most likely, by hidden states (n, e)."""
    letters, wanted = _letters(reader(torch.from_numpy(hidden)), torch.from_numpy(keys))
    return float((letters.argmax(-1) == wanted).all(1).float().mean())


def key_reader(width: int) -> nn.Linear:
    """Hidden states (b, l, e) to logits (b, l, letters of a key x alphabet)."""
    return nn.Linear(width, KEY_LENGTH * len(LETTERS))


def heads(width: int, weight: float, seed: int) -> list[Head]:
    """Both heads of the dual objective, the controller's first; none with a weight of 0."""
    torch.manual_seed(seed)
    if not weight:
        return []
    return [
        Head("controller", Controller(width), "knows", binary_loss, weight),
        Head("key", key_reader(width), "key", key_loss, weight),
    ]


def labelled_rows(model: Any, tokenizer: Any, rows_per_load: int, seed: int) -> Dataset:
    """Training sessions of every load, with the targets of both heads, in any order."""
    runner, renderer = ModelRunner(model), Renderer(tokenizer)
    rows = []
    for load in LOADS:
        problems = drawn_problems(False, load, rows_per_load, QUESTIONS, f"dual objective {seed}")
        for first in range(0, len(problems), _ROWS_AT_ONCE):
            solved = [TASK.solve(problem, VARIANT) for problem in problems[first : first + _ROWS_AT_ONCE]]
            rendered = [renderer.render(each) for each in solved]
            with in_evaluation_mode(model):
                _, choices = runner.feed(None, [row["input_ids"] for row in rendered], choices=True)
            rows += [{**row, **_targets(renderer, *each)} for row, each in zip(rendered, zip(solved, choices))]
    random.Random(seed).shuffle(rows)
    return Dataset.from_list(rows)


def _targets(renderer: Renderer, solved: Trajectory, choices: list[int]) -> dict[str, list[int]]:
    """Those of a row, `choices` being what the model would write behind each of its tokens."""
    knows, keys, at = [IGNORED] * len(choices), [IGNORED] * len(choices), 0
    for steps in solved.turns():
        tokens = [list(renderer.step(step)) for step in steps]
        asked = at + len(tokens[0]) - 1
        at += sum(map(len, tokens)) + 1  # the end of the turn
        *key, last = steps[0].cells()
        if last.isupper():
            continue
        keys[asked] = key_number("".join(key))
        if steps[1].kind is StepKind.THOUGHT:
            right = [token for step in tokens[2:] for token in step]
            knows[asked] = int(choices[asked + 1 : asked + 1 + len(right)] == right)
    return {"knows": knows, "key": keys}


def train_dual(
    model: Any, tokenizer: Any, rows: Dataset, both: list[Head], folder: Path, steps: int, seed: int
) -> None:
    """Trains the model on with these heads, in place, and saves all of it; interrupted, it goes on."""
    config = ToolSFTConfig(
        output_dir=str(folder),
        max_steps=steps,
        per_device_train_batch_size=8,
        train_sampling_strategy="batch_rebalance",
        learning_rate=1e-3,
        lr_scheduler_type="cosine",
        state_passing_share=0.0,
        use_cpu=True,
        save_steps=100,
        save_total_limit=1,
        logging_steps=20,
        seed=seed,
    )
    trainer = ToolSFTTrainer(model, config, rows, processing_class=tokenizer, heads=both)
    resume = whole_checkpoint(folder)
    trainer.train(resume_from_checkpoint=None if resume is None else str(resume))
    trainer.save_model()


def fit(
    make: Callable[[int], nn.Module], loss: Loss, features: np.ndarray, targets: np.ndarray, seed: int
) -> nn.Module:
    """Trains what reads features (n, e) to say targets (n,); no model changes.

    Args:
        make: what reads them, given e.
        loss: as of a `Head`.
    """
    torch.manual_seed(seed)
    module = make(features.shape[1])
    given, wanted = torch.from_numpy(features), torch.from_numpy(targets)
    optimizer = torch.optim.AdamW(module.parameters(), lr=3e-3, weight_decay=0.01)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, FITTING_STEPS)
    for _ in range(FITTING_STEPS):
        chosen = torch.randint(len(given), (min(len(given), 1024),))
        optimizer.zero_grad()
        loss(module(given[chosen]), wanted[chosen]).mean().backward()
        optimizer.step()
        schedule.step()
    return module.eval()


def fit_controller(features: np.ndarray, right: np.ndarray, seed: int) -> Controller:
    """One that reads features (n, e) and learns which of the answers (n,) are right."""
    return fit(Controller, binary_loss, features, right, seed)
