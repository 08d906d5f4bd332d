"""Sorting of decimal keys with a pointer memory: a radix sort with one pointer for each digit.

Every key has three digits and ends with a comma. Three passes sort by units, tens and hundreds, and every pass keeps
the order of keys that agree in its digit. In a pass the pointers 10 to 19, which look for the digits 0 to 9, go along
the list one after another and copy the keys of their digit behind it. The memory for `735,020,=`, where
spaces are for the eye and `a` marks the answer:

    735,020,=  =x  002,573,  ==y  200,357,  ==a  020,735,

    002,       a key is copied with the digit just compared moved to the front: after three passes it is as it was, and
               the digit to compare is always the last
    =x ==y ==a a list ends with two `=` and a sign of the pass that begins: the step from the last key ends on that
               sign, where the pointer rests, 3 cells in front of the next list's first last digit

Pointer 10 in the first pass:

    new, right 10, right 10, read 10 -> 5                5 is not pointer 10's digit
    right 10 (4 times), read 10 -> 0, think 0            0 is, and is copied first
    left 10, left 10, read 10 -> 0, think 0, right 10, read 10 -> 2, think 2, think ,
    right 10 (5 times), read 10 -> x                     the list has ended

Which pointer moves says which digit is looked for, so the last 5 tokens determine the next one, or 10 while the first
pointers are made. A key is passed 30 times at 6 tokens and copied 3 times at 12 more: 1,000 keys are 216,167 tokens,
and twice as many keys twice as many. The pointers 1 to 9 never move, so that a model of all tasks does not take these
steps for those of another: trained on 6 keys, such a model confused them with a multiplication's by 1,000.
"""

import random
import re
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from typing import Any

from dataset_builders.algorithms.decimal_numbers import DIGITS
from dataset_builders.algorithms.pointer_steps import look, repeat
from dataset_builders.algorithms.sorting_contexts import KEY_DIGITS, RESTING, SIGNS, SortingContexts
from dataset_builders.task import Task, task_tool
from hf_toolssm.errors import InvalidProblemError
from hf_toolssm.protocol.recorder import Recorder
from hf_toolssm.protocol.rule import Rule
from hf_toolssm.protocol.trajectory import Trajectory
from hf_toolssm.tools.pointer_memory import NEW_POINTER, left, right

KEY_CELLS = KEY_DIGITS + 1

_PROBLEM = re.compile(r"([0-9]{3},)+=")


class Sorting(Task):
    """See the module's text. Problems read `735,020,=`; the answer is `020,735,`."""

    title = "Sorting of decimal keys with a pointer memory"
    version = "3"
    variants: Sequence[str] = ("local",)
    adversarial: Sequence[str] = ("sorted", "reversed", "equal_keys", "two_keys", "equal_last_digits")
    unit = "keys"

    def tools(self, variant: str) -> list[dict[str, Any]]:
        return [{"name": "pointer_memory", "max_pointers": RESTING + len(DIGITS)}]

    def cells(self, variant: str) -> Sequence[str]:
        return (*DIGITS, ",", "=", *SIGNS[:-1])

    def rule(self, variant: str) -> Rule:
        """The keys may be any."""
        self.check_variant(variant)
        return SortingContexts()

    def sample_test(self, rng: random.Random, length: int) -> str:
        return _problem(_key(rng) for _ in range(length))

    def sample_adversarial(self, name: str, rng: random.Random, length: int, index: int) -> str:
        if name in ("sorted", "reversed"):
            return _problem(sorted((_key(rng) for _ in range(length)), reverse=name == "reversed"))
        if name == "equal_keys":
            return _problem([_key(rng)] * length)
        if name == "two_keys":
            keys = [_key(rng), _key(rng)]
            return _problem(rng.choice(keys) for _ in range(length))
        if name == "equal_last_digits":  # the first pass keeps the order, and nine of its pointers find nothing
            end = rng.choice(DIGITS)
            return _problem(_key(rng)[:-1] + end for _ in range(length))
        raise self.unknown_set(name)

    def length(self, problem: str) -> int:
        return problem.count(",")

    def solve(self, problem: str, variant: str) -> Trajectory:
        """Records the algorithm.

        Raises:
            InvalidProblemError: the problem is not keys of three digits, each with a comma behind it, and `=`, or the
                variant does not exist.
            EmptyProblemError: the problem is empty.
        """
        pen = Recorder(problem, task_tool(self, variant))
        _keys(problem)
        for cell in ("=", SIGNS[0]):
            pen.think(cell)
        repeat(pen, NEW_POINTER, RESTING)
        for pointer, digit in enumerate(DIGITS, RESTING + 1):
            pen.call(NEW_POINTER)
            _copy_keys(pen, pointer, digit, KEY_DIGITS - 1, pen.think)
        for sign, write in zip(SIGNS[1:], (pen.think, pen.output)):
            for cell in ("=", "=", sign):
                pen.think(cell)
            for pointer, digit in enumerate(DIGITS, RESTING + 1):
                _copy_keys(pen, pointer, digit, KEY_DIGITS, write)
        return pen.trajectory()

    def answer(self, problem: str, variant: str) -> str:
        # Counting the keys compares none of their digits.
        counts = Counter(_keys(problem))
        return "".join(f"{key:03}," * counts[f"{key:03}"] for key in range(1_000))


def _copy_keys(pen: Recorder, pointer: int, digit: str, to_first: int, write: Callable[[str], None]) -> None:
    """Goes along the last digits of a list, the first one `to_first` cells ahead, and copies that digit's keys."""
    repeat(pen, right(pointer), to_first)
    while (last := look(pen, pointer)) in DIGITS:
        if last == digit:
            write(last)
            repeat(pen, left(pointer), KEY_DIGITS - 1)
            write(look(pen, pointer))
            pen.call(right(pointer))
            write(look(pen, pointer))
            write(",")
            pen.call(right(pointer))
        repeat(pen, right(pointer), KEY_CELLS)


def _problem(keys: Iterable[str]) -> str:
    return "".join(f"{key}," for key in keys) + "="


def _key(rng: random.Random) -> str:
    return f"{rng.randrange(1_000):03}"


def _keys(problem: str) -> list[str]:
    if not _PROBLEM.fullmatch(problem):
        raise InvalidProblemError(
            f"{problem[:60]!r} is no sorting problem: write keys of three digits, each with a comma behind it, and =, "
            "as in 735,020,="
        )
    return problem.rstrip("=").rstrip(",").split(",")
