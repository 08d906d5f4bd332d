"""Both compiled decode steps compute what the model computes: the fused one, and the one that streams the weights."""

import copy

import numpy as np
import pytest
import torch
from conftest import random_model, relative_distance
from hypothesis import given, settings
from hypothesis import strategies as st

from hf_toolssm.ops.fused_step import FusedState, FusedStep
from hf_toolssm.ops.memory_arrays import NO_MEMORIES
from hf_toolssm.ops.streamed_step import StreamedStep

TOLERANCE = 3e-5
STEPS = 30

shapes = st.fixed_dictionaries(
    {
        "hidden_size": st.sampled_from([8, 24, 72]),  # 72: more channels than one block, more work than one thread's
        "conv_kernel": st.integers(2, 5),
        "state_size": st.integers(1, 17),
        "use_bias": st.booleans(),
        "use_conv_bias": st.booleans(),
        "tie_word_embeddings": st.booleans(),
    }
)
seeds = st.integers(0, 1_000)


def zero_state(model, batch):
    config = model.config
    shape = (batch, config.num_hidden_layers)
    conv = np.zeros((*shape, config.conv_kernel, config.intermediate_size), np.float32)
    return conv, np.zeros((*shape, config.state_size, config.intermediate_size), np.float32)


def feed(step, state, ids, stands, lengths=None):
    """What `FusedStep` does with the first `lengths` of the tokens ids (b, m), which begin behind any choice."""
    lengths = np.full(len(ids), ids.shape[1]) if lengths is None else np.array(lengths)
    stands = stands.copy()
    stands[:, 0] = True
    return step(ids, stands, lengths, lengths, NO_MEMORIES, state)


def zero_fused(model, batch):
    vocabulary = model.config.vocab_size
    return FusedState(*zero_state(model, batch), np.zeros((batch, vocabulary), np.float32), np.zeros(batch, np.int64))


def rows_of(state, rows):
    """A copy of some rows of a `FusedState`."""
    return FusedState(*(array[rows].copy() for array in state))


def random_ids(batch, seed, steps=STEPS):
    return torch.randint(3, 20, (batch, steps), generator=torch.Generator().manual_seed(seed))


@torch.no_grad()
def forward(model, ids):
    """The logits (b, l, v) and the state (conv, recurrent) after the last, in the layout of the steps."""
    output = model(ids, use_cache=True)
    pairs = [output.cache_params.tensors(layer) for layer in range(model.config.num_hidden_layers)]
    return output.logits, [torch.stack([t.transpose(1, 2) for t in tensors], 1) for tensors in zip(*pairs)]


def assert_streams_as(expected_of, streamed, batch, seed, tolerance=TOLERANCE):
    """The streamed step agrees with a module's forward at every token, and on the state after the last."""
    ids = random_ids(batch, seed)
    expected, states = forward(expected_of, ids)
    found = zero_state(expected_of, batch)
    for t in range(STEPS):
        logits, best = streamed(ids[:, t].numpy(), *found)
        assert best.tolist() == logits.argmax(1).tolist()
        assert relative_distance(torch.from_numpy(logits), expected[:, t]) < tolerance
    for a, b in zip(found, states):
        assert relative_distance(torch.from_numpy(a), b) < tolerance


@settings(max_examples=25)
@given(seed=seeds, batch=st.integers(1, 5), shape=shapes)
def test_the_fused_step_equals_the_model_and_chooses_its_best(tokenizer, specs, seed, batch, shape):
    model = random_model(tokenizer, specs, seed, **shape)
    step = FusedStep(model)
    ids = random_ids(batch, seed)
    expected, states = forward(model, ids)
    found = zero_fused(model, batch)
    for t in range(STEPS):
        fed = feed(step, found, ids[:, t : t + 1].numpy().copy(), np.zeros((batch, 1), bool))
        assert fed.tolist() == [1] * batch
        assert relative_distance(torch.from_numpy(found.logits), expected[:, t]) < TOLERANCE
        assert found.best.tolist() == torch.from_numpy(found.logits).argmax(1).tolist()
    for a, b in zip((found.conv, found.recurrent), states):
        assert relative_distance(torch.from_numpy(a), b) < TOLERANCE


@settings(max_examples=25)
@given(seed=seeds, batch=st.integers(1, 40), data=st.data())
def test_a_draft_is_fed_up_to_the_first_token_that_the_model_would_not_choose(tokenizer, specs, seed, batch, data):
    """Each row's draft is the model's own greedy run, with observations in it and, in some rows, one wrong token."""
    model = random_model(tokenizer, specs, seed)
    step, together = FusedStep(model), zero_fused(model, batch)
    generator = torch.Generator().manual_seed(seed)
    ids, observed = np.zeros((batch, 12), np.int64), torch.rand(batch, 12, generator=generator).numpy() < 0.4
    lengths = [data.draw(st.integers(1, 12)) for _ in range(batch)]
    wrong = [data.draw(st.one_of(st.none(), st.integers(1, 11))) for _ in range(batch)]
    expected, alone = [], []
    for row in range(batch):
        state, token = rows_of(together, [row]), 5
        for t in range(lengths[row]):
            token = int(torch.randint(3, 20, (), generator=generator)) if t and observed[row, t] else token
            if t == wrong[row] and not observed[row, t]:
                ids[row, t] = (token + 1) % 20
                break
            ids[row, t] = token
            feed(step, state, np.array([[token]]), np.zeros((1, 1), bool))
            token = int(state.best[0])
        stop = wrong[row] is not None and wrong[row] < lengths[row] and not observed[row, wrong[row]]
        expected.append(wrong[row] if stop else lengths[row])
        alone.append(state)
    assert feed(step, together, ids, observed, lengths).tolist() == expected
    for row, state in enumerate(alone):
        for mine, theirs in zip(together, state):
            assert np.allclose(mine[row], theirs[0], atol=1e-4)


def test_of_equal_logits_the_first_is_the_best(model):
    with torch.no_grad():
        model.lm_head.weight[5:9] = 100 * model.lm_head.weight[4]  # four equal rows, which win or lose by far
    state = zero_fused(model, 16)
    feed(FusedStep(model), state, np.arange(3, 19)[:, None].copy(), np.zeros((16, 1), bool))
    assert 5 in state.best
    assert not set(state.best.tolist()) & {6, 7, 8}


@settings(max_examples=25)
@given(seed=seeds, batch=st.integers(1, 9), shape=shapes)
def test_streamed_float32_equals_the_model(tokenizer, specs, seed, batch, shape):
    model = random_model(tokenizer, specs, seed, **shape)
    assert_streams_as(model, StreamedStep(model), batch, seed)


@settings(max_examples=15)
@given(seed=seeds, batch=st.integers(1, 9), shape=shapes)
def test_streamed_bfloat16_equals_float32_on_the_rounded_weights(tokenizer, specs, seed, batch, shape):
    model = random_model(tokenizer, specs, seed, **shape).bfloat16()
    assert_streams_as(copy.deepcopy(model).float(), StreamedStep(model), batch, seed)


def round_rows(weight):
    scale = weight.abs().amax(1, keepdim=True) / 127
    return (weight / scale).round() * scale


@settings(max_examples=15)
@given(seed=seeds, batch=st.integers(1, 9), shape=shapes)
def test_streamed_int8_equals_float32_on_the_rounded_matrices(tokenizer, specs, seed, batch, shape):
    model = random_model(tokenizer, specs, seed, **shape | {"tie_word_embeddings": False})
    streamed = StreamedStep(model, weights="int8")
    for module in model.modules():
        if isinstance(module, torch.nn.Linear):
            module.weight.data = round_rows(module.weight.data)
    # The model's products of scale and integer are rounded themselves; a wrong scale or integer shows at 1e-2.
    assert_streams_as(model, streamed, batch, seed, tolerance=1e-4)


def test_the_streamed_step_reads_the_models_own_memory(model):
    step, before = StreamedStep(model), zero_state(model, 1)
    first, _ = step(np.array([3]), *before)
    with torch.no_grad():
        model.lm_head.weight.mul_(2)  # tied: the embeddings grow too, and the norms take that out again
    assert not np.allclose(step(np.array([3]), *zero_state(model, 1))[0], first)


def test_other_weights_are_refused_with_what_to_do(model):
    with pytest.raises(ValueError, match="load the model in float32 or bfloat16"):
        StreamedStep(model.half())
