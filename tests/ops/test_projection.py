"""The product by oneDNN is the linear layer's, with its gradients, and stands aside for anything else."""

import pytest
import torch
from conftest import relative_distance
from hypothesis import given
from hypothesis import strategies as st
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode

from hf_toolssm import ToolMambaConfig, ToolMambaForCausalLM
from hf_toolssm.ops.projection import project, weight_gradient


@pytest.fixture(autouse=True)
def every_product_is_worth_it(monkeypatch):
    monkeypatch.setattr("hf_toolssm.ops.projection.FEWEST_PRODUCTS", 0)


def results(function, layer, x):
    x = x.clone().requires_grad_()
    layer.zero_grad()
    y = function(x)
    (y * torch.linspace(-1, 1, y.numel()).view_as(y)).sum().backward()
    return [y, x.grad, *(parameter.grad.clone() for parameter in layer.parameters())]


@given(
    batch=st.integers(1, 3),
    length=st.integers(1, 70),
    inputs=st.integers(1, 70),
    outputs=st.integers(1, 70),
    bias=st.booleans(),
    seed=st.integers(0, 100),
)
def test_values_and_gradients_are_those_of_the_layer(batch, length, inputs, outputs, bias, seed):
    torch.manual_seed(seed)
    layer, x = nn.Linear(inputs, outputs, bias=bias), 3 * torch.randn(batch, length, inputs)
    for found, expected in zip(results(lambda x: project(layer, x), layer, x), results(layer, layer, x)):
        assert found.shape == expected.shape
        assert relative_distance(found, expected) < 1e-5


def test_views_need_no_copy():
    layer, wide = nn.Linear(8, 5), torch.randn(4, 20, 24)
    for view in (wide[..., 8:16], wide.transpose(0, 1)[..., :8]):
        for found, expected in zip(results(lambda x: project(layer, x), layer, view), results(layer, layer, view)):
            assert relative_distance(found, expected) < 1e-5


def test_a_frozen_weight_gets_no_gradient():
    layer, x = nn.Linear(8, 5).requires_grad_(False), torch.randn(2, 30, 8, requires_grad=True)
    project(layer, x).sum().backward()
    assert layer.weight.grad is None
    assert relative_distance(x.grad, layer.weight.sum(0).expand_as(x)) < 1e-5


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float64])
def test_other_dtypes_are_left_to_the_layer(dtype):
    layer, x = nn.Linear(8, 5).to(dtype), torch.randn(2, 30, 8).to(dtype)
    assert torch.equal(project(layer, x), layer(x))


def test_a_layer_with_a_hook_is_called():
    layer, seen = nn.Linear(8, 5), []
    layer.register_forward_hook(lambda *_: seen.append(1))
    project(layer, torch.randn(2, 30, 8))
    assert seen


class Operands(TorchDispatchMode):
    """Keeps what oneDNN is given in the place of a weight."""

    def __init__(self):
        super().__init__()
        self.weights = []

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        if function is torch.ops.mkldnn._linear_pointwise.default:
            self.weights.append(args[1])
        return function(*args, **(kwargs or {}))


def test_onednn_multiplies_by_whole_matrices_only():
    """By columns of a wider one it takes hundreds of times as long."""
    with Operands() as given:
        for rank in (4, 48):  # the step sizes of every layer are columns of what its projection gives
            dy, wide = torch.randn(2, 30, 64), torch.randn(2, 30, rank + 32)
            found = weight_gradient(dy, wide[..., :rank])
            assert relative_distance(found, torch.einsum("blo,bli->oi", dy, wide[..., :rank])) < 1e-5
        model = ToolMambaForCausalLM(ToolMambaConfig(vocab_size=40, hidden_size=64, num_hidden_layers=1)).train()
        ids = torch.randint(40, (2, 16))
        model(input_ids=ids, labels=ids).loss.backward()
    assert given.weights
    assert all(weight.is_contiguous() or weight.t().is_contiguous() for weight in given.weights)
