"""One row of a batch while it generates: what its next token is, and what that token does."""

from collections import deque
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from hf_toolssm.errors import MissingToolTokensError, ToolError, UnknownToolError
from hf_toolssm.protocols.special_tokens import tool_tokens
from hf_toolssm.tools import Tool, ToolSession
from hf_toolssm.trajectory import ANSWER


class TokenProtocol:
    """The meaning of token ids for the rows of one `generate` call.

    Args:
        tools: the tools in use; no two share a command.
        ids: the token id of every command, marker and of the answer marker.
        end_ids: the tokens that end a trajectory.

    Raises:
        MissingToolTokensError: a token of the tools has no id.
        UnknownToolError: two tools share a command.
    """

    def __init__(self, tools: Sequence[Tool], ids: Mapping[str, int], end_ids: Sequence[int]) -> None:
        missing = [text for text in tool_tokens(tools) if text not in ids]
        if missing:
            raise MissingToolTokensError(
                f"the model has no id for {missing[0]!r}: call add_tool_tokens_to_model and train it to use the tool"
            )
        self.tools = tools
        self.ids = ids
        self.commands = {ids[text]: (index, text) for index, tool in enumerate(tools) for text in tool.commands}
        if len(self.commands) < sum(len(tool.commands) for tool in tools):
            raise UnknownToolError("two of the tools share a command: give each tool once")
        self.answer = ids[ANSWER]
        self.ends = frozenset(end_ids)


@dataclass(slots=True)
class Row:
    """A trajectory in the making.

    Attributes:
        index: the row's place in the batch that `generate` was given.
        sessions: one session per tool.
        forced: observation tokens that are still to be fed, in order.
        answer: the output tokens so far.
        tool_calls: how many commands were carried out.
        length: tokens of the row, padding before it included, once it has ended.
        finished: nothing more is generated.
        complete: the model wrote an answer and the end token.
        error: the command that a tool refused, and why.
    """

    index: int
    protocol: TokenProtocol
    sessions: list[ToolSession[int]]
    forced: deque[int] = field(default_factory=deque)
    answer: list[int] = field(default_factory=list)
    answering: bool = False
    tool_calls: int = 0
    length: int = 0
    finished: bool = False
    complete: bool = False
    error: str | None = None

    @classmethod
    def start(cls, index: int, problem: Sequence[int], protocol: TokenProtocol) -> "Row":
        return cls(index, protocol, [tool.start(problem, protocol.ids.__getitem__) for tool in protocol.tools])

    def advance(self, sampled: int) -> tuple[int, bool]:
        """The row's next token, and whether a tool wrote it; `sampled` is used only if no observation is pending.

        Only a token that the model wrote is ever read as a command or as the end: an observation cannot act.
        """
        if self.forced:
            return self.forced.popleft(), True
        protocol = self.protocol
        if sampled in protocol.commands:
            self._call(*protocol.commands[sampled])
        elif sampled in protocol.ends:
            self.finished, self.complete = True, self.answering
        else:
            for session in self.sessions:
                session.write(sampled)
            if self.answering:
                self.answer.append(sampled)
            self.answering = self.answering or sampled == protocol.answer
        return sampled, False

    def _call(self, tool: int, command: str) -> None:
        try:
            self.forced.extend(self.sessions[tool].execute(command))
            self.tool_calls += 1
        except ToolError as error:
            self.finished, self.error = True, f"{type(error).__name__}: {error}"
