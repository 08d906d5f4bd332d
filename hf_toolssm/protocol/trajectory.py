"""Inputs, thoughts, calls, observations and outputs (PAPER: the interaction protocol, section 2).

    kind         written by             enters the tools' memory   carries loss
    input        user or environment    yes                        no
    thought      model                  yes                        yes
    output       model                  yes                        yes
    call         model                  no                         yes
    observation  tool                   no                         no

A *turn* begins with an input and ends with the end token, which stands in no step. The first input is the problem.

A trajectory knows no tokenizer. What a step holds is either *cells*, the text of one token each, where a tool's memory
has an address for each of them, or a *span*, any text, which a tokenizer writes in as many tokens as it takes.
"""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from enum import IntEnum, StrEnum
from functools import lru_cache
from itertools import pairwise
from operator import index
from typing import Any

from hf_toolssm.errors import CorruptRowError, EmptyProblemError
from hf_toolssm.protocol.calls import begin_token, end_token

ANSWER = "<|answer|>"
"""The cell that separates a turn's thoughts from its outputs. The model thinks it, and it enters memory."""

Content = tuple[str, ...] | str | None
"""Cells, a span of text, or nothing, which only a call without an argument holds."""


class StepKind(StrEnum):
    INPUT = "input"
    THOUGHT = "thought"
    OUTPUT = "output"
    CALL = "call"
    OBSERVATION = "observation"


class Writer(IntEnum):
    """Who wrote a token. What a user or a tool wrote never acts."""

    USER = 0
    MODEL = 1
    TOOL = 2


WRITER_OF = {StepKind.INPUT: Writer.USER, StepKind.OBSERVATION: Writer.TOOL}
"""Who writes a step; the model where it is not said."""


@dataclass(frozen=True, slots=True)
class Step:
    """What one writer wrote at one go.

    Attributes:
        kind: of the step.
        content: what it says; of a call, its argument.
        name: of the call; of any other step "".
        ids: the tokens that it was in a session: they are never made from the text again. All of a call's, those that
            name it included. No part of what makes two steps equal.
    """

    kind: StepKind
    content: Content
    name: str = ""
    ids: tuple[int, ...] | None = field(default=None, compare=False)

    @property
    def text(self) -> str:
        """The content as text."""
        return "".join(self.content or ())

    def cells(self) -> Iterator[str]:
        """The text of every token: of the content, and of a call also of those that begin and end it.

        Raises:
            CorruptRowError: it is a span, whose tokens are a tokenizer's.
        """
        if isinstance(self.content, str):
            raise CorruptRowError(f"{self.text[:40]!r} is a span of text and no cells: render it with a tokenizer")
        if self.kind is StepKind.CALL:
            yield begin_token(self.name)
        yield from self.content or ()
        if self.kind is StepKind.CALL and self.content is not None:
            yield end_token(self.name)


SHORT = 8
"""Cells or characters of a step of which equal ones are one object, so that a trajectory of millions stays small."""


@lru_cache(maxsize=65_536)
def _same(kind: str, content: Content, name: str) -> Step:
    if isinstance(content, tuple):  # a text of numpy is equal to one of Python, and must not stand in its place
        content = tuple(str(cell) if isinstance(cell, str) else cell for cell in content)
    return Step(StepKind(kind), content, name)


def step(kind: str, content: Content, name: str = "") -> Step:
    """A step; equal short ones are one object."""
    return (_same if content is None or len(content) <= SHORT else _same.__wrapped__)(kind, content, name)


def canonical(steps: Iterable[Step]) -> tuple[Step, ...]:
    """The steps with neighbours of one kind made one, cells with cells and text with text.

    Calls and inputs stay apart: each is one, and an input begins a turn.
    """
    found: list[Step] = []
    run: list[Step] = []  # of two or more, of which the first is the last of `found`
    for each in steps:
        if found and each.kind is not StepKind.CALL and _are_one(found[-1], each):
            run = run or [found[-1]]
            run.append(each)
            continue
        if run:
            found[-1], run = _joined(run), []
        found.append(each)
    if run:
        found[-1] = _joined(run)
    return tuple(found)


def _are_one(first: Step, second: Step) -> bool:
    same = first.kind is second.kind and type(first.content) is type(second.content)
    return same and first.kind not in (StepKind.CALL, StepKind.INPUT)


def _joined(steps: list[Step]) -> Step:
    first = steps[0]
    ids = None
    # Of spans the tokens would not be those of the joined text, where a character's bytes are on both sides.
    if isinstance(first.content, tuple) and all(s.ids is not None for s in steps):
        ids = tuple(token for s in steps for token in s.ids or ())
    cells = tuple(cell for s in steps for cell in s.content or ())
    content = "".join(cells) if isinstance(first.content, str) else cells
    return step(first.kind, content) if ids is None else Step(first.kind, content, ids=ids)


@dataclass(frozen=True, slots=True)
class Trajectory:
    """Turns of inputs and of what the model and the tools wrote.

    Attributes:
        steps: in canonical form (see `canonical`) and in order, beginning with the problem.
        cut: the turns, counted from 0, that broke off before their end, as a session may.
    """

    steps: tuple[Step, ...]
    cut: tuple[int, ...] = ()

    @property
    def problem(self) -> tuple[str, ...] | str:
        """What the first input holds: the tools' initial memory."""
        return self.steps[0].content or ()

    @property
    def answers(self) -> list[str]:
        """The text of every turn's outputs."""
        output = StepKind.OUTPUT
        return ["".join(s.text for s in turn if s.kind is output) for turn in self.turns()]

    @property
    def answer(self) -> str:
        """The text of the last turn's outputs."""
        outputs: list[str] = []
        for each in reversed(self.steps):
            if each.kind is StepKind.OUTPUT:
                outputs.append(each.text)
            elif each.kind is StepKind.INPUT:
                break
        return "".join(reversed(outputs))

    def turns(self) -> list[list[Step]]:
        """The steps of every turn, its input first."""
        kind = StepKind.INPUT
        begins = [at for at, each in enumerate(self.steps) if each.kind is kind]
        return [list(self.steps[at:end]) for at, end in zip(begins, [*begins[1:], len(self.steps)])]

    def cells(self) -> Iterator[tuple[StepKind, str]]:
        """Every token's kind and text but for the ends of turns.

        Raises:
            CorruptRowError: a step is a span of text.
        """
        return ((each.kind, cell) for each in self.steps for cell in each.cells())

    def check(self) -> "Trajectory":
        """Returns itself when it is consistent.

        Raises:
            EmptyProblemError: it does not begin with an input that holds something.
            CorruptRowError: a step holds nothing, or stands where it cannot; an answer marker is missing or repeated.
        """
        begins = self.steps[0] if self.steps else None
        if begins is None or (isinstance(begins, Step) and (begins.kind is not StepKind.INPUT or not begins.content)):
            raise EmptyProblemError("a trajectory begins with an input, its problem: state one of at least one cell")
        for each in {id(s): s for s in self.steps}.values():  # equal short ones are one object
            if not (isinstance(each, Step) and isinstance(each.kind, StepKind) and _holds_text(each)):
                raise CorruptRowError(
                    f"step {self.steps.index(each)} holds {getattr(each, 'content', each)!r}: cells and spans are "
                    "texts that are not empty, and only calls have a name and may hold nothing: rebuild the row"
                )
        call, observation = StepKind.CALL, StepKind.OBSERVATION
        for number, (first, second) in enumerate(pairwise([each.kind for each in self.steps]), 1):
            if second is observation and first is not call:
                raise CorruptRowError(f"an observation follows no call (step {number}): rebuild the row")
            if second is first is not call and _are_one(*self.steps[number - 1 : number + 1]):
                raise CorruptRowError(f"step {number} goes on with the one before: use protocol.trajectory.canonical")
        if sum(_check_turn(turn) for turn in self.turns()) == 0:
            raise CorruptRowError(f"no turn has a thought {ANSWER!r}, behind which an answer stands: rebuild the row")
        return self

    def to_row(self) -> dict[str, Any]:
        """The columns of a dataset row: `problem` and `answer` are texts, of the first input and of the last turn's
        outputs, `steps` says it all."""
        row = {"problem": self.steps[0].text, "steps": [step_to_row(s) for s in self.steps], "answer": self.answer}
        return row | {"cut": list(self.cut)} if self.cut else row

    @classmethod
    def from_row(cls, row: Mapping[str, Any]) -> "Trajectory":
        """Reads and checks a dataset row.

        Raises:
            CorruptRowError: a column is missing or of another type, a kind is unknown, or the trajectory is
                inconsistent; the message names the row.
        """
        name = row.get("id", "without id") if isinstance(row, Mapping) else "without columns"
        try:
            trajectory = cls(tuple(map(_step_from_row, row["steps"])), tuple(row.get("cut") or ())).check()
            for column, text in (("problem", trajectory.steps[0].text), ("answer", trajectory.answer)):
                if row[column] != text:
                    raise CorruptRowError(f"the steps say another {column} than {row[column]!r}: rebuild the row")
        except KeyError as error:
            raise CorruptRowError(
                f"row {name}: {error} is missing; rows need problem, answer and steps of kind, name, cells and text"
            ) from error
        except (AttributeError, TypeError, ValueError) as error:
            raise CorruptRowError(f"row {name}: {error}") from error
        return trajectory


def _holds_text(step: Step) -> bool:
    content, is_call = step.content, step.kind is StepKind.CALL
    if bool(step.name) is not is_call or not isinstance(step.name, str):
        return False
    if isinstance(content, str):
        return is_call or content != ""
    if content is None or content == ():
        return is_call
    return isinstance(content, tuple) and "" not in content and {*map(type, content)} == {str}


def asks_for_answer(turn: Iterable[Step]) -> bool:
    """Whether the model begins an answer in a turn."""
    return any(each.kind is StepKind.THOUGHT and (each.content or ())[-1:] == (ANSWER,) for each in turn)


def _check_turn(turn: Sequence[Step]) -> bool:
    """Whether a turn has an answer marker; one that has not has no output either."""
    kinds = [s.kind for s in turn]
    cells = [s.content if isinstance(s.content, tuple) else () for s in turn]
    marked = [at for at, written in enumerate(cells) if ANSWER in written and kinds[at] in _REMEMBERED]
    at = marked[0] if marked else len(turn)
    if len(marked) > 1 or (marked and (kinds[at], cells[at].count(ANSWER)) != (StepKind.THOUGHT, 1)):
        raise CorruptRowError(f"a turn has at most one {ANSWER!r}, and thinks it: rebuild the row")
    if StepKind.OUTPUT in kinds[:at]:
        raise CorruptRowError(f"an output stands before its turn's thought {ANSWER!r}: rebuild the row")
    if StepKind.THOUGHT in kinds[at + 1 :] or (marked and cells[at][-1] != ANSWER):
        raise CorruptRowError(f"a thought stands behind its turn's {ANSWER!r}: rebuild the row")
    return bool(marked)


_REMEMBERED = (StepKind.THOUGHT, StepKind.OUTPUT)  # of the model's; a tool may show a marker


def step_to_row(step: Step) -> dict[str, Any]:
    """A step as it stands in a dataset row."""
    is_text = isinstance(step.content, str)
    row = {
        "kind": step.kind.value,
        "name": step.name or None,
        "cells": None if is_text or step.content is None else list(step.content),
        "text": step.content if is_text else None,
    }
    return row if step.ids is None else row | {"ids": list(step.ids)}


def _step_from_row(row: Mapping[str, Any]) -> Step:
    cells, text, ids = row["cells"], row["text"], row.get("ids")
    if isinstance(cells, str) or (cells is not None and text is not None):
        raise CorruptRowError("a step has either a list of cells or a text: rebuild the row")
    found = step(row["kind"], text if cells is None else tuple(cells), row["name"] or "")
    return found if ids is None else Step(found.kind, found.content, found.name, tuple(map(index, ids)))
