"""A pointer over what a user wrote, line by line: how a model goes through a text that its state cannot hold (PAPER,
task 7: retrieval over a long context).

| call | observation |
|---|---|
| `next_line` | `line: ` and the next line as it is, or `end` behind the last one |
| `skip_line` | `skipped`, or `end` behind the last one |

    Lines()                # over the problem: what a session, or `generate`, begins with
    Lines(text=document)   # over a text of the caller's, as in a chat, whose problem is the whole rendered prompt

A line ends as it does for Python's `splitlines`, and `line: ` keeps what was written apart from what the tool says.
"""

from collections.abc import Mapping
from typing import Any

from hf_toolssm.errors import UnknownCallError, UnknownToolError

LINE = "line: "
"""Before a line."""

SKIPPED, END = "skipped", "end"


class Lines:
    """The tool.

    Args:
        text: to be read; None is the problem's.

    Raises:
        UnknownToolError: it is no text.
    """

    name = "lines"
    has_side_effects = False
    time_limit = None
    calls: Mapping[str, bool] = {"next_line": False, "skip_line": False}
    description = "next_line shows the next line of the text that is to be read, and skip_line passes over it."

    def __init__(self, text: str | None = None) -> None:
        if text is not None and not isinstance(text, str):
            raise UnknownToolError(f"lines: text is a text, or None for the problem's, and not {text!r:.60}")
        self._text = text

    def start(self, problem: str) -> "LinesAtWork":
        """A pointer before the first line."""
        return LinesAtWork(tuple((problem if self._text is None else self._text).splitlines()), 0)

    def restore(self, state: Mapping[str, Any]) -> "LinesAtWork":
        """The pointer that had that state."""
        return LinesAtWork(tuple(state["lines"]), state["at"])


class LinesAtWork:
    """A pointer into the lines of one text.

    Args:
        lines: of the text.
        at: how many of them were read or skipped.
    """

    def __init__(self, lines: tuple[str, ...], at: int) -> None:
        self._lines, self._at = lines, at

    def call(self, name: str, argument: str) -> str:
        """Goes on by one line; see the module's text."""
        if name not in Lines.calls:
            raise UnknownCallError(f"lines has no call {name!r}")
        if self._at == len(self._lines):
            return END
        self._at += 1
        return LINE + self._lines[self._at - 1] if name == "next_line" else SKIPPED

    def clone(self) -> "LinesAtWork":
        return LinesAtWork(self._lines, self._at)

    def state(self) -> Mapping[str, Any]:
        return {"lines": self._lines, "at": self._at}
