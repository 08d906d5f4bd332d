"""The Tower of Hanoi, recursively: list i is made of list i - 1 twice (PAPER section 4, task 4).

Lists of moves for 1, 2, ..., n disks stand in memory, each behind a `#`, the last behind the answer marker:

    list i = list i - 1 with B and C swapped, disk i from A to C, list i - 1 with A and B swapped

Worked example, `0345<` (disk 45 on disk 03):

    new 1, new 2, new 3                                        these rest: see hanoi.py
    new 4, walk to <, left 4 twice                             pointer 4 rests on the smallest disk
    new 5, walk to <, right 5; the same with pointer 6         both stand where list 0 would end
    left 4 twice, read 4 -> 0, right 4 twice, think #          a larger disk follows: not the last list
    read 5 -> #, right 5                                       list 0 is empty
    read 4 -> 4, think 4, right 4, read 4 -> 5, think 5, left 4, think A, think C
    read 6 -> #, right 6                                       list 0 again; list 1 is 45AC
    left 4 twice                                               pointer 4 rests on the next disk
    left 4 twice, read 4 -> begin, right 4, think <|answer|>   the last list is the answer
    read 5 -> 4, output 4, right 5, ... read 5 -> C, output B, right 5, read 5 -> <|answer|>, right 5
    ... 03AC, then with pointer 6: read 6 -> A, output B, ... until <|answer|>, the end

Variants:
    three_pointers: each of the two copies has a pointer of its own, so the swap in force is the pointer's.
    two_pointers: the paper's number; none rests, and pointer 2 makes both copies, going back to the list's start
        between them. Which copy it is shows in the rods that were just copied: the last 13 tokens determine the next
        one instead of 5.
"""

from collections.abc import Sequence
from typing import Any

from dataset_builders.algorithms.hanoi import HanoiPuzzle
from dataset_builders.algorithms.hanoi_contexts import SWAPS, RecursiveHanoiContexts
from dataset_builders.algorithms.pointer_steps import look, repeat
from dataset_builders.task import task_tool
from hf_toolssm.protocol.recorder import Recorder
from hf_toolssm.protocol.rule import Rule
from hf_toolssm.protocol.trajectory import ANSWER, Trajectory
from hf_toolssm.tools.pointer_memory import MEMORY_BEGIN, NEW_POINTER, left, right

END = "<"
RESTING = 3
"""Pointers that never move."""
_LIST_ENDS = ("#", ANSWER)


class HanoiRecursive(HanoiPuzzle):
    """See the module's text."""

    title = "Tower of Hanoi, solved recursively with a pointer memory"
    end = END
    variants: Sequence[str] = ("three_pointers", "two_pointers")

    def tools(self, variant: str) -> list[dict[str, Any]]:
        return [{"name": "pointer_memory", "max_pointers": RESTING + 3 if variant == "three_pointers" else 2}]

    def cells(self, variant: str) -> Sequence[str]:
        return (*super().cells(variant), "#")

    def rule(self, variant: str) -> Rule:
        """That of `three_pointers`.

        Raises:
            CertificationError: it is another's.
        """
        if self.check_variant(variant) == "two_pointers":
            return super().rule(variant)
        return RecursiveHanoiContexts(END, RESTING)

    def solve(self, problem: str, variant: str) -> Trajectory:
        """Records the algorithm.

        Raises:
            InvalidProblemError: the problem is no tower, or the variant does not exist.
            EmptyProblemError: the problem is empty.
        """
        pen = Recorder(problem, task_tool(self, variant))
        self.labels(problem)
        disk, first, second = (1, 2, 2)
        if variant == "three_pointers":
            repeat(pen, NEW_POINTER, RESTING)
            disk, first, second = range(RESTING + 1, RESTING + 4)
        _walk_new_pointer(pen, disk)
        repeat(pen, left(disk), 2)
        for pointer in range(first, second + 1):
            _walk_new_pointer(pen, pointer)
            pen.call(right(pointer))
        while True:
            last = _announce_list(pen, disk)
            write = pen.output if last else pen.think
            _copy(pen, first, SWAPS[0], write)
            _write_disk(pen, disk, write)
            if first == second:
                _go_back(pen, second)
            _copy(pen, second, SWAPS[1], write)
            if last:
                return pen.trajectory()
            repeat(pen, left(disk), 2)


def _walk_new_pointer(pen: Recorder, pointer: int) -> None:
    """A new pointer, on the `<` behind the disks."""
    pen.call(NEW_POINTER)
    while True:
        repeat(pen, right(pointer), 2)
        if look(pen, pointer) == END:
            return


def _announce_list(pen: Recorder, disk: int) -> bool:
    """Writes what stands before a list, and says whether it is the last: whether no disk is larger."""
    repeat(pen, left(disk), 2)
    last = look(pen, disk) == MEMORY_BEGIN
    if last:
        pen.call(right(disk))  # left of the first cell there is one place only
    else:
        repeat(pen, right(disk), 2)
    pen.think(ANSWER if last else "#")
    return last


def _copy(pen: Recorder, pointer: int, swap: dict[int, int], write: Any) -> None:
    """Copies a list with two rods swapped, and leaves the pointer at the start of the next."""
    while (cell := look(pen, pointer)) not in _LIST_ENDS:
        write(cell.translate(swap))
        pen.call(right(pointer))
    pen.call(right(pointer))


def _write_disk(pen: Recorder, disk: int, write: Any) -> None:
    """The move of the list's largest disk."""
    write(look(pen, disk))
    pen.call(right(disk))
    write(look(pen, disk))
    pen.call(left(disk))
    write("A")
    write("C")


def _go_back(pen: Recorder, pointer: int) -> None:
    """From behind a list to its first cell."""
    pen.call(left(pointer))
    while True:
        pen.call(left(pointer))
        if look(pen, pointer) in (*_LIST_ENDS, END):
            pen.call(right(pointer))
            return
