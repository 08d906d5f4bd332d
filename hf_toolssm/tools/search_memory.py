"""Search over the model's own text, like grep (PAPER section 2.1, "search memory").

Memory is the problem followed by every thought and output, in lines that a newline cell ends. The call `find` has a
pattern as its argument and shows every line that contains it, oldest first: the lines, with a newline between two, and
`<|search_end|>` behind the last. Alone, that says that no line matched.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, Generic

import numpy as np

from hf_toolssm.errors import ObservationTooLongError, UnknownCallError, UnknownToolError
from hf_toolssm.tools.alphabet import Alphabet
from hf_toolssm.tools.tool import Cell, View

FIND = "find"
SEARCH_END = "<|search_end|>"
NEWLINE = "\n"


class SearchMemory:
    """The search memory tool.

    A search reads all of memory once, in C: about a millisecond for a million cells, so that it needs no thread of its
    own.

    Args:
        max_cells: the longest observation; a pattern that shows more is refused.
    """

    unit = "cells"
    time_limit = None
    has_side_effects = False
    calls: Mapping[str, bool] = {FIND: True}
    markers = (NEWLINE, SEARCH_END)

    def __init__(self, max_cells: int = 1_000) -> None:
        if not isinstance(max_cells, int) or max_cells < 1:
            raise UnknownToolError(f"search_memory: max_cells must be a whole number of at least 1, not {max_cells!r}")
        self.max_cells = max_cells

    def start(self, problem: Sequence[Cell], marker: Callable[[str], Cell]) -> "SearchSession[Cell]":
        alphabet: Alphabet[Cell] = Alphabet((marker(NEWLINE),))
        memory = [alphabet.character(cell) for cell in problem]
        return SearchSession(self, alphabet, memory, len(memory), marker(SEARCH_END))

    def restore(self, state: Mapping[str, Any], marker: Callable[[str], Cell]) -> "SearchSession[Cell]":
        return self.start(np.asarray(state["memory"]).tolist(), marker)


_LINE_END = chr(0)
"""The character of the alphabet's first cell."""


class SearchSession(Generic[Cell]):
    """The memory of one problem. Clones share it, and the first that writes behind another's cells copies its part."""

    __slots__ = ("_alphabet", "_matches", "_memory", "_size", "_text", "end", "tool")

    def __init__(self, tool: SearchMemory, alphabet: Alphabet[Cell], memory: list[str], size: int, end: Cell) -> None:
        self.tool = tool
        self._alphabet = alphabet
        self._memory = memory
        self._size = size
        self._text = ""  # the first part of memory as one string, extended by every search
        self._matches: dict[str, range] = {}  # where the lines of the last search stand, for `view`
        self.end = end

    @property
    def memory(self) -> list[Cell]:
        """The cells, the problem's first."""
        return self._alphabet.cells_of("".join(self._memory[: self._size]))

    def write(self, cell: Cell) -> None:
        if len(self._memory) != self._size:
            self._memory = self._memory[: self._size]
        self._memory.append(self._alphabet.character(cell))
        self._size += 1

    def call(self, name: str, argument: Sequence[Cell]) -> list[Cell]:
        if name != FIND:
            raise UnknownCallError(f"search_memory has no call {name!r}")
        shown: list[str] = []
        matches: dict[str, range] = {}
        for at in self._matching(self._alphabet.text(argument)):
            matches[f"match {len(matches) + 1}"] = at
            line = self._text[at.start : at.stop]
            shown += [_LINE_END, *line] if shown else line
            if len(shown) >= self.tool.max_cells:
                raise ObservationTooLongError(
                    f"the pattern shows more than {self.tool.max_cells} cells: search for something rarer, or raise "
                    "max_cells of the tool search_memory"
                )
        self._matches = matches
        return [*self._alphabet.cells_of("".join(shown)), self.end]

    def cell(self, at: int) -> Cell:
        (cell,) = self._alphabet.cells_of(self._memory[at])
        return cell

    def view(self) -> View:
        return View(0, self._size, self._matches)

    def _matching(self, pattern: str) -> Iterator[range]:
        """Where every line stands that contains the pattern, in order."""
        self._text += "".join(self._memory[len(self._text) : self._size])
        text, at = self._text, 0
        while 0 <= (at := text.find(pattern, at)) < len(text):
            start, stop = text.rfind(_LINE_END, 0, at) + 1, text.find(_LINE_END, at)
            stop = len(text) if stop < 0 else stop
            if _LINE_END not in pattern:
                yield range(start, stop)
            at = stop + 1

    def clone(self) -> "SearchSession[Cell]":
        clone = SearchSession(self.tool, self._alphabet, self._memory, self._size, self.end)
        clone._text, clone._matches = self._text, self._matches
        return clone

    def state(self) -> Mapping[str, Any]:
        return {"memory": np.array(self.memory)}
