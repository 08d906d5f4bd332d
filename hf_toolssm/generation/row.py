"""One row of a batch while it generates: what its next token is, and what that token does."""

from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, ClassVar, Generic, Self, TypeVar

from hf_toolssm.errors import ToolSSMError
from hf_toolssm.generation.token_protocol import TokenProtocol
from hf_toolssm.protocol.trajectory import Writer

P = TypeVar("P", bound=TokenProtocol)


@dataclass(slots=True)
class Row(Generic[P]):
    """A trajectory in the making; `command_row` and `chat_row` read what the model writes.

    Attributes:
        tools: per tool of the protocol, what is at work on this row's problem.
        pending: tokens of observations and inputs that are still to be fed, in order.
        inputs: how many of them, the last, are a user's.
        length: tokens that were fed, the prompts included.
        context: the last of them, for drafts; see `speculative_decoding.extend`.
        answer: the output tokens so far.
        tool_calls: how many calls were carried out.
        finished: nothing more is generated.
        complete: the model wrote an answer and the end token.
        error: the call that ended the row, and why.
        call: tool calls that have not returned yet.
    """

    protocol: P
    tools: list[Any]
    pending: deque[int] = field(default_factory=deque)
    answer: list[int] = field(default_factory=list)
    tool_calls: int = 0
    finished: bool = False
    complete: bool = False
    error: str | None = None
    inputs: int = 0
    length: int = 0
    context: int = 0
    call: Any = None

    TOKENS: ClassVar[tuple[str, ...]] = ("pending", "answer")
    FACTS: ClassVar[tuple[str, ...]] = (
        *("tool_calls", "finished", "complete", "error", "inputs", "length", "context"),
    )
    """What a saved row consists of beside its tools: lists of tokens, and what is small."""

    def clone(self) -> Self:
        """An independent row in the same state; no call may be under way.

        Raises:
            UnforkableToolError: one of its tools is not to be copied.
        """
        clone = self.draft()
        clone.answer = self.answer.copy()
        return clone

    def draft(self) -> Self:
        """A clone whose `answer` begins empty, so that it costs the same however long the answer is."""
        draft = type(self)(
            self.protocol,
            [facts.copy(tool, self.protocol.marker) for facts, tool in zip(self.protocol.tools, self.tools)],
            self.pending.copy(),
        )
        for name in self.FACTS:
            setattr(draft, name, getattr(self, name))
        return draft

    def adopt(self, draft: Self) -> None:
        """Becomes what a draft of this row has become, but for its answer."""
        self.tools, self.pending = draft.tools, draft.pending
        for name in self.FACTS:
            if name not in ("length", "context"):  # which the session counts
                setattr(self, name, getattr(draft, name))

    def saved(self) -> tuple[dict[str, Sequence[int]], dict[str, Any]]:
        """What a file needs beside the tools' states: lists of tokens by name, and JSON."""
        return {n: getattr(self, n) for n in self.TOKENS}, {n: getattr(self, n) for n in self.FACTS}

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
        self.read(choice)
        return choice, Writer.MODEL

    def read(self, token: int) -> None:
        """Takes a token that the model wrote, and does what it says."""
        raise NotImplementedError

    def completes_call(self, token: int) -> bool:
        """Whether a token that the model would write is a call, or completes one."""
        raise NotImplementedError

    def took(self, count: int, left: int) -> bytes:
        """The `Writer` of each of so many tokens that were taken from the front of `pending`, where others stayed."""
        by_user = max(0, self.inputs - left)
        self.inputs -= by_user
        return bytes([Writer.TOOL]) * (count - by_user) + bytes([Writer.USER]) * by_user

    def append(self, tokens: Sequence[int]) -> None:
        """Takes what the user adds, which is fed before the model goes on, also in a row that had finished."""
        self.finished = self.complete = False
        self.answer, self.error = [], None
        self.pending.extend(tokens)
        self.inputs += len(tokens)

    def drop_pending(self) -> None:
        """Forgets what was to be fed, and goes on."""
        self.pending.clear()
        self.inputs = 0
        self.append(())

    def wait(self) -> None:
        """Waits for calls that have not returned, and takes their results."""
        if self.call is not None:
            self.call.wait()
            self.receive()

    def receive(self) -> None:
        """Takes the result of the call that is over."""
        raise NotImplementedError

    def fail(self, error: ToolSSMError) -> None:
        """Ends the row by an error."""
        self.finished, self.error = True, f"{type(error).__name__}: {error}"
