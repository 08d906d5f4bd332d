"""What the compiled CPU kernels share: how numba compiles and runs them, and an exponential that vectorizes."""

import types
from collections.abc import Callable
from typing import Any

import llvmlite.ir
import numba
import numpy as np
import torch
from numba.core import types as numba_types
from numba.extending import intrinsic

_OPTIONS = {"fastmath": True, "error_model": "numpy"}

inlined = numba.njit(inline="always", **_OPTIONS)
"""Compiles a function into every kernel that calls it."""


class CpuKernel:
    """A kernel in two compilations: for one thread, and with its `numba.prange` loop shared out among all.

    Both are compiled on first use and cached on disk.

    Args:
        function: plain Python over arrays, with one `numba.prange` loop.
        parallel_from: the work, in the caller's unit, from which waking the other threads pays.
    """

    def __init__(self, function: Callable[..., None], parallel_from: int) -> None:
        # numba's cache tells kernels apart by name, not by option: under one name either would load the other's code.
        twin = types.FunctionType(function.__code__, function.__globals__)
        twin.__qualname__ = f"{function.__qualname__}_parallel"
        self._serial = numba.njit(cache=True, nogil=True, **_OPTIONS)(function)
        self._parallel = numba.njit(cache=True, nogil=True, parallel=True, **_OPTIONS)(twin)
        self._parallel_from = parallel_from

    def __call__(self, work: int, *arguments: Any) -> None:
        """Runs the kernel, whose work decides how many threads take part."""
        alone = work < self._parallel_from or _share_threads() == 1
        (self._serial if alone else self._parallel)(*arguments)


def _share_threads() -> int:
    """Lets numba's threads follow torch's setting, so that one knob governs both; returns how many there are."""
    threads = min(torch.get_num_threads(), numba.config.NUMBA_NUM_THREADS)
    numba.set_num_threads(threads)
    return threads


@intrinsic
def _float_of_bits(typing_context, bits):
    """The float32 whose bit pattern is an int32."""

    def generate(context, builder, signature, arguments):
        return builder.bitcast(arguments[0], llvmlite.ir.FloatType())

    return numba_types.float32(numba_types.int32), generate


_LOG2E = np.float32(1.4426950408889634)


@inlined
def exp_of_nonpositive(value):
    """exp for values of at most 0, in float32, relative error about 2e-7; below -87 it stays at exp(-87)."""
    scaled = max(value, np.float32(-87.0)) * _LOG2E
    whole = np.floor(scaled + np.float32(0.5))
    f = scaled - whole
    # The Taylor series of 2**f on [-0.5, 0.5], to the seventh order.
    p = np.float32(1.5252733804059838e-05)
    p = p * f + np.float32(0.00015403530393381606)
    p = p * f + np.float32(0.0013333558146428443)
    p = p * f + np.float32(0.009618129107628477)
    p = p * f + np.float32(0.05550410866482158)
    p = p * f + np.float32(0.2402265069591007)
    p = p * f + np.float32(0.6931471805599453)
    p = p * f + np.float32(1.0)
    return p * _float_of_bits((np.int32(whole) + np.int32(127)) << np.int32(23))
