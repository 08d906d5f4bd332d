"""Reads calls that are written as Python is: `[f(a='it\\'s', b={"x": [1]}, c=None), g()]`, the syntax of LFM2."""

import re
from collections.abc import Callable
from math import inf
from typing import Any

from hf_toolssm.errors import MalformedCallError

_NAME = re.compile(r"[^\s=,()\[\]{}'\"]+")
_NUMBER = re.compile(r"[-+]?(?:\d+\.?\d*|\.\d+)(?:[eE][-+]?\d+)?")
_STRINGS = {quote: re.compile(rf"{quote}((?:[^{quote}\\]|\\.)*){quote}", re.DOTALL) for quote in "'\""}
_ESCAPE = re.compile(r"\\(?:x([0-9a-fA-F]{2})|u([0-9a-fA-F]{4})|U([0-9a-fA-F]{8})|(.))", re.DOTALL)
_ESCAPES = {"n": "\n", "r": "\r", "t": "\t", "b": "\b", "f": "\f", "a": "\a", "v": "\v", "0": "\0", "\n": ""} | {
    same: same for same in "\\'\"/"
}
_CONSTANTS = {"None": None, "True": True, "False": False, "null": None, "true": True, "false": False}


def read_python_calls(text: str) -> list[dict[str, Any]]:
    """The calls of one turn, as the `tool_calls` of a message.

    Args:
        text: a list of calls in square brackets. Arguments have names; values are strings in either quotes, numbers,
            `True`, `False`, `None`, and lists and mappings of any depth, as Python or JSON write them.

    Raises:
        MalformedCallError: it is none; the message says what is wrong, and at which character.
    """
    reader = _Reader(text)
    reader.expect("[")
    try:
        calls = reader.until("]", reader.call)
    except RecursionError:
        raise reader.error("a value that is nested less deeply") from None
    if reader.rest():
        raise reader.error("the end of the calls")
    return calls


class _Reader:
    """A place in a text, and what may stand there."""

    def __init__(self, text: str) -> None:
        self.text, self.at = text, 0

    def call(self) -> dict[str, Any]:
        name = self.match(_NAME, "the name of a tool")
        self.expect("(")
        arguments = dict(self.until(")", self.argument))
        return {"type": "function", "function": {"name": name, "arguments": arguments}}

    def argument(self) -> tuple[str, Any]:
        name = self.match(_NAME, "the name of an argument")
        self.expect("=")
        return name, self.value()

    def value(self) -> Any:
        start = self.rest()[:1]
        if start in _STRINGS:
            return self.string()
        if start == "[":
            self.expect("[")
            return self.until("]", self.value)
        if start == "{":
            self.expect("{")
            return dict(self.until("}", self.pair))
        if (number := _NUMBER.match(self.text, self.at)) is not None:
            return self.number(number)
        word = _NAME.match(self.text, self.at)
        if word is None or word[0] not in _CONSTANTS:
            raise self.error("a value")
        self.at = word.end()
        return _CONSTANTS[word[0]]

    def number(self, found: re.Match[str]) -> int | float:
        try:
            read = float(found[0]) if set(found[0]) & set(".eE") else int(found[0])
        except ValueError:  # Python reads no integer of more than 4,300 digits
            read = inf
        if read in (inf, -inf):
            raise self.error("a number that is not too large")
        self.at = found.end()
        return read

    def pair(self) -> tuple[str, Any]:
        name = self.string()
        self.expect(":")
        return name, self.value()

    def string(self) -> str:
        quoted = _STRINGS.get(self.rest()[:1])
        found = None if quoted is None else quoted.match(self.text, self.at)
        if found is None:
            raise self.error("a string with its closing quote")
        try:
            plain = _ESCAPE.sub(_unescape, found[1])
            # Two halves of one character, as JSON may write it, become that character.
            plain = plain.encode("utf-16", "surrogatepass").decode("utf-16")
        except (UnicodeDecodeError, ValueError, OverflowError):
            raise self.error("a string whose escapes are characters") from None
        self.at = found.end()
        return plain

    def until(self, end: str, item: Callable[[], Any]) -> list[Any]:
        """Items between commas, as far as a closing bracket."""
        items = []
        while not self.rest().startswith(end):
            items.append(item())
            if not self.rest().startswith(end):
                self.expect(",")
        self.expect(end)
        return items

    def match(self, pattern: re.Pattern[str], what: str) -> str:
        self.rest()
        found = pattern.match(self.text, self.at)
        if found is None:
            raise self.error(what)
        self.at = found.end()
        return found[0]

    def expect(self, mark: str) -> None:
        if not self.rest().startswith(mark):
            raise self.error(repr(mark))
        self.at += len(mark)

    def rest(self) -> str:
        """What comes next, without white space before it."""
        while self.text[self.at : self.at + 1].isspace():
            self.at += 1
        return self.text[self.at : self.at + 20]

    def error(self, what: str) -> MalformedCallError:
        return MalformedCallError(
            f"the calls cannot be read: character {self.at} should begin {what}, and there is {self.rest()!r}"
        )


def _unescape(escape: re.Match[str]) -> str:
    digits = escape[1] or escape[2] or escape[3]
    return chr(int(digits, 16)) if digits else _ESCAPES.get(escape[4], escape[0])
