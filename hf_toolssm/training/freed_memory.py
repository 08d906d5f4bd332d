"""Keeps the memory that a training step frees for the next one."""

import ctypes
import platform

_TRIM_THRESHOLD, _MMAP_THRESHOLD = -1, -3
"""Parameters of `mallopt`, from glibc's malloc.h."""

_LARGEST_KEPT = 32 * 2**20
"""Bytes of the largest block that glibc can be told to keep; larger ones go back to the system when freed."""

_NEVER = 2**31 - 1


def keep_freed_memory() -> None:
    """Tells the allocator of this process to keep freed memory, of which a step on a CPU frees all it took.

    By itself glibc gives it back, and the system clears every page again in the next step, which takes a small model
    a fifth of its time. The process then holds what its largest step needed until it ends. Other systems' allocators
    are left as they are.
    """
    if platform.libc_ver()[0] == "glibc":
        mallopt = ctypes.CDLL(None).mallopt
        mallopt(_MMAP_THRESHOLD, _LARGEST_KEPT)
        mallopt(_TRIM_THRESHOLD, _NEVER)
