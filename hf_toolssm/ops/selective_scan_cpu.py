"""The selective scan on a CPU, compiled by numba on first use and cached on disk: no compiler at the user's side.

Time and memory are linear in length. The forward keeps the state at the start of every chunk; the backward recomputes
the states inside a chunk from it, so that it never stores a (b, l, d, n) tensor. The softplus of the step size and the
gate are part of the kernels, which saves passes over (b, l, d). Threads share out rows and blocks of LANES channels;
a block is one vector, and what a recurrence carries from step to step stays in registers.
"""

from typing import NamedTuple

import numba
import numpy as np
import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from hf_toolssm.ops.checks import check_scan
from hf_toolssm.ops.cpu_kernels import (
    LOG2E,
    CpuKernel,
    called,
    clear,
    count_blocks,
    exp2_of_nonpositive,
    flat,
    flat_rows,
    row_lengths,
    sigmoid,
    silu_slope,
    softplus,
)
from hf_toolssm.ops.lanes import LANES, full, read_lanes, sum_lanes, write_lanes

ZERO, LN2 = np.float32(0.0), np.float32(0.6931471805599453)

CHUNK = 16
"""Steps between stored states. What the backward keeps of a chunk of one block fits in the first-level cache."""

ROLES = 10
INPUT, STEP, STEP_SLOPE, STEP_INPUT, GATE_SLOPE, DY, Y, DECAY, DSTEP, DSTEP_INPUT = (
    role * CHUNK * LANES for role in range(ROLES)
)
"""Where the vectors of a chunk's steps, one behind the other, lie in the backward's workspace."""
BEFORE = ROLES * CHUNK * LANES
"""The states before each step of a chunk, and the one after the last."""
WORKSPACE = BEFORE + (CHUNK + 1) * LANES

PARALLEL_UPDATES = 1_000_000
"""State updates from which waking the other threads pays; a decode step is far below it."""


class _Inputs(NamedTuple):
    """Flat arrays; A_t is (n, d). Beside them go the strides of the rows of x, dt, B, C and gate, and the shape
    (b, l, d, n): a parallel loop of numba takes no tuple within a tuple."""

    x: np.ndarray
    dt: np.ndarray
    A_t: np.ndarray
    B: np.ndarray
    C: np.ndarray
    D: np.ndarray
    gate: np.ndarray
    lengths: np.ndarray


class _Gradients(NamedTuple):
    """Flat arrays, beside which go the strides of the rows of dx, ddt and dgate. dA_t (b, n, d) and dD (b, d) are per
    row, dB and dC (blocks, b, l, n) per block of channels; dh0 is (b, n, d)."""

    dx: np.ndarray
    ddt: np.ndarray
    dgate: np.ndarray
    dA_t: np.ndarray
    dB: np.ndarray
    dC: np.ndarray
    dD: np.ndarray
    dh0: np.ndarray


@called
def _forward_block(b, start, inputs, strides, shape, h0, y, h_last, kept):
    """The channels from `start` on of row b."""
    x, dt, A_t, B, C, D, gate, lengths = inputs
    _, rows, channels, size = shape
    length = lengths[b]
    width = min(LANES, channels - start)
    h, a = np.empty(size * LANES, np.float32), np.empty(size * LANES, np.float32)
    skip = read_lanes(D, start, width)
    for n in range(size):
        write_lanes(h, n * LANES, read_lanes(h0, (b * size + n) * channels + start, width), LANES)
        write_lanes(a, n * LANES, read_lanes(A_t, n * channels + start, width) * LOG2E, LANES)
    chunks = count_blocks(rows, CHUNK)
    for t in range(length):
        if len(kept) > 0 and t % CHUNK == 0:
            at = (b * chunks + t // CHUNK) * size * channels + start
            for n in range(size):
                write_lanes(kept, at + n * channels, read_lanes(h, n * LANES, LANES), width)
        row = b * rows + t
        value_in = read_lanes(x, row * strides[0] + start, width)
        step = softplus(read_lanes(dt, row * strides[1] + start, width))
        gates = read_lanes(gate, row * strides[4] + start, width)
        step_input = step * value_in
        total = skip * value_in
        for n in range(size):
            decay = exp2_of_nonpositive(step * read_lanes(a, n * LANES, LANES))
            value = decay * read_lanes(h, n * LANES, LANES) + step_input * B[row * strides[2] + n]
            write_lanes(h, n * LANES, value, LANES)
            total = total + value * C[row * strides[3] + n]
        write_lanes(y, row * channels + start, total * gates * sigmoid(gates), width)
    for t in range(length, rows):
        clear(y, (b * rows + t) * channels + start, width)
    for n in range(size):
        write_lanes(h_last, (b * size + n) * channels + start, read_lanes(h, n * LANES, LANES), width)


def _forward(inputs, strides, shape, h0, y, h_last, checkpoints):
    """h0 and h_last are (b, n, d); checkpoints (b, chunks, n, d), the states before every chunk, may be empty."""
    batch, _, channels, _ = shape
    blocks = count_blocks(channels, LANES)
    for task in numba.prange(batch * blocks):
        _forward_block(task // blocks, (task % blocks) * LANES, inputs, strides, shape, h0, y, h_last, checkpoints)


@called
def _chunk_inputs(w, steps, row, start, width, skip, dskip, inputs, strides, channels, dy):
    """Fills the workspace with what a chunk's steps need for every state index; returns the grown gradient of D."""
    for i in range(steps):
        at = i * LANES
        x = read_lanes(inputs.x, (row + i) * strides[0] + start, width)
        raw = read_lanes(inputs.dt, (row + i) * strides[1] + start, width)
        gates = read_lanes(inputs.gate, (row + i) * strides[4] + start, width)
        upstream = read_lanes(dy, (row + i) * channels + start, width)
        step, ungated = softplus(raw), upstream * gates * sigmoid(gates)
        write_lanes(w, INPUT + at, x, LANES)
        write_lanes(w, STEP + at, step, LANES)
        write_lanes(w, STEP_SLOPE + at, sigmoid(raw), LANES)
        write_lanes(w, STEP_INPUT + at, step * x, LANES)
        write_lanes(w, GATE_SLOPE + at, upstream * silu_slope(gates), LANES)
        write_lanes(w, DY + at, ungated, LANES)
        write_lanes(w, Y + at, skip * x, LANES)
        write_lanes(w, DSTEP + at, full(ZERO), LANES)
        write_lanes(w, DSTEP_INPUT + at, full(ZERO), LANES)
        dskip = dskip + ungated * x
    return dskip


@called
def _chunk_outputs(w, steps, row, start, width, skip, gradients, outputs):
    """Writes the gradients of a chunk's inputs, once all state indices have added their part."""
    dx, ddt, dgate = gradients.dx, gradients.ddt, gradients.dgate
    for i in range(steps):
        at = i * LANES
        dstep_input = read_lanes(w, DSTEP_INPUT + at, LANES)
        inputs, step = read_lanes(w, INPUT + at, LANES), read_lanes(w, STEP + at, LANES)
        dstep = read_lanes(w, DSTEP + at, LANES) * LN2 + dstep_input * inputs  # the exponents were of 2
        of_input = dstep_input * step + skip * read_lanes(w, DY + at, LANES)
        of_gate = read_lanes(w, Y + at, LANES) * read_lanes(w, GATE_SLOPE + at, LANES)
        write_lanes(dx, (row + i) * outputs[0] + start, of_input, width)
        write_lanes(ddt, (row + i) * outputs[1] + start, dstep * read_lanes(w, STEP_SLOPE + at, LANES), width)
        write_lanes(dgate, (row + i) * outputs[2] + start, of_gate, width)


@called
def _backward_block(b, block, inputs, strides, shape, kept, dy, dh_last, gradients, outputs):
    """One block of LANES channels of row b.

    Within a chunk one state index is done after the other, so that its state and their gradients stay in registers.
    """
    _, _, A_t, B, C, D, _, lengths = inputs
    dx, ddt, dgate, dA_t, dB, dC, dD, dh0 = gradients
    batch, rows, channels, size = shape
    length = lengths[b]
    start = block * LANES
    width = min(LANES, channels - start)
    w = np.empty(WORKSPACE, np.float32)
    a, dh = np.empty(size * LANES, np.float32), np.empty(size * LANES, np.float32)
    da = np.zeros(size * LANES, np.float32)
    skip, dskip = read_lanes(D, start, width), full(ZERO)
    for n in range(size):
        write_lanes(dh, n * LANES, read_lanes(dh_last, (b * size + n) * channels + start, width), LANES)
        write_lanes(a, n * LANES, read_lanes(A_t, n * channels + start, width) * LOG2E, LANES)
    most, chunks = count_blocks(rows, CHUNK), count_blocks(length, CHUNK)
    for reverse_chunk in range(chunks):
        chunk = chunks - 1 - reverse_chunk
        steps = min(CHUNK, length - chunk * CHUNK)
        row = b * rows + chunk * CHUNK
        partial = ((block * batch + b) * rows + chunk * CHUNK) * size
        dskip = _chunk_inputs(w, steps, row, start, width, skip, dskip, inputs, strides, channels, dy)
        for n in range(size):
            h = read_lanes(kept, ((b * most + chunk) * size + n) * channels + start, width)
            a_n = read_lanes(a, n * LANES, LANES)
            for i in range(steps):
                at = i * LANES
                decay = exp2_of_nonpositive(read_lanes(w, STEP + at, LANES) * a_n)
                write_lanes(w, DECAY + at, decay, LANES)
                write_lanes(w, BEFORE + at, h, LANES)
                h = decay * h + read_lanes(w, STEP_INPUT + at, LANES) * B[(row + i) * strides[2] + n]
                shown = read_lanes(w, Y + at, LANES) + h * C[(row + i) * strides[3] + n]
                write_lanes(w, Y + at, shown, LANES)
                dC[partial + i * size + n] = sum_lanes(read_lanes(w, DY + at, LANES) * h)
            dh_n, da_n = read_lanes(dh, n * LANES, LANES), read_lanes(da, n * LANES, LANES)
            for reverse_i in range(steps):
                i = steps - 1 - reverse_i
                at = i * LANES
                step = read_lanes(w, STEP + at, LANES)
                dh_n = dh_n + read_lanes(w, DY + at, LANES) * C[(row + i) * strides[3] + n]
                dB[partial + i * size + n] = sum_lanes(dh_n * read_lanes(w, STEP_INPUT + at, LANES))
                of_step_input = read_lanes(w, DSTEP_INPUT + at, LANES) + dh_n * B[(row + i) * strides[2] + n]
                write_lanes(w, DSTEP_INPUT + at, of_step_input, LANES)
                dh_n = dh_n * read_lanes(w, DECAY + at, LANES)
                through_decay = dh_n * read_lanes(w, BEFORE + at, LANES)
                write_lanes(w, DSTEP + at, read_lanes(w, DSTEP + at, LANES) + through_decay * a_n, LANES)
                da_n = da_n + through_decay * step
            write_lanes(dh, n * LANES, dh_n, LANES)
            write_lanes(da, n * LANES, da_n, LANES)
        _chunk_outputs(w, steps, row, start, width, skip, gradients, outputs)
    for t in range(length, rows):
        clear(dx, (b * rows + t) * outputs[0] + start, width)
        clear(ddt, (b * rows + t) * outputs[1] + start, width)
        clear(dgate, (b * rows + t) * outputs[2] + start, width)
        clear(dB, ((block * batch + b) * rows + t) * size, size)
        clear(dC, ((block * batch + b) * rows + t) * size, size)
    write_lanes(dD, b * channels + start, dskip, width)
    for n in range(size):
        write_lanes(dA_t, (b * size + n) * channels + start, read_lanes(da, n * LANES, LANES), width)
        write_lanes(dh0, (b * size + n) * channels + start, read_lanes(dh, n * LANES, LANES), width)


def _backward(inputs, strides, shape, checkpoints, dy, dh_last, gradients, outputs):
    batch, _, channels, _ = shape
    blocks = count_blocks(channels, LANES)
    for task in numba.prange(batch * blocks):
        b, block = task // blocks, task % blocks
        _backward_block(b, block, inputs, strides, shape, checkpoints, dy, dh_last, gradients, outputs)


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
    inputs = _flat_inputs(x, dt, A_t, B, C, D, gate, lengths)
    _FORWARD(x.numel() * size, *inputs, *map(flat, (h0_t, y, h_last, checkpoints)))
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
    blocks = -(-channels // LANES)
    dB, dC = x.new_empty(blocks, batch, length, size), x.new_empty(blocks, batch, length, size)
    dA_t, dh0_t = x.new_empty(batch, size, channels), x.new_empty(batch, size, channels)
    dD = x.new_empty(batch, channels)
    (dx_, ddt_, dgate_), outputs = zip(*map(flat_rows, (dx, ddt, dgate)))
    gradients = _Gradients(dx_, ddt_, dgate_, flat(dA_t), flat(dB), flat(dC), flat(dD), flat(dh0_t))
    upstream = (checkpoints, dy.contiguous(), dh_last.transpose(1, 2).contiguous())
    inputs = _flat_inputs(x, dt, A_t, B, C, D, gate, lengths)
    _BACKWARD(x.numel() * size, *inputs, *map(flat, upstream), gradients, outputs)
    return dA_t.sum(0).t(), dB, dC, dD.sum(0), dh0_t.transpose(1, 2)


def sum_blocks(partial: Tensor) -> Tensor:
    """The sum over the first dimension."""
    return partial[0] if len(partial) == 1 else partial.sum(0)


def _flat_inputs(
    x: Tensor, dt: Tensor, A_t: Tensor, B: Tensor, C: Tensor, D: Tensor, gate: Tensor, lengths: Tensor
) -> tuple[_Inputs, tuple[int, ...], tuple[int, ...]]:
    (x_, dt_, B_, C_, gate_), strides = zip(*map(flat_rows, (x, dt, B, C, gate)))
    inputs = _Inputs(x_, dt_, flat(A_t), B_, C_, flat(D), gate_, flat(lengths))
    return inputs, strides, (*x.shape, len(A_t))


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

    Inputs may be views whose rows stand apart, such as the xz of a projection's output: nothing is copied.
    """
    check_scan(x, dt, A, B, C, D, gate, initial_state, lengths)
    batch, length, channels = x.shape
    dtype = x.dtype
    if initial_state is None:
        initial_state = x.new_zeros(batch, channels, A.shape[1], dtype=torch.float32)
    inputs = (t.float() for t in (x, dt, A, B, C, D.contiguous(), gate, initial_state))
    y, h_last = _SelectiveScan.apply(*inputs, row_lengths(lengths, batch, length))
    return y.to(dtype), h_last
