"""The pointer memory does what PAPER section 2.1 says, at both ends too, and nothing breaks it."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from hf_toolssm.errors import (
    TooManyPointersError,
    UnknownCallError,
    UnknownPointerError,
    UnknownToolError,
)
from hf_toolssm.tools import available_tools, make_tool
from hf_toolssm.tools.pointer_memory import (
    MEMORY_BEGIN,
    MEMORY_END,
    NEW_POINTER,
    PointerMemory,
    left,
    read,
    right,
)


def start(problem="12+7=", max_pointers=2):
    return PointerMemory(max_pointers).start(problem, marker=str)


def test_a_new_pointer_stands_on_the_first_cell_of_the_problem():
    session = start()
    session.write("x")
    for pointer in (1, 2):
        assert session.call(NEW_POINTER, ()) == ()
        assert session.call(read(pointer), ()) == ("1",)


def test_left_of_the_first_cell_is_the_begin_marker_and_no_further():
    session = start()
    session.call(NEW_POINTER, ())
    for _ in range(3):
        session.call(left(1), ())
        assert session.call(read(1), ()) == (MEMORY_BEGIN,)
    session.call(right(1), ())
    assert session.call(read(1), ()) == ("1",)


def test_right_of_the_last_cell_is_the_end_marker_until_something_is_written_there():
    session = start("ab")
    session.call(NEW_POINTER, ())
    for _ in range(5):
        session.call(right(1), ())
    assert session.call(read(1), ()) == (MEMORY_END,)
    session.write("c")
    assert session.call(read(1), ()) == ("c",)


def test_commands_and_observations_do_not_enter_memory():
    session = start("ab")
    session.call(NEW_POINTER, ())
    session.call(read(1), ())
    assert session.memory == ["a", "b"]


def test_a_pointer_that_does_not_exist_is_named():
    session = start()
    session.call(NEW_POINTER, ())
    with pytest.raises(UnknownPointerError, match="pointer 2, but 1 exist.*new_pointer"):
        session.call(read(2), ())


def test_one_pointer_too_many_is_named():
    session = start(max_pointers=1)
    session.call(NEW_POINTER, ())
    with pytest.raises(TooManyPointersError, match="raise max_pointers"):
        session.call(NEW_POINTER, ())
    assert session.call(read(1), ()) == ("1",)


def test_a_command_of_another_tool_is_named():
    with pytest.raises(UnknownCallError, match="search"):
        start().call("search", ())


def test_a_clone_goes_its_own_way():
    session = start()
    session.call(NEW_POINTER, ())
    clone = session.clone()
    clone.call(right(1), ())
    clone.write("x")
    assert session.call(read(1), ()) == ("1",)
    assert (len(session.memory), len(clone.memory)) == (5, 6)


ACTIONS = st.one_of(
    st.sampled_from([NEW_POINTER, *(make(p) for p in (1, 2, 3, 4) for make in (read, left, right))]),
    st.tuples(st.just("write"), st.sampled_from("0123456789")),
)


@given(problem=st.text("0123456789+=", min_size=1, max_size=6), actions=st.lists(ACTIONS, max_size=80))
def test_any_stream_of_commands_agrees_with_a_tape_that_is_searched(problem, actions):
    """The same commands on a naive tape: a dictionary of cells, pointers as plain numbers."""
    session = PointerMemory(3).start(problem, marker=str)
    tape, pointers = dict(enumerate(problem)), []
    for action in actions:
        if isinstance(action, tuple):
            tape[len(tape)] = action[1]
            session.write(action[1])
            continue
        if action == NEW_POINTER:
            if len(pointers) == 3:
                with pytest.raises(TooManyPointersError):
                    session.call(action, ())
            else:
                assert session.call(action, ()) == ()
                pointers.append(0)
            continue
        verb, number = action.split("_")
        index = int(number) - 1
        if number == "4":
            with pytest.raises(UnknownCallError):
                session.call(action, ())
        elif index >= len(pointers):
            with pytest.raises(UnknownPointerError):
                session.call(action, ())
        elif verb == "read":
            at = pointers[index]
            expected = MEMORY_BEGIN if at < 0 else tape.get(at, MEMORY_END)
            assert session.call(action, ()) == (expected,)
        else:
            assert session.call(action, ()) == ()
            moved = pointers[index] + (1 if verb == "right" else -1)
            pointers[index] = sorted((-1, moved, len(tape)))[1]
    assert session.memory == [tape[at] for at in range(len(tape))]


def test_a_config_names_a_tool_by_its_file():
    assert "pointer_memory" in available_tools()
    tool = make_tool({"name": "pointer_memory", "max_pointers": 3})
    assert len(tool.calls) == 1 + 3 * 3


@pytest.mark.parametrize(
    ("spec", "message"),
    [
        ({"name": "os"}, "no tool is named 'os'"),
        ({"name": "recorder"}, "no tool is named"),
        ({"name": "../errors"}, "no tool is named"),
        ({}, "no tool is named None"),
        ("pointer_memory", "no tool is named 'pointer_memory'.*"),
        ({"name": "pointer_memory", "colour": "red"}, "no option 'colour'.*max_pointers"),
        ({"name": "pointer_memory", "max_pointers": 0}, "at least 1"),
        ({"name": "pointer_memory", "max_pointers": "three"}, "whole number"),
    ],
)
def test_an_unknown_tool_or_option_is_named(spec, message):
    with pytest.raises(UnknownToolError, match=message):
        make_tool(spec)
