"""A trajectory is consistent or refused, and survives the way through a row."""

import pytest

from hf_toolssm.errors import CorruptRowError, EmptyProblemError
from hf_toolssm.protocol.trajectory import ANSWER, StepKind, Trajectory, step


def solved(*steps, problem=("1", "="), answer="1"):
    return Trajectory(problem, [step(StepKind(kind), text) for kind, text in steps], answer)


MARKER = ("thought", ANSWER)


def test_a_row_gives_back_the_trajectory(addition):
    trajectory = addition.solve("98+7=", "local")
    again = Trajectory.from_row(trajectory.to_row())
    assert list(again.steps) == list(trajectory.steps)
    assert (again.problem, again.answer) == (trajectory.problem, "105")


@pytest.mark.parametrize(
    ("trajectory", "message"),
    [
        (solved(("output", "1")), "exactly one thought"),
        (solved(MARKER, MARKER, ("output", "1")), "has 2"),
        (solved(("output", "1"), MARKER), "before the answer marker"),
        (solved(MARKER, ("output", "2")), "not the answer"),
        (solved(("output", ANSWER), ("output", "1")), "exactly one thought"),
        (solved(MARKER, ("output", "1"), ("thought", "1")), "behind the answer marker"),
        (solved(("thought", "1"), ("observation", "1"), MARKER, ("output", "1")), "follows no command"),
        (solved(("thought", ""), MARKER, ("output", "1")), "no cell is empty"),
        (solved(("thought", None), MARKER, ("output", "1")), "are texts"),
        (solved(MARKER, ("output", "1"), problem=("1", "")), "no cell is empty"),
        (solved(MARKER, ("output", "1"), problem=(1, 2)), "are texts"),
        (solved(MARKER, ("output", "1"), problem=(["1"], "=")), "are texts"),
        (solved(MARKER, ("output", "1"), answer=None), "are texts"),
    ],
)
def test_an_inconsistent_trajectory_is_refused_by_name(trajectory, message):
    with pytest.raises(CorruptRowError, match=message):
        trajectory.check()


def test_an_empty_problem_is_refused():
    with pytest.raises(EmptyProblemError, match="at least one cell"):
        solved(MARKER, ("output", "1"), problem=()).check()


@pytest.mark.parametrize(
    "damage",
    [
        lambda row: row.pop("steps"),
        lambda row: row.pop("answer"),
        lambda row: row.update(problem=None),
        lambda row: row.update(problem="98+7="),
        lambda row: row.update(steps=[{"kind": "dream", "text": "1"}]),
        lambda row: row.update(steps=[{"text": "1"}]),
        lambda row: row.update(steps=[None]),
        lambda row: row["steps"].pop(),
        lambda row: row["steps"].insert(0, {"kind": "output", "text": "1"}),
        lambda row: row.update(answer="106"),
    ],
)
def test_a_corrupt_row_is_refused_and_named(addition, damage):
    row = {"id": "addition/17", **addition.solve("98+7=", "local").to_row()}
    # The last step is an observation: without it the row is still consistent, so cut back to the last output.
    while row["steps"][-1]["kind"] != "output":
        row["steps"].pop()
    damage(row)
    with pytest.raises(CorruptRowError, match="addition/17"):
        Trajectory.from_row(row)
