"""What counts as right: the answer, and the whole trajectory, equal to the reference (PAPER: exact recovery)."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, fields
from typing import Any

CONTEXT = 8
"""Tokens shown before a first error."""

SLACK = 1.1
"""How much longer than its reference a trajectory may get before it is cut: a lost model must not run for ever."""


@dataclass(frozen=True)
class FirstError:
    """The first wrong token of a trajectory.

    Attributes:
        problem: the index of the problem in its set.
        position: where the token stands, the problem's own tokens not counted.
        expected: the reference's token; None where the reference has ended.
        found: the model's token; None where the model has ended.
        context: the tokens just before it.
    """

    problem: int
    position: int
    expected: str | None
    found: str | None
    context: tuple[str, ...]


@dataclass(frozen=True)
class RowOutcome:
    """One problem's result; `problem` is its cells.

    Attributes:
        answers: of every turn that asks for an answer, whether that is exact.
        answer_exact: whether all are, and the other turns ended without one.
    """

    problem: Sequence[str]
    answers: Sequence[bool]
    answer_exact: bool
    trajectory_exact: bool
    first_error: FirstError | None
    tokens: int


@dataclass(frozen=True)
class LengthResult:
    """The results of one problem set.

    Attributes:
        problem_set: its name, for example `length_1000` or `all_carries_1000`.
        length: of its problems.
        mode: "free-running" (tools executed) or "teacher-forced".
        num_problems: the denominator of both accuracies.
        distinct_problems: how many of them differ; short problems repeat.
        num_answers: how many answers there are: one of each turn that asks for one, or of each problem that a check
            decides.
        right_answers: how many of them are exact and complete, or pass.
        answer_accuracy: share of problems all of whose answers are exact and complete, or which pass.
        trajectory_accuracy: share of problems whose every token is exact, the end included; None where a check decides
            and no trajectory was compared.
        first_error: of the failed problem that failed earliest; None if none failed.
        tokens: tokens after the problems, observations included.
        seconds: wall-clock time of the whole set.
        late_calls: how many calls a tool ended because they took too long, where a check decides: if other work of the
            machine held them up, the accuracy is too low.
    """

    problem_set: str
    length: int
    mode: str
    num_problems: int
    distinct_problems: int
    num_answers: int
    right_answers: int
    answer_accuracy: float
    trajectory_accuracy: float | None
    first_error: FirstError | None
    tokens: int
    seconds: float
    late_calls: int = 0

    def to_dict(self) -> dict[str, Any]:
        """For `results.json`, with the speed."""
        return asdict(self) | {"tokens_per_second": round(self.tokens / max(self.seconds, 1e-9), 1)}

    @classmethod
    def from_dict(cls, written: Mapping[str, Any]) -> "LengthResult":
        """What `to_dict` wrote."""
        facts = {each.name: written[each.name] for each in fields(cls)}
        error = facts["first_error"]
        if error is not None:
            facts["first_error"] = FirstError(**{**error, "context": tuple(error["context"])})
        return cls(**facts)


@contextmanager
def in_evaluation_mode(model: Any) -> Iterator[None]:
    """Switches dropout off, and back on where it was."""
    was_training = model.training
    model.eval()
    try:
        yield
    finally:
        model.train(was_training)


def most_tokens(expected: int) -> int:
    """How many tokens a run may take whose reference has so many; a few more where the reference is short."""
    return int(expected * SLACK) + 8


def first_difference(expected: Sequence[Any], found: Sequence[Any]) -> int | None:
    """The first position at which two sequences differ, a missing end included; None if they are equal."""
    if list(expected) == list(found):
        return None
    return next((at for at, (a, b) in enumerate(zip(expected, found)) if a != b), min(len(expected), len(found)))


def first_error(
    problem: int, expected: Sequence[Any], found: Sequence[Any], text: Callable[[Any], str] = str
) -> FirstError | None:
    """The first wrong token of a trajectory; None if there is none.

    Args:
        problem: the index of the problem in its set.
        expected, found: the tokens behind the problem.
        text: what a token is called.
    """
    at = first_difference(expected, found)
    if at is None:
        return None
    return FirstError(
        problem=problem,
        position=at,
        expected=text(expected[at]) if at < len(expected) else None,
        found=text(found[at]) if at < len(found) else None,
        context=tuple(map(text, expected[max(0, at - CONTEXT) : at])),
    )


def exactness(predictions: Sequence[Sequence[Any]], references: Sequence[Sequence[Any]]) -> dict[str, float]:
    """Share of predictions that equal their reference, element by element: answers as text, or trajectories as cells.

    Raises:
        ValueError: there is nothing to compare, or the numbers of predictions and references differ.
    """
    if len(predictions) != len(references) or not references:
        raise ValueError(f"exactness needs as many predictions as references: {len(predictions)}, {len(references)}")
    exact = sum(first_difference(r, p) is None for p, r in zip(predictions, references))
    return {"exactness": exact / len(references), "num_problems": len(references)}


def summarize(problem_set: str, length: int, mode: str, rows: Sequence[RowOutcome], seconds: float) -> LengthResult:
    """Puts the rows of one problem set together."""
    errors = [row.first_error for row in rows if row.first_error is not None]
    return LengthResult(
        problem_set=problem_set,
        length=length,
        mode=mode,
        num_problems=len(rows),
        distinct_problems=len({tuple(row.problem) for row in rows}),
        num_answers=sum(len(row.answers) for row in rows),
        right_answers=sum(sum(row.answers) for row in rows),
        answer_accuracy=sum(row.answer_exact for row in rows) / len(rows),
        trajectory_accuracy=sum(row.trajectory_exact for row in rows) / len(rows),
        first_error=min(errors, key=lambda e: e.position, default=None),
        tokens=sum(row.tokens for row in rows),
        seconds=seconds,
    )
