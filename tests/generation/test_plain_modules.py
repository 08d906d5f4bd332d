"""What is put around a module, or in place of its weights, acts wherever a fast path would read the weights itself."""

import copy
import types

import pytest
import torch
from accelerate import Accelerator
from accelerate.hooks import ModelHook, add_hook_to_module, remove_hook_from_module
from accelerate.state import AcceleratorState
from conftest import random_model, relative_distance
from small_models import small_model
from torch import Tensor, nn
from torch.nn.utils import parametrize, prune

from hf_toolssm.generation.decoder import FusedDecoder, ModelDecoder, make_decoder
from hf_toolssm.generation.model_runner import ModelRunner
from hf_toolssm.generation.session import Session
from hf_toolssm.generation.tool_loop import generate_with_tools

TOLERANCE = 1e-5

MIXER = "backbone.layers.0.mixer"
PROJECTIONS = [f"{MIXER}.{name}" for name in ("in_proj", "x_proj", "dt_proj", "out_proj")]
WEIGHTED = [*PROJECTIONS, f"{MIXER}.conv1d", "backbone.layers.0.norm", "backbone.norm_f", "lm_head"]
"""Modules of a ToolMamba whose output doubles when their weights do."""

MODULES = [
    *(("tool_mamba", path) for path in [*WEIGHTED, MIXER, f"{MIXER}.act", "backbone.layers.0", "backbone", ""]),
    *(("tool_mamba", "backbone.embeddings"), ("lstm", "backbone.layers.0.cell"), ("gru", "backbone.layers.1.cell")),
    *(("lstm", "backbone.layers.1"), ("rmt", "backbone.layers.0"), ("rmt", "backbone.layers.0.self_attn")),
    *(("rmt", "backbone.layers.0.self_attn.out_proj"), ("rmt", "backbone.layers.1.linear1"), ("rmt", "lm_head")),
]


@pytest.fixture(autouse=True)
def every_product_is_worth_it(monkeypatch):
    monkeypatch.setattr("hf_toolssm.ops.projection.FEWEST_PRODUCTS", 0)


def results(model):
    """The logits of padded rows, and of the same rows behind the state that they leave."""
    generator = torch.Generator().manual_seed(0)
    ids, mask = torch.randint(3, 20, (3, 14), generator=generator), torch.ones(3, 14, dtype=torch.int64)
    mask[0, :5], mask[1, 9:] = 0, 0
    first = model(ids, attention_mask=mask, use_cache=True)
    second = model(ids, attention_mask=mask, cache_params=first.cache_params, use_cache=True)
    return torch.cat([output.logits[mask.bool()] for output in (first, second)])


def doubled(output):
    if isinstance(output, Tensor):
        return 2 * output
    if isinstance(output, tuple):
        return (2 * output[0], *output[1:])
    name = next(iter(output))  # the logits or the last hidden state
    output[name] = 2 * output[name]
    return output


def by_class(module):
    """Not plain by the first thing that anyone looks at."""
    kind = type(module)
    body = {"forward": lambda self, *args, **kwargs: doubled(kind.forward(self, *args, **kwargs))}
    module.__class__ = type(f"Doubled{kind.__name__}", (kind,), body)


def by_hook(module):
    module.register_forward_hook(lambda _, args, output: doubled(output))


def by_forward(module):
    own = module.forward
    module.forward = lambda *args, **kwargs: doubled(own(*args, **kwargs))


def by_accelerate(module):
    class Doubling(ModelHook):
        def post_forward(self, module, output):
            return doubled(output)

    add_hook_to_module(module, Doubling())


@pytest.mark.parametrize("change", [by_hook, by_forward, by_accelerate])
@pytest.mark.parametrize(("name", "path"), MODULES)
@torch.no_grad()
def test_what_changes_a_modules_output_acts(tokenizer, specs, name, path, change):
    plain, expected, changed = (small_model(name, tokenizer, specs) for _ in range(3))
    by_class(expected.get_submodule(path))
    change(changed.get_submodule(path))
    assert relative_distance(results(expected), results(plain)) > 1e-3
    assert relative_distance(results(changed), results(expected)) < TOLERANCE


@pytest.mark.parametrize("path", WEIGHTED)
@torch.no_grad()
def test_a_module_that_is_called_gives_what_its_weights_say(tokenizer, specs, path):
    called, weighed = (random_model(tokenizer, specs, tie_word_embeddings=False) for _ in range(2))
    by_hook(called.get_submodule(path))
    for parameter in weighed.get_submodule(path).parameters():
        parameter *= 2
    assert relative_distance(results(called), results(weighed)) < TOLERANCE


@pytest.mark.parametrize("change", [by_hook, by_forward])
@pytest.mark.parametrize("path", [PROJECTIONS[0], f"{MIXER}.conv1d", f"{MIXER}.act", "backbone.layers.0", ""])
@torch.no_grad()
def test_generation_with_tools_hears_it_as_a_forward_does(model, tokenizer, path, change):
    problems = tokenizer(["7+5=", "123+4="], padding=True, return_tensors="pt")
    plain = model.generate(**problems, max_new_tokens=30)
    change(model.get_submodule(path))
    if path == "":  # twice the logits have the same maxima
        own = model.forward
        model.forward = lambda *args, **kwargs: turned(own(*args, **kwargs))
    assert isinstance(make_decoder(ModelRunner(model)), ModelDecoder)
    found = model.generate(**problems, max_new_tokens=30, return_dict_in_generate=True)
    assert not torch.equal(found.sequences, plain)
    for row, prompt in enumerate((["7+5="], ["123+4="])):
        ids = tokenizer(prompt, return_tensors="pt")["input_ids"]
        width = problems["input_ids"].shape[1]
        written, observed = found.sequences[row, width:], found.observation_mask[row, width:].bool()
        choices = model(torch.cat([ids[0], written])[None]).logits[0].argmax(-1)[ids.shape[1] - 1 : -1]
        stands = ~observed & (written != tokenizer.pad_token_id)
        assert stands.any()
        assert torch.equal(written[stands], choices[stands])


def turned(output):
    output.logits = -output.logits
    return output


class EightBits(Tensor):
    """A weight that only calls can read, as quantized ones are: int8 with a scale, and no memory of its own."""

    @staticmethod
    def __new__(cls, weight):
        return Tensor._make_wrapper_subclass(cls, weight.shape, dtype=weight.dtype, device=weight.device)

    def __init__(self, weight):
        self.scale = weight.abs().max() / 127
        self.steps = (weight / self.scale).round().to(torch.int8)

    def exact(self):
        return self.steps.float() * self.scale

    @classmethod
    def __torch_dispatch__(cls, function, kinds, args=(), kwargs=None):
        if function is torch.ops.aten.detach.default:
            return args[0]
        args, kwargs = torch.utils._pytree.tree_map_only(EightBits, EightBits.exact, (args, kwargs or {}))
        return function(*args, **kwargs)


@pytest.mark.parametrize("path", [*WEIGHTED, "backbone.embeddings"])
@torch.no_grad()
def test_a_weight_that_only_calls_can_read_is_left_to_them(tokenizer, specs, path):
    quantized, expected = (random_model(tokenizer, specs, tie_word_embeddings=False) for _ in range(2))
    weight = EightBits(expected.get_submodule(path).weight)
    quantized.get_submodule(path).weight = nn.Parameter(weight, requires_grad=False)
    expected.get_submodule(path).weight.copy_(weight.exact())
    assert relative_distance(results(quantized), results(expected)) < TOLERANCE
    problem = tokenizer(["7+5="], return_tensors="pt")
    tokens = [model.generate(**problem, max_new_tokens=20) for model in (quantized, expected)]
    assert torch.equal(*tokens)


class Doubling(nn.Module):
    def forward(self, weight):
        return 2 * weight


def by_parametrization(module):
    parametrize.register_parametrization(module, "weight", Doubling())


def by_pruning(module):
    prune.identity(module, "weight")
    module.weight_orig.data *= 2


def by_weight_norm(module):
    nn.utils.parametrizations.weight_norm(module)
    module.parametrizations.weight.original0.data *= 2


@pytest.mark.parametrize("change", [by_parametrization, by_pruning, by_weight_norm])
@pytest.mark.parametrize("path", [*PROJECTIONS, f"{MIXER}.conv1d", "lm_head"])
def test_weights_that_are_computed_at_a_call_act_and_train(tokenizer, specs, path, change):
    computed, expected = (random_model(tokenizer, specs, tie_word_embeddings=False) for _ in range(2))
    change(computed.get_submodule(path))
    expected.get_submodule(path).weight.data *= 2
    gradients = []
    for model in (computed, expected):
        result = results(model)
        gradients.append(torch.autograd.grad(result.square().sum(), model.backbone.embeddings.weight)[0])
    assert relative_distance(results(computed), results(expected)) < TOLERANCE
    assert relative_distance(*gradients) < TOLERANCE
    problem = tokenizer(["7+5="], return_tensors="pt")
    tokens = [model.generate(**problem, max_new_tokens=20) for model in (computed, expected)]
    assert torch.equal(*tokens)


@pytest.mark.parametrize("path", [f"{MIXER}.x_proj", "lm_head"])
@torch.no_grad()
def test_a_layer_with_another_bias_than_the_architecture_has_is_called(tokenizer, specs, path):
    model, expected = (random_model(tokenizer, specs) for _ in range(2))
    layer = model.get_submodule(path)
    layer.bias = nn.Parameter(torch.linspace(-3, 3, layer.out_features))
    by_class(expected.get_submodule(path))
    expected.get_submodule(path).forward = lambda x: nn.functional.linear(x, layer.weight, layer.bias)
    assert relative_distance(results(model), results(expected)) < TOLERANCE
    problem = tokenizer(["7+5="], return_tensors="pt")
    assert torch.equal(*(each.generate(**problem, max_new_tokens=20) for each in (model, expected)))


def test_a_model_whose_hooks_were_taken_off_again_is_compiled(model):
    for module in model.modules():
        add_hook_to_module(module, ModelHook())
    assert isinstance(make_decoder(ModelRunner(model)), ModelDecoder)
    remove_hook_from_module(model, recurse=True)
    assert "forward" in vars(model)
    assert isinstance(make_decoder(ModelRunner(model)), FusedDecoder)


@pytest.fixture
def fresh_accelerator():
    """accelerate keeps the precision of a process's first Accelerator, which another test's training may have made."""
    AcceleratorState._reset_state(reset_partial_state=True)
    yield
    AcceleratorState._reset_state(reset_partial_state=True)


def test_the_mixed_precision_of_training_is_no_other_model(model, fresh_accelerator):
    """Its forward is the model's in bfloat16, and a compiled step takes all models without rounding."""
    prepared = Accelerator(mixed_precision="bf16", cpu=True).prepare(copy.deepcopy(model))
    assert "forward" in vars(prepared)
    assert isinstance(make_decoder(ModelRunner(prepared)), FusedDecoder)
    own = prepared.forward
    prepared.forward = types.MethodType(lambda self, *args, **kwargs: own(*args, **kwargs), prepared)
    assert isinstance(make_decoder(ModelRunner(prepared)), ModelDecoder)


@pytest.mark.parametrize("training", [False, True])
def test_autocast_reaches_products_of_any_size(model, training, monkeypatch):
    """Whether a product is large enough for oneDNN decides about speed, and not about dtypes."""
    exact = results(model).detach()
    model.train(training)
    found = []
    for fewest in (0, 20_000, 10**9):
        monkeypatch.setattr("hf_toolssm.ops.projection.FEWEST_PRODUCTS", fewest)
        with torch.autocast("cpu", torch.bfloat16):
            found.append(results(model))
        found[-1].square().sum().backward()
    assert 1e-4 < relative_distance(found[0], exact) < 0.1
    assert all(torch.equal(each, found[0]) for each in found)


@pytest.mark.parametrize("default", [torch.float64, torch.bfloat16])
@pytest.mark.parametrize("name", ["tool_mamba", "lstm", "gru", "rmt"])
def test_called_modules_compute_in_the_models_dtype_whatever_the_default(tokenizer, specs, name, default):
    exact = small_model(name, tokenizer, specs)
    expected = results(exact).detach()
    for dtype, tolerance in ((torch.float16, 0.02), (torch.bfloat16, 0.1), (torch.float64, TOLERANCE)):
        model = copy.deepcopy(exact).to(dtype)
        for module in model.modules():
            module.register_forward_hook(lambda *_: None)
        torch.set_default_dtype(default)
        try:
            found = results(model)
            found.square().sum().backward()
        finally:
            torch.set_default_dtype(torch.float32)
        assert relative_distance(found, expected) < tolerance
        assert all(parameter.grad.isfinite().all() for parameter in model.parameters())


def offloaded(model, folder, device_map):
    model.save_pretrained(folder / "model")
    found = type(model).from_pretrained(folder / "model", device_map=device_map, offload_folder=folder / "offload")
    assert any(parameter.is_meta for parameter in found.parameters())
    return found


def with_layer_on_disk(model):
    names = [name for name, _ in [*model.backbone.named_children(), *model.backbone.named_parameters(recurse=False)]]
    on_cpu = {f"backbone.{name}": "cpu" for name in names if name != "layers"}
    return {**on_cpu, "lm_head": "cpu", "backbone.layers.0": "cpu", "backbone.layers.1": "disk"}


@pytest.mark.parametrize("device_map", [with_layer_on_disk, lambda model: {"": "disk"}], ids=["layer", "whole"])
@pytest.mark.parametrize("name", ["tool_mamba", "lstm", "gru", "rmt"])
@torch.no_grad()
def test_a_model_whose_weights_wait_on_disk_is_the_same(tokenizer, specs, name, device_map, tmp_path):
    model = small_model(name, tokenizer, specs)
    found = offloaded(model, tmp_path, device_map(model))
    assert relative_distance(results(found), results(model)) < TOLERANCE
    problems = tokenizer(["7+5=", "123+4="], padding=True, return_tensors="pt")
    options = {"tools": specs, "tokenizer": tokenizer, "max_new_tokens": 20}
    assert torch.equal(*(generate_with_tools(each, **problems, **options) for each in (found, model)))

    session = Session.start(found, tokenizer(["7+5="])["input_ids"], tools=specs, tokenizer=tokenizer)
    session.run(3)
    session.save(tmp_path / "session")
    again = Session.load(tmp_path / "session", model, tools=specs, tokenizer=tokenizer)  # offloaded or not
    for each in (session, again):
        each.run(5)
    assert session.state.lengths == again.state.lengths
    assert relative_distance(session.state.logits, again.state.logits) < TOLERANCE
