"""Tools over memories of cells as arrays, so that a compiled kernel carries out calls between two steps of a model.

What the calls mean is defined in `hf_toolssm.tools`, by `pointer_memory`, `tape` and `pointer_store`; here the same is
for many rows and without an object per cell. Whatever those tools would refuse is left to them, as are a tape that
grows and what a store holds: the kernel stops before the token.

A tool in `tools/NAME.py` that has a compiled form has it in `ops/compiled_NAME.py`, which is found by that name.
"""

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple, Protocol

import numpy as np

from hf_toolssm.errors import InputMismatchError
from hf_toolssm.ops.checks import check_arrays
from hf_toolssm.ops.cpu_kernels import inlined, loaded, stored

WRITE, NOTE, READ, LEFT, RIGHT, STEP, CREATE, OVERWRITE, TAKE, STOP = range(10)
"""What a token does that the model writes: it enters memory, or is only a thought; it is a call of the pointer that
stands beside it, where STEP goes to the right and reads; it overwrites the cell under the first pointer by the token
beside it, or notes what stands beside it for that cell, and steps; STOP is for all that a kernel knows nothing of."""


Places = tuple[tuple[int, int], tuple[int, int]]
"""Where the cells from 0 on lie in this process's memory, 8 bytes each, until the tool is called next, and how many
they are; and the same of those to the left of 0, nearest first. Where calls take cells there are none of these, and in
their place lies what is noted of the first."""


class CompiledTool(Protocol):
    """What a tool is to a kernel, and how what it remembers of cells that are token ids enters the arrays.

    Attributes:
        calls: what each call does, and the pointer or token that it names.
        otherwise: what any other token does, WRITE or NOTE.
        markers: of the memory's begin and end; others may follow.
        max_pointers: how many pointers there can be.
    """

    calls: Mapping[str, tuple[int, int]]
    otherwise: int
    markers: Sequence[str]
    max_pointers: int

    def enter(self, session: Any) -> tuple[Sequence[int], Places]:
        """Where the pointers stand, and where the cells lie."""

    def leave(self, session: Any, pointers: list[int], written: Sequence[int]) -> None:
        """Brings the session to where a run ended, in which the model wrote these cells."""


class MemoryArrays(NamedTuple):
    """The memories and pointers of b rows that each write up to m tokens. A tape's head is a pointer.

    Attributes:
        actions: (v, 2), what each token does, and the pointer or token that it names.
        markers: (2,), the tokens of the memory's begin and end.
        addresses: (b, 2), where the cells of each memory lie; see `Places`.
        sizes: (b, 2), how many these are; what enters memory in the run follows the first in `written`.
        pointers: (b, p), where each pointer of at most p stands.
        created: (b,), how many pointers there are.
        waiting: (b,), an observation that is still to be fed, or -1.
        written: (b, m), the cells that the model wrote in the run.
        counts: (b, 2), how many, and how many of them entered memory: all or none.
        calls: (b,), how many calls were carried out in the run.
    """

    actions: np.ndarray
    markers: np.ndarray
    addresses: np.ndarray
    sizes: np.ndarray
    pointers: np.ndarray
    created: np.ndarray
    waiting: np.ndarray
    written: np.ndarray
    counts: np.ndarray
    calls: np.ndarray

    def check(self, rows: int, most: int, vocabulary: int) -> None:
        """Finds what a kernel, which checks nothing, would stumble over.

        Args:
            rows: b.
            most: m.
            vocabulary: v.

        Raises:
            InputMismatchError: an array has another size or type, or a pointer stands outside its memory.
        """
        most_pointers = self.pointers.shape[-1]
        check_arrays(
            "MemoryArrays",
            actions=(self.actions, (vocabulary, 2), np.int64),
            markers=(self.markers, (2,), np.int64),
            addresses=(self.addresses, (rows, 2), np.int64),
            sizes=(self.sizes, (rows, 2), np.int64),
            pointers=(self.pointers, (rows, most_pointers), np.int64),
            created=(self.created, (rows,), np.int64),
            waiting=(self.waiting, (rows,), np.int64),
            written=(self.written, (rows, most), np.int64),
            counts=(self.counts, (rows, 2), np.int64),
            calls=(self.calls, (rows,), np.int64),
        )
        kinds, names = self.actions[:, 0], self.actions[:, 1]
        if kinds.min(initial=0) < 0 or kinds.max(initial=0) > STOP or names.min(initial=0) < 0:
            raise InputMismatchError("MemoryArrays takes actions that exist, of pointers and tokens counted from 0")
        if self.sizes.min(initial=0) < 0 or (self.sizes > 0)[self.addresses == 0].any() or self.counts.any():
            raise InputMismatchError("MemoryArrays takes memories that lie somewhere, and counts that begin at 0")
        inside = (self.pointers >= -1 - self.sizes[:, 1:]) & (self.pointers <= self.sizes[:, :1])
        if not inside.all() or self.created.min(initial=0) < 0 or self.created.max(initial=0) > most_pointers:
            raise InputMismatchError("a pointer stands outside its memory: a tool's session was changed from outside")


_EMPTY, _TABLE = np.empty(0, np.int64), np.empty((0, 0), np.int64)
NO_MEMORIES = MemoryArrays(_TABLE, _EMPTY, _TABLE, _TABLE, _TABLE, _EMPTY, _EMPTY, _TABLE, _TABLE, _EMPTY)
"""For rows that write no token by themselves."""


@inlined
def carry_out(token, b, memories):
    """Does in row b what the model's token does; false if the kernel must stop before it."""
    sizes, pointers, created, counts = memories.sizes, memories.pointers, memories.created, memories.counts
    waiting, written, addresses = memories.waiting, memories.written, memories.addresses
    action, named = memories.actions[token, 0], memories.actions[token, 1]
    if action == STOP:
        return False
    if action <= NOTE:
        written[b, counts[b, 0]] = token
        counts[b, 0] += 1
        if action == WRITE:
            counts[b, 1] += 1
        return True
    if action == CREATE:
        if created[b] == pointers.shape[1]:
            return False
        pointers[b, created[b]] = 0
        created[b] += 1
    elif action == OVERWRITE:
        at = pointers[b, 0]
        if at >= sizes[b, 0] or at < -sizes[b, 1]:
            return False
        if at >= 0:
            stored(addresses[b, 0], at, named)
        else:
            stored(addresses[b, 1], -1 - at, named)
    else:
        pointer = 0 if action == TAKE else named
        if pointer >= created[b]:
            return False
        at, begin, end = pointers[b, pointer], -1 - sizes[b, 1], sizes[b, 0] + counts[b, 1]
        if action == TAKE:
            if at < 0 or at >= sizes[b, 0]:
                return False
            stored(addresses[b, 1], at, named)
        if action in (STEP, TAKE):
            at = min(at + 1, end)
            pointers[b, pointer] = at
        if action == LEFT:
            pointers[b, pointer] = max(at - 1, begin)
        elif action == RIGHT:
            pointers[b, pointer] = min(at + 1, end)
        elif at == begin:
            waiting[b] = memories.markers[0]
        elif at == end:
            waiting[b] = memories.markers[1]
        elif at < 0:
            waiting[b] = loaded(addresses[b, 1], -1 - at)
        elif at < sizes[b, 0]:
            waiting[b] = loaded(addresses[b, 0], at)
        else:
            waiting[b] = written[b, at - sizes[b, 0]]
    memories.calls[b] += 1
    return True
