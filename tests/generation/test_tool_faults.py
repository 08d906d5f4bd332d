"""Whatever a tool does wrong has a defined outcome, and it is nobody's problem but the row's that called it."""

import re
import sys
import threading
import time

import pytest
from small_models import Heard, NotCompiled, lively, start_lively, written

from hf_toolssm.errors import ToolError, UnknownToolError
from hf_toolssm.generation.decoder import FusedDecoder
from hf_toolssm.protocol.calls import begin_token
from hf_toolssm.tools import facts_of
from hf_toolssm.tools.pointer_memory import PointerMemory, right
from hf_toolssm.tools.tool import TIME_LIMIT

TRIGGER = begin_token(right(1))
PROBLEMS = ["7+5=", "98765+4321=", "1+1=", "500+500="]


class Misbehaving(PointerMemory):
    """A pointer memory of which one row's session does something else on one command."""

    def __init__(self, row, act, limit=None):
        super().__init__(max_pointers=3)
        self.time_limit = limit
        self.row, self.act, self.started = row, act, 0
        self.made = []

    def start(self, problem, marker):
        session = super().start(problem, marker)
        guilty = self.started == self.row
        self.started += 1
        return MisbehavingSession(self, session, guilty)


class MisbehavingSession:
    def __init__(self, tool, session, guilty):
        self.tool, self.session, self.guilty = tool, session, guilty

    def write(self, cell):
        self.session.write(cell)

    def call(self, name, argument):
        if self.guilty and name == right(1):
            self.tool.made.append(name)
            return self.tool.act()
        return self.session.call(name, argument)

    def clone(self):
        return MisbehavingSession(self.tool, self.session.clone(), self.guilty)


@pytest.fixture
def model(model, tokenizer):
    return lively(model, tokenizer)


class Unspeakable(Exception):
    def __str__(self):
        raise ValueError("no text")


def raise_it(error):
    def act():
        raise error

    return act


class Provoke:
    """Steers greedily, but for one row, which writes the trigger as its sixth choice."""

    def __init__(self, tokenizer, tool):
        self.trigger, self.tool = tokenizer.convert_tokens_to_ids(TRIGGER), tool
        self.choices = 0

    def choose(self, rows, logits):
        chosen = logits.argmax(-1).tolist()
        if self.tool.row in rows:
            self.choices += 1
            if self.choices > 5 and not self.tool.made:
                chosen[rows.index(self.tool.row)] = self.trigger
        return chosen

    def stop(self, rows):
        return [False] * len(rows)


def run_beside_others(model, tokenizer, act, limit=None, count=60):
    """Runs four rows of which one has the fault; checks that the others are as without it."""
    tool = Misbehaving(1, act, limit)
    session = start_lively(model, tokenizer, PROBLEMS, tools=[tool])
    heard = Heard(4)
    session.run(count, sink=heard, sampler=Provoke(tokenizer, tool))
    expected = written(start_lively(model, tokenizer, PROBLEMS), count)
    assert len(tool.made) >= 1
    for row in (0, 2, 3):
        assert heard.tokens[row] == expected[row]
        assert len(expected[row]) == count
        assert session.rows[row].error is None
    return session, heard.tokens[1], expected[1]


@pytest.mark.parametrize("limit", [None, 5.0])
@pytest.mark.parametrize(
    ("act", "message"),
    [
        (raise_it(ZeroDivisionError("by zero")), "ToolFaultError: the tool raised ZeroDivisionError .*by zero"),
        (raise_it(ToolError("not now")), "ToolError: not now"),
        (raise_it(SystemExit("bye")), "the tool raised SystemExit .*bye"),
        (raise_it(Unspeakable()), "Unspeakable .*cannot be shown"),
        (lambda: None, "ToolFaultError: the tool returned NoneType"),
        (lambda: 5, "returned int"),
        (lambda: ("5",), "returned '5' .*no token of the model"),
        (lambda: (3, 10_000), "returned 10000"),
        (lambda: (-1,), "returned -1"),
        (lambda: "5", "returned str"),
        (lambda: [3] * 2_000_000, "ObservationTooLongError"),
    ],
)
def test_a_fault_ends_its_row_with_a_name(model, tokenizer, act, message, limit):
    session, tokens, expected = run_beside_others(model, tokenizer, act, limit)
    row = session.rows[1]
    assert row.finished
    assert not row.complete
    assert re.search(message, row.error), row.error
    # The row ends with the command, and its state has seen just that.
    assert tokens[:-1] == expected[: len(tokens) - 1]
    assert tokenizer.convert_ids_to_tokens(tokens[-1]) == TRIGGER
    seen = [*tokenizer(PROBLEMS[1])["input_ids"], *tokens]
    whole, _ = session.runner.feed(None, [seen])
    assert (session.state.logits[1] - whole.logits[0]).abs().max() < 1e-3


def test_a_tool_that_hangs_ends_at_its_time_limit_while_others_go_on(model, tokenizer):
    release = threading.Event()
    start = time.monotonic()
    session, _, _ = run_beside_others(model, tokenizer, release.wait, limit=0.5)
    assert time.monotonic() - start < 30
    assert "ToolTimeoutError: the tool took longer than its time limit of 0.5 seconds" in session.rows[1].error
    release.set()


def test_a_slow_tool_lets_the_others_finish_first(model, tokenizer):
    others_are_done = threading.Event()

    class Watch(Heard):
        def take(self, events):
            super().take(events)
            if all(len(self.tokens[row]) == 60 for row in (0, 2, 3)):
                others_are_done.set()

    tool = Misbehaving(1, lambda: () if others_are_done.wait(20) else None, limit=30.0)
    session = start_lively(model, tokenizer, PROBLEMS, tools=[tool])
    heard = Watch(4)
    session.run(60, sink=heard, sampler=Provoke(tokenizer, tool))
    assert session.rows[1].error is None
    assert [len(tokens) for tokens in heard.tokens] == [60] * 4


def test_an_empty_observation_is_fine(model, tokenizer):
    session, tokens, _ = run_beside_others(model, tokenizer, lambda: ())
    assert session.rows[1].error is None
    assert len(tokens) == 60


def test_a_tool_that_fails_when_the_model_writes_ends_its_row(model, tokenizer):
    session = start_lively(model, tokenizer, PROBLEMS, tools=[NotCompiled(max_pointers=3)])

    class Full:
        def write(self, cell):
            raise MemoryError("full")

        def clone(self):
            return self

    session.rows[2].tools[0] = Full()
    session.run(100)
    assert "MemoryError when the model wrote: full" in session.rows[2].error
    assert [row.error for at, row in enumerate(session.rows) if at != 2] == [None] * 3


def test_a_tool_that_says_no_limit_has_one():
    class Silent:
        name = "silent"

        def call(self, name, argument):
            return ""

    assert facts_of(Silent()).time_limit == TIME_LIMIT


@pytest.mark.parametrize("limit", [0, -1, float("inf"), float("nan"), 1e10])
def test_an_impossible_time_limit_is_named_at_the_start(model, tokenizer, limit):
    with pytest.raises(UnknownToolError, match="number of seconds above 0"):
        start_lively(model, tokenizer, ["7+5="], tools=[Misbehaving(0, lambda: (), limit)])


@pytest.mark.parametrize("length", [1, 5, 63, 64, 65, 500, 2_500])
def test_a_long_observation_is_read_as_if_it_were_fed_token_by_token(model, tokenizer, length, monkeypatch):
    observation = ([3, 4, 5, 6, 13] * length)[:length]
    session, tokens, _ = run_beside_others(model, tokenizer, lambda: observation, count=length + 60)
    at = tokens.index(tokenizer.convert_tokens_to_ids(TRIGGER)) + 1
    assert observation == tokens[at : at + length]
    monkeypatch.setattr(FusedDecoder, "piece_from", sys.maxsize)
    singly, tokens_fed_singly, _ = run_beside_others(model, tokenizer, lambda: observation, count=length + 60)
    assert tokens_fed_singly == tokens
    assert (singly.state.logits - session.state.logits).abs().max() < 1e-3
