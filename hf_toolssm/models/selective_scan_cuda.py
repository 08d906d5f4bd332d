"""The selective scan on a CUDA GPU, by the kernel of mamba-ssm.

That kernel starts from zeros, gives no gradient for its last state and is unreliable beyond about 61,000 tokens in one
call. A scan is linear in its state, so the initial state is added by superposition, and long inputs run in pieces.
"""

from collections.abc import Callable
from functools import lru_cache
from importlib.util import find_spec

import torch
import torch.nn.functional as F
from torch import Tensor

MAX_PIECE = 32_768
"""Tokens in one call of the kernel."""


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
    """See `selective_scan`. No gradient goes through a state that the kernel returns, the one between two pieces
    included: a backward that needs it raises RuntimeError, so training takes at most `MAX_PIECE` tokens a row.
    """
    dt = F.softplus(dt.float())
    if lengths is not None:
        dt = dt * (torch.arange(x.shape[1], device=x.device) < lengths[:, None])[:, :, None]
    state, outputs = initial_state, []
    for pieces in zip(*(t.split(MAX_PIECE, dim=1) for t in (x, dt, B, C))):
        piece_x, piece_dt, piece_B, piece_C = pieces
        y, state = scan_from_zero_start(_mamba_ssm_scan, piece_x, piece_dt, A, piece_B, piece_C, D, state)
        state = _WithoutGradient.apply(state)
        outputs.append(y)
    return torch.cat(outputs, dim=1) * F.silu(gate), state


def scan_from_zero_start(
    zero_start_scan: Callable[..., tuple[Tensor, Tensor]],
    x: Tensor,
    dt: Tensor,
    A: Tensor,
    B: Tensor,
    C: Tensor,
    D: Tensor,
    initial_state: Tensor | None,
) -> tuple[Tensor, Tensor]:
    """A scan from any initial state, made of one that starts from zeros.

    y_t += C_t exp(A sum_{s<=t} dt_s) h_0          h_T += exp(A sum_s dt_s) h_0
    """
    y, last = zero_start_scan(x, dt, A, B, C, D)
    if initial_state is None:
        return y, last
    elapsed = dt.float().cumsum(1)  # (b, l, d)
    # One state index at a time: without gradients this holds (b, l, d), never (b, l, d, n).
    for n in range(A.shape[1]):
        decayed = torch.exp(elapsed * A[:, n]) * initial_state[:, None, :, n]
        y = y + (decayed * C[:, :, n, None].float()).to(y.dtype)
    return y, last + torch.exp(elapsed[:, -1, :, None] * A) * initial_state


def _mamba_ssm_scan(x: Tensor, dt: Tensor, A: Tensor, B: Tensor, C: Tensor, D: Tensor) -> tuple[Tensor, Tensor]:
    from mamba_ssm.ops.selective_scan_interface import selective_scan_fn

    x, dt, B, C = (t.transpose(1, 2).contiguous() for t in (x, dt.to(x.dtype), B.to(x.dtype), C.to(x.dtype)))
    y, last = selective_scan_fn(x, dt, A.float(), B, C, D.float(), return_last_state=True)
    return y.transpose(1, 2), last.float()


class _WithoutGradient(torch.autograd.Function):
    """The identity, whose backward stops: the kernel's share of the final state's gradient would be missing."""

    @staticmethod
    def forward(ctx, state):
        return state.clone()

    @staticmethod
    def backward(ctx, gradient):
        raise RuntimeError(
            "the CUDA scan gives no gradient for the state that it returns: detach the state between forwards, and "
            f"train on at most {MAX_PIECE} tokens a row"
        )
