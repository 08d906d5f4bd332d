"""The depthwise causal convolution and SiLU of a Mamba block, from any state: its definition, and a CPU kernel.

A state holds the k inputs before the first one, oldest first, as transformers' Mamba cache does. A row may be shorter
than the tensor: its state is then that after its last real input.
"""

from typing import Any

import numba
import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor
from torch.autograd.function import once_differentiable

from hf_toolssm.models.causal_convolution_cuda import causal_convolution_cuda, kernel_applies
from hf_toolssm.models.cpu_kernels import CpuKernel, clear, flat_rows, inlined, load, sigmoid, silu_slope, store

BLOCK = 64
"""Channels that one thread convolves together."""

PARALLEL_OUTPUTS = 100_000
"""Outputs from which waking the other threads pays."""


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
    """
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
    if lengths is None:
        lengths = torch.full((batch,), length, dtype=torch.int64)
    inputs = (t.float() for t in (x, weight, bias, state))
    y, last = _CausalConvolution.apply(*inputs, lengths.to(torch.int64).contiguous())
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


@inlined
def _convolve(offset, w, window, t, total):
    """total = the convolution at time t, before SiLU."""
    kernel = w.shape[0]
    for d in range(BLOCK):
        total[d] = offset[d]
    for tap in range(kernel):
        w_tap, input_tap = w[tap], window[(t + 1 + tap) % kernel]
        for d in range(BLOCK):
            total[d] += w_tap[d] * input_tap[d]


def _forward(x, stride, weight_t, bias, state, lengths, y, last):
    """x is flat with its rows' stride; weight_t is (k, d); state and last are (b, k, d)."""
    batch, length, channels = y.shape
    kernel = weight_t.shape[0]
    blocks = (channels + BLOCK - 1) // BLOCK
    for task in numba.prange(batch * blocks):
        b, start = task // blocks, (task % blocks) * BLOCK
        width = min(BLOCK, channels - start)
        w, offset = np.zeros((kernel, BLOCK), np.float32), np.zeros(BLOCK, np.float32)
        window = np.zeros((kernel, BLOCK), np.float32)  # a ring: the input at time t lies in row t mod k
        total = np.empty(BLOCK, np.float32)
        load(offset, bias, start, width)
        for tap in range(kernel):
            load(w[tap], weight_t[tap], start, width)
            load(window[tap], state[b, tap], start, width)
        for t in range(lengths[b]):
            load(window[t % kernel], x, (b * length + t) * stride + start, width)
            _convolve(offset, w, window, t, total)
            for d in range(BLOCK):
                total[d] *= sigmoid(total[d])
            store(y[b, t], total, start, width)
        for t in range(lengths[b], length):
            clear(y[b, t], start, width)
        for tap in range(kernel):
            store(last[b, tap], window[(lengths[b] + tap) % kernel], start, width)


def _backward(x, stride, weight_t, bias, state, lengths, dy, dlast, dx, dx_stride, dweight_t, dbias, dstate):
    """Gradients; dx is flat with its rows' stride, dweight_t (b, k, d) and dbias (b, d) are per row."""
    batch, length, channels = dy.shape
    kernel = weight_t.shape[0]
    blocks = (channels + BLOCK - 1) // BLOCK
    for task in numba.prange(batch * blocks):
        b, start = task // blocks, (task % blocks) * BLOCK
        width = min(BLOCK, channels - start)
        w, dw = np.zeros((kernel, BLOCK), np.float32), np.zeros((kernel, BLOCK), np.float32)
        offset, doffset = np.zeros(BLOCK, np.float32), np.zeros(BLOCK, np.float32)
        window, dwindow = np.zeros((kernel, BLOCK), np.float32), np.zeros((kernel, BLOCK), np.float32)
        upstream, total = np.zeros(BLOCK, np.float32), np.empty(BLOCK, np.float32)
        load(offset, bias, start, width)
        for tap in range(kernel):
            load(w[tap], weight_t[tap], start, width)
            load(window[tap], state[b, tap], start, width)
        for t in range(lengths[b]):
            # The input that leaves the ring has met its last output.
            if t < kernel:
                store(dstate[b, t], dwindow[t], start, width)
            else:
                store(dx, dwindow[t % kernel], (b * length + t - kernel) * dx_stride + start, width)
            dwindow[t % kernel] = np.float32(0.0)
            load(window[t % kernel], x, (b * length + t) * stride + start, width)
            load(upstream, dy[b, t], start, width)
            _convolve(offset, w, window, t, total)
            for d in range(BLOCK):
                upstream[d] *= silu_slope(total[d])
                doffset[d] += upstream[d]
            for tap in range(kernel):
                row = (t + 1 + tap) % kernel
                w_tap, dw_tap, input_tap, dinput_tap = w[tap], dw[tap], window[row], dwindow[row]
                for d in range(BLOCK):
                    dw_tap[d] += upstream[d] * input_tap[d]
                    dinput_tap[d] += upstream[d] * w_tap[d]
        for tap in range(kernel):
            t = lengths[b] + tap  # `last` holds the inputs from time t - k on
            remaining = dwindow[t % kernel]
            load(upstream, dlast[b, tap], start, width)
            for d in range(BLOCK):
                remaining[d] += upstream[d]
            if t < kernel:
                store(dstate[b, t], remaining, start, width)
            else:
                store(dx, remaining, (b * length + t - kernel) * dx_stride + start, width)
        for t in range(lengths[b], length):
            clear(dx, (b * length + t) * dx_stride + start, width)
        store(dbias[b], doffset, start, width)
        for tap in range(kernel):
            store(dweight_t[b, tap], dw[tap], start, width)


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
    y, last_t = torch.empty(x.shape), torch.empty_like(state_t)
    saved = (x, weight_t, bias, state_t, lengths)
    _call(_FORWARD, *saved, y, last_t)
    return y, last_t.transpose(1, 2), saved


def convolution_backward(
    saved: tuple[Tensor, ...], dy: Tensor, dlast: Tensor, dx: Tensor
) -> tuple[Tensor, Tensor, Tensor]:
    """Writes the gradient of x (b, l, d), whose rows may lie apart; returns those of weight, bias and state."""
    x, weight_t, _, state_t, _ = saved
    batch, _, channels = x.shape
    dweight_t, dbias = x.new_empty(batch, len(weight_t), channels), x.new_empty(batch, channels)
    dstate_t = torch.empty_like(state_t)
    upstream = (dy.contiguous(), dlast.transpose(1, 2).contiguous())
    _call(_BACKWARD, *saved, *upstream, *flat_rows(dx), dweight_t, dbias, dstate_t)
    return dweight_t.sum(0).t(), dbias.sum(0), dstate_t.transpose(1, 2)


def _call(kernel: CpuKernel, x: Tensor, *rest: Any) -> None:
    rows, stride = flat_rows(x)
    kernel(x.numel(), rows, stride, *(t.detach().numpy() if isinstance(t, Tensor) else t for t in rest))
