"""One row of a batch while it generates: what its next token is, and what that token does."""

from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import partial

from hf_toolssm.errors import ToolError
from hf_toolssm.generation.token_protocol import TokenProtocol
from hf_toolssm.generation.tool_calls import WaitingCall, fault
from hf_toolssm.tools import ToolSession


@dataclass(slots=True)
class Row:
    """A trajectory in the making.

    Attributes:
        sessions: one session per tool.
        pending: observation tokens that are still to be fed, in order.
        answer: the output tokens so far.
        tool_calls: how many commands were carried out.
        finished: nothing more is generated.
        complete: the model wrote an answer and the end token.
        error: the command that a tool refused, and why.
        call: a tool call that has not returned yet.
    """

    protocol: TokenProtocol
    sessions: list[ToolSession[int]]
    pending: deque[int] = field(default_factory=deque)
    answer: list[int] = field(default_factory=list)
    answering: bool = False
    tool_calls: int = 0
    finished: bool = False
    complete: bool = False
    error: str | None = None
    call: WaitingCall | None = None

    @classmethod
    def start(cls, problem: Sequence[int], protocol: TokenProtocol) -> "Row":
        return cls(protocol, [tool.start(problem, protocol.ids.__getitem__) for tool in protocol.tools])

    def clone(self) -> "Row":
        """An independent row in the same state; no call may be under way."""
        clone = self.draft()
        clone.answer = self.answer.copy()
        return clone

    def draft(self) -> "Row":
        """A clone whose `answer` begins empty, so that it costs the same however long the answer is."""
        return Row(
            self.protocol,
            [session.clone() for session in self.sessions],
            self.pending.copy(),
            [],
            self.answering,
            self.tool_calls,
            self.finished,
            self.complete,
            self.error,
        )

    def adopt(self, draft: "Row") -> None:
        """Becomes what a draft of this row has become."""
        self.sessions, self.pending, self.answering = draft.sessions, draft.pending, draft.answering
        self.answer.extend(draft.answer)
        self.tool_calls, self.finished, self.complete = draft.tool_calls, draft.finished, draft.complete
        self.error = draft.error

    def advance(self, choice: int) -> tuple[int, bool]:
        """The row's next token, and whether a tool wrote it; `choice` is used only if no observation is pending.

        Only a token that the model wrote is ever read as a command or as the end: an observation cannot act.
        """
        if self.pending:
            return self.pending.popleft(), True
        protocol = self.protocol
        if choice in protocol.commands:
            self._call(*protocol.commands[choice])
        elif choice in protocol.ends:
            self.finished, self.complete = True, self.answering
        else:
            self._write(choice)
            if self.answering:
                self.answer.append(choice)
            self.answering = self.answering or choice == protocol.answer
        return choice, False

    def tell(self, tokens: Sequence[int]) -> None:
        """Takes what the user adds: it enters the tools' memory as the problem did, and is fed before the model goes
        on, also in a row that had finished."""
        self.finished = self.complete = self.answering = False
        self.answer, self.error = [], None
        for token in tokens:
            self._write(token)
            if self.finished:  # a tool failed
                return
        self.pending.extend(tokens)

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
                self.fail(error)

    def _call(self, tool: int, command: str) -> None:
        reader, session, limit = self.protocol.reader, self.sessions[tool], self.protocol.limits[tool]
        if limit is not None:
            self.call = WaitingCall(partial(reader.call, session, command), limit)
            return
        try:
            self._observe(reader.call(session, command))
        except ToolError as error:
            self.fail(error)

    def _observe(self, tokens: Sequence[int]) -> None:
        if tokens:
            self.pending.extend(tokens)
        self.tool_calls += 1

    def _write(self, token: int) -> None:
        try:
            for session in self.sessions:
                session.write(token)
        except ToolError as error:
            self.fail(error)
        except Exception as error:
            self.fail(fault("when the model wrote", error))

    def fail(self, error: ToolError) -> None:
        """Ends the row by a tool's error."""
        self.finished, self.error = True, f"{type(error).__name__}: {error}"
