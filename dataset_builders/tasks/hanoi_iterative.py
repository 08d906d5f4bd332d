"""The Tower of Hanoi, iteratively: every other move is the smallest disk's (PAPER section 4, task 3).

The smallest disk makes the odd moves, always around the rods in one direction, which the number of disks decides. For
the even moves no state is kept: without the smallest disk they are the solution for one disk fewer, so move 2j is
move j with the next larger disk, and B and C swapped. A pointer that walks along the moves at half their speed reads
move j.

Worked example, `970345>`:

    new 1, ... new 6                                               these rest: see hanoi.py
    new 7, new 8, then per disk
        right 7 and right 8, twice each, think - or +, read 7      - is an odd number: A, C, B; + is even: A, B, C
    think <|answer|>, right 7 ... read 7 -> <|answer|>, left 7     pointer 7 rests on the last sign
    left 8 twice                                                   pointer 8 rests on the smallest disk
    new 9, walk to <|answer|>, right 9                             pointer 9 rests on the first move
    read 8 -> 4, output 4, right 8, read 8 -> 5, output 5, left 8, read 7 -> -, output A, output C    an odd move
    read 9 -> 4, read 8 -> 4, right 9, read 9 -> 5, right 8, read 8 -> 5       move j's disk is the one at pointer 8
    left 8 three times, read 8 -> 0, output 0, right 8, read 8 -> 3, output 3  the next larger disk
    right 8, read 8 -> 4, ... read 8 -> >, left 8 twice                        back to the smallest
    right 9, read 9 -> A, output A, right 9, read 9 -> C, output B, right 9    the rods of move j, swapped
    ... until the next larger disk is the begin of memory, the end

Variants:
    half_speed: the above, about 32 tokens a move however many the disks, or 36 where their labels share their tens.
    copied_states: the paper's algorithm, which writes the whole state after every move; see hanoi_states.py.
"""

from collections.abc import Sequence
from typing import Any

from dataset_builders.algorithms.hanoi import RODS, HanoiPuzzle
from dataset_builders.algorithms.hanoi_contexts import NEXT, SWAP, IterativeHanoiContexts
from dataset_builders.algorithms.hanoi_states import COPIED_STATES, MOVE_END, STATE_END, state_text, write_states
from dataset_builders.algorithms.pointer_steps import look, repeat, walk
from dataset_builders.task import task_tool
from hf_toolssm.protocol.recorder import Recorder
from hf_toolssm.protocol.rule import Rule
from hf_toolssm.protocol.trajectory import ANSWER, Trajectory
from hf_toolssm.tools.pointer_memory import MEMORY_BEGIN, NEW_POINTER, left, right

END = ">"
RESTING = 6
"""Pointers that never move."""
_SIGN, _DISK, _MOVE = range(RESTING + 1, RESTING + 4)


class HanoiIterative(HanoiPuzzle):
    """See the module's text."""

    title = "Tower of Hanoi, solved iteratively with a pointer memory"
    version = "5"
    end = END
    variants: Sequence[str] = ("half_speed", COPIED_STATES)

    def tools(self, variant: str) -> list[dict[str, Any]]:
        return [{"name": "pointer_memory", "max_pointers": 1 if variant == COPIED_STATES else RESTING + 3}]

    def cells(self, variant: str) -> Sequence[str]:
        return (*super().cells(variant), *((STATE_END, MOVE_END) if variant == COPIED_STATES else "+-"))

    def rule(self, variant: str) -> Rule:
        """That of `half_speed`.

        Raises:
            CertificationError: it is another's.
        """
        if self.check_variant(variant) == COPIED_STATES:
            return super().rule(variant)
        return IterativeHanoiContexts(END, RESTING)

    def solve(self, problem: str, variant: str) -> Trajectory:
        """Records the algorithm.

        Raises:
            InvalidProblemError: the problem is no tower, or the variant does not exist.
            EmptyProblemError: the problem is empty.
        """
        pen = Recorder(problem, task_tool(self, variant))
        labels = self.labels(problem)
        if variant == COPIED_STATES:
            write_states(pen, labels, END)
        else:
            _write_moves(pen)
        return pen.trajectory()

    def answer(self, problem: str, variant: str) -> str:
        moves = super().answer(problem, variant)
        if variant != COPIED_STATES:
            return moves
        rods: dict[str, list[str]] = {"A": self.labels(problem), "B": [], "C": []}
        written = []
        for move in (moves[at : at + 4] for at in range(0, len(moves), 4)):
            rods[move[3]].append(rods[move[2]].pop())
            written += [move, MOVE_END, state_text(rods)]
        return "".join(written)


def _write_moves(pen: Recorder) -> None:
    _write_signs(pen)
    pen.begin_answer()
    walk(pen, _SIGN, ANSWER)
    pen.call(left(_SIGN))
    repeat(pen, left(_DISK), 2)
    pen.call(NEW_POINTER)
    walk(pen, _MOVE, ANSWER)
    pen.call(right(_MOVE))
    start = "A"
    while True:
        start = _move_smallest(pen, start)
        if not _find_next_larger(pen):
            return
        start = _move_other(pen)


def _write_signs(pen: Recorder) -> None:
    """One sign a disk, each the other of the one before, so that the last is the parity of their number."""
    repeat(pen, NEW_POINTER, RESTING + 2)
    sign = "+"
    while True:
        # Both at once: alone, pointer 8 walked over the disks two cells at a time where it later walks cell by cell,
        # and a model of all tasks took the one for the other on a tower of twelve.
        repeat(pen, right(_SIGN), 2)
        repeat(pen, right(_DISK), 2)
        sign = "+" if sign == "-" else "-"
        pen.think(sign)
        if look(pen, _SIGN) == END:
            return


def _move_smallest(pen: Recorder, start: str) -> str:
    """Writes an odd move from a rod; returns where it leads."""
    pen.output(look(pen, _DISK))
    pen.call(right(_DISK))
    pen.output(look(pen, _DISK))
    pen.call(left(_DISK))
    goal = NEXT[look(pen, _SIGN)][start]
    pen.output(start)
    pen.output(goal)
    return goal


def _find_next_larger(pen: Recorder) -> bool:
    """Writes the disk above that of move j in size; false if there is none, which is the end."""
    while True:
        if look(pen, _MOVE) != look(pen, _DISK):
            repeat(pen, left(_DISK), 2)
            continue
        pen.call(right(_MOVE))
        moved = look(pen, _MOVE)
        pen.call(right(_DISK))
        if moved == look(pen, _DISK):
            break
        pen.call(left(_MOVE))
        repeat(pen, left(_DISK), 3)
    repeat(pen, left(_DISK), 3)
    tens = look(pen, _DISK)
    if tens == MEMORY_BEGIN:
        return False
    pen.output(tens)
    pen.call(right(_DISK))
    pen.output(look(pen, _DISK))
    walk(pen, _DISK, END)
    repeat(pen, left(_DISK), 2)
    return True


def _move_other(pen: Recorder) -> str:
    """Writes the rods of an even move; returns the third rod, where the smallest disk is."""
    pen.call(right(_MOVE))
    start = SWAP[look(pen, _MOVE)]
    pen.output(start)
    pen.call(right(_MOVE))
    goal = SWAP[look(pen, _MOVE)]
    pen.output(goal)
    pen.call(right(_MOVE))
    return next(rod for rod in RODS if rod not in (start, goal))
