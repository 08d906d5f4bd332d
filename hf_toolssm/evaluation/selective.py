"""How well a score tells right answers from wrong ones, and from which score on a promise holds.

A promise is distribution-free: Learn-then-Test (Angelopoulos et al., arXiv 2110.01052) by fixed-sequence testing with
the p-values of Hoeffding and Bentkus (Bates et al., arXiv 2101.02703). It holds for sessions drawn as those of the
calibration were, and of nothing else: other loads, another model or another way of asking void it.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np


def auroc(scores: Sequence[float] | np.ndarray, right: Sequence[bool] | np.ndarray) -> float | None:
    """The probability that a right answer's score is above a wrong one's, equal ones by half; None if all are right
    or all are wrong."""
    scores, right = np.asarray(scores, float), np.asarray(right, bool)
    count = int(right.sum())
    if count in (0, len(right)):
        return None
    _, place, times = np.unique(scores, return_inverse=True, return_counts=True)
    ranks = (np.cumsum(times) - (times - 1) / 2)[place]
    return float((ranks[right].sum() - count * (count + 1) / 2) / (count * (len(right) - count)))


@dataclass(frozen=True, eq=False)
class Questions:
    """The questions of one session, each asked both ways.

    Attributes:
        load: what the session holds.
        scores: (n,), the higher, the more is the state trusted.
        state_is_right, tool_is_right: (n,) bool.
    """

    load: int
    scores: np.ndarray
    state_is_right: np.ndarray
    tool_is_right: np.ndarray

    def lazily(self, threshold: float) -> tuple[np.ndarray, np.ndarray]:
        """Which answers (n,) are right, and for which (n,) the tool is called, where scores below a threshold ask."""
        asks = self.scores < threshold
        return np.where(asks, self.tool_is_right, self.state_is_right), asks


@dataclass(frozen=True)
class Promise:
    """With probability 1 - `delta` over the draw of the calibration, at most `alpha` of a session's answers are wrong
    on average, where sessions are drawn as the calibration's were.

    Attributes:
        threshold: of the score, below which the tool is asked; infinite where it always has to be.
        sessions: that calibrated it.
        loads: the smallest and the largest of them. Of sessions beyond them nothing is promised.
    """

    threshold: float
    alpha: float
    delta: float
    sessions: int
    loads: tuple[int, int]

    def covers(self, load: int) -> bool:
        """Whether a load is one of those that the calibration saw; of others nothing is promised."""
        return self.loads[0] <= load <= self.loads[1]


def calibrate(
    sessions: Sequence[Questions], thresholds: Sequence[float], alpha: float, delta: float
) -> Promise | None:
    """The lowest threshold that keeps the promise.

    Thresholds are tested from the highest on, until one may not be kept; so the confidence needs no correction for
    their number. They must not depend on these sessions' answers.

    Returns:
        None where not even always asking keeps it: the tool itself is wrong too often, or the sessions are too few.
    """
    if not (0 < alpha < 1 and 0 < delta < 1 and sessions):
        raise ValueError(f"alpha and delta lie between 0 and 1, and there are sessions: {alpha}, {delta}")
    found, loads = None, [each.load for each in sessions]
    for threshold in (math.inf, *sorted(thresholds, reverse=True)):
        risk = float(np.mean([1 - each.lazily(threshold)[0].mean() for each in sessions]))
        if p_value(risk, len(sessions), alpha) > delta:
            break
        found = Promise(threshold, alpha, delta, len(sessions), (min(loads), max(loads)))
    return found


def p_value(risk: float, count: int, alpha: float) -> float:
    """Of the hypothesis that the mean loss is above `alpha`, given the mean of `count` losses from 0 to 1."""
    if risk >= alpha:
        return 1.0
    divergence = risk * math.log(risk / alpha) if risk else 0.0
    divergence += (1 - risk) * math.log((1 - risk) / (1 - alpha))
    most = math.ceil(count * risk - 1e-9)
    logs = [
        math.lgamma(count + 1) - math.lgamma(k + 1) - math.lgamma(count - k + 1)
        + k * math.log(alpha) + (count - k) * math.log1p(-alpha)
        for k in range(most + 1)
    ]  # fmt: skip
    return min(1.0, math.exp(-count * divergence), math.e * math.fsum(map(math.exp, logs)))
