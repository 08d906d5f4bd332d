"""The tape's compiled form; see `CompiledTool`. The head is its one pointer."""

from array import array
from collections.abc import Mapping, Sequence

from hf_toolssm.ops.memory_arrays import LEFT, NOTE, OVERWRITE, READ, RIGHT, Places
from hf_toolssm.tools.tape import TAPE_BEGIN, TAPE_END, TAPE_LEFT, TAPE_READ, TAPE_RIGHT, Tape, TapeSession


class CompiledTape:
    otherwise = NOTE
    markers = (TAPE_BEGIN, TAPE_END)
    max_pointers = 1

    def __init__(self, tool: Tape, ids: Mapping[str, int]) -> None:
        moves = {TAPE_READ: (READ, 0), TAPE_LEFT: (LEFT, 0), TAPE_RIGHT: (RIGHT, 0)}
        self.calls = moves | {name: (OVERWRITE, ids[symbol]) for name, symbol in tool.symbols.items()}

    def enter(self, session: TapeSession[int]) -> tuple[Sequence[int], Places]:
        session.own()
        assert isinstance(session.cells, array)
        assert isinstance(session.before, array)
        return [session.head], (session.cells.buffer_info(), session.before.buffer_info())

    def leave(self, session: TapeSession[int], pointers: list[int], written: Sequence[int]) -> None:
        (session.head,) = pointers
