"""Pointers over the model's own text (PAPER section 2.1, "pointer memory").

Memory is the problem followed by every thought and output; calls and observations never enter it. Pointers are
created one at a time and start at the first cell of the problem:

    index     -1         0   1   2   3   4   5
    cell      begin      1   2   +   7   =   end      for the problem 12+7=

`left` stops at the begin marker (index -1) and `right` at the end marker (one past the last cell). The end marker is
not a cell: when the model writes, the new cell stands where the pointer at the end already points.
"""

from array import array
from collections.abc import Callable, Mapping, MutableSequence, Sequence
from typing import Any, Generic

import numpy as np

from hf_toolssm.errors import TooManyPointersError, UnknownCallError, UnknownPointerError, UnknownToolError
from hf_toolssm.tools.tool import Cell, View

NEW_POINTER = "new_pointer"
MEMORY_BEGIN = "<|memory_begin|>"
MEMORY_END = "<|memory_end|>"


def read(pointer: int) -> str:
    """The call that shows the cell under a pointer; pointers count from 1 in the order of their creation."""
    return f"read_{pointer}"


def left(pointer: int) -> str:
    """The call that moves a pointer one cell to the left."""
    return f"left_{pointer}"


def right(pointer: int) -> str:
    """The call that moves a pointer one cell to the right."""
    return f"right_{pointer}"


class PointerMemory:
    """The pointer memory tool.

    Args:
        max_pointers: how many pointers one session may create; each has three calls.
    """

    unit = "cells"
    time_limit = None
    has_side_effects = False

    def __init__(self, max_pointers: int = 2) -> None:
        if not isinstance(max_pointers, int) or max_pointers < 1:
            raise UnknownToolError(
                f"pointer_memory: max_pointers must be a whole number of at least 1, not {max_pointers!r}"
            )
        self.max_pointers = max_pointers
        pointers = range(1, max_pointers + 1)
        self.actions = {make(p): (make, p - 1) for p in pointers for make in (read, left, right)}
        self.calls = dict.fromkeys((NEW_POINTER, *self.actions), False)
        self.markers = (MEMORY_BEGIN, MEMORY_END)

    def start(self, problem: Sequence[Cell], marker: Callable[[str], Cell]) -> "PointerSession[Cell]":
        return self._session(problem, [], marker)

    def restore(self, state: Mapping[str, Any], marker: Callable[[str], Cell]) -> "PointerSession[Cell]":
        pointers = [int(pointer) for pointer in state["pointers"]]
        return self._session(np.asarray(state["memory"]).tolist(), pointers, marker)

    def _session(
        self, cells: Sequence[Any], pointers: list[int], marker: Callable[[str], Cell]
    ) -> "PointerSession[Cell]":
        begin, end = marker(MEMORY_BEGIN), marker(MEMORY_END)
        # Token ids take 8 bytes each, side by side, where compiled code can read them.
        column: MutableSequence[Any] = array("q", cells) if isinstance(begin, int) else list(cells)
        return PointerSession(self, column, len(cells), pointers, begin, end)


class PointerSession(Generic[Cell]):
    """Memory and pointers of one problem. Every call takes constant time, and so does a clone.

    Memory only grows, so clones share one column of cells and each knows how many of them are its own. The first of
    them to write appends in place; one that finds foreign cells behind its own takes a copy of its part first.

    Attributes:
        cells: memory, and behind it what a clone may have written.
        size: how many of them are memory.
        pointers: where each stands, in the order of their creation.
    """

    __slots__ = ("begin", "cells", "end", "pointers", "size", "tool")

    def __init__(
        self, tool: PointerMemory, cells: MutableSequence[Cell], size: int, pointers: list[int], begin: Cell, end: Cell
    ) -> None:
        self.tool = tool
        self.cells = cells
        self.size = size
        self.pointers = pointers
        self.begin = begin
        self.end = end

    @property
    def memory(self) -> Sequence[Cell]:
        """The cells, the problem's first."""
        return list(self.cells[: self.size])

    def write(self, cell: Cell) -> None:
        self.extend((cell,))

    def extend(self, cells: Sequence[Cell]) -> None:
        """Takes cells one after the other, as `write` does."""
        if len(self.cells) != self.size:
            self.cells = self.cells[: self.size]
        self.cells.extend(cells)
        self.size += len(cells)

    def call(self, name: str, argument: Sequence[Cell]) -> tuple[Cell, ...]:
        action = self.tool.actions.get(name)
        if action is None:
            return self._new_pointer(name)
        move, index = action
        if index >= len(self.pointers):
            raise UnknownPointerError(
                f"{name} names pointer {index + 1}, but {len(self.pointers)} exist: call {NEW_POINTER} first"
            )
        at = self.pointers[index]
        if move is read:
            return (self.cell(at),)
        if move is right:
            self.pointers[index] = min(at + 1, self.size)
        else:
            self.pointers[index] = max(at - 1, -1)
        return ()

    def cell(self, at: int) -> Cell:
        """The cell at a place, or the marker beyond the last one on that side."""
        if at < 0:
            return self.begin
        return self.cells[at] if at < self.size else self.end

    def view(self) -> View:
        return View(0, self.size, {f"pointer {n}": range(at, at + 1) for n, at in enumerate(self.pointers, 1)})

    def _new_pointer(self, name: str) -> tuple[()]:
        if name != NEW_POINTER:
            raise UnknownCallError(f"pointer_memory has no call {name!r}")
        if len(self.pointers) == self.tool.max_pointers:
            raise TooManyPointersError(
                f"all {self.tool.max_pointers} pointers exist: raise max_pointers of the tool pointer_memory"
            )
        self.pointers.append(0)
        return ()

    def clone(self) -> "PointerSession[Cell]":
        return PointerSession(self.tool, self.cells, self.size, self.pointers.copy(), self.begin, self.end)

    def state(self) -> Mapping[str, Any]:
        return {"memory": np.array(self.cells[: self.size]), "pointers": list(self.pointers)}
