"""Rows that write by themselves: the model and the pointer memory in one compiled call, with no Python per token.

A row goes on greedily until it has taken as many tokens as it may, or stands before one that only Python knows: the
end of the row, or a command that the tool refuses. It is then exactly where token by token would have brought it.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from hf_toolssm.generation.decoder import Decoder, FusedDecoder
from hf_toolssm.generation.row import Row
from hf_toolssm.generation.token_protocol import TokenProtocol
from hf_toolssm.models.pointer_tapes import CREATE, LEFT, READ, RIGHT, STOP, WRITE, PointerTapes
from hf_toolssm.tools.pointer_memory import (
    MEMORY_BEGIN,
    MEMORY_END,
    NEW_POINTER,
    PointerMemory,
    PointerSession,
    left,
    read,
    right,
)

LONGEST = 8_192
"""Tokens of a call, all rows together: some hundredths of a second, so that listeners hear and Ctrl-C ends a run."""

_ACTIONS = {read: READ, left: LEFT, right: RIGHT}


@dataclass
class FreeRun:
    """What one row took.

    Attributes:
        tokens: (m,), int64.
        observed: (m,), bool, which of them a tool wrote.
        stopped: whether the row stands before a token that only Python knows.
    """

    tokens: np.ndarray
    observed: np.ndarray
    stopped: bool


class FreeRuns:
    """Lets rows write whose only tool is a pointer memory.

    Args:
        protocol: of the rows.
        tool: its only tool.
        vocabulary: how many tokens the model has.
    """

    def __init__(self, protocol: TokenProtocol, tool: PointerMemory, vocabulary: int) -> None:
        self._protocol = protocol
        self._max_pointers = tool.max_pointers
        self._actions = np.full((vocabulary, 2), (WRITE, 0), np.int64)
        self._actions[[end for end in protocol.ends if end is not None and 0 <= end < vocabulary], 0] = STOP
        for text, (move, pointer) in tool.actions.items():
            self._actions[protocol.ids[text]] = _ACTIONS[move], pointer
        self._actions[protocol.ids[NEW_POINTER], 0] = CREATE
        self._markers = np.array([protocol.ids[MEMORY_BEGIN], protocol.ids[MEMORY_END]], np.int64)

    def write(self, decoder: FusedDecoder, rows: Sequence[Row], left: Sequence[int]) -> list[FreeRun]:
        """Moves the rows, their tools and the decoder on.

        Args:
            decoder: holds these rows, in this order.
            rows: neither finished nor waiting for a call.
            left: how many tokens each may take at most.
        """
        limits = np.minimum(np.array(left, np.int64), max(1, LONGEST // len(rows)))
        shape = (len(rows), int(limits.max()))
        ids, observed, given = np.zeros(shape, np.int64), np.zeros(shape, np.bool_), np.zeros(len(rows), np.int64)
        for b, row in enumerate(rows):
            given[b] = size = min(len(row.pending), limits[b])
            ids[b, :size], observed[b, :size] = [row.pending.popleft() for _ in range(size)], True
        tapes = self._tapes(rows, shape)
        fed = decoder.write(ids, observed, given, limits, tapes)
        for b, row in enumerate(rows):
            self._carry_over(tapes, b, row)
        return [FreeRun(ids[b, :n], observed[b, :n], bool(n < limits[b])) for b, n in enumerate(fed)]

    def _tapes(self, rows: Sequence[Row], shape: tuple[int, int]) -> PointerTapes:
        sessions = [_memory(row) for row in rows]
        places = np.array([session.place() for session in sessions], np.int64)
        pointers = np.zeros((len(rows), self._max_pointers), np.int64)
        for b, session in enumerate(sessions):
            pointers[b, : len(session.pointers)] = session.pointers
        return PointerTapes(
            actions=self._actions,
            markers=self._markers,
            addresses=places[:, 0].copy(),
            sizes=places[:, 1].copy(),
            pointers=pointers,
            created=np.array([len(session.pointers) for session in sessions], np.int64),
            waiting=np.full(len(rows), -1, np.int64),
            written=np.empty(shape, np.int64),
            counts=np.zeros(len(rows), np.int64),
            calls=np.zeros(len(rows), np.int64),
        )

    def _carry_over(self, tapes: PointerTapes, b: int, row: Row) -> None:
        """Brings a row to where its run ended."""
        session = _memory(row)
        written = tapes.written[b, : tapes.counts[b]].tolist()
        session.extend(written)
        session.pointers = tapes.pointers[b, : tapes.created[b]].tolist()
        row.tool_calls += int(tapes.calls[b])
        if tapes.waiting[b] >= 0:
            row.pending.append(int(tapes.waiting[b]))
        if row.answering:
            row.answer.extend(written)
        elif self._protocol.answer in written:
            row.answering = True
            row.answer.extend(written[written.index(self._protocol.answer) + 1 :])


def make_free_runs(decoder: Decoder, protocol: TokenProtocol) -> FreeRuns | None:
    """For a model that one compiled call steps, and the pointer memory itself as the only tool; otherwise none."""
    if not isinstance(decoder, FusedDecoder) or [type(tool) for tool in protocol.tools] != [PointerMemory]:
        return None
    (tool,) = protocol.tools
    assert isinstance(tool, PointerMemory)
    return FreeRuns(protocol, tool, decoder.vocabulary)


def _memory(row: Row) -> PointerSession[int]:
    (session,) = row.sessions
    assert isinstance(session, PointerSession)
    return session
