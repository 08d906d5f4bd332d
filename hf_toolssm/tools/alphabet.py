"""Cells as characters, whatever a cell is, so that what is made of them can be searched, hashed and stored as text."""

from collections.abc import Iterable
from typing import Generic

from hf_toolssm.tools.tool import Cell


class Alphabet(Generic[Cell]):
    """One character for every cell that was ever seen.

    Args:
        cells: those that have the first characters, in their order.

    Attributes:
        cells: by the code of their character.
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
            known = self._characters[cell] = chr(len(self.cells))
            self.cells.append(cell)
        return known

    def text(self, cells: Iterable[Cell]) -> str:
        """The characters of some cells."""
        return "".join(map(self.character, cells))

    def cells_of(self, text: str) -> list[Cell]:
        """The cells of some characters."""
        return [self.cells[ord(character)] for character in text]
