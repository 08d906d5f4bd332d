"""Multiplication of two decimal numbers with a pointer memory (PAPER section 4, task 2): what its three tasks share.

The tasks differ in their second number only: `multiplication_nx1` has one digit, `multiplication_nx2` up to two,
`multiplication_nxn` as many as the first. All three run one algorithm, row by row as on paper, lowest digit first.
The memory for `47*36=`, where a row begins at each `;`, spaces are for the eye, and `a` marks the answer:

    47*36=  |  ;|0 042024024 424082082 20002002 |||||||  ;2|0 021012092 212041061 10001001 |||||||  ;2961  a1692

    |         the end of the problem, where B stops that comes after it
    ;2        digits of the result that are finished, lowest first: every row copies them and adds one
    |0        the columns begin; no carry
    212041061 a column, 9 cells, for one digit of the first number (here 4 x 3 = 12): the carry of the column before,
              2, written again; the product's tens 1 and units 2; units plus carry, 2 + 2 = 04; tens and that small
              carry, 1; the carry 0 and the digit 6 of 4 plus the digit 2 of the row before; and the carry 1 into the
              next column, the 1 before and this small carry. Each cell is looked up from two others: a table of three,
              tens and both small carries, held the first wrong token of a trained n x 2 and of an n x n model
    10001001  the last column, behind the first number: its digit is the carry, and a carry of its own is left out
    |||||||   the end of a row: R is so far ahead when A finds no other digit

Three pointers move: B down the second number, one digit a row; A down the first number, and back up between rows; R
along the row before the one that is being written, where one digit stands 9 cells behind the other. When B meets `*` a
last row collects the digits, and R goes along it and back to write them out. What keeps this easy for a small model:

    - Numbers may be long, so nothing may depend on what stood in front of one: R begins as the addition's pointer 1
      does, which stops at `+`, and the addition's other pointers never stop where A and B do. So one model can learn
      both.
    - A digit that R reads behind a step to the right is passed; one that it copies or adds it reads behind a step to
      the left, for which it goes one cell too far and back. Without that, a model trained on five digits confused the
      two among ten of them.
    - R makes most of its steps where only the carry waits, which is then written again: two numbers that are added
      stand at most 9 tokens back. With five steps behind the product, one seed of three missed a carry at 1,000
      digits.

Variants:
    local: the above. The last 9 tokens determine the next one, however many rows and columns there are. A column takes
        30 tokens, or 17 in a first row, and a copied digit 6: 300 x 300 digits are 3.0 million.
    partial_products: the paper's algorithm, see partial_products.py; for second numbers of at most two digits.
"""

import decimal
import random
import re
from collections.abc import Iterator, Sequence
from typing import Any

from dataset_builders.algorithms.decimal_numbers import DIGITS, number_with_zeros, operands, random_number
from dataset_builders.algorithms.multiplication_contexts import (
    BAR,
    COLUMN_CELLS,
    LEAD,
    ROW,
    A,
    B,
    MultiplicationContexts,
    R,
)
from dataset_builders.algorithms.partial_products import PARTIAL_PRODUCTS, add_partial_products
from dataset_builders.algorithms.pointer_steps import look, output_number, repeat, walk, walk_new_pointer
from dataset_builders.task import Task, task_tool
from hf_toolssm.errors import InvalidProblemError
from hf_toolssm.protocol.recorder import Recorder
from hf_toolssm.protocol.rule import Rule
from hf_toolssm.protocol.trajectory import ANSWER, Trajectory
from hf_toolssm.tools.pointer_memory import MEMORY_BEGIN, NEW_POINTER, left, right


class Multiplication(Task):
    """See the module's text. Problems read `98765*4321=`; numbers have no sign and no leading zero.

    Attributes:
        second_digits: the most digits of the second number; None for as many as the first has.
    """

    second_digits: int | None = None
    title = "Multiplication of two decimal numbers of n digits with a pointer memory"
    version = "4"
    variants: Sequence[str] = ("local", PARTIAL_PRODUCTS)
    adversarial: Sequence[str] = ("nines", "zeros_inside", "zero_or_one", "power_of_ten", "equal_digits")
    unit = "digits"

    def tools(self, variant: str) -> list[dict[str, Any]]:
        return [{"name": "pointer_memory", "max_pointers": 2 if variant == PARTIAL_PRODUCTS else 3}]

    def cells(self, variant: str) -> Sequence[str]:
        return (*DIGITS, "*", "=", ROW, BAR, *("+" if PARTIAL_PRODUCTS in self.variants else ""))

    def rule(self, variant: str) -> Rule:
        """That of `local`.

        Raises:
            CertificationError: it is another's.
        """
        local = self.check_variant(variant) != PARTIAL_PRODUCTS
        return MultiplicationContexts(self.second_digits) if local else super().rule(variant)

    def sample_training(self, rng: random.Random, max_length: int) -> str:
        # One problem in four has the largest carries, which are rare among random digits.
        draw = _number_of_nines if rng.random() < 0.25 else random_number
        first = draw(rng, rng.randint(1, max_length))
        second = draw(rng, rng.randint(1, self.second_digits or max_length))
        return f"{first}*{second}="

    def sample_test(self, rng: random.Random, length: int) -> str:
        return f"{random_number(rng, length)}*{random_number(rng, self.second_digits or length)}="

    def sample_adversarial(self, name: str, rng: random.Random, length: int, index: int) -> str:
        second_length = self.second_digits or length
        if name == "nines":  # the largest carries; problem 0 is nothing but nines
            lengths = (length, second_length)
            first, second = ("".join("9" if index == 0 else rng.choice("99998") for _ in range(n)) for n in lengths)
        elif name == "zeros_inside":  # long runs of zeros between digits
            first, second = number_with_zeros(rng, length), number_with_zeros(rng, second_length)
        elif name == "zero_or_one":
            first, second = random_number(rng, length), rng.choice("01")
        elif name == "power_of_ten":
            first, second = "1" + "0" * (length - 1), random_number(rng, second_length)
        elif name == "equal_digits":
            first, second = rng.choice(DIGITS[1:]) * length, rng.choice(DIGITS[1:]) * second_length
        else:
            raise self.unknown_set(name)
        if self.second_digits is None and rng.random() < 0.5:
            first, second = second, first
        return f"{first}*{second}="

    def held_out(self, problem: str) -> bool:
        """All nines, and powers of ten from 100 on: sets of so few problems that a hash could leave them empty."""
        first, second = operands(problem, "multiplication", "*")
        return set(first + second) == {"9"} or any(re.fullmatch("100+", number) for number in (first, second))

    def length(self, problem: str) -> int:
        first, second = operands(problem, "multiplication", "*")
        return max(len(first), len(second)) if self.second_digits is None else len(first)

    def solve(self, problem: str, variant: str) -> Trajectory:
        """Records the algorithm.

        Raises:
            InvalidProblemError: the problem is not `number*number=`, the variant does not exist, or it does not
                multiply by so many digits.
            EmptyProblemError: the problem is empty.
        """
        pen = Recorder(problem, task_tool(self, variant))
        _, second = operands(problem, "multiplication", "*")
        if variant == PARTIAL_PRODUCTS:
            if self.second_digits is not None and len(second) > self.second_digits:
                raise InvalidProblemError(
                    f"{PARTIAL_PRODUCTS} multiplies by at most {self.second_digits} digit(s) here, "
                    f"not by {len(second)}: use the variant local"
                )
            add_partial_products(pen)
        else:
            _multiply(pen)
        return pen.trajectory()

    def answer(self, problem: str, variant: str) -> str:
        first, second = operands(problem, "multiplication", "*")
        # The decimal module has no limit on digits, unlike int(), and shares nothing with the column algorithm.
        context = decimal.Context(prec=len(first) + len(second), Emax=decimal.MAX_EMAX)
        return str(context.multiply(decimal.Decimal(first), decimal.Decimal(second)))


def _multiply(pen: Recorder) -> None:
    walk_new_pointer(pen, R, until="=")
    pen.think(BAR)
    pen.call(NEW_POINTER)  # A
    walk_new_pointer(pen, B, until=BAR)
    repeat(pen, left(B), 2)
    while True:
        walk(pen, A, until="*")
        has_row_before = _begin_row(pen)
        _write_columns(pen, has_row_before)
        pen.call(left(B))
        if look(pen, B) == "*":
            break
    _begin_row(pen)
    _collect_digits(pen)
    pen.begin_answer()
    walk(pen, R, until=ANSWER)
    output_number(pen, _digits_backwards(pen))


def _begin_row(pen: Recorder) -> bool:
    """Begins a row with the digits that are finished in the row before, and says whether there is a row before.

    R comes from the cell in front of the row before and rests on its first column's digit, the last that is finished.
    Looking at B tells what is next: another row of columns, or, at `*`, the last row.
    """
    pen.think(ROW)
    pen.call(right(R))
    if look(pen, R) != ROW:
        return False
    while (cell := _read_ahead(pen, 1)) != BAR:
        pen.think(cell)
    # B is looked at on the way to the first digit, so that what it shows is near when the digit is written.
    repeat(pen, right(R), COLUMN_CELLS - 3)
    look(pen, B)
    pen.think(_read_ahead(pen, 3))
    return True


def _write_columns(pen: Recorder, has_row_before: bool) -> None:
    pen.think(BAR)
    carry = 0
    while True:
        pen.think(str(carry))
        if has_row_before:
            repeat(pen, right(R), LEAD)
        pen.call(left(A))
        pen.think(str(carry))
        # A row that adds to another reads in the other order: so the two kinds differ close by, whatever the digits.
        if has_row_before:
            second = look(pen, B)
        first = look(pen, A)
        if first == MEMORY_BEGIN:
            break
        if not has_row_before:
            second = look(pen, B)
        tens, units = divmod(int(first) * int(second), 10)
        carry_of_carry, low = divmod(units + carry, 10)
        high = tens + carry_of_carry
        for digit in (tens, units, carry_of_carry, low, high):
            pen.think(str(digit))
        above = int(_read_ahead(pen, COLUMN_CELLS - LEAD)) if has_row_before else 0
        carry_of_sum, total = divmod(low + above, 10)
        carry = high + carry_of_sum
        for digit in (carry_of_sum, total):
            pen.think(str(digit))
    for digit in (0, 0, 0, carry, 0, 0, carry):
        pen.think(str(digit))
    for _ in range(LEAD):
        pen.think(BAR)


def _read_ahead(pen: Recorder, cells: int) -> str:
    """What R reads so many cells further right, where it arrives with a step to the left."""
    repeat(pen, right(R), cells + 1)
    pen.call(left(R))
    return look(pen, R)


def _collect_digits(pen: Recorder) -> None:
    """Appends the digits of the row before, one of each column, to those that are finished."""
    while True:
        pen.call(right(R))
        if look(pen, R) == BAR:
            return
        pen.think(_read_ahead(pen, COLUMN_CELLS - 1))


def _digits_backwards(pen: Recorder) -> Iterator[str]:
    """Goes left over the collected digits, which stand lowest first."""
    while True:
        pen.call(left(R))
        digit = look(pen, R)
        if digit == ROW:
            return
        yield digit


def _number_of_nines(rng: random.Random, length: int) -> str:
    """A number of mostly nines. The others are any digit: the largest carry meets every one of them."""
    digits = [rng.choice("9" if rng.random() < 0.7 else DIGITS) for _ in range(length)]
    if length > 1 and digits[0] == "0":
        digits[0] = "9"
    return "".join(digits)
