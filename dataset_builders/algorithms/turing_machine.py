"""Any Turing machine as a task (PAPER, Theorem 2.2): its state is a thought, and its tape is a tool.

Every file of `dataset_builders/machines/` is such a task by its name, and any other table by its path. A machine in
state A that reads 1, writes 0, and goes left into state B gives five tokens:

    A <|tape_read|> 1 <|tape_write_0|> <|tape_left|>   B ...

Beyond what was ever written the tape shows a marker, which is a blank cell to the machine. When it has halted, the
model writes the answer: the halt state's letter, or, cell by cell from the left end, all that stands on the tape but
blanks. The last five tokens determine the next one at any length, since the machine's table does.
"""

import hashlib
import random
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from dataset_builders.algorithms.machine import LEFT, RIGHT, STATE, Machine
from dataset_builders.algorithms.machine_contexts import MachineContexts
from dataset_builders.task import Task, task_tool
from hf_toolssm.errors import (
    DidNotHaltError,
    EmptyProblemError,
    InvalidProblemError,
    TapeFullError,
    TooFewProblemsError,
)
from hf_toolssm.files import write_atomically
from hf_toolssm.protocol.recorder import Recorder
from hf_toolssm.protocol.rule import Rule
from hf_toolssm.protocol.trajectory import Trajectory
from hf_toolssm.tools.tape import TAPE_BEGIN, TAPE_END, TAPE_LEFT, TAPE_READ, TAPE_RIGHT, tape_write

TABLE = ".tm"
"""How the name of a table's file ends."""

RECORDED_STEPS = 20_000_000
"""A trajectory of more steps would not fit into memory."""

MAX_STEPS = 200_000_000
"""Of the machine by itself, which finds the answer: a minute of a machine that never halts."""

_DRAWS = 100

_LONG = 16
"""Symbols; where there are few inputs of each length, longer ones are only tested."""

_MOVES = {LEFT: TAPE_LEFT, RIGHT: TAPE_RIGHT}


def allowed_steps(length: int) -> int:
    """Within how many steps a machine must halt on a sampled input: some never do, such as busy beavers."""
    return min(200 + 10 * length**2, MAX_STEPS)


class TuringMachine(Task):
    """The task of one machine.

    Args:
        machine: what it does.
        of_user: its table is not in `machines/`, and goes with datasets and models.
    """

    variants: Sequence[str] = ("tape",)
    unit = "symbols"

    def __init__(self, machine: Machine, of_user: bool = False) -> None:
        self.machine, self.of_user = machine, of_user
        self.title = machine.title
        # Where blank cells are an input, the tape of them alone is the problem that matters: a busy beaver's.
        inputs, blank = machine.inputs, machine.blank
        has_blank = inputs.may_be_only(blank) and inputs.symbols != {blank}
        self.adversarial: Sequence[str] = ("runs", "blank") if has_blank else ("runs",)
        self.version = f"2-{hashlib.sha256(machine.table.encode()).hexdigest()[:16]}"

    @property
    def name(self) -> str:
        return self.machine.name

    @property
    def saved_name(self) -> str:
        return f"{self.name}{TABLE}" if self.of_user else self.name

    def save(self, folder: Path) -> str:
        if self.of_user:
            folder.mkdir(parents=True, exist_ok=True)
            write_atomically(folder / self.saved_name, self.machine.table)
        return self.saved_name

    def tools(self, variant: str) -> list[dict[str, Any]]:
        return [{"name": "tape", "symbols": self.machine.symbols}]

    def cells(self, variant: str) -> Sequence[str]:
        return (*self.machine.symbols, *self.machine.letters.values())

    def rule(self, variant: str) -> Rule:
        self.check_variant(variant)
        return MachineContexts(self.machine)

    def sample_training(self, rng: random.Random, max_length: int) -> str:
        shortest, longest = self.machine.inputs.shortest, self.machine.inputs.longest
        if max_length < shortest:
            raise TooFewProblemsError(f"{self.machine.name} has no input of fewer than {shortest} symbols")
        return self._halting(rng, shortest, max_length if longest is None else min(max_length, longest), runs=False)

    def sample_test(self, rng: random.Random, length: int) -> str:
        return self._halting(rng, length, length, runs=False)

    def _halting(self, rng: random.Random, shortest: int, longest: int, runs: bool) -> str:
        """An input on which the machine halts in time.

        Raises:
            DidNotHaltError: none was found.
            NoRuleError: the machine's table does not say how it goes on.
        """
        for _ in range(_DRAWS):
            tape = self.machine.inputs.sample(rng, rng.randint(shortest, longest), runs)
            try:
                self.machine.run(tape, allowed_steps(len(tape)))
            except DidNotHaltError:
                continue
            return tape
        raise DidNotHaltError(
            f"{self.machine.name} did not halt within {allowed_steps(longest):,} steps, 200 + 10 n^2, on any of "
            f"{_DRAWS} inputs of up to {longest} symbols: check its rules, or give it inputs on which it is faster"
        )

    def sample_adversarial(self, name: str, rng: random.Random, length: int, index: int) -> str:
        """The problem number `index` of an adversarial set.

        Raises:
            InvalidProblemError: no set has that name.
            TooFewProblemsError: no input has that length.
            DidNotHaltError: the machine halts in time on none of many.
            NoRuleError: its table does not say how it goes on.
        """
        if name not in self.adversarial:
            raise self.unknown_set(name)
        if name == "blank":
            self.machine.run(self.machine.blank * length, RECORDED_STEPS)  # said before it is recorded
            return self.machine.blank * length
        return self._halting(rng, length, length, runs=True)

    def held_out(self, problem: str) -> bool:
        """An empty tape; and of inputs of which there are few of each length, all that are longer than `_LONG`:
        by their hash, most lengths would have none to test."""
        inputs = self.machine.inputs
        if len(problem) > _LONG and inputs.has_few_words:
            return True
        return set(problem) == {self.machine.blank} != inputs.symbols

    def length(self, problem: str) -> int:
        return len(problem)

    def solve(self, problem: str, variant: str) -> Trajectory:
        """Records the machine at work on the tape tool.

        Raises:
            EmptyProblemError: the problem is empty; an empty tape is one blank cell.
            InvalidProblemError: it has a symbol that the machine does not know.
            DidNotHaltError: the machine did not halt within `RECORDED_STEPS`, or on the tape's cells.
            NoRuleError: its table does not say how it goes on.
        """
        pen = Recorder(self._check(problem), task_tool(self, variant))
        try:
            state = self._run(pen)
        except TapeFullError as error:
            raise DidNotHaltError(f"{self.machine.name} has not halted: {error}") from error
        if self.machine.answer == STATE:
            pen.begin_answer()
            pen.output(self.machine.letters[state])
        else:
            self._copy_tape(pen)
        return pen.trajectory()

    def answer(self, problem: str, variant: str) -> str:
        outcome = self.machine.run(self._check(problem), MAX_STEPS)
        if self.machine.answer == STATE:
            return self.machine.letters[outcome.state]
        return outcome.tape.replace(self.machine.blank, "")

    def _check(self, problem: str) -> str:
        if not problem:
            raise EmptyProblemError(f"the problem is empty: an empty tape is the blank cell {self.machine.blank!r}")
        if unknown := set(problem) - set(self.machine.symbols):
            raise InvalidProblemError(
                f"{min(unknown)!r} is none of the symbols {self.machine.symbols} of {self.machine.name}"
            )
        return problem

    def _run(self, pen: Recorder) -> str:
        """The halt state."""
        machine, state = self.machine, self.machine.start
        pen.think(machine.letters[state])
        for _ in range(RECORDED_STEPS):
            if state in machine.halts:
                return state
            (cell,) = pen.call(TAPE_READ)
            rule = machine.rule(state, machine.blank if cell in (TAPE_BEGIN, TAPE_END) else cell)
            pen.call(tape_write(rule.symbol))
            if rule.move in _MOVES:
                pen.call(_MOVES[rule.move])
            state = rule.state
            pen.think(machine.letters[state])
        raise DidNotHaltError(
            f"{machine.name} has not halted after {RECORDED_STEPS:,} steps, more than a trajectory can hold: "
            "recipes/long_problem.py runs it without one"
        )

    def _copy_tape(self, pen: Recorder) -> None:
        """Goes to the left end, and writes what is on the tape on the way to the right end."""
        while True:
            pen.call(TAPE_LEFT)
            if pen.call(TAPE_READ) == (TAPE_BEGIN,):
                break
        pen.begin_answer()
        while True:
            pen.call(TAPE_RIGHT)
            (cell,) = pen.call(TAPE_READ)
            if cell == TAPE_END:
                return
            if cell != self.machine.blank:
                pen.output(cell)
