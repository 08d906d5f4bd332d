"""Addition of two decimal numbers with a pointer memory (PAPER section 4, task 1).

Worked example, `7+5=` in the local variant:

    new 1, read 1 -> 7, right 1, read 1 -> +, left 1            pointer 1 rests on the last digit of the first number
    new 2, read 2 -> 7, right 2 ... read 2 -> =, left 2         pointer 2 rests on the last digit of the second
    read 1 -> 7, read 2 -> 5, think 2, think 1                  a column: sum digit 2, carry 1
    left 1, left 2, read 1 -> begin, read 2 -> +                both numbers are used up
    think 1, think 0, think <|answer|>                          the last carry is one more column
    new 3, read 3 -> 7, right 3 ... read 3 -> <|answer|>        pointer 3 finds the reversed sum
    left 3, read 3 -> 0 (carry), left 3, read 3 -> 1, output 1
    left 3, read 3 -> 1 (carry), left 3, read 3 -> 2, output 2
    left 3, read 3 -> =                                         the end

Variants:
    local: a third pointer copies the sum out, so the last 7 tokens determine the next one.
    two_pointers: the paper's algorithm; pointer 2 copies the sum out, and reading `=` means "go to the last digit"
        early and "stop" late, which no bounded context tells apart.
    no_cot, reversed_answer, plain_cot, calculator: the regimes without interaction, see addition_regimes.py.
"""

import decimal
import random
from collections.abc import Sequence
from typing import Any

from dataset_builders.algorithms.addition_contexts import AdditionContexts
from dataset_builders.algorithms.addition_regimes import (
    CALCULATOR,
    CALCULATOR_TOOL,
    LETTERS,
    PLAIN_COT,
    REGIMES,
    REVERSED_ANSWER,
    answer_at_once,
    call_calculator,
    think_without_tool,
)
from dataset_builders.algorithms.decimal_numbers import DIGITS, number_with_zeros, operands, random_number
from dataset_builders.algorithms.pointer_steps import look, walk, walk_new_pointer
from dataset_builders.task import Task, task_tool
from hf_toolssm.errors import CertificationError, TooFewProblemsError
from hf_toolssm.protocol.recorder import Recorder
from hf_toolssm.protocol.rule import Rule
from hf_toolssm.protocol.trajectory import ANSWER, Trajectory
from hf_toolssm.tools.pointer_memory import left

LOCAL, TWO_POINTERS = "local", "two_pointers"


class Addition(Task):
    """See the module's text. Problems read `98765+4321=`; numbers have no sign and no leading zero."""

    title = "Addition of two decimal numbers with a pointer memory"
    version = "3"
    variants: Sequence[str] = (LOCAL, TWO_POINTERS, *REGIMES)
    adversarial = ("all_carries", "no_carry", "nines_plus_power_of_ten", "zeros_inside", "unequal_lengths")
    unit = "digits"

    def tools(self, variant: str) -> list[dict[str, Any]]:
        if variant in REGIMES:
            return [CALCULATOR_TOOL] if variant == CALCULATOR else []
        return [{"name": "pointer_memory", "max_pointers": 3 if variant == LOCAL else 2}]

    def cells(self, variant: str) -> Sequence[str]:
        return (*DIGITS, "+", "=", *(LETTERS.values() if variant == PLAIN_COT else ()))

    def rule(self, variant: str) -> Rule:
        """That of `local`.

        Raises:
            CertificationError: it is another's.
        """
        if self.check_variant(variant) == TWO_POINTERS:
            raise CertificationError(
                f"{TWO_POINTERS} has no rule of contexts: at '=' nothing but what happened before the last walk says "
                "whether it is the first number's end or the sum's, so k grows; certify the variant local"
            )
        return AdditionContexts() if variant == LOCAL else super().rule(variant)

    def sample_training(self, rng: random.Random, max_length: int) -> str:
        first, second = (random_number(rng, rng.randint(1, max_length)) for _ in range(2))
        return f"{first}+{second}="

    def sample_test(self, rng: random.Random, length: int) -> str:
        return f"{random_number(rng, length)}+{random_number(rng, length)}="

    def sample_adversarial(self, name: str, rng: random.Random, length: int, index: int) -> str:
        if name == "all_carries":  # every column's digits sum to at least 10
            columns = [(a, rng.randint(10 - a, 9)) for a in (rng.randint(1, 9) for _ in range(length))]
            first, second = ("".join(str(column[side]) for column in columns) for side in (0, 1))
        elif name == "no_carry":  # every column's digits sum to at most 9
            lead = rng.randint(1, 8) if length > 1 else rng.randint(0, 9)
            columns = [(lead, rng.randint(min(length - 1, 1), 9 - lead))]
            columns += [(a, rng.randint(0, 9 - a)) for a in (rng.randint(0, 9) for _ in range(length - 1))]
            first, second = ("".join(str(column[side]) for column in columns) for side in (0, 1))
        elif name == "nines_plus_power_of_ten":  # one carry runs on; problem 0 is 99...9+1
            if index >= 2 * length:
                raise TooFewProblemsError(
                    f"nines_plus_power_of_ten has {2 * length} problems of {length} digits: ask for no more"
                )
            first, second = "9" * length, "1" + "0" * (index // 2)
            if index % 2:
                first, second = second, first
        elif name == "zeros_inside":  # long runs of zeros between digits
            first, second = (number_with_zeros(rng, length) for _ in range(2))
        elif name == "unequal_lengths":  # one number is much shorter, often a single digit
            first, second = random_number(rng, length), random_number(rng, rng.randint(1, max(1, length // 10)))
            if rng.random() < 0.5:
                first, second = second, first
        else:
            raise self.unknown_set(name)
        return f"{first}+{second}="

    def held_out(self, problem: str) -> bool:
        first, second = sorted(operands(problem, "addition", "+"), key=lambda number: number.startswith("9"))
        return set(second) == {"9"} and first.rstrip("0") == "1"

    def length(self, problem: str) -> int:
        return max(map(len, operands(problem, "addition", "+")))

    def solve(self, problem: str, variant: str) -> Trajectory:
        """Records the algorithm.

        Raises:
            InvalidProblemError: the problem is not `number+number=`, or the variant does not exist.
            EmptyProblemError: the problem is empty.
        """
        if variant in REGIMES:
            return self._solve_without_interaction(problem, variant)
        pen = Recorder(problem, task_tool(self, variant))
        operands(problem, "addition", "+")
        walk_new_pointer(pen, 1, until="+")
        pen.call(left(1))
        walk_new_pointer(pen, 2, until="=")
        pen.call(left(2))
        _add_columns(pen)
        pen.begin_answer()
        if variant == LOCAL:
            walk_new_pointer(pen, 3, until=ANSWER)
            _copy_sum(pen, 3)
        else:
            walk(pen, 2, until=ANSWER)
            _copy_sum(pen, 2)
        return pen.trajectory()

    def _solve_without_interaction(self, problem: str, variant: str) -> Trajectory:
        if variant == PLAIN_COT:
            return think_without_tool(self.solve(problem, LOCAL))
        answer = self.answer(problem, variant)
        return call_calculator(problem) if variant == CALCULATOR else answer_at_once(problem, answer)

    def answer(self, problem: str, variant: str) -> str:
        first, second = operands(problem, "addition", "+")
        # The decimal module has no limit on digits, unlike int(), and shares nothing with the column algorithm.
        context = decimal.Context(prec=max(len(first), len(second)) + 1, Emax=decimal.MAX_EMAX)
        total = str(context.add(decimal.Decimal(first), decimal.Decimal(second)))
        return total[::-1] if variant == REVERSED_ANSWER else total


def _add_columns(pen: Recorder) -> None:
    carry = 0
    while True:
        shown = [look(pen, pointer) for pointer in (1, 2)]
        digits = [cell if cell in DIGITS else None for cell in shown]
        if digits == [None, None]:
            break
        carry, digit = divmod(sum(int(d) for d in digits if d) + carry, 10)
        pen.think(str(digit))
        pen.think(str(carry))
        for pointer, d in enumerate(digits, 1):
            if d is not None:
                pen.call(left(pointer))
    if carry:
        pen.think("1")
        pen.think("0")


def _copy_sum(pen: Recorder, pointer: int) -> None:
    """Goes left from the answer marker over carry, digit, carry, digit, ... and writes out the digits, until `=`."""
    while True:
        pen.call(left(pointer))
        if look(pen, pointer) == "=":
            return
        pen.call(left(pointer))
        pen.output(look(pen, pointer))
