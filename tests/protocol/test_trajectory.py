"""A trajectory is consistent or refused, and survives the way through a row."""

import pytest

from hf_toolssm.errors import CorruptRowError, EmptyProblemError
from hf_toolssm.protocol.trajectory import ANSWER, Step, StepKind, Trajectory, canonical, step

PROBLEM = ("input", ("1", "="))
MARKER = ("thought", (ANSWER,))
OUTPUT = ("output", ("1",))
CALL = ("call", None, "read")
SEEN = ("observation", ("1",))


def of(*steps):
    """Steps as they stand: kind, content and the name of a call."""
    return Trajectory(tuple(Step(StepKind(kind), *rest) for kind, *rest in steps))


def solved(*steps):
    return of(PROBLEM, *steps)


@pytest.mark.parametrize(
    "trajectory",
    [
        solved(MARKER, OUTPUT),
        solved(MARKER),
        solved(("thought", ("1", ANSWER)), OUTPUT, CALL, SEEN, OUTPUT, CALL),
        solved(("call", ("1",), "find"), ("call", (), "find"), ("call", "", "say"), CALL, MARKER),
        solved(CALL, ("observation", ("1", ANSWER, ANSWER)), MARKER, OUTPUT),  # a tool shows what it likes
        solved(("call", (ANSWER,), "find"), MARKER, OUTPUT),  # an argument answers nothing
        solved(("thought", f"not yet {ANSWER}"), MARKER, ("output", "1"), ("output", ("1",))),  # nor does a text
        solved(MARKER, OUTPUT, ("input", "and 2?"), ("thought", "2"), MARKER, ("output", "2")),
        solved(("thought", ("1",)), ("input", ("2",)), ("input", ("2",)), MARKER, OUTPUT),
        of(("input", f"1 {ANSWER}"), MARKER, OUTPUT),
    ],
)
def test_a_consistent_trajectory_passes_and_comes_back_from_its_row(trajectory):
    assert trajectory.check() is trajectory
    assert Trajectory.from_row(trajectory.to_row()) == trajectory


def test_a_row_gives_back_the_trajectory(addition):
    trajectory = addition.solve("98+7=", "local")
    row = trajectory.to_row()
    assert Trajectory.from_row(row) == trajectory
    assert (row["problem"], row["answer"]) == ("98+7=", "105")
    assert (trajectory.problem, trajectory.answer) == (tuple("98+7="), "105")


def test_the_answer_is_the_last_turns():
    trajectory = solved(MARKER, OUTPUT, ("input", ("2",)), ("thought", ("3", ANSWER)), OUTPUT, CALL, ("output", "23"))
    assert trajectory.answers == ["1", "123"]
    assert trajectory.answer == "123"
    assert trajectory.to_row()["problem"] == "1="
    assert [len(turn) for turn in trajectory.turns()] == [3, 5]


def test_ids_come_back_and_make_no_difference():
    steps = (step(StepKind.INPUT, "ab"), Step(StepKind.THOUGHT, (ANSWER,), ids=(7,)), step(StepKind.OUTPUT, "b"))
    again = Trajectory.from_row(Trajectory(steps).to_row())
    assert [s.ids for s in again.steps] == [None, (7,), None]
    assert again == Trajectory((steps[0], step(StepKind.THOUGHT, (ANSWER,)), steps[2]))


def test_neighbours_of_one_kind_become_one_step_with_all_their_tokens():
    kind = StepKind.THOUGHT
    first, second, bare = Step(kind, ("a",), ids=(1,)), Step(kind, ("b", "c"), ids=(2, 3)), Step(kind, ("d",))
    (joined,) = canonical([first, second])
    assert (joined.content, joined.ids) == (("a", "b", "c"), (1, 2, 3))
    (joined,) = canonical([first, second, bare])
    assert (joined.content, joined.ids) == (("a", "b", "c", "d"), None)
    apart = [step(kind, "a"), first, step(StepKind.CALL, None, "x"), step(StepKind.CALL, None, "x")]
    assert canonical(apart) == tuple(apart)
    assert canonical([step(kind, "a"), step(kind, "b")]) == (step(kind, "ab"),)
    turns = [step(StepKind.INPUT, ("a",)), step(StepKind.INPUT, ("a",))]
    assert canonical(turns) == tuple(turns)


def test_cells_of_a_span_are_a_tokenizers():
    with pytest.raises(CorruptRowError, match="span of text and no cells"):
        list(solved(("thought", "long"), MARKER).cells())


@pytest.mark.parametrize(
    "trajectory",
    [Trajectory(()), of(MARKER, OUTPUT), of(("input", ()), MARKER), of(("input", ""), MARKER), of(("input", None))],
)
def test_a_trajectory_without_a_problem_is_refused(trajectory):
    with pytest.raises(EmptyProblemError, match="at least one cell"):
        trajectory.check()


HOLDS = "step 1 holds"


@pytest.mark.parametrize(
    ("trajectory", "message"),
    [
        (solved(("thought", ()), MARKER), HOLDS),
        (solved(("thought", ""), MARKER), HOLDS),
        (solved(("thought", None), MARKER), HOLDS),
        (solved(("thought", ("1", "")), MARKER), HOLDS),
        (solved(("thought", (1,)), MARKER), HOLDS),
        (solved(("thought", (None,)), MARKER), HOLDS),
        (solved(("input", ()), MARKER), HOLDS),
        (of(("input", ("1", "")), MARKER), "step 0 holds"),
        (of(("input", (1, 2)), MARKER), "step 0 holds"),
        (of(("input", 7), MARKER), "step 0 holds"),
        (solved(("thought", (["1"],)), MARKER), HOLDS),
        (solved(("thought", ["1"]), MARKER), HOLDS),
        (solved(("call", None), MARKER), HOLDS),
        (solved(("call", ("1", ""), "find"), MARKER), HOLDS),
        (solved(("call", None, 7), MARKER), HOLDS),
        (solved(("thought", ("1",), "find"), MARKER), HOLDS),
        (solved(SEEN, MARKER), "observation follows no call.*step 1"),
        (solved(("thought", ("1",)), SEEN, MARKER), "observation follows no call.*step 2"),
        (solved(CALL, SEEN, SEEN, MARKER), "observation follows no call.*step 3"),
        (solved(("thought", ("1",)), MARKER), "step 2 goes on.*canonical"),
        (solved(MARKER, ("output", "1"), ("output", "2")), "step 3 goes on.*canonical"),
        (solved(), "no turn has a thought"),
        (solved(("thought", ("1",)), CALL), "no turn has a thought"),
        (solved(("thought", ANSWER)), "no turn has a thought"),
        (solved(("thought", (ANSWER, ANSWER)), OUTPUT), "at most one"),
        (solved(MARKER, CALL, MARKER), "at most one"),
        (solved(MARKER, ("output", (ANSWER,))), "at most one"),
        (solved(("output", (ANSWER, "1"))), "at most one.*thinks it"),
        (solved(OUTPUT), "output stands before"),
        (solved(OUTPUT, MARKER), "output stands before"),
        (solved(MARKER, OUTPUT, ("input", ("2",)), OUTPUT), "output stands before"),
        (solved(("thought", (ANSWER, "1"))), "thought stands behind"),
        (solved(MARKER, OUTPUT, ("thought", ("1",))), "thought stands behind"),
        (solved(MARKER, ("thought", "so")), "thought stands behind"),
    ],
)
def test_an_inconsistent_trajectory_is_refused_by_name(trajectory, message):
    with pytest.raises(CorruptRowError, match=message):
        trajectory.check()


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (lambda row: row.pop("steps"), "'steps' is missing"),
        (lambda row: row.pop("answer"), "'answer' is missing"),
        (lambda row: row.pop("problem"), "'problem' is missing"),
        (lambda row: row.update(problem=None), "another problem than None"),
        (lambda row: row.update(problem=[*"98+7="]), "another problem than"),
        (lambda row: row.update(problem="98+8="), "another problem than '98.8='"),
        (lambda row: row.update(answer="106"), "another answer than '106'"),
        (lambda row: row.update(answer=None), "another answer than None"),
        (lambda row: row.update(steps=None), ""),
        (lambda row: row.update(steps=[]), "at least one cell"),
        (lambda row: row.update(steps=[None]), ""),
        (lambda row: row.update(steps="ab"), ""),
        (lambda row: row["steps"].pop(0), "at least one cell"),
        (lambda row: row["steps"].pop(), "another answer"),
        (lambda row: row["steps"][1].update(kind="dream"), "'dream' is not a valid"),
        (lambda row: row["steps"][1].update(kind="command"), "'command' is not a valid"),
        (lambda row: row["steps"][1].pop("kind"), "'kind' is missing"),
        (lambda row: row["steps"][1].pop("name"), "'name' is missing"),
        (lambda row: row["steps"][1].pop("cells"), "'cells' is missing"),
        (lambda row: row["steps"][1].pop("text"), "'text' is missing"),
        (lambda row: row["steps"][1].update(name=None), "step 1 holds"),
        (lambda row: row["steps"][1].update(name=["find"]), ""),
        (lambda row: row["steps"][0].update(cells="98+7="), "either a list of cells or a text"),
        (lambda row: row["steps"][0].update(text="98+7="), "either a list of cells or a text"),
        (lambda row: row["steps"][0].update(cells=[*"98+7", 7]), "step 0 holds"),
        (lambda row: row["steps"][0].update(cells=[*"98+7=", None]), "step 0 holds"),
        (lambda row: row["steps"][0].update(cells=[*"98+7=", ["1"]]), ""),
        (lambda row: row["steps"][0].update(cells=7), ""),
        (lambda row: row["steps"][0].update(cells=None, text=7), ""),
        (lambda row: row["steps"][0].update(cells=None, text=["98+7="]), ""),
        (lambda row: row["steps"][0].update(ids=7), ""),
        (lambda row: row["steps"][0].update(ids=["a"]), ""),
        (lambda row: row["steps"].insert(1, {"kind": "output", "name": None, "cells": ["1"], "text": None}), "before"),
    ],
)
def test_a_corrupt_row_is_refused_and_named(addition, damage, message):
    row = {"id": "addition/17", **addition.solve("98+7=", "local").to_row()}
    # The last steps are a call and an observation: without them the row is still consistent, so cut back to an output.
    while row["steps"][-1]["kind"] != "output":
        row["steps"].pop()
    assert Trajectory.from_row(row).answer == "105"
    damage(row)
    with pytest.raises(CorruptRowError, match=f"row addition/17: .*{message}"):
        Trajectory.from_row(row)
