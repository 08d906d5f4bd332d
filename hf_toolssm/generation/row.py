"""One row of a batch while it generates: what its next token is, and what that token does."""

from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Any

from hf_toolssm.errors import MalformedCallError, ToolError
from hf_toolssm.generation.token_protocol import TokenProtocol
from hf_toolssm.generation.tool_calls import WaitingCall, fault
from hf_toolssm.protocol.calls import Call, CallReader, end_token
from hf_toolssm.protocol.trajectory import Writer
from hf_toolssm.tools.tool import error_text


@dataclass(slots=True)
class Row:
    """A trajectory in the making.

    Attributes:
        tools: per tool of the protocol, what is at work on this row's problem.
        reader: of the calls that the model writes; it may stand within one.
        pending: tokens of observations and inputs that are still to be fed, in order.
        inputs: how many of them, the last, are a user's.
        length: tokens that were fed, the prompts included.
        context: the last of them, for drafts; see `speculative_decoding.extend`.
        answer: the output tokens so far.
        tool_calls: how many calls were carried out.
        finished: nothing more is generated.
        complete: the model wrote an answer and the end token.
        error: the call that ended the row, and why.
        call: a tool call that has not returned yet, and which tool's.
    """

    protocol: TokenProtocol
    tools: list[Any]
    reader: CallReader[int]
    pending: deque[int] = field(default_factory=deque)
    answer: list[int] = field(default_factory=list)
    answering: bool = False
    tool_calls: int = 0
    finished: bool = False
    complete: bool = False
    error: str | None = None
    inputs: int = 0
    length: int = 0
    context: int = 0
    call: WaitingCall | None = None
    _calling: int = 0

    @classmethod
    def start(cls, problem: Sequence[int], protocol: TokenProtocol) -> "Row":
        marker, text = protocol.ids.__getitem__, protocol.caller.text
        tools = [
            facts.start(problem if facts.unit == "cells" else text(problem), marker) if facts.remembers else facts.tool
            for facts in protocol.tools
        ]
        return cls(protocol, tools, CallReader(protocol.calls), length=len(problem))

    def clone(self) -> "Row":
        """An independent row in the same state; no call may be under way.

        Raises:
            UnforkableToolError: one of its tools is not to be copied.
        """
        clone = self.draft()
        clone.answer = self.answer.copy()
        return clone

    def draft(self) -> "Row":
        """A clone whose `answer` begins empty, so that it costs the same however long the answer is."""
        marker = self.protocol.ids.__getitem__
        return Row(
            self.protocol,
            [facts.copy(tool, marker) for facts, tool in zip(self.protocol.tools, self.tools)],
            self.reader.copy(),
            self.pending.copy(),
            [],
            self.answering,
            self.tool_calls,
            self.finished,
            self.complete,
            self.error,
            self.inputs,
            self.length,
            self.context,
        )

    def adopt(self, draft: "Row") -> None:
        """Becomes what a draft of this row has become."""
        self.tools, self.reader, self.pending = draft.tools, draft.reader, draft.pending
        self.answering, self.inputs = draft.answering, draft.inputs
        self.answer.extend(draft.answer)
        self.tool_calls, self.finished, self.complete = draft.tool_calls, draft.finished, draft.complete
        self.error = draft.error

    def advance(self, choice: int) -> tuple[int, Writer]:
        """The row's next token, and who wrote it; `choice` is used only if nothing is pending.

        Only a token that the model wrote is ever read as part of a call or as the end: an observation cannot act.
        """
        if self.pending:
            token = self.pending.popleft()
            if self.inputs > len(self.pending):
                self.inputs = len(self.pending)
                return token, Writer.USER
            return token, Writer.TOOL
        protocol, reader = self.protocol, self.reader
        if choice in protocol.ends:
            self._end()
        elif reader.open is not None or choice in protocol.calls.live:
            try:
                read = reader.read(choice)
            except MalformedCallError as error:
                self._refuse_call(error)
            else:
                if isinstance(read, Call):
                    self._call(read)
        else:
            self._write(choice)
            if self.answering:
                self.answer.append(choice)
            self.answering = self.answering or choice == protocol.answer
        return choice, Writer.MODEL

    def took(self, count: int, left: int) -> bytes:
        """The `Writer` of each of so many tokens that were taken from the front of `pending`, where others stayed."""
        by_user = max(0, self.inputs - left)
        self.inputs -= by_user
        return bytes([Writer.TOOL]) * (count - by_user) + bytes([Writer.USER]) * by_user

    def append(self, tokens: Sequence[int]) -> None:
        """Takes what the user adds: it enters the tools' memory as the problem did, and is fed before the model goes
        on, also in a row that had finished."""
        self.finished = self.complete = self.answering = False
        self.answer, self.error = [], None
        self.reader.close()
        for token in tokens:
            self._write(token)
            if self.finished:  # a tool failed
                return
        self.pending.extend(tokens)
        self.inputs += len(tokens)

    def wait(self) -> None:
        """Waits for a call that has not returned, and takes its result."""
        if self.call is not None:
            self.call.wait()
            self.receive()

    def receive(self) -> None:
        """Takes the result of the call that is over."""
        call, self.call = self.call, None
        if call is not None:
            try:
                self._observe(call.result())
            except ToolError as error:
                self._take_error(self._calling, error)

    def fail(self, error: ToolError) -> None:
        """Ends the row by a tool's error."""
        self.finished, self.error = True, f"{type(error).__name__}: {error}"

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
