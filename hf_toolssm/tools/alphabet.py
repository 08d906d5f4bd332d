"""Cells as characters, whatever a cell is, so that what is made of them can be searched, hashed and stored as text."""

from collections.abc import Iterable
from typing import Generic

from hf_toolssm.tools.tool import Cell

_HALVES = range(0xD800, 0xE000)


class Alphabet(Generic[Cell]):
    """One character for every cell that was ever seen.

    Args:
        cells: those that have the first characters, in their order.

    Attributes:
        cells: in the order of their characters.
    """

    def __init__(self, cells: Iterable[Cell] = ()) -> None:
        self.cells: list[Cell] = []
        self._characters: dict[Cell, str] = {}
        for cell in cells:
            self.character(cell)

    def copy(self) -> "Alphabet[Cell]":
        """The same, to which other cells may be added."""
        return Alphabet(self.cells)

    def character(self, cell: Cell) -> str:
        """That of a cell."""
        known = self._characters.get(cell)
        if known is None:
            code = len(self.cells)
            # Halves of characters are left out: two of them would be read back as one.
            known = self._characters[cell] = chr(code if code < _HALVES.start else code + len(_HALVES))
            self.cells.append(cell)
        return known

    def text(self, cells: Iterable[Cell]) -> str:
        """The characters of some cells."""
        return "".join(map(self.character, cells))

    def cells_of(self, text: str) -> list[Cell]:
        """The cells of some characters."""
        codes = map(ord, text)
        return [self.cells[code if code < _HALVES.start else code - len(_HALVES)] for code in codes]
