"""The pointer store holds what is taken, cell by cell, from what was said, and gives it back in the same way."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from hf_toolssm.errors import InvalidArgumentsError, UnknownCallError
from hf_toolssm.tools import make_tool
from hf_toolssm.tools.pointer_store import (
    ABSENT,
    CLOSE_KEY,
    DELETE,
    DONE,
    GET,
    PUT,
    SHOW,
    TEXT_END,
    VALUE_END,
    PointerStore,
    enter,
    escape,
    seek,
    take,
)

TEXTS = st.text(st.characters(codec="utf-8"), max_size=6)


def start(said=""):
    return PointerStore().start(said, marker=str)


def say(session, *texts):
    """The user says some texts, with a sign before each."""
    for cell in "".join(f":{text}" for text in texts):
        session.write(cell)


def copy(session, part, text):
    """Takes a text that stands behind a sign into the key or the value, and goes to what is behind it.

    Before a key the pointer stands before the sign, and before a value on it.
    """
    if part == "key":
        session.call(seek(part), ())
    shown = [session.call(enter(part), ())] + [session.call(take(part), ()) for _ in text]
    assert "".join(cell for (cell,) in shown).startswith(text)


def act(session, name, key, value=None):
    """Says a key, and a value if there is one, and takes them for a call."""
    say(session, *(text for text in (key, value) if text is not None))
    copy(session, "key", key)
    if value is not None:
        copy(session, "value", value)
    shown = session.call(name, ())
    while name == GET and shown[-1] not in (VALUE_END, ABSENT):
        shown += session.call(SHOW, ())
    session.call(DONE, ())
    return shown


def got(session, key):
    """What is shown of a key's value; None where it has none."""
    shown = act(session, GET, key)
    return None if shown == (ABSENT,) else "".join(shown[:-1])


def test_the_pointer_shows_every_cell_of_what_was_said_and_then_its_end():
    session = start("ab")
    moves = [seek("key"), enter("key"), escape("key"), CLOSE_KEY]
    assert [session.call(move, ()) for move in moves] == [("a",), ("b",), (TEXT_END,), (TEXT_END,)]


def test_what_is_said_later_stands_behind_the_pointer_and_done_forgets_what_was_said():
    session = start("ab")
    session.call(seek("key"), ())
    session.write("c")
    assert session.call(seek("key"), ()) == ("b",)
    session.call(DONE, ())
    session.write("d")
    assert session.call(seek("value"), ()) == ("d",)
    assert session.call(seek("value"), ()) == (TEXT_END,)


@given(st.lists(st.tuples(st.sampled_from((PUT, GET, DELETE)), TEXTS.filter(bool), TEXTS), max_size=20), st.data())
def test_it_is_a_dict_of_the_texts_that_were_taken_whatever_they_hold(acts, data):
    session, values = start(), {}
    keys = [key for _, key, _ in acts]
    for name, key, value in acts:
        key = data.draw(st.sampled_from((key, *keys)))  # mostly one that another act has too
        if name == PUT:
            assert act(session, PUT, key, value) == ()
            values[key] = value
        elif name == DELETE:
            assert act(session, DELETE, key) == ()
            values.pop(key, None)
        else:
            assert got(session, key) == values.get(key)
    assert {key: got(session, key) for key in {*keys}} == {key: values.get(key) for key in {*keys}}


def test_a_copy_shares_what_there_was_and_nothing_that_comes_later():
    session = start()
    act(session, PUT, "k", "old")
    say(session, "k", "new")
    copy(session, "key", "k")
    clone = session.clone()
    assert clone.call(enter("value"), ()) == ("n",)
    for _ in "new":
        clone.call(take("value"), ())
    clone.call(PUT, ())
    clone.call(DONE, ())
    session.call(DONE, ())
    assert (got(clone, "k"), got(session, "k")) == ("new", "old")


def same(one, other):
    return one.keys() == other.keys() and all(np.array_equal(one[name], other[name]) for name in one)


def test_of_more_cells_than_there_are_characters_in_a_plane_none_is_taken_for_another():
    """Two halves of a character would be read back as one."""
    tool, cells = make_tool({"name": "pointer_store"}), range(1, 60_000)
    session = tool.start([0, *cells], marker=lambda text: 100_000 + len(text))
    session.call(seek("key"), ())
    for _ in range(60_000):
        session.call(take("key"), ())
    session.call(PUT, ())
    session.call(DONE, ())
    session.extend([0, 55_296, 56_320])
    session.call(seek("key"), ())
    for name in (take("key"), take("value"), take("value"), PUT):
        session.call(name, ())
    restored = tool.restore(session.state(), marker=lambda text: 100_000 + len(text))
    assert [restored.call(name, ()) for name in (GET, SHOW, SHOW)] == [
        (55_296,),
        (56_320,),
        (100_000 + len(VALUE_END),),
    ]


def test_a_saved_store_goes_on_where_it_was_whatever_was_under_way():
    tool = make_tool({"name": "pointer_store"})
    session = tool.start([50, 60, 70, 80], marker=len)
    names = (seek("key"), take("key"), take("value"), take("value"), PUT, GET, SHOW, SHOW, DELETE, GET)
    for name in names:
        restored = tool.restore(session.state(), marker=len)
        assert same(restored.state(), session.state())
        assert restored.call(name, ()) == session.call(name, ())
        assert same(restored.state(), session.state())
    assert session.taken.tolist() == [1, 2, 2, 0]
    assert session.call(GET, ()) == (len(ABSENT),)


@pytest.mark.parametrize("name", [PUT, GET, DELETE])
def test_without_a_key_nothing_is_stored_or_asked_for(name):
    with pytest.raises(InvalidArgumentsError, match="take_key"):
        start("a").call(name, ())


@pytest.mark.parametrize("moves", [0, 2])
def test_beside_what_was_said_there_is_no_cell_to_take(moves):
    session = start("a")
    for _ in range(moves):
        session.call(seek("key"), ())
    with pytest.raises(InvalidArgumentsError, match="no cell"):
        session.call(take("key"), ())


def test_another_call_is_named():
    with pytest.raises(UnknownCallError, match="pointer_store has no call 'list'"):
        start("a").call("list", ())
