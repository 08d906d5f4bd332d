"""The RMS norm (Zhang & Sennrich, arXiv 1910.07467, section 4) of a Mamba block, in one pass each way on a CPU.

As separate operations it reads and writes the hidden states ten times, which in a small model costs as much as its
matrix products.
"""

from typing import Any

import numba
import numpy as np
import torch
from torch import Tensor
from torch.autograd.function import once_differentiable
from transformers.models.mamba.modeling_mamba import MambaRMSNorm

from hf_toolssm.errors import InputMismatchError
from hf_toolssm.ops.cpu_kernels import CpuKernel, called, normalize
from hf_toolssm.ops.plain_modules import are_readable

TASKS = 64
"""Parts that the rows are shared out in; each sums the weight's gradient by itself."""

PARALLEL_VALUES = 100_000
"""Values from which waking the other threads pays."""


class ToolMambaNorm(MambaRMSNorm):
    """`MambaRMSNorm`, computed by `rms_norm` where it applies: float32 on a CPU, outside `torch.compile`."""

    def forward(self, hidden_states: Tensor) -> Tensor:
        """Args: hidden_states (b, l, e)."""
        # Dynamo compiles the definition, and cannot look into numba.
        if torch.compiler.is_compiling() or not are_readable(hidden_states, self.weight):
            return super().forward(hidden_states)
        return rms_norm(hidden_states, self.weight, self.variance_epsilon)


def rms_norm(x: Tensor, weight: Tensor, epsilon: float) -> Tensor:
    """x / sqrt(mean(x^2) + epsilon) * weight along the last dimension.

    Args:
        x: (..., e), float32 on a CPU.
        weight: (e,), float32.
        epsilon: added to the mean of squares.

    Raises:
        InputMismatchError: they do not fit each other.
    """
    if x.shape[-1:] != weight.shape or {x.dtype, weight.dtype} != {torch.float32} or x.device != weight.device:
        raise InputMismatchError(
            f"rms_norm takes float32 on one device and a weight as wide as x, and not x {x.dtype} {tuple(x.shape)} "
            f"and weight {weight.dtype} {tuple(weight.shape)}"
        )
    return _RmsNorm.apply(x.reshape(-1, x.shape[-1]), weight, epsilon).view(x.shape)


@called
def _row_gradients(x, weight, epsilon, dy, dx, dweight):
    """With r = rms(x) and u = x / r: dx = (dy w - u mean(dy w u)) / r, and dweight grows by dy u; all (e,)."""
    size = x.shape[0]
    squares, projected = np.float32(0.0), np.float32(0.0)
    for i in range(size):
        squares += x[i] * x[i]
        projected += dy[i] * weight[i] * x[i]
    factor = np.float32(1.0) / np.sqrt(squares / np.float32(size) + np.float32(epsilon))
    shrink = projected * factor * factor / np.float32(size)
    for i in range(size):
        dx[i] = factor * (dy[i] * weight[i] - x[i] * shrink)
        dweight[i] += factor * dy[i] * x[i]


def _forward(x, weight, epsilon, y):
    """x and y are (r, e)."""
    rows = x.shape[0]
    for task in numba.prange(TASKS):
        for row in range(task * rows // TASKS, (task + 1) * rows // TASKS):
            normalize(x[row], weight, epsilon, y[row])


def _backward(x, weight, epsilon, dy, dx, dweight):
    """x, dy and dx are (r, e); dweight (TASKS, e) is per task."""
    rows = x.shape[0]
    for task in numba.prange(TASKS):
        dweight[task] = np.float32(0.0)
        for row in range(task * rows // TASKS, (task + 1) * rows // TASKS):
            _row_gradients(x[row], weight, epsilon, dy[row], dx[row], dweight[task])


_FORWARD = CpuKernel(_forward, PARALLEL_VALUES)
_BACKWARD = CpuKernel(_backward, PARALLEL_VALUES)


class _RmsNorm(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, epsilon: float) -> Tensor:
        x, weight = x.contiguous(), weight.contiguous()
        y = torch.empty_like(x)
        _FORWARD(x.numel(), x.detach().numpy(), weight.detach().numpy(), epsilon, y.numpy())
        ctx.save_for_backward(x, weight)
        ctx.epsilon = epsilon
        return y

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, dy: Tensor) -> tuple[Tensor, Tensor, None]:
        x, weight = ctx.saved_tensors
        dx, dweight = torch.empty_like(x), x.new_empty(TASKS, x.shape[1])
        arrays = (t.detach().numpy() for t in (dy.contiguous(), dx, dweight))
        _BACKWARD(x.numel(), x.detach().numpy(), weight.detach().numpy(), ctx.epsilon, *arrays)
        return dx, dweight.sum(0), None
