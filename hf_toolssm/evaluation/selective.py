"""How well a score tells right answers from wrong ones, and from which score on a promise holds.

A promise is distribution-free: Learn-then-Test (Angelopoulos et al., arXiv 2110.01052) by fixed-sequence testing, with
the p-values of a betting martingale (Waudby-Smith and Ramdas, arXiv 2010.09686). It holds for sessions drawn as those
of the calibration were, and of nothing else: other loads, another model or another way of asking void it.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np


def auroc(scores: Sequence[float] | np.ndarray, right: Sequence[bool] | np.ndarray) -> float | None:
    """The probability that a right answer's score is above a wrong one's, equal ones by half; None if all are right
    or all are wrong.

    Raises:
        ValueError: there is not one number for each answer.
    """
    scores, right = np.asarray(scores, float), np.asarray(right, bool)
    if scores.shape != right.shape or not np.isfinite(scores).all():
        raise ValueError(f"{scores.shape} scores for {right.shape} answers: a finite number for each")
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

    Raises:
        ValueError: there is no question, or not one finite score and two verdicts for each.
    """

    load: int
    scores: np.ndarray
    state_is_right: np.ndarray
    tool_is_right: np.ndarray

    def __post_init__(self) -> None:
        shapes = {self.scores.shape, self.state_is_right.shape, self.tool_is_right.shape}
        if len(shapes) > 1 or not len(self.scores) or not np.isfinite(self.scores).all():
            raise ValueError(f"a session has questions, each with a finite score and two verdicts, not {shapes}")

    def lazily(self, threshold: float) -> tuple[np.ndarray, np.ndarray]:
        """Which answers (n,) are right, and for which (n,) the tool is called, where scores below a threshold ask."""
        asks = self.scores < threshold
        return np.where(asks, self.tool_is_right, self.state_is_right), asks

    def loss(self, threshold: float) -> float:
        """The share of the answers that are wrong then."""
        return 1 - float(self.lazily(threshold)[0].mean())


@dataclass(frozen=True)
class Promise:
    """With probability 1 - `delta` over the draw of the calibration, at most `alpha` of a session's answers are wrong
    on average, where sessions are drawn as the calibration's were.

    Attributes:
        threshold: of the score, below which the tool is asked; infinite where it always has to be.
        sessions: that calibrated it.
        loads: those of the calibration, and what share of its sessions each had. Nothing is promised of one load by
            itself, nor of any other mixture.
    """

    threshold: float
    alpha: float
    delta: float
    sessions: int
    loads: tuple[tuple[int, float], ...]

    def covers(self, loads: Sequence[int], within: float = 0.05) -> bool:
        """Whether sessions of these loads are such a mixture: each load's share is that of the calibration's, give or
        take `within`. Where it is not, nothing is promised."""
        shares = dict(self.loads)
        found = {load: loads.count(load) / len(loads) for load in {*loads, *shares}} if loads else {}
        return bool(found) and all(abs(share - shares.get(load, 0.0)) <= within for load, share in found.items())


def calibrate(
    sessions: Sequence[Questions], thresholds: Sequence[float], alpha: float, delta: float
) -> Promise | None:
    """The lowest threshold that keeps the promise.

    Thresholds are tested from the highest on, until one may not be kept; so the confidence needs no correction for
    their number. They must not depend on these sessions' answers, nor the sessions' order on their loads or answers.

    Returns:
        None where not even always asking keeps it: the tool itself is wrong too often, or the sessions are too few.

    Raises:
        ValueError: alpha or delta does not lie between 0 and 1, there is no session, or a threshold is no number.
    """
    if not (0 < alpha < 1 and 0 < delta < 1 and sessions):
        raise ValueError(f"alpha and delta lie between 0 and 1, and there are sessions: {alpha}, {delta}")
    if any(math.isnan(threshold) for threshold in thresholds):
        raise ValueError("a threshold is no number")
    loads = [each.load for each in sessions]
    shares = tuple((load, loads.count(load) / len(loads)) for load in sorted(set(loads)))
    found = None
    for threshold in (math.inf, *sorted(thresholds, reverse=True)):
        if p_value([each.loss(threshold) for each in sessions], alpha, delta) > delta:
            break
        found = Promise(threshold, alpha, delta, len(sessions), shares)
    return found


def p_value(losses: Sequence[float], alpha: float, delta: float) -> float:
    """Of the hypothesis that the mean of losses from 0 to 1 is above `alpha`.

    What a gambler has who bets on each loss being below `alpha`, by what the losses before it were, is a
    supermartingale if that is so: it reaches 1 / p with a probability of at most p.

    Args:
        losses: independent, in an order that does not depend on them.
        delta: the level at which the bets are to win most.
    """
    won = most = total = 0.0
    mean, variance, spread = 0.5, 0.25, 0.25
    for number, loss in enumerate(losses, 1):
        bet = min(1.0, math.sqrt(2 * math.log(1 / delta) / (len(losses) * variance)))
        won += math.log1p(-bet * (loss - alpha))
        most = max(most, won)
        total += loss
        mean = (0.5 + total) / (number + 1)
        spread += (loss - mean) ** 2
        variance = spread / (number + 1)
    return math.exp(-most)
