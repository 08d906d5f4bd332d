"""Every architecture runs in the same loop, exactly: whole, in pieces, one by one, batched or alone."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from peft import LoraConfig, get_peft_model
from small_models import ARCHITECTURES, HYBRIDS, STOCK, lively, small_model, start_lively, written
from torch import nn
from transformers import GPT2Config, GPT2LMHeadModel
from transformers.modeling_outputs import CausalLMOutputWithPast

from hf_toolssm.cache.cache_tensors import cache_tensors
from hf_toolssm.cache.model_state import ModelState
from hf_toolssm.errors import UnsupportedArchitectureError
from hf_toolssm.generation.model_runner import ModelRunner, Prefill
from hf_toolssm.generation.tool_loop import generate_with_tools

TOLERANCE = 2e-4
MANY = [pytest.param(name, marks=pytest.mark.slow) for name in HYBRIDS]
PROBLEMS = ["7+5=", "98765+4321=", "1+1=", "500+500="]


def runs(seed, *lengths):
    generator = torch.Generator().manual_seed(seed)
    return [torch.randint(3, 20, (length,), generator=generator).tolist() for length in lengths]


def assert_equal(found, expected):
    assert found.lengths == expected.lengths
    assert expected.logits.abs().max() > 1
    assert (found.logits - expected.logits).abs().max() < TOLERANCE
    tensors = cache_tensors(expected.cache)
    for name, value in cache_tensors(found.cache).items():
        assert value.shape == tensors[name].shape
        assert (value - tensors[name]).abs().max() < TOLERANCE * tensors[name].abs().max().clamp(min=1), name


@pytest.mark.parametrize("name", [*STOCK, *MANY])
def test_how_a_model_takes_pieces_is_measured(tokenizer, specs, name):
    expected = STOCK[name][3] if name in STOCK else Prefill.TOKEN_BY_TOKEN if name == "zamba" else Prefill.PER_ROW
    assert ModelRunner(small_model(name, tokenizer, specs)).prefill is expected


@pytest.mark.parametrize("name", [*ARCHITECTURES, *MANY])
@settings(max_examples=8)
@given(seed=st.integers(0, 1_000), first=st.integers(1, 20), second=st.integers(1, 20), third=st.integers(1, 12))
def test_pieces_and_single_tokens_give_the_whole(tokenizer, specs, name, seed, first, second, third):
    runner = ModelRunner(small_model(name, tokenizer, specs, seed % 3))
    (run,) = runs(seed, first + second + third)
    whole, _ = runner.feed(None, [run])
    split, _ = runner.feed(None, [run[:first]])
    split, _ = runner.feed(split, [run[first : first + second]])
    split, _ = runner.feed(split, [run[first + second :]])
    assert_equal(split, whole)
    singly, _ = runner.feed(None, [run[:1]])
    for token in run[1:]:
        runner.step(singly, [token])
    assert_equal(singly, whole)


@pytest.mark.parametrize("name", [*ARCHITECTURES, *MANY])
@settings(max_examples=8)
@given(seed=st.integers(0, 1_000), lengths=st.lists(st.integers(1, 15), min_size=2, max_size=4))
def test_rows_of_unequal_length_step_together_as_they_do_alone(tokenizer, specs, name, seed, lengths):
    runner = ModelRunner(small_model(name, tokenizer, specs, seed % 3))
    prompts = runs(seed, *lengths)
    together, _ = runner.feed(None, prompts)
    steps = runs(seed + 1, *[10] * len(lengths))
    for at in range(10):
        runner.step(together, [row[at] for row in steps])
    more = runs(seed + 2, *(1 + length % 5 for length in lengths))
    together, _ = runner.feed(together, more)
    for row in range(len(lengths)):
        alone, _ = runner.feed(None, [[*prompts[row], *steps[row], *more[row]]])
        assert_equal(together.select([row]), alone)


@pytest.mark.parametrize("name", [*ARCHITECTURES, *MANY])
def test_rows_are_selected_reordered_forked_and_joined(tokenizer, specs, name):
    runner = ModelRunner(small_model(name, tokenizer, specs))
    prompts, more = runs(0, 12, 3, 9), runs(1, 4, 2, 4, 3)
    state, _ = runner.feed(None, prompts)
    picked = state.select([2, 0, 2])
    joined = ModelState.concatenate([state.select([1]), picked])  # the rows 1, 2, 0, 2
    after, _ = runner.feed(joined, more)
    for at, row in enumerate([1, 2, 0, 2]):
        alone, _ = runner.feed(None, [prompts[row] + more[at]])
        assert_equal(after.select([at]), alone)
    replaced = state.replace_rows([1], picked.select([1]))  # the rows 0, 0, 2
    after, _ = runner.feed(replaced, more[:3])
    for at, row in enumerate([0, 0, 2]):
        alone, _ = runner.feed(None, [prompts[row] + more[at]])
        assert_equal(after.select([at]), alone)


@pytest.mark.parametrize("name", [*ARCHITECTURES, *MANY])
def test_a_batch_generates_as_its_rows_alone(tokenizer, specs, name):
    model = lively(small_model(name, tokenizer, specs), tokenizer)

    def generate(*problems):
        options = {"tools": specs, "end_ids": [tokenizer.eos_token_id]}
        session = start_lively(model, tokenizer, problems, **options)
        return session, written(session, 30)

    together, tokens = generate(*PROBLEMS)
    assert sum(map(len, tokens)) > 100
    for row in (0, 1):  # a short prompt and the longest
        alone, (expected,) = generate(PROBLEMS[row])
        assert tokens[row] == expected
        assert alone.rows[0].answer == together.rows[row].answer
        assert_equal(together.state.select([row]), alone.state)


@pytest.mark.parametrize("name", [*STOCK, *MANY])
def test_generate_with_tools_takes_any_model(tokenizer, specs, name):
    model = small_model(name, tokenizer, specs)
    inputs = tokenizer(["7+5=", "123+4="], padding=True, return_tensors="pt")
    result = generate_with_tools(
        model, **inputs, tools=specs, tokenizer=tokenizer, max_new_tokens=25, return_dict_in_generate=True
    )
    assert result.sequences.shape[0] == 2
    assert len(result.answers) == 2


@pytest.mark.parametrize(
    ("name", "why"),
    [
        ("minimax", "MiniMaxCache keeps linear_cache beside its layers"),
        ("recurrent_gemma", "not a transformers Cache"),
        ("rwkv", "neither cache_params nor past_key_values"),
    ],
)
def test_a_model_whose_memory_cannot_be_copied_is_refused(tokenizer, specs, name, why):
    with pytest.raises(UnsupportedArchitectureError, match=why):
        ModelRunner(small_model(name, tokenizer, specs))


@pytest.mark.parametrize("name", ["mamba", "falcon_mamba"])
def test_a_state_that_is_soon_forgotten_is_still_missed(tokenizer, specs, name):
    """With large steps the lost state has decayed by the end of a long piece, but shows at its beginning."""
    model = small_model(name, tokenizer, specs)
    with torch.no_grad():
        for parameter_name, parameter in model.named_parameters():
            if parameter_name.endswith("dt_proj.bias"):
                parameter.fill_(2)
    assert ModelRunner(model).prefill is Prefill.TOKEN_BY_TOKEN


def test_jamba_in_bfloat16_is_fed_singly_too(tokenizer, specs):
    assert ModelRunner(small_model("jamba", tokenizer, specs).bfloat16()).prefill is Prefill.TOKEN_BY_TOKEN


def test_a_peft_wrapper_is_refused_with_what_to_pass(tokenizer, specs):
    wrapped = get_peft_model(small_model("tool_mamba", tokenizer, specs), LoraConfig(target_modules=["in_proj"]))
    with pytest.raises(UnsupportedArchitectureError, match="get_base_model"):
        ModelRunner(wrapped)
    assert ModelRunner(wrapped.get_base_model()).prefill is Prefill.BATCHED


def test_a_model_that_is_wrong_one_token_at_a_time_is_refused(tokenizer, specs):
    model = small_model("gpt_neox", tokenizer, specs)
    forward = model.forward

    def forgetful(input_ids, past_key_values=None, use_cache=True, logits_to_keep=0, return_dict=True, **_):
        return forward(input_ids, use_cache=use_cache, logits_to_keep=logits_to_keep, return_dict=return_dict)

    model.forward = forgetful
    with pytest.raises(UnsupportedArchitectureError, match="one at a time"):
        ModelRunner(model)


def test_a_model_without_a_cache_is_refused(tokenizer):
    class Uncached(nn.Module):
        def forward(self, input_ids):
            return CausalLMOutputWithPast()

    with pytest.raises(UnsupportedArchitectureError, match="neither cache_params nor past_key_values"):
        ModelRunner(Uncached())


def test_learned_positions_are_exact_too(tokenizer):
    """GPT-2's positions are absolute: a short row beside a long one must keep its own."""
    torch.manual_seed(0)
    config = GPT2Config(vocab_size=30, n_embd=32, n_layer=2, n_head=4, n_positions=64)
    model = GPT2LMHeadModel(config).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter += 0.3 * torch.randn_like(parameter)
    runner = ModelRunner(model)
    assert runner.prefill is Prefill.PER_ROW
    prompts = runs(0, 11, 2)
    together, _ = runner.feed(None, prompts)
    runner.step(together, [5, 6])
    alone, _ = runner.feed(None, [[*prompts[1], 6]])
    assert_equal(together.select([1]), alone)
