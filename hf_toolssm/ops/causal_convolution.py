"""The depthwise causal convolution and SiLU of a Mamba block, from any state: its definition, and a CPU kernel.

A state holds the k inputs before the first one, oldest first, as transformers' Mamba cache does. A row may be shorter
than the tensor: its state is then that after its last real input.
"""

from typing import Any, NamedTuple

import numba
import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor
from torch.autograd.function import once_differentiable

from hf_toolssm.ops.causal_convolution_cuda import causal_convolution_cuda, kernel_applies
from hf_toolssm.ops.checks import check_tensors
from hf_toolssm.ops.cpu_kernels import (
    CpuKernel,
    called,
    clear,
    count_blocks,
    flat,
    flat_rows,
    row_lengths,
    sigmoid,
    silu_slope,
)
from hf_toolssm.ops.lanes import LANES, full, read_lanes, write_lanes

PARALLEL_OUTPUTS = 100_000
"""Outputs from which waking the other threads pays."""


@torch.compiler.disable
def causal_convolution(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    state: Tensor | None = None,
    lengths: Tensor | None = None,
) -> tuple[Tensor, Tensor]:
    """Convolves along the length and applies SiLU.

    Args:
        x: (b, l, d).
        weight: (d, k).
        bias: (d,) or None.
        state: the k inputs before x, (b, d, k); None is zeros.
        lengths: (b,) int64, how many inputs of each row are real; None is all. Outputs past them are unspecified, but
            finite.

    Returns:
        The output (b, l, d), and the last k real inputs (b, d, k), both in x's dtype.

    Raises:
        InputMismatchError: they do not fit each other.
    """
    check_tensors(
        "causal_convolution",
        lengths,
        x=(x, "b l d"),
        weight=(weight, "d k"),
        bias=(bias, "d"),
        state=(state, "b d k"),
    )
    if x.device.type != "cpu":
        if x.is_cuda and kernel_applies(weight):
            return causal_convolution_cuda(x, weight, bias, state, lengths)
        y, last = causal_convolution_reference(x, weight, bias, state, lengths)
        return F.silu(y), last
    batch, length, channels = x.shape
    if state is None:
        state = x.new_zeros(batch, channels, weight.shape[1])
    if bias is None:
        bias = x.new_zeros(channels)
    inputs = (t.float() for t in (x, weight, bias.contiguous(), state))
    y, last = _CausalConvolution.apply(*inputs, row_lengths(lengths, batch, length))
    return y.to(x.dtype), last.to(x.dtype)


def causal_convolution_reference(
    x: Tensor, weight: Tensor, bias: Tensor | None, state: Tensor | None = None, lengths: Tensor | None = None
) -> tuple[Tensor, Tensor]:
    """The convolution alone, without SiLU, on any device; see `causal_convolution` for the shapes."""
    batch, length, channels = x.shape
    kernel = weight.shape[1]
    before = x.new_zeros(batch, kernel, channels) if state is None else state.transpose(1, 2).to(x.dtype)
    window = torch.cat([before, x], dim=1)  # (b, k + l, d); output t sees window[t + 1 : t + 1 + k]
    y = torch.zeros_like(x) if bias is None else bias.expand_as(x)
    for tap in range(kernel):
        y = torch.addcmul(y, window[:, tap + 1 : tap + 1 + length], weight[:, tap])
    if lengths is None:
        last = window[:, length:].clone()  # a view would keep the whole window alive
    else:
        at = lengths[:, None] + torch.arange(kernel, device=x.device)  # (b, k)
        last = window.gather(1, at[:, :, None].expand(-1, -1, channels))
    return y, last.transpose(1, 2)


class _Inputs(NamedTuple):
    """Flat; x has its rows' stride."""

    x: np.ndarray  # (b, l, d)
    weight_t: np.ndarray  # (k, d)
    bias: np.ndarray  # (d,)
    state: np.ndarray  # (b, k, d)
    lengths: np.ndarray  # (b,)


class _Gradients(NamedTuple):
    """Flat; dx has its rows' stride."""

    dy: np.ndarray  # (b, l, d)
    dlast: np.ndarray  # (b, k, d)
    dx: np.ndarray  # (b, l, d)
    dweight_t: np.ndarray  # (b, k, d)
    dbias: np.ndarray  # (b, d)
    dstate: np.ndarray  # (b, k, d)


@called
def _input_at(source, x, at, stride, width, before, kernel):
    """The input at a time, of a row that starts at `at`; `before` holds those of the times -k to -1."""
    if source < 0:
        return read_lanes(before, (kernel + source) * LANES, LANES)
    return read_lanes(x, at + source * stride, width)


@called
def _convolve(t, x, at, stride, width, before, w, offset, kernel):
    """The convolution at time t, before SiLU, of a row that starts at `at`; `before` holds the k inputs before it."""
    total = read_lanes(offset, 0, LANES)
    for tap in range(kernel):
        inputs = _input_at(t + 1 + tap - kernel, x, at, stride, width, before, kernel)
        total = total + read_lanes(w, tap * LANES, LANES) * inputs
    return total


@called
def _block_constants(b, start, width, inputs, kernel, channels):
    """Weights, offset and the k inputs before the row of one block of LANES channels."""
    w, before = np.empty(kernel * LANES, np.float32), np.empty(kernel * LANES, np.float32)
    offset = np.empty(LANES, np.float32)
    write_lanes(offset, 0, read_lanes(inputs.bias, start, width), LANES)
    for tap in range(kernel):
        write_lanes(w, tap * LANES, read_lanes(inputs.weight_t, tap * channels + start, width), LANES)
        of_tap = (b * kernel + tap) * channels + start
        write_lanes(before, tap * LANES, read_lanes(inputs.state, of_tap, width), LANES)
    return w, before, offset


@called
def _forward_block(b, start, inputs, stride, shape, y, last):
    _, rows, channels, kernel = shape
    x, length, width = inputs.x, inputs.lengths[b], min(LANES, channels - start)
    w, before, offset = _block_constants(b, start, width, inputs, kernel, channels)
    at = b * rows * stride + start
    for t in range(length):
        total = _convolve(t, x, at, stride, width, before, w, offset, kernel)
        write_lanes(y, (b * rows + t) * channels + start, total * sigmoid(total), width)
    for t in range(length, rows):
        clear(y, (b * rows + t) * channels + start, width)
    for tap in range(kernel):
        newest = _input_at(length + tap - kernel, x, at, stride, width, before, kernel)
        write_lanes(last, (b * kernel + tap) * channels + start, newest, width)


def _forward(inputs, stride, shape, y, last):
    """Fills y (b, l, d) and last (b, k, d), which are flat; shape is (b, l, d, k)."""
    batch, _, channels, _ = shape
    blocks = count_blocks(channels, LANES)
    for task in numba.prange(batch * blocks):
        b, start = task // blocks, (task % blocks) * LANES
        _forward_block(b, start, inputs, stride, shape, y, last)


@called
def _backward_block(b, start, inputs, stride, shape, gradients, dx_stride):
    """Goes backwards through time; a ring holds the gradients of the last k sums, that at time t in place t mod k."""
    _, rows, channels, kernel = shape
    x, length, width = inputs.x, inputs.lengths[b], min(LANES, channels - start)
    dy, dlast, dx, dweight_t, dbias, dstate = gradients
    w, before, offset = _block_constants(b, start, width, inputs, kernel, channels)
    dw, ring = np.zeros(kernel * LANES, np.float32), np.zeros(kernel * LANES, np.float32)
    doffset = full(np.float32(0.0))
    at, dx_at = b * rows * stride + start, b * rows * dx_stride + start
    for back in range(length + kernel):
        t = length - 1 - back  # from -1 on, what is left are the gradients of the inputs before the row
        upstream = full(np.float32(0.0))
        if t >= 0:
            total = _convolve(t, x, at, stride, width, before, w, offset, kernel)
            upstream = read_lanes(dy, (b * rows + t) * channels + start, width) * silu_slope(total)
            doffset = doffset + upstream
            for tap in range(kernel):
                earlier = _input_at(t + 1 + tap - kernel, x, at, stride, width, before, kernel)
                write_lanes(dw, tap * LANES, read_lanes(dw, tap * LANES, LANES) + upstream * earlier, LANES)
        write_lanes(ring, (t + kernel) % kernel * LANES, upstream, LANES)
        of_input = full(np.float32(0.0))
        for tap in range(kernel):  # the input at time t meets this weight in the sum at time t + k - 1 - tap
            place = (t + 2 * kernel - 1 - tap) % kernel
            of_input = of_input + read_lanes(w, tap * LANES, LANES) * read_lanes(ring, place * LANES, LANES)
        if t >= length - kernel:  # `last` holds the inputs from time length - k on
            from_last = (b * kernel + t - length + kernel) * channels + start
            of_input = of_input + read_lanes(dlast, from_last, width)
        if t >= 0:
            write_lanes(dx, dx_at + t * dx_stride, of_input, width)
        else:
            write_lanes(dstate, (b * kernel + kernel + t) * channels + start, of_input, width)
    for t in range(length, rows):
        clear(dx, dx_at + t * dx_stride, width)
    write_lanes(dbias, b * channels + start, doffset, width)
    for tap in range(kernel):
        write_lanes(dweight_t, (b * kernel + tap) * channels + start, read_lanes(dw, tap * LANES, LANES), width)


def _backward(inputs, stride, shape, gradients, dx_stride):
    """Fills the gradients; those of weight and bias are per row."""
    batch, _, channels, _ = shape
    blocks = count_blocks(channels, LANES)
    for task in numba.prange(batch * blocks):
        b, start = task // blocks, (task % blocks) * LANES
        _backward_block(b, start, inputs, stride, shape, gradients, dx_stride)


_FORWARD = CpuKernel(_forward, PARALLEL_OUTPUTS)
_BACKWARD = CpuKernel(_backward, PARALLEL_OUTPUTS)


class _CausalConvolution(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x, weight, bias, state, lengths):
        y, last, saved = convolution_forward(x, weight, bias, state, lengths)
        ctx.save_for_backward(*saved)
        return y, last

    @staticmethod
    @once_differentiable
    def backward(ctx, dy, dlast):
        dx = torch.empty_like(dy, memory_format=torch.contiguous_format)
        return dx, *convolution_backward(ctx.saved_tensors, dy, dlast, dx), None


def convolution_forward(
    x: Tensor, weight: Tensor, bias: Tensor, state: Tensor, lengths: Tensor
) -> tuple[Tensor, Tensor, tuple[Tensor, ...]]:
    """The output, the last inputs and what `convolution_backward` needs, all float32; see `causal_convolution`."""
    weight_t, state_t = weight.t().contiguous(), state.transpose(1, 2).contiguous()
    y, last_t = x.new_empty(x.shape), torch.empty_like(state_t)
    saved = (x, weight_t, bias, state_t, lengths)
    _call(_FORWARD, saved, flat(y), flat(last_t))
    return y, last_t.transpose(1, 2), saved


def convolution_backward(
    saved: tuple[Tensor, ...], dy: Tensor, dlast: Tensor, dx: Tensor
) -> tuple[Tensor, Tensor, Tensor]:
    """Writes the gradient of x (b, l, d), whose rows may lie apart; returns those of weight, bias and state."""
    x, weight_t, _, state_t, _ = saved
    batch, _, channels = x.shape
    dweight_t, dbias = x.new_empty(batch, len(weight_t), channels), x.new_empty(batch, channels)
    dstate_t = torch.empty_like(state_t)
    rows, dx_stride = flat_rows(dx)
    dlast_t = dlast.transpose(1, 2).contiguous()
    written = (flat(dweight_t), flat(dbias), flat(dstate_t))
    gradients = _Gradients(flat(dy.contiguous()), flat(dlast_t), rows, *written)
    _call(_BACKWARD, saved, gradients, dx_stride)
    return dweight_t.sum(0).t(), dbias.sum(0), dstate_t.transpose(1, 2)


def _call(kernel: CpuKernel, saved: tuple[Tensor, ...], *rest: Any) -> None:
    x, weight_t = saved[:2]
    rows, stride = flat_rows(x)
    kernel(x.numel(), _Inputs(rows, *map(flat, saved[1:])), stride, (*x.shape, len(weight_t)), *rest)
