"""What tasks share whose problems are sessions: a user says what to remember, and asks for it later.

Every turn is one sentence. Its quoted texts say what it is: two of them are a key and its value, one before a question
mark is asked for, and one before a full stop is to be forgotten. The wording says nothing more, and those of the
tests, like their keys and values, never occur in training (`memory_texts.py`).

Variants:
    store: a pointer over what was said copies keys and values into a store, which is asked before every answer. The
        last few tokens decide the next one.
    state: has the store too and never calls it, so all there is has to stay in the model's state.
"""

import random
import re
from abc import abstractmethod
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import chain
from typing import Any

from dataset_builders.algorithms.memory_contexts import (
    DELETE_ENDS,
    ESCAPE,
    NONE,
    PRINTABLE,
    QUERY_ENDS,
    QUOTE,
    MemoryContexts,
)
from dataset_builders.algorithms.memory_texts import (
    DELETE_BEGINS,
    GET_BEGINS,
    PUT_BEGINS,
    PUT_LINKS,
    quoted,
    wording,
)
from dataset_builders.task import Task, example_rng, task_tool
from hf_toolssm.errors import InvalidProblemError
from hf_toolssm.protocol.recorder import Recorder
from hf_toolssm.protocol.rule import Rule
from hf_toolssm.protocol.trajectory import Trajectory
from hf_toolssm.tools.pointer_store import (
    ABSENT,
    CLOSE_KEY,
    DELETE,
    DONE,
    GET,
    PUT,
    SHOW,
    VALUE_END,
    enter,
    escape,
    seek,
    take,
)

MOST_QUERIES = 1_000
_PROBLEM = re.compile(r"([1-9]\d*) pairs, ([1-9]\d*) queries(?:, ([a-z_]+))?; seed (\d+)")
TESTED = "tested"
"""In a problem, that its texts are those that training never shows."""


@dataclass(frozen=True, slots=True)
class Turn:
    """What a user wants: to put a value, to get one (`value` is None), or to delete it."""

    key: str
    value: str | None = None
    deletes: bool = False

    @property
    def asks(self) -> bool:
        """Whether it is a query."""
        return self.value is None and not self.deletes


class MemoryTask(Task):
    """See the module's text."""

    variants: Sequence[str] = ("store", "state")
    unit = "pairs"
    has_words_for_tests = True
    rows_per_shard = 500

    def tools(self, variant: str) -> list[dict[str, Any]]:
        return [{"name": "pointer_store"}]

    def cells(self, variant: str) -> Sequence[str]:
        return PRINTABLE

    def rule(self, variant: str) -> Rule:
        """That of `store`.

        Raises:
            CertificationError: it is another's.
        """
        return MemoryContexts() if self.check_variant(variant) == "store" else super().rule(variant)

    def sample_training(self, rng: random.Random, max_length: int) -> str:
        length = rng.randint(1, max_length)
        return self.problem(rng, length, rng.randint(1, 3 * length))  # answers are the rarest tokens

    def sample_test(self, rng: random.Random, length: int) -> str:
        return self.problem(rng, length, min(length, MOST_QUERIES), TESTED)

    def sample_adversarial(self, name: str, rng: random.Random, length: int, index: int) -> str:
        if name not in self.adversarial:
            raise self.unknown_set(name)
        return self.problem(rng, length, min(length, MOST_QUERIES), name)

    def problem(self, rng: random.Random, length: int, queries: int, kind: str | None = None) -> str:
        """A random problem; `kind` is None for training, `TESTED`, or the name of an adversarial set."""
        return f"{length} pairs, {queries} queries{', ' * bool(kind)}{kind or ''}; seed {rng.getrandbits(32)}"

    def held_out(self, problem: str) -> bool:
        return self._read(problem)[2] is not None

    def length(self, problem: str) -> int:
        return self._read(problem)[0]

    def _read(self, problem: str) -> tuple[int, int, str | None]:
        found = _PROBLEM.fullmatch(problem)
        if found is None or found[3] not in (None, TESTED, *self.adversarial):
            raise InvalidProblemError(
                f"a problem reads '16 pairs, 8 queries; seed 7', with ', {TESTED}' or the name of an adversarial set "
                f"before the seed where its texts are those of tests: {problem!r}"
            )
        return int(found[1]), int(found[2]), found[3]

    @abstractmethod
    def turns(self, rng: random.Random, length: int, queries: int, kind: str | None) -> Iterator[Turn]:
        """A session's turns; the first one puts a pair, and one at least is a query."""

    def say(self, turn: Turn, rng: random.Random, of_tests: bool) -> str:
        """What the user says."""
        key = quoted(turn.key)
        if turn.value is not None:
            begin, link = (wording(rng, of_tests, choices) for choices in (PUT_BEGINS, PUT_LINKS))
            return f"{begin} {key} {link} {quoted(turn.value)}."
        begin = wording(rng, of_tests, DELETE_BEGINS if turn.deletes else GET_BEGINS)
        return f"{begin} {key}{DELETE_ENDS if turn.deletes else QUERY_ENDS}"

    def reply(self, pen: Recorder, variant: str, right: str | None, rng: random.Random) -> None:
        """Records what the model does in a turn, of which `right` is the answer; None where none is asked for."""
        if variant == "store":
            _serve(pen)
        else:
            answer_directly(pen, right)

    def session(self, problem: str) -> Iterator[tuple[Turn, str, str | None]]:
        """The turns of a problem, each with what the user says and, of a query, the right answer.

        Raises:
            InvalidProblemError: the problem is none.
        """
        length, queries, kind = self._read(problem)
        wordings, values = example_rng("wordings", self.name, problem), dict[str, str]()
        for turn in self.turns(example_rng(self.name, problem), length, queries, kind):
            yield turn, self.say(turn, wordings, kind is not None), values.get(turn.key, NONE) if turn.asks else None
            if turn.deletes:
                values.pop(turn.key, None)
            elif turn.value is not None:
                values[turn.key] = turn.value

    def solve(self, problem: str, variant: str) -> Trajectory:
        """Records what the store answers; without it, what `session` says is right."""
        turns, rng = self.session(problem), example_rng("replies", self.name, problem)
        first = next(turns)
        pen = Recorder(first[1], task_tool(self, variant))
        for turn, text, right in chain([first], turns):
            if turn is not first[0]:
                pen.input(text)
            self.reply(pen, variant, right, rng)
        return pen.trajectory()

    def dialogue(self, problem: str, variant: str) -> Iterator[tuple[str, str | None]]:
        self.check_variant(variant)
        return ((text, right) for _, text, right in self.session(problem))

    def answer(self, problem: str, variant: str) -> str:
        """That of the last query: what was last said of its key before it."""
        self.check_variant(variant)
        *turns, query = (turn for turn, *_ in self.session(problem))
        last = next((turn for turn in reversed(turns) if turn.key == query.key and not turn.asks), None)
        return NONE if last is None or last.value is None else last.value


def _output(pen: Recorder, text: str) -> None:
    for cell in text:
        pen.output(cell)


def answer_directly(pen: Recorder, right: str | None) -> None:
    """Answers without the store; does nothing where nothing is asked for."""
    if right is not None:
        pen.begin_answer()
        _output(pen, right)


def _serve(pen: Recorder) -> None:
    """What the model does in a turn, told by the cells that it sees."""
    _copy(pen, "key")
    (behind,) = pen.call(CLOSE_KEY)
    if behind == QUERY_ENDS:
        show(pen)
    elif behind == DELETE_ENDS:
        pen.call(DELETE)
    else:
        _copy(pen, "value")
        pen.call(PUT)
    pen.call(DONE)


def _copy(pen: Recorder, part: str) -> None:
    """Takes what stands between the next two quotes, as JSON has them."""
    while pen.call(seek(part)) != (QUOTE,):
        pass
    (cell,) = pen.call(enter(part))
    while cell != QUOTE:
        if cell == ESCAPE:
            pen.call(escape(part))
        (cell,) = pen.call(take(part))


def show(pen: Recorder) -> None:
    """Looks the key up, and answers by its value."""
    pen.begin_answer()
    (cell,) = pen.call(GET)
    if cell == ABSENT:
        _output(pen, NONE)
        return
    while cell != VALUE_END:
        pen.output(cell)
        (cell,) = pen.call(SHOW)
