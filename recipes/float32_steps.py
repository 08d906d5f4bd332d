"""Intervals in float64 that enclose what one decode step of a Mamba computes in float32 (`ops/fused_step.py`).

They are widened by what float32 may round: 2**-24 of the result an operation. A sum of n products may go in any order.
No product passes through more than n + 1 roundings then; n + 3 are counted, and the two more pay for the roundings of
float64 here, which are 2**29 times smaller. The proofs' own bounds have no part in this: `verify_certificate.py` is to
find an error in them.
"""

from collections.abc import Callable, Mapping
from typing import NamedTuple

import numpy as np

from hf_toolssm.errors import ToolSSMError

ROUNDING = 2.0**-24
KERNEL = 1e-5  # relative, of the kernels' exp, sigmoid and softplus, whose polynomials are exact to about 2e-7
EXPONENT = 8 * ROUNDING  # relative, of the number to exponentiate: exp(A_log), log2(e) and two products make it
SMALLEST = 2.0**-124  # the kernels' exp stays at 2**-125 from -86.6 on
TINY = 2.0**-90  # more than all that sums of up to 2**16 numbers below 2**-126 may lose, times the largest weight
LARGEST, LARGEST_WEIGHT = 1e10, 1e6  # so that no product overflows in float32, and none magnifies what TINY stands for


class VerificationError(ToolSSMError):
    """Nothing can be checked: a file is missing or is not what it should be."""


class Box(NamedTuple):
    low: np.ndarray
    high: np.ndarray

    def size(self) -> np.ndarray:
        return np.maximum(abs(self.low), abs(self.high))


def widened(low: np.ndarray, high: np.ndarray, error: np.ndarray | float) -> Box:
    """The box with an error on both sides.

    Raises:
        VerificationError: float32 might overflow, or has.
    """
    return limited(Box(low - error - TINY, high + error + TINY))


def limited(box: Box) -> Box:
    """The box as it is; see `widened`."""
    if not ((box.low >= -LARGEST).all() and (box.high <= LARGEST).all()):  # so written, NaN is refused as well
        raise VerificationError("nothing can be said of this model: a value in a step may be larger than 1e10")
    return box


def rounding(products: int) -> float:
    """Of a sum of so many products and a start, relative to the sum of their sizes; see the top."""
    return (products + 3) * ROUNDING / (1 - (products + 3) * ROUNDING)


def times(a: Box, b: Box) -> Box:
    corners = (a.low * b.low, a.low * b.high, a.high * b.low, a.high * b.high)
    return Box(np.minimum.reduce(corners), np.maximum.reduce(corners))


def matrix_times(matrix: np.ndarray, box: Box) -> Box:
    """(o, i) times (N, i) in real arithmetic: the middle, and how far the ends lie from it."""
    middle, radius = (box.low + box.high) / 2 @ matrix.T, (box.high - box.low) / 2 @ abs(matrix).T
    return Box(middle - radius, middle + radius)


def silu(box: Box) -> Box:
    """value * sigmoid(value), which falls to its least, at -1.27846, and rises from there."""
    with np.errstate(over="ignore"):  # exp(-value) is infinite: 0
        ends = [value / (1 + np.exp(-value)) for value in box]
    low = np.where((box.low < -1.27) & (box.high > -1.28), -0.2784645428, np.minimum(*ends))
    high, size = np.maximum(*ends), box.size()
    relative = KERNEL + EXPONENT * np.minimum(size, 88) + 2 * ROUNDING
    return widened(low - abs(low) * relative, high + abs(high) * relative, size * SMALLEST)


def softplus(box: Box) -> Box:
    """It rises, and is never negative. From 88 on the exponential is nothing, beside the value or at all."""
    relative = KERNEL + EXPONENT * np.minimum(box.size(), 88)
    low, high = np.logaddexp(0, box.low) * (1 - relative), np.logaddexp(0, box.high) * (1 + relative)
    found = widened(low, high, SMALLEST)
    return Box(np.maximum(found.low, 0), found.high)


def decay(dt: Box, rate: np.ndarray) -> Box:
    """exp(-dt * rate), which falls. The exponent's error grows with it, more slowly than the exponential falls."""
    least, most = dt.low * rate, dt.high * rate
    low = np.exp(-most) * (1 - KERNEL - EXPONENT * np.minimum(most, 88))
    high = np.exp(-least) * (1 + KERNEL + EXPONENT * np.minimum(least, 88))
    return Box(np.maximum(low, 0), high + SMALLEST)


class Residual:
    """The residual stream at every context: embeddings and what layers have added, in real arithmetic, and how far
    float32 may be from their sum, a channel each."""

    def __init__(self, embedded: np.ndarray, epsilon: float) -> None:
        self._embedded, self._epsilon = embedded, epsilon
        self._added: list[tuple[np.ndarray, Box]] = []
        self._size, self._error = abs(embedded), np.zeros_like(embedded)

    def add(self, matrix: np.ndarray, output: Box) -> None:
        self._added.append((matrix, output))
        self._size = self._size + output.size() @ abs(matrix).T
        self._error = self._error + rounding(matrix.shape[1]) * (self._size + self._error) + TINY

    def _times(self, matrix: np.ndarray) -> Box:
        """A matrix times the float32 stream, without the errors of that product."""
        low = high = self._embedded @ matrix.T
        for added, output in self._added:
            part = matrix_times(matrix @ added, output)
            low, high = low + part.low, high + part.high
        return widened(low, high, self._error @ abs(matrix).T)

    def normed_times(self, matrix: np.ndarray, sizes: np.ndarray) -> Box:
        """A matrix, whose columns hold the norm's weights already, times the normed stream.

        Args:
            sizes: what is summed, without signs, where that is more than the matrix's own entries.
        """
        channels = self._times(np.eye(matrix.shape[1]))
        width, size = matrix.shape[1], channels.size()
        nearest = np.maximum(np.maximum(channels.low, -channels.high), 0)
        mean_least, mean_most = (nearest**2).mean(1, keepdims=True), (size**2).mean(1, keepdims=True)
        # The root halves the errors of a sum of squares, a division, an addition, and epsilon itself. Root and
        # quotient may be estimated and refined once, exact to about 6 roundings; 12, and one more for float64.
        error = ((width + 3) / 2 + 13) * ROUNDING
        scale = Box(
            (mean_most + self._epsilon) ** -0.5 * (1 - error), (mean_least + self._epsilon) ** -0.5 * (1 + error)
        )
        found = times(self._times(matrix), scale)
        # Two products make a normed value.
        return widened(*found, rounding(width + 2) * scale.high * (size @ sizes.T))


class Step:
    """One step of a layer into every context but the first, which is the beginning.

    Args:
        weights: the layer's.
        residual: what goes in.
        before: what holds at any context that may stand before one, of what holds in each.
    """

    def __init__(self, weights: Mapping[str, np.ndarray], residual: Residual, before: Callable[[Box], Box]) -> None:
        D, x_proj, dt_proj = (weights[f"mixer.{name}"] for name in ("D", "x_proj.weight", "dt_proj.weight"))
        (d, r), self.states = dt_proj.shape, weights["mixer.A_log"].shape[1]
        in_proj = weights["mixer.in_proj.weight"] * weights["norm.weight"]
        xz = residual.normed_times(in_proj, abs(in_proj))
        gate, window = Box(xz.low[:, d:], xz.high[:, d:]), Box(xz.low[:, :d], xz.high[:, :d])
        window.low[0] = window.high[0] = 0  # at the beginning nothing has gone into the convolution
        taps, bias = weights["mixer.conv1d.weight"][:, 0].T, weights["mixer.conv1d.bias"]
        total = _Sum(Box(bias, bias))
        for tap in reversed(taps):  # the last is the newest input's
            total.add(times(Box(tap, tap), window))
            window = before(window)
        x = silu(total.rounded(len(taps)))

        size = x.size() @ abs(x_proj).T
        error = rounding(d) * size + TINY
        self._BC = widened(*matrix_times(x_proj[r:], x), error[:, r:])
        of_dt, bias = matrix_times(dt_proj @ x_proj[:r], x), weights["mixer.dt_proj.bias"]
        error_of_dt = error[:, :r] + rounding(r) * (size + error)[:, :r]
        # The first product's errors go through the second matrix.
        error_of_dt = error_of_dt @ abs(dt_proj).T + rounding(r) * abs(bias)
        self._dt = softplus(widened(of_dt.low + bias, of_dt.high + bias, error_of_dt))
        dtx = times(self._dt, x)
        self._dtx = widened(*dtx, 2 * ROUNDING * dtx.size())  # one rounding, and float64
        self._rates = np.exp(np.minimum(weights["mixer.A_log"], 99)).T  # 99 is over the limit
        limited(Box(self._rates, self._rates))
        self._y, self._gate, self._before = _Sum(times(Box(D, D), x)), silu(gate), before

    def state(self, s: int, held: Box) -> tuple[Box, np.ndarray]:
        """What boxes (N, d) of each channel's s-th state lead to, and the largest factors that the old ones are taken
        times. What is read of them is kept for the output."""
        b, c = (Box(self._BC.low[:, at : at + 1], self._BC.high[:, at : at + 1]) for at in (s, self.states + s))
        a = decay(self._dt, self._rates[s])
        kept, new = times(a, self._before(held)), times(self._dtx, b)
        self._y.add(times(c, held))
        # Two products and a sum, and float64.
        error = 4 * ROUNDING * (kept.size() + new.size())
        return widened(kept.low + new.low, kept.high + new.high, error), a.high

    def output(self) -> Box:
        """The gated output (N, d), when all states were held."""
        output = times(self._y.rounded(self.states), self._gate)
        return widened(*output, 2 * ROUNDING * output.size())


class _Sum:
    """A start and products, with the sum of their sizes."""

    def __init__(self, start: Box) -> None:
        self._low, self._high, self._size = start.low, start.high, start.size()

    def add(self, part: Box) -> None:
        self._low, self._high, self._size = self._low + part.low, self._high + part.high, self._size + part.size()

    def rounded(self, products: int) -> Box:
        return widened(self._low, self._high, rounding(products) * self._size)
