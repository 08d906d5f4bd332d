"""The compiled decode loop: the model and its memory in one compiled call, with no Python per token.

The memory is the only tool, which has a compiled form. A row goes on greedily until it has taken as many tokens as it
may, or stands before one that only Python knows: the end of the row, a call that the tool refuses, or one that makes a
tape longer. It is then exactly where token by token would have brought it.
"""

from collections.abc import Sequence
from importlib import import_module
from importlib.util import find_spec
from typing import Any

import numpy as np

from hf_toolssm.generation.command_row import CommandProtocol, CommandRow
from hf_toolssm.generation.decoder import Decoder, FusedDecoder
from hf_toolssm.generation.events import Run
from hf_toolssm.generation.row import Row
from hf_toolssm.generation.token_protocol import TokenProtocol
from hf_toolssm.ops.memory_arrays import STOP, CompiledTool, MemoryArrays
from hf_toolssm.protocol.calls import begin_token
from hf_toolssm.protocol.trajectory import Writer

LONGEST = 8_192
"""Tokens of a call, all rows together: some hundredths of a second, so that sinks hear and Ctrl-C ends a run."""


class CompiledLoop:
    """Lets rows write whose only tool has a compiled form.

    Args:
        protocol: of the rows.
        tool: the form of its only tool.
        vocabulary: how many tokens the model has.
    """

    def __init__(self, protocol: CommandProtocol, tool: CompiledTool, vocabulary: int) -> None:
        self._protocol = protocol
        self._tool = tool
        self._actions = np.full((vocabulary, 2), (tool.otherwise, 0), np.int64)
        self._actions[[end for end in protocol.ends if end is not None and 0 <= end < vocabulary], 0] = STOP
        for name, action in tool.calls.items():
            self._actions[protocol.ids[begin_token(name)]] = action
        self._markers = np.array([protocol.ids[marker] for marker in tool.markers[:2]], np.int64)

    def write(self, decoder: FusedDecoder, rows: Sequence[Any], left: Sequence[int]) -> tuple[list[Run], bool]:
        """Moves the rows, their tools and the decoder on; also says if one stands before what only Python knows.

        Args:
            decoder: holds these rows, in this order.
            rows: neither finished nor waiting for a call.
            left: how many tokens each may take at most.
        """
        limits = np.minimum(np.array(left, np.int64), max(1, LONGEST // len(rows)))
        shape = (len(rows), int(limits.max()))
        ids, observed, given = np.zeros(shape, np.int64), np.zeros(shape, np.bool_), np.zeros(len(rows), np.int64)
        by = []
        for b, row in enumerate(rows):
            given[b] = size = min(len(row.pending), limits[b])
            ids[b, :size], observed[b, :size] = [row.pending.popleft() for _ in range(size)], True
            by.append(row.took(size, len(row.pending)))
        memories = self._memories(rows, shape)
        fed = decoder.write(ids, observed, given, limits, memories)
        writers = np.where(observed, Writer.TOOL, Writer.MODEL).astype(np.uint8)
        runs = []
        for b, row in enumerate(rows):
            self._carry_over(memories, b, row)
            runs.append(Run(ids[b, : fed[b]].tolist(), by[b] + writers[b, given[b] : fed[b]].tobytes()))
        return runs, bool((fed < limits).any())

    def _memories(self, rows: Sequence[Row], shape: tuple[int, int]) -> MemoryArrays:
        stand, lie = zip(*(self._tool.enter(*row.tools) for row in rows))
        places = np.array(lie, np.int64)
        pointers = np.zeros((len(rows), self._tool.max_pointers), np.int64)
        for b, pointers_of_row in enumerate(stand):
            pointers[b, : len(pointers_of_row)] = pointers_of_row
        return MemoryArrays(
            actions=self._actions,
            markers=self._markers,
            addresses=places[:, :, 0].copy(),
            sizes=places[:, :, 1].copy(),
            pointers=pointers,
            created=np.array([*map(len, stand)], np.int64),
            waiting=np.full(len(rows), -1, np.int64),
            written=np.empty(shape, np.int64),
            counts=np.zeros((len(rows), 2), np.int64),
            calls=np.zeros(len(rows), np.int64),
        )

    def _carry_over(self, memories: MemoryArrays, b: int, row: CommandRow) -> None:
        """Brings a row to where its run ended."""
        written = memories.written[b, : memories.counts[b, 0]].tolist()
        (session,) = row.tools
        self._tool.leave(session, memories.pointers[b, : memories.created[b]].tolist(), written)
        row.tool_calls += int(memories.calls[b])
        if memories.waiting[b] >= 0:
            row.pending.append(int(memories.waiting[b]))
        if row.answering:
            row.answer.extend(written)
        elif self._protocol.answer in written:
            row.answering = True
            row.answer.extend(written[written.index(self._protocol.answer) + 1 :])


def make_compiled_loop(decoder: Decoder, protocol: TokenProtocol) -> CompiledLoop | None:
    """For a model that one compiled call steps, and a single tool that has a compiled form; otherwise none."""
    if not isinstance(decoder, FusedDecoder) or not isinstance(protocol, CommandProtocol) or len(protocol.tools) != 1:
        return None
    tool = protocol.tools[0].tool
    form = _compiled_form(type(tool))
    return None if form is None else CompiledLoop(protocol, form(tool, protocol.ids), decoder.vocabulary)


def _compiled_form(tool: type) -> Any:
    """The class in `ops/compiled_*.py` for a tool's; a tool of the user's has none, whatever it inherits."""
    package, _, name = tool.__module__.rpartition(".")
    module = f"hf_toolssm.ops.compiled_{name}"
    if package != "hf_toolssm.tools" or find_spec(module) is None:
        return None
    return getattr(import_module(module), f"Compiled{tool.__name__}")
