"""The selective scan on a CPU, compiled by numba on first use and cached on disk: no compiler at the user's side.

Time and memory are linear in length. The forward keeps the state at the start of every chunk; the backward recomputes
the states inside a chunk from it, so that it never stores a (b, l, d, n) tensor. Inner loops run over channels, which
are contiguous, and use an exponential that the compiler can vectorize.
"""

import numba
import numpy as np
import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from hf_toolssm.models.cpu_kernels import CpuKernel, exp_of_nonpositive

CHUNK = 16
"""Steps between stored states: small enough that a chunk's states stay in the CPU's cache during the backward."""

BLOCK = 128
"""Channels that one thread scans together."""

PARALLEL_UPDATES = 1_000_000
"""State updates from which waking the other threads pays; a decode step is far below it."""


def _forward(x, dt, A_t, B, C, D, h0, lengths, y, h_last, checkpoints):
    """A_t is (n, d). checkpoints (b, chunks, n, d) receives the state before every chunk; it may have no chunks."""
    batch, _, channels = x.shape
    size = A_t.shape[0]
    blocks = (channels + BLOCK - 1) // BLOCK
    keep = checkpoints.shape[1] > 0
    for task in numba.prange(batch * blocks):
        b, start = task // blocks, (task % blocks) * BLOCK
        width = min(BLOCK, channels - start)
        stop = start + width
        h = np.empty((size, width), np.float32)
        for n in range(size):
            for d in range(width):
                h[n, d] = h0[b, start + d, n]
        dx = np.empty(width, np.float32)
        total = np.empty(width, np.float32)
        for t in range(lengths[b]):
            if keep and t % CHUNK == 0:
                checkpoints[b, t // CHUNK, :, start:stop] = h
            x_t, dt_t, y_t = x[b, t, start:stop], dt[b, t, start:stop], y[b, t, start:stop]
            for d in range(width):
                dx[d] = dt_t[d] * x_t[d]
                total[d] = D[start + d] * x_t[d]
            for n in range(size):
                a_n, h_n, b_n, c_n = A_t[n, start:stop], h[n], B[b, t, n], C[b, t, n]
                for d in range(width):
                    value = exp_of_nonpositive(dt_t[d] * a_n[d]) * h_n[d] + dx[d] * b_n
                    h_n[d] = value
                    total[d] += value * c_n
            for d in range(width):
                y_t[d] = total[d]
        for n in range(size):
            for d in range(width):
                h_last[b, start + d, n] = h[n, d]


def _backward(x, dt, A_t, B, C, D, lengths, checkpoints, dy, dh_last, dx, ddt, dA_t, dB, dC, dD, dh0):
    """Gradients. dA_t (b, n, d) and dD (b, d) are per row, dB and dC (blocks, b, l, n) per block of channels."""
    batch, _, channels = x.shape
    size = A_t.shape[0]
    blocks = (channels + BLOCK - 1) // BLOCK
    for task in numba.prange(batch * blocks):
        b, block = task // blocks, task % blocks
        start = block * BLOCK
        width = min(BLOCK, channels - start)
        stop = start + width
        before = np.empty((CHUNK, size, width), np.float32)  # the state before each step of the chunk
        decay = np.empty((CHUNK, size, width), np.float32)
        h = np.empty((size, width), np.float32)
        dh = np.empty((size, width), np.float32)
        step = np.empty(width, np.float32)
        for n in range(size):
            for d in range(width):
                dh[n, d] = dh_last[b, start + d, n]
        chunks = (lengths[b] + CHUNK - 1) // CHUNK
        for reverse_chunk in range(chunks):
            first = (chunks - 1 - reverse_chunk) * CHUNK
            last = min(first + CHUNK, lengths[b])
            h[:, :] = checkpoints[b, first // CHUNK, :, start:stop]
            for t in range(first, last):
                x_t, dt_t = x[b, t, start:stop], dt[b, t, start:stop]
                for n in range(size):
                    a_n, h_n, b_n = A_t[n, start:stop], h[n], B[b, t, n]
                    before_n, decay_n = before[t - first, n], decay[t - first, n]
                    for d in range(width):
                        a = exp_of_nonpositive(dt_t[d] * a_n[d])
                        before_n[d] = h_n[d]
                        decay_n[d] = a
                        h_n[d] = a * h_n[d] + dt_t[d] * x_t[d] * b_n
            for t in range(last - 1, first - 1, -1):
                x_t, dt_t, dy_t = x[b, t, start:stop], dt[b, t, start:stop], dy[b, t, start:stop]
                dx_t, ddt_t = dx[b, t, start:stop], ddt[b, t, start:stop]
                for d in range(width):
                    dx_t[d] = D[start + d] * dy_t[d]
                    ddt_t[d] = np.float32(0.0)
                    step[d] = np.float32(0.0)
                    dD[b, start + d] += dy_t[d] * x_t[d]
                for n in range(size):
                    a_n, h_n, dh_n, dA_n = A_t[n, start:stop], h[n], dh[n], dA_t[b, n, start:stop]
                    before_n, decay_n = before[t - first, n], decay[t - first, n]
                    b_n, c_n = B[b, t, n], C[b, t, n]
                    db, dc = np.float32(0.0), np.float32(0.0)
                    for d in range(width):
                        dh_d = dh_n[d] + dy_t[d] * c_n
                        dc += dy_t[d] * h_n[d]
                        db += dh_d * dt_t[d] * x_t[d]
                        step[d] += dh_d * b_n
                        through_decay = dh_d * before_n[d] * decay_n[d]
                        ddt_t[d] += through_decay * a_n[d]
                        dA_n[d] += through_decay * dt_t[d]
                        dh_n[d] = dh_d * decay_n[d]
                        h_n[d] = before_n[d]
                    dB[block, b, t, n] = db
                    dC[block, b, t, n] = dc
                for d in range(width):
                    dx_t[d] += step[d] * dt_t[d]
                    ddt_t[d] += step[d] * x_t[d]
        for n in range(size):
            for d in range(width):
                dh0[b, start + d, n] = dh[n, d]


_FORWARD = CpuKernel(_forward, PARALLEL_UPDATES)
_BACKWARD = CpuKernel(_backward, PARALLEL_UPDATES)


class _SelectiveScan(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x, dt, A, B, C, D, h0, lengths):
        batch, length, channels = x.shape
        size = A.shape[1]
        needs_backward = any(ctx.needs_input_grad)
        chunks = -(-length // CHUNK) if needs_backward else 0
        y = torch.zeros_like(x)
        h_last = torch.empty_like(h0)
        checkpoints = x.new_empty(batch, chunks, size, channels)
        A_t = A.t().contiguous()
        _call(_FORWARD, x, dt, A_t, B, C, D, h0, lengths, y, h_last, checkpoints)
        if needs_backward:
            ctx.save_for_backward(x, dt, A_t, B, C, D, lengths, checkpoints)
        return y, h_last

    @staticmethod
    @once_differentiable
    def backward(ctx, dy, dh_last):
        x, dt, A_t, B, C, D, lengths, checkpoints = ctx.saved_tensors
        batch, length, channels = x.shape
        size = A_t.shape[0]
        blocks = -(-channels // BLOCK)
        dx, ddt = torch.zeros_like(x), torch.zeros_like(x)
        dA_t, dD = x.new_zeros(batch, size, channels), x.new_zeros(batch, channels)
        dB, dC = x.new_zeros(blocks, batch, length, size), x.new_zeros(blocks, batch, length, size)
        dh0 = x.new_empty(batch, channels, size)
        _call(
            _BACKWARD,
            *(x, dt, A_t, B, C, D, lengths, checkpoints, dy.contiguous(), dh_last.contiguous()),
            *(dx, ddt, dA_t, dB, dC, dD, dh0),
        )
        return dx, ddt, dA_t.sum(0).t(), dB.sum(0), dC.sum(0), dD.sum(0), dh0, None


def _call(kernel: CpuKernel, x: Tensor, dt: Tensor, A_t: Tensor, *rest: Tensor) -> None:
    updates = x.numel() * A_t.shape[0]
    kernel(updates, *(t.detach().numpy() for t in (x, dt, A_t, *rest)))


def selective_scan_cpu(
    x: Tensor,
    dt: Tensor,
    A: Tensor,
    B: Tensor,
    C: Tensor,
    D: Tensor,
    initial_state: Tensor | None = None,
    lengths: Tensor | None = None,
) -> tuple[Tensor, Tensor]:
    """See `selective_scan`. Any floating dtype comes in; the scan itself runs in float32."""
    batch, length, channels = x.shape
    dtype = x.dtype
    if initial_state is None:
        initial_state = x.new_zeros(batch, channels, A.shape[1], dtype=torch.float32)
    if lengths is None:
        lengths = torch.full((batch,), length, dtype=torch.int64)
    inputs = (t.float().contiguous() for t in (x, dt, A, B, C, D, initial_state))
    y, h_last = _SelectiveScan.apply(*inputs, lengths.to(torch.int64).contiguous())
    return y.to(dtype), h_last
