"""The selective scan on a CUDA GPU, by the kernel of mamba-ssm, from any state and with every gradient.

That kernel starts from zeros, gives its last state no gradient, and is unreliable beyond about 61,000 tokens in one
call. It needs no help from outside to do better, because a state can enter and leave a scan as tokens:

    write   n tokens before the first. Token j has B = unit vector j, x = h_0[:, j] / dt and a step dt so small that
            exp(dt A) is 1 in float32: it adds h_0[:, j] to the state and decays nothing.
    read    n tokens after the last. Token j has dt = 0, which leaves the state as it is, and C = unit vector j: its
            output is h_T[:, j].

So the kernel's own backward gives the gradients with respect to the initial state, and of the final state, for 2n more
tokens and no memory of size (b, l, d, n). Long inputs run in pieces that hand the state, and its gradient, on.
"""

from collections.abc import Callable
from functools import lru_cache
from importlib.util import find_spec

import torch
import torch.nn.functional as F
from torch import Tensor

MAX_PIECE = 32_768
"""Tokens in one call of the kernel."""

_WRITE_STEP = 2.0**-40
"""A power of two, so that dividing and multiplying by it is exact; exp(dt A) rounds to 1 for every |A| < 2**15."""

_READ_GATE = 64.0
"""silu(64) is 64 in every type, so a read token with C = 1/64 puts out the state itself."""

ZeroStartScan = Callable[[Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor], tuple[Tensor, Tensor]]
"""The kernel's contract, with the length last: x, step size and gate (b, d, l), A (d, n), B and C (b, n, l), D (d,).
It starts from zeros and returns y (b, d, l) times silu(gate), and the final state (b, d, n) without a gradient."""


@lru_cache(maxsize=1)
def cuda_kernels_installed() -> bool:
    """Whether the package mamba-ssm can be imported."""
    return find_spec("mamba_ssm") is not None


def selective_scan_cuda(
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
    """See `selective_scan`. The kernel reads x, the step sizes, B, C and the gate in x's type."""
    # float16 has no room for a written state, whose values are divided by 2**-40.
    inside = x.float() if x.dtype == torch.float16 else x
    y, state = scan_in_pieces(_mamba_ssm_scan, MAX_PIECE, inside, dt, A, B, C, D, gate, initial_state, lengths)
    return y.to(x.dtype), state


def scan_in_pieces(
    scan: ZeroStartScan,
    piece: int,
    x: Tensor,
    dt: Tensor,
    A: Tensor,
    B: Tensor,
    C: Tensor,
    D: Tensor,
    gate: Tensor,
    initial_state: Tensor | None,
    lengths: Tensor | None,
) -> tuple[Tensor, Tensor]:
    """`selective_scan` by a scan that starts from zeros, over at most `piece` tokens at a time."""
    steps = F.softplus(dt)
    if lengths is not None:  # a step of size zero leaves the state as it is
        past = torch.arange(x.shape[1], device=x.device) >= lengths[:, None]
        steps = steps.masked_fill(past[:, :, None], 0.0)
    state, outputs = initial_state, []
    for x_, steps_, B_, C_, gate_ in zip(*(t.to(x.dtype).split(piece, dim=1) for t in (x, steps, B, C, gate))):
        y, state = _scan_from_state(scan, x_, steps_, A, B_, C_, D, gate_, state)
        outputs.append(y)
    return torch.cat(outputs, dim=1), state


def _scan_from_state(
    scan: ZeroStartScan,
    x: Tensor,
    steps: Tensor,
    A: Tensor,
    B: Tensor,
    C: Tensor,
    D: Tensor,
    gate: Tensor,
    state: Tensor | None,
) -> tuple[Tensor, Tensor]:
    """One call of the scan over write tokens, the inputs (all in one type) and read tokens."""
    batch, length, channels = x.shape
    size = A.shape[1]
    unit = torch.eye(size, dtype=x.dtype, device=x.device).expand(batch, size, size)
    written = [] if state is None else _as_write_tokens(state, x.dtype)
    before = len(written) * size

    def line_up(write: list[Tensor] | float, inputs: Tensor, read: Tensor | float) -> Tensor:
        """(b, l, c) with what stands before and after it, length last."""
        rows = inputs.shape[2]
        head = write if isinstance(write, list) else [x.new_full((batch, rows, before), write)]
        tail = read if isinstance(read, Tensor) else x.new_full((batch, rows, size), read)
        return torch.cat([*head, inputs.transpose(1, 2), tail], dim=2)

    y, last = scan(
        line_up(written, x, 0.0),
        line_up(_WRITE_STEP, steps, 0.0),
        A,
        line_up([unit] * len(written), B, 0.0),
        line_up(0.0, C, unit / _READ_GATE),
        D,
        line_up(0.0, gate, _READ_GATE),
    )
    outputs, read = y[:, :, before : before + length], y[:, :, before + length :]
    # The value that the kernel kept in float32, with the gradient of the one that it put out.
    return outputs.transpose(1, 2), last + (read - read.detach())


def _as_write_tokens(state: Tensor, dtype: torch.dtype) -> list[Tensor]:
    """The inputs (b, d, n) that write a state, as many as it takes to keep its precision."""
    scaled = state / _WRITE_STEP
    tokens = [scaled.to(dtype)]
    if dtype == torch.bfloat16:
        # Eight bits each: three hold a float32. Were the state rounded to one, what a slow channel gains in a step
        # would be lost at every hand-over. The first carries the gradient of the sum.
        rest = scaled.detach()
        for _ in range(2):
            rest = rest - tokens[-1].detach()
            tokens.append(rest.to(dtype))
    return tokens


def _mamba_ssm_scan(
    x: Tensor, steps: Tensor, A: Tensor, B: Tensor, C: Tensor, D: Tensor, gate: Tensor
) -> tuple[Tensor, Tensor]:
    from mamba_ssm.ops.selective_scan_interface import selective_scan_fn

    return selective_scan_fn(x, steps, A.float(), B, C, D.float(), z=gate, return_last_state=True)
