"""Drafts change the speed and never a token."""

import pytest
import torch
from conftest import random_model
from hypothesis import given, settings
from hypothesis import strategies as st
from small_models import Heard, lively, small_model, start_lively, written

from hf_toolssm.generation import Session
from hf_toolssm.generation.drafting import MAX_CONTEXTS, ORDER, ContextTree, Drafter, extend
from hf_toolssm.generation.row import Row
from hf_toolssm.tools.pointer_memory import NEW_POINTER, read

PROBLEMS = ["7+5=", "98765+4321=", "1+1="]


def without_drafts(session, count):
    session._drafter.may_try = lambda: False
    return written(session, count)


@settings(max_examples=12)
@given(seed=st.integers(0, 500), rows=st.integers(1, 3), head=st.integers(0, 40))
def test_the_same_tokens_and_state_with_and_without(tokenizer, specs, seed, rows, head):
    model = lively(random_model(tokenizer, specs, seed), tokenizer)
    drafted = start_lively(model, tokenizer, PROBLEMS[:rows])
    plain = start_lively(model, tokenizer, PROBLEMS[:rows])
    assert written(drafted, head) == without_drafts(plain, head)  # stopping anywhere
    assert written(drafted, 700) == without_drafts(plain, 700)
    assert (drafted.state.logits - plain.state.logits).abs().max() < 1e-3
    for one, other in zip(drafted.rows, plain.rows):
        assert list(one.sessions[0].memory) == list(other.sessions[0].memory)
        assert one.sessions[0].pointers == other.sessions[0].pointers
        assert (one.answer, one.tool_calls) == (other.answer, other.tool_calls)


@pytest.mark.parametrize("name", ["mamba2", "gpt_neox", "falcon_h1"])
def test_other_architectures_draft_too(tokenizer, specs, name):
    model = lively(small_model(name, tokenizer, specs), tokenizer)
    options = {"tools": specs, "end_ids": [tokenizer.eos_token_id]}
    drafted = start_lively(model, tokenizer, PROBLEMS, **options)
    plain = start_lively(model, tokenizer, PROBLEMS, **options)
    assert written(drafted, 150) == without_drafts(plain, 150)


def test_wrong_drafts_are_taken_back(tokenizer, specs):
    """A tree that knows nothing but lies: every draft is long and wrong from some token on."""
    model = lively(random_model(tokenizer, specs), tokenizer)
    plain = without_drafts(start_lively(model, tokenizer, PROBLEMS), 300)
    session = start_lively(model, tokenizer, PROBLEMS)
    generator = torch.Generator().manual_seed(0)
    digits = tokenizer.convert_tokens_to_ids(list("0123456789"))
    session._drafter.may_try = lambda: True
    session._drafter.tree.predict = lambda context: digits[int(torch.randint(10, (), generator=generator))]
    assert written(session, 300) == plain


def test_drafts_take_most_of_a_regular_trajectory(tokenizer, specs):
    model = lively(random_model(tokenizer, specs), tokenizer)
    session, heard = start_lively(model, tokenizer, ["7+5="]), Heard(1)
    runs = []
    heard.fed_run = lambda row, tokens, observed: runs.append(len(tokens))
    session.run(3_000, listener=heard)
    assert sum(runs) > 1_500


def test_the_tree_predicts_by_the_shortest_context_that_was_never_contradicted():
    tree, context = ContextTree(), 0
    for token in [1, 2, 3, 1, 2, 3, 1, 2]:
        tree.learn(context, token)
        context = extend(context, token)
    assert tree.predict(extend(extend(0, 9), 2)) == 3  # after 2 always 3
    tree.learn(extend(extend(0, 5), 2), 7)  # but not after 5 2
    assert tree.predict(extend(extend(0, 5), 2)) == 7
    assert tree.predict(extend(extend(0, 8), 2)) is None


def test_the_tree_stays_small():
    tree, context = ContextTree(), 0
    generator = torch.Generator().manual_seed(0)
    for token in torch.randint(2**20, (3 * MAX_CONTEXTS,), generator=generator).tolist():
        tree.learn(context, token)
        context = extend(context, token)
        assert context < 2 ** (20 * ORDER)
    assert sum(map(len, tree._tables)) <= MAX_CONTEXTS


def test_a_draft_stops_before_the_end_and_before_a_slow_call(model, tokenizer):
    session = start_lively(lively(model, tokenizer), tokenizer, ["7+5="])
    row, drafter = session.rows[0], Drafter(shortest=8)
    end, call = tokenizer.eos_token_id, tokenizer.convert_tokens_to_ids(read(1))
    assert drafter.draft(row, 0, end, 1).tokens == []
    assert drafter.draft(row, 0, call, 1).tokens[0] == call
    row.protocol.limits[0] = 5.0
    assert drafter.draft(row, 0, call, 1).tokens == []


def test_a_draft_leaves_its_row_alone(model, tokenizer):
    session = Session.start(model, tokenizer(["7+5="])["input_ids"])
    row: Row = session.rows[0]
    drafter = Drafter(shortest=8)
    choice = tokenizer.convert_tokens_to_ids(NEW_POINTER)
    drafter.tree.predict = lambda context: tokenizer.convert_tokens_to_ids("5")
    draft = drafter.draft(row, 0, choice, 1)
    assert len(draft.tokens) > 8
    assert row.sessions[0].pointers == []
    assert tokenizer.decode(row.sessions[0].memory) == "7+5="
    row.adopt(draft.row)
    assert row.sessions[0].pointers == [0]
    assert tokenizer.decode(row.sessions[0].memory).startswith("7+5=555")
