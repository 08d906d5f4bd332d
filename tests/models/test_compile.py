"""`torch.compile` changes nothing: logits, states and gradients are the model's own, and so is what it generates."""

import copy
import shutil

import pytest
import torch
from conftest import random_model, relative_distance
from torch import nn

from hf_toolssm import RmtConfig, RmtForCausalLM, RnnConfig, RnnForCausalLM
from hf_toolssm.cache.cache_tensors import cache_tensors
from hf_toolssm.errors import UnsupportedArchitectureError
from hf_toolssm.generation.tool_loop import generate_with_tools
from hf_toolssm.models.tool_embeddings import add_tool_tokens_to_model
from hf_toolssm.ops.causal_convolution import causal_convolution
from hf_toolssm.ops.rms_norm import ToolMambaNorm
from hf_toolssm.ops.selective_scan import selective_scan

TOLERANCE = 1e-5
NEEDS_COMPILER = pytest.mark.skipif(shutil.which("c++") is None, reason="inductor writes C++")


@pytest.fixture(autouse=True)
def nothing_is_compiled_before():
    torch._dynamo.reset()


def make(name, tokenizer, specs, layers=1):
    if name == "tool_mamba":
        return random_model(tokenizer, specs, num_hidden_layers=layers)
    torch.manual_seed(0)
    shape = {"vocab_size": len(tokenizer), "hidden_size": 16, "num_hidden_layers": layers}
    if name == "rmt":
        rmt = {"num_attention_heads": 2, "intermediate_size": 32, "segment_length": 6, "num_memory_tokens": 2}
        model = RmtForCausalLM(RmtConfig(**shape, **rmt)).eval()
    else:
        model = RnnForCausalLM(RnnConfig(cell=name, **shape)).eval()
    add_tool_tokens_to_model(model, tokenizer, specs, trained_vocabulary=0)
    return model


def results(model, call, **mask):
    """Logits from nothing and from a state, the last state, and every gradient."""
    ids = torch.randint(3, 20, (2, 9), generator=torch.Generator().manual_seed(0))
    first = call(ids, use_cache=True, **mask)
    second = call(ids[:, :4], cache_params=first.cache_params, use_cache=True)
    model.zero_grad()
    second.logits.square().mean().backward()
    gradients = [parameter.grad for parameter in model.parameters()]
    return [first.logits, second.logits, *cache_tensors(second.cache_params).values(), *gradients]


def assert_compiled_is_equal(model, backend, **mask):
    plain, compiled = copy.deepcopy(model), torch.compile(model, backend=backend)
    for found, expected in zip(results(model, compiled, **mask), results(plain, plain, **mask)):
        assert relative_distance(found, expected) < TOLERANCE


def test_the_first_call_may_be_a_compiled_one(tokenizer, specs):
    assert_compiled_is_equal(make("tool_mamba", tokenizer, specs), "eager")


def test_what_cannot_be_exported_or_traced_is_said(tokenizer, specs):
    model, ids = make("tool_mamba", tokenizer, specs), torch.ones(1, 4, dtype=torch.int64)
    with pytest.raises(UnsupportedArchitectureError, match="cannot be traced or exported"):
        torch.export.export(model, (ids,), strict=False)
    with pytest.raises(UnsupportedArchitectureError, match="cannot be traced or exported"):
        torch.jit.trace(model, ids, strict=False)


@pytest.mark.slow  # Dynamo
@pytest.mark.parametrize("backend", ["eager", "aot_eager", pytest.param("inductor", marks=NEEDS_COMPILER)])
@pytest.mark.parametrize("name", ["tool_mamba", "lstm", "gru", "rmt"])
def test_every_backend_gives_what_the_model_gives(tokenizer, specs, name, backend):
    mask = torch.ones(2, 9, dtype=torch.int64)
    mask[0, :3], mask[1, 7:] = 0, 0
    model = make(name, tokenizer, specs)
    for training in (False, True):
        for padding in ({}, {"attention_mask": mask}):
            assert_compiled_is_equal(model.train(training), backend, **padding)


@pytest.mark.slow  # Dynamo
@torch._dynamo.config.patch(fail_on_recompile_limit_hit=True)
def test_layers_beyond_dynamos_limit_are_compiled_as_well(tokenizer, specs):
    model = make("tool_mamba", tokenizer, specs, layers=torch._dynamo.config.recompile_limit + 2)
    assert_compiled_is_equal(model, "eager")


def whole(model):
    return torch.compile(model, backend="eager")


def in_place(model):
    model.compile(backend="eager")
    return model


def its_forward(model):
    model.forward = torch.compile(model.forward, backend="eager")
    return model


@pytest.mark.slow  # Dynamo
@pytest.mark.parametrize("compiled", [whole, in_place, its_forward])
@pytest.mark.parametrize("name", ["tool_mamba", "lstm", "rmt"])
def test_a_compiled_model_generates_the_same_with_tools(tokenizer, specs, name, compiled):
    model = make(name, tokenizer, specs)
    problems = tokenizer(["7+5=", "123+4="], padding=True, return_tensors="pt")
    options = {"tools": specs, "tokenizer": tokenizer, "max_new_tokens": 20}
    expected = generate_with_tools(model, **problems, **options)
    assert torch.equal(generate_with_tools(compiled(model), **problems, **options), expected)


def scan(*tensors):
    return selective_scan(*tensors)[0] + 1


def convolve(x, weight):
    return causal_convolution(x, weight, None)[0] + 1


def test_the_kernels_are_whole_to_a_compiler():
    b, l, d, n = 2, 7, 8, 4  # noqa: E741, the symbols of the paper
    random = torch.Generator().manual_seed(0)
    x, dt, gate, B, C = (torch.randn(b, l, size, generator=random) for size in (d, d, d, n, n))
    A, D = -torch.rand(d, n, generator=random), torch.randn(d, generator=random)
    norm, weight = ToolMambaNorm(d), torch.randn(d, 4, generator=random)
    for function, inputs in ((scan, (x, dt, A, B, C, D, gate)), (convolve, (x, weight)), (nn.Sequential(norm), (x,))):
        found = torch.compile(function, backend="eager")(*inputs)
        assert relative_distance(found, function(*inputs)) < TOLERANCE
