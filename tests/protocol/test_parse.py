"""Tokens are read back into the trajectory that they are, and that is written as the same tokens again."""

import copy

import pytest
from conftest import CELL_TASKS
from hypothesis import given, settings
from hypothesis import strategies as st

from dataset_builders.catalog import available_machines, load_task
from dataset_builders.problem_sets import TEST, ProblemSet, ReferenceTrajectories
from hf_toolssm.errors import TooFewProblemsError, ToolError
from hf_toolssm.protocol.parse import parse
from hf_toolssm.protocol.recorder import Recorder
from hf_toolssm.protocol.render import Renderer
from hf_toolssm.protocol.special_tokens import add_tool_tokens
from hf_toolssm.protocol.task_tokenizer import build_task_tokenizer
from hf_toolssm.protocol.trajectory import ANSWER, Step, StepKind, Trajectory, Writer, step
from hf_toolssm.tools import make_tool
from hf_toolssm.tools.search_memory import SearchMemory

VARIANTS = [(name, v) for name in (*CELL_TASKS, *available_machines()) for v in load_task(name).variants]


def some_rows(name, variant):
    """Three solved problems of few symbols; some lengths of some tasks have no test problem."""
    for length in range(1 if name.startswith("hanoi") else 4, 40):
        try:
            return list(ReferenceTrajectories(ProblemSet(load_task(name), TEST, length, (("test", 3),), variant)))
        except TooFewProblemsError:
            continue
    raise AssertionError(f"{name} has no test problems")


def assert_parsed_back(trajectory, tokenizer, tools):
    """By value, and the parsed one, with its own tokens or made from its text again, as the same tokens."""
    ids, writers = Renderer(tokenizer).written(trajectory)
    assert len(ids) == len(writers)
    parsed = parse(ids, writers, tokenizer, tools)
    assert parsed == trajectory
    assert parsed.check() is parsed
    again = Trajectory(tuple(Step(s.kind, s.content, s.name) for s in parsed.steps))
    for each in (parsed, again, Trajectory.from_row(parsed.to_row())):
        assert Renderer(tokenizer).written(each) == (ids, writers)


@pytest.mark.parametrize(("name", "variant"), VARIANTS)
def test_every_task_is_read_back(name, variant, byte_tokenizer):
    task = load_task(name)
    tools = [make_tool(spec) for spec in task.tools(variant)]
    merging = copy.deepcopy(byte_tokenizer)
    add_tool_tokens(merging, tools)
    for trajectory in some_rows(name, variant):
        for tokenizer in (build_task_tokenizer(task.cells(variant), tools), merging):
            try:
                assert_parsed_back(trajectory, tokenizer, tools)
            except Exception as error:
                raise AssertionError(f"{name} {variant}") from error


class Echo:
    """A tool of text: says what it hears, or nothing."""

    name = "echo"

    def call(self, name, argument):
        return argument[::-1]


class Counter:
    """A tool of text with two calls, one without an argument."""

    calls = {"count": False, "add": True}  # noqa: RUF012

    def call(self, name, argument):
        if name == "add" and not argument:
            raise ToolError("nothing to add")
        return str(len(argument))


TEXT_TOOLS = [Echo(), Counter()]
HOSTILE = st.lists(
    st.one_of(
        st.text(st.characters(codec="utf-8"), min_size=1, max_size=5),
        st.sampled_from([ANSWER, "<|echo|>", "<|/echo|>", "<|count|>", "<|endoftext|>", "123 the sum", " ", "\n"]),
    ),
    max_size=4,
).map("".join)
SAID = HOSTILE.filter(bool)
CELLS = st.lists(st.sampled_from("ab\n0"), min_size=1, max_size=6)

CALLED = [
    st.tuples(st.just("call"), st.just("echo"), HOSTILE),
    st.tuples(st.just("call"), st.just("add"), HOSTILE),
    st.tuples(st.just("call"), st.just("count"), st.just("")),
]
FOUND = [st.tuples(st.just("call"), st.just("find"), CELLS)]


def turns(said, calls):
    """Of several turns what is said, thought and called, and, if there is an answer, what is output and called."""
    thoughts = st.lists(st.one_of(st.tuples(st.just("think"), said), *calls), max_size=4)
    outputs = st.lists(st.one_of(st.tuples(st.just("output"), said), *calls), max_size=4)
    return st.lists(st.tuples(said, thoughts, st.none() | outputs), min_size=1, max_size=3)


def record(dialogue, *tools, cell_by_cell=False):
    """The dialogue as a pen writes it; the last turn has an answer."""
    pen = None
    for number, (said, thoughts, outputs) in enumerate(dialogue, 1):
        if pen is None:
            pen = Recorder(said, *tools)
        else:
            pen.input(said)
        marked = [("begin_answer",), *(outputs or ())] if outputs is not None or number == len(dialogue) else ()
        for act, *words in (*thoughts, *marked):
            for word in words[0] if cell_by_cell and act != "call" and words else (None,):
                getattr(pen, act)(*(words if word is None else [word]))
    return pen.trajectory()


@pytest.fixture(scope="module")
def text_tokenizer(byte_tokenizer):
    tokenizer = copy.deepcopy(byte_tokenizer)
    add_tool_tokens(tokenizer, [*TEXT_TOOLS, SearchMemory()])
    return tokenizer


@settings(max_examples=300)
@given(dialogue=turns(SAID, CALLED))
def test_a_dialogue_of_texts_is_read_back(text_tokenizer, dialogue):
    assert_parsed_back(record(dialogue, *TEXT_TOOLS), text_tokenizer, TEXT_TOOLS)


@settings(max_examples=100)
@given(dialogue=turns(CELLS, [*CALLED, *FOUND]))
def test_a_dialogue_of_cells_is_read_back_where_some_tools_read_text(text_tokenizer, dialogue):
    tools = [SearchMemory(), *TEXT_TOOLS]
    assert_parsed_back(record(dialogue, *tools, cell_by_cell=True), text_tokenizer, tools)


def without_ends(ids, writers, end):
    """The tokens but for the ends of turns, with their writers."""
    return [(t, w) for t, w in zip(ids, writers) if (t, w) != (end, Writer.MODEL)]


def assert_read_as_far_as_it_goes(ids, writers, tokenizer, tools):
    parsed = parse(ids, writers, tokenizer, tools)
    found = Renderer(tokenizer).written(parsed)
    assert without_ends(*found, tokenizer.eos_token_id) == without_ends(ids, writers, tokenizer.eos_token_id)
    return parsed


@settings(max_examples=150)
@given(dialogue=turns(SAID, CALLED), data=st.data())
def test_what_was_cut_anywhere_is_there_as_far_as_it_goes(text_tokenizer, dialogue, data):
    ids, writers = Renderer(text_tokenizer).written(record(dialogue, *TEXT_TOOLS))
    at = data.draw(st.integers(0, len(ids)))
    assert_read_as_far_as_it_goes(ids[:at], writers[:at], text_tokenizer, TEXT_TOOLS)


@settings(max_examples=300)
@given(data=st.data())
def test_whatever_a_model_writes_is_read(text_tokenizer, data):
    """Tokens of any kind in any order, as an untrained model has them: calls in calls, ends without a begin."""
    acting = [*text_tokenizer.added_tokens_decoder]
    written = [(token, Writer.USER) for token in text_tokenizer.encode("a b")]
    for _ in range(data.draw(st.integers(0, 12))):
        token = data.draw(st.one_of(st.sampled_from(acting), st.integers(0, len(text_tokenizer) - 1)))
        written.append((token, data.draw(st.sampled_from([Writer.MODEL, Writer.MODEL, Writer.TOOL, Writer.USER]))))
    for tools in (TEXT_TOOLS, [SearchMemory(), *TEXT_TOOLS]):
        assert_read_as_far_as_it_goes(*zip(*written), text_tokenizer, tools)


def of_model(tokenizer, *texts):
    """A problem, and tokens of a model behind it."""
    ids = [tokenizer.convert_tokens_to_ids(text) for text in texts]
    return [*tokenizer.encode("a"), *ids], [Writer.USER, *[Writer.MODEL] * len(ids)]


@pytest.mark.parametrize(
    ("texts", "calls"),
    [
        (["<|echo|>", "a"], [("echo", "a", 2)]),
        (["<|echo|>"], [("echo", "", 1)]),
        (["<|echo|>", "<|count|>", "b"], [("echo", "", 2)]),
        (["<|echo|>", "a", "<|echo|>", "b", "<|/echo|>"], [("echo", "a", 3), ("echo", "", 1)]),
        (["<|/echo|>", "b"], [("echo", "", 1)]),
        (["<|echo|>", "a", "<|endoftext|>", "<|/echo|>"], [("echo", "a", 2), ("echo", "", 1)]),
    ],
)
def test_a_call_that_broke_off_keeps_what_there_is_of_it(text_tokenizer, texts, calls):
    parsed = assert_read_as_far_as_it_goes(*of_model(text_tokenizer, *texts), text_tokenizer, TEXT_TOOLS)
    found = [(s.name, s.text, len(s.ids)) for s in parsed.steps if s.kind is StepKind.CALL]
    assert found == calls


def test_a_marker_is_a_thought_once_and_an_output_behind_it(text_tokenizer):
    parsed = parse(*of_model(text_tokenizer, "b", ANSWER, ANSWER), text_tokenizer, TEXT_TOOLS)
    marker = step(StepKind.THOUGHT, (ANSWER,))
    assert parsed.steps[1:] == (step(StepKind.THOUGHT, "b"), marker, step(StepKind.OUTPUT, ANSWER))
