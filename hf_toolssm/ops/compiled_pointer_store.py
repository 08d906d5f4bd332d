"""The compiled form of a pointer store's moves; see `CompiledTool`. What it holds is left to the tool."""

from array import array
from collections.abc import Mapping, Sequence

from hf_toolssm.ops.memory_arrays import STEP, STOP, TAKE, WRITE, Places
from hf_toolssm.tools.pointer_store import MOVES, TEXT_END, PointerStore, StoreSession


class CompiledPointerStore:
    otherwise = WRITE
    markers = (TEXT_END, TEXT_END)  # nothing is ever shown before the first cell
    max_pointers = 1

    def __init__(self, tool: PointerStore, ids: Mapping[str, int]) -> None:
        left = dict.fromkeys(tool.calls, (STOP, 0))
        self.calls = left | {name: (TAKE, part) if part else (STEP, 0) for name, part in MOVES.items()}

    def enter(self, session: StoreSession[int]) -> tuple[Sequence[int], Places]:
        assert isinstance(session.said, array)
        return [session.at], (session.said.buffer_info(), (session.taken.buffer_info()[0], 0))

    def leave(self, session: StoreSession[int], pointers: list[int], written: Sequence[int]) -> None:
        (session.at,) = pointers
        session.extend(written)
