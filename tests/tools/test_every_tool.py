"""What every tool of cells must hold under any stream of commands; a new one in hf_toolssm/tools/ is picked up by
itself."""

import json
import random

import numpy as np
import pytest

from hf_toolssm.errors import ToolError
from hf_toolssm.protocol.calls import Call
from hf_toolssm.tools import available_tools, facts_of, make_tool

OF_CELLS = [name for name in available_tools() if facts_of(make_tool({"name": name})).unit == "cells"]
STREAMS = 10_000
LENGTH = 40
CELLS = list(range(10))
"""Cells as `generate` has them, as numbers; markers are numbers of their own."""


def marker_of(tool):
    return {text: 100 + index for index, text in enumerate(tool.markers)}.__getitem__


def stream(tool, rng):
    """A problem, and what a model that has learned nothing might write: cells, and calls with their arguments."""
    problem = rng.choices(CELLS, k=rng.randint(1, 8))
    calls, written = {**tool.calls, "no_such_call": False}, [*CELLS, *map(marker_of(tool), tool.markers)]
    # Sometimes calls that create something are rare, sometimes everything is equally likely.
    weights = [rng.choice((1, 5, 20)) for _ in calls]

    def action():
        if rng.random() >= 0.7:
            return rng.choice(CELLS)
        name = rng.choices(list(calls), weights)[0]
        return Call(name, tuple(rng.choices(written, k=rng.randint(0, 3))) if calls[name] else ())

    return problem, [action() for _ in range(LENGTH)]


def act(session, action):
    """What a call shows, or the name of its error; a cell is written."""
    if not isinstance(action, Call):
        session.write(action)
        return None
    try:
        return list(session.call(action.name, action.argument))
    except ToolError as error:
        return type(error).__name__


def remembered(session):
    """A session's state as plain data."""
    return {n: v.tolist() if isinstance(v, np.ndarray) else v for n, v in session.state().items()}


@pytest.mark.parametrize("name", OF_CELLS)
def test_ten_thousand_random_streams_break_nothing(name):
    tool, rng = make_tool({"name": name}), random.Random(name)
    refused = carried_out = 0
    for _ in range(STREAMS):
        problem, actions = stream(tool, rng)
        session = tool.start(problem, marker_of(tool))
        fork_at, fork, since = rng.randrange(LENGTH), None, []
        for at, action in enumerate(actions):
            if at == fork_at:
                fork = session.clone()
            before = remembered(session) if rng.random() < 0.05 else None
            shown = act(session, action)
            if isinstance(shown, str):
                refused += 1
                if before is not None:
                    assert remembered(session) == before, "a refused call changed the session"
            elif shown is not None:
                carried_out += 1
                known = {*problem, *CELLS, *map(marker_of(tool), tool.markers)}
                assert set(shown) <= known, "an observation holds something that was never a cell"
            if fork is not None:
                since.append((action, shown))
        # A clone, made in the middle, has not seen what came after it, and repeats it.
        for action, shown in since:
            assert act(fork, action) == shown
        assert remembered(fork) == remembered(session)
    assert min(refused, carried_out) > STREAMS


@pytest.mark.parametrize("name", OF_CELLS)
def test_a_restored_session_goes_on_as_the_one_that_was_saved(name):
    tool, rng = make_tool({"name": name}), random.Random(f"{name} restored")
    for _ in range(300):
        problem, actions = stream(tool, rng)
        session = tool.start(problem, marker_of(tool))
        for action in actions[:20]:
            act(session, action)
        arrays = {n: v.copy() for n, v in session.state().items() if isinstance(v, np.ndarray)}
        small = {n: v for n, v in session.state().items() if n not in arrays}
        restored = tool.restore({**json.loads(json.dumps(small)), **arrays}, marker_of(tool))
        for action in actions[20:]:
            assert act(restored, action) == act(session, action)
        assert remembered(restored) == remembered(session)


@pytest.mark.parametrize("name", OF_CELLS)
def test_clones_that_both_go_on_do_not_meet(name):
    tool, rng = make_tool({"name": name}), random.Random(f"{name} clones")
    for _ in range(300):
        problem, actions = stream(tool, rng)
        others = stream(tool, rng)[1]
        session = tool.start(problem, marker_of(tool))
        for action in actions[:10]:
            act(session, action)
        alone = tool.start(problem, marker_of(tool))
        for action in [*actions[:10], *actions[10:]]:
            act(alone, action)
        clones = [session.clone() for _ in range(2)]
        for mine, theirs in zip(actions[10:], others):  # in turns
            act(clones[0], mine)
            act(clones[1], theirs)
        assert remembered(clones[0]) == remembered(alone)


@pytest.mark.parametrize("name", ["pointer_memory", "search_memory", "tape"])
def test_between_two_views_memory_grows_at_its_ends_or_changes_under_a_mark(name):
    tool, rng = make_tool({"name": name}), random.Random(f"{name} views")
    changed = 0
    for _ in range(300):
        problem, actions = stream(tool, rng)
        session = tool.start(problem, marker_of(tool))
        cells, marked = dict(enumerate(problem)), set()
        for action in [None, *actions]:
            if action is not None:
                act(session, action)
            view = session.view()
            now = {at: session.cell(at) for at in range(view.start, view.stop)}
            assert list(now.values()) == list(session.memory)
            different = {at for at, cell in cells.items() if now[at] != cell}
            assert different <= marked
            changed += len(different)
            cells, marked = now, {places.start for places in view.marks.values() if len(places) == 1}
    assert (changed > 0) is (name == "tape")


@pytest.mark.parametrize("name", OF_CELLS)
def test_a_tool_of_cells_has_no_side_effects(name):
    """Since a config may name it."""
    assert not facts_of(make_tool({"name": name})).has_side_effects
