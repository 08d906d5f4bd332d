"""What the compiled CPU kernels share: how numba compiles and runs them, and an exponential that vectorizes."""

import threading
import types
from collections.abc import Callable
from typing import Any

import llvmlite.ir
import numba
import numpy as np
import torch
from numba.core import types as numba_types
from numba.extending import intrinsic
from torch import Tensor

from hf_toolssm.ops.kernel_cache import keep_on_disk
from hf_toolssm.ops.lanes import FAST, at_least, magnitude, times_power_of_two, truncated, where_nonnegative
from hf_toolssm.sources import digest

_OPTIONS = {"fastmath": set(FAST), "error_model": "numpy"}

inlined = numba.njit(inline="always", **_OPTIONS)
"""Compiles a function into every kernel that calls it."""

called = numba.njit(nogil=True, **_OPTIONS)
"""Compiles a function by itself, for the body of a parallel loop: inside one, its loops would not vectorize."""


class CpuKernel:
    """A kernel in two compilations: for one thread, and with its `numba.prange` loop shared out among all.

    Both are compiled on first use and kept on disk. Threads of Python take turns in the parallel one: each call uses
    all cores anyway, and one of numba's threading layers ends the process when two calls meet.

    Args:
        function: plain Python over arrays, with one `numba.prange` loop.
        parallel_from: the work, in the caller's unit, from which waking the other threads pays.
    """

    def __init__(self, function: Callable[..., None], parallel_from: int) -> None:
        # numba's cache tells kernels apart by name, not by option: under one name either would load the other's code.
        twin = types.FunctionType(function.__code__, function.__globals__)
        twin.__qualname__ = f"{function.__qualname__}_parallel"
        self._serial = numba.njit(nogil=True, **_OPTIONS)(function)
        self._parallel = numba.njit(nogil=True, parallel=True, **_OPTIONS)(twin)
        self._parallel_from = parallel_from
        self._kept = False
        # The functions are those that were read just now: a change of the source from here on is not theirs.
        digest(function.__module__)

    def __call__(self, work: int, *arguments: Any) -> None:
        """Runs the kernel, whose work decides how many threads take part."""
        if not self._kept:  # not at import, which writes nothing
            keep_on_disk(self._serial)
            keep_on_disk(self._parallel)
            self._kept = True
        if work < self._parallel_from or _share_threads() == 1:
            self._serial(*arguments)
        else:
            with _TURN:
                self._parallel(*arguments)


_TURN = threading.Lock()


def _share_threads() -> int:
    """Lets numba's threads follow torch's setting, so that one knob governs both; returns how many there are."""
    wanted = torch.get_num_threads()
    threads = min(wanted, numba.config.NUMBA_NUM_THREADS)
    if threads > 1:
        numba.set_num_threads(threads)
        if torch.get_num_threads() != wanted:  # numba starts its threads by a setting of OpenMP that is torch's too
            torch.set_num_threads(wanted)
    return threads


def row_lengths(lengths: Tensor | None, batch: int, length: int) -> Tensor:
    """How many tokens of each row are real (b,), int64, as the kernels take them; None is all."""
    return torch.full((batch,), length, device="cpu") if lengths is None else lengths.to(torch.int64).contiguous()


def flat_rows(tensor: Tensor) -> tuple[np.ndarray, int]:
    """A tensor (b, l, w) as one flat array in which row (b, l) starts at (b * length + l) * stride; and that stride.

    A view whose rows lie evenly apart, such as half of a projection's output, is not copied. Flat, because numba
    compiles one kernel for all such arrays and knows that a row's elements are neighbours.
    """
    tensor = tensor.detach()
    batch, length, width = tensor.shape
    stride = tensor.stride(1) if length > 1 else tensor.stride(0) if batch > 1 else width
    even = (width == 1 or tensor.stride(2) == 1) and (batch == 1 or tensor.stride(0) == length * stride)
    if not even or stride < width:
        tensor, stride = tensor.contiguous(), width
    if tensor.numel() == 0:
        return np.empty(0, np.float32), stride
    return tensor.as_strided(((batch * length - 1) * stride + width,), (1,)).numpy(), stride


def flat(tensor: Tensor) -> np.ndarray:
    """A contiguous tensor as one flat array, in its own memory."""
    return tensor.detach().numpy().reshape(-1)


@inlined
def count_blocks(total, size):
    """How many blocks of that size cover the total."""
    return (total + size - 1) // size


@inlined
def clear(target, at, width):
    """target[at : at + width] = 0"""
    # Slices first and then counts from 0: numba would check every other index for being negative, one by one.
    part = target[at : at + width]
    for d in range(width):
        part[d] = np.float32(0.0)


@intrinsic
def loaded(typing_context, address, index):
    """The int64 at that index of an array whose first element lies at that address; nothing is checked."""

    def generate(context, builder, signature, arguments):
        first = builder.inttoptr(arguments[0], llvmlite.ir.IntType(64).as_pointer())
        return builder.load(builder.gep(first, [arguments[1]]))

    return numba_types.int64(numba_types.int64, numba_types.int64), generate


@intrinsic
def stored(typing_context, address, index, value):
    """Writes an int64 at that index of an array whose first element lies at that address; nothing is checked."""

    def generate(context, builder, signature, arguments):
        first = builder.inttoptr(arguments[0], llvmlite.ir.IntType(64).as_pointer())
        builder.store(arguments[2], builder.gep(first, [arguments[1]]))
        return context.get_dummy_value()

    return numba_types.void(numba_types.int64, numba_types.int64, numba_types.int64), generate


LOG2E = np.float32(1.4426950408889634)


@inlined
def exp2_of_nonpositive(value):
    """2**value for values of at most 0, in float32, relative error about 2e-7; below -125 it stays at 2**-125."""
    value = at_least(value, np.float32(-125.0))
    whole = truncated(value - np.float32(0.5))  # the nearest whole number
    f = value - whole
    # The polynomial of degree 5 closest to 2**f on [-0.5, 0.5] in relative error (Remez), exact at 0: an exact
    # zero leaves what it multiplies as it is.
    p = np.float32(0.0013264727206521339) * f + np.float32(0.009671512650097698)
    p = p * f + np.float32(0.055507337433247206)
    p = p * f + np.float32(0.24022242085215675)
    p = p * f + np.float32(0.6931469775990667)
    p = p * f + np.float32(1.0)
    return times_power_of_two(p, whole)


@inlined
def exp_of_nonpositive(value):
    """exp for values of at most 0, in float32, relative error about 2e-7 near 0; below -86.6 it stays at 2**-125."""
    return exp2_of_nonpositive(value * LOG2E)


@inlined
def sigmoid(value):
    """1 / (1 + exp(-value)) in float32; never overflows."""
    small = exp_of_nonpositive(np.float32(-1.0) * magnitude(value))
    inverse = np.float32(1.0) / (np.float32(1.0) + small)
    return where_nonnegative(value, inverse, small * inverse)


@inlined
def silu_slope(value):
    """The derivative of value * sigmoid(value) in float32."""
    small = exp_of_nonpositive(np.float32(-1.0) * magnitude(value))
    inverse = np.float32(1.0) / (np.float32(1.0) + small)
    # Not as 1 - opened, whose rounding a large value would magnify.
    opened = where_nonnegative(value, inverse, small * inverse)
    closed = where_nonnegative(value, small * inverse, inverse)
    return opened * (np.float32(1.0) + value * closed)


@inlined
def softplus(value):
    """log(1 + exp(value)) in float32, exact to about 2e-7 for any value; unlike `log1p`, it vectorizes."""
    small = exp_of_nonpositive(np.float32(-1.0) * magnitude(value))
    # log(1 + u) = 2 artanh(u / (2 + u)), whose argument is at most 1/3: the series to the fifteenth power.
    s = small / (np.float32(2.0) + small)
    t = s * s
    p = np.float32(1 / 15) * t + np.float32(1 / 13)
    p = p * t + np.float32(1 / 11)
    p = p * t + np.float32(1 / 9)
    p = p * t + np.float32(1 / 7)
    p = p * t + np.float32(1 / 5)
    p = p * t + np.float32(1 / 3)
    p = p * t + np.float32(1.0)
    return at_least(value, np.float32(0.0)) + np.float32(2.0) * s * p


@intrinsic
def widened(typing_context, weight):
    """A weight as float32: a float32 as it is, an int8's value, or the bfloat16 whose bit pattern is a uint16."""

    def generate(context, builder, signature, arguments):
        (value,) = arguments
        if weight == numba_types.float32:
            return value
        if weight == numba_types.int8:
            return builder.sitofp(value, llvmlite.ir.FloatType())
        word = llvmlite.ir.IntType(32)
        bits = builder.shl(builder.zext(value, word), llvmlite.ir.Constant(word, 16))
        return builder.bitcast(bits, llvmlite.ir.FloatType())

    if weight in (numba_types.float32, numba_types.int8, numba_types.uint16):
        return numba_types.float32(weight), generate
    return None


@called
def normalize(values, weight, epsilon, out):
    """out becomes the RMS norm of values, times the weight; all (e,)."""
    total = np.float32(0.0)
    for i in range(values.shape[0]):
        total += values[i] * values[i]
    factor = np.float32(1.0) / np.sqrt(total / np.float32(values.shape[0]) + np.float32(epsilon))
    for i in range(values.shape[0]):
        out[i] = values[i] * factor * weight[i]


def float32_array(tensor: torch.Tensor) -> np.ndarray:
    """The values of a tensor in float32, in its own memory if it is float32 already."""
    return tensor.detach().float().numpy()
