"""Rows of `messages` and `tools`, as TRL's documentation has them, as what a trainer takes.

    {"messages": [{"role": "user", ...}, {"role": "assistant", ...}], "tools": [{"type": "function", "function": ...}]}

`prompt` and `completion` may stand in the place of `messages`; only turns of the completion are learned then. `tools`
may be missing, and may be JSON as a text; a call's arguments too.
"""

import json
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from itertools import pairwise
from typing import Any

from datasets import Dataset, Features, Json, List, Value
from datasets.fingerprint import Hasher
from transformers import PreTrainedTokenizerBase

from hf_toolssm.errors import CorruptRowError, HistoryRewrittenError, ToolSSMError
from hf_toolssm.protocol.chat_messages import check_messages
from hf_toolssm.protocol.chat_template import ChatTemplate
from hf_toolssm.protocol.render import IGNORED
from hf_toolssm.protocol.trajectory import Writer
from hf_toolssm.sources import digest
from hf_toolssm.tools.tool import NO_PARAMETERS, ToolFacts, facts_of

FEATURES = Features({"id": Value("string"), "messages": List(Json()), "tools": List(Json())})
"""Of rows that we write. As JSON: Arrow would give every call the arguments of all others, as nulls."""

MOST_KNOWN = 64
"""Sets of tools whose templates are kept, as many datasets offer the same ones in every row."""


def holds_messages(rows: Dataset) -> bool:
    """Whether `render_messages` can read these rows."""
    return "messages" in rows.column_names or {"prompt", "completion"} <= set(rows.column_names)


def render_messages(rows: Dataset, tokenizer: PreTrainedTokenizerBase, num_proc: int) -> Dataset:
    """The rows as `input_ids` and `labels`: what the model writes carries loss, the end of each of its turns included.

    A conversation is one row. Where the template writes history otherwise once a user goes on, as it does that takes
    out the thinking of earlier turns, it becomes one row for each of the user's turns: as generation sees it then, and
    with loss on what the model writes in that turn alone.

    Args:
        rows: see above.
        tokenizer: has a chat template.
        num_proc: processes that render.

    Raises:
        ChatTemplateError: there is no template, it cannot say calls where rows have tools, or it ends a turn by no
            token, so that no row would hold one and a model never learn to stop.
        CorruptRowError: a row that cannot be learned from; the message names it by its `id` or its number.
    """
    renderer = _Renderer(tokenizer, rows.features)
    renderer.check(rows)
    source = digest(__name__)  # `datasets` would know the renderer by its name only
    return rows.map(
        renderer.batch,
        with_indices=True,
        batched=True,
        batch_size=100,
        remove_columns=rows.column_names,
        num_proc=num_proc,
        desc="rendering rows",
        new_fingerprint=Hasher.hash([rows._fingerprint, source, tokenizer, tokenizer.chat_template]),
    )


def texts_of(rows: Dataset) -> Iterator[str]:
    """All that rows say, a user's first words first, as a tokenizer is learned from it.

    Raises:
        CorruptRowError: see `render_messages`.
    """
    read = _Reader(rows.features)
    for index, row in enumerate(rows):
        with _naming(row, index):
            messages, tools = read.messages(row)[0], read.tools(row)
        for message in messages:
            yield from (message[name] for name in ("content", "reasoning_content") if message.get(name))
            yield from (json.dumps(call["function"], ensure_ascii=False) for call in message.get("tool_calls", ()))
        for each in tools:
            yield from (json.dumps(schema, ensure_ascii=False) for schema in each.schemas.values())


@contextmanager
def _naming(row: Mapping[str, Any], index: int) -> Iterator[None]:
    try:
        yield
    except ToolSSMError as error:
        raise CorruptRowError(f"row {row.get('id', index)}: {error}") from error


class _Offered:
    """The tools of a row: the model is told of them, and none runs."""

    def __init__(self, schemas: Mapping[str, Mapping[str, Any]]) -> None:
        self.schemas = schemas

    def call(self, name: str, arguments: Any) -> str:
        raise NotImplementedError(name)


class _Renderer:
    def __init__(self, tokenizer: PreTrainedTokenizerBase, features: Mapping[str, Any]) -> None:
        self._tokenizer = tokenizer
        self._read = _Reader(features)
        self._templates: dict[str, ChatTemplate] = {}

    def check(self, rows: Dataset) -> None:
        """Finds out, before any work, whether the template can say what the rows say."""
        names = [name for name in ("id", "tools") if name in rows.column_names]
        offers = rows.select_columns(names) if "tools" in names else ()
        index, first = next(((index, row) for index, row in enumerate(offers) if row["tools"]), (0, {}))
        with _naming(first, index):
            tools = self._read.tools(first)
        self._template(tools)

    def batch(self, batch: Mapping[str, Sequence[Any]], indices: Sequence[int]) -> dict[str, list[list[int]]]:
        rendered: dict[str, list[list[int]]] = {"input_ids": [], "labels": []}
        for place, index in enumerate(indices):
            row = {name: column[place] for name, column in batch.items()}
            with _naming(row, index):
                written = self._written(row)
            for ids, writers in written:
                labels = [token if writer == Writer.MODEL else IGNORED for token, writer in zip(ids, writers)]
                rendered["input_ids"].append(ids)
                rendered["labels"].append(labels)
        return rendered

    def _written(self, row: Mapping[str, Any]) -> list[tuple[list[int], bytearray]]:
        messages, begin = self._read.messages(row)
        if not _has_turn(messages[begin:]):
            raise CorruptRowError("no assistant says anything in it, so nothing is learned from it: leave it out")
        if begin == 0 and messages[0]["role"] == "assistant":
            raise CorruptRowError("an assistant speaks first, and a chat begins with a user's or a system's message")
        tools = self._read.tools(row)
        offered = [name for each in tools for name in each.calls]
        for number, message in enumerate(messages):
            for call in message.get("tool_calls", ()):
                name = call["function"]["name"]
                if name not in offered:
                    raise CorruptRowError(
                        f"message {number} calls {name!r}, and the row offers {', '.join(offered) or 'no tools'}: "
                        "add it to the row's tools, or leave the row out"
                    )
        template = self._template(tools)
        try:
            return [template.written(messages, begin)]
        except HistoryRewrittenError:
            asked = [at for at in range(begin + 1, len(messages)) if messages[at]["role"] == "user"]
            turns = [turn for turn in pairwise([begin, *asked, len(messages)]) if _has_turn(messages[slice(*turn)])]
            return [template.written(messages[:end], first) for first, end in turns]

    def _template(self, tools: Sequence[ToolFacts]) -> ChatTemplate:
        key = json.dumps([schema for each in tools for schema in each.schemas.values()])
        if key not in self._templates:
            if len(self._templates) == MOST_KNOWN:
                self._templates.clear()
            self._templates[key] = ChatTemplate(self._tokenizer, tools)
        return self._templates[key]


class _Reader:
    """Takes out of rows what is no part of them.

    In a column of structs each has every key of all rows, with nulls where it had none; in one of JSON it has not.
    """

    def __init__(self, features: Mapping[str, Any]) -> None:
        self._mixed = {name for name, feature in features.items() if not _holds_json(feature)}

    def messages(self, row: Mapping[str, Any]) -> tuple[list[dict], int]:
        """A row's messages in one form, and the first that may be learned."""
        columns = ("messages",) if row.get("messages") else ("prompt", "completion")
        prompt, *completion = (self._plain(row, name) or [] for name in columns)
        if not completion:
            return check_messages(prompt), 0
        return check_messages([*prompt, *completion[0]]), len(prompt)

    def tools(self, row: Mapping[str, Any]) -> list[ToolFacts]:
        """A row's tools."""
        return _tools_of(self._plain(row, "tools"))

    def _plain(self, row: Mapping[str, Any], name: str) -> Any:
        value = row.get(name)
        return _without_nulls(value) if name in self._mixed else value


def _has_turn(messages: Sequence[Mapping[str, Any]]) -> bool:
    return any(message["role"] == "assistant" for message in messages)


def _tools_of(tools: Any) -> list[ToolFacts]:
    """The tools of a row, as schemas or as JSON of them."""
    try:
        listed = (json.loads(tools or "[]") if isinstance(tools, str) else tools) or []
        listed = [json.loads(each) if isinstance(each, str) else each for each in listed]
        functions = [each.get("function", each) for each in listed]
        schemas = {
            function["name"]: {
                "description": function.get("description") or "",
                "parameters": function.get("parameters") or NO_PARAMETERS,
            }
            for function in functions
        }
    except (AttributeError, KeyError, TypeError, ValueError) as error:
        raise CorruptRowError(
            "tools are a list of {'type': 'function', 'function': {'name': ..., 'description': ..., 'parameters': "
            f"...}}}}, or JSON of one, and not {tools!r:.80} ({type(error).__name__}: {error})"
        ) from error
    if len(schemas) < len(functions):
        raise CorruptRowError("two of its tools have one name")
    return [facts_of(_Offered(schemas))] if schemas else []


def _holds_json(feature: Any) -> bool:
    if isinstance(feature, Mapping):
        return any(map(_holds_json, feature.values()))
    return isinstance(feature, Json) or _holds_json(getattr(feature, "feature", {}))


def _without_nulls(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {name: _without_nulls(each) for name, each in value.items() if each is not None}
    return [_without_nulls(each) for each in value] if isinstance(value, list) else value
