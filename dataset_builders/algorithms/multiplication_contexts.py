"""Every context that the local variant of multiplication may come into, whatever the numbers: its rule, for proofs.

A state knows the row, the carry, the digits of a column that are still needed, and what a pointer may see where it
stands, and not which digits stand where.
"""

from dataset_builders.algorithms.decimal_numbers import DIGITS, two_numbers
from dataset_builders.algorithms.number_walks import NumberWalks
from hf_toolssm.protocol.rule import END, Place, States, calls, say
from hf_toolssm.protocol.trajectory import ANSWER
from hf_toolssm.tools.pointer_memory import MEMORY_BEGIN, NEW_POINTER, left, read, right

ROW, BAR = ";", "|"
"""A bar stands behind the problem, where the columns begin and, several times, where they end."""
R, A, B = 1, 2, 3
"""The pointers in the order of their creation: into the row before, the first number, the second number."""

COLUMN_CELLS = 9
LEAD = 7
"""R's steps before a column's product, of the 9 to the next digit."""


def _ahead(cells: int) -> tuple[str, ...]:
    """R's way so many cells to the right, where it arrives with a step to the left and reads."""
    return calls(*[right(R)] * (cells + 1), left(R), read(R))


class MultiplicationContexts(NumberWalks):
    """The rule of `multiplication_nx1`, `multiplication_nx2` and `multiplication_nxn`, local.

    Rows are numbered from 0. Without a limit the fourth stands for all behind it.

    Args:
        second_digits: the most digits of the second number, which has a row for each; None for any number. Of problems
            with more, which the algorithm solves as well, the rule says nothing.
    """

    exact = 9
    context = 9
    until = {R: "=", A: "*", B: BAR}

    def __init__(self, second_digits: int | None) -> None:
        self._limit, self._last_row = second_digits, second_digits or 3
        self.text = {**two_numbers("*", second_digits), "end": {BAR: "columns"}}

    def _arrived(self, pointer: int, row: int) -> States:
        if pointer == R:
            return say((BAR, *calls(NEW_POINTER, NEW_POINTER, read(B))), (("walking", B, "first", 0),))
        if pointer == A:
            return self._begin_row(row, False)
        walks = tuple(("walking", A, form, 0) for form in ("first digits", "first zero"))
        return say(calls(left(B), left(B), right(A), read(A)), walks)

    def _begin_row(self, row: int, collects: bool) -> States:
        """A row of columns, or the last, which collects their digits."""
        return say((ROW, *calls(right(R), read(R))), (("row", row, collects),))

    def _row(self, row: int, collects: bool) -> Place:
        if row == 0:
            return Place(None, {BAR: self._column(0, 0, (BAR,), is_new=True)})
        return Place(None, {ROW: say(_ahead(1), (("finished", row, collects, 0),))})

    def _finished(self, row: int, collects: bool, copied: int) -> Place:
        """R looks at a digit that is finished in the row before, or behind them; there is one fewer than rows."""
        are_many = self._limit is None and row == self._last_row
        follows: dict[str, States] = {}
        if copied < row - 1 or are_many:
            then = ("finished", row, collects, min(copied + 1, row - 1))
            follows = {cell: say((cell, *_ahead(1)), (then,)) for cell in DIGITS}
        if copied == row - 1:
            on = calls(*[right(R)] * (COLUMN_CELLS - 3), read(B))
            follows[BAR] = say(on, (("turning", row, collects),))
        return Place(None, follows)

    def _turning(self, row: int, collects: bool) -> Place:
        """B's look on the way to the first column's digit."""
        return Place(None, dict.fromkeys("*" if collects else DIGITS, say(_ahead(3), (("newest", row, collects),))))

    def _newest(self, row: int, collects: bool) -> Place:
        """R looks at the first column's digit."""
        if collects:
            on = calls(right(R), read(R))
            return Place(None, {cell: say((cell, *on), (("collecting", True),)) for cell in DIGITS})
        return Place(None, {cell: self._column(row, 0, (cell, BAR), is_new=True) for cell in DIGITS})

    def _column(self, row: int, carry: int, before: tuple[str, ...], is_new: bool = False) -> States:
        """What is written first, then on the way to a column's digits."""
        way = calls(*[right(R)] * (LEAD if row else 0), left(A))
        tokens = (*before, str(carry), *way, str(carry), *calls(read(B if row else A)))
        return say(tokens, (("second" if row else "first", row, carry, None, is_new),))

    def _first(self, row: int, carry: int, second: str | None, is_new: bool) -> Place:
        """A looks at a digit, or in front of the number; in a first row it looks before B does."""
        follows: dict[str, States] = {}
        for cell in DIGITS:
            look = say(calls(read(B)), (("second", row, carry, cell, is_new),))
            follows[cell] = look if second is None else self._product(row, carry, cell, second)
        if not is_new:
            end = ("0", "0", "0", str(carry), "0", "0", str(carry), *[BAR] * LEAD, *calls(left(B), read(B)))
            follows[MEMORY_BEGIN] = say(end, (("next_row", min(row + 1, self._last_row)),))
        return Place(None, follows)

    def _second(self, row: int, carry: int, first: str | None, is_new: bool) -> Place:
        """B looks at its digit."""
        if first is not None:
            return Place(None, {cell: self._product(row, carry, first, cell) for cell in DIGITS})
        look = calls(read(A))
        return Place(None, {cell: say(look, (("first", row, carry, cell, is_new),)) for cell in DIGITS})

    def _product(self, row: int, carry: int, first: str, second: str) -> States:
        tens, units = divmod(int(first) * int(second), 10)
        carry_of_carry, low = divmod(units + carry, 10)
        high = tens + carry_of_carry
        written = tuple(map(str, (tens, units, carry_of_carry, low, high)))
        if row == 0:
            return self._sum(row, low, high, written)
        return say((*written, *_ahead(COLUMN_CELLS - LEAD)), (("above", row, low, high),))

    def _above(self, row: int, low: int, high: int) -> Place:
        """R looks at the digit of the row before."""
        return Place(None, {cell: self._sum(row, low + int(cell), high, ()) for cell in DIGITS})

    def _sum(self, row: int, total: int, high: int, before: tuple[str, ...]) -> States:
        carry_of_sum, digit = divmod(total, 10)
        return self._column(row, high + carry_of_sum, (*before, str(carry_of_sum), str(digit)))

    def _next_row(self, row: int) -> Place:
        """B looks at its next digit, or in front of the number. So many rows are written."""
        follows: dict[str, States] = {"*": self._begin_row(row, True)}
        if self._limit is None or row < self._limit:
            walk = say(calls(right(A), read(A)), (("walking", A, "first", row),))
            follows |= dict.fromkeys(DIGITS, walk)
        return Place(None, follows)

    def _collecting(self, is_new: bool) -> Place:
        """R looks where a column begins, or behind them."""
        follows = dict.fromkeys(DIGITS, say(_ahead(COLUMN_CELLS - 1), (("collected",),)))
        if not is_new:
            follows[BAR] = say((ANSWER, *calls(right(R), read(R))), (("to_answer", LEAD - 1),))
        return Place(None, follows)

    def _collected(self) -> Place:
        on = calls(right(R), read(R))
        return Place(None, {cell: say((cell, *on), (("collecting", False),)) for cell in DIGITS})

    def _to_answer(self, bars: int) -> Place:
        """R goes along the last row to its end: so many bars, the row's sign, which is the first of its digits here,
        and digits."""
        on = calls(right(R), read(R))
        if bars > 0:
            return Place(None, {BAR: say(on, (("to_answer", bars - 1),))})
        if bars == 0:
            return Place(None, {ROW: say(on, (("to_answer", -1),))})
        follows = dict.fromkeys(DIGITS, say(on, (("to_answer", -2),)))
        if bars == -2:
            follows[ANSWER] = say(calls(left(R), read(R)), (("output", False, True),))
        return Place(None, follows)

    def _output(self, started: bool, is_new: bool) -> Place:
        on = calls(left(R), read(R))
        follows: dict[str, States] = {}
        for cell in DIGITS:
            starts = started or cell != "0"
            follows[cell] = say((cell, *on) if starts else on, (("output", starts, False),))
        if not is_new:
            follows[ROW] = say((END,) if started else ("0", END), ())
        return Place(None, follows)
