"""A session is a value: cloned, forked, rolled back, saved and resumed, it writes the same tokens."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import psutil
import pytest
import torch
from conftest import random_model
from safetensors.torch import save_file
from small_models import ARCHITECTURES, Heard, NotCompiled, lively, small_model, start_lively, written

from hf_toolssm.errors import (
    EmptyProblemError,
    InvalidProblemError,
    SessionRunningError,
    SnapshotError,
    StateMismatchError,
    TokenizerNeededError,
    UnsupportedGenerationError,
)
from hf_toolssm.generation.decoder import FusedDecoder
from hf_toolssm.generation.session import Session
from hf_toolssm.tools import make_tool
from hf_toolssm.tools.pointer_memory import PointerMemory, PointerSession

PROBLEMS = ["7+5=", "98765+4321=", "1+1="]
ROOT = Path(__file__).parents[2]


@pytest.fixture
def model(model, tokenizer):
    return lively(model, tokenizer)


def start(model, tokenizer, problems=PROBLEMS, **options):
    return start_lively(model, tokenizer, problems, **options)


def outcome(session):
    return [(r.answer, r.tool_calls, r.finished, r.complete, r.error, list(r.pending)) for r in session.rows]


@pytest.mark.parametrize("temperature", [0.0, 0.3])
def test_a_clone_goes_on_as_the_original_did(model, tokenizer, temperature):
    session = start(model, tokenizer, temperature=temperature, seed=3)
    session.run(17)
    snapshot = session.clone()
    first = written(session, 40)
    assert sum(map(len, first)) > 60
    assert written(snapshot.clone(), 40) == first
    rolled_back = snapshot.clone()
    assert written(rolled_back, 40) == first
    assert outcome(rolled_back) == outcome(session)


def test_many_short_runs_are_one_long_run(model, tokenizer):
    whole = written(start(model, tokenizer), 60)
    session = start(model, tokenizer)
    pieces = [written(session, count) for count in (1, 7, 2, 50)]
    assert [sum((piece[row] for piece in pieces), []) for row in range(3)] == whole


@pytest.mark.parametrize("name", ["tool_mamba", "mamba2", "jamba", "mistral"])
def test_rows_are_forked_and_reordered_with_their_tools(tokenizer, specs, name):
    model = lively(small_model(name, tokenizer, specs), tokenizer)
    session = start(model, tokenizer, tools=specs, end_ids=[tokenizer.eos_token_id])
    session.run(15)
    forked = session.select([1, 0, 1, 1])
    expected = written(session, 30)
    assert written(forked, 30) == [expected[row] for row in (1, 0, 1, 1)]


def test_forks_do_not_see_each_others_memory(model, tokenizer):
    session = start(model, tokenizer, ["7+5="])
    fork = session.select([0, 0])
    fork.rows[0].tools[0].write(4)
    assert list(fork.rows[1].tools[0].memory) == list(session.rows[0].tools[0].memory)


def test_a_session_stops_before_a_call_and_can_be_rolled_back(model, tokenizer):
    session = start(model, tokenizer, ["7+5="])
    for _ in range(3):
        session.run(200, stop_before_call=True)
        row = session.rows[0]
        if row.finished:
            break
        command = session.held_choices[0]
        assert command in session.protocol.calls.begins
        before = session.clone()
        calls = row.tool_calls
        after = written(session, 5)
        assert after[0][0] == command
        assert session.rows[0].tool_calls > calls or session.rows[0].error
        assert before.rows[0].tool_calls == calls
        assert written(before, 5) == after
    assert calls > 0


def test_every_run_that_stops_before_calls_carries_out_one_and_stops_before_the_next(model, tokenizer):
    expected = start(model, tokenizer, ["7+5="])
    heard = Heard(1)
    expected.run(400, sink=heard)
    session = start(model, tokenizer, ["7+5="])
    session.run(400, stop_before_call=True)
    for calls in range(10):
        assert session.rows[0].tool_calls == calls
        assert session.held_choices[0] in session.protocol.calls.begins
        session.run(400, stop_before_call=True)
    assert session.tokens < 400
    assert expected.rows[0].tool_calls > 10


def test_stopping_before_calls_changes_no_token(model, tokenizer):
    whole = written(start(model, tokenizer), 40)
    session, heard = start(model, tokenizer), Heard(3)
    while any(len(heard.tokens[i]) < 40 and not row.finished for i, row in enumerate(session.rows)):
        session.run(1, stop_before_call=True, sink=heard)
    assert [tokens[: len(expected)] for tokens, expected in zip(heard.tokens, whole)] == whole


@pytest.mark.parametrize("name", ARCHITECTURES)
def test_a_saved_session_goes_on_as_if_it_had_stayed(tokenizer, specs, tmp_path, name):
    model = lively(small_model(name, tokenizer, specs), tokenizer)
    options = {"tools": specs, "end_ids": [tokenizer.eos_token_id]}
    session = start(model, tokenizer, **options)
    session.run(13)
    path = tmp_path / "s.safetensors"
    session.save(path)
    expected = written(session, 40)
    resumed = Session.load(path, model, tokenizer=tokenizer, **options)
    assert written(resumed, 40) == expected
    assert outcome(resumed) == outcome(session)
    assert resumed.tokens == session.tokens
    assert [p.name for p in tmp_path.iterdir()] == ["s.safetensors"]


def test_a_sampled_session_is_saved_with_its_randomness_and_its_held_choice(model, tokenizer, tmp_path):
    session = start(model, tokenizer, temperature=0.7, seed=5)
    session.run(30, stop_before_call=True)
    session.save(tmp_path / "s")
    assert session.held_choices
    expected = written(session, 30)
    assert written(Session.load(tmp_path / "s", model, tokenizer=tokenizer), 30) == expected


def test_a_killed_process_is_resumed_in_another(model, tokenizer, tmp_path):
    """The child saves after every few tokens until it is killed; what it left goes on as an undisturbed session."""
    model.save_pretrained(tmp_path / "model")
    tokenizer.save_pretrained(tmp_path / "model")
    script = f"""
from transformers import AutoTokenizer
from hf_toolssm import Session, ToolMambaForCausalLM
model = ToolMambaForCausalLM.from_pretrained({str(tmp_path / "model")!r}).eval()
tokenizer = AutoTokenizer.from_pretrained({str(tmp_path / "model")!r})
session = Session.start(model, tokenizer({PROBLEMS!r})["input_ids"])
while True:
    session.run(1)
    session.save({str(tmp_path / "session")!r})
"""
    process = subprocess.Popen([sys.executable, "-c", script], cwd=ROOT, env={**os.environ, "OMP_NUM_THREADS": "1"})
    deadline = time.monotonic() + 120
    while not (tmp_path / "session").exists() and time.monotonic() < deadline:
        time.sleep(0.01)
    time.sleep(0.2)
    process.send_signal(signal.SIGKILL)
    process.wait()
    resumed = Session.load(tmp_path / "session", model)
    undisturbed = Session.start(model, tokenizer(PROBLEMS)["input_ids"])
    while undisturbed.tokens < resumed.tokens:
        undisturbed.run(1)
    assert undisturbed.tokens == resumed.tokens > 0
    assert written(resumed, 40) == written(undisturbed, 40)


def test_a_session_of_another_model_or_other_tools_is_refused(model, tokenizer, specs, tmp_path):
    session = start(model, tokenizer)
    session.save(tmp_path / "s")
    with pytest.raises(StateMismatchError, match="other weights"):
        Session.load(tmp_path / "s", random_model(tokenizer, specs, seed=1))
    with pytest.raises(StateMismatchError, match="other tools"):
        Session.load(tmp_path / "s", model, tools=[{"name": "pointer_memory", "max_pointers": 1}])


def test_a_file_that_is_no_session_is_named(model, tmp_path):
    (tmp_path / "text").write_text("no session", encoding="utf-8")
    save_file({"a": torch.zeros(1)}, tmp_path / "weights")
    save_file({"a": torch.zeros(1)}, tmp_path / "future", {"session": json.dumps({"format": "later"})})
    for name in ("text", "weights", "future", "missing"):
        with pytest.raises(SnapshotError, match=name):
            Session.load(tmp_path / name, model)


def test_the_user_can_go_on_in_the_same_session(model, tokenizer):
    """What is told enters the state and the tools' memory, as a longer problem would."""
    session = start(model, tokenizer, ["7+", "1+"])
    more = tokenizer("5=")["input_ids"]
    session.append([more, []])
    assert tokenizer.decode(session.rows[0].tools[0].memory) == "7+5="
    expected = start(model, tokenizer, ["7+5="])
    tokens = written(session, 32)
    assert len(tokens[0]) == 32
    assert tokens[0][:2] == more
    assert tokens[0][2:] == written(expected, 30)[0]
    assert tokens[1] == written(start(model, tokenizer, ["1+"]), 32)[0]
    with pytest.raises(StateMismatchError, match="one per row"):
        session.append([more])


def test_forks_sample_differently_and_the_first_copy_as_the_row(model, tokenizer):
    session = start(model, tokenizer, ["7+5="], temperature=1.0, seed=1)
    fork = session.select([0, 0, 0])
    expected = written(session, 30)[0]
    tokens = written(fork, 30)
    assert tokens[0] == expected
    assert len({tuple(row) for row in tokens}) == 3


def test_samples_do_not_depend_on_where_a_run_stops_or_on_other_rows(model, tokenizer):
    options = {"temperature": 0.5, "seed": 2}
    whole = written(start(model, tokenizer, **options), 60)
    session = start(model, tokenizer, **options)
    pieces = [written(session, count) for count in (13, 7, 40)]
    assert [sum((piece[row] for piece in pieces), []) for row in range(3)] == whole
    alone = start(model, tokenizer, PROBLEMS[:1], **options)
    assert written(alone, 60)[0] == whole[0]


class Meddler(Heard):
    """Acts when it has heard five times, or of several tokens at once."""

    def __init__(self, rows, act):
        super().__init__(rows)
        self.act, self.times = act, 0

    def take(self, events):
        super().take(events)
        self.times += 1
        if self.times == 5 or len(events[0].tokens) > 1:
            self.act()


@pytest.mark.parametrize("tool", [PointerMemory, NotCompiled])
@pytest.mark.parametrize("what", ["state", "clone", "save", "append", "run"])
def test_a_listener_cannot_meddle_with_the_session_that_calls_it(model, tokenizer, tmp_path, what, tool):
    session, expected = (start(model, tokenizer, tools=[tool(max_pointers=3)]) for _ in range(2))
    actions = {
        "state": lambda: session.state,
        "clone": session.clone,
        "save": lambda: session.save(tmp_path / "s"),
        "append": lambda: session.append([[3], [], []]),
        "run": lambda: session.run(3),
    }
    heard = Meddler(3, actions[what])
    with pytest.raises(SessionRunningError, match=r"in the middle of run\(\)"):
        session.run(40, sink=heard)
    # What was heard has happened, and nothing else: the session goes on from there.
    fed = [len(tokens) for tokens in heard.tokens]
    after = written(session, 30)
    whole = written(expected, 100)
    for row in range(3):
        assert heard.tokens[row] + after[row] == whole[row][: fed[row] + len(after[row])]


@pytest.mark.parametrize(
    ("options", "message"),
    [({"max_new_tokens": -1}, "max_new_tokens is a whole number")],
)
def test_impossible_runs_are_named(model, tokenizer, options, message):
    with pytest.raises(UnsupportedGenerationError, match=message):
        start(model, tokenizer).run(**options)


@pytest.mark.parametrize("temperature", [-1.0, float("nan"), float("inf")])
def test_impossible_temperatures_are_named(model, tokenizer, temperature):
    with pytest.raises(UnsupportedGenerationError, match="temperature"):
        start(model, tokenizer, temperature=temperature)


@pytest.mark.parametrize("rows", [[], [-1], [3]])
def test_rows_that_do_not_exist_are_named(model, tokenizer, rows):
    with pytest.raises(StateMismatchError, match="rows 0 to 2"):
        start(model, tokenizer).select(rows)


def test_a_session_saved_with_another_window_or_end_is_refused(tokenizer, specs, tmp_path):
    model = small_model("mistral", tokenizer, specs)
    options = {"tools": specs, "tokenizer": tokenizer, "end_ids": [1]}
    session = Session.start(model, tokenizer(PROBLEMS)["input_ids"], **options)
    session.save(tmp_path / "s")
    with pytest.raises(StateMismatchError, match="end_ids"):
        Session.load(tmp_path / "s", model, **{**options, "end_ids": [5]})
    model.config.sliding_window = 11
    with pytest.raises(StateMismatchError, match="other weights"):
        Session.load(tmp_path / "s", model, **options)


def test_a_session_that_cannot_be_saved_says_why(model, tokenizer, tmp_path):
    session = start(model, tokenizer)
    with pytest.raises(SnapshotError, match="folder that exists"):
        session.save(tmp_path / "missing" / "s")

    class Odd(PointerSession):
        __slots__ = ()

        def state(self):
            return {"cells": {1, 2}}

    session.rows[0].tools[0] = Odd(PointerMemory(), [], 0, [], 0, 0)
    with pytest.raises(SnapshotError, match="numpy arrays and JSON"):
        session.save(tmp_path / "s")
    assert not (tmp_path / "s").exists()


def test_a_told_token_that_the_tool_refuses_ends_the_row(model, tokenizer):
    session = start(model, tokenizer)

    class Full:
        def write(self, cell):
            raise MemoryError("full")

    session.rows[1].tools[0] = Full()
    session.append([[], [3, 4], []])
    assert "MemoryError" in session.rows[1].error
    assert session.rows[1].finished


@pytest.mark.parametrize("token", [-1, 28, 2**40])
def test_ids_that_are_no_tokens_are_named(model, tokenizer, token):
    with pytest.raises(InvalidProblemError, match="row 0 holds an id"):
        Session.start(model, [[token]])
    with pytest.raises(InvalidProblemError, match="holds an id"):
        start(model, tokenizer).append([[], [token], []])


def test_prompts_may_be_tensors(model, tokenizer):
    ids = torch.tensor(tokenizer("7+5=")["input_ids"])
    session = Session.start(model, [ids, ids.numpy()])
    assert (session.state.logits[0] - session.state.logits[1]).abs().max() == 0


def test_bad_prompts_are_named(model, tokenizer):
    with pytest.raises(EmptyProblemError):
        Session.start(model, [[5], []])
    with pytest.raises(InvalidProblemError, match="row 1"):
        Session.start(model, [[5], [tokenizer.unk_token_id]])
    session = start(model, tokenizer)
    with pytest.raises(StateMismatchError, match="3 rows of a state for 1 prompts"):
        start(model, tokenizer, ["1+1="], state=session.state)
    with pytest.raises(TokenizerNeededError):
        _ = Session.start(model, [[5]]).answers


def test_a_session_starts_from_a_state(model, tokenizer):
    before = start(model, tokenizer, ["7+", "1+1"])
    session = start(model, tokenizer, ["5=", "="], state=before.state)
    whole = start(model, tokenizer, ["7+5=", "1+1="])
    assert (session.state.logits - whole.state.logits).abs().max() < 1e-4
    assert tokenizer.decode(session.rows[0].tools[0].memory) == "5="


def test_memory_does_not_grow_with_the_length(model, tokenizer):
    session = start(model, tokenizer, ["7+5="])
    assert isinstance(session._batch.decoder, FusedDecoder)
    process = psutil.Process()
    session.run(20_000)
    cells = len(session.rows[0].tools[0].memory)
    before = process.memory_info().rss
    session.run(100_000)
    grown = process.memory_info().rss - before
    own = 8 * (len(session.rows[0].tools[0].memory) - cells)
    assert session.tokens == 120_000
    assert grown - 2 * own < 4 * 2**20  # a column may hold up to twice what it needs


def test_tools_may_be_given_as_objects(model, tokenizer, specs):
    tools = [make_tool(spec) for spec in specs]
    assert written(start(model, tokenizer, tools=tools), 30) == written(start(model, tokenizer), 30)
