"""Tools that read text: what they get and give, what their errors do, and what becomes of them in copies of a row."""

import json
import string

import pytest
import torch
from conftest import random_model, written
from hypothesis import given, settings
from hypothesis import strategies as st
from small_models import Heard
from tokenizers import AddedToken

from hf_toolssm.errors import StateMismatchError, ToolError, UnforkableToolError, UnknownToolError, UnsafeToolError
from hf_toolssm.generation.decoding import Drafting
from hf_toolssm.generation.session import Session
from hf_toolssm.generation.tool_loop import generate_with_tools
from hf_toolssm.protocol.calls import begin_token, end_token
from hf_toolssm.protocol.recorder import Recorder
from hf_toolssm.protocol.render import Renderer
from hf_toolssm.protocol.task_tokenizer import build_task_tokenizer
from hf_toolssm.protocol.trajectory import ANSWER, StepKind, step
from hf_toolssm.tools import facts_of


class Clock:
    """A tool at its smallest."""

    name = "clock"
    time_limit = None

    def call(self, name, argument):
        return f"12:00 {argument}"


class Counter:
    """Adds up what it is told, in JSON."""

    name = "count"
    time_limit = None

    def start(self, problem):
        return CounterAtWork({"problem": problem, "total": 0})

    def restore(self, state):
        return CounterAtWork(dict(state))


class CounterAtWork:
    def __init__(self, state):
        self.now = state

    def call(self, name, argument):
        self.now["total"] += json.loads(argument)["add"]
        return json.dumps({"total": self.now["total"]})

    def state(self):
        return self.now


class Odd:
    """Does what it is told, on any call."""

    name = "odd"

    def __init__(self, act, **said):
        self.act = act
        vars(self).update({"time_limit": None, **said})

    def call(self, name, argument):
        return self.act(argument)


CELLS = [*string.printable, "\N{REPLACEMENT CHARACTER}"]


def make(tools, seed=0):
    """A tokenizer and a random model with these tools, and two added tokens of which text must hold none."""
    tokenizer = build_task_tokenizer(list(dict.fromkeys(CELLS)), tools)
    tokenizer.add_tokens([AddedToken("<tool_call>", special=False), AddedToken("<|im_end|>", special=True)])
    torch.manual_seed(seed)
    model = random_model(tokenizer, [])
    return tokenizer, model


def start(tools, problems=("ab=",), **options):
    tokenizer, model = make(tools)
    model.config.tool_token_ids = None
    return Session.start(
        model, [tokenizer(p)["input_ids"] for p in problems], tools=tools, tokenizer=tokenizer, **options
    )


class Script:
    """Chooses what a text says, a token each; `<|...|>` is one."""

    def __init__(self, session, *rows):
        ids = session.tokenizer.convert_tokens_to_ids
        self.session = session
        self.left = [iter([ids(token) for token in row]) for row in rows]
        self.ended = [False] * len(rows)

    def choose(self, rows, logits):
        return [0 if self.session.rows[row].pending else next(self.left[row]) for row in rows]

    def stop(self, rows):
        return [False] * len(rows)


def call(name, argument):
    return [begin_token(name), *argument, end_token(name)]


def play(session, *rows, count=None):
    """Lets the rows write that; returns all tokens that were fed, as texts."""
    heard = Heard(len(session.rows))
    session.run(count, sink=heard, sampler=Script(session, *rows))
    return ["".join(session.tokenizer.convert_ids_to_tokens(tokens)) for tokens in heard.tokens]


END = ["<|end|>"]


def test_a_tool_gets_its_argument_as_text_and_its_answer_is_read_as_text():
    session = start([Clock()])
    (written,) = play(session, [*call("clock", "in Rome"), ANSWER, "x", *END])
    assert written == f"<|clock|>in Rome<|/clock|>12:00 in Rome{ANSWER}x<|end|>"
    assert session.rows[0].tool_calls == 1
    assert session.rows[0].complete


def test_a_tool_that_remembers_starts_on_the_problem_and_every_row_has_its_own():
    session = start([Counter()], ["ab=", "cd="])
    add = [call("count", json.dumps({"add": n})) for n in (1, 2, 40)]
    first, second = play(session, [*add[0], *add[2], *END], [*add[1], *END, *END])
    assert first.endswith('{"total": 41}<|end|>')
    assert second.endswith('{"total": 2}<|end|>')
    assert [row.tools[0].now for row in session.rows] == [
        {"problem": "ab=", "total": 41},
        {"problem": "cd=", "total": 2},
    ]


@pytest.mark.parametrize("limit", [None, 5.0])
@pytest.mark.parametrize("text", ["12", "<|end|>5", "<|odd|><|answer|>=<|/odd|>", "<tool_call><|im_end|>", b"7\xff8"])
def test_what_a_tool_writes_never_acts(text, limit):
    session = start([Odd(lambda _: text, time_limit=limit)])
    (written,) = play(session, [*call("odd", "a"), "b", *END])
    plain = text.decode("utf-8", errors="replace") if isinstance(text, bytes) else text
    assert written == f"<|odd|>a<|/odd|>{plain}b<|end|>"
    assert session.rows[0].tool_calls == 1
    tokens = session.tokenizer.convert_ids_to_tokens(session.tokenizer(plain, split_special_tokens=True)["input_ids"])
    assert len(tokens) >= len(plain) - 12  # `<tool_call>` is live where the tokenizer alone is asked


HOSTILE = st.lists(
    st.sampled_from([*"ab<|/>", "<|odd|>", "<|/odd|>", "<|end|>", ANSWER, "<tool_call>", "<|im_end|>", "<|pad|>"]),
    max_size=12,
).map("".join)


@pytest.fixture(scope="module")
def hostile_session():
    return start([Odd(str), Clock()])


def assert_text_stays_text(session, text):
    """Whatever a user or a tool wrote: none of its tokens was added, and it reads as it was written."""
    tokens = session.protocol.caller.encode(text, "odd")
    assert not {*session.tokenizer.get_added_vocab().values()} & {*tokens}
    assert session.tokenizer.decode(tokens) == text
    if text:
        for kind in (StepKind.INPUT, StepKind.THOUGHT, StepKind.OBSERVATION, StepKind.OUTPUT):
            assert Renderer(session.tokenizer).step(step(kind, text)) == tokens
        assert Renderer(session.tokenizer).step(step(StepKind.CALL, text, "odd"))[1:-1] == tokens


@settings(max_examples=100)
@given(HOSTILE)
def test_no_text_of_a_tool_is_ever_one_of_the_tokens_that_act(hostile_session, text):
    assert_text_stays_text(hostile_session, text)


@pytest.mark.slow
@settings(max_examples=10_000)
@given(HOSTILE)
def test_ten_thousand_texts_stay_text(hostile_session, text):
    assert_text_stays_text(hostile_session, text)


def raise_it(error):
    def act(argument):
        raise error

    return act


FAULTS = [
    (raise_it(ToolError("not now")), "ToolError: not now"),
    (raise_it(ZeroDivisionError("by zero")), "ToolFaultError: the tool raised ZeroDivisionError on odd: by zero"),
    (lambda _: None, "ToolFaultError: the tool returned NoneType on odd: return text"),
    (lambda _: (3,), "ToolFaultError: the tool returned tuple on odd: return text"),
    (lambda _: "5" * 10_000_000, "ObservationTooLongError: the tool returned 10,000,000"),
]


@pytest.mark.parametrize("limit", [None, 5.0])
@pytest.mark.parametrize(("act", "message"), FAULTS)
def test_the_model_reads_what_went_wrong_and_goes_on(act, message, limit):
    session = start([Odd(act, time_limit=limit)])
    (written,) = play(session, [*call("odd", "a"), "b", *END])
    assert written.startswith(f"<|odd|>a<|/odd|>{message}")
    assert written.endswith("b<|end|>")
    assert session.rows[0].error is None


@pytest.mark.parametrize("limit", [None, 5.0])
@pytest.mark.parametrize(
    "act", [lambda _: "a\ud800", raise_it(ToolError("no key \ud800")), raise_it(KeyError("\udfff"))]
)
def test_half_a_character_stops_no_row(act, limit):
    """A model can write one in JSON, and a tool repeat it."""
    session = start([Odd(act, time_limit=limit)], ["a", "b"])
    first, second = play(session, [*call("odd", "a"), "b", *END], [*"abc", *END])
    assert first.endswith("b<|end|>")
    assert "Error: " in first
    assert second == "abc<|end|>"


@pytest.mark.parametrize("limit", [None, 5.0])
@pytest.mark.parametrize(("act", "message"), FAULTS)
def test_a_tool_may_say_that_its_errors_end_the_row(act, message, limit):
    session = start([Odd(act, time_limit=limit, on_error="end")])
    (written,) = play(session, [*call("odd", "a"), "b", *END])
    assert written == "<|odd|>a<|/odd|>"
    assert session.rows[0].error.startswith(message)


@pytest.mark.parametrize(
    ("written", "message"),
    [
        (["<|/clock|>"], "ends an argument, and none is open"),
        (["<|clock|>", "a", "<|clock|>"], "another call stands in the argument of <|clock|>"),
        (["<|clock|>", "a", "<|/count|>"], "another call stands in the argument of <|clock|>"),
    ],
)
def test_a_malformed_call_is_read_as_an_error_and_the_next_one_is_carried_out(written, message):
    session = start([Clock(), Counter()])
    (found,) = play(session, [*written, *call("clock", "x"), *END])
    assert message in found
    assert found.endswith("<|clock|>x<|/clock|>12:00 x<|end|>")


def test_a_row_that_ends_in_an_argument_says_so():
    session = start([Clock()])
    play(session, ["<|clock|>", "a", *END])
    assert "MalformedCallError: the row ended in an argument that <|/clock|> never ends" in session.rows[0].error


def test_a_session_is_saved_and_forked_in_the_middle_of_an_argument(tmp_path):
    tools = [Counter(), Clock()]
    script = [*call("count", '{"add": 3}'), *call("count", '{"add": 4}'), *call("clock", "now"), *END]
    whole = start(tools)
    (expected,) = play(whole, script)
    for count in range(1, len(expected.replace("<|count|>", "c").replace("<|/count|>", "/")) - 20):
        session = start(tools)
        heard, sampler = Heard(1), Script(session, script)
        session.run(count, sink=heard, sampler=sampler)
        left = list(sampler.left[0])
        session.save(tmp_path / "session")
        loaded = Session.load(
            tmp_path / "session", session.runner.model, tools=tools, tokenizer=session.tokenizer, end_ids=None
        )
        for one in (loaded, session.clone(), session):
            again, rest = Heard(1), Script(one, [])
            rest.left[0] = iter(left)
            one.run(sink=again, sampler=rest)
            texts = session.tokenizer.convert_ids_to_tokens([*heard.tokens[0], *again.tokens[0]])
            assert "".join(texts) == expected
            assert one.rows[0].tools[0].now["total"] == 7


def test_a_tool_says_what_becomes_of_it_in_a_copy_of_a_row(tmp_path):
    for fork, same in (("copy", False), ("shared", True)):
        tool = Counter()
        tool.fork = fork
        session = start([tool])
        copied = session.select([0, 0])
        assert (copied.rows[0].tools[0] is session.rows[0].tools[0]) is same
    tool.fork = "never"
    session = start([tool])
    for refused in (session.clone, lambda: session.select([0]), lambda: session.save(tmp_path / "session")):
        with pytest.raises(UnforkableToolError, match="'count' is not"):
            refused()
    play(session, [*call("count", '{"add": 3}'), *END])
    assert session.rows[0].tools[0].now["total"] == 3


def test_a_tool_that_remembers_nothing_is_one_object_for_all_rows():
    tool = Clock()
    session = start([tool], ["a", "b"])
    assert all(row.tools[0] is tool for row in session.select([0, 1, 1]).rows)


@pytest.mark.parametrize(
    ("tool", "message"),
    [
        (object(), "is no tool"),
        (Odd(str, on_error="ignore"), "on_error is one of observe, end"),
        (Odd(str, fork="twice"), "fork is one of copy, shared, never"),
        (Odd(str, unit="bytes"), "unit is one of text, cells"),
        (Odd(str, unit="cells", on_error="observe"), "an error's text is no cell"),
        (Odd(str, time_limit=-1), "number of seconds above 0"),
        (Odd(str, time_limit="5"), "number of seconds above 0"),
        (Clock, "is no tool"),
        (Odd(str, calls=["a"]), "calls are a mapping"),
        (Odd(str, calls={"a": "yes"}), "calls are a mapping"),
        (Odd(str, calls={"a b": True}), "calls are a mapping"),
        (Odd(str, calls={"/a": True}), "calls are a mapping"),
        (Odd(str, calls={"": True}), "calls are a mapping"),
    ],
)
def test_what_a_tool_cannot_say_of_itself_is_named(tool, message):
    with pytest.raises(UnknownToolError, match=message):
        facts_of(tool)


def test_tools_that_share_a_call_are_refused():
    with pytest.raises(UnknownToolError, match="share a call"):
        start([Clock(), Clock()])


def test_a_config_alone_switches_on_no_tool_with_side_effects(monkeypatch):
    tokenizer, model = make([Clock()])
    monkeypatch.setattr("hf_toolssm.protocol.given_tools.make_tool", lambda spec: Clock())
    model.config.tools, model.config.tool_token_ids = [{"name": "clock"}], None
    with pytest.raises(UnsafeToolError, match="has side effects"):
        Session.start(model, [[3, 4]], tokenizer=tokenizer)


def repeating(model, tokenizer, token):
    """The same model, which writes that token on and on."""
    with torch.no_grad():
        model.backbone.norm_f.weight.zero_()
        model.lm_head.weight.zero_()
        model.lm_head.bias = torch.nn.Parameter(torch.zeros(len(model.lm_head.weight)))
        model.lm_head.bias[tokenizer.convert_tokens_to_ids(token)] = 5.0
    return model


@pytest.mark.parametrize("has_side_effects", [True, False])
def test_a_tool_with_side_effects_is_called_as_often_as_the_model_calls_it(has_side_effects, monkeypatch):
    """A draft carries calls out on a clone, which a stateless tool has none of."""
    made, drafted = [], []
    tool = Odd(lambda argument: made.append(argument) or "", calls={"odd": False}, has_side_effects=has_side_effects)
    tokenizer, model = make([tool])
    model.config.tool_token_ids = None
    runs = Drafting._runs
    monkeypatch.setattr(Drafting, "_runs", lambda *given: drafted.append(runs(*given)) or drafted[-1])
    session = Session.start(repeating(model, tokenizer, "<|odd|>"), [[5, 6]], tools=[tool], tokenizer=tokenizer)
    session.run(500)
    assert session.rows[0].tool_calls == 500
    assert any(drafted) is not has_side_effects
    assert len(made) == 500 or not has_side_effects


def test_a_fork_of_a_tool_whose_state_is_its_own_shares_nothing():
    class Aliasing(Counter):
        def restore(self, state):
            return CounterAtWork(state)

    session = start([Aliasing()])
    copied = session.clone()
    play(session, [*call("count", '{"add": 3}'), *END])
    assert (session.rows[0].tools[0].now["total"], copied.rows[0].tools[0].now["total"]) == (3, 0)


def test_a_file_gives_no_tool_the_state_of_another(tmp_path):
    other = Counter()
    other.name = "sum"
    tools = [Counter(), other]
    session = start(tools)
    session.save(tmp_path / "session")
    options = {"tokenizer": session.tokenizer}
    Session.load(tmp_path / "session", session.runner.model, tools=tools, **options)
    with pytest.raises(StateMismatchError, match="other tools"):
        Session.load(tmp_path / "session", session.runner.model, tools=tools[::-1], **options)


def test_what_rows_share_is_not_taken_apart_by_a_file(tmp_path):
    tool = Counter()
    tool.fork = "shared"
    session = start([tool])
    session.save(tmp_path / "one")
    with pytest.raises(UnforkableToolError, match="rows share the tool 'count'"):
        session.select([0, 0]).save(tmp_path / "two")


@pytest.mark.parametrize("name", ["answer", "end"])
def test_a_call_takes_over_no_token_that_has_a_meaning(name):
    tool = Odd(str)
    tool.name = name
    with pytest.raises(UnknownToolError):
        start([tool])


def test_a_model_without_tools_of_its_own_generates():
    tokenizer, model = make([])
    del model.config.tools
    model.config.tool_token_ids = {ANSWER: tokenizer.convert_tokens_to_ids(ANSWER)}
    assert generate_with_tools(model, torch.tensor([[5, 6]]), max_new_tokens=3).shape == (1, 5)


def test_an_error_is_read_in_short_and_is_no_call_that_was_carried_out():
    session = start([Odd(raise_it(ToolError("5" * 2_000_000)))])
    (written,) = play(session, [*call("odd", "a"), *END])
    assert len(written) < 600
    assert session.rows[0].tool_calls == 0


class Forgetful:
    name = "forgetful"

    def start(self, problem):
        return Clock()


def test_a_tool_that_cannot_be_copied_says_so(tmp_path):
    session = start([Forgetful()])
    for refused in (session.clone, lambda: session.save(tmp_path / "session")):
        with pytest.raises(UnforkableToolError, match=r"give it state\(\)"):
            refused()


class Double:
    """A tool of cells that remembers nothing."""

    unit, calls = "cells", {"double": True}

    def call(self, name, argument):
        return (*argument, *argument)


def test_a_tool_of_cells_may_remember_nothing():
    pen = Recorder("a", Double())
    pen.think("b")
    assert pen.call("double", "b") == ("b", "b")
    pen.begin_answer()
    pen.output("b")
    session = start([Double()])
    (said,) = play(session, ["b", *call("double", "b"), ANSWER, "b", *END])
    assert said == "".join(cell for _, cell in written(pen.trajectory())) + "<|end|>"
