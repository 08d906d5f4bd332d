"""The operations that are one on a CPU give what their parts give: values, states and every gradient."""

import pytest
import torch
from conftest import relative_distance
from hypothesis import given, settings
from hypothesis import strategies as st
from transformers.models.mamba.modeling_mamba import MambaRMSNorm

from hf_toolssm import ToolMambaConfig
from hf_toolssm.models.modeling_tool_mamba import ToolMambaMixer
from hf_toolssm.ops.lanes import LANES
from hf_toolssm.ops.rms_norm import PARALLEL_VALUES, ToolMambaNorm


def norm_with_gradients(kind, x, weight, upstream):
    norm = kind(x.shape[-1], eps=1e-5)
    norm.weight.data.copy_(weight)
    x = x.clone().requires_grad_()
    y = norm(x)
    return y.detach(), *torch.autograd.grad(y, [x, norm.weight], upstream)


@settings(max_examples=40, deadline=None)
@given(rows=st.integers(1, 70), size=st.integers(1, 70), seed=st.integers(0, 1_000))
def test_the_norm_equals_its_definition(rows, size, seed):
    random = torch.Generator().manual_seed(seed)
    x, upstream = (3 * torch.randn(2, rows, size, generator=random) for _ in range(2))
    weight = torch.randn(size, generator=random)
    found, expected = (norm_with_gradients(kind, x, weight, upstream) for kind in (ToolMambaNorm, MambaRMSNorm))
    for a, b in zip(found, expected):
        assert relative_distance(a, b) < 1e-5


@pytest.mark.usefixtures("two_threads")
def test_the_norm_on_all_threads_equals_its_definition():
    random = torch.Generator().manual_seed(0)
    x, upstream = (torch.randn(8, 300, 64, generator=random) for _ in range(2))
    assert x.numel() > PARALLEL_VALUES
    weight = torch.randn(64, generator=random)
    found, expected = (norm_with_gradients(kind, x, weight, upstream) for kind in (ToolMambaNorm, MambaRMSNorm))
    for a, b in zip(found, expected):
        assert relative_distance(a, b) < 1e-5


@settings(max_examples=20, deadline=None)
@given(
    lengths=st.lists(st.integers(1, 40), min_size=1, max_size=3),
    hidden=st.sampled_from([3, LANES // 2, LANES // 2 + 5]),
    carried=st.booleans(),
    seed=st.integers(0, 1_000),
)
def test_the_inside_of_a_block_equals_its_parts(lengths, hidden, carried, seed):
    torch.manual_seed(seed)
    config = ToolMambaConfig(
        vocab_size=9, hidden_size=hidden, state_size=5, num_hidden_layers=1, use_conv_bias=carried
    )
    mixer = ToolMambaMixer(config, 0)
    for parameter in mixer.parameters():
        parameter.data += 0.3 * torch.randn_like(parameter)
    batch, length, channels = len(lengths), max(lengths), mixer.intermediate_size
    xz = torch.randn(batch, length, 2 * channels, requires_grad=True)
    states: list = [None, None]
    if carried:
        states = [torch.randn(batch, channels, size, requires_grad=True) for size in (config.conv_kernel, 5)]
    real = (torch.arange(length) < torch.tensor(lengths)[:, None])[:, :, None]
    inside = [p for name, p in mixer.named_parameters() if not name.startswith(("in_proj", "out_proj"))]
    inputs = [xz, *inside, *(state for state in states if state is not None)]

    def run(compute):
        y, *last = compute(xz, *states, torch.tensor(lengths))
        loss = sum((torch.cos(torch.arange(t.numel())).view_as(t) * t).sum() for t in (y * real, *last))
        return y * real, *last, *torch.autograd.grad(loss, inputs)

    assert mixer._can_be_fused(xz)
    for a, b in zip(run(mixer._fused), run(mixer._composed)):
        assert relative_distance(a, b) < 1e-4
