"""The recurrent memory transformer keeps an exact state, and nothing but its memory passes from segment to segment."""

import pytest
import torch
from conftest import relative_distance
from hypothesis import given, settings
from hypothesis import strategies as st

from hf_toolssm import RmtConfig, RmtForCausalLM
from hf_toolssm.models.modeling_rmt import RmtState

VOCABULARY, SEGMENT, TOLERANCE = 30, 6, 1e-4


@pytest.fixture(scope="module")
def rmt():
    torch.manual_seed(0)
    shape = {"hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 32}
    config = RmtConfig(vocab_size=VOCABULARY, segment_length=SEGMENT, num_memory_tokens=2, **shape)
    model = RmtForCausalLM(config).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter += 0.3 * torch.randn_like(parameter)
    return model


def tokens(batch, length, seed=0):
    return torch.randint(3, VOCABULARY, (batch, length), generator=torch.Generator().manual_seed(seed))


@settings(max_examples=15)
@given(pieces=st.lists(st.integers(1, 15), min_size=1, max_size=4), seed=st.integers(0, 1_000))
@torch.no_grad()
def test_any_pieces_give_the_whole(rmt, pieces, seed):
    ids = tokens(2, sum(pieces), seed)
    whole, state = rmt(ids).logits, RmtState(rmt.config)
    split = torch.cat([rmt(piece, cache_params=state).logits for piece in ids.split(pieces, dim=1)], dim=1)
    assert relative_distance(split, whole) < TOLERANCE


@torch.no_grad()
def test_padding_on_either_side_changes_nothing(rmt):
    ids = tokens(2, 20)
    mask = torch.ones(2, 20, dtype=torch.int64)
    mask[0, :7] = 0
    mask[1, 15:] = 0
    padded = rmt(ids, attention_mask=mask).logits
    assert relative_distance(padded[:1, 7:], rmt(ids[:1, 7:]).logits) < TOLERANCE
    assert relative_distance(padded[1:, :15], rmt(ids[1:, :15]).logits) < TOLERANCE


@torch.no_grad()
def test_the_past_acts_through_the_memory_alone(rmt):
    one, other = tokens(1, SEGMENT, 1), tokens(1, SEGMENT, 2)
    states = []
    for past in (one, other):
        state = RmtState(rmt.config)
        rmt(past, cache_params=state)
        states.append(state)
    future = tokens(1, 3, 3)
    first, second = (rmt(future, cache_params=state.clone()).logits for state in states)
    assert relative_distance(first, second) > 1e-3
    packed = [state.layers[0].recurrent_states[0] for state in states]
    memory = rmt.config.num_memory_tokens * rmt.config.hidden_size
    assert torch.equal(packed[0][:, memory:], packed[1][:, memory:])  # no token of the full segment is kept
    packed[1][:, :memory] = packed[0][:, :memory]
    assert relative_distance(rmt(future, cache_params=states[1]).logits, first) < TOLERANCE


def test_gradients_flow_through_the_memory(rmt):
    ids = tokens(1, 3 * SEGMENT)
    embeddings = rmt.get_input_embeddings().weight
    (gradient,) = torch.autograd.grad(rmt(ids).logits[0, -1].sum(), embeddings)
    early = set(ids[0, :SEGMENT].tolist()) - set(ids[0, SEGMENT:].tolist())
    # The embedding is the head as well, which every token's row gets the same gradient from.
    unseen = next(token for token in range(3, VOCABULARY) if token not in ids)
    assert all((gradient[token] - gradient[unseen]).abs().max() > 1e-6 for token in early)


@torch.no_grad()
def test_transformers_own_generate_is_greedy_over_whole_forwards(rmt):
    ids = tokens(2, 9)
    expected = ids
    for _ in range(8):
        expected = torch.cat([expected, rmt(expected).logits[:, -1].argmax(-1)[:, None]], dim=1)
    found = rmt.generate(ids, max_new_tokens=8, do_sample=False, eos_token_id=None, pad_token_id=0)
    assert torch.equal(found, expected)
