"""The search memory shows what grep would show of the problem and of what the model wrote."""

import pytest
from conftest import written
from hypothesis import given
from hypothesis import strategies as st

from dataset_builders.catalog import load_task
from hf_toolssm.errors import ObservationTooLongError, UnknownCallError, UnknownToolError
from hf_toolssm.protocol.recorder import Recorder
from hf_toolssm.protocol.task_tokenizer import build_task_tokenizer
from hf_toolssm.protocol.trajectory import StepKind
from hf_toolssm.tools import make_tool
from hf_toolssm.tools.search_memory import FIND, NEWLINE, SEARCH_END, SearchMemory


def start(problem="ab\nbc\ncd", **options):
    return SearchMemory(**options).start(problem, marker=str)


def write(session, text):
    for cell in text:
        session.write(cell)


def search(session, pattern):
    return "".join(session.call(FIND, pattern))


def test_every_line_that_holds_the_pattern_is_shown_in_order():
    assert search(start(), "b") == f"ab{NEWLINE}bc{SEARCH_END}"


def test_the_end_alone_says_that_no_line_matches():
    assert search(start(), "x") == SEARCH_END


def test_a_search_sees_what_the_model_wrote_also_in_an_unfinished_line():
    session = start("ab\n")
    search(session, "a")
    write(session, "xa\nya")
    assert search(session, "a") == f"ab\nxa\nya{SEARCH_END}"


def test_a_pattern_does_not_enter_memory():
    session = start()
    search(session, "xyz")
    assert "".join(session.memory) == "ab\nbc\ncd"


def test_an_observation_that_is_too_long_is_refused():
    session = start(max_cells=4)
    with pytest.raises(ObservationTooLongError, match="more than 4 cells.*max_cells"):
        search(session, "b")
    assert search(session, "bc") == f"bc{SEARCH_END}"


def test_an_observation_never_has_more_cells_than_the_option_says():
    assert len(search(start(max_cells=6), "b")) - len(SEARCH_END) + 1 == 6


def test_a_clone_goes_its_own_way():
    session = start()
    clone = session.clone()
    write(clone, "\nbb")
    write(session, "\nbz")
    assert search(session, "z") == f"bz{SEARCH_END}"
    assert search(clone, "bb") == f"bb{SEARCH_END}"


def test_what_it_cannot_do_is_named():
    with pytest.raises(UnknownCallError, match="read_1"):
        start().call("read_1", ())
    with pytest.raises(UnknownToolError, match="max_cells"):
        make_tool({"name": "search_memory", "max_cells": 0})


@given(
    pieces=st.lists(st.text("ab\n", max_size=12), min_size=1, max_size=6),
    patterns=st.lists(st.text("ab\n", max_size=3), min_size=6, max_size=6),
)
def test_any_search_agrees_with_looking_at_every_line(pieces, patterns):
    session, memory = start("a"), "a"
    for piece, pattern in zip(pieces, patterns):
        write(session, piece)
        memory += piece
        lines = memory.removesuffix("\n").split("\n") if "\n" not in pattern else []
        assert search(session, pattern) == "\n".join(line for line in lines if pattern in line) + SEARCH_END


def test_a_recorded_argument_is_part_of_the_call():
    pen = Recorder("ab\n", SearchMemory())
    assert "".join(pen.call(FIND, "b")) == f"ab{SEARCH_END}"
    pen.begin_answer()
    pen.output("b")
    steps, cells = pen.trajectory().steps, written(pen.trajectory())
    assert [(s.name, s.content) for s in steps if s.kind is StepKind.CALL] == [("find", ("b",))]
    assert [s.content for s in steps if s.kind is StepKind.OBSERVATION] == [("a", "b", SEARCH_END)]
    assert [cell for kind, cell in cells if kind is StepKind.CALL] == ["<|find|>", "b", "<|/find|>"]


def test_a_newline_that_the_tokenizer_has_stays_an_ordinary_token():
    task = load_task("logical_graph")
    tokenizer = build_task_tokenizer(task.cells("depth_first"), [SearchMemory()])
    assert tokenizer.decode(tokenizer("1:abc\n")["input_ids"], skip_special_tokens=True) == "1:abc\n"
