"""The paper's Tower of Hanoi (PAPER section 4, task 3): one pointer, and the whole state written at every move.

Worked example, `9745>` (disk 45 on disk 97), where spaces are for the eye and `a` marks the answer:

    9745>  A9745BC#  a  45AB: A97B45C#  97AC: AB45C97#  45BC: ABC9745#

The pointer walks along the disks, and they are copied as the first state; the number of disks, odd or even, is then
known. From there on a move (disk, from, to, `:`) is written, and the pointer walks over the state before it, which is
copied with that one disk moved; what lies on top of each rod is seen on the way. The smallest disk moves at every odd
step, around the rods in one direction; at an even step the one move without it is made.

Two things stand nowhere near: the direction, and which of two labels is the larger disk, as labels say nothing of
size. So no bounded context determines a move. With n disks a move takes 8 n + 36 tokens.
"""

from dataset_builders.algorithms.hanoi import RODS
from dataset_builders.algorithms.pointer_steps import look, walk
from hf_toolssm.protocol.recorder import Recorder
from hf_toolssm.tools.pointer_memory import NEW_POINTER, right

COPIED_STATES = "copied_states"
STATE_END, MOVE_END = "#", ":"
_POINTER = 1

Rods = dict[str, list[str]]
"""Labels by rod, the lowest disk first."""


def write_states(pen: Recorder, labels: list[str], end: str) -> None:
    """Records the algorithm on a problem of those labels, largest disk first, and the cell `end` behind them."""
    _copy_problem(pen, end)
    pen.begin_answer()
    rods: Rods = {"A": list(labels), "B": [], "C": []}
    direction = "ACB" if len(labels) % 2 else "ABC"
    smallest, odd = labels[-1], True
    while len(rods["C"]) < len(labels):
        start, goal = _odd_move(rods, smallest, direction) if odd else _even_move(rods, smallest, labels)
        odd = not odd
        label = rods[start][-1]
        for cell in (*label, start, goal, MOVE_END):
            pen.output(cell)
        _copy_state(pen, rods, start, goal)
        rods[goal].append(rods[start].pop())
        if len(rods["C"]) < len(labels):
            walk(pen, _POINTER, until=MOVE_END)


def state_text(rods: Rods) -> str:
    """A state as it is written."""
    return "".join(rod + "".join(rods[rod]) for rod in RODS) + STATE_END


def _copy_problem(pen: Recorder, end: str) -> None:
    pen.call(NEW_POINTER)
    pen.think("A")
    while (cell := look(pen, _POINTER)) != end:
        pen.think(cell)
        pen.call(right(_POINTER))
    for cell in f"BC{STATE_END}":
        pen.think(cell)


def _copy_state(pen: Recorder, rods: Rods, start: str, goal: str) -> None:
    """Walks over a state, which begins one cell further, and writes it with the top disk of one rod on another."""
    for rod in RODS:
        _step(pen)
        pen.output(rod)
        stays = len(rods[rod]) - (rod == start)
        for at, label in enumerate(rods[rod]):
            for digit in label:
                _step(pen)
                if at < stays:
                    pen.output(digit)
        if rod == goal:
            for digit in rods[start][-1]:
                pen.output(digit)
    _step(pen)
    pen.output(STATE_END)


def _step(pen: Recorder) -> None:
    pen.call(right(_POINTER))
    look(pen, _POINTER)


def _odd_move(rods: Rods, smallest: str, direction: str) -> tuple[str, str]:
    start = next(rod for rod in RODS if smallest in rods[rod])
    return start, direction[(direction.index(start) + 1) % 3]


def _even_move(rods: Rods, smallest: str, labels: list[str]) -> tuple[str, str]:
    """The move of the smaller of two tops onto the other, or onto the empty rod."""
    first, second = (rod for rod in RODS if smallest not in rods[rod])
    sizes = {rod: labels.index(rods[rod][-1]) if rods[rod] else -1 for rod in (first, second)}
    return (first, second) if sizes[first] > sizes[second] else (second, first)
