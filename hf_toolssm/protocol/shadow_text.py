"""Text as a chat template is to see it: its length, blanks and quotes, and nothing that it could act on.

A template is a program. What a user, a tool or a server's description says must neither steer it (`</think>` in a
content, `<tool_response>` at its beginning) nor become part of a token together with what the template itself writes
(a parameter named `tool_call` between its `<` and `>`). So every string is written in characters of Unicode's private
use before the template sees it, and back behind it. White space, quotes and backslashes stay, because templates trim,
quote and escape them.
"""

import re
from collections.abc import Callable, Mapping
from typing import Any

_PLANE_15 = 0xF0000
"""Stands for the basic plane, character by character."""

_PLANE_16 = 0x100000
"""Stands, two for one, for every character beyond the basic plane, those of private use included."""

_HALF = 0x400

FIRST_SHADOW, LAST_SHADOW = chr(_PLANE_15), chr(_PLANE_16 + 0xFFFF)
"""All that can be a shadow, or part of one, is between them."""


class _Shadows(dict[int, str]):
    """For `str.translate`: what stands for a character, made when it is first seen."""

    def __missing__(self, code: int) -> str:
        character = chr(code)
        if character.isspace() or code < 0x20 or character in "\"'\\":
            shadow = character
        elif code < 0x10000:
            shadow = chr(_PLANE_15 + code)
        else:
            high, low = divmod(code - 0x10000, _HALF)
            shadow = chr(_PLANE_16 + high) + chr(_PLANE_16 + _HALF + low)
        self[code] = shadow
        return shadow


_SHADOWS = _Shadows()
_SHADOW = re.compile(f"[{chr(_PLANE_15)}-{chr(_PLANE_15 + 0xFFFF)}]|[{chr(_PLANE_16)}-{chr(_PLANE_16 + 0xFFFF)}]{{2}}")


def shadow(text: str) -> str:
    """The text as a template is to see it; `unshadow` is the inverse."""
    return text.translate(_SHADOWS)


def unshadow(text: str) -> str:
    """What a text says in which parts may be shadows."""
    return _SHADOW.sub(_plain, text)


def unshadow_whole(text: str) -> str:
    """The same of what a parser has read, whose JSON escapes may stand for halves of characters.

    Raises:
        UnicodeEncodeError: they do.
    """
    plain = unshadow(text)
    plain.encode()
    return plain


def unshadow_repr(text: str) -> str:
    """The same for what a template wrote: where it writes Python's `repr`, that has escaped the shadows."""
    text = _REPR.sub(lambda found: repr(unshadow(found[0].encode().decode("unicode_escape")))[1:-1], text)
    return unshadow(text)


_REPR = re.compile(r"(?:\\U00(?:0f|10)[0-9a-f]{4})+")


def _plain(found: re.Match[str]) -> str:
    shadowed = found[0]
    if len(shadowed) == 1:
        return chr(ord(shadowed) - _PLANE_15)
    return chr((ord(shadowed[0]) - _PLANE_16) * _HALF + ord(shadowed[1]) - _PLANE_16 - _HALF + 0x10000)


def map_strings(value: Any, change: Callable[[str], str]) -> Any:
    """A JSON value with every string in it changed, those that are keys included."""
    if isinstance(value, str):
        return change(value)
    if isinstance(value, Mapping):
        return {change(key) if isinstance(key, str) else key: map_strings(v, change) for key, v in value.items()}
    if isinstance(value, list | tuple):
        return [map_strings(each, change) for each in value]
    return value


def strings_of(value: Any) -> list[str]:
    """Every string in a JSON value, keys included."""
    strings: list[str] = []
    map_strings(value, lambda text: strings.append(text) or text)  # type: ignore[func-returns-value]
    return strings


def shadow_message(message: Mapping[str, Any]) -> dict[str, Any]:
    """A message, as `check_messages` gives it, whose every text is a shadow but for its role."""
    shadowed = {name: value if name == "role" else shadow(value) for name, value in message.items() if name != _CALLS}
    return shadowed | ({_CALLS: [_shadow_call(call) for call in message[_CALLS]]} if _CALLS in message else {})


_CALLS = "tool_calls"


def _shadow_call(call: Mapping[str, Any]) -> dict[str, Any]:
    function = {name: map_strings(value, shadow) for name, value in call["function"].items()}
    return {"type": "function"} | ({"id": shadow(call["id"])} if "id" in call else {}) | {"function": function}


_TYPES = frozenset({"string", "number", "integer", "boolean", "array", "object", "null"})
_KEYWORDS = frozenset(
    {
        *("type", "function", "name", "description", "parameters", "return", "properties", "required", "items"),
        *("enum", "const", "default", "examples", "title", "format", "pattern", "nullable", "additionalProperties"),
        *("anyOf", "oneOf", "allOf", "not", "prefixItems", "minimum", "maximum", "minLength", "maxLength"),
        *("minItems", "maxItems", "uniqueItems", "multipleOf", "exclusiveMinimum", "exclusiveMaximum"),
    }
)
"""Words of JSON Schema and of function descriptions, which templates read by name. Any other key is someone's text."""

_NAMES = frozenset(
    {"properties", "patternProperties", "$defs", "definitions", "dependentRequired", "dependentSchemas"}
)
"""Below these, keys are names."""


def shadow_schema(value: Any, below: str = "") -> Any:
    """A function's description whose every text is a shadow, the names of its parameters and unknown keys included."""
    if isinstance(value, str):
        return value if below == "type" and value in {*_TYPES, "function"} else shadow(value)
    if isinstance(value, Mapping):
        if below in _NAMES:
            return {shadow(key): shadow_schema(v) for key, v in value.items()}
        return {key if key in _KEYWORDS else shadow(key): shadow_schema(v, key) for key, v in value.items()}
    if isinstance(value, list | tuple):
        return [shadow_schema(each, below if below == "type" else "") for each in value]
    return value
