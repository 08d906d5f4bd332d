"""What a tool is: a fixed set of commands, and one session per problem that carries them out."""

from collections.abc import Callable, Sequence
from typing import Protocol, TypeVar

Cell = TypeVar("Cell")
"""A memory cell. The dataset builders use its text; `generate` uses its token id, so that what a tool stores and gives
back is never decoded and encoded again (token in, token out)."""


class ToolSession(Protocol[Cell]):
    """One tool at work on one problem."""

    def write(self, cell: Cell) -> None:
        """Takes a thought or an output that the model has just written."""

    def execute(self, command: str) -> Sequence[Cell]:
        """Carries out a command and returns its observation, empty for a command that shows nothing.

        Raises:
            ToolError: the command cannot be carried out. The session is unchanged.
        """

    def clone(self) -> "ToolSession[Cell]":
        """An independent session in the same state."""


class Tool(Protocol):
    """A tool's commands and markers, shared by all its sessions. Both become special tokens.

    Attributes:
        commands: every command that the model can write, each one token.
        markers: cells that only the tool writes, such as the begin of memory.
    """

    commands: tuple[str, ...]
    markers: tuple[str, ...]

    def start(self, problem: Sequence[Cell], marker: Callable[[str], Cell]) -> ToolSession[Cell]:
        """A new session whose memory is the problem.

        Args:
            problem: the cells of the problem.
            marker: the cell for a marker's text (its token id in `generate`, the text itself in a builder).
        """
