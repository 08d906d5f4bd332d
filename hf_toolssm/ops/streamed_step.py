"""One decode step of a Mamba of any size on a CPU, at the speed at which its weights come from memory.

A large model's step for few rows does two operations per weight, so the weights' way into the CPU is all that counts:
each is read once for all rows, in the order in which it lies in memory, by all threads, and in as few bytes as the
caller allows.
"""

from typing import Literal, NamedTuple

import numba
import numpy as np
import torch
from torch import Tensor

from hf_toolssm.errors import InputMismatchError
from hf_toolssm.ops.checks import check_arrays
from hf_toolssm.ops.cpu_kernels import (
    CpuKernel,
    called,
    count_blocks,
    exp_of_nonpositive,
    float32_array,
    inlined,
    normalize,
    sigmoid,
    softplus,
    widened,
)

PARALLEL_WORK = 100_000
"""Weights times rows of one kernel call from which waking the other threads pays."""

_CHANNELS = 128
"""Channels, or rows of a large matrix, that a thread takes at a time: whole cache lines of each state."""

_FEW = 8
"""Rows that a thread takes at a time of a matrix with few."""


class StreamedStep:
    """One decode step of a `ToolMambaForCausalLM` of any size on a CPU, reading every weight once.

    Activations and states are float32 whatever the weights are.

    Args:
        model: float32 or bfloat16, whose matrices are read where they lie; of the small `dt_proj` a copy is made.
        weights: "int8" makes a copy of the matrices with eight bits per weight and a float32 scale per output row,
            rounded to nearest; None keeps the model's own.

    Raises:
        ValueError: the model's weights are neither float32 nor bfloat16.
    """

    def __init__(self, model, weights: Literal["int8"] | None = None) -> None:
        self._embeddings = model.backbone.embeddings.weight.detach()
        if self._embeddings.dtype not in (torch.float32, torch.bfloat16):
            raise ValueError(f"the weights are {self._embeddings.dtype}: load the model in float32 or bfloat16")
        store = _quantized if weights == "int8" else _stored
        self._layers = [_prepare_layer(block, store) for block in model.backbone.layers]
        self._norm = float32_array(model.backbone.norm_f.weight)
        self._head = store(model.lm_head.weight)
        self._epsilon = float(model.config.layer_norm_epsilon)
        channels, depth = model.config.intermediate_size, len(self._layers)
        self._conv = (depth, model.config.conv_kernel, channels)
        self._recurrent = (depth, model.config.state_size, channels)

    def __call__(self, ids: np.ndarray, conv: np.ndarray, recurrent: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Feeds one token to each row.

        Args:
            ids: (b,), int64.
            conv: (b, layers, k, d), float32, the last k inputs of each convolution, oldest first; moved on in place.
            recurrent: (b, layers, n, d), float32, the state of each scan; moved on in place.

        Returns:
            The logits (b, v), float32, and the first largest of them (b,), int64.

        Raises:
            InputMismatchError: an array has another size or type, or an id is none of the model's tokens.
        """
        check_arrays(
            "StreamedStep",
            ids=(np.ascontiguousarray(ids), (len(ids),), np.int64),
            conv=(conv, (len(ids), *self._conv), np.float32),
            recurrent=(recurrent, (len(ids), *self._recurrent), np.float32),
        )
        if ids.min(initial=0) < 0 or ids.max(initial=0) >= len(self._embeddings):
            raise InputMismatchError(f"StreamedStep was given a token that is none of {len(self._embeddings)}: {ids}")
        hidden = self._embeddings[torch.from_numpy(ids)].float().numpy()
        for layer, weights in enumerate(self._layers):
            _LAYER(weights.in_proj.size * len(ids), hidden, weights, self._epsilon, layer, conv, recurrent)
        matrix, scale = self._head
        logits = np.zeros((len(ids), len(matrix)), np.float32)
        _HEAD(matrix.size * len(ids), hidden, self._norm, self._epsilon, matrix, scale, logits)
        return logits, logits.argmax(1)


class _Layer(NamedTuple):
    """The weights of a `ToolMambaBlock`: matrices (out, in) as they are stored, with the scale of each row; all else
    in float32. dt_proj's rows are as short as the rank: transposed, they are long."""

    norm: np.ndarray  # (e,)
    in_proj: np.ndarray  # (2 d, e)
    in_scale: np.ndarray
    in_bias: np.ndarray
    taps: np.ndarray  # (k, d)
    conv_bias: np.ndarray
    x_proj: np.ndarray  # (r + 2 n, d)
    x_scale: np.ndarray
    dt_proj: np.ndarray  # (r, d)
    dt_scale: np.ndarray  # (d,)
    dt_bias: np.ndarray
    skip: np.ndarray
    decay: np.ndarray  # (n, d)
    out_proj: np.ndarray  # (e, d)
    out_scale: np.ndarray
    out_bias: np.ndarray


def _prepare_layer(block, store) -> _Layer:
    mixer = block.mixer
    projections = [mixer.in_proj, mixer.x_proj, mixer.dt_proj, mixer.out_proj]
    (in_proj, x_proj, dt_proj, out_proj), scales = zip(*(store(p.weight) for p in projections))
    in_scale, x_scale, dt_scale, out_scale = scales
    return _Layer(
        norm=float32_array(block.norm.weight),
        in_proj=in_proj,
        in_scale=in_scale,
        in_bias=_bias(mixer.in_proj),
        taps=np.ascontiguousarray(float32_array(mixer.conv1d.weight)[:, 0].T),
        conv_bias=_bias(mixer.conv1d),
        x_proj=x_proj,
        x_scale=x_scale,
        dt_proj=np.ascontiguousarray(dt_proj.T),
        dt_scale=dt_scale,
        dt_bias=_bias(mixer.dt_proj),
        skip=float32_array(mixer.D),
        decay=np.ascontiguousarray(-np.exp(float32_array(mixer.A_log)).T),
        out_proj=out_proj,
        out_scale=out_scale,
        out_bias=_bias(mixer.out_proj),
    )


def _bias(module) -> np.ndarray:
    return np.zeros(len(module.weight), np.float32) if module.bias is None else float32_array(module.bias)


def _stored(weight: Tensor) -> tuple[np.ndarray, np.ndarray]:
    """A matrix in the model's own memory, bfloat16 as its bits in uint16, and the scale of each row: one."""
    weight = weight.detach()
    bits = weight.view(torch.uint16) if weight.dtype == torch.bfloat16 else weight
    return bits.numpy(), np.ones(len(weight), np.float32)


def _quantized(weight: Tensor) -> tuple[np.ndarray, np.ndarray]:
    """A matrix in int8, and the scale of each row: the largest value of a row becomes 127."""
    weight = weight.detach().float()
    scale = weight.abs().amax(1).clamp(min=torch.finfo(torch.float32).tiny) / 127
    return (weight / scale[:, None]).round().to(torch.int8).numpy(), scale.numpy()


@called
def _project(matrix, scale, inputs, out, first, last):
    """Adds rows first to last of matrix (o, i), each times its scale (o,), times inputs (b, >= i) to out (b, o)."""
    columns, batch = matrix.shape[1], inputs.shape[0]
    fours = batch // 4 * 4
    whole = first + (last - first) // 4 * 4
    for o in range(first, whole if fours else first, 4):
        w0, w1, w2, w3 = matrix[o], matrix[o + 1], matrix[o + 2], matrix[o + 3]
        for b in range(0, fours, 4):
            _four_by_four(w0, w1, w2, w3, scale[o : o + 4], inputs[b : b + 4], columns, out[b : b + 4, o : o + 4])
    for b in range(fours, batch):
        x = inputs[b]
        for o in range(first, whole, 4):
            w0, w1, w2, w3 = matrix[o], matrix[o + 1], matrix[o + 2], matrix[o + 3]
            s0 = s1 = s2 = s3 = np.float32(0.0)
            for i in range(columns):
                value = x[i]
                s0, s1 = s0 + widened(w0[i]) * value, s1 + widened(w1[i]) * value
                s2, s3 = s2 + widened(w2[i]) * value, s3 + widened(w3[i]) * value
            out[b, o] += scale[o] * s0
            out[b, o + 1] += scale[o + 1] * s1
            out[b, o + 2] += scale[o + 2] * s2
            out[b, o + 3] += scale[o + 3] * s3
    for o in range(whole, last):
        weights = matrix[o]
        for b in range(batch):
            x = inputs[b]
            total = np.float32(0.0)
            for i in range(columns):
                total += widened(weights[i]) * x[i]
            out[b, o] += scale[o] * total


@inlined
def _four_by_four(w0, w1, w2, w3, scale, inputs, columns, out):
    """Sixteen sums at a time: each weight and each input that is loaded serves four of them."""
    x0, x1, x2, x3 = inputs[0], inputs[1], inputs[2], inputs[3]
    a0 = a1 = a2 = a3 = b0 = b1 = b2 = b3 = np.float32(0.0)
    c0 = c1 = c2 = c3 = d0 = d1 = d2 = d3 = np.float32(0.0)
    for i in range(columns):
        a, b, c, d = widened(w0[i]), widened(w1[i]), widened(w2[i]), widened(w3[i])
        y0, y1, y2, y3 = x0[i], x1[i], x2[i], x3[i]
        a0, a1, a2, a3 = a0 + a * y0, a1 + a * y1, a2 + a * y2, a3 + a * y3
        b0, b1, b2, b3 = b0 + b * y0, b1 + b * y1, b2 + b * y2, b3 + b * y3
        c0, c1, c2, c3 = c0 + c * y0, c1 + c * y1, c2 + c * y2, c3 + c * y3
        d0, d1, d2, d3 = d0 + d * y0, d1 + d * y1, d2 + d * y2, d3 + d * y3
    for row, (a, b, c, d) in enumerate(((a0, b0, c0, d0), (a1, b1, c1, d1), (a2, b2, c2, d2), (a3, b3, c3, d3))):
        out[row, 0] += scale[0] * a
        out[row, 1] += scale[1] * b
        out[row, 2] += scale[2] * c
        out[row, 3] += scale[3] * d


@called
def _convolve(inputs, taps, bias, window, first, last, x):
    """Channels first to last of x (d,) become the output for inputs (>= d,), which enter the window (k, d)."""
    width, newest = last - first, window.shape[0] - 1
    inputs, bias, out = inputs[first:last], bias[first:last], x[first:last]
    for i in range(width):
        out[i] = bias[i]
    for tap in range(newest):
        weights, values, later = taps[tap, first:last], window[tap, first:last], window[tap + 1, first:last]
        for i in range(width):
            values[i] = later[i]
            out[i] += weights[i] * values[i]
    weights, values = taps[newest, first:last], window[newest, first:last]
    for i in range(width):
        values[i] = inputs[i]
        out[i] += weights[i] * values[i]
    for i in range(width):
        out[i] *= sigmoid(out[i])


@called
def _step_size(inputs, matrix, scale, bias, first, last, dt):
    """Channels first to last of dt (d,) become the softplus of inputs (r,) times matrix (r, d) and its scale (d,)."""
    width = last - first
    out = dt[first:last]
    for i in range(width):
        out[i] = np.float32(0.0)
    fours = inputs.shape[0] // 4 * 4
    for j in range(0, fours, 4):
        w0, w1 = matrix[j, first:last], matrix[j + 1, first:last]
        w2, w3 = matrix[j + 2, first:last], matrix[j + 3, first:last]
        v0, v1, v2, v3 = inputs[j], inputs[j + 1], inputs[j + 2], inputs[j + 3]
        for i in range(width):
            out[i] += widened(w0[i]) * v0 + widened(w1[i]) * v1 + widened(w2[i]) * v2 + widened(w3[i]) * v3
    for j in range(fours, inputs.shape[0]):
        weights = matrix[j, first:last]
        for i in range(width):
            out[i] += widened(weights[i]) * inputs[j]
    scale, bias = scale[first:last], bias[first:last]
    for i in range(width):
        out[i] = softplus(out[i] * scale[i] + bias[i])


@called
def _scan(x, gate, dt, decay, B, C, skip, state, first, last, y):
    """Channels first to last of y (d,) become the gated output of one step of state (n, d).

    x, gate, dt and skip are (d,), decay (n, d), B and C (n,).
    """
    width = last - first
    x, gate, dt, skip, y = x[first:last], gate[first:last], dt[first:last], skip[first:last], y[first:last]
    for i in range(width):
        y[i] = skip[i] * x[i]
        x[i] *= dt[i]  # x is the state's input from here on
    for s in range(state.shape[0]):
        h, decay_s, b_s, c_s = state[s, first:last], decay[s, first:last], B[s], C[s]
        for i in range(width):
            value = exp_of_nonpositive(dt[i] * decay_s[i]) * h[i] + x[i] * b_s
            h[i] = value
            y[i] += value * c_s
    for i in range(width):
        y[i] *= gate[i] * sigmoid(gate[i])


def _layer(hidden, w, epsilon, layer, conv, recurrent):
    """Moves hidden (b, e) and the states through one layer, whose weights are w."""
    rows, e = hidden.shape
    d, n, r, p = conv.shape[3], recurrent.shape[2], w.dt_proj.shape[0], w.x_proj.shape[0]
    normed = np.empty((rows, e), np.float32)
    xz = np.empty((rows, 2 * d), np.float32)
    x, y, dt = np.empty((rows, d), np.float32), np.empty((rows, d), np.float32), np.empty((rows, d), np.float32)
    projected = np.zeros((rows, p), np.float32)

    for b in range(rows):
        normalize(hidden[b], w.norm, epsilon, normed[b])
    for block in numba.prange(count_blocks(d, _CHANNELS)):
        first, last = block * _CHANNELS, min(d, (block + 1) * _CHANNELS)
        for start in (0, d):
            for b in range(rows):
                for i in range(start + first, start + last):
                    xz[b, i] = w.in_bias[i]
            _project(w.in_proj, w.in_scale, normed, xz, start + first, start + last)
        for b in range(rows):
            _convolve(xz[b], w.taps, w.conv_bias, conv[b, layer], first, last, x[b])
    for block in numba.prange(count_blocks(p, _FEW)):
        _project(w.x_proj, w.x_scale, x, projected, block * _FEW, min(p, (block + 1) * _FEW))
    for block in numba.prange(count_blocks(d, _CHANNELS)):
        first, last = block * _CHANNELS, min(d, (block + 1) * _CHANNELS)
        for b in range(rows):
            _step_size(projected[b, :r], w.dt_proj, w.dt_scale, w.dt_bias, first, last, dt[b])
            gate, B, C = xz[b, d:], projected[b, r : r + n], projected[b, r + n :]
            _scan(x[b], gate, dt[b], w.decay, B, C, w.skip, recurrent[b, layer], first, last, y[b])
    for block in numba.prange(count_blocks(e, _FEW)):
        first, last = block * _FEW, min(e, (block + 1) * _FEW)
        for b in range(rows):
            for i in range(first, last):
                hidden[b, i] += w.out_bias[i]
        _project(w.out_proj, w.out_scale, y, hidden, first, last)


def _head(hidden, norm, epsilon, matrix, scale, logits):
    """Adds the logits (b, v) of hidden (b, e)."""
    normed = np.empty(hidden.shape, np.float32)
    for b in range(hidden.shape[0]):
        normalize(hidden[b], norm, epsilon, normed[b])
    for block in numba.prange(count_blocks(matrix.shape[0], _CHANNELS)):
        _project(matrix, scale, normed, logits, block * _CHANNELS, min(matrix.shape[0], (block + 1) * _CHANNELS))


_LAYER = CpuKernel(_layer, PARALLEL_WORK)
_HEAD = CpuKernel(_head, PARALLEL_WORK)
