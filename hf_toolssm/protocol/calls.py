"""How a call is written, and read back: by tokens of its own.

    <|read_1|>                          the call `read_1`, without an argument
    <|find|> = a b c <|/find|>          the call `find` with the argument `=abc`

This is the one place that knows. A tool gets `Call.name` and `Call.argument`; the loop asks `CallReader` what a token
that the model wrote means.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Generic

from hf_toolssm.errors import MalformedCallError
from hf_toolssm.tools.tool import Cell, ToolFacts, check_names


@dataclass(frozen=True, slots=True)
class Call(Generic[Cell]):
    """A tool's call.

    Attributes:
        name: of the call; no two tools of a session have one in common.
        argument: the cells that stand in it; none where the call takes none.
    """

    name: str
    argument: Sequence[Cell] = ()


def begin_token(name: str) -> str:
    """The token that a call begins with, which is all of it if it takes no argument."""
    return f"<|{name}|>"


def end_token(name: str) -> str:
    """The token that ends a call's argument."""
    return f"<|/{name}|>"


def call_tokens(facts: ToolFacts) -> list[str]:
    """All tokens of a tool's calls."""
    return [
        token
        for name, takes_argument in facts.calls.items()
        for token in ((begin_token(name), end_token(name)) if takes_argument else (begin_token(name),))
    ]


class CommandTokens(Generic[Cell]):
    """The calls of some tools, as a session's cells.

    Args:
        tools: no two have a call in common.
        cell: of a token's text: its id in `generate`, the text itself where trajectories are texts.

    Attributes:
        tool_of: by a call's name, which of the tools it is of.
        begins: by its first cell, each call's name and whether it takes an argument.
        ends: by its last cell, the name of each call that takes an argument.
        whole: by its one cell, each call that takes none.
        live: all these cells.

    Raises:
        UnknownToolError: two tools share a call.
    """

    def __init__(self, tools: Sequence[ToolFacts], cell: Callable[[str], Cell]) -> None:
        check_names(tools)
        self.tool_of = {name: index for index, facts in enumerate(tools) for name in facts.calls}
        calls = [call for facts in tools for call in facts.calls.items()]
        self.begins: Mapping[Cell, tuple[str, bool]] = {cell(begin_token(name)): (name, has) for name, has in calls}
        self.ends: Mapping[Cell, str] = {cell(end_token(name)): name for name, has in calls if has}
        self.whole: Mapping[Cell, Call[Cell]] = {at: Call(name) for at, (name, has) in self.begins.items() if not has}
        self.live = frozenset({*self.begins, *self.ends})


class CallReader(Generic[Cell]):
    """Reads what the model writes, cell by cell, for calls.

    Args:
        tokens: what calls are made of.

    Attributes:
        open: the name of the call whose argument is being written; None outside.
        argument: what was written of it.
    """

    __slots__ = ("argument", "open", "tokens")

    def __init__(self, tokens: CommandTokens[Cell], open: str | None = None, argument: Sequence[Cell] = ()) -> None:
        self.tokens = tokens
        self.open = open
        self.argument = list(argument)

    def copy(self) -> "CallReader[Cell]":
        """One that stands where this one does."""
        return CallReader(self.tokens, self.open, self.argument)

    def read(self, cell: Cell) -> "Call[Cell] | bool":
        """What a cell is: the call that it completes, or whether it is part of one that it does not complete.

        Raises:
            MalformedCallError: it is part of a call, and none that it could be part of. `open` is then the call whose
                tool is to hear of it, until `close`.
        """
        begins, ends = self.tokens.begins, self.tokens.ends
        if self.open is None:
            if cell in self.tokens.whole:
                return self.tokens.whole[cell]
            if cell in begins:
                (self.open, _), self.argument = begins[cell], []
                return True
            if cell in ends:
                self.open = ends[cell]
                raise MalformedCallError(
                    f"{end_token(self.open)} ends an argument, and none is open: write {begin_token(self.open)} and "
                    "the argument first"
                )
            return False
        if ends.get(cell) == self.open:
            call = Call(self.open, tuple(self.argument))
            self.close()
            return call
        if cell in begins or cell in ends:
            raise MalformedCallError(
                f"another call stands in the argument of {begin_token(self.open)}: end it by {end_token(self.open)}"
            )
        self.argument.append(cell)
        return True

    def close(self) -> None:
        """Forgets a call that is open."""
        self.open, self.argument = None, []
