"""The inside of a Mamba block, from the convolution to the gate, as one operation with its own backward on a CPU.

Separately the parts give each their own gradient, and joining those of the two xz of the first projection, and of
step size, B and C, costs a small model as much as a scan. Here the kernels write into one array each.
"""

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from hf_toolssm.errors import InputMismatchError
from hf_toolssm.ops.causal_convolution import convolution_backward, convolution_forward
from hf_toolssm.ops.checks import check_tensors
from hf_toolssm.ops.cpu_kernels import row_lengths
from hf_toolssm.ops.projection import product, weight_gradient
from hf_toolssm.ops.selective_scan_cpu import scan_backward, scan_forward


def mamba_inner(
    xz: Tensor,
    conv_weight: Tensor,
    conv_bias: Tensor | None,
    x_weight: Tensor,
    dt_weight: Tensor,
    dt_bias: Tensor,
    A: Tensor,
    D: Tensor,
    conv_state: Tensor | None,
    recurrent_state: Tensor | None,
    lengths: Tensor | None,
) -> tuple[Tensor, Tensor, Tensor]:
    """What convolution, `x_proj`, `dt_proj` and scan give one after the other, in float32 on a CPU.

    Args:
        xz: (b, l, 2 d), the input and the gate.
        conv_weight: (d, k).
        conv_bias: (d,) or None.
        x_weight: (r + 2 n, d).
        dt_weight: (d, r).
        dt_bias: (d,).
        A: (d, n).
        D: (d,).
        conv_state: (b, d, k); None is zeros.
        recurrent_state: (b, d, n); None is zeros.
        lengths: (b,) int64, how many tokens of each row are real; None is all.

    Returns:
        y (b, l, d), and the last two states in the shapes of the first.

    Raises:
        InputMismatchError: they do not fit each other.
    """
    sizes = check_tensors(
        "mamba_inner",
        lengths,
        xz=(xz, "b l 2d"),
        conv_weight=(conv_weight, "d k"),
        conv_bias=(conv_bias, "d"),
        dt_weight=(dt_weight, "d r"),
        dt_bias=(dt_bias, "d"),
        A=(A, "d n"),
        x_weight=(x_weight, "r+2n d"),
        D=(D, "d"),
        conv_state=(conv_state, "b d k"),
        recurrent_state=(recurrent_state, "b d n"),
    )
    if (sizes["2d"], sizes["r+2n"]) != (2 * sizes["d"], sizes["r"] + 2 * sizes["n"]):
        raise InputMismatchError(f"mamba_inner takes sizes that fit each other, and not {sizes}")
    batch, length = sizes["b"], sizes["l"]
    if conv_bias is None:
        conv_bias = xz.new_zeros(len(conv_weight))
    if conv_state is None:
        conv_state = xz.new_zeros(batch, *conv_weight.shape)
    if recurrent_state is None:
        recurrent_state = xz.new_zeros(batch, *A.shape)
    lengths = row_lengths(lengths, batch, length)
    vectors = (conv_bias.contiguous(), x_weight, dt_weight, dt_bias, A, D.contiguous(), conv_state, recurrent_state)
    return _Inner.apply(*(tensor.float() for tensor in (xz, conv_weight, *vectors)), lengths)


class _Inner(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx, xz, conv_weight, conv_bias, x_weight, dt_weight, dt_bias, A, D, conv_state, recurrent_state, lengths
    ):
        rank = dt_weight.shape[1]
        x, gate = xz.chunk(2, dim=-1)
        x, last, conv_saved = convolution_forward(x, conv_weight, conv_bias, conv_state, lengths)
        steps_B_C = product(x, x_weight)
        steps, B, C = steps_B_C.split([rank, A.shape[1], A.shape[1]], dim=-1)
        dt = product(steps, dt_weight, dt_bias)
        y, h_last, scan_saved = scan_forward(
            x, dt, A, B, C, D, gate, recurrent_state, lengths, any(ctx.needs_input_grad)
        )
        ctx.of_convolution = len(conv_saved)
        ctx.save_for_backward(x_weight, dt_weight, steps_B_C, *conv_saved, *scan_saved)
        return y, last, h_last

    @staticmethod
    @once_differentiable
    def backward(ctx, dy, dlast, dh_last):
        x_weight, dt_weight, steps_B_C, *saved = ctx.saved_tensors
        conv_saved, scan_saved = saved[: ctx.of_convolution], saved[ctx.of_convolution :]
        x = scan_saved[0]
        rank = dt_weight.shape[1]
        dhalves = dy.new_empty(*dy.shape[:2], 2 * dy.shape[2])
        dinput, dgate = dhalves.chunk(2, dim=-1)
        dx, ddt, dsteps_B_C = torch.empty_like(x), torch.empty_like(x), torch.empty_like(steps_B_C)
        dA, dB, dC, dD, dstate = scan_backward(scan_saved, dy, dh_last, dx, ddt, dgate)
        dsteps, *of_B_C = dsteps_B_C.split([rank, dB.shape[-1], dC.shape[-1]], dim=-1)
        for target, blocks in zip(of_B_C, (dB, dC)):
            torch.sum(blocks, 0, out=target)
        torch.matmul(ddt, dt_weight, out=dsteps)
        dx.view(-1, dx.shape[-1]).addmm_(dsteps_B_C.view(-1, dsteps_B_C.shape[-1]), x_weight)
        dconv_weight, dconv_bias, dconv_state = convolution_backward(conv_saved, dx, dlast, dinput)
        return (
            *(dhalves, dconv_weight, dconv_bias, weight_gradient(dsteps_B_C, x)),
            *(weight_gradient(ddt, steps_B_C[..., :rank]), ddt.sum((0, 1)), dA, dD, dconv_state, dstate, None),
        )
