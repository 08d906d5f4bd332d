"""The tape does what a tape of a Turing machine does, and ends nowhere but where its option says."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from hf_toolssm.errors import TapeFullError, UnknownCallError, UnknownToolError
from hf_toolssm.tools import make_tool
from hf_toolssm.tools.tape import (
    TAPE_BEGIN,
    TAPE_END,
    TAPE_LEFT,
    TAPE_READ,
    TAPE_RIGHT,
    tape_write,
)


def started(problem, **options):
    return make_tool({"name": "tape", **options}).start(list(problem), marker=str)


def play(session, commands):
    """What every read shows."""
    return [cell for command in commands for cell in session.call(command, ())]


def test_the_head_starts_at_the_first_cell_and_meets_a_marker_on_either_side():
    session = started("10")
    walk = [TAPE_READ, TAPE_LEFT, TAPE_READ, *[TAPE_RIGHT, TAPE_READ] * 3]
    assert play(session, walk) == ["1", TAPE_BEGIN, "1", "0", TAPE_END]


def test_beyond_a_marker_there_is_nothing_to_go_to():
    session = started("1")
    assert play(session, [TAPE_LEFT] * 5 + [TAPE_READ, TAPE_RIGHT, TAPE_READ]) == [TAPE_BEGIN, "1"]
    assert play(session, [TAPE_RIGHT] * 5 + [TAPE_READ, TAPE_LEFT, TAPE_READ]) == [TAPE_END, "1"]


def test_writing_onto_a_marker_makes_the_tape_longer():
    session = started("1")
    play(session, [TAPE_LEFT, tape_write("0"), TAPE_LEFT, tape_write("0"), *[TAPE_RIGHT] * 3, tape_write("1")])
    assert "".join(session.memory) == "0011"
    assert play(session, [*[TAPE_LEFT] * 9, TAPE_READ, TAPE_RIGHT, TAPE_READ]) == [TAPE_BEGIN, "0"]


def test_what_the_model_thinks_is_not_on_the_tape():
    session = started("10")
    session.write("A")
    session.write("1")
    assert "".join(session.memory) == "10"


def test_a_full_tape_is_named_and_stays_as_it_is():
    session = started("10", max_cells=3)
    play(session, [TAPE_LEFT, tape_write("1"), TAPE_LEFT])
    with pytest.raises(TapeFullError, match="3 cells.*raise max_cells"):
        session.call(tape_write("1"), ())
    assert "".join(session.memory) == "110"
    play(session, [TAPE_RIGHT, tape_write("0")])  # what is there can still be changed
    assert "".join(session.memory) == "010"


@pytest.mark.parametrize("options", [{"symbols": ""}, {"symbols": "010"}, {"symbols": 7}, {"max_cells": 0}])
def test_options_that_cannot_be_are_named(options):
    with pytest.raises(UnknownToolError, match=f"tape: {next(iter(options))} must be"):
        make_tool({"name": "tape", **options})


def test_a_symbol_that_the_tape_was_not_made_for_cannot_be_written():
    with pytest.raises(UnknownCallError, match="tape_write_2"):
        started("10").call(tape_write("2"), ())


@given(st.lists(st.sampled_from([TAPE_READ, TAPE_LEFT, TAPE_RIGHT, tape_write("0"), tape_write("1")]), max_size=60))
def test_it_is_a_dictionary_of_cells_and_two_bounds(commands):
    session, cells, head = started("01"), {0: "0", 1: "1"}, 0
    for command in commands:
        shown = session.call(command, ())
        if command == TAPE_READ:
            beyond = TAPE_BEGIN if head < min(cells) else TAPE_END
            assert shown == (cells.get(head, beyond),)
        elif command == TAPE_LEFT:
            head = max(head - 1, min(cells) - 1)
        elif command == TAPE_RIGHT:
            head = min(head + 1, max(cells) + 1)
        else:
            cells[head] = command.removeprefix("tape_write_")
    assert session.memory == [cells[at] for at in sorted(cells)]
    assert session.head == head
