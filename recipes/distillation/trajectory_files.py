"""Reads the trajectories that mini-swe-agent writes, as messages of a chat that calls `bash`.

| mini-swe-agent | message |
|---|---|
| system, user | the same |
| assistant with one command in a fenced block | `assistant`: what stands around the block, and a call |
| assistant with tool calls | `assistant` with as many calls |
| the observation, which a user or a tool says | `tool` |
| the command that submits | no call: what the assistant says with it, and what it submits, end the turn |
| what the model is told of a reply in a wrong format | nothing; the reply itself is not among the messages |

What cannot be said so is refused, and nothing else is changed or left out.
"""

import json
import re
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NoReturn

import regex

from hf_toolssm.errors import CorruptRowError, MessageError, UnknownTrajectoryFormatError
from hf_toolssm.protocol.chat_messages import check_messages

FORMAT = "mini-swe-agent-1.1"
SUBMITTED = "Submitted"
UNFINISHED = "unfinished"

SUBMIT = "echo COMPLETE_TASK_AND_SUBMIT_FINAL_OUTPUT"
_SUBMITS = re.compile(r"echo ([\"']?)COMPLETE_TASK_AND_SUBMIT_FINAL_OUTPUT\1( && cat [\w./-]+)?")
"""It does nothing else: another command before or behind it would be lost with it."""

_SEARCH_SECONDS = 1.0
"""For the pattern of a command, which is the file's own."""


@dataclass(frozen=True)
class AgentTrajectory:
    """One file.

    Attributes:
        ended: mini-swe-agent's name for how it ended, or `UNFINISHED` where the agent was interrupted.
        messages: those of a chat, which ends with the assistant's; none where nothing was submitted.
        format_errors: replies in a wrong format, whose retries are left out.
        problem: what `run_agent.py` knows: its `text`, `length`, and whether it was `solved`; None in other files.
    """

    ended: str
    messages: Sequence[dict[str, Any]]
    format_errors: int
    problem: Mapping[str, Any] | None


def read_trajectory(path: Path) -> AgentTrajectory:
    """Reads a file.

    Raises:
        UnknownTrajectoryFormatError: it has another format, or says none.
        CorruptRowError: it is damaged, or a chat cannot say it; the error names the file and the message.
    """
    try:
        content = json.loads(path.read_bytes())
    except (ValueError, RecursionError) as error:
        raise CorruptRowError(f"{path} is no whole JSON file: {error}") from error
    content = content if isinstance(content, dict) else {}
    info = _mapping(content.get("info"))
    if content.get("trajectory_format") != FORMAT:
        raise UnknownTrajectoryFormatError(
            f"{path} has the trajectory_format {content.get('trajectory_format')!r:.80}, written by version "
            f"{info.get('mini_version')!r:.80} of mini-swe-agent; {FORMAT!r} is read, which versions 2.x write"
        )
    try:
        return _read(content, _mapping(_mapping(info.get("config")).get("model")).get("action_regex"))
    except CorruptRowError as error:
        raise CorruptRowError(f"{path}: {error}") from error


def _read(content: Mapping[str, Any], action_regex: Any) -> AgentTrajectory:
    said = content.get("messages")
    if not isinstance(said, list) or not said or not all(isinstance(message, dict) for message in said):
        raise CorruptRowError("it has no messages")
    format_errors = sum(_extra(message).get("interrupt_type") == "FormatError" for message in said)
    ended = str(_extra(said[-1]).get("exit_status")) if said[-1].get("role") == "exit" else UNFINISHED
    messages: list[dict[str, Any]] = []
    if ended == SUBMITTED:
        messages = _submitted(_conversation(said[:-1], action_regex), said[-1].get("content"))
        try:
            messages = check_messages(messages)
            json.dumps(messages, ensure_ascii=False).encode()
        except (MessageError, UnicodeEncodeError) as error:
            raise CorruptRowError(f"its messages are none of a chat in text: {error}") from error
    return AgentTrajectory(ended, messages, format_errors, _problem(content.get("problem")))


def _problem(found: Any) -> Mapping[str, Any] | None:
    kinds = {"text": str, "length": int, "solved": bool}
    if found is not None and not all(isinstance(_mapping(found).get(name), kind) for name, kind in kinds.items()):
        raise CorruptRowError(f"its problem has no {', '.join(kinds)}: {found!r:.80}")
    return found


def _conversation(said: Sequence[Mapping[str, Any]], action_regex: Any) -> list[dict[str, Any]]:
    """Messages of a chat, up to the last call, which may have no observation."""
    messages: list[dict[str, Any]] = []
    waiting: list[Mapping[str, Any]] = []
    for number, message in enumerate(said):
        with _naming(number):
            role, extra = message.get("role"), _extra(message)
            if extra.get("interrupt_type") == "FormatError":
                continue
            if role == "tool" or (role == "user" and "raw_output" in extra):
                if not waiting or waiting[0].get("tool_call_id") != message.get("tool_call_id"):
                    _refuse("it is the observation of no command before it")
                waiting.pop(0)
                messages.append({"role": "tool", "name": "bash", "content": message.get("content")})
            elif waiting:
                _refuse(f"the command {waiting[0]['command']!r:.80} before it has no observation")
            elif role == "assistant":
                waiting = _actions(extra)
                messages.append(_assistant(message, waiting, action_regex))
            elif role in ("system", "user") and "actions" not in extra:
                messages.append({"role": role, "content": message.get("content")})
            else:
                _refuse(
                    f"of the role {role!r:.80} with {', '.join(message)}: read are commands of a model, through "
                    "LitellmModel or LitellmTextbasedModel, and neither a person's nor those of the Responses API"
                )
    return messages


def _actions(extra: Mapping[str, Any]) -> list[Mapping[str, Any]]:
    actions = extra.get("actions")
    if not isinstance(actions, list) or not actions:
        _refuse("it has no command")
    for action in actions:
        if not isinstance(_mapping(action).get("command"), str):
            _refuse(f"its command is no text: {action!r:.80}")
    if len(actions) > 1 and not all("tool_call_id" in action for action in actions):
        _refuse("it has several commands, and is no message of tool calls")
    return list(actions)


def _assistant(message: Mapping[str, Any], actions: Sequence[Mapping[str, Any]], action_regex: Any) -> dict[str, Any]:
    content = message.get("content") or ""
    if "tool_call_id" not in actions[0]:
        content = _around(content, actions[0]["command"], action_regex)
    calls = [
        {"type": "function", "function": {"name": "bash", "arguments": {"command": action["command"]}}}
        for action in actions
    ]
    thought = message.get("reasoning_content")
    return {"role": "assistant", "content": content, "reasoning_content": thought or None, "tool_calls": calls}


def _around(content: Any, command: str, action_regex: Any) -> str:
    """The text without the command and its fence."""
    try:
        found = regex.search(action_regex, content, regex.DOTALL, timeout=_SEARCH_SECONDS)
        within = found[1].strip() if found else None
    except (regex.error, TypeError, ValueError, IndexError, AttributeError, TimeoutError) as error:
        raise CorruptRowError(f"its command cannot be searched by {action_regex!r:.80}: {error}") from error
    if found is None or within != command:
        _refuse(f"its text does not hold its command {command!r:.80}, by {action_regex!r:.80}")
    return "\n\n".join(filter(None, (content[: found.start()].strip(), content[found.end() :].strip())))


def _submitted(messages: list[dict[str, Any]], submission: Any) -> list[dict[str, Any]]:
    """The messages with the last command, which submits, as the end of the turn."""
    at = max((at for at, message in enumerate(messages) if message["role"] == "assistant"), default=None)
    if at is None:
        raise CorruptRowError("no assistant's message submits anything")
    last, observed = messages[at], messages[at + 1 :]
    *calls, submit = last["tool_calls"]
    command = submit["function"]["arguments"]["command"].strip()
    if not _SUBMITS.fullmatch(command):
        raise CorruptRowError(
            f"its last command does more than to submit, and no observation says what: {command!r:.80}"
        )
    if len(observed) not in (len(calls), len(calls) + 1):  # an interactive agent writes one for the last command too
        raise CorruptRowError("commands that stand in one message with the one that submits have no observation")
    if calls:
        end = {"role": "assistant", "content": submission}
        return [*messages[:at], {**last, "tool_calls": calls}, *observed[: len(calls)], end]
    content = "\n\n".join(filter(None, (last["content"], submission)))
    return [*messages[:at], {**last, "content": content, "tool_calls": None}]


def _mapping(found: Any) -> Mapping[str, Any]:
    return found if isinstance(found, dict) else {}


def _extra(message: Mapping[str, Any]) -> Mapping[str, Any]:
    return _mapping(message.get("extra"))


@contextmanager
def _naming(number: int) -> Iterator[None]:
    try:
        yield
    except CorruptRowError as error:
        raise CorruptRowError(f"message {number}: {error}") from error


def _refuse(why: str) -> NoReturn:
    raise CorruptRowError(why)
