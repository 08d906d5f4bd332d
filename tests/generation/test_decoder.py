"""The fused step computes what the model computes, and stands aside where it would not."""

import copy

import pytest
import torch
from conftest import random_model, relative_distance
from hypothesis import given, settings
from hypothesis import strategies as st
from peft import LoraConfig, TrainableTokensConfig, get_peft_model
from torch import nn

from hf_toolssm.errors import UnsupportedGenerationError
from hf_toolssm.generation.decoder import FusedDecoder, ModelDecoder, StreamedDecoder, make_decoder
from hf_toolssm.generation.model_runner import ModelRunner

TOLERANCE = 3e-5


def decoders(model, batch, length):
    """The fused step and the model itself, in the same state."""
    runner = ModelRunner(model)
    state, _ = runner.feed(None, torch.randint(3, 20, (batch, length)).tolist())
    fused, plain = FusedDecoder(runner), ModelDecoder(runner)
    for decoder in (fused, plain):
        decoder.load(state)
    return fused, plain


def assert_step_equal(fused, plain, ids):
    for decoder in (fused, plain):
        decoder.step(ids)
    assert relative_distance(fused.logits(), plain.logits()) < TOLERANCE
    assert fused.greedy() == fused.logits().argmax(-1).tolist()


@settings(max_examples=25)
@given(
    seed=st.integers(0, 1_000),
    batch=st.integers(1, 5),
    kernel=st.integers(2, 5),
    width=st.sampled_from([8, 24, 48]),
    size=st.integers(1, 17),
    bias=st.booleans(),
)
def test_logits_and_state_equal_the_models(tokenizer, specs, seed, batch, kernel, width, size, bias):
    shape = {"hidden_size": width, "conv_kernel": kernel, "state_size": size, "use_bias": bias}
    model = random_model(tokenizer, specs, seed, **shape, use_conv_bias=not bias)
    fused, plain = decoders(model, batch, 6)
    generator = torch.Generator().manual_seed(seed)
    for _ in range(30):
        assert_step_equal(fused, plain, torch.randint(3, 20, (batch,), generator=generator).tolist())
    for decoder in (fused, plain):
        decoder.load(decoder.state().select([batch - 1, 0]))
    assert_step_equal(fused, plain, [3, 4])
    found, expected = fused.state(), plain.state()
    assert found.lengths == expected.lengths == [37, 37]
    for layer in range(2):
        for a, b in zip(found.cache.read(layer), expected.cache.read(layer)):
            assert a.shape == b.shape
            assert relative_distance(a, b) < TOLERANCE


@pytest.mark.usefixtures("two_threads")
def test_many_rows_share_the_threads_and_agree(tokenizer, specs):
    fused, plain = decoders(random_model(tokenizer, specs, hidden_size=64), 64, 3)
    assert_step_equal(fused, plain, list(range(3, 19)) * 4)


def test_a_model_of_any_size_on_a_cpu_is_compiled(model, monkeypatch):
    assert make_decoder(ModelRunner(model)).piece_from == 64
    monkeypatch.setattr("hf_toolssm.ops.compiled_step.FUSED_PARAMETERS", 0)
    assert make_decoder(ModelRunner(model)).piece_from == 4


@pytest.mark.parametrize("fused", [True, False])
def test_bfloat16_is_stepped_in_float32_on_the_rounded_weights(model, fused, monkeypatch):
    monkeypatch.setattr("hf_toolssm.ops.compiled_step.FUSED_PARAMETERS", 10**9 * fused)
    rounded = model.bfloat16()
    exact = copy.deepcopy(rounded).float()
    decoder, plain = make_decoder(ModelRunner(rounded)), ModelDecoder(ModelRunner(exact))
    assert isinstance(decoder, FusedDecoder if fused else StreamedDecoder)
    assert decoder.exact is fused  # a streamed step has no draft checked by a forward that rounds
    state, _ = ModelRunner(exact).feed(None, [[5, 6, 7]])
    for each in (decoder, plain):
        each.load(state)
    for token in (3, 9, 12):
        assert_step_equal(decoder, plain, [token])


def test_weights_in_eight_bits_are_near_and_only_on_request(model):
    _, plain = decoders(model, 2, 5)
    rounded = make_decoder(ModelRunner(model), "int8")
    rounded.load(plain.state())
    for decoder in (rounded, plain):
        decoder.step([3, 4])
    assert 1e-4 < relative_distance(rounded.logits(), plain.logits()) < 0.2
    assert not rounded.exact
    model.train()
    with pytest.raises(UnsupportedGenerationError, match="step_weights='int8' needs"):
        make_decoder(ModelRunner(model), "int8")


def grow(model):
    model.config.hidden_act = "gelu"


def wrap(model):
    model.backbone.layers[0].mixer.in_proj = nn.Sequential(model.backbone.layers[0].mixer.in_proj)


def hook(model):
    model.backbone.layers[1].register_forward_hook(lambda *_: None)


def adapt(*targets):
    def change(model):
        get_peft_model(model, LoraConfig(target_modules=list(targets)))

    return change


def tune_tokens(model):
    get_peft_model(model, TrainableTokensConfig(target_modules=["embeddings"], token_indices=[5, 6]))


@pytest.mark.parametrize("change", [tune_tokens, adapt("embeddings"), adapt("in_proj"), adapt("x_proj", "out_proj")])
def test_an_adapted_model_is_asked_itself(model, change):
    change(model)
    model.eval()
    assert isinstance(make_decoder(ModelRunner(model)), ModelDecoder)


def give_head_more_rows(model):
    model.lm_head = nn.Linear(model.config.hidden_size, model.config.vocab_size + 4, bias=False)


def cut_layers(model):
    model.backbone.layers = model.backbone.layers[:1]


CHANGES = [grow, wrap, hook, give_head_more_rows, cut_layers, nn.Module.half, nn.Module.train]


@pytest.mark.parametrize("change", CHANGES)
def test_a_changed_model_is_asked_itself(model, change):
    change(model)
    assert isinstance(make_decoder(ModelRunner(model)), ModelDecoder)
