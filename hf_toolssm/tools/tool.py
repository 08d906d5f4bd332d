"""What a tool is: a fixed set of commands, and one session per problem that carries them out."""

import inspect
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Protocol, TypeVar

from hf_toolssm.errors import UnknownToolError

Cell = TypeVar("Cell")
"""A memory cell. The dataset builders use its text; `generate` uses its token id, so that what a tool stores and gives
back is never decoded and encoded again (token in, token out)."""


class ToolSession(Protocol[Cell]):
    """One tool at work on one problem."""

    def write(self, cell: Cell) -> None:
        """Takes what the model has just written: a thought, an output, or a cell of a command's argument.

        Only the tool knows which commands take an argument, so it tells the two apart.
        """

    def execute(self, command: str) -> tuple[Cell, ...] | list[Cell] | str | bytes:
        """Carries out a command and returns its observation, empty for a command that shows nothing.

        An observation is cells, or text for tools that reach outside; bytes are read as UTF-8, and what is not valid
        becomes the replacement character. Text is written as tokens without its special tokens: what looks like a
        command in it stays plain text. Nothing that is observed is ever carried out or ends a row.

        Raises:
            ToolError: the command cannot be carried out. The session is unchanged.
        """

    def clone(self) -> "ToolSession[Cell]":
        """An independent session in the same state."""

    def state(self) -> Mapping[str, Any]:
        """All that the session remembers: numpy arrays for what is large, JSON values for the rest."""


class Tool(Protocol):
    """A tool's commands and markers, shared by all its sessions. Both become special tokens.

    Attributes:
        commands: every command that the model can write, each one token.
        markers: cells that only the tool writes, such as the begin of memory.
        time_limit: seconds that a call may take; beyond it the row that called ends, and the others go on. None is a
            promise that a call takes no more than a few milliseconds, that a clone is cheap at any length, and that
            neither touches anything but the session: such calls run at once, may run on a clone to draft ahead, and
            have no limit. Calls with a limit run on threads of their own, those of several rows side by side; one that
            is given up must not change its session afterwards.
        reaches_outside: whether it touches anything but its session, as a shell or a network does. A config may name
            such a tool, but it runs only where the caller passes it; making it must touch nothing yet.
    """

    commands: tuple[str, ...]
    markers: tuple[str, ...]
    time_limit: float | None
    reaches_outside: bool

    def start(self, problem: Sequence[Cell], marker: Callable[[str], Cell]) -> ToolSession[Cell]:
        """A new session whose memory is the problem.

        Args:
            problem: the cells of the problem.
            marker: the cell for a marker's text (its token id in `generate`, the text itself in a builder).
        """

    def restore(self, state: Mapping[str, Any], marker: Callable[[str], Cell]) -> ToolSession[Cell]:
        """The session whose `state` that is."""


def with_options(tool_class: Callable[..., Tool], spec: Mapping[str, Any]) -> Tool:
    """A tool with the options of a spec, which are all its keys but `name`.

    Raises:
        UnknownToolError: the tool does not take one of them.
    """
    options = {key: value for key, value in spec.items() if key != "name"}
    parameters = inspect.signature(tool_class).parameters
    unknown = sorted(set(options) - set(parameters))
    if unknown:
        raise UnknownToolError(
            f"tool {spec['name']!r} has no option {unknown[0]!r}; its options are {', '.join(parameters)}"
        )
    return tool_class(**options)
