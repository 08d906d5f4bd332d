"""What running rows tell: every token that they take, one stream for streamers, recordings and chats."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol


@dataclass(frozen=True, slots=True)
class Event:
    """Tokens that one row took, one after the other.

    Attributes:
        row: which.
        position: of the first of them in the row; its first prompt begins at 0.
        tokens: their ids.
        writers: the `Writer` of each: a user's input, the model, or a tool.
        log_probs: by the model's own distribution, of each token that the model wrote; nan of any other. None where
            they were not asked for.
        sampled_log_probs: the same by the distribution that it was drawn from, after temperature and processors; 0 of
            a greedy choice.
    """

    row: int
    position: int
    tokens: Sequence[int]
    writers: bytes
    log_probs: Sequence[float] | None = None
    sampled_log_probs: Sequence[float] | None = None


@dataclass(slots=True)
class Run:
    """What one row took in a step or in several, as a way of decoding returns it; see `Event`.

    Attributes:
        stopped: it stands before a call, and took nothing.
    """

    tokens: Sequence[int]
    writers: bytes
    log_probs: Sequence[float] | None = None
    sampled_log_probs: Sequence[float] | None = None
    stopped: bool = False


class EventSink(Protocol):
    """Hears of every token, in order for each row."""

    def take(self, events: Sequence[Event]) -> None:
        """What the rows took in a step, or in a run of several tokens. They stand behind it already."""
