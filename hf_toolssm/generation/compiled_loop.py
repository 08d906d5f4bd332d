"""The compiled decode loop: the model and its memory in one compiled call, with no Python per token.

The memory is a pointer memory or a tape. A row goes on greedily until it has taken as many tokens as it may, or stands
before one that only Python knows: the end of the row, a command that the tool refuses, or that makes a tape longer. It
is then exactly where token by token would have brought it.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from hf_toolssm.generation.decoder import Decoder, FusedDecoder
from hf_toolssm.generation.row import Row
from hf_toolssm.generation.token_protocol import TokenProtocol
from hf_toolssm.ops.memory_arrays import CREATE, LEFT, NOTE, OVERWRITE, READ, RIGHT, STOP, WRITE, MemoryArrays
from hf_toolssm.protocol.calls import begin_token
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
from hf_toolssm.tools.tape import (
    TAPE_BEGIN,
    TAPE_END,
    TAPE_LEFT,
    TAPE_READ,
    TAPE_RIGHT,
    Tape,
    TapeSession,
)

LONGEST = 8_192
"""Tokens of a call, all rows together: some hundredths of a second, so that sinks hear and Ctrl-C ends a run."""

_MOVES = {read: READ, left: LEFT, right: RIGHT}


@dataclass
class Run:
    """What one row took.

    Attributes:
        tokens: (m,), int64.
        observed: (m,), bool, which of them a tool wrote.
        stopped: whether the row stands before a token that only Python knows.
    """

    tokens: np.ndarray
    observed: np.ndarray
    stopped: bool


class CompiledLoop:
    """Lets rows write whose only tool is a pointer memory or a tape.

    Args:
        protocol: of the rows.
        tool: its only tool.
        vocabulary: how many tokens the model has.
    """

    def __init__(self, protocol: TokenProtocol, tool: PointerMemory | Tape, vocabulary: int) -> None:
        self._protocol = protocol
        self._max_pointers, written, named, markers = _meaning(tool, protocol.ids)
        self._actions = np.full((vocabulary, 2), (written, 0), np.int64)
        self._actions[[end for end in protocol.ends if end is not None and 0 <= end < vocabulary], 0] = STOP
        for name, action in named.items():
            self._actions[protocol.ids[begin_token(name)]] = action
        self._markers = np.array([protocol.ids[marker] for marker in markers], np.int64)

    def write(self, decoder: FusedDecoder, rows: Sequence[Row], left: Sequence[int]) -> list[Run]:
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
        memories = self._memories(rows, shape)
        fed = decoder.write(ids, observed, given, limits, memories)
        for b, row in enumerate(rows):
            self._carry_over(memories, b, row)
        return [Run(ids[b, :n], observed[b, :n], bool(n < limits[b])) for b, n in enumerate(fed)]

    def _memories(self, rows: Sequence[Row], shape: tuple[int, int]) -> MemoryArrays:
        sessions = [_memory(row) for row in rows]
        places = np.array([session.places() for session in sessions], np.int64)
        stand = [[s.head] if isinstance(s, TapeSession) else s.pointers for s in sessions]
        pointers = np.zeros((len(rows), self._max_pointers), np.int64)
        for b, places_of_row in enumerate(stand):
            pointers[b, : len(places_of_row)] = places_of_row
        return MemoryArrays(
            actions=self._actions,
            markers=self._markers,
            addresses=places[:, :, 0].copy(),
            sizes=places[:, :, 1].copy(),
            pointers=pointers,
            created=np.array([len(places_of_row) for places_of_row in stand], np.int64),
            waiting=np.full(len(rows), -1, np.int64),
            written=np.empty(shape, np.int64),
            counts=np.zeros((len(rows), 2), np.int64),
            calls=np.zeros(len(rows), np.int64),
        )

    def _carry_over(self, memories: MemoryArrays, b: int, row: Row) -> None:
        """Brings a row to where its run ended."""
        session = _memory(row)
        written = memories.written[b, : memories.counts[b, 0]].tolist()
        pointers = memories.pointers[b, : memories.created[b]].tolist()
        if isinstance(session, TapeSession):
            (session.head,) = pointers
        else:
            session.extend(written)
            session.pointers = pointers
        row.tool_calls += int(memories.calls[b])
        if memories.waiting[b] >= 0:
            row.pending.append(int(memories.waiting[b]))
        if row.answering:
            row.answer.extend(written)
        elif self._protocol.answer in written:
            row.answering = True
            row.answer.extend(written[written.index(self._protocol.answer) + 1 :])


def make_compiled_loop(decoder: Decoder, protocol: TokenProtocol) -> CompiledLoop | None:
    """For a model that one compiled call steps, and the pointer memory or the tape itself as the only tool; otherwise
    none."""
    if not isinstance(decoder, FusedDecoder) or len(protocol.tools) != 1:
        return None
    tool = protocol.tools[0].tool
    if type(tool) not in (PointerMemory, Tape):
        return None
    return CompiledLoop(protocol, tool, decoder.vocabulary)


def _meaning(
    tool: PointerMemory | Tape, ids: Mapping[str, int]
) -> tuple[int, int, dict[str, tuple[int, int]], tuple[str, str]]:
    """How many pointers there can be, what a token does that is no call, what each call does, the markers."""
    if isinstance(tool, Tape):
        moves = {TAPE_READ: (READ, 0), TAPE_LEFT: (LEFT, 0), TAPE_RIGHT: (RIGHT, 0)}
        writes = {name: (OVERWRITE, ids[symbol]) for name, symbol in tool.symbols.items()}
        return 1, NOTE, {**moves, **writes}, (TAPE_BEGIN, TAPE_END)
    named = {name: (_MOVES[move], pointer) for name, (move, pointer) in tool.actions.items()}
    return tool.max_pointers, WRITE, {**named, NEW_POINTER: (CREATE, 0)}, (MEMORY_BEGIN, MEMORY_END)


def _memory(row: Row) -> PointerSession[int] | TapeSession[int]:
    (session,) = row.tools
    assert isinstance(session, (PointerSession, TapeSession))
    return session
