"""Times, peaks of memory and the machine's bounds, measured in one process and interleaved.

Another program or a warmer CPU slows whatever happens to run: contenders therefore take turns, and the bound that a
figure is compared with is a contender beside it.
"""

import ctypes
import gc
import statistics
import time
from collections.abc import Callable, Mapping
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import torch

from hf_toolssm.evaluation.report import resident_mib

_CLEAR = Path("/proc/self/clear_refs")
_STATUS = Path("/proc/self/status")


@dataclass(frozen=True)
class Contender:
    """Something to be timed.

    Attributes:
        work: timed; takes what `prepare` returns, if there is one.
        repetitions: how often.
        warm_up: whether it runs once before it counts, which compiles kernels and fills caches.
        prepare: runs before every repetition, untimed.
    """

    work: Callable[..., Any]
    repetitions: int
    warm_up: bool = True
    prepare: Callable[[], Any] | None = None

    def run(self) -> float:
        """Seconds of one repetition."""
        arguments = () if self.prepare is None else (self.prepare(),)
        start = time.perf_counter()
        self.work(*arguments)
        return time.perf_counter() - start


@dataclass(frozen=True)
class Timing:
    """A contender's figures.

    Attributes:
        seconds: median of one repetition.
        repetitions: how many were timed.
        peak_mib: most that the process held above what it held before a repetition; None where it cannot be read.
    """

    seconds: float
    repetitions: int
    peak_mib: float | None


def interleave(contenders: Mapping[str, Contender]) -> dict[str, Timing]:
    """Times contenders in turns; one with fewer repetitions drops out of the later rounds.

    Memory is read in a repetition of its own, because it is given back first, and taking it again takes time. Only
    where there is no warm-up, for work that takes long, is the first repetition both.
    """
    seconds: dict[str, list[float]] = {}
    peaks: dict[str, float | None] = {}
    for name, contender in contenders.items():
        if contender.warm_up:
            contender.run()
        reset_peak()
        before = resident_mib()
        first = contender.run()
        peak = peak_mib()
        peaks[name] = None if peak is None else peak - before
        seconds[name] = [] if contender.warm_up else [first]
    for turn in range(max(contender.repetitions for contender in contenders.values())):
        for name, contender in contenders.items():
            if len(seconds[name]) <= turn < contender.repetitions:
                seconds[name].append(contender.run())
    return {name: Timing(statistics.median(seconds[name]), len(seconds[name]), peaks[name]) for name in contenders}


def reset_peak() -> None:
    """Makes `peak_mib` start from what is held now, with freed memory given back first."""
    gc.collect()
    if _CLEAR.exists():
        trim = getattr(ctypes.CDLL(None), "malloc_trim", None)  # glibc only: musl gives memory back by itself
        if trim is not None:
            trim(0)
        _CLEAR.write_text("5", encoding="utf-8")


def peak_mib() -> float | None:
    """Most memory that this process held since `reset_peak`; None on a system that does not say.

    `getrusage` is of no use: a child inherits its parent's peak.
    """
    if not _CLEAR.exists():
        return None
    (line,) = [line for line in _STATUS.read_text(encoding="utf-8").splitlines() if line.startswith("VmHWM")]
    return int(line.split()[1]) / 1024


def in_new_process(function: Callable[..., Any], *arguments: Any) -> Any:
    """What the function returns in an interpreter that has done nothing before."""
    with ProcessPoolExecutor(1, mp_context=get_context("spawn")) as pool:
        return pool.submit(function, *arguments).result()


class MemoryRead:
    """The bandwidth bound: the sum of a float32 tensor that no cache holds.

    Args:
        mib: size of the tensor.
    """

    def __init__(self, mib: int) -> None:
        # Not zeros: untouched zero pages are one page, which comes from the cache.
        self._tensor = torch.ones(mib * 2**18)

    def contender(self, repetitions: int) -> Contender:
        return Contender(self._tensor.sum, repetitions)

    def bytes_per_second(self, timing: Timing) -> float:
        return self._tensor.nbytes / timing.seconds


class MatrixProduct:
    """The arithmetic bound: a product of two square float32 matrices.

    Args:
        size: their rows.
    """

    def __init__(self, size: int) -> None:
        self._matrix = torch.randn(size, size)
        self._product = torch.empty(size, size)

    def contender(self, repetitions: int) -> Contender:
        return Contender(lambda: torch.mm(self._matrix, self._matrix, out=self._product), repetitions)

    def operations_per_second(self, timing: Timing) -> float:
        return 2 * len(self._matrix) ** 3 / timing.seconds


def relative_difference(found: torch.Tensor, expected: torch.Tensor) -> float:
    """The largest difference, relative to the largest value."""
    expected = expected.float()
    return ((found.float() - expected).abs().max() / expected.abs().max()).item()
