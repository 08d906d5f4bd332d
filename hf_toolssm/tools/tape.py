"""The tape of a Turing machine (PAPER, the tool of Theorem 2.2).

The tape is the problem, under a head that starts at its first cell. It has no end on either side: beyond what was ever
written lies a marker, one on each side, and writing onto a marker makes the tape one cell longer there:

    cell      begin      1   0   1   end      for the problem 101
    head at              ^

Thoughts and outputs leave the tape as it is; only a write call changes it.
"""

from array import array
from collections.abc import Callable, Mapping, MutableSequence, Sequence
from typing import Any, Generic

import numpy as np

from hf_toolssm.errors import TapeFullError, UnknownCallError, UnknownToolError
from hf_toolssm.tools.tool import Cell, View

MAX_CELLS = 10_000_000
"""How long a tape may become where nobody says another number."""

TAPE_READ = "tape_read"
TAPE_LEFT = "tape_left"
TAPE_RIGHT = "tape_right"
TAPE_BEGIN = "<|tape_begin|>"
TAPE_END = "<|tape_end|>"


def tape_write(symbol: str) -> str:
    """The call that writes a symbol into the cell under the head."""
    return f"tape_write_{symbol}"


class Tape:
    """The tape tool.

    Args:
        symbols: what can be written, one printable ASCII character each.
        max_cells: how long the tape may become; a cell takes 8 bytes.
    """

    unit = "cells"
    time_limit = None
    has_side_effects = False

    def __init__(self, symbols: str = "01", max_cells: int = MAX_CELLS) -> None:
        printable = isinstance(symbols, str) and symbols.isascii() and symbols.isprintable() and " " not in symbols
        # Of other characters a large tokenizer knows single bytes, which look like them.
        if not printable or not symbols or len(set(symbols)) < len(symbols):
            raise UnknownToolError(f"tape: symbols must be different ASCII characters and no space, not {symbols!r}")
        if not isinstance(max_cells, int) or max_cells < 1:
            raise UnknownToolError(f"tape: max_cells must be a whole number of at least 1, not {max_cells!r}")
        self.max_cells = max_cells
        self.symbols = {tape_write(symbol): symbol for symbol in symbols}
        self.calls = dict.fromkeys((TAPE_READ, TAPE_LEFT, TAPE_RIGHT, *self.symbols), False)
        self.markers = (TAPE_BEGIN, TAPE_END, *symbols)

    def start(self, problem: Sequence[Cell], marker: Callable[[str], Cell]) -> "TapeSession[Cell]":
        return self._session(problem, (), 0, marker)

    def restore(self, state: Mapping[str, Any], marker: Callable[[str], Cell]) -> "TapeSession[Cell]":
        cells, before = np.asarray(state["tape"]).tolist(), int(state["before"])
        return self._session(cells[before:], cells[:before][::-1], int(state["head"]), marker)

    def _session(
        self, cells: Sequence[Any], before: Sequence[Any], head: int, marker: Callable[[str], Cell]
    ) -> "TapeSession[Cell]":
        begin, end = marker(TAPE_BEGIN), marker(TAPE_END)
        written = {name: marker(symbol) for name, symbol in self.symbols.items()}
        # Token ids take 8 bytes each, side by side, where compiled code can read and write them.
        column: Callable[[Sequence[Any]], MutableSequence[Any]]
        column = (lambda values: array("q", values)) if isinstance(begin, int) else list
        return TapeSession(self, column(cells), column(before), head, begin, end, written)


class TapeSession(Generic[Cell]):
    """The tape and the head of one problem. Every call takes constant time.

    Clones share their cells, and the first that writes takes a copy: a millisecond for a million.

    Attributes:
        cells: from the problem's first on.
        before: those to its left, the nearest first.
        head: where the head stands; 0 is the problem's first cell, cells to its left have negative numbers.
    """

    __slots__ = ("_shared", "_written", "before", "begin", "cells", "end", "head", "tool")

    def __init__(
        self,
        tool: Tape,
        cells: MutableSequence[Cell],
        before: MutableSequence[Cell],
        head: int,
        begin: Cell,
        end: Cell,
        written: Mapping[str, Cell],
    ) -> None:
        self.tool = tool
        self.cells = cells
        self.before = before
        self.head = head
        self.begin = begin
        self.end = end
        self._written = written
        self._shared = False

    @property
    def memory(self) -> Sequence[Cell]:
        """The cells between the markers."""
        return [*reversed(self.before), *self.cells]

    def write(self, cell: Cell) -> None:
        pass  # what the model thinks is no symbol on the tape

    def call(self, name: str, argument: Sequence[Cell]) -> tuple[Cell, ...]:
        head, first, last = self.head, -len(self.before), len(self.cells) - 1
        if name == TAPE_READ:
            return (self.cell(head),)
        if name == TAPE_LEFT:
            self.head = max(head - 1, first - 1)
        elif name == TAPE_RIGHT:
            self.head = min(head + 1, last + 1)
        elif name in self._written:
            self._put(self._written[name])
        else:
            raise UnknownCallError(f"the tape has no call {name!r}")
        return ()

    def cell(self, at: int) -> Cell:
        """The cell at a place, or the marker beyond the last one on that side."""
        if at >= 0:
            return self.cells[at] if at < len(self.cells) else self.end
        return self.before[-1 - at] if -at <= len(self.before) else self.begin

    def view(self) -> View:
        return View(-len(self.before), len(self.cells), {"head": range(self.head, self.head + 1)})

    def own(self) -> None:
        """Takes a copy where a clone has the same cells."""
        if self._shared:
            self.cells, self.before, self._shared = self.cells[:], self.before[:], False

    def _put(self, cell: Cell) -> None:
        self.own()
        side, at = (self.cells, self.head) if self.head >= 0 else (self.before, -1 - self.head)
        if at < len(side):
            side[at] = cell
            return
        if len(self.cells) + len(self.before) >= self.tool.max_cells:
            raise TapeFullError(
                f"the tape has {self.tool.max_cells:,} cells, as many as it may: raise max_cells of the tool tape"
            )
        side.append(cell)

    def clone(self) -> "TapeSession[Cell]":
        clone = TapeSession(self.tool, self.cells, self.before, self.head, self.begin, self.end, self._written)
        clone._shared = self._shared = True
        return clone

    def state(self) -> Mapping[str, Any]:
        return {"tape": np.array(self.memory), "before": len(self.before), "head": self.head}
