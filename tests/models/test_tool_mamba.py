"""ToolMamba is Mamba, and its state is exact: whole, in pieces, one by one, padded or not."""

import pytest
import torch
from conftest import random_model
from hypothesis import given, settings
from hypothesis import strategies as st
from transformers import AutoConfig, AutoModelForCausalLM, GPT2Config, GPT2LMHeadModel, MambaConfig, MambaForCausalLM

from hf_toolssm import MambaState, ToolMambaConfig, ToolMambaForCausalLM
from hf_toolssm.errors import (
    ArchitectureMismatchError,
    MissingToolTokensError,
    PaddingError,
    StateMismatchError,
    UnknownToolError,
)
from hf_toolssm.models.tool_embeddings import add_tool_tokens_to_model
from hf_toolssm.protocol.special_tokens import add_tool_tokens
from hf_toolssm.protocol.task_tokenizer import build_task_tokenizer
from hf_toolssm.tools import make_tool

TOLERANCE = 1e-4


def tokens(model, batch, length, seed=0):
    generator = torch.Generator().manual_seed(seed)
    return torch.randint(3, model.config.vocab_size, (batch, length), generator=generator)


def distance(one, other):
    """The largest difference between two states, over all layers."""
    pairs = [(one.read(layer), other.read(layer)) for layer in range(len(one.layers))]
    return max((a - b).abs().max().item() for pair in pairs for a, b in zip(*pair))


@torch.no_grad()
def feed(model, *pieces, state=None):
    """Feeds pieces in turn; returns the logits of all and the final state."""
    state = MambaState(model.config) if state is None else state
    return torch.cat([model(p, cache_params=state, use_cache=True).logits for p in pieces], dim=1), state


@torch.no_grad()
def test_a_plain_mamba_checkpoint_loads_and_gives_the_same_logits(tmp_path):
    torch.manual_seed(0)
    config = MambaConfig(vocab_size=50, hidden_size=32, num_hidden_layers=3, state_size=8, use_bias=True)
    stock = MambaForCausalLM(config).eval()
    for parameter in stock.parameters():
        parameter += 0.3 * torch.randn_like(parameter)
    stock.save_pretrained(tmp_path)
    ours = ToolMambaForCausalLM.from_pretrained(tmp_path).eval()
    ids = tokens(stock, 3, 70)
    expected = stock(ids, use_cache=True)
    found = ours(ids, use_cache=True)
    largest = expected.logits.abs().max()
    assert largest > 5
    assert (found.logits - expected.logits).abs().max() < TOLERANCE * largest
    for layer in range(3):
        theirs = expected.cache_params.layers[layer]
        for a, b in zip(found.cache_params.read(layer), (theirs.conv_states[0], theirs.recurrent_states[0])):
            assert (a - b).abs().max() < TOLERANCE
    assert torch.equal(ours.generate(ids, max_new_tokens=20), stock.generate(ids, max_new_tokens=20))


@settings(max_examples=60)
@given(
    pieces=st.lists(st.integers(1, 25), min_size=1, max_size=8),
    batch=st.integers(1, 3),
    kernel=st.integers(2, 5),
    seed=st.integers(0, 10_000),
)
def test_any_pieces_give_the_logits_and_the_state_of_the_whole(tokenizer, specs, pieces, batch, kernel, seed):
    model = random_model(tokenizer, specs, seed, conv_kernel=kernel)
    ids = tokens(model, batch, sum(pieces), seed)
    whole, state = feed(model, ids)
    split, split_state = feed(model, *ids.split(pieces, dim=1))
    assert (split - whole).abs().max() < TOLERANCE
    assert distance(split_state, state) < TOLERANCE
    single, single_state = feed(model, *ids.split(1, dim=1))
    assert (single - whole).abs().max() < TOLERANCE
    assert distance(single_state, state) < TOLERANCE


def test_weights_of_these_tests_are_not_too_small_to_show_an_error(model):
    assert feed(model, tokens(model, 4, 60))[0].abs().max() > 5


@settings(max_examples=30)
@given(
    lengths=st.lists(st.integers(0, 12), min_size=1, max_size=4),
    left=st.lists(st.booleans(), min_size=4, max_size=4),
    seed=st.integers(0, 1_000),
)
def test_padding_on_either_side_changes_nothing_even_behind_a_state(tokenizer, specs, lengths, left, seed):
    model = random_model(tokenizer, specs, seed)
    width = max(1, *lengths)
    ids, mask = tokens(model, len(lengths), width, seed), torch.zeros(len(lengths), width, dtype=torch.long)
    before = tokens(model, len(lengths), 9, seed + 1)
    for row, (length, on_the_left) in enumerate(zip(lengths, left)):
        mask[row, (width - length if on_the_left else 0) : (width if on_the_left else length)] = 1
    _, state = feed(model, before)
    with torch.no_grad():
        padded = model(ids, attention_mask=mask, cache_params=state, use_cache=True)
    for row in range(len(lengths)):
        keep = mask[row].bool()
        solo_logits, solo = feed(model, before[row : row + 1], ids[row, keep][None])
        assert distance(padded.cache_params.select([row]), solo) < TOLERANCE
        if keep.any():
            assert (padded.logits[row, keep] - solo_logits[0, 9:]).abs().max() < TOLERANCE


@pytest.mark.parametrize("padded", [False, True])
def test_the_result_is_a_tuple_only_when_asked(model, padded):
    ids, mask = tokens(model, 2, 6), torch.ones(2, 6, dtype=torch.long)
    mask[0, :2] = int(not padded)
    for asked in (None, True):
        output = model.backbone(ids, attention_mask=mask, return_dict=asked, output_hidden_states=True)
        assert len(output.hidden_states) == 3
    as_tuple = model.backbone(ids, attention_mask=mask, return_dict=False, output_hidden_states=True)
    assert torch.equal(as_tuple[0], output.last_hidden_state)


def test_padding_inside_a_row_is_refused(model):
    mask = torch.tensor([[1, 1, 0, 1]])
    with pytest.raises(PaddingError, match="between its tokens"):
        model(tokens(model, 1, 4), attention_mask=mask)


def test_a_state_is_a_value(model):
    ids, more = tokens(model, 3, 20), tokens(model, 3, 5, seed=1)
    _, state = feed(model, ids)
    snapshot = state.clone()
    after, _ = feed(model, more, state=state)
    assert distance(snapshot, state) > 0.01
    again, _ = feed(model, more, state=snapshot)
    assert torch.equal(after, again)


def test_rows_can_be_selected_forked_and_joined(model):
    ids, more = tokens(model, 3, 20), tokens(model, 3, 5, seed=1)
    _, state = feed(model, ids)
    picked, _ = feed(model, more[[2, 0, 2]], state=state.select([2, 0, 2]))
    straight, _ = feed(model, more, state=state.clone())
    assert (picked - straight[[2, 0, 2]]).abs().max() < TOLERANCE
    joined = MambaState.concatenate([state.select([0]), state.select(torch.tensor([False, True, True]))])
    assert distance(joined, state) == 0
    assert joined.batch_size == 3
    assert state.select([]).batch_size == 0


def test_a_state_goes_through_named_tensors(model):
    _, state = feed(model, tokens(model, 2, 20))
    assert distance(MambaState.from_tensors(model.config, state.to_tensors()), state) == 0
    assert MambaState(model.config).to_tensors() == {}


def test_a_state_of_another_model_is_refused(model, tokenizer, specs):
    _, state = feed(model, tokens(model, 1, 5))
    deeper = random_model(tokenizer, specs, num_hidden_layers=3)
    with pytest.raises(StateMismatchError, match="2 layers and the model 3"):
        MambaState.from_tensors(deeper.config, state.to_tensors())


def test_gradients_flow_through_a_carried_state(model):
    ids = tokens(model, 2, 30)

    def gradient(*pieces):
        model.zero_grad()
        state = MambaState(model.config)
        loss = [model(p, cache_params=state).logits for p in pieces][-1][:, -1].square().sum()
        loss.backward()
        return torch.cat([p.grad.flatten() for p in model.parameters()])

    whole, split = gradient(ids), gradient(*ids.split([7, 20, 3], dim=1))
    assert ((whole - split).abs().max() / whole.abs().max()) < TOLERANCE


def test_a_detached_state_stops_gradients(model):
    state = MambaState(model.config)
    model(tokens(model, 1, 5), cache_params=state)
    assert state.read(0)[1].requires_grad
    assert not state.detach().read(0)[1].requires_grad


def test_a_checkpoint_of_another_architecture_is_refused(tmp_path):
    GPT2LMHeadModel(GPT2Config(n_layer=1, n_embd=16, n_head=2, vocab_size=20)).save_pretrained(tmp_path)
    with pytest.raises(ArchitectureMismatchError, match="model_type is 'gpt2'.*only Mamba"):
        ToolMambaForCausalLM.from_pretrained(tmp_path)


def test_a_checkpoint_that_does_not_say_what_it_is_is_refused(tmp_path):
    (tmp_path / "config.json").write_text('{"hidden_size": 768, "vocab_size": 50280}', encoding="utf-8")
    with pytest.raises(ArchitectureMismatchError, match="model_type is None.*transformers' format"):
        ToolMambaForCausalLM.from_pretrained(tmp_path)


@pytest.mark.parametrize(
    ("tools", "error", "message"),
    [
        ([{"name": "crystal_ball"}], UnknownToolError, "no tool is named 'crystal_ball'.*pointer_memory"),
        ([{"name": "pointer_memory", "max_pointers": 3}], MissingToolTokensError, "no id for '<|answer|>'"),
    ],
)
def test_a_config_with_a_wrong_tool_is_refused_at_once(tools, error, message):
    with pytest.raises(error, match=message.replace("|", r"\|")):
        ToolMambaConfig(tools=tools)


def test_a_saved_config_with_an_unknown_tool_is_refused_when_loaded(model, tmp_path):
    model.save_pretrained(tmp_path)
    path = tmp_path / "config.json"
    path.write_text(path.read_text(encoding="utf-8").replace('"pointer_memory"', '"crystal_ball"'), encoding="utf-8")
    with pytest.raises(UnknownToolError, match="crystal_ball"):
        ToolMambaForCausalLM.from_pretrained(tmp_path)


def test_a_saved_model_comes_back_the_same_by_either_class(model, tmp_path):
    model.save_pretrained(tmp_path)
    ids = tokens(model, 2, 10)
    for loader in (ToolMambaForCausalLM, AutoModelForCausalLM):
        again = loader.from_pretrained(tmp_path).eval()
        assert type(again) is ToolMambaForCausalLM
        assert torch.equal(feed(again, ids)[0], feed(model, ids)[0])
    assert AutoConfig.from_pretrained(tmp_path).tools == model.config.tools


@pytest.mark.parametrize("tied", [True, False])
@pytest.mark.parametrize("padded_vocabulary", [0, 8])
def test_tool_tokens_are_added_to_a_checkpoint(addition, specs, tied, padded_vocabulary):
    """Old rows stay, new ones lie among them and apart from each other, tied weights stay tied."""
    tokenizer = build_task_tokenizer(addition.cells("local"), [])
    trained = len(tokenizer)
    torch.manual_seed(0)
    config = ToolMambaConfig(
        vocab_size=trained + padded_vocabulary, hidden_size=32, num_hidden_layers=1, tie_word_embeddings=tied
    )
    model = ToolMambaForCausalLM(config)
    old = model.get_input_embeddings().weight[:trained].clone()
    add_tool_tokens(tokenizer, [make_tool(spec) for spec in specs])
    add_tool_tokens_to_model(model, tokenizer, specs, trained)
    embeddings, head = model.get_input_embeddings().weight, model.get_output_embeddings().weight
    assert torch.equal(embeddings[:trained], old)
    assert (head.data_ptr() == embeddings.data_ptr()) is tied
    assert len(head) == len(embeddings) == model.config.vocab_size >= len(tokenizer)
    new = embeddings[trained : len(tokenizer)]
    assert torch.pdist(new).min() > 0.1 * torch.pdist(old).min()
    assert new.norm(dim=1).max() < 2 * old.norm(dim=1).max()
    assert model.config.tool_token_ids["<|answer|>"] == tokenizer.convert_tokens_to_ids("<|answer|>")
    assert model.config.eos_token_id == model.generation_config.eos_token_id == tokenizer.eos_token_id


def test_a_tokenizer_without_tool_tokens_is_refused(addition, specs, model):
    with pytest.raises(MissingToolTokensError, match="add_tool_tokens"):
        add_tool_tokens_to_model(model, build_task_tokenizer(addition.cells("local"), []), specs, trained_vocabulary=0)
