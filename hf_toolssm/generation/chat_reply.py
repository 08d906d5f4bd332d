"""What the model and the tools say to one message of a user."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

from hf_toolssm.cache.model_state import ModelState
from hf_toolssm.generation.chat_row import ChatRow
from hf_toolssm.generation.session import Session


@dataclass(frozen=True)
class Reply:
    """What the model and the tools said to one message of a user.

    Attributes:
        content: of the model's last turn, as far as it went.
        reasoning_content: its thoughts, where the template has such; "" otherwise.
        tool_calls: every call of the reply, in order.
        messages: all of it that is said, in order; a turn that was cut off stands in `content` alone.
        finished: whether the model ended its turn; `Chat.resume` goes on with one that was cut.
        error: what ended the reply, where a tool's error does.
        tokens: how many were fed for it, what the user and the tools said included, but for a session's first prompt.
    """

    content: str
    reasoning_content: str
    tool_calls: list[dict[str, Any]]
    messages: list[dict[str, Any]]
    finished: bool
    error: str | None
    tokens: int


class Before(NamedTuple):
    """A chat as it was before a message."""

    session: Session | None
    said: int
    user: int
    state: ModelState | None


def reply_of(row: ChatRow, messages: Sequence[dict[str, Any]], tokens: int) -> Reply:
    """The reply that a row has written so far, of which these messages are over."""
    last: dict[str, Any] = next((m for m in reversed(messages) if m["role"] == "assistant"), {})
    if not row.finished:
        last, _ = row.protocol.read_turn(row.turn, row.begun)
    return Reply(
        content=last.get("content", ""),
        reasoning_content=last.get("reasoning_content", ""),
        tool_calls=[call for message in messages for call in message.get("tool_calls", [])],
        messages=[*messages],
        finished=row.complete,
        error=row.error,
        tokens=tokens,
    )
