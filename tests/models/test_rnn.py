"""The LSTM and GRU models keep an exact state: whole, in pieces, one by one, padded or not, gradients included."""

import pytest
import torch
from conftest import relative_distance
from hypothesis import given, settings
from hypothesis import strategies as st
from transformers import AutoConfig, AutoModelForCausalLM

from hf_toolssm.errors import MissingToolTokensError, PaddingError
from hf_toolssm.models.configuration_rnn import CELLS, RnnConfig
from hf_toolssm.models.modeling_rnn import RnnForCausalLM, RnnState
from hf_toolssm.protocol.special_tokens import tool_token_ids
from hf_toolssm.tools import make_tool

TOLERANCE = 1e-5
VOCABULARY = 30

cells = pytest.mark.parametrize("cell", CELLS)


def random_rnn(cell, seed=0, **fields):
    """Weights that give logits of order 10 and states that remember: default ones would hide errors."""
    torch.manual_seed(seed)
    shape = {"vocab_size": VOCABULARY, "hidden_size": 24, "num_hidden_layers": 2}
    model = RnnForCausalLM(RnnConfig(cell=cell, **(shape | fields))).eval()
    with torch.no_grad():
        model.get_input_embeddings().weight.normal_(std=3)
        for layer in model.backbone.layers:
            for parameter in layer.parameters():
                parameter += 0.3 * torch.randn_like(parameter)
    return model


def tokens(batch, length, seed=0):
    return torch.randint(3, VOCABULARY, (batch, length), generator=torch.Generator().manual_seed(seed))


def states(cache):
    """(layers, b, s, hidden)"""
    return torch.stack([layer.recurrent_states[0] for layer in cache.layers])


@torch.no_grad()
def feed(model, *pieces, cache=None):
    cache = RnnState(model.config) if cache is None else cache
    return torch.cat([model(p, cache_params=cache).logits for p in pieces], dim=1), cache


@cells
@torch.no_grad()
def test_a_stack_of_layers_is_torchs_own(cell):
    model = random_rnn(cell, num_hidden_layers=3)
    torchs = {"lstm": torch.nn.LSTM, "gru": torch.nn.GRU}[cell](24, 24, num_layers=3, batch_first=True)
    for index, layer in enumerate(model.backbone.layers):
        for name, parameter in layer.cell.named_parameters():
            getattr(torchs, name.replace("_l0", f"_l{index}")).copy_(parameter)
    ids = tokens(2, 20)
    logits, cache = feed(model, ids)
    y, end = torchs(model.get_input_embeddings()(ids))
    assert logits.abs().max() > 5
    assert relative_distance(logits, model.lm_head(y)) < TOLERANCE
    expected = torch.stack(end, dim=2) if cell == "lstm" else end[:, :, None]
    assert states(cache).shape == expected.shape
    assert relative_distance(states(cache), expected) < TOLERANCE


@cells
@settings(max_examples=20)
@given(
    pieces=st.lists(st.integers(1, 20), min_size=1, max_size=6), batch=st.integers(1, 3), seed=st.integers(0, 1_000)
)
def test_any_pieces_give_the_logits_and_the_state_of_the_whole(cell, pieces, batch, seed):
    model, ids = random_rnn(cell, seed), tokens(batch, sum(pieces), seed)
    whole, cache = feed(model, ids)
    for sizes in (pieces, 1):
        split, split_cache = feed(model, *ids.split(sizes, dim=1))
        assert relative_distance(split, whole) < TOLERANCE
        assert relative_distance(states(split_cache), states(cache)) < TOLERANCE


@cells
@settings(max_examples=20)
@given(
    lengths=st.lists(st.integers(0, 12), min_size=1, max_size=4),
    left=st.lists(st.booleans(), min_size=4, max_size=4),
    seed=st.integers(0, 1_000),
)
def test_padding_on_either_side_changes_nothing_even_behind_a_state(cell, lengths, left, seed):
    model = random_rnn(cell, seed)
    batch, width = len(lengths), max(1, *lengths)
    ids, before, mask = tokens(batch, width, seed), tokens(batch, 9, seed + 1), torch.zeros(batch, width).long()
    for row, (length, on_the_left) in enumerate(zip(lengths, left)):
        mask[row, (width - length if on_the_left else 0) : (width if on_the_left else length)] = 1
    _, cache = feed(model, before)
    with torch.no_grad():
        padded = model(ids, attention_mask=mask, cache_params=cache)
    for row in range(batch):
        keep = mask[row].bool()
        solo, solo_cache = feed(model, before[row : row + 1], ids[row, keep][None]) if keep.any() else (None, None)
        if solo is None:
            _, solo_cache = feed(model, before[row : row + 1])
        else:
            assert relative_distance(padded.logits[row, keep], solo[0, 9:]) < TOLERANCE
        assert relative_distance(states(cache)[:, row], states(solo_cache)[:, 0]) < TOLERANCE


def test_padding_inside_a_row_is_refused():
    with pytest.raises(PaddingError, match="between its tokens"):
        random_rnn("gru")(tokens(1, 4), attention_mask=torch.tensor([[1, 1, 0, 1]]))


@cells
def test_gradients_flow_through_a_carried_state(cell):
    model, ids = random_rnn(cell), tokens(2, 30)

    def gradient(*pieces):
        model.zero_grad()
        cache = RnnState(model.config)
        loss = [model(p, cache_params=cache).logits for p in pieces][-1][:, -1].square().sum()
        loss.backward()
        return torch.cat([p.grad.flatten() for p in model.parameters()])

    assert relative_distance(gradient(*ids.split([7, 20, 3], dim=1)), gradient(ids)) < TOLERANCE


@cells
@pytest.mark.parametrize("lengths", [(30, 12), (30, 0)])
def test_gradients_of_padded_rows_and_of_the_state_they_leave_are_those_of_each_row_alone(cell, lengths):
    model, ids = random_rnn(cell).double(), tokens(2, 30)
    mask = torch.stack([(torch.arange(30) < length).long() for length in lengths])

    def gradient(*rows):
        model.zero_grad()
        loss = torch.zeros(())
        for kept, row_mask in rows:
            cache = RnnState(model.config)
            logits = model(kept, attention_mask=row_mask, cache_params=cache).logits
            weight = 1 if row_mask is None else row_mask[:, :, None]
            loss = loss + (logits.square() * weight).sum() + states(cache).square().sum()
        loss.backward()
        return torch.cat([p.grad.flatten() for p in model.parameters()])

    alone = [(ids[row : row + 1, :length], None) for row, length in enumerate(lengths) if length]
    assert relative_distance(gradient((ids, mask)), gradient(*alone)) < 1e-6


@cells
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@torch.no_grad()
def test_padding_leaves_the_state_in_half_precision_too(cell, dtype):
    model, ids = random_rnn(cell).to(dtype), tokens(2, 20)
    caches = [RnnState(model.config) for _ in range(2)]
    mask = (torch.arange(20) < 9).long().expand(2, -1)
    model(ids, attention_mask=mask, cache_params=caches[0])
    model(ids[:, :9], cache_params=caches[1])
    assert relative_distance(*(states(cache).float() for cache in caches)) < 2e-2


@cells
def test_the_loss_of_a_padded_batch_counts_its_labels_alone(cell):
    model, ids = random_rnn(cell), tokens(2, 10)
    mask = torch.ones_like(ids)
    mask[0, 6:] = 0
    loss = model(ids, attention_mask=mask, labels=ids.masked_fill(mask == 0, -100)).loss
    log_probabilities = [model(row).logits[0, :-1].log_softmax(-1) for row in (ids[:1, :6], ids[1:])]
    expected = [p.gather(1, row[1:, None]) for p, row in zip(log_probabilities, (ids[0, :6], ids[1]))]
    assert loss.item() == pytest.approx(-torch.cat(expected).mean().item(), rel=1e-5)


def test_logits_are_computed_only_where_they_are_wanted():
    model, ids = random_rnn("lstm"), tokens(2, 10)
    assert torch.allclose(model(ids, logits_to_keep=3).logits, model(ids).logits[:, -3:], atol=1e-5)


def test_the_result_is_a_tuple_only_when_asked():
    model, ids = random_rnn("gru"), tokens(2, 5)
    logits, cache, hidden_states = model(ids, output_hidden_states=True, return_dict=False)
    output = model(ids, output_hidden_states=True)
    assert torch.equal(logits, output.logits)
    assert torch.equal(states(cache), states(output.cache_params))
    assert len(hidden_states) == len(output.hidden_states) == 3


def test_a_model_in_training_returns_no_state_unless_asked():
    model = random_rnn("gru").train()
    assert model(tokens(1, 4)).cache_params is None
    assert model(tokens(1, 4), use_cache=True).cache_params is not None


def test_either_ids_or_embeddings_are_given():
    model, ids = random_rnn("gru"), tokens(1, 4)
    assert torch.equal(model(inputs_embeds=model.get_input_embeddings()(ids)).logits, model(ids).logits)
    with pytest.raises(ValueError, match="exactly one"):
        model()


@cells
@pytest.mark.parametrize("tied", [True, False])
def test_a_saved_model_comes_back_the_same_by_either_class(cell, tied, tmp_path):
    model, ids = random_rnn(cell, tie_word_embeddings=tied), tokens(2, 10)
    model.save_pretrained(tmp_path)
    for loader in (RnnForCausalLM, AutoModelForCausalLM):
        again = loader.from_pretrained(tmp_path).eval()
        assert type(again) is RnnForCausalLM
        assert again.config.cell == cell
        assert (again.lm_head.weight is again.get_input_embeddings().weight) is tied
        assert torch.equal(feed(again, ids)[0], feed(model, ids)[0])


@cells
def test_generate_gives_the_tokens_of_a_loop_by_hand(cell):
    """Left-padded rows of different lengths, greedily; and on from the state that the first call returns."""
    model, ids = random_rnn(cell), tokens(2, 8)
    mask = torch.ones_like(ids)
    mask[0, :3] = 0
    found = model.generate(ids, attention_mask=mask, max_new_tokens=20, return_dict_in_generate=True)
    for row in range(2):
        logits, cache = feed(model, ids[row, mask[row].bool()][None])
        for token in found.sequences[row, 8:]:
            assert token == logits[0, -1].argmax()
            logits, cache = feed(model, token[None, None], cache=cache)
    assert len(found.sequences[0].unique()) > 5
    without_cache = model.generate(ids, attention_mask=mask, max_new_tokens=20, use_cache=False)
    assert torch.equal(without_cache, found.sequences)

    more = model.generate(found.sequences[:, -1:], cache_params=found.past_key_values, max_new_tokens=5)
    straight = model.generate(ids, attention_mask=mask, max_new_tokens=25)
    assert torch.equal(more[:, 1:], straight[:, -5:])


def test_beams_carry_their_states_with_them():
    model, ids = random_rnn("lstm"), tokens(1, 8)
    with_cache, without = (model.generate(ids, max_new_tokens=10, num_beams=3, use_cache=use) for use in (True, False))
    assert torch.equal(with_cache, without)


@cells
def test_recurrent_weights_that_no_checkpoint_holds_start_as_torchs_own(cell, tmp_path):
    """For a layer more than the checkpoint has, as for all layers of a new model."""
    model = RnnForCausalLM(RnnConfig(vocab_size=VOCABULARY, hidden_size=64, num_hidden_layers=1, cell=cell))
    model.save_pretrained(tmp_path)
    deeper = RnnForCausalLM.from_pretrained(tmp_path, num_hidden_layers=2)
    for layer in (model.backbone.layers[0], deeper.backbone.layers[1]):
        for parameter in layer.parameters():
            assert 0.9 / 8 < parameter.abs().max() <= 1 / 8
            assert parameter.std().item() == pytest.approx(1 / 8 / 3**0.5, rel=0.15)


def test_an_unknown_cell_is_refused():
    with pytest.raises(ValueError, match="no cell is named 'rnn'.*lstm, gru"):
        RnnConfig(cell="rnn")


def test_a_config_names_its_tools(specs, tokenizer, tmp_path):
    with pytest.raises(MissingToolTokensError, match="no id for"):
        RnnConfig(tools=specs)
    ids = tool_token_ids(tokenizer, [make_tool(spec) for spec in specs])
    RnnConfig(tools=specs, tool_token_ids=ids, unknown_token_id=2).save_pretrained(tmp_path)
    again = AutoConfig.from_pretrained(tmp_path)
    assert type(again) is RnnConfig
    assert (again.tools, again.tool_token_ids, again.unknown_token_id) == (specs, ids, 2)
    assert [type(tool) for tool in again.make_tools()] == [type(make_tool(spec)) for spec in specs]
