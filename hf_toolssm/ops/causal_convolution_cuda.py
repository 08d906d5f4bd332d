"""The depthwise causal convolution of a Mamba block on a CUDA GPU, by the kernel of causal-conv1d, from any state.

The state is simply what stands before the inputs, so it is put there: the kernel sees one longer row, and its backward
gives the state's gradient. Its own `initial_states` does the same, but only for channels in multiples of 8.
"""

from collections.abc import Callable
from functools import lru_cache
from importlib.util import find_spec

import torch
from torch import Tensor

KERNEL_WIDTHS = (2, 3, 4)
"""The convolution widths that causal-conv1d computes."""


@lru_cache(maxsize=1)
def cuda_convolution_installed() -> bool:
    """Whether the package causal-conv1d can be imported."""
    return find_spec("causal_conv1d") is not None


def kernel_applies(weight: Tensor) -> bool:
    """Whether the kernel is there and knows convolutions of this weight (d, k)."""
    return cuda_convolution_installed() and weight.shape[1] in KERNEL_WIDTHS


def causal_convolution_cuda(
    x: Tensor, weight: Tensor, bias: Tensor | None, state: Tensor | None, lengths: Tensor | None
) -> tuple[Tensor, Tensor]:
    """The convolution over the length, then SiLU.

    Args:
        x: (b, l, d), on a CUDA device.
        weight: (d, k), k one of `KERNEL_WIDTHS`.
        bias: (d,) or None.
        state: the k inputs before x, (b, d, k); None is zeros.
        lengths: (b,), how many inputs of each row are real; None is all.

    Returns:
        The output (b, l, d), and the last k real inputs (b, d, k).
    """
    return convolve_from_state(lambda window: _causal_conv1d(window, weight, bias), weight.shape[1], x, state, lengths)


def convolve_from_state(
    convolution: Callable[[Tensor], Tensor],
    width: int,
    x: Tensor,
    state: Tensor | None,
    lengths: Tensor | None,
) -> tuple[Tensor, Tensor]:
    """`causal_convolution_cuda` by a convolution of (b, d, l) that is k inputs wide and starts from zeros."""
    batch, length, channels = x.shape
    before = x.new_zeros(batch, channels, width) if state is None else state.to(x.dtype)
    window = torch.cat([before, x.transpose(1, 2)], dim=2)  # (b, d, k + l), contiguous: any strides of x will do
    y = convolution(window)[:, :, width:]
    if lengths is None:
        last = window[:, :, length:].clone()  # a view would keep the whole window as long as the state lives
    else:
        at = lengths[:, None] + torch.arange(width, device=x.device)  # (b, k)
        last = window.gather(2, at[:, None].expand(-1, channels, -1))
    return y.transpose(1, 2), last


def _causal_conv1d(x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    """Args: x (b, d, l), weight (d, k), bias (d,) or None. It starts from zeros and ends with SiLU."""
    from causal_conv1d import causal_conv1d_fn

    return causal_conv1d_fn(x, weight, bias, activation="silu")
