"""The chat templates under test, the tokens that their tokenizers have, and what each of them cannot give back."""

import re
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import trl
from hostile_conversations import conversation
from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import PreTrainedTokenizerFast

from hf_toolssm.protocol.response_templates import UNVERIFIED, read_template, response_template_for

_QWEN = {"qwen3_5_think", "qwen3_5_nothink", "qwen3_6", "qwen3_8"}
_NEMOTRON = {"nemotron_3_nano", "nemotron_3_super", "nemotron_3_ultra", "nemotron_3_5_lightning"}
_XML = _QWEN | _NEMOTRON
_LFM2 = {"lfm2_v2", "lfm2_2_5"}

TRL_FAMILIES = (*sorted(_XML | _LFM2), "qwen3")
"""Their templates are the checkpoints' own, as trl has them."""

FAMILIES = (*TRL_FAMILIES[:-1], "toolssm", *UNVERIFIED)

WITHOUT_REASONING = {"lfm2_v2", "falcon_h1", "granite_4", "qwen3_next"}
"""Their templates write no reasoning at all."""

_CHATML = ["<|im_start|>", "<|im_end|>"]
_PARTS = ["<think>", "</think>", "<tool_call>", "</tool_call>", "<tool_response>", "</tool_response>"]
_TOKENS = {
    **dict.fromkeys(_XML | {"qwen3", "qwen3_next", "falcon_h1"}, (_CHATML, _PARTS)),
    **dict.fromkeys(
        _LFM2,
        (
            [
                *(*_CHATML, "<|startoftext|>", "<|tool_list_start|>", "<|tool_list_end|>", "<|tool_call_start|>"),
                *("<|tool_call_end|>", "<|tool_response_start|>", "<|tool_response_end|>"),
            ],
            ["<think>", "</think>"],
        ),
    ),
    "toolssm": (_CHATML, [*_PARTS, "<tools>", "</tools>"]),
    "granite_4": (["<|start_of_role|>", "<|end_of_role|>", "<|end_of_text|>"], _PARTS[2:]),
    "nemotron_v2": (
        ["<SPECIAL_10>", "<SPECIAL_11>", "<SPECIAL_12>"],
        [*("<think>", "</think>", "<TOOLCALL>", "</TOOLCALL>"), *("<TOOL_RESPONSE>", "</TOOL_RESPONSE>")],
    ),
}
"""Of each family the tokens added as special, and those added as none."""


def family_conversation(family: str, seed: int) -> tuple[list[dict[str, Any]], list[dict[str, Any]]]:
    """A conversation, without reasoning where the family's template writes none."""
    messages, tools = conversation(seed)
    if family in WITHOUT_REASONING:
        for message in messages:
            message.pop("reasoning_content", None)
    return messages, tools


def template(family: str) -> str:
    """trl's copy of the checkpoint's template, or ours."""
    path = Path(trl.__file__).parent / "chat_templates" / f"{family}.jinja"
    return path.read_text(encoding="utf-8") if path.exists() else read_template(family)


def family_tokenizer(family: str, *, split: bool) -> PreTrainedTokenizerFast:
    """A byte-level BPE whose added tokens are those of the family, or, split, the ones around a turn alone."""
    backend = Tokenizer(models.BPE())
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    backend.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=600, initial_alphabet=pre_tokenizers.ByteLevel.alphabet(), special_tokens=[], show_progress=False
    )
    backend.train_from_iterator([template(family), *(" ".join(_PARTS) for _ in range(9))], trainer)
    special, others = _TOKENS[family]
    backend.add_special_tokens([AddedToken(text, special=True, normalized=False) for text in special])
    if not split:
        backend.add_tokens([AddedToken(text, special=False, normalized=False) for text in others])
    end = next(text for text in special if text in ("<|im_end|>", "<|end_of_text|>", "<SPECIAL_12>"))
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=backend, eos_token=end, chat_template=template(family))
    tokenizer.response_template = response_template_for(tokenizer.chat_template)
    return tokenizer


def same(one: Any, other: Any) -> bool:
    """Equal as JSON is: `True` is no 1, while 3 and 3.0 are one number."""
    if isinstance(one, bool) or isinstance(other, bool):
        return one is other
    if isinstance(one, dict) and isinstance(other, dict):
        return one.keys() == other.keys() and all(same(one[key], other[key]) for key in one)
    if isinstance(one, list) and isinstance(other, list):
        return len(one) == len(other) and all(map(same, one, other))
    return one == other


Predicate = Callable[[dict[str, Any], list[dict[str, Any]]], bool]


def _arguments(message: dict[str, Any], tools: list[dict[str, Any]]) -> Iterator[tuple[str, Any, dict[str, Any]]]:
    """Name, value and schema of every argument of a message's calls."""
    schemas = {tool["function"]["name"]: tool["function"]["parameters"]["properties"] for tool in tools}
    for call in message.get("tool_calls", []):
        function = call["function"]
        for name, value in function["arguments"].items():
            yield name, value, schemas[function["name"]][name]


def _any_argument(holds: Callable[[str, Any, dict[str, Any]], bool]) -> Predicate:
    return lambda message, tools: any(holds(*argument) for argument in _arguments(message, tools))


def _reasoning(message: dict[str, Any]) -> str:
    return message.get("reasoning_content", "")


def _content(message: dict[str, Any]) -> str:
    return message["content"]


REASONS: dict[str, tuple[set[str], Predicate]] = {
    "content is trimmed": (_QWEN, lambda message, _: _content(message) != _content(message).strip()),
    "the end of content is trimmed": (
        _NEMOTRON,
        lambda message, _: _content(message) != _content(message).rstrip(),
    ),
    "content `null` is not written before calls": (
        {"lfm2_v2"},
        lambda message, _: _content(message) == "null" and "tool_calls" in message,
    ),
    "reasoning is trimmed": (_QWEN, lambda message, _: _reasoning(message) != _reasoning(message).strip()),
    "line ends around reasoning and before content are trimmed": (
        {"qwen3"},
        lambda message, _: (
            _reasoning(message) != _reasoning(message).strip("\n") or _content(message).startswith("\n")
        ),
    ),
    "blank reasoning is not written": (
        _NEMOTRON,
        lambda message, _: _reasoning(message) != "" and not _reasoning(message).strip(),
    ),
    "the schema does not say the type": (
        _XML,
        _any_argument(lambda _, value, schema: "type" not in schema and not isinstance(value, str)),
    ),
    "the schema says several types": (
        _XML,
        _any_argument(lambda _, value, schema: isinstance(schema.get("type"), list)),
    ),
    "a whole number of type `number` is too large for a float": (
        _XML,
        _any_argument(
            lambda _, value, schema: schema.get("type") == "number" and value == 2**60 + 1 and isinstance(value, int)
        ),
    ),
    "an argument's name holds a line end": (_XML, _any_argument(lambda name, *_: "\n" in name)),
    "an argument's name holds a sign of the call syntax": (
        _LFM2,
        _any_argument(lambda name, *_: re.search(r"[\s=,()\[\]{}'\"]", name) is not None),
    ),
    "a value holds the next parameter's beginning": (
        _XML,
        _any_argument(lambda _, value, __: isinstance(value, str) and re.search(r"\n</parameter>\n?<par", value)),
    ),
    "a character of the last two planes is written as an escape": (
        {"lfm2_2_5"},
        _any_argument(
            lambda _, value, __: isinstance(value, list) and re.search(r"\\U00(0f|10)", repr(value)) is not None
        ),
    ),
    "strings are written without escapes": (
        {"lfm2_2_5"},
        _any_argument(lambda _, value, __: isinstance(value, str) and ("'" in value or "\\" in value)),
    ),
}
"""Why a template's own text does not say which message it was made from: the families, and when."""


_BEGINS = {
    **dict.fromkeys(_LFM2, "<|tool_call_start|>"),
    **dict.fromkeys(_XML, "<function="),
    "nemotron_v2": "<TOOLCALL>",
}
_ENDS = {**dict.fromkeys(_XML, "</function>\n</tool_call>"), "nemotron_v2": "</TOOLCALL>"}


def _holds_markers(family: str, message: dict[str, Any], tools: list[dict[str, Any]]) -> bool:
    """Whether a message holds a marker's text where it would begin or end a part, if the marker were no token."""
    thought, said = _reasoning(message), _content(message)
    thinks = family not in WITHOUT_REASONING and ("</think>" in thought or "<think>" in said or "</think>" in said)
    values = [repr((name, value)).replace("\\n", "\n") for name, value, _ in _arguments(message, tools)]
    ends = family in _ENDS and any(_ENDS[family] in value for value in values)
    return _BEGINS.get(family, "<tool_call>") in said or thinks or ends


def reason(family: str, message: dict[str, Any], tools: list[dict[str, Any]], *, split: bool) -> str | None:
    """The first reason why this message cannot be read back from what the template writes."""
    if split and _holds_markers(family, message, tools):
        return "a text holds a marker that is no token"
    return next(
        (name for name, (families, holds) in REASONS.items() if family in families and holds(message, tools)), None
    )
