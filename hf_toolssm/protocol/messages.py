"""Trajectories of tools that read text as messages of a chat, and back.

| step | message |
|---|---|
| input | `user`, its content |
| thought | `assistant`, its reasoning_content |
| call | `assistant`, its tool_calls: one, because the next call stands behind the observation |
| observation | `tool`, its content; `""` where the tool gave nothing |
| output | `assistant`, its content |

The answer marker is no message: it stands before a turn's first output, or ends a turn that has none. An argument is
the text of a JSON object where the tool has schemas, and `{"argument": text}` where it has none, or
by the name that the tool says.
"""

import json
from collections.abc import Mapping, Sequence
from typing import Any

from hf_toolssm.errors import CorruptRowError
from hf_toolssm.protocol.chat_messages import check_messages
from hf_toolssm.protocol.trajectory import ANSWER, Step, StepKind, Trajectory, canonical, step
from hf_toolssm.tools.tool import Tool, ToolFacts, facts_of


def to_messages(trajectory: Trajectory, tools: Sequence[Tool]) -> list[dict[str, Any]]:
    """A trajectory as messages.

    `from_messages` gives it back, if no call stands between an answer marker and its output and arguments are written
    as `json.dumps` writes them.

    Args:
        trajectory: every turn of it has an answer, and was not cut.
        tools: that it calls; all of them read text.

    Raises:
        CorruptRowError: a turn has no end or no answer, a tool reads cells or is missing, or the argument of a call is
            no JSON object, which its tool reads.
    """
    facts = _by_call(tools)
    if trajectory.cut:
        raise CorruptRowError(f"turn {trajectory.cut[0]} breaks off, and a message is whole: leave it out")
    return [message for turn in trajectory.check().turns() for message in _turn(turn, facts)]


def from_messages(messages: Sequence[Mapping[str, Any]], tools: Sequence[Tool]) -> Trajectory:
    """Messages as a trajectory. Calls of one message stand one after the other, each with its observation.

    Args:
        messages: of users, assistants and tools, beginning with a user's; see `check_messages`.
        tools: that they call; all of them read text.

    Raises:
        MessageError: they are no messages.
        CorruptRowError: a trajectory cannot say them, as it knows no system and no thought behind an answer.
    """
    facts = _by_call(tools)
    steps: list[Step] = []
    waiting: list[Step] = []
    answered = True
    for number, message in enumerate(check_messages(messages)):
        role, content = message["role"], message["content"]
        if role == "tool":
            if not waiting:
                raise CorruptRowError(f"message {number}: it answers no call; there is one result for each")
            steps.append(waiting.pop(0))
            steps += [step(StepKind.OBSERVATION, content)] if content else []
            continue
        if waiting:
            raise CorruptRowError(f"message {number}: the call {waiting[0].name!r} before it has no result")
        if role == "user":
            steps += _answer_marker(answered)
            steps.append(step(StepKind.INPUT, content))
            answered = False
        elif role == "assistant":
            if message.get("reasoning_content"):
                steps.append(step(StepKind.THOUGHT, message["reasoning_content"]))
            if content:
                steps += _answer_marker(answered)
                steps.append(step(StepKind.OUTPUT, content))
                answered = True
            waiting = [_call_step(call["function"], facts) for call in message.get("tool_calls", ())]
        else:
            raise CorruptRowError(f"message {number}: a trajectory has no {role}: let the user's message say it")
    if waiting:
        raise CorruptRowError(f"the call {waiting[0].name!r} has no result")
    return Trajectory(canonical([*steps, *_answer_marker(answered)])).check()


def _answer_marker(answered: bool) -> list[Step]:
    return [] if answered else [step(StepKind.THOUGHT, (ANSWER,))]


def _by_call(tools: Sequence[Tool]) -> dict[str, ToolFacts]:
    facts = [facts_of(tool) for tool in tools]
    for each in facts:
        if each.unit != "text":
            raise CorruptRowError(f"{next(iter(each.calls))!r} reads cells, and a message holds text")
    return {name: each for each in facts for name in each.calls}


def _turn(turn: Sequence[Step], facts: Mapping[str, ToolFacts]) -> list[dict[str, Any]]:
    messages: list[dict[str, Any]] = [{"role": "user", "content": turn[0].text}]
    said: dict[str, Any] = {"role": "assistant", "content": ""}
    answered = False
    for each in turn[1:]:
        if each.kind is StepKind.THOUGHT and each.content == (ANSWER,):
            answered = True
        elif each.kind is StepKind.THOUGHT:
            said["reasoning_content"] = said.get("reasoning_content", "") + each.text
        elif each.kind is StepKind.OUTPUT:
            said["content"] += each.text
        elif each.kind is StepKind.OBSERVATION:
            messages[-1]["content"] = each.text
        else:
            call = {"name": each.name, "arguments": _arguments(each, facts)}
            messages.append({**said, "tool_calls": [{"type": "function", "function": call}]})
            messages.append({"role": "tool", "name": each.name, "content": ""})
            said = {"role": "assistant", "content": ""}
    if not answered:
        raise CorruptRowError(f"the turn of {turn[0].text[:40]!r} has no answer, with which a chat's turn ends")
    return [*messages, said]


def _facts_for(name: str, facts: Mapping[str, ToolFacts]) -> ToolFacts:
    if name not in facts:
        raise CorruptRowError(f"no tool has the call {name!r}; the calls are {', '.join(facts)}")
    return facts[name]


def _arguments(call: Step, facts: Mapping[str, ToolFacts]) -> dict[str, Any]:
    if call.content is None:
        return {}
    of = _facts_for(call.name, facts)
    if not of.gets_dict:
        return {of.parameter: call.text}
    try:
        arguments = json.loads(call.text)
    except (ValueError, RecursionError) as error:
        raise CorruptRowError(f"the arguments of {call.name} are no JSON: {call.text!r:.80} ({error})") from error
    if not isinstance(arguments, dict):
        raise CorruptRowError(f"the arguments of {call.name} are no JSON object: {call.text!r:.80}")
    return arguments


def _call_step(call: Mapping[str, Any], facts: Mapping[str, ToolFacts]) -> Step:
    name, arguments = call["name"], call["arguments"]
    of = _facts_for(name, facts)
    if not of.calls[name]:
        return step(StepKind.CALL, None, name)
    if of.gets_dict:
        return step(StepKind.CALL, json.dumps(arguments, ensure_ascii=False), name)
    if set(arguments) != {of.parameter} or not isinstance(arguments[of.parameter], str):
        raise CorruptRowError(f"{name} takes {of.parameter!r} alone, which is a text, and not {arguments!r:.80}")
    return step(StepKind.CALL, arguments[of.parameter], name)
