"""Rows whose calls are written by tokens of their own; see `protocol.calls`."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any, ClassVar, Self

from transformers import PreTrainedTokenizerBase

from hf_toolssm.errors import (
    InvalidProblemError,
    MalformedCallError,
    MissingToolTokensError,
    ToolError,
    UnknownToolError,
)
from hf_toolssm.generation.row import Row
from hf_toolssm.generation.token_protocol import TokenProtocol, ends_of_session, vocabulary_of
from hf_toolssm.generation.tool_calls import ToolCaller, WaitingCall, fault
from hf_toolssm.protocol.calls import Call, CallReader, CommandTokens, call_tokens, end_token
from hf_toolssm.protocol.parse import parse
from hf_toolssm.protocol.special_tokens import tool_token_ids, tool_tokens
from hf_toolssm.protocol.trajectory import ANSWER, Trajectory
from hf_toolssm.tools import ToolFacts
from hf_toolssm.tools.tool import error_text


class CommandProtocol(TokenProtocol):
    """The tokens of calls, of the answer marker and of the tools' markers.

    Args:
        tools: the tools in use; no two share a call.
        ids: the token id of every call, marker and of the answer marker.
        end_ids: the tokens that end a row.
        caller: carries out calls.

    Raises:
        MissingToolTokensError: a token of the tools has no id.
        UnknownToolError: two tools share a call, or a call's token has another meaning.
    """

    def __init__(
        self, tools: Sequence[ToolFacts], ids: Mapping[str, int], end_ids: Sequence[int], caller: ToolCaller
    ) -> None:
        super().__init__(tools, end_ids, caller)
        missing = [text for text in tool_tokens([facts.tool for facts in tools]) if text not in ids]
        if missing:
            raise MissingToolTokensError(
                f"the model has no id for {missing[0]!r}: call models.tool_embeddings.add_tool_tokens_to_model, and "
                "train it to use the tool"
            )
        self.ids = ids
        self.calls = CommandTokens(self.tools, ids.__getitem__)
        self.writes = [index for index, facts in enumerate(self.tools) if facts.is_told]
        self.answer = ids[ANSWER]
        others = [self.answer, *self.ends, *(ids[text] for facts in self.tools for text in facts.markers)]
        live = self.calls.live
        if len(live) < sum(len(call_tokens(facts)) for facts in self.tools) or live & {*others}:
            raise UnknownToolError("a tool's call is written by a token that means something else: rename the call")

    def check_problems(self, prompts: Sequence[Sequence[int]]) -> None:
        live = {*self.calls.live, self.answer}
        names = {token: text for text, token in self.ids.items() if token in live}
        for row, prompt in enumerate(prompts):
            found = next((names[token] for token in prompt if token in names), None)
            if found is not None:
                raise InvalidProblemError(
                    f"the prompt of row {row} holds {found}, which only the model writes: state the problem alone, "
                    "and go on with a trajectory by its session"
                )

    def marker(self, text: str) -> int:
        return self.ids[text]

    def start_row(self, prompt: Sequence[int]) -> "CommandRow":
        text = self.caller.text
        tools = [
            facts.start(prompt if facts.unit == "cells" else text(prompt), self.marker)
            if facts.remembers
            else facts.tool
            for facts in self.tools
        ]
        return CommandRow(self, tools, length=len(prompt), reader=CallReader(self.calls))

    def restore_row(self, tools: list[Any], saved: dict[str, Any]) -> "CommandRow":
        reader = CallReader(self.calls, saved.pop("call"), saved.pop("argument"))
        return CommandRow(self, tools, reader=reader, **saved)

    def meaning(self) -> dict[str, Any]:
        calls = {text: token for text, token in self.ids.items() if token in self.calls.live}
        return {"calls": calls, "answer": self.answer, **super().meaning()}

    def trajectory(self, ids: Sequence[int], writers: Sequence[int], tokenizer: Any) -> Trajectory:
        return parse(ids, writers, tokenizer, [facts.tool for facts in self.tools], self.ends)


def make_command_protocol(
    model: Any, tools: Sequence[ToolFacts], tokenizer: PreTrainedTokenizerBase | None, end_ids: Sequence[int] | None
) -> CommandProtocol:
    """The protocol of a model whose config, or tokenizer, names the tokens; see `Session.start` for the errors."""
    ids = getattr(model.config, "tool_token_ids", None)
    if ids is None and tokenizer is not None:
        ids = tool_token_ids(tokenizer, [facts.tool for facts in tools])
    vocabulary = vocabulary_of(model)
    beyond = [text for text, token in (ids or {}).items() if not 0 <= token < vocabulary]
    if beyond:
        raise MissingToolTokensError(
            f"the id of {beyond[0]!r} is none of the model's {vocabulary} tokens: resize its embeddings"
        )
    return CommandProtocol(tools, ids or {}, ends_of_session(model, end_ids), ToolCaller(vocabulary, tokenizer))


@dataclass(slots=True)
class CommandRow(Row[CommandProtocol]):
    """See `Row`.

    Attributes:
        reader: of the calls that the model writes; it may stand within one.
        answering: whether the answer marker was written.
    """

    reader: CallReader[int] = None  # type: ignore[assignment]  # fields before it have defaults
    answering: bool = False
    _calling: int = 0

    FACTS: ClassVar[tuple[str, ...]] = (*Row.FACTS, "answering")

    def draft(self) -> Self:
        draft = Row.draft(self)
        draft.reader = self.reader.copy()
        return draft

    def adopt(self, draft: Self) -> None:
        Row.adopt(self, draft)
        self.answer.extend(draft.answer)
        self.reader = draft.reader

    def saved(self) -> tuple[dict[str, Sequence[int]], dict[str, Any]]:
        tokens, facts = Row.saved(self)
        return tokens | {"argument": self.reader.argument}, facts | {"call": self.reader.open}

    def read(self, token: int) -> None:
        protocol, reader = self.protocol, self.reader
        if token in protocol.ends:
            self._end()
        elif reader.open is not None or token in protocol.calls.live:
            try:
                read = reader.read(token)
            except MalformedCallError as error:
                self._refuse_call(error)
            else:
                if isinstance(read, Call):
                    self._call(read)
        else:
            self._write(token)
            if self.answering:
                self.answer.append(token)
            self.answering = self.answering or token == protocol.answer

    def completes_call(self, token: int) -> bool:
        calls, reader = self.protocol.calls, self.reader
        return calls.ends.get(token) == reader.open if reader.open is not None else token in calls.whole

    def append(self, tokens: Sequence[int]) -> None:
        """It also enters the tools' memory, as the problem did."""
        Row.append(self, ())
        self.answering = False
        self.reader.close()
        for token in tokens:
            self._write(token)
            if self.finished:  # a tool failed
                return
        self.pending.extend(tokens)
        self.inputs += len(tokens)

    def receive(self) -> None:
        call, self.call = self.call, None
        if call is not None:
            try:
                self._observe(call.result())
            except ToolError as error:
                self._take_error(self._calling, error)

    def _end(self) -> None:
        if self.reader.open is None:
            self.finished, self.complete = True, self.answering
        else:
            self.fail(
                MalformedCallError(f"the row ended in an argument that {end_token(self.reader.open)} never ends")
            )

    def _refuse_call(self, error: MalformedCallError) -> None:
        name = self.reader.open
        assert name is not None
        self.reader.close()
        self._take_error(self.protocol.calls.tool_of[name], error)

    def _call(self, call: Call[int]) -> None:
        index = self.protocol.calls.tool_of[call.name]
        facts, caller = self.protocol.tools[index], self.protocol.caller
        if facts.time_limit is not None:
            self.call = WaitingCall(partial(caller.call, facts, self.tools[index], call), facts.time_limit)
            self._calling = index
            return
        try:
            self._observe(caller.call(facts, self.tools[index], call))
        except ToolError as error:
            self._take_error(index, error)

    def _observe(self, tokens: Sequence[int]) -> None:
        if tokens:
            self.pending.extend(tokens)
        self.tool_calls += 1

    def _take_error(self, index: int, error: ToolError) -> None:
        """The model reads what went wrong, or the row ends with it, as the tool says."""
        if self.protocol.tools[index].on_error == "end":
            self.fail(error)
            return
        try:
            self.pending.extend(self.protocol.caller.encode(error_text(error), "an error"))
        except ToolError:
            self.fail(error)

    def _write(self, token: int) -> None:
        try:
            for index in self.protocol.writes:
                self.tools[index].write(token)
        except ToolError as error:
            self.fail(error)
        except Exception as error:
            self.fail(fault("when the model wrote", error))
