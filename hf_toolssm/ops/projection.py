"""A linear layer's product on a CPU by oneDNN: torch takes MKL for float32, half as fast on some processors."""

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

from hf_toolssm.ops.plain_modules import are_readable, is_plain

FEWEST_PRODUCTS = 50_000_000
"""Multiplications from which oneDNN pays: it compiles, and keeps, code for every new shape."""


def project(layer: nn.Module, x: Tensor) -> Tensor:
    """What `layer(x)` gives; a layer that is more than a plain linear one (an adapter, a hook) is called itself.

    Args:
        layer: a linear layer, or what stands in its place.
        x: (b, l, i).
    """
    if not (is_plain(layer, nn.Linear) and _is_large(x, layer.weight) and are_projectable(x, layer)):
        return layer(x)
    return _Project.apply(x, layer.weight, layer.bias)


def are_projectable(x: Tensor, *layers: nn.Module) -> bool:
    """Whether x and the weights of plain layers are float32 on a CPU, and are to be multiplied as such."""
    # Under autocast the layers themselves compute in fewer bits.
    if torch.is_autocast_enabled("cpu"):
        return False
    return are_readable(x, *(weight for layer in layers for weight in layer._parameters.values()))


def product(x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    """x (b, l, i) times weight (o, i), transposed, plus bias (o,); float32 on a CPU, without a gradient."""
    if not _is_large(x, weight):
        return F.linear(x, weight, bias)
    return torch.ops.mkldnn._linear_pointwise(x, weight, bias, "none", [], "")


def weight_gradient(dy: Tensor, x: Tensor) -> Tensor:
    """The gradient (o, i) of the weight in `product(x, weight)` from that of the product (b, l, o)."""
    dy, x = dy.flatten(0, 1), x.flatten(0, 1)
    # Summed over many rows into a small matrix, MKL is the faster one. Of columns of a wider matrix oneDNN makes an
    # operand without blocks: 700 ms where MKL takes 1.
    if dy.shape[1] * x.shape[1] < 8 * len(x) or not (dy.is_contiguous() and x.is_contiguous()):
        return dy.t() @ x
    return product(dy.t(), x.t())


class _Project(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        ctx.save_for_backward(x, weight)
        ctx.has_bias = bias is not None
        return product(x, weight, bias)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, dy: Tensor) -> tuple[Tensor | None, Tensor | None, Tensor | None]:
        x, weight = ctx.saved_tensors
        needs_x, needs_weight, _ = ctx.needs_input_grad
        return (
            product(dy, weight.t()) if needs_x else None,
            weight_gradient(dy, x) if needs_weight else None,
            dy.sum((0, 1)) if ctx.has_bias else None,
        )


def _is_large(x: Tensor, weight: Tensor) -> bool:
    return x.numel() * len(weight) >= FEWEST_PRODUCTS and torch.backends.mkldnn.is_available()
