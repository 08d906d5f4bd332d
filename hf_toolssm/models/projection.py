"""A linear layer's product on a CPU by oneDNN: torch takes MKL for float32, half as fast on some processors."""

from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

FEWEST_PRODUCTS = 50_000_000
"""Multiplications from which oneDNN pays: it compiles, and keeps, code for every new shape."""


def project(layer: nn.Module, x: Tensor) -> Tensor:
    """What `layer(x)` gives; a layer that is more than a plain linear one (an adapter, a hook) is called itself.

    Args:
        layer: a linear layer, or what stands in its place.
        x: (b, l, i).
    """
    plain = type(layer) is nn.Linear and not layer._forward_hooks and not layer._forward_pre_hooks
    if not plain or x.device.type != "cpu" or x.dtype != torch.float32 or layer.weight.dtype != torch.float32:
        return layer(x)
    if x.numel() * layer.out_features < FEWEST_PRODUCTS or not torch.backends.mkldnn.is_available():
        return layer(x)
    return _Project.apply(x.reshape(-1, layer.in_features), layer.weight, layer.bias).view(*x.shape[:-1], -1)


class _Project(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        ctx.save_for_backward(x, weight)
        ctx.has_bias = bias is not None
        return _product(x, weight, bias)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, dy: Tensor) -> tuple[Tensor | None, Tensor | None, Tensor | None]:
        x, weight = ctx.saved_tensors
        dx = _product(dy, weight.t(), None) if ctx.needs_input_grad[0] else None
        d_weight = None
        if ctx.needs_input_grad[1]:
            # Summed over many rows into a small matrix, MKL is the faster one.
            small = weight.numel() < 8 * len(x)
            d_weight = dy.t() @ x if small else _product(dy.t(), x.t(), None)
        return dx, d_weight, dy.sum(0) if ctx.has_bias else None


def _product(x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    """x (r, i) times weight (o, i), transposed, plus bias (o,)."""
    return torch.ops.mkldnn._linear_pointwise(x, weight, bias, "none", [], "")
