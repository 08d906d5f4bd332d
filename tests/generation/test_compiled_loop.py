"""Rows that write by themselves in a compiled call write what token by token would, and end up where it would."""

import random
from types import SimpleNamespace

import numba
import numpy as np
import pytest
import torch
from conftest import random_model
from hypothesis import given, settings
from hypothesis import strategies as st
from small_models import Heard, NotCompiled, lively, start_lively, written

from hf_toolssm.generation.compiled_loop import LONGEST, make_compiled_loop
from hf_toolssm.generation.session import Session
from hf_toolssm.ops.memory_arrays import carry_out
from hf_toolssm.protocol.calls import begin_token
from hf_toolssm.protocol.task_tokenizer import build_task_tokenizer
from hf_toolssm.protocol.trajectory import Writer
from hf_toolssm.tools import make_tool
from hf_toolssm.tools.pointer_memory import NEW_POINTER, read
from hf_toolssm.tools.pointer_store import seek, take

PROBLEMS = ["7+5=", "98765+4321=", "1+1=", "12+34=", "5+5="]
STREAMS = 10_000
LENGTH = 40


class HeardByWhom(Heard):
    """Also keeps which tokens a tool wrote."""

    def __init__(self, rows):
        super().__init__(rows)
        self.observed = [[] for _ in range(rows)]

    def take(self, events):
        super().take(events)
        for event in events:
            self.observed[event.row].extend(writer == Writer.TOOL for writer in event.writers)


def token_by_token(session):
    session._compiled_loop = session._drafter = None
    return session


def outcome(row):
    (session,) = row.tools
    facts = (row.answer, row.answering, row.tool_calls, row.finished, row.complete, row.error, list(row.pending))
    return facts, {name: np.array(value).tolist() for name, value in session.state().items()}


@numba.njit
def play(tokens, shown, memories):
    """Carries out what a model writes in row 0, each observation fed at once; how many tokens it took."""
    for at in range(len(tokens)):
        if not carry_out(tokens[at], 0, memories):
            return at
        shown[at] = memories.waiting[0]
        memories.waiting[0] = -1
    return len(tokens)


def memory_model(memory):
    """A tokenizer and a random model whose only tool is that memory."""
    cells, spec = {
        "pointer_memory": ("0123456789+=", {"name": "pointer_memory", "max_pointers": 3}),
        "tape": ("01_ABC", {"name": "tape", "symbols": "01_", "max_cells": 14}),
        "pointer_store": ("abcdef", {"name": "pointer_store"}),
    }[memory]
    tokenizer = build_task_tokenizer(cells, [make_tool(spec)])
    return tokenizer, random_model(tokenizer, [spec])


@pytest.mark.parametrize("memory", ["pointer_memory", "tape", "pointer_store"])
def test_the_compiled_memory_is_the_tool_on_ten_thousand_random_streams(memory):
    """The kernel stops before what it knows nothing of: a refused command, the end, a tape that grows, a store."""
    rng, ended, shown_in_all = random.Random(0), 0, 0
    tokenizer, model = memory_model(memory)
    session = Session.start(model, [[5]])
    protocol, runs = session.protocol, make_compiled_loop(session._batch.decoder, session.protocol)
    begins = {"pointer_memory": [NEW_POINTER], "pointer_store": [seek("key"), take("key")]}.get(memory, [])
    first = [protocol.ids[begin_token(name)] for name in begins]
    for _ in range(STREAMS):
        problem = rng.choices(range(3, 9), k=rng.randint(1, 8))
        weights = [rng.choice((1, 5, 20)) if token in protocol.calls.begins else 3 for token in range(len(tokenizer))]
        for token in (tokenizer.eos_token_id, *first):
            weights[token] = rng.choice((0, 1))
        stream = first * rng.choice((0, 1, 3, 3, 3)) + rng.choices(range(len(tokenizer)), weights, k=LENGTH)
        python, compiled = protocol.start_row(problem), protocol.start_row(problem)
        cut = rng.randint(1, LENGTH)
        for part in (stream[:cut], stream[cut:]):  # the second run reads what the first one wrote
            expected = []
            for token in part:
                python.advance(token)
                if python.finished:
                    break
                expected.append(python.pending.popleft() if python.pending else -1)
            found, rest = [], part
            while rest and not compiled.finished:
                memories = runs._memories([compiled], (1, LENGTH + 3))
                shown = np.zeros(len(rest), np.int64)
                taken = play(np.array(rest, np.int64), shown, memories)
                runs._carry_over(memories, 0, compiled)
                found += shown[:taken].tolist()
                if taken < len(rest):  # Python takes over
                    compiled.advance(rest[taken])
                    if not compiled.finished:
                        found.append(compiled.pending.popleft() if compiled.pending else -1)
                rest = rest[taken + 1 :]
            assert found == expected
            assert outcome(compiled) == outcome(python)
            if python.finished:
                break
            shown_in_all += sum(token >= 0 for token in expected)
        ended += python.finished
    assert ended > STREAMS / 10
    assert shown_in_all > 3 * STREAMS


@settings(max_examples=20)
@given(seed=st.integers(0, 500), rows=st.integers(1, 5), head=st.integers(0, 40))
def test_rows_on_tapes_write_the_same_as_token_by_token(seed, rows, head):
    tokenizer, model = memory_model("tape")
    torch.manual_seed(seed)
    with torch.no_grad():
        weights = model.get_output_embeddings().weight
        weights.copy_(torch.randn_like(weights))
        weights[tokenizer.convert_tokens_to_ids("<|end|>")] = 0
    sessions = [Session.start(model, tokenizer(["0", "01_", "11", "1_0", "0_"][:rows])["input_ids"]) for _ in range(2)]
    token_by_token(sessions[1])
    for count in (head, 300):
        tokens = [written(session, count) for session in sessions]
        assert tokens[0] == tokens[1]
        assert [outcome(row) for row in sessions[0].rows] == [outcome(row) for row in sessions[1].rows]


@settings(max_examples=40)
@given(seed=st.integers(0, 500), rows=st.integers(1, 5), head=st.integers(0, 40), wanders=st.booleans())
def test_the_same_tokens_and_state_as_token_by_token(tokenizer, specs, seed, rows, head, wanders):
    model = random_model(tokenizer, specs, seed)
    if wanders:
        lively(model, tokenizer)  # otherwise rows end, and call pointers that do not exist
    free = start_lively(model, tokenizer, PROBLEMS[:rows])
    plain = token_by_token(start_lively(model, tokenizer, PROBLEMS[:rows]))
    for count in (head, 500):  # stopping anywhere, also between a command and what it shows
        heard, expected = HeardByWhom(rows), HeardByWhom(rows)
        assert free.run(count, sink=heard) == plain.run(count, sink=expected)
        assert (heard.tokens, heard.observed) == (expected.tokens, expected.observed)
        assert [outcome(row) for row in free.rows] == [outcome(row) for row in plain.rows]
        assert free.state.lengths == plain.state.lengths
    assert (free.state.logits - plain.state.logits).abs().max() < 1e-3


@pytest.mark.parametrize("rows", [1, 2, 3, 9])
def test_however_many_rows_go_side_by_side(tokenizer, specs, rows):
    model = lively(random_model(tokenizer, specs), tokenizer)
    problems = (PROBLEMS * 2)[:rows]
    expected = [written(token_by_token(start_lively(model, tokenizer, [problem])), 300)[0] for problem in problems]
    assert written(start_lively(model, tokenizer, problems), 300) == expected


def test_a_row_goes_on_after_what_the_user_tells_it(model, tokenizer):
    lively(model, tokenizer)
    sessions = start_lively(model, tokenizer, PROBLEMS[:2]), start_lively(model, tokenizer, PROBLEMS[:2])
    token_by_token(sessions[1])
    heard = []
    for session in sessions:
        parts = [written(session, 50)]
        session.append([tokenizer("123+45=")["input_ids"], []])
        heard.append([*parts, written(session, 4), written(session, 200)])  # 4: within what was told
    assert heard[0] == heard[1]


def test_a_copy_made_between_a_command_and_its_observation_goes_on_alike(model, tokenizer):
    lively(model, tokenizer)
    call = tokenizer.convert_tokens_to_ids(begin_token(read(1)))
    (whole,) = written(start_lively(model, tokenizer, PROBLEMS[:1]), 400)
    session = start_lively(model, tokenizer, PROBLEMS[:1])
    session.run(whole.index(call) + 1)
    assert len(session.rows[0].pending) == 1
    copy = session.clone()
    rest = 400 - whole.index(call) - 1
    assert written(copy, rest)[0] == written(session, rest)[0] == whole[-rest:]


def test_a_run_can_be_interrupted_within_a_bounded_number_of_tokens(model, tokenizer):
    class Interrupts(Heard):
        def take(self, events):
            raise KeyboardInterrupt

    lively(model, tokenizer)
    session = start_lively(model, tokenizer, PROBLEMS)
    with pytest.raises(KeyboardInterrupt):
        session.run(10 * LONGEST, sink=Interrupts(len(PROBLEMS)))
    assert session.tokens <= LONGEST
    session.run(20)
    for row, length in enumerate(session.state.lengths):
        alone = start_lively(model, tokenizer, [PROBLEMS[row]])
        alone.run(length - alone.state.lengths[0])
        assert outcome(session.rows[row]) == outcome(alone.rows[0])


@pytest.mark.parametrize(
    ("started", "ran"),
    [({"temperature": 0.5}, {}), ({}, {"stop_before_call": True}), ({"tools": [NotCompiled(max_pointers=3)]}, {})],
)
def test_what_is_not_greedy_or_not_the_pointer_memory_alone_takes_the_ordinary_path(model, tokenizer, started, ran):
    session = start_lively(lively(model, tokenizer), tokenizer, PROBLEMS, **started)
    session._compiled_loop = session._compiled_loop and SimpleNamespace(write=pytest.fail)
    session.run(60, **ran)
