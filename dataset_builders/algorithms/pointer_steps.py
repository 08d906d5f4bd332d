"""What algorithms on a pointer memory do over and over, each step recorded by the pen."""

from collections.abc import Iterable

from hf_toolssm.protocol.recorder import Recorder
from hf_toolssm.tools.pointer_memory import NEW_POINTER, read, right


def look(pen: Recorder, pointer: int) -> str:
    """Reads the cell under a pointer."""
    (cell,) = pen.call(read(pointer))
    return cell


def repeat(pen: Recorder, name: str, times: int) -> None:
    """Makes a call that shows nothing several times."""
    for _ in range(times):
        pen.call(name)


def walk(pen: Recorder, pointer: int, until: str) -> None:
    """Moves a pointer to the right, looking at every cell, until it stands on `until`."""
    while True:
        pen.call(right(pointer))
        if look(pen, pointer) == until:
            return


def walk_new_pointer(pen: Recorder, pointer: int, until: str) -> None:
    """Makes a pointer, which starts at the first cell, and walks it until it stands on `until`, a later cell."""
    pen.call(NEW_POINTER)
    look(pen, pointer)
    walk(pen, pointer, until)


def output_number(pen: Recorder, digits: Iterable[str]) -> None:
    """Outputs digits, highest first, each as soon as it is found, without leading zeros."""
    started = False
    for digit in digits:
        started = started or digit != "0"
        if started:
            pen.output(digit)
    if not started:
        pen.output("0")
