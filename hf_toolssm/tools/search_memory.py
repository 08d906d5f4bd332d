"""Search over the model's own text, like grep (PAPER section 2.1, "search memory").

Memory is the problem followed by every thought and output, in lines that a newline cell ends. A search is a command
with an argument:

    <|find|> = a b c <|search|>      shows every line that contains `=abc`, oldest first

What the model writes behind `<|find|>` is the pattern and does not enter memory. The observation is the lines, with a
newline between two, and `<|search_end|>` behind the last: alone, it says that no line matched. Search before the
answer marker: what is written behind it counts as output.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, Generic

import numpy as np

from hf_toolssm.errors import NoArgumentError, ObservationTooLongError, UnknownCommandError, UnknownToolError
from hf_toolssm.tools.tool import Cell

FIND = "<|find|>"
SEARCH = "<|search|>"
SEARCH_END = "<|search_end|>"
NEWLINE = "\n"


class SearchMemory:
    """The search memory tool.

    A search reads all of memory once, in C: about a millisecond for a million cells, so that it needs no thread of its
    own.

    Args:
        max_cells: the longest observation; a pattern that shows more is refused.
    """

    time_limit = None
    reaches_outside = False
    commands = (FIND, SEARCH)
    markers = (NEWLINE, SEARCH_END)

    def __init__(self, max_cells: int = 1_000) -> None:
        if not isinstance(max_cells, int) or max_cells < 1:
            raise UnknownToolError(f"search_memory: max_cells must be a whole number of at least 1, not {max_cells!r}")
        self.max_cells = max_cells

    def start(self, problem: Sequence[Cell], marker: Callable[[str], Cell]) -> "SearchSession[Cell]":
        alphabet: _Alphabet[Cell] = _Alphabet(marker(NEWLINE))
        memory = [alphabet.character(cell) for cell in problem]
        return SearchSession(self, alphabet, memory, len(memory), None, marker(SEARCH_END))

    def restore(self, state: Mapping[str, Any], marker: Callable[[str], Cell]) -> "SearchSession[Cell]":
        session = self.start(np.asarray(state["memory"]).tolist(), marker)
        session.pattern = None if state["pattern"] is None else list(state["pattern"])
        return session


class _Alphabet(Generic[Cell]):
    """One character for every cell that was ever seen, so that strings can be searched whatever a cell is."""

    def __init__(self, newline: Cell) -> None:
        self.cells: list[Cell] = [newline]
        self._characters = {newline: chr(0)}

    def character(self, cell: Cell) -> str:
        known = self._characters.get(cell)
        if known is None:
            known = self._characters[cell] = chr(len(self.cells))
            self.cells.append(cell)
        return known


_LINE_END = chr(0)


class SearchSession(Generic[Cell]):
    """The memory of one problem. Clones share it, and the first that writes behind another's cells copies its part.

    Attributes:
        pattern: what was written since `<|find|>`; None when no pattern is open.
    """

    __slots__ = ("_alphabet", "_memory", "_size", "_text", "end", "pattern", "tool")

    def __init__(
        self,
        tool: SearchMemory,
        alphabet: _Alphabet[Cell],
        memory: list[str],
        size: int,
        pattern: list[Cell] | None,
        end: Cell,
    ) -> None:
        self.tool = tool
        self._alphabet = alphabet
        self._memory = memory
        self._size = size
        self._text = ""  # the first part of memory as one string, extended by every search
        self.pattern = pattern
        self.end = end

    @property
    def memory(self) -> list[Cell]:
        """The cells, the problem's first."""
        return [self._alphabet.cells[ord(character)] for character in self._memory[: self._size]]

    def write(self, cell: Cell) -> None:
        if self.pattern is not None:
            self.pattern.append(cell)
            return
        if len(self._memory) != self._size:
            self._memory = self._memory[: self._size]
        self._memory.append(self._alphabet.character(cell))
        self._size += 1

    def execute(self, command: str) -> list[Cell] | tuple[()]:
        if command == FIND:
            self.pattern = []
            return ()
        if command != SEARCH:
            raise UnknownCommandError(f"search_memory has no command {command!r}")
        if self.pattern is None:
            raise NoArgumentError(f"{SEARCH} ends a pattern, and none is open: write {FIND} and the pattern first")
        shown: list[str] = []
        for line in self._matching("".join(map(self._alphabet.character, self.pattern))):
            shown += [_LINE_END, *line] if shown else line
            if len(shown) >= self.tool.max_cells:
                raise ObservationTooLongError(
                    f"the pattern shows more than {self.tool.max_cells} cells: search for something rarer, or raise "
                    "max_cells of the tool search_memory"
                )
        self.pattern = None
        return [*(self._alphabet.cells[ord(character)] for character in shown), self.end]

    def _matching(self, pattern: str) -> Iterator[str]:
        """Every line that contains the pattern, in order."""
        self._text += "".join(self._memory[len(self._text) : self._size])
        text, at = self._text, 0
        while 0 <= (at := text.find(pattern, at)) < len(text):
            start, stop = text.rfind(_LINE_END, 0, at) + 1, text.find(_LINE_END, at)
            stop = len(text) if stop < 0 else stop
            if _LINE_END not in pattern:
                yield text[start:stop]
            at = stop + 1

    def clone(self) -> "SearchSession[Cell]":
        pattern = None if self.pattern is None else self.pattern.copy()
        clone = SearchSession(self.tool, self._alphabet, self._memory, self._size, pattern, self.end)
        clone._text = self._text
        return clone

    def state(self) -> Mapping[str, Any]:
        pattern = None if self.pattern is None else list(self.pattern)
        return {"memory": np.array(self.memory), "pattern": pattern}
