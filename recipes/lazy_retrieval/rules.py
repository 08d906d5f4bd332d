"""Rules that say how far the state is to be trusted, and what each is worth: the higher a score, the more.

FLARE (Jiang et al., arXiv 2305.06983) retrieves where a token of the sentence that it would write has a low
probability. DRAGIN (Su et al., arXiv 2403.10081) weighs a token's entropy by how much what follows attends to it; a
state space model has no attention, and how much the token changes the state stands in its place.
"""

from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import nn

from dual_objective import fit_controller
from hf_toolssm.evaluation.selective import Questions, auroc, calibrate
from questions import Asked

THRESHOLDS = [at / 200 for at in range(1, 201)]
"""Of a controller's probability, that are tested from the highest on."""


def probabilities(controller: nn.Module, hidden: np.ndarray) -> np.ndarray:
    """(n,) that the state is right."""
    with torch.no_grad():
        return controller(torch.from_numpy(hidden)).sigmoid().numpy().astype(float)


def _situation(asked: Asked) -> np.ndarray:
    """What is known of a question without the model: its session's load, and the distance to the pair."""
    load, distance = np.log2(asked.load) / 8, np.log2(1 + asked.distance) / 8
    return np.stack([load, distance, load - distance, load * distance], 1).astype(np.float32)


def _uncertainty(asked: Asked) -> np.ndarray:
    """What the answer that the state begins says of itself."""
    columns = (asked.entropy, asked.margin, asked.largest, asked.least, asked.change)
    return np.stack(columns, 1).astype(np.float32)


class Learned(NamedTuple):
    """What was fitted on `_situation` and on `_uncertainty`."""

    situation: nn.Module
    uncertainty: nn.Module


def learn(train: Asked, seed: int) -> Learned:
    """The rules that learn from sessions."""
    return Learned(*(fit_controller(read(train), train.state_is_right, seed) for read in (_situation, _uncertainty)))


def scores(asked: Asked, learned: Learned, controllers: dict[str, nn.Module], seed: int) -> dict[str, np.ndarray]:
    """By rule, (n,) of each question.

    Args:
        learned: the rules that have learned from other sessions.
        controllers: by name.
    """
    return {
        **{name: probabilities(each, asked.hidden) for name, each in controllers.items()},
        "entropy": -asked.entropy,
        "margin": asked.margin,
        "largest probability": asked.largest,
        "FLARE-like": asked.least,
        "DRAGIN-like": -asked.entropy * asked.change,
        "these five, fitted": probabilities(learned.uncertainty, _uncertainty(asked)),
        "load and distance": probabilities(learned.situation, _situation(asked)),
        "random": np.random.default_rng(seed).random(len(asked.load)),
    }


def by_load(asked: Asked) -> dict[int, dict[str, float]]:
    """The share of answers that are right, either way, and of how many questions."""
    found = {}
    for load in np.unique(asked.load):
        of = asked.where(asked.load == load)
        found[int(load)] = {
            "state": float(of.state_is_right.mean()),
            "store": float(of.tool_is_right.mean()),
            "questions": len(of.load),
        }
    return found


def hardest_load(asked: Asked) -> int:
    """That at which the state alone is right nearest to half of the time."""
    return min(by_load(asked).items(), key=lambda each: abs(each[1]["state"] - 0.5))[0]


def answerable_loads(asked: Asked, share: float) -> list[int]:
    """The smallest loads, so many that the state is right as nearly as can be to this share of their questions."""
    loads = np.unique(asked.load)
    most = min(loads, key=lambda load: abs(asked.state_is_right[asked.load <= load].mean() - share))
    return [int(load) for load in loads if load <= most]


def worth(asked: Asked, score: np.ndarray, load: int) -> dict[str, float | None]:
    """How well a rule tells what the state knows, pooled over all loads and within one."""
    within = asked.load == load
    pooled, hardest = auroc(score, asked.state_is_right), auroc(score[within], asked.state_is_right[within])
    return {"auroc": pooled, "auroc_within": hardest}


def at_rate(asked: Asked, score: np.ndarray, rate: float) -> dict[str, float]:
    """What is right where so many of the questions, those of the lowest scores, are asked of the store."""
    asks = np.zeros(len(score), bool)
    asks[np.argsort(score, kind="stable")[: int(rate * len(score))]] = True
    right = np.where(asks, asked.tool_is_right, asked.state_is_right)
    return {"calls": float(asks.mean()), "accuracy": float(right.mean())}


def sessions_of(asked: Asked, score: np.ndarray) -> list[Questions]:
    """The questions session by session."""
    ends = np.flatnonzero(np.diff(asked.session)) + 1
    parts = np.split(np.arange(len(score)), ends)
    return [
        Questions(int(asked.load[part[0]]), score[part], asked.state_is_right[part], asked.tool_is_right[part])
        for part in parts
    ]


def promises(sessions: Sequence[Questions], alpha: float, delta: float, pairs: int, seed: int) -> dict[str, Any]:
    """How often a promise is broken, over random halves of the sessions: one calibrates, the other is tested."""
    rng = np.random.default_rng(seed)
    broken, calls, accuracy, none = 0, [], [], 0
    for _ in range(pairs):
        order = rng.permutation(len(sessions))
        half, others = ([sessions[at] for at in part] for part in np.array_split(order, 2))
        promise = calibrate(half, THRESHOLDS, alpha, delta)
        if promise is None:
            none += 1
            continue
        tested = [each.lazily(promise.threshold) for each in others]
        accuracy.append(float(np.mean([right.mean() for right, _ in tested])))
        calls.append(float(np.mean([asks.mean() for _, asks in tested])))
        broken += 1 - accuracy[-1] > alpha
    return {
        "pairs": pairs,
        "without a promise": none,
        "broken": broken,
        "accuracy": float(np.mean(accuracy)) if accuracy else None,
        "calls": float(np.mean(calls)) if calls else None,
    }
