"""What algorithms on a pointer memory do over and over, each step recorded by the pen."""

from hf_toolssm.tools.pointer_memory import read, right
from hf_toolssm.tools.recorder import Recorder


def look(pen: Recorder, pointer: int) -> str:
    """Reads the cell under a pointer."""
    (cell,) = pen.call(read(pointer))
    return cell


def advance(pen: Recorder, pointer: int, cells: int) -> None:
    """Moves a pointer to the right without looking."""
    for _ in range(cells):
        pen.call(right(pointer))


def walk(pen: Recorder, pointer: int, until: str) -> None:
    """Moves a pointer to the right, looking at every cell, until it stands on `until`."""
    while True:
        pen.call(right(pointer))
        if look(pen, pointer) == until:
            return
