"""Messages of a chat as transformers and TRL write them, checked and brought to one form.

{"role": "user", "content": "What is the weather in Paris?"}
{"role": "assistant", "content": "", "tool_calls": [
    {"type": "function", "function": {"name": "weather", "arguments": {"city": "Paris"}}}]}
{"role": "tool", "name": "weather", "content": "21 degrees"}
"""

import json
from collections.abc import Mapping, Sequence
from typing import Any

from hf_toolssm.errors import MessageError

ROLES = ("system", "developer", "user", "assistant", "tool")

_TEXTS = ("reasoning_content", "name", "tool_call_id")
_FIELDS = ("role", "content", "tool_calls", *_TEXTS)


def check_messages(messages: Sequence[Mapping[str, Any]], before: Mapping[str, Any] | None = None) -> list[dict]:
    """The messages in one form: contents are texts, arguments are mappings, what is None is left out.

    Args:
        messages: a conversation, or the rest of one.
        before: the message that stands before the first.

    Raises:
        MessageError: something is no message, or stands where it cannot; the error says where.
    """
    if isinstance(messages, str | Mapping) or not isinstance(messages, Sequence):
        raise MessageError(f"messages are a list of messages with a role and a content, and not {messages!r:.80}")
    checked: list[dict] = []
    for number, message in enumerate(messages):
        previous = checked[-1] if checked else before
        try:
            checked.append(_check(message, previous))
        except MessageError as error:
            raise MessageError(f"message {number}: {error}") from None
    return checked


def _check(message: Any, previous: Mapping[str, Any] | None) -> dict:
    if not isinstance(message, Mapping) or message.get("role") not in ROLES:
        raise MessageError(f"a message is a mapping with one of the roles {', '.join(ROLES)}, and not {message!r:.80}")
    given = {name: value for name, value in message.items() if value is not None}
    unknown = given.keys() - {*_FIELDS}
    if unknown:
        raise MessageError(f"{sorted(unknown)[0]!r} is no field of a message; there are {', '.join(_FIELDS)}")
    role = given["role"]
    checked = {"role": role, "content": _text_of(given.get("content", ""))}
    for name in _TEXTS:
        if name in given:
            if not isinstance(given[name], str):
                raise MessageError(f"{name} is a text, and not {given[name]!r:.80}")
            checked[name] = given[name]
    calls = given.get("tool_calls") or []
    if calls and role != "assistant":
        raise MessageError(f"only an assistant calls tools, and this is a {role}'s message")
    if calls:
        if isinstance(calls, str | Mapping) or not isinstance(calls, Sequence):
            raise MessageError(f"tool_calls is a list of calls, and not {calls!r:.80}")
        checked["tool_calls"] = [_check_call(call) for call in calls]
    if "content" not in given and not calls and "reasoning_content" not in given:
        raise MessageError("it says nothing: give it a content")
    # Not behind calls alone: of those that could not be read the model is told by a tool's message too.
    if role == "tool" and (previous is None or previous["role"] not in ("assistant", "tool")):
        raise MessageError("a tool's message stands behind the assistant's that it answers, and there is none")
    return checked


def _text_of(content: Any) -> str:
    if isinstance(content, str):
        return content
    parts = content if isinstance(content, Sequence) else [content]
    if not all(isinstance(p, Mapping) and p.get("type") == "text" and isinstance(p.get("text"), str) for p in parts):
        raise MessageError(f"a content is a text, or a list of parts of the type text, and not {content!r:.80}")
    return "".join(part["text"] for part in parts)


def _check_call(call: Any) -> dict:
    function = call.get("function", call) if isinstance(call, Mapping) else None
    if not isinstance(function, Mapping) or not isinstance(function.get("name"), str) or not function["name"]:
        raise MessageError(
            "a call is written {'type': 'function', 'function': {'name': ..., 'arguments': {...}}}, and not "
            f"{call!r:.80}"
        )
    arguments = function.get("arguments")
    if isinstance(arguments, str):
        try:
            arguments = json.loads(arguments) if arguments.strip() else {}
        except (ValueError, RecursionError) as error:
            raise MessageError(f"the arguments of {function['name']} are no JSON ({error})") from None
    arguments = {} if arguments is None else arguments
    if not isinstance(arguments, Mapping):
        raise MessageError(f"the arguments of {function['name']} are an object by name, and not {arguments!r:.80}")
    checked = {"type": "function", "function": {"name": function["name"], "arguments": dict(arguments)}}
    return checked | ({"id": call["id"]} if isinstance(call.get("id"), str) else {})
