"""The pointer memory's compiled form; see `CompiledTool`."""

from array import array
from collections.abc import Mapping, Sequence

from hf_toolssm.ops.memory_arrays import CREATE, LEFT, READ, RIGHT, WRITE, Places
from hf_toolssm.tools.pointer_memory import NEW_POINTER, PointerMemory, PointerSession, left, read, right

_ACTIONS = {read: READ, left: LEFT, right: RIGHT}


class CompiledPointerMemory:
    otherwise = WRITE

    def __init__(self, tool: PointerMemory, ids: Mapping[str, int]) -> None:
        named = {name: (_ACTIONS[move], pointer) for name, (move, pointer) in tool.actions.items()}
        self.calls = {**named, NEW_POINTER: (CREATE, 0)}
        self.markers = tool.markers
        self.max_pointers = tool.max_pointers

    def enter(self, session: PointerSession[int]) -> tuple[Sequence[int], Places]:
        assert isinstance(session.cells, array)
        return session.pointers, ((session.cells.buffer_info()[0], session.size), (0, 0))

    def leave(self, session: PointerSession[int], pointers: list[int], written: Sequence[int]) -> None:
        session.extend(written)
        session.pointers = pointers
