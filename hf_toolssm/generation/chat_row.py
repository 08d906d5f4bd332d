"""Rows whose calls are written as the checkpoint's chat template says.

The model writes until the token that ends its turn. The turn is then read as a message; its calls are carried out,
their results are fed as the template writes them, and the model goes on, until a turn calls nothing. Where tools are
only declared, a turn that calls ends the row too, until the caller gives the results.
"""

import json
from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import partial
from itertools import groupby, takewhile
from typing import Any, ClassVar, Self

from transformers import PreTrainedTokenizerBase

from hf_toolssm.errors import (
    InvalidProblemError,
    MalformedCallError,
    MessageError,
    ToolError,
    ToolFaultError,
    ToolSSMError,
    UnknownCallError,
    UnknownToolError,
    UnspellableTextError,
)
from hf_toolssm.generation.row import Row
from hf_toolssm.generation.token_protocol import TokenProtocol
from hf_toolssm.generation.tool_calls import ToolCaller, WaitingCalls, Work
from hf_toolssm.protocol.chat_messages import check_messages
from hf_toolssm.protocol.chat_template import ChatTemplate
from hf_toolssm.protocol.plain_text import encode_plain
from hf_toolssm.protocol.trajectory import ANSWER, Step, StepKind, Trajectory, Writer, canonical
from hf_toolssm.tools import ToolFacts
from hf_toolssm.tools.function import Declared
from hf_toolssm.tools.tool import error_text


class ChatProtocol(TokenProtocol):
    """A chat template and the tools that it offers.

    Args:
        tools: the tools in use, all of which read text; no two share a call.
        template: made with these tools.
        end_ids: tokens that end a turn beside the template's own.
        caller: carries out calls.

    Attributes:
        leaves_calls: whether calls are left to the caller, as those of tools that are all declared are.

    Raises:
        UnknownToolError: some of the tools are declared, and some are not.
    """

    def __init__(
        self, tools: Sequence[ToolFacts], template: ChatTemplate, end_ids: Sequence[int], caller: ToolCaller
    ) -> None:
        super().__init__(tools, {*template.ends, *end_ids}, caller)
        self.template = template
        self.tool_of = {name: index for index, facts in enumerate(tools) for name in facts.calls}
        kinds = {isinstance(facts.tool, Declared) for facts in tools}
        if len(kinds) > 1:
            raise UnknownToolError(
                "some tools are declared, whose calls the caller carries out, and some are not: declare all or none"
            )
        self.leaves_calls = kinds == {True}

    def check_asked(self, prompts: Sequence[Sequence[int]]) -> None:
        for row, prompt in enumerate(prompts):
            if not self.template.text(self.beginning(prompt)).endswith(self.template.beginning):
                raise InvalidProblemError(
                    f"the prompt of row {row} does not end with {self.template.beginning!r}, which begins the model's "
                    "turn: make it by the tokenizer's apply_chat_template(..., add_generation_prompt=True), and give "
                    "further options of the template as chat_template_kwargs too"
                )

    def start_row(self, prompt: Sequence[int]) -> "ChatRow":
        problem = "" if not any(facts.remembers for facts in self.tools) else self.caller.text(prompt)
        tools = [facts.start(problem, self.marker) for facts in self.tools]
        return ChatRow(self, tools, length=len(prompt), begun=self.beginning(prompt))

    def restore_row(self, tools: list[Any], saved: dict[str, Any]) -> "ChatRow":
        return ChatRow(self, tools, **saved)

    def beginning(self, fed: Sequence[int]) -> list[int]:
        """What begins the model's turn, at the end of what was fed: all behind the end of the turn before."""
        begun = takewhile(lambda token: token not in self.ends, reversed(fed))
        return [*begun][::-1]

    def meaning(self) -> dict[str, Any]:
        return {"schemas": self.template.schemas, **super().meaning()}

    def trajectory(self, ids: Sequence[int], writers: Sequence[int], tokenizer: Any) -> Trajectory:
        steps: list[Step] = []
        cut: list[int] = []
        begun: list[int] = []
        turn = -1
        for writer, group in groupby(zip(ids, writers), key=lambda each: each[1]):
            run = [int(token) for token, _ in group]
            if writer != Writer.MODEL:
                kind = StepKind.INPUT if writer == Writer.USER else StepKind.OBSERVATION
                steps.append(Step(kind, tokenizer.decode(run), ids=tuple(run)))
                begun = self.beginning(run)
                if writer == Writer.USER:
                    turn += 1
                    cut.append(turn)  # unless a turn that calls nothing comes
                continue
            steps += _steps_of(self.read_turn(run, begun)[0])
            if run[-1] in self.ends and steps[-1].kind is StepKind.OUTPUT:
                cut = [each for each in cut if each != turn]
        return Trajectory(canonical(steps), tuple(cut))

    def read_turn(self, turn: Sequence[int], begun: Sequence[int]) -> tuple[dict[str, Any], MalformedCallError | None]:
        """A turn as a message; one that cannot be read is all content, and the error says why."""
        try:
            return self.template.parse(turn, begun), None
        except MalformedCallError as error:
            return {"role": "assistant", "content": self.template.text(turn)}, error


def _steps_of(message: dict[str, Any]) -> list[Step]:
    """A turn of the model; what it says beside its calls is a thought."""
    calls = message.get("tool_calls", [])
    thoughts = [message.get("reasoning_content", ""), message["content"] if calls else ""]
    steps = [Step(StepKind.THOUGHT, text) for text in thoughts if text]
    for call in calls:
        written = json.dumps(call["function"]["arguments"], ensure_ascii=False)
        steps.append(Step(StepKind.CALL, written, call["function"]["name"]))
    if not calls:
        steps += [Step(StepKind.THOUGHT, (ANSWER,)), Step(StepKind.OUTPUT, message["content"])]
    return steps


@dataclass(slots=True)
class ChatRow(Row[ChatProtocol]):
    """See `Row`. Its answer is the last turn, as tokens.

    Attributes:
        turn: tokens of the model's turn that has not ended.
        begun: what begins it, which the template wrote.
        messages: of the model and the tools, until someone takes them.
        calling: the last that called.
    """

    turn: list[int] = field(default_factory=list)
    begun: list[int] = field(default_factory=list)
    messages: list[dict[str, Any]] = field(default_factory=list)
    calling: dict[str, Any] = field(default_factory=dict)

    TOKENS: ClassVar[tuple[str, ...]] = (*Row.TOKENS, "turn", "begun")
    FACTS: ClassVar[tuple[str, ...]] = (*Row.FACTS, "messages")

    def draft(self) -> Self:
        draft = Row.draft(self)
        draft.answer = self.answer  # another takes its place, and it is never changed
        draft.turn, draft.begun, draft.messages = self.turn.copy(), self.begun, self.messages.copy()
        return draft

    def adopt(self, draft: Self) -> None:
        Row.adopt(self, draft)
        self.answer, self.turn, self.begun = draft.answer, draft.turn, draft.begun

    def read(self, token: int) -> None:
        if token not in self.protocol.ends:
            self.turn.append(token)
            return
        self.answer = self.turn
        message, error = self.end_turn()
        if self.protocol.leaves_calls:
            self.finished = self.complete = True
        elif error is not None:
            self._answer(message, [{"role": "tool", "content": error_text(error)}])
        elif "tool_calls" in message:
            self.calling = message
            calls = WaitingCalls([self._work(call["function"]) for call in message["tool_calls"]])
            self.call = calls
            if calls.over:
                self.receive()
        else:
            self.finished = self.complete = True

    def completes_call(self, token: int) -> bool:
        if token not in self.protocol.ends:
            return False
        message, error = self.protocol.read_turn(self.turn, self.begun)
        return not self.protocol.leaves_calls and (error is not None or "tool_calls" in message)

    def end_turn(self) -> tuple[dict[str, Any], MalformedCallError | None]:
        """Takes what the model has written as its turn."""
        message, error = self.protocol.read_turn(self.turn, self.begun)
        self.messages.append(message)
        self.turn = []
        return message, error

    def append(self, tokens: Sequence[int]) -> None:
        """A turn that has not ended becomes a message as far as it went."""
        if self.turn:
            self.end_turn()
        Row.append(self, tokens)
        self.begun = self.protocol.beginning(self.pending)

    def go_on(self, message: dict[str, Any], results: list[dict[str, Any]]) -> None:
        """Feeds the results of the calls of the turn that ended, which the caller has carried out."""
        self.append(())
        self._answer(message, results)

    def receive(self) -> None:
        calls, self.call = self.call, None
        if calls is None:
            return
        message, results = self.calling, []
        for call, result in zip(message["tool_calls"], calls.results):
            name = call["function"]["name"]
            if isinstance(result, ToolError):
                index = self.protocol.tool_of.get(name)
                if index is not None and self.protocol.tools[index].on_error == "end":
                    self.fail(result)
                    return
                result = error_text(result)
            else:
                self.tool_calls += 1
            results.append(result_message(call, result))
        self._answer(message, results)

    def _answer(self, message: dict[str, Any], results: list[dict[str, Any]]) -> None:
        """Feeds the results of a turn's calls."""
        template = self.protocol.template
        try:
            try:
                said, begun = template.follow_up(message, results)
            except UnspellableTextError:
                results = [each | {"content": self._spelled(each)} for each in results]
                said, begun = template.follow_up(message, results)
        except ToolSSMError as error:
            self.fail(error)
            return
        self.messages += results
        self.pending.extend([*said, *begun])
        self.begun = self.protocol.beginning(self.pending)

    def _spelled(self, result: dict[str, Any]) -> str:
        """A result's text, or, of one that the tokenizer cannot write, what is wrong with it."""
        try:
            encode_plain(self.protocol.template.tokenizer, result["content"])
        except UnspellableTextError as error:
            return error_text(ToolFaultError(f"the tool returned text that has no tokens: {error}"))
        return result["content"]

    def _work(self, function: dict[str, Any]) -> Work:
        protocol, name = self.protocol, function["name"]
        index = protocol.tool_of.get(name)
        if index is None:
            error = UnknownCallError(f"there is no tool {name!r}; the tools are {', '.join(protocol.tool_of)}")
            return Work(partial(_refuse, error), None, None)
        facts, at_work = protocol.tools[index], self.tools[index]
        run = partial(protocol.caller.observe, facts, at_work, name, function["arguments"])
        return Work(run, facts.time_limit, facts.owner(at_work))


def result_messages(
    calls: Sequence[dict[str, Any]], results: Sequence[str], tokenizer: PreTrainedTokenizerBase
) -> list[dict[str, Any]]:
    """What the caller says to every call of a turn.

    Raises:
        MessageError: there are more or fewer results than calls, or one is no text.
        UnspellableTextError: one has no tokens.
    """
    if isinstance(results, str) or not isinstance(results, Sequence) or len(results) != len(calls):
        raise MessageError(f"{len(calls)} calls wait for a text each, and not for {results!r:.80}")
    said = check_messages([*map(result_message, calls, results)], {"role": "assistant"})
    for message in said:
        encode_plain(tokenizer, message["content"])
    return said


def result_message(call: dict[str, Any], content: str) -> dict[str, Any]:
    """What a tool says to a call."""
    answers = {"tool_call_id": call["id"]} if "id" in call else {}
    return {"role": "tool", "name": call["function"]["name"], "content": content, **answers}


def _refuse(error: ToolError) -> Any:
    raise error
