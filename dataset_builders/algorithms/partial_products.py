"""The paper's multiplication by one or two digits (PAPER section 4, task 2), with its two pointers.

For each digit of the second number, lowest first, pointer 1 runs along the first one; the product's digits and carries
are written lowest first, a digit and its carry at a time. The second partial product begins with a shifting zero. The
two are then added column by column over their carries, and the result is copied out as in the paper's addition:

    47*36=  2442  20      =   7 x 6 + 0 = 42, 4 x 6 + 4 = 28, 2
    +00 1222 10           =   0, 7 x 3 + 0 = 21, 4 x 3 + 2 = 14, 1
    =20 90 60 10 <|answer|> 1692

The separators, and a zero carry beside every last carry and shifting zero, are our choice: the paper does not say.
With two digits, a pointer that meets a separator after a long walk does one thing early and another late, so that no
bounded context determines the next token. With one digit 8 tokens do: the second number is short wherever `=` is met.
"""

from collections.abc import Iterator

from dataset_builders.algorithms.pointer_steps import look, output_number, repeat, walk
from hf_toolssm.protocol.recorder import Recorder
from hf_toolssm.protocol.trajectory import ANSWER
from hf_toolssm.tools.pointer_memory import MEMORY_BEGIN, NEW_POINTER, left, right

PARTIAL_PRODUCTS = "partial_products"
FIRST, SECOND = 1, 2
"""The two pointers."""


def add_partial_products(pen: Recorder) -> None:
    """Records the algorithm on a problem `number*number=` whose second number has one or two digits."""
    for pointer, until in ((FIRST, "*"), (SECOND, "=")):
        pen.call(NEW_POINTER)
        walk(pen, pointer, until)
        pen.call(left(pointer))
    _write_product(pen)
    pen.call(left(SECOND))
    if look(pen, SECOND) != "*":
        walk(pen, FIRST, until="*")
        pen.call(left(FIRST))
        for cell in "+00":
            pen.think(cell)
        _write_product(pen)
        pen.think("=")
        _add_products(pen)
    pen.begin_answer()
    walk(pen, SECOND, until=ANSWER)
    output_number(pen, _digits_backwards(pen))


def _write_product(pen: Recorder) -> None:
    carry = 0
    while (first := look(pen, FIRST)) != MEMORY_BEGIN:
        carry, digit = divmod(int(first) * int(look(pen, SECOND)) + carry, 10)
        pen.think(str(digit))
        pen.think(str(carry))
        pen.call(left(FIRST))
    pen.think(str(carry))
    pen.think("0")


def _add_products(pen: Recorder) -> None:
    """Adds the partial products, which end at `+` and at `=`."""
    walk(pen, FIRST, until="=")
    walk(pen, SECOND, until="+")
    for pointer in (FIRST, SECOND):
        pen.call(right(pointer))
    carry = 0
    while True:
        shown = {pointer: look(pen, pointer) for pointer in (FIRST, SECOND)}
        digits = {pointer: int(cell) for pointer, cell in shown.items() if cell not in "+="}
        if not digits:
            break
        carry, digit = divmod(sum(digits.values()) + carry, 10)
        pen.think(str(digit))
        pen.think(str(carry))
        for pointer in digits:
            repeat(pen, right(pointer), 2)


def _digits_backwards(pen: Recorder) -> Iterator[str]:
    """Goes left over carry, digit, carry, digit, ... until `=`."""
    while True:
        pen.call(left(SECOND))
        if look(pen, SECOND) == "=":
            return
        pen.call(left(SECOND))
        yield look(pen, SECOND)
