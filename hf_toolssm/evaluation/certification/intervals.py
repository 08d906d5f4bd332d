"""Boxes of float64 that hold what float32 code computes from any values in other boxes.

A box is enlarged by what the code may round. For sums, in any order and with fused multiplications, that is the
standard bound: n terms differ from their exact sum by at most n u / (1 - n u) times the sum of their absolute values,
u = 2**-24 (Higham, Accuracy and Stability of Numerical Algorithms, section 3.1). It is taken twice here, which also
covers this module's own rounding, 2**-53 at a time.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np

UNIT = 2.0**-24
TINY = 1e-30
"""Above all that underflow may take away."""

FUNCTION_ERROR = 2e-5
"""The largest relative error of the kernels' exponential, sigmoid and softplus, apart from their argument's.

Of `exp2_of_nonpositive`: the polynomial is within 3e-7 of 2**f, and evaluating its six terms, in whatever order, adds
at most 12 u (1 + 2**0.5) < 2e-6; a sigmoid divides by a sum of two such values, a softplus multiplies two and adds
eight terms of a series: less than 1e-5 each."""

_SILU_LOWEST, _SILU_MINIMUM = -1.2784645427610738, -0.2784645427610739


@dataclass(frozen=True, slots=True)
class Box:
    """All values from `low` to `high`, elementwise."""

    low: np.ndarray
    high: np.ndarray

    def __getitem__(self, index: Any) -> "Box":
        return Box(self.low[index], self.high[index])

    def __add__(self, other: "Box") -> "Box":
        return Box(self.low + other.low, self.high + other.high)

    def __mul__(self, other: "Box") -> "Box":
        ends = (self.low * other.low, self.low * other.high, self.high * other.low, self.high * other.high)
        return Box(np.minimum.reduce(ends), np.maximum.reduce(ends))

    @property
    def magnitude(self) -> np.ndarray:
        """The largest absolute value."""
        return np.maximum(np.abs(self.low), np.abs(self.high))

    @property
    def smallest(self) -> np.ndarray:
        """The smallest absolute value."""
        return np.maximum(0, np.maximum(self.low, -self.high))

    def widened(self, by: np.ndarray | float) -> "Box":
        return Box(self.low - by - TINY, self.high + by + TINY)

    def rounded(self, times: int = 1) -> "Box":
        """With what so many roundings may change, one after the other."""
        return self.widened(2 * times * UNIT * self.magnitude)

    def map(self, increasing: Callable[[np.ndarray], np.ndarray]) -> "Box":
        return Box(increasing(self.low), increasing(self.high))


def point(value: np.ndarray) -> Box:
    """The box of one value."""
    return Box(value, value)


def product(matrix: np.ndarray, box: Box) -> Box:
    """A matrix (o, i) times vectors (..., i), exactly; see `sum_error`."""
    middle, radius = (box.low + box.high) / 2, (box.high - box.low) / 2
    centre, spread = middle @ matrix.T, radius @ np.abs(matrix).T
    return Box(centre - spread, centre + spread)


def sum_error(terms: int, magnitudes: np.ndarray) -> np.ndarray:
    """What a float32 sum of so many rounded terms may be off, by the sum of their absolute values."""
    return 2 * (terms + 2) * UNIT * magnitudes


def silu(box: Box) -> Box:
    """x * sigmoid(x), which falls up to -1.278 and rises from there."""
    ends = box.map(lambda x: x * sigmoid(x))
    low, high = np.minimum(ends.low, ends.high), np.maximum(ends.low, ends.high)
    low = np.where((box.low < _SILU_LOWEST) & (box.high > _SILU_LOWEST), _SILU_MINIMUM, low)
    return _computed(Box(low, high))


def softplus(box: Box) -> Box:
    """log(1 + exp(x))"""
    return _computed(box.map(lambda x: np.maximum(x, 0) + np.log1p(np.exp(-np.abs(x)))))


def decay(exponent: Box) -> Box:
    """exp(x) of x <= 0, which the code has by four roundings and a rounded factor; it never falls below 2**-125."""
    off = 1 + FUNCTION_ERROR + 16 * UNIT * np.minimum(exponent.magnitude, 90)
    return Box(np.exp(exponent.low) / off, np.exp(exponent.high) * off + 2.0**-124)


def sigmoid(x: np.ndarray) -> np.ndarray:
    small = np.exp(-np.abs(x))
    return np.where(x >= 0, 1, small) / (1 + small)


def _computed(box: Box) -> Box:
    return box.widened(FUNCTION_ERROR * box.magnitude)
