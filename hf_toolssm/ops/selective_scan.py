"""The selective scan of Mamba (Gu & Dao, arXiv 2312.00752, section 3.2), from any initial state.

Symbols, as in the paper:

    b   batch            l   length           d   inner channels        n   state size per channel
    x   (b, l, d)  input            dt  (b, l, d)  step size before its softplus, bias included
    A   (d, n)     decay, negative  B, C  (b, l, n)  input and output projections     D  (d,)  skip
    h   (b, d, n)  state            y   (b, l, d)  output       gate  (b, l, d)  before its SiLU

    s_t = softplus(dt_t)     h_t = exp(s_t A) h_{t-1} + s_t B_t x_t     y_t = (C_t h_t + D x_t) silu(gate_t)

A row may be shorter than the tensor: `lengths` says how many of its tokens are real, and its final state is the state
after the last real one. Rows, pieces and gradients (the initial and the final state's included) are exact.
"""

import torch
import torch.nn.functional as F
from torch import Tensor

from hf_toolssm.ops.checks import check_scan


@torch.compiler.disable
def selective_scan(
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
    """Runs the scan with the fastest implementation for the device that the tensors are on.

    Args:
        x: (b, l, d).
        dt: (b, l, d), before the softplus.
        A: (d, n), negative.
        B: (b, l, n).
        C: (b, l, n).
        D: (d,).
        gate: (b, l, d), before the SiLU.
        initial_state: (b, d, n); None is zeros.
        lengths: (b,) int64, how many tokens of each row are real; None is all. Outputs
            past them are unspecified, but finite.

    Returns:
        y (b, l, d) in x's dtype, and the final state (b, d, n) in float32.

    Raises:
        InputMismatchError: they do not fit each other.
    """
    if x.device.type == "cpu":
        from hf_toolssm.ops.selective_scan_cpu import selective_scan_cpu

        return selective_scan_cpu(x, dt, A, B, C, D, gate, initial_state, lengths)
    check_scan(x, dt, A, B, C, D, gate, initial_state, lengths)
    if x.device.type == "cuda":
        from hf_toolssm.ops.selective_scan_cuda import cuda_kernels_installed, selective_scan_cuda

        # For a single token the definition launches less.
        if x.shape[1] > 1 and cuda_kernels_installed():
            return selective_scan_cuda(x, dt, A, B, C, D, gate, initial_state, lengths)
    return selective_scan_reference(x, dt, A, B, C, D, gate, initial_state, lengths)


def selective_scan_reference(
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
    """The definition, one step at a time, on any device; see `selective_scan` for the shapes.

    Time and memory are linear in length: the inputs are unbound once, so that each step's gradient is a step's size.
    """
    batch, length, channels = x.shape
    dtype = x.dtype
    x, dt, A, B, C, D, gate = (t.float() for t in (x, dt, A, B, C, D, gate))
    dt = F.softplus(dt)
    if lengths is not None:  # a step of size zero leaves the state as it is
        dt = dt * (torch.arange(length, device=x.device) < lengths[:, None])[:, :, None]
    if initial_state is None:
        initial_state = x.new_zeros(batch, channels, A.shape[1])
    h = initial_state.float()
    outputs = []
    for x_t, dt_t, B_t, C_t in zip(*(t.unbind(1) for t in (x, dt, B, C))):
        decay = torch.exp(dt_t[:, :, None] * A)  # (b, d, n)
        h = decay * h + (dt_t * x_t)[:, :, None] * B_t[:, None, :]
        outputs.append((h * C_t[:, None, :]).sum(-1) + D * x_t)
    y = torch.stack(outputs, dim=1) if outputs else x
    return (y * F.silu(gate)).to(dtype), h
