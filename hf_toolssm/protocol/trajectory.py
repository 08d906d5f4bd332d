"""A solved problem as thoughts, commands, observations and outputs (PAPER: the interaction protocol, section 2).

    kind         written by   enters the tools' memory   carries loss
    thought      model        yes                        yes
    output       model        yes                        yes
    command      model        no                         yes
    observation  tool         no                         no

A command with an argument is several steps of that kind, as in `<|find|> a b <|/find|>`; an observation follows the
last. The problem itself is the initial memory and carries no loss. A trajectory knows no tokenizer: every step is one
*cell*, the text of one memory cell or of one command, and a tokenizer renders it later, one cell at a time.
"""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from enum import StrEnum
from functools import lru_cache
from typing import Any

from hf_toolssm.errors import CorruptRowError, EmptyProblemError

ANSWER = "<|answer|>"
"""The cell that separates thoughts from outputs. It is a thought: the model writes it, and it enters memory."""


class StepKind(StrEnum):
    THOUGHT = "thought"
    OUTPUT = "output"
    COMMAND = "command"
    OBSERVATION = "observation"


# A kind, and the kind behind it: an observation that nothing called for.
_UNCALLED = {(StepKind.THOUGHT, StepKind.OBSERVATION), (StepKind.OUTPUT, StepKind.OBSERVATION)}


@dataclass(frozen=True, slots=True)
class Step:
    """One cell of a trajectory: its kind and its text."""

    kind: StepKind
    text: str


@lru_cache(maxsize=65_536)
def step(kind: StepKind, text: str) -> Step:
    """The step of that kind and text. Equal steps are one object, so that a trajectory of millions stays small."""
    return Step(kind, text)


@dataclass(frozen=True, slots=True)
class Trajectory:
    """A problem, the steps that solve it, and the answer.

    Attributes:
        problem: the cells of the problem, the tools' initial memory.
        steps: what the model and the tools write, in order; the end token is added when a tokenizer renders it.
        answer: the text of all outputs, joined.
    """

    problem: Sequence[str]
    steps: Sequence[Step]
    answer: str

    def check(self) -> "Trajectory":
        """Returns itself when it is consistent.

        Raises:
            EmptyProblemError: the problem has no cell.
            CorruptRowError: a cell is no text, the answer marker is missing or repeated, a step stands where it
                cannot, or the outputs are not the answer.
        """
        if not self.problem:
            raise EmptyProblemError("the problem has no cell: state a problem of at least one cell")
        # Whole columns at a time, because trajectories of millions of steps pass here.
        texts, kinds = [s.text for s in self.steps], [s.kind for s in self.steps]
        types = {*map(type, self.problem), *map(type, texts), type(self.answer)}
        if not all(issubclass(found, str) for found in types) or "" in self.problem or "" in texts:
            raise CorruptRowError("every cell and the answer are texts, and no cell is empty: rebuild the row")
        markers = [at for at, text in enumerate(texts) if text == ANSWER and kinds[at] is not StepKind.OBSERVATION]
        if len(markers) != 1 or kinds[markers[0]] is not StepKind.THOUGHT:
            raise CorruptRowError(
                f"a trajectory has exactly one thought {ANSWER!r}; this one has {len(markers)}: rebuild the row"
            )
        (marker,) = markers
        if StepKind.OUTPUT in kinds[:marker]:
            at = kinds.index(StepKind.OUTPUT)
            raise CorruptRowError(f"an output stands before the answer marker (step {at}): rebuild the row")
        if StepKind.THOUGHT in kinds[marker + 1 :]:
            at = kinds.index(StepKind.THOUGHT, marker + 1)
            raise CorruptRowError(f"a thought stands behind the answer marker (step {at}): rebuild the row")
        follows = zip([StepKind.THOUGHT, *kinds], kinds)
        orphan = next((at for at, pair in enumerate(follows) if pair in _UNCALLED), None)
        if orphan is not None:
            raise CorruptRowError(f"an observation follows no command (step {orphan}): rebuild the row")
        if "".join(t for t, kind in zip(texts[marker:], kinds[marker:]) if kind is StepKind.OUTPUT) != self.answer:
            raise CorruptRowError(f"the outputs are not the answer {self.answer[:40]!r}: rebuild the row")
        return self

    def to_row(self) -> dict[str, Any]:
        """The columns `problem`, `steps` and `answer` of a dataset row."""
        return {
            "problem": list(self.problem),
            "steps": [{"kind": s.kind.value, "text": s.text} for s in self.steps],
            "answer": self.answer,
        }

    @classmethod
    def from_row(cls, row: Mapping[str, Any]) -> "Trajectory":
        """Reads and checks a dataset row.

        Raises:
            CorruptRowError: a column is missing or of another type, a kind is unknown, or the trajectory is
                inconsistent; the message names the row.
        """
        name = row.get("id", "without id")
        try:
            if isinstance(row["problem"], str):
                raise CorruptRowError("problem is a list of cells, not one text: rebuild the row")
            steps = _steps_from_row(row["steps"])
            return cls(tuple(row["problem"]), steps, row["answer"]).check()
        except KeyError as error:
            raise CorruptRowError(
                f"row {name}: {error} is missing; rows need problem, answer and steps of kind and text"
            ) from error
        except (TypeError, ValueError) as error:
            raise CorruptRowError(f"row {name}: {error}") from error


def _steps_from_row(steps: Iterable[Mapping[str, str]]) -> tuple[Step, ...]:
    return tuple(step(StepKind(s["kind"]), s["text"]) for s in steps)
