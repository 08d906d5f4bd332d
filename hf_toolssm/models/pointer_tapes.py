"""The pointer memory as arrays, so that a compiled kernel carries out its commands between two steps of a model.

What the commands mean is defined by `hf_toolssm.tools.pointer_memory`; here is the same, for many rows and without an
object per cell. Whatever that tool would refuse is left to it: the kernel stops before the token.
"""

from dataclasses import dataclass

import numpy as np

from hf_toolssm.models.cpu_kernels import inlined, loaded

WRITE, READ, LEFT, RIGHT, CREATE, STOP = range(6)
"""What a token does that the model writes; STOP is for all that a kernel knows nothing of."""


@dataclass
class PointerTapes:
    """The memories and pointers of b rows that each write up to m tokens.

    Attributes:
        actions: (v, 2), what each token does, and with which pointer.
        markers: (2,), the tokens of the memory's begin and end.
        addresses: (b,), where the cells of each memory lie, int64 one after the other.
        sizes: (b,), how many these are; what is written in the run follows in `written`.
        pointers: (b, p), where each pointer of at most p stands.
        created: (b,), how many pointers there are.
        waiting: (b,), an observation that is still to be fed, or -1.
        written: (b, m), the cells that the model wrote in the run.
        counts: (b,), how many.
        calls: (b,), how many commands were carried out in the run.
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

    @classmethod
    def none(cls) -> "PointerTapes":
        """For rows that write no token by themselves."""
        empty, table = np.empty(0, np.int64), np.empty((0, 0), np.int64)
        return cls(table, empty, empty, empty, table, empty, empty, table, empty, empty)

    def arrays(self) -> tuple[np.ndarray, ...]:
        """The attributes in order, as the kernels take them."""
        return tuple(vars(self).values())


@inlined
def carry_out(
    token, b, actions, markers, addresses, sizes, pointers, created, waiting, written, counts, calls
):  # fmt: skip
    """Does in row b what the model's token does; false if the kernel must stop before it."""
    action, pointer = actions[token, 0], actions[token, 1]
    if action == STOP:
        return False
    if action == WRITE:
        written[b, counts[b]] = token
        counts[b] += 1
        return True
    if action == CREATE:
        if created[b] == pointers.shape[1]:
            return False
        pointers[b, created[b]] = 0
        created[b] += 1
    elif pointer >= created[b]:
        return False
    else:
        at, end = pointers[b, pointer], sizes[b] + counts[b]
        if action == LEFT:
            pointers[b, pointer] = max(at - 1, -1)
        elif action == RIGHT:
            pointers[b, pointer] = min(at + 1, end)
        elif at < 0:
            waiting[b] = markers[0]
        elif at == end:
            waiting[b] = markers[1]
        elif at < sizes[b]:
            waiting[b] = loaded(addresses[b], at)
        else:
            waiting[b] = written[b, at - sizes[b]]
    calls[b] += 1
    return True
