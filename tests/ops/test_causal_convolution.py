"""The compiled convolution equals its definition: outputs, state and every gradient, from any state, in any pieces."""

import pytest
import torch
import torch.nn.functional as F
from conftest import relative_distance
from hypothesis import given, settings
from hypothesis import strategies as st

from hf_toolssm.ops.causal_convolution import (
    PARALLEL_OUTPUTS,
    causal_convolution,
    causal_convolution_reference,
)
from hf_toolssm.ops.lanes import LANES

NAMES = ("y", "state", "x", "weight", "bias", "initial state")


def inputs(batch, length, channels, kernel, seed=0):
    random = torch.Generator().manual_seed(seed)
    shapes = ((batch, length, channels), (channels, kernel), (channels,), (batch, channels, kernel))
    return [2 * torch.randn(*shape, generator=random) for shape in shapes]


def definition(*arguments):
    y, state = causal_convolution_reference(*arguments)
    return F.silu(y), state


def run_with_gradients(convolve, tensors, lengths=None):
    tensors = [t.clone().requires_grad_() for t in tensors]
    y, state = convolve(*tensors, lengths)
    if lengths is not None:
        y = y * (torch.arange(y.shape[1]) < lengths[:, None])[:, :, None]
    loss = (y * torch.cos(torch.arange(y.numel())).view_as(y)).sum()
    loss = loss + (state * torch.sin(torch.arange(state.numel())).view_as(state)).sum()
    return y, state, *torch.autograd.grad(loss, tensors)


@settings(max_examples=60)
@given(
    lengths=st.lists(st.integers(0, 12), min_size=1, max_size=4),
    channels=st.sampled_from([1, 5, LANES, LANES + 3]),
    kernel=st.integers(2, 5),
    seed=st.integers(0, 1_000),
)
def test_any_shape_and_lengths_equal_the_definition(lengths, channels, kernel, seed):
    tensors = inputs(len(lengths), max(1, *lengths), channels, kernel, seed)
    expected = run_with_gradients(definition, tensors, torch.tensor(lengths))
    found = run_with_gradients(causal_convolution, tensors, torch.tensor(lengths))
    for name, a, b in zip(NAMES, found, expected):
        assert relative_distance(a, b) < 1e-5, name


@pytest.mark.usefixtures("two_threads")
def test_all_threads_give_what_the_definition_gives():
    tensors = inputs(8, 200, 2 * LANES, 4)
    assert tensors[0].numel() > PARALLEL_OUTPUTS
    for name, a, b in zip(
        NAMES, run_with_gradients(causal_convolution, tensors), run_with_gradients(definition, tensors)
    ):
        assert relative_distance(a, b) < 1e-5, name


@given(pieces=st.lists(st.integers(1, 9), min_size=1, max_size=6), seed=st.integers(0, 1_000))
def test_pieces_with_a_carried_state_equal_the_whole_gradients_included(pieces, seed):
    def in_pieces(x, weight, bias, state, lengths):
        outputs = []
        for piece in x.split(pieces, dim=1):
            y, state = causal_convolution(piece, weight, bias, state)
            outputs.append(y)
        return torch.cat(outputs, dim=1), state

    tensors = inputs(2, sum(pieces), 6, 4, seed)
    for name, a, b in zip(
        NAMES, run_with_gradients(in_pieces, tensors), run_with_gradients(causal_convolution, tensors)
    ):
        assert relative_distance(a, b) < 1e-5, name


@pytest.mark.parametrize("scale", [1e-3, 1e4])
def test_extreme_inputs_stay_finite_and_right(scale):
    x, weight, bias, state = inputs(2, 20, 5, 4)
    found = run_with_gradients(causal_convolution, (scale * x, weight, bias, state))
    expected = run_with_gradients(definition, (scale * x, weight, bias, state))
    for name, a, b in zip(NAMES, found, expected):
        assert torch.isfinite(a).all(), name
        assert relative_distance(a, b) < 1e-5, name


def test_a_half_of_a_projection_no_bias_and_bfloat16():
    x, weight, _, _ = inputs(2, 20, 5, 4)
    both = torch.cat([x, x], -1)
    y, state = causal_convolution(both.chunk(2, dim=-1)[1], weight, None)
    assert relative_distance(y, definition(x, weight, None)[0]) < 1e-6
    assert torch.equal(state, x[:, -4:].transpose(1, 2))
    y, state = causal_convolution(x.bfloat16(), weight.bfloat16(), None)
    assert y.dtype == state.dtype == torch.bfloat16
    assert relative_distance(y.float(), definition(x, weight, None)[0]) < 0.05
