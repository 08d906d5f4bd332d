"""A key-value store whose keys and values a pointer copies from what was said (PAPER section 2.1; TASS).

A model of a fixed state need not hold a text in order to store it: the pointer shows one cell, the model decides what
becomes of it, and the last few tokens are all that this takes. The pointer begins before what was said, and so does
that of every turn: `done` forgets what was read.

| call | what it does | what it shows |
|---|---|---|
| `seek_key`, `open_key`, `escape_key`, `close_key` | moves on | the cell there, `<|text_end|>` behind the last |
| `take_key` | takes the cell into the key, and moves on | the same |
| `seek_value`, `open_value`, `escape_value`, `take_value` | the same, for the value | the same |
| `put` | stores the value under the key | |
| `get` | looks the key up | the value's first cell, `<|value_end|>` if it has none, or `<|absent|>` |
| `show` | goes on in the value that was got | its next cell, `<|value_end|>` behind the last |
| `delete` | takes the key and its value away | |
| `done` | forgets all that was said and taken | |

Calls that move differ in their names alone, so that a model reads in them, and not in its state, what it is doing.
"""

from array import array
from collections.abc import Callable, Mapping, MutableSequence, Sequence
from typing import Any, Generic

import numpy as np

from hf_toolssm.errors import InvalidArgumentsError, UnknownCallError
from hf_toolssm.tools.alphabet import Alphabet
from hf_toolssm.tools.key_value_memory import MemoryPairs
from hf_toolssm.tools.tool import Cell

TEXT_END, VALUE_END, ABSENT = "<|text_end|>", "<|value_end|>", "<|absent|>"
PUT, GET, SHOW, DELETE, DONE = "put", "get", "show", "delete", "done"
CLOSE_KEY = "close_key"


def seek(part: str) -> str:
    """The call that moves on to where a key or a value begins."""
    return f"seek_{part}"


def enter(part: str) -> str:
    """The call that moves on over what begins a key or a value."""
    return f"open_{part}"


def escape(part: str) -> str:
    """The call that moves on over what says that the next cell is one of the text."""
    return f"escape_{part}"


def take(part: str) -> str:
    """The call that takes a cell into a key or a value."""
    return f"take_{part}"


_KEY, _VALUE = 1, 2
MOVES = {CLOSE_KEY: 0} | {
    make(part): kind if make is take else 0
    for part, kind in (("key", _KEY), ("value", _VALUE))
    for make in (seek, enter, escape, take)
}
"""By call that moves on, what it takes the cell for: nothing, a key or a value."""


class PointerStore:
    """The tool; every problem begins with an empty store."""

    unit = "cells"
    time_limit = None
    has_side_effects = False
    calls: Mapping[str, bool] = dict.fromkeys((*MOVES, PUT, GET, SHOW, DELETE, DONE), False)
    markers = (TEXT_END, VALUE_END, ABSENT)

    def start(self, problem: Sequence[Cell], marker: Callable[[str], Cell]) -> "StoreSession[Cell]":
        """A pointer before a problem, and an empty store."""
        session = StoreSession(tuple(map(marker, self.markers)), Alphabet(), MemoryPairs())
        session.extend(problem)
        return session

    def restore(self, state: Mapping[str, Any], marker: Callable[[str], Cell]) -> "StoreSession[Cell]":
        """The store that had that state."""
        alphabet: Alphabet[Any] = Alphabet(np.asarray(state["alphabet"]).tolist())
        session = StoreSession(tuple(map(marker, self.markers)), alphabet, MemoryPairs.restored(state))
        session.extend(np.asarray(state["said"]).tolist())
        session.taken = array("q", np.asarray(state["taken"]).tolist())
        session.at, session.shown, session.left = state["at"], state["shown"], state["left"]
        return session


class StoreSession(Generic[Cell]):
    """A store at work on one problem. Calls that move or show take constant time; `put`, `get`, `delete` and a copy
    take as long as what was said and not forgotten, and a copy also as there are different cells in keys and values.

    Args:
        markers: the cells of `PointerStore.markers`.
        alphabet: of the cells in keys and values.
        pairs: these, each cell one character.

    Attributes:
        said: what was said and not yet forgotten.
        taken: of each of its cells, whether it was taken for a key or a value.
        at: where the pointer stands in it, -1 before it.
        shown: the value that was got last, each cell one character.
        left: how much of it is still to be shown.
    """

    __slots__ = ("_alphabet", "_markers", "_pairs", "at", "left", "said", "shown", "taken")

    def __init__(self, markers: tuple[Cell, ...], alphabet: Alphabet[Cell], pairs: MemoryPairs) -> None:
        self._markers, self._alphabet, self._pairs = markers, alphabet, pairs
        self._forget()

    def _forget(self) -> None:
        # Token ids take 8 bytes each, side by side, where compiled code can read them.
        self.said: MutableSequence[Any] = array("q") if isinstance(self._markers[0], int) else []
        self.taken = array("q")
        self.at, self.shown, self.left = -1, "", 0

    def write(self, cell: Cell) -> None:
        self.said.append(cell)
        self.taken.append(0)

    def extend(self, cells: Sequence[Cell]) -> None:
        """Takes cells one after the other, as `write` does."""
        for cell in cells:
            self.write(cell)

    def call(self, name: str, argument: Sequence[Cell]) -> tuple[Cell, ...]:
        """Carries out a call; see the module's text.

        Raises:
            InvalidArgumentsError: there is no cell to be taken, or no key.
        """
        text_end, value_end, absent = self._markers
        if name in MOVES:
            if part := MOVES[name]:
                if not 0 <= self.at < len(self.said):
                    raise InvalidArgumentsError(f"{name}: the pointer stands on no cell")
                self.taken[self.at] = part
            self.at = min(self.at + 1, len(self.said))
            return (self.said[self.at] if self.at < len(self.said) else text_end,)
        if name == SHOW:
            return (self._show(value_end),)
        if name == DONE:
            self._forget()
            return ()
        if name not in PointerStore.calls:
            raise UnknownCallError(f"pointer_store has no call {name!r}")
        key = self._text(_KEY)
        if not key:
            raise InvalidArgumentsError(f"{name}: no cell was taken into the key: use {take('key')}")
        if name == GET:
            found = self._pairs.get(key)
            self.shown = found or ""
            self.left = len(self.shown)
            return (absent if found is None else self._show(value_end),)
        value = self._text(_VALUE) if name == PUT else None
        self._pairs.change(key, lambda _: value)
        return ()

    def _text(self, part: int) -> str:
        """What was taken, each cell one character."""
        return self._alphabet.text(cell for cell, taken in zip(self.said, self.taken) if taken == part)

    def _show(self, value_end: Cell) -> Cell:
        if not self.left:
            return value_end
        (cell,) = self._alphabet.cells_of(self.shown[-self.left])
        self.left -= 1
        return cell

    def clone(self) -> "StoreSession[Cell]":
        clone = StoreSession(self._markers, self._alphabet.copy(), self._pairs.clone())
        clone.said, clone.taken = self.said[:], self.taken[:]
        clone.at, clone.shown, clone.left = self.at, self.shown, self.left
        return clone

    def state(self) -> Mapping[str, Any]:
        arrays = {"said": np.array(self.said), "taken": np.array(self.taken)}
        alphabet = np.array(self._alphabet.cells)
        facts = {"at": self.at, "shown": self.shown, "left": self.left}
        return {**self._pairs.state(), **arrays, "alphabet": alphabet, **facts}
