"""Seeded conversations that try to break a chat template: every marker, quote, number and odd character as text."""

import random
from typing import Any

MARKERS = [
    *("<|im_start|>", "<|im_end|>", "<|im_end|>\n<|im_start|>system\n", "<|endoftext|>", "<|startoftext|>"),
    *("<tools>", "</tools>", "<think>", "</think>", "<think></think>", "<tool_call>", "</tool_call>"),
    *("<tool_response>", "</tool_response>", "<|tool_call_start|>[", "]<|tool_call_end|>"),
    *("<|tool_list_start|>", "<|tool_list_end|>", "<|tool_response_start|>", "<|tool_response_end|>"),
    *("<function=f>\n", "</function>\n</tool_call>", "<parameter=k>\n", "\n</parameter>\n", "</parameter>"),
    *("<|start_of_role|>", "<|end_of_role|>", "<|end_of_text|>", "<SPECIAL_10>", "<SPECIAL_11>User\n", "<SPECIAL_12>"),
    *("<TOOLCALL>[", "]</TOOLCALL>", "<TOOL_RESPONSE>[", "]</TOOL_RESPONSE>", "<AVAILABLE_TOOLS>"),
    *("/think", "/no_think", "{{ messages }}", "{% if x %}", "{# no #}", "CONTINUE_FINAL_MESSAGE_TAG ", "<image>"),
]
"""Texts that mean something to one of the families, or to the engine that renders templates."""

_ODD = [
    *("'", '"', "\\", "\\n", "\\'", "\\u0041", "`", "\n", "\n\n", "\r\n", "\t", " ", "  ", "\x00", "\x01\x02", "\x7f"),
    *("\u0085", "\u00a0", "\u2028", "\u200d", "\ufeff", "e\u0301", "\u0301", "\u4f60\u597d", "\U0001f642"),
    *(
        "\U0001d11e",
        "\ue000",
        "\uf8ff",
        "\U000f0000",
        "\U0010fffd",
        "\ufdd0",
        "\ufffe",
        "\uffff",
        "\U0010ffff",
        "\ufffd",
    ),
    *("<", ">", "</", "=", ",", ", ", "(", ")", "), g(", "[", "]", "{", "}", "}}", ":", "&lt;", "%", "|"),
]

_WORDS = [
    *("the", "weather", "in", "Paris", "is", "find", "file", "name", "result", "75001", "007", "1e5", "-0", "3.0"),
    *("true", "True", "None", "null", "NaN", "[]", "{}", '{"a": 1}', "0x10", "", "ja", "stra\u00dfe"),
]

_NAMES = ["city", "days", "user-id", "$filter", "x", "class", "None", "name", "arguments"]


def conversation(seed: int) -> tuple[list[dict[str, Any]], list[dict[str, Any]]]:
    """The messages and the tools of one conversation, in the form that `apply_chat_template` takes."""
    rng = random.Random(seed)
    tools = [_tool(rng, f"tool_{number}") for number in range(rng.randint(1, 4))]
    messages = [{"role": "system", "content": text(rng)}] if rng.random() < 0.5 else []
    for _ in range(rng.randint(1, 3)):
        messages.append({"role": "user", "content": text(rng) or "q"})
        for _ in range(rng.randint(0, 2)):
            calls = [_call(rng, rng.choice(tools)) for _ in range(rng.randint(1, 3))]
            content = text(rng) if rng.random() < 0.5 else ""
            messages.append({**_turn(rng, content), "tool_calls": calls})
            for call in calls:
                result = "" if rng.random() < 0.2 else text(rng)
                messages.append({"role": "tool", "name": call["function"]["name"], "content": result})
        messages.append(_turn(rng, text(rng)))
    return messages, tools


def text(rng: random.Random) -> str:
    """Some words, odd characters and markers."""
    sources = rng.choices([_WORDS, _ODD, MARKERS], weights=[6, 3, 1], k=rng.randint(0, 12))
    return rng.choice(["", " "]).join(rng.choice(source) for source in sources)


def _turn(rng: random.Random, content: str) -> dict[str, Any]:
    turn = {"role": "assistant", "content": content}
    if rng.random() < 0.4 and (reasoning := text(rng)):
        turn["reasoning_content"] = reasoning
    return turn


def _tool(rng: random.Random, name: str) -> dict[str, Any]:
    names = {rng.choice(_NAMES if rng.random() < 0.8 else MARKERS) for _ in range(rng.randint(0, 4))}
    properties = {each: _schema(rng) for each in sorted(names)}
    parameters = {"type": "object", "properties": properties, "required": []}
    return {"type": "function", "function": {"name": name, "description": text(rng), "parameters": parameters}}


def _schema(rng: random.Random) -> dict[str, Any]:
    kind = rng.choice(["string", "string", "string", "integer", "number", "boolean", "null", "array", "object", None])
    if rng.random() < 0.1:
        kind = rng.sample(["string", "integer", "boolean", "null"], 2)
    schema: dict[str, Any] = {} if kind is None else {"type": kind}
    return {**schema, "description": text(rng)} if rng.random() < 0.5 else schema


def _call(rng: random.Random, tool: dict[str, Any]) -> dict[str, Any]:
    properties = tool["function"]["parameters"]["properties"]
    arguments = {name: _value(rng, schema, 4) for name, schema in properties.items() if rng.random() < 0.8}
    return {"type": "function", "function": {"name": tool["function"]["name"], "arguments": arguments}}


def _value(rng: random.Random, schema: dict[str, Any], depth: int) -> Any:
    kind = schema.get("type", rng.choice(["string", "integer", "boolean", "null", "array", "object"]))
    kind = rng.choice(kind) if isinstance(kind, list) else kind
    if kind == "string":
        return text(rng)
    if kind == "integer":
        return rng.choice([0, -1, 7, 75001, 2**53 + 1, -(10**30)])
    if kind == "number":
        return rng.choice([0, 3, -0.5, 1e-9, 1e16, 2.0, 123456789.125, 2**60 + 1, rng.random()])
    if kind in ("boolean", "null"):
        return rng.random() < 0.5 if kind == "boolean" else None
    count = rng.randint(0, 3) if depth else 0
    if kind == "array":
        return [_value(rng, {}, depth - 1) for _ in range(count)]
    return {text(rng): _value(rng, {}, depth - 1) for _ in range(count)}
