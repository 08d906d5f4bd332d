"""How a model's turn is read back: the `response_template` that belongs to a chat template.

It is transformers' declarative format (`tokenizer.parse_response`, `get_response_parser`), so that what is saved with
a tokenizer works in vLLM, TRL and `transformers serve` too.

What is written is read back equal, white space included, unless the template itself makes that impossible:

| family | not read back |
|---|---|
| toolssm | nothing |
| lfm2_v2 | reasoning; content `null` before calls; names of arguments with white space, brackets, quotes, `,` or `=` |
| lfm2_2_5 | the same names; strings with `'` or a backslash, written without escapes; beyond U+EFFFF in lists |
| nemotron_3_* | white space at the end of content; blank reasoning; [1] |
| qwen3_5_*, qwen3_6, qwen3_8 | white space around content and around reasoning; [1] |
| qwen3 | line ends around reasoning, and before content that has some |
| granite_4, falcon_h1, qwen3_next (unverified) | reasoning |
| nemotron_v2 (unverified) | nothing |

[1] Arguments are written as text: a value whose schema says no type or several; a name with a line end; a string that
holds what begins the next parameter; a whole number beyond 2 ** 53 of type `number`.

A marker that is no single token of the tokenizer cannot be told from the same text in content or reasoning, nor, in
nemotron_v2 and those of [1], from what ends a call inside an argument. Pass `tools=` when parsing for [1], and only
then: transformers would also turn JSON strings such as "null" into what another type of the schema says.
"""

import re
from pathlib import Path
from typing import Any

from jinja2 import TemplateError
from transformers.utils.chat_template_utils import render_jinja_template

UNVERIFIED = ("falcon_h1", "granite_4", "nemotron_v2", "qwen3_next")
"""Templates that we wrote from the published syntax and never ran beside the checkpoint's own."""

_CALL = '{"name": "F", "arguments": {"K": "V"}}'

_FIRST_CALL = {
    "json": f"<tool_call>\n{_CALL}\n</tool_call>",
    "json_list": f"<tool_call>\n[{_CALL}]\n</tool_call>",
    "json_list_inline": f"<TOOLCALL>[{_CALL}]</TOOLCALL>",
    "xml": "<tool_call>\n<function=F>\n<parameter=K>\nV\n</parameter>\n</function>\n</tool_call>",
    "python": "<|tool_call_start|>[F(K='V')]<|tool_call_end|>",
}
"""How each family writes the call F(K="V")."""

_TURN = re.compile(
    r"(?P<head><\|im_start\|>assistant\n|<\|start_of_role\|>assistant<\|end_of_role\|>|<SPECIAL_11>Assistant\n)"
    r"(?:(?P<before_reasoning><think>\n?)R(?P<after_reasoning>\n?</think>\n*))?C(?P<gap>\n*)"
    + "(?:"
    + "|".join(f"(?P<{family}>{re.escape(call)})" for family, call in _FIRST_CALL.items())
    + ")"
    r"\n?(?P<end><\|im_end\|>|<\|end_of_text\|>|\n<SPECIAL_12>)"
)
"""One assistant turn with reasoning R, content C and that call, as any of the families writes it."""

_EXACT = {"strip": False}


def read_template(name: str) -> str:
    """The text of one of our chat templates: "toolssm", "toolssm_training" or one of `UNVERIFIED`."""
    return (Path(__file__).parent / "templates" / f"{name}.jinja").read_text(encoding="utf-8")


def response_template_for(chat_template: str) -> dict[str, Any] | None:
    """The response template that reads back what a chat template writes for an assistant's turn.

    Args:
        chat_template: any. Its family is recognised by what it writes for one turn with reasoning and a call.

    Returns:
        The template. None where this one writes no calls, or in no way that we know.
    """
    turn = _TURN.search(_written(chat_template))
    if turn is None:
        return None
    family = next(name for name in _FIRST_CALL if turn[name] is not None)
    fields = {"tool_calls": {"repeats": True, **_calls(family, turn["gap"])}}
    if turn["before_reasoning"] is not None:
        # Without reasoning, or with nothing behind it, some write fewer line ends.
        after = turn["after_reasoning"]
        opens, closes = {turn["before_reasoning"], "<think>"}, {after, after.rstrip("\n"), "</think>"}
        fields["reasoning_content"] = {
            "open_pattern": rf"\A(?:{_any_of(opens)})",
            "close_pattern": _any_of(closes),
            "content_args": _EXACT,
        }
    fields["content"] = {
        "close_pattern": rf"{_literal(turn['end'])}\n?\Z",
        "content_args": _EXACT,
        "repeats": True,
        "join": "",  # what a model writes behind a call is kept too
    }
    return {"defaults": {"role": "assistant", "content": ""}, "start_anchor": turn["head"], "fields": fields}


def with_python_calls_as_text(response_template: dict[str, Any]) -> dict[str, Any]:
    """The same template, in which Python-style calls are one text for `python_calls.read_python_calls`.

    That reads exactly what no response template can. A template of any other family stays as it is.
    """
    fields = response_template["fields"]
    if "tool_call_start" not in fields["tool_calls"].get("open_pattern", ""):
        return response_template
    # The last end, because a string in a call may hold one.
    calls = {
        "open": "<|tool_call_start|>",
        "close_pattern": r"<\|tool_call_end\|>(?!.*<\|tool_call_end\|>)",
        "content_args": _EXACT,
    }
    return {**response_template, "fields": {**fields, "tool_calls": calls}}


def _written(chat_template: str) -> str:
    """What a template writes for a question and the turn that `_TURN` recognises; nothing where it refuses them."""
    call = {"type": "function", "function": {"name": "F", "arguments": {"K": "V"}}}
    turn = {"role": "assistant", "content": "C", "reasoning_content": "R", "tool_calls": [call]}
    try:
        rendered, _ = render_jinja_template([[{"role": "user", "content": "Q"}, turn]], chat_template=chat_template)
    except (TemplateError, TypeError):
        return ""
    return rendered[0]


def _literal(text: str) -> str:
    """A pattern of exactly this text, on one line."""
    return re.escape(text).replace("\\\n", r"\n")


def _any_of(texts: set[str]) -> str:
    return "|".join(map(_literal, sorted(texts, key=len, reverse=True)))


def _calls(family: str, gap: str) -> dict[str, Any]:
    """The field of calls. `gap` is what stands between content and the first call."""
    before = f"(?:{_literal(gap)})?" if gap else ""
    one = {"type": "function", "function": {"name": "{content.name}", "arguments": "{content.arguments}"}}
    each = {"type": "function", "function": {"name": "{name}", "arguments": "{arguments}"}}
    listed = {"content": "json", "transform": each, "transform_each": True, "repeats": False}
    # A line's end cannot stand inside a JSON string, which makes these exact whatever a string holds.
    lines = {"open_pattern": rf"{before}<tool_call>\n?", "close_pattern": r"\n</tool_call>\n?"}
    if family == "json":
        return {**lines, "content": "json", "transform": one}
    if family == "json_list":
        return {**lines, **listed}
    if family == "json_list_inline":
        return {"open_pattern": f"{before}<TOOLCALL>", "close": "</TOOLCALL>", **listed}
    return _xml(before) if family == "xml" else _PYTHON


def _xml(before: str) -> dict[str, Any]:
    return {
        "open_pattern": rf"{before}<tool_call>\n?<function=(?P<name>[^\n>]+)>\n?",
        "close_pattern": r"</function>\n?</tool_call>\n?",
        "content": "xml-inline",
        "content_args": {
            # `</parameter>` inside a value ends it only where another parameter or the call's end follows.
            "tag_pattern": r"<parameter=(?P<key>[^\n]+?)>\n(?P<value>.*?)\n</parameter>\n?(?=<parameter=|\Z)",
            "value_parser": {"name": "text", "args": _EXACT},
        },
        "transform": {"type": "function", "function": {"name": "{name}", "arguments": "{content}"}},
    }


_PYTHON = {
    # No response template reads these exactly (see `python_calls`): this one loses escapes and quotes in strings.
    "open_pattern": r"<\|tool_call_start\|>\[(?P<name>[^\s=,()]+)\(|(?<=\)), (?P<name>[^\s=,()]+)\((?=[^\s=,()]+=|\))",
    "close_pattern": r"\)(?:\]<\|tool_call_end\|>|(?=, [^\s=,()]+\())",
    "content": "xml-inline",
    "content_args": {
        "tag_pattern": r"(?P<key>[^\s=,()]+)=(?P<value>'(?:\\.|[^'\\])*'"
        r"|(?P<nested>[\[{](?:[^\[\]{}'\"]|'(?:\\.|[^'\\])*'|\"(?:\\.|[^\"\\])*\"|(?&nested))*[\]}])|[^,)]*)",
        "value_parser": {"name": "json", "args": {"string_delims": [["'", "'"]], "allow_non_json": True}},
    },
    "transform": {"type": "function", "function": {"name": "{name}", "arguments": "{content}"}},
}
