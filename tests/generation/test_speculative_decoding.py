"""Drafts change the speed and never a token."""

import pytest
import torch
from conftest import random_model
from hypothesis import given, settings
from hypothesis import strategies as st
from small_models import Heard, NotCompiled, lively, small_model, written
from small_models import start_lively as start_with

from hf_toolssm.generation.decoding import Drafting
from hf_toolssm.generation.row import Row
from hf_toolssm.generation.session import Session
from hf_toolssm.generation.speculative_decoding import MAX_CONTEXTS, ORDER, NgramDrafter, NgramTree, extend
from hf_toolssm.protocol.calls import begin_token
from hf_toolssm.protocol.trajectory import Writer
from hf_toolssm.tools.pointer_memory import NEW_POINTER, PointerMemory, read

PROBLEMS = ["7+5=", "98765+4321=", "1+1="]


def start_lively(model, tokenizer, problems, tools=None, **options):
    """A session that drafts, because nothing compiled knows its tool."""
    return start_with(model, tokenizer, problems, tools=tools or [NotCompiled(max_pointers=3)], **options)


def by_forward(model):
    """The same model, which nothing compiled steps: then rows side by side are drafted too."""
    model.backbone.layers[0].register_forward_hook(lambda *_: None)
    return model


def without_drafts(session, count):
    session._drafter = None
    return written(session, count)


@settings(max_examples=12)
@given(seed=st.integers(0, 500), rows=st.integers(1, 3), head=st.integers(0, 40), forward=st.booleans())
def test_the_same_tokens_and_state_with_and_without(tokenizer, specs, seed, rows, head, forward):
    model = lively(random_model(tokenizer, specs, seed), tokenizer)
    model = by_forward(model) if forward else model
    drafted = start_lively(model, tokenizer, PROBLEMS[:rows])
    plain = start_lively(model, tokenizer, PROBLEMS[:rows])
    assert written(drafted, head) == without_drafts(plain, head)  # stopping anywhere
    assert written(drafted, 700) == without_drafts(plain, 700)
    assert (drafted.state.logits - plain.state.logits).abs().max() < 1e-3
    for one, other in zip(drafted.rows, plain.rows):
        assert list(one.tools[0].memory) == list(other.tools[0].memory)
        assert one.tools[0].pointers == other.tools[0].pointers
        assert (one.answer, one.tool_calls) == (other.answer, other.tool_calls)


def test_rows_side_by_side_are_drafted_only_where_it_pays(model, tokenizer):
    """A compiled step of several rows is as fast as drafts are: 1.07 to 1.10 times, measured."""
    session = start_lively(lively(model, tokenizer), tokenizer, PROBLEMS)
    session._drafter.draft = pytest.fail
    session.run(60)


@pytest.mark.parametrize("name", ["gpt_neox", "lstm"])
def test_what_rounds_is_not_drafted(tokenizer, specs, name):
    """In bfloat16 a forward over many tokens rounds otherwise than a step, and another token may win."""
    model = lively(small_model(name, tokenizer, specs), tokenizer).bfloat16()
    options = {"end_ids": [tokenizer.eos_token_id]}
    session = start_lively(model, tokenizer, PROBLEMS, **options)
    assert session._drafter is None
    session.run(60)


@pytest.mark.parametrize("name", ["mamba2", "gpt_neox", "falcon_h1"])
def test_other_architectures_draft_too(tokenizer, specs, name):
    model = lively(small_model(name, tokenizer, specs), tokenizer)
    options = {"end_ids": [tokenizer.eos_token_id]}
    drafted = start_lively(model, tokenizer, PROBLEMS, **options)
    plain = start_lively(model, tokenizer, PROBLEMS, **options)
    assert written(drafted, 150) == without_drafts(plain, 150)


def test_wrong_drafts_are_taken_back(tokenizer, specs):
    """A tree that knows nothing but lies: every draft is long and wrong from some token on."""
    model = by_forward(lively(random_model(tokenizer, specs), tokenizer))
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
    heard.take = lambda events: runs.extend(len(event.tokens) for event in events)
    session.run(3_000, sink=heard)
    assert sum(run for run in runs if run > 1) > 1_500


def test_the_tree_predicts_by_the_shortest_context_that_was_never_contradicted():
    tree, context = NgramTree(), 0
    for token in [1, 2, 3, 1, 2, 3, 1, 2]:
        tree.learn(context, token)
        context = extend(context, [token])
    assert tree.predict(extend(0, [9, 2])) == 3  # after 2 always 3
    tree.learn(extend(0, [5, 2]), 7)  # but not after 5 2
    assert tree.predict(extend(0, [5, 2])) == 7
    assert tree.predict(extend(0, [8, 2])) is None


def test_the_tree_stays_small():
    tree, context = NgramTree(), 0
    generator = torch.Generator().manual_seed(0)
    for token in torch.randint(2**20, (3 * MAX_CONTEXTS,), generator=generator).tolist():
        tree.learn(context, token)
        context = extend(context, [token])
        assert context < 2 ** (20 * ORDER)
    assert sum(map(len, tree._tables)) <= MAX_CONTEXTS


def test_a_draft_stops_before_the_end(model, tokenizer):
    session = start_lively(lively(model, tokenizer), tokenizer, ["7+5="])
    row, drafter = session.rows[0], NgramDrafter(shortest=8)
    end, call = tokenizer.eos_token_id, tokenizer.convert_tokens_to_ids(begin_token(read(1)))
    assert drafter.draft(row, end, 1).tokens == []
    assert drafter.draft(row, call, 1).tokens[0] == call


def test_a_tool_that_may_take_long_is_never_run_ahead(model, tokenizer):
    class Watched(PointerMemory):
        time_limit = 5.0
        clones = 0

        def start(self, problem, marker):
            session, tool = super().start(problem, marker), self

            class Counted(type(session)):
                __slots__ = ()

                def clone(self):
                    tool.clones += 1
                    return self

            return Counted(self, list(problem), len(problem), [], session.begin, session.end)

    tool = Watched(max_pointers=3)
    session = start_lively(lively(model, tokenizer), tokenizer, PROBLEMS, tools=[tool])
    tokens = written(session, 200)
    assert tool.clones == 0
    assert tokens == written(start_lively(model, tokenizer, PROBLEMS), 200)


def test_a_listener_that_fails_leaves_every_row_in_order(model, tokenizer):
    class Fails(Heard):
        def take(self, events):
            if any(len(event.tokens) > 1 for event in events):
                raise RuntimeError("enough")

    by_forward(lively(model, tokenizer))
    session = start_lively(model, tokenizer, PROBLEMS)
    with pytest.raises(RuntimeError, match="enough"):
        session.run(700, sink=Fails(3))
    state = session.state
    for row, prompt in enumerate(tokenizer(PROBLEMS)["input_ids"]):
        alone = start_lively(model, tokenizer, [PROBLEMS[row]])
        alone.run(state.lengths[row] - len(prompt))
        assert session.rows[row].tool_calls == alone.rows[0].tool_calls
        assert session.rows[row].tools[0].pointers == alone.rows[0].tools[0].pointers
        assert list(session.rows[row].tools[0].memory) == list(alone.rows[0].tools[0].memory)
        assert (state.logits[row] - alone.state.logits[0]).abs().max() < 1e-3


def test_a_clone_that_shares_its_memory_ends_its_row_by_name(model, tokenizer):
    """Otherwise a drafted observation, carried out again, could be read as the model's own command."""
    session = start_lively(lively(model, tokenizer), tokenizer, ["7+5="])
    row = session.rows[0]
    real = row.tools[0]
    draft = session._drafter.draft(row, tokenizer.convert_tokens_to_ids(begin_token(read(1))), 1)
    draft.tokens, draft.writers = [draft.tokens[0], 5, 5], [Writer.MODEL, Writer.TOOL, Writer.MODEL]
    real.pointers[0] = 2  # what a shared clone would have done
    Drafting(None, {}, session._drafter)._accept(row, draft, 2)
    assert "clone shares" in row.error


def test_a_draft_leaves_its_row_alone(model, tokenizer):
    session = Session.start(model, tokenizer(["7+5="])["input_ids"])
    row: Row = session.rows[0]
    drafter = NgramDrafter(shortest=8)
    choice = tokenizer.convert_tokens_to_ids(begin_token(NEW_POINTER))
    drafter.tree.predict = lambda context: tokenizer.convert_tokens_to_ids("5")
    draft = drafter.draft(row, choice, 1)
    assert len(draft.tokens) > 8
    assert row.tools[0].pointers == []
    assert tokenizer.decode(row.tools[0].memory) == "7+5="
    row.adopt(draft.row)
    assert row.tools[0].pointers == [0]
    assert tokenizer.decode(row.tools[0].memory).startswith("7+5=555")
