"""The selective scan on a CPU, compiled by numba on first use and cached on disk: no compiler at the user's side.

Time and memory are linear in length. The forward keeps the state at the start of every chunk; the backward recomputes
the states inside a chunk from it, so that it never stores a (b, l, d, n) tensor. The softplus of the step size and the
gate are part of the kernels, which saves passes over (b, l, d). Inner loops run over a fixed number of channels, the
last block's padded with zeros: such loops compile to vector code without a remainder.
"""

from typing import Any

import numba
import numpy as np
import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from hf_toolssm.models.cpu_kernels import (
    LOG2E,
    CpuKernel,
    clear,
    exp2_of_nonpositive,
    flat_rows,
    load,
    sigmoid,
    silu_slope,
    softplus,
    store,
)

ZERO, ONE, LN2 = np.float32(0.0), np.float32(1.0), np.float32(0.6931471805599453)

CHUNK = 16
"""Steps between stored states. A chunk's rows of one block, eight of them a step, fit in the first-level cache."""

BLOCK = 64
"""Channels that one thread scans together."""

ROLES = 11
INPUT, STEP, STEP_SLOPE, STEP_INPUT, GATE_SLOPE, DY, Y, DECAY, BEFORE, DSTEP, DSTEP_INPUT = range(ROLES)
"""The rows that the backward keeps of every step of a chunk."""

H, A, DH, DA = range(4)
"""The rows, behind those of the last step, of the state index at hand."""

PARALLEL_UPDATES = 1_000_000
"""State updates from which waking the other threads pays; a decode step is far below it."""


def _forward(x, dt, A_t, B, C, D, gate, strides, h0, lengths, y, h_last, checkpoints):
    """x, dt, B, C and gate are flat, each with the stride of its rows; A_t is (n, d), h0 and h_last are (b, n, d).

    checkpoints (b, chunks, n, d) receives the state before every chunk; it may have no chunks.
    """
    batch, length, channels = y.shape
    size = A_t.shape[0]
    blocks = (channels + BLOCK - 1) // BLOCK
    keep = checkpoints.shape[1] > 0
    for task in numba.prange(batch * blocks):
        b, start = task // blocks, (task % blocks) * BLOCK
        width = min(BLOCK, channels - start)
        h, a = np.zeros((size, BLOCK), np.float32), np.zeros((size, BLOCK), np.float32)
        skip, inputs = np.zeros(BLOCK, np.float32), np.zeros(BLOCK, np.float32)
        step, gates = np.zeros(BLOCK, np.float32), np.zeros(BLOCK, np.float32)
        step_input, total = np.empty(BLOCK, np.float32), np.empty(BLOCK, np.float32)
        load(skip, D, start, width)
        for n in range(size):
            load(h[n], h0[b, n], start, width)
            load(a[n], A_t[n], start, width)
            for d in range(BLOCK):
                a[n, d] *= LOG2E
        for t in range(lengths[b]):
            if keep and t % CHUNK == 0:
                for n in range(size):
                    store(checkpoints[b, t // CHUNK, n], h[n], start, width)
            row = b * length + t
            load(inputs, x, row * strides[0] + start, width)
            load(step, dt, row * strides[1] + start, width)
            load(gates, gate, row * strides[4] + start, width)
            for d in range(BLOCK):
                step[d] = softplus(step[d])
                step_input[d] = step[d] * inputs[d]
                total[d] = skip[d] * inputs[d]
            for n in range(size):
                a_n, h_n = a[n], h[n]
                b_n, c_n = B[row * strides[2] + n], C[row * strides[3] + n]
                for d in range(BLOCK):
                    value = exp2_of_nonpositive(step[d] * a_n[d]) * h_n[d] + step_input[d] * b_n
                    h_n[d] = value
                    total[d] += value * c_n
            for d in range(BLOCK):
                total[d] *= gates[d] * sigmoid(gates[d])
            store(y[b, t], total, start, width)
        for t in range(lengths[b], length):
            clear(y[b, t], start, width)
        for n in range(size):
            store(h_last[b, n], h[n], start, width)


def _backward(
    x, dt, A_t, B, C, D, gate, strides, lengths, checkpoints, dy, dh_last, dx, ddt, dgate, outputs, dA_t, dB, dC, dD, dh0
):
    """Gradients. dx, ddt and dgate are flat, with the strides of their rows in `outputs`; dA_t (b, n, d) and dD (b, d)
    are per row, dB and dC (blocks, b, l, n) per block of channels.

    Within a chunk one state index is done after the other, so that what the inner loops touch stays in the cache.
    """
    batch, length, channels = dy.shape
    size = A_t.shape[0]
    blocks = (channels + BLOCK - 1) // BLOCK
    for task in numba.prange(batch * blocks):
        b, block = task // blocks, task % blocks
        start = block * BLOCK
        width = min(BLOCK, channels - start)
        a, dh = np.zeros((size, BLOCK), np.float32), np.zeros((size, BLOCK), np.float32)
        da = np.zeros((size, BLOCK), np.float32)
        skip, dskip = np.zeros(BLOCK, np.float32), np.zeros(BLOCK, np.float32)
        raw, gates, upstream = np.zeros(BLOCK, np.float32), np.zeros(BLOCK, np.float32), np.zeros(BLOCK, np.float32)
        # One array, so that the compiler sees by their distances that its rows do not overlap.
        w, now = np.zeros((CHUNK, ROLES, BLOCK), np.float32), np.zeros((4, BLOCK), np.float32)
        load(skip, D, start, width)
        for n in range(size):
            load(dh[n], dh_last[b, n], start, width)
            load(a[n], A_t[n], start, width)
            for d in range(BLOCK):
                a[n, d] *= LOG2E
        chunks = (lengths[b] + CHUNK - 1) // CHUNK
        for reverse_chunk in range(chunks):
            chunk = chunks - 1 - reverse_chunk
            first = chunk * CHUNK
            steps = min(CHUNK, lengths[b] - first)
            for i in range(steps):
                row = b * length + first + i
                load(w[i, INPUT], x, row * strides[0] + start, width)
                load(raw, dt, row * strides[1] + start, width)
                load(gates, gate, row * strides[4] + start, width)
                load(upstream, dy[b, first + i], start, width)
                for d in range(BLOCK):
                    w[i, STEP, d] = softplus(raw[d])
                    w[i, STEP_SLOPE, d] = sigmoid(raw[d])
                    w[i, GATE_SLOPE, d] = upstream[d] * silu_slope(gates[d])
                    w[i, DY, d] = upstream[d] * gates[d] * sigmoid(gates[d])
                for d in range(BLOCK):
                    w[i, STEP_INPUT, d] = w[i, STEP, d] * w[i, INPUT, d]
                    w[i, Y, d] = skip[d] * w[i, INPUT, d]
                    dskip[d] += w[i, DY, d] * w[i, INPUT, d]
                    w[i, DSTEP_INPUT, d] = ZERO
                    w[i, DSTEP, d] = ZERO
            for n in range(size):
                load(now[H], checkpoints[b, chunk, n], start, width)
                for d in range(BLOCK):
                    now[A, d], now[DH, d], now[DA, d] = a[n, d], dh[n, d], da[n, d]
                for i in range(steps):
                    row = b * length + first + i
                    b_n, c_n = B[row * strides[2] + n], C[row * strides[3] + n]
                    dc = ZERO
                    for d in range(BLOCK):
                        factor = exp2_of_nonpositive(w[i, STEP, d] * now[A, d])
                        before = now[H, d]
                        h = factor * before + w[i, STEP_INPUT, d] * b_n
                        w[i, DECAY, d] = factor
                        w[i, BEFORE, d] = before
                        now[H, d] = h
                        w[i, Y, d] += h * c_n
                        dc += w[i, DY, d] * h
                    dC[block, b, first + i, n] = dc
                for reverse_i in range(steps):
                    i = steps - 1 - reverse_i
                    row = b * length + first + i
                    b_n, c_n = B[row * strides[2] + n], C[row * strides[3] + n]
                    db = ZERO
                    for d in range(BLOCK):
                        dh_d = now[DH, d] + w[i, DY, d] * c_n
                        db += dh_d * w[i, STEP_INPUT, d]
                        w[i, DSTEP_INPUT, d] += dh_d * b_n
                        carried = dh_d * w[i, DECAY, d]
                        through_decay = carried * w[i, BEFORE, d]
                        w[i, DSTEP, d] += through_decay * now[A, d]
                        now[DA, d] += through_decay * w[i, STEP, d]
                        now[DH, d] = carried
                    dB[block, b, first + i, n] = db
                for d in range(BLOCK):
                    dh[n, d], da[n, d] = now[DH, d], now[DA, d]
            for i in range(steps):
                for d in range(BLOCK):
                    dstep = w[i, DSTEP, d] * LN2 + w[i, DSTEP_INPUT, d] * w[i, INPUT, d]  # the exponents were of 2
                    w[i, DSTEP, d] = dstep * w[i, STEP_SLOPE, d]
                    w[i, DSTEP_INPUT, d] = w[i, DSTEP_INPUT, d] * w[i, STEP, d] + skip[d] * w[i, DY, d]
                    w[i, Y, d] *= w[i, GATE_SLOPE, d]
                row = b * length + first + i
                store(dx, w[i, DSTEP_INPUT], row * outputs[0] + start, width)
                store(ddt, w[i, DSTEP], row * outputs[1] + start, width)
                store(dgate, w[i, Y], row * outputs[2] + start, width)
        for t in range(lengths[b], length):
            row = b * length + t
            clear(dx, row * outputs[0] + start, width)
            clear(ddt, row * outputs[1] + start, width)
            clear(dgate, row * outputs[2] + start, width)
            clear(dB[block, b, t], 0, size)
            clear(dC[block, b, t], 0, size)
        store(dD[b], dskip, start, width)
        for n in range(size):
            store(dA_t[b, n], da[n], start, width)
            store(dh0[b, n], dh[n], start, width)


_FORWARD = CpuKernel(_forward, PARALLEL_UPDATES)
_BACKWARD = CpuKernel(_backward, PARALLEL_UPDATES)


class _SelectiveScan(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x, dt, A, B, C, D, gate, h0, lengths):
        y, h_last, saved = scan_forward(x, dt, A, B, C, D, gate, h0, lengths, any(ctx.needs_input_grad))
        ctx.save_for_backward(*saved)
        return y, h_last

    @staticmethod
    @once_differentiable
    def backward(ctx, dy, dh_last):
        dx, ddt, dgate = (torch.empty_like(dy, memory_format=torch.contiguous_format) for _ in range(3))
        dA, dB, dC, dD, dh0 = scan_backward(ctx.saved_tensors, dy, dh_last, dx, ddt, dgate)
        return dx, ddt, dA, sum_blocks(dB), sum_blocks(dC), dD, dgate, dh0, None


def scan_forward(
    x: Tensor,
    dt: Tensor,
    A: Tensor,
    B: Tensor,
    C: Tensor,
    D: Tensor,
    gate: Tensor,
    h0: Tensor,
    lengths: Tensor,
    needs_backward: bool,
) -> tuple[Tensor, Tensor, tuple[Tensor, ...]]:
    """y (b, l, d), the last state (b, d, n), and what `scan_backward` needs; all float32, no gradient is recorded."""
    batch, length, channels = x.shape
    size = A.shape[1]
    chunks = -(-length // CHUNK) if needs_backward else 0
    y = x.new_empty(batch, length, channels)
    h_last = x.new_empty(batch, size, channels)
    checkpoints = x.new_empty(batch, chunks, size, channels)
    A_t, h0_t = A.t().contiguous(), h0.transpose(1, 2).contiguous()
    _call(_FORWARD, x, dt, A_t, B, C, D, gate, h0_t, lengths, y, h_last, checkpoints)
    saved = (x, dt, A_t, B, C, D, gate, lengths, checkpoints) if needs_backward else ()
    return y, h_last.transpose(1, 2), saved


def scan_backward(
    saved: tuple[Tensor, ...], dy: Tensor, dh_last: Tensor, dx: Tensor, ddt: Tensor, dgate: Tensor
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    """Writes the gradients (b, l, d) of x, dt and gate, whose rows may lie apart, and returns the others.

    Returns:
        dA (d, n), dB and dC (blocks, b, l, n) to be summed over blocks, dD (d,), and dh0 (b, d, n).
    """
    x, dt, A_t, B, C, D, gate, lengths, checkpoints = saved
    batch, length, channels = x.shape
    size = A_t.shape[0]
    blocks = -(-channels // BLOCK)
    dB, dC = x.new_empty(blocks, batch, length, size), x.new_empty(blocks, batch, length, size)
    dA_t, dh0_t = x.new_empty(batch, size, channels), x.new_empty(batch, size, channels)
    dD = x.new_empty(batch, channels)
    rows, strides = zip(*(flat_rows(t) for t in (dx, ddt, dgate)))
    _call(
        *(_BACKWARD, x, dt, A_t, B, C, D, gate, lengths, checkpoints),
        *(dy.contiguous(), dh_last.transpose(1, 2).contiguous()),
        *(*rows, strides, dA_t, dB, dC, dD, dh0_t),
    )
    return dA_t.sum(0).t(), dB, dC, dD.sum(0), dh0_t.transpose(1, 2)


def sum_blocks(partial: Tensor) -> Tensor:
    """The sum over the first dimension."""
    return partial[0] if len(partial) == 1 else partial.sum(0)


def _call(
    kernel: CpuKernel, x: Tensor, dt: Tensor, A_t: Tensor, B: Tensor, C: Tensor, D: Tensor, gate: Tensor, *rest: Any
) -> None:
    flat, strides = zip(*(flat_rows(t) for t in (x, dt, B, C, gate)))
    x_rows, dt_rows, B_rows, C_rows, gate_rows = flat
    updates = x.numel() * A_t.shape[0]
    kernel(
        *(updates, x_rows, dt_rows, A_t.numpy(), B_rows, C_rows, D.numpy(), gate_rows, strides),
        *(t.numpy() if isinstance(t, Tensor) else t for t in rest),
    )


def selective_scan_cpu(
    x: Tensor,
    dt: Tensor,
    A: Tensor,
    B: Tensor,
    C: Tensor,
    D: Tensor,
    gate: Tensor,
    initial_state: Tensor | None = None,
    lengths: Tensor | None = None,
) -> tuple[Tensor, Tensor]:
    """See `selective_scan`. Any floating dtype comes in; the scan itself runs in float32.

    Inputs may be views whose rows stand apart, such as the halves of a projection's output: nothing is copied.
    """
    batch, length, channels = x.shape
    dtype = x.dtype
    if initial_state is None:
        initial_state = x.new_zeros(batch, channels, A.shape[1], dtype=torch.float32)
    if lengths is None:
        lengths = torch.full((batch,), length, dtype=torch.int64)
    inputs = (t.float() for t in (x, dt, A, B, C, D, gate, initial_state))
    y, h_last = _SelectiveScan.apply(*inputs, lengths.to(torch.int64).contiguous())
    return y.to(dtype), h_last
