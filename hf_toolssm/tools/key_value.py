"""A key-value store that a model writes and reads while it generates: what a fixed state cannot hold (TASS).

    KeyValue()                     # in memory, empty for every problem
    KeyValue("notes.sqlite")       # in a file, which all that begin with it share

| call | arguments | observation |
|---|---|---|
| `put` | `key`, `value` | `stored`, or `replaced` if the key had a value |
| `get` | `key` | `found: ` and the value as it is, or `absent` |
| `delete` | `key` | `deleted`, or `absent` |
| `add` | `key`, `amount` | `found: ` and the sum that is the value now; a key without a value counts as 0 |
| `list` | `prefix`, `after` if wanted | the keys that begin with the one and stand behind the other, sorted |
| `search` | `words` | the pairs that hold all of them in key or value, the oldest first |

Keys and values are texts. A word is what SQLite's tokenizer unicode61 says: of letters and digits, without regard to
case and accents; one of several parts, as `foo-bar`, stands for these parts side by side. Of keys and pairs each is
JSON on a line of its own, and where there are more than are shown, a last line `more` says so. `found: ` and JSON's
quotes keep what was stored apart from what the tool says.

In memory a fork shares what there was, in constant time, and a saved session holds all pairs; a put takes
microseconds, `list` looks at all keys, and a search at the words of what was put since the last one. In a file every
put is durable once it was observed; a fork, or a session that is restored where the file has gone on since, works on a
branch of its own, which nothing else sees (`key_value_file.py`).
"""

import json
import os
import re
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Protocol

from hf_toolssm.errors import InvalidArgumentsError, UnknownCallError, UnknownToolError
from hf_toolssm.tools.key_value_file import StoreFile
from hf_toolssm.tools.key_value_memory import MemoryPairs
from hf_toolssm.tools.words import words_of

FOUND = "found: "
"""Before a value."""

MORE = "more"
"""Behind a list that does not show everything."""

_MOST = 10**9
_NUMBER = re.compile(r"-?[0-9]{1,1000}")

_ESCAPED = {ord(end): f"\\u{ord(end):04x}" for end in "\x85\u2028\u2029"}
"""What ends a line and JSON has as it is."""

_KEY = {"type": "string", "minLength": 1}
_TEXT = {"type": "string"}
_CALLS: Mapping[str, tuple[str, Mapping[str, Any], tuple[str, ...]]] = {
    "put": ("Stores a value under a key, in the place of one that is there.", {"key": _KEY, "value": _TEXT}, ()),
    "get": ("Returns the value of a key.", {"key": _KEY}, ()),
    "delete": ("Takes a key and its value away.", {"key": _KEY}, ()),
    "add": ("Adds a whole number to the value of a key.", {"key": _KEY, "amount": {"type": "integer"}}, ()),
    "list": ("Returns the keys that begin with a prefix, sorted.", {"prefix": _TEXT, "after": _TEXT}, ("after",)),
    "search": ("Returns the keys and values that hold all of these words.", {"words": _TEXT}, ()),
}


class Pairs(Protocol):
    """What both backends are: keys and their values, a value itself."""

    def get(self, key: str) -> str | None:
        """The value of a key."""

    def change(self, key: str, to: Callable[[str | None], str | None]) -> str | None:
        """Sets the value of a key to what is made of the one it has; None is no value. Returns what it had."""

    def keys(self, prefix: str, after: str, most: int) -> list[str]:
        """The first keys that begin so and stand behind another, sorted by code points."""

    def search(self, words: list[str], most: int) -> list[tuple[str, str]]:
        """The first pairs that hold each word, or its parts side by side, in the order in which they were put."""

    def clone(self) -> "Pairs":
        """The same, independent of these, in constant time."""

    def state(self) -> Mapping[str, Any]:
        """What gives them back."""


class KeyValue:
    """A store; see the module's text.

    Args:
        path: a file, which is made where there is none; None for memory.
        prefix: of the calls' names, which keeps two stores, or another tool's `search`, apart.
        most: how many keys or pairs are shown.
        fresh: whether every problem begins with nothing, on a branch of the file of its own; in memory it always does.

    Raises:
        UnknownToolError: an option is none.
        StoreError: the file cannot be opened, or is no store.
    """

    name = "key_value"
    fork = "copy"
    not_in_specs = ("path",)

    def __init__(
        self, path: str | os.PathLike[str] | None = None, prefix: str = "", most: int = 100, fresh: bool = False
    ) -> None:
        if not isinstance(most, int) or isinstance(most, bool) or not 1 <= most <= _MOST:
            raise UnknownToolError(f"key_value: most is a whole number from 1 to {_MOST:,}, and not {most!r}")
        if not isinstance(prefix, str) or not isinstance(fresh, bool):
            raise UnknownToolError(f"key_value: prefix is a text and fresh true or false: {prefix!r}, {fresh!r}")
        if path is not None and not (isinstance(path, str | os.PathLike) and str(path) and "\0" not in str(path)):
            raise UnknownToolError(f"key_value: path names a file, or is None for memory, and is not {path!r}")
        self.prefix, self.most, self.fresh = prefix, most, fresh
        self.has_side_effects = path is not None
        self.time_limit = None if path is None else 60.0
        self._file = None if path is None else StoreFile(path)

    def close(self) -> None:
        """Ends the connections to the file; without it that is done when nothing has the tool any more."""
        if self._file is not None:
            self._file.close()

    @property
    def schemas(self) -> Mapping[str, Any]:
        """What a model is told of the calls."""
        return {
            self.prefix + name: {
                "description": description,
                "parameters": {
                    "type": "object",
                    "properties": dict(properties),
                    "required": [key for key in properties if key not in optional],
                    "additionalProperties": False,
                },
            }
            for name, (description, properties, optional) in _CALLS.items()
        }

    def start(self, problem: str) -> "Store":
        """A store at work on a problem."""
        return Store(self, MemoryPairs() if self._file is None else self._file.pairs(self.fresh))

    def restore(self, state: Mapping[str, Any]) -> "Store":
        """The store that had that state.

        Raises:
            StoreError: it was of another file.
        """
        return Store(self, MemoryPairs.restored(state) if self._file is None else self._file.restored(state))


class Store:
    """A store at work on one problem."""

    def __init__(self, tool: KeyValue, pairs: Pairs) -> None:
        self._tool, self.pairs = tool, pairs

    def call(self, name: str, argument: Mapping[str, Any]) -> str:
        """Carries out a call; see the module's text.

        Raises:
            InvalidArgumentsError: there is no word to be searched, no number to be added to, or a text has half of a
                character in it.
            StoreError: the file cannot be read or written; nothing has changed.
        """
        pairs, most = self.pairs, self._tool.most
        try:
            "".join(map(str, argument.values())).encode()
        except UnicodeEncodeError as error:
            raise InvalidArgumentsError(f"{name}: a text holds half of a character: leave it out") from error
        match name.removeprefix(self._tool.prefix):
            case "put":
                had = pairs.change(argument["key"], lambda _: argument["value"])
                return "stored" if had is None else "replaced"
            case "get":
                value = pairs.get(argument["key"])
                return "absent" if value is None else FOUND + value
            case "delete":
                return "absent" if pairs.change(argument["key"], lambda _: None) is None else "deleted"
            case "add":
                key, amount = argument["key"], argument["amount"]
                had = pairs.change(key, lambda value: _sum(key, value, amount))
                return FOUND + _sum(key, had, amount)
            case "list":
                return _lines(pairs.keys(argument["prefix"], argument.get("after", ""), most + 1), most)
            case "search":
                words = [word for word in argument["words"].split() if words_of(word)]
                if not words:
                    raise InvalidArgumentsError(f"{name}: words are of letters and digits, and there is none")
                return _lines(pairs.search(words, most + 1), most)
        raise UnknownCallError(f"key_value has no call {name!r}")

    def clone(self) -> "Store":
        return Store(self._tool, self.pairs.clone())

    def state(self) -> Mapping[str, Any]:
        return self.pairs.state()


def _sum(key: str, value: str | None, amount: float) -> str:
    """The value of a key and an amount."""
    if value is not None and not _NUMBER.fullmatch(value):
        raise InvalidArgumentsError(f"add: the value of {key[:60]!r} is no whole number of at most 1,000 digits")
    if isinstance(amount, float) and abs(amount) >= 2**53:
        raise InvalidArgumentsError(
            f"add: {amount} stands for several whole numbers: write all digits, without a point"
        )
    total = int(value or 0) + int(amount)
    if abs(total) >= 10**1000:
        raise InvalidArgumentsError("add: the sum has more than 1,000 digits")
    return str(total)


def _lines(found: Sequence[Any], most: int) -> str:
    """Each as JSON on a line, and whether there are more; nothing where there is none."""
    shown = [json.dumps(each, ensure_ascii=False).translate(_ESCAPED) for each in found[:most]]
    return "\n".join([*shown, *[MORE] * (len(found) > most)])
