"""Every context that the local variant of addition may come into, whatever the numbers: its rule, for proofs.

A state knows where in the memory's text a pointer may stand, as far as the text's form says (two numbers without
leading zeros, then pairs of a digit and a carry, then the answer marker), and not which digits stand where: a pointer
may see any digit wherever it may see one. While columns are added it knows the carry, and which numbers are used up.
"""

from dataset_builders.algorithms.decimal_numbers import DIGITS, two_numbers
from dataset_builders.algorithms.number_walks import NumberWalks
from hf_toolssm.protocol.rule import END, Place, States, calls, say
from hf_toolssm.protocol.trajectory import ANSWER
from hf_toolssm.tools.pointer_memory import MEMORY_BEGIN, left, read


class AdditionContexts(NumberWalks):
    """The rule of `addition`, local."""

    exact = 7
    context = 8
    text = {
        **two_numbers("+"),
        "end": dict.fromkeys(DIGITS, "carry"),
        "carry": dict.fromkeys("01", "column"),
        "column": {**dict.fromkeys(DIGITS, "carry"), ANSWER: "answer"},
    }
    until = {1: "+", 2: "=", 3: ANSWER}

    def _arrived(self, pointer: int, row: int) -> States:
        if pointer == 1:
            return say(calls(left(1)), (self._walk(2),))
        if pointer == 2:
            return say(calls(left(2), read(1)), (("first_number", 0, True, True, True),))
        return say(calls(left(3), read(3)), (("carry", True),))

    def _first_number(self, carry: int, has_first: bool, has_second: bool, is_new: bool) -> Place:
        """Pointer 1 looks at the digit of a column, or at what stands before its number."""
        seen = [*(DIGITS if has_first else ()), *(() if has_first and is_new else (MEMORY_BEGIN,))]
        look = calls(read(2))
        return Place(None, {c: say(look, (("second_number", carry, c, has_second, is_new),)) for c in seen})

    def _second_number(self, carry: int, first: str, has_second: bool, is_new: bool) -> Place:
        seen = [*(DIGITS if has_second else ()), *(() if has_second and is_new else ("+",))]
        return Place(None, {cell: self._column(carry, first, cell) for cell in seen})

    def _column(self, carry: int, *cells: str) -> States:
        digits = [int(cell) if cell in DIGITS else None for cell in cells]
        if digits == [None, None]:
            return say(("1", "0") * carry + (ANSWER,), (self._walk(3),))
        carry, digit = divmod(sum(d for d in digits if d is not None) + carry, 10)
        moves = [left(pointer) for pointer, d in enumerate(digits, 1) if d is not None]
        has = [d is not None for d in digits]
        return say((str(digit), str(carry), *calls(*moves, read(1))), (("first_number", carry, *has, False),))

    def _carry(self, is_new: bool) -> Place:
        """Pointer 3 comes to a carry, or, when all is copied, to the prompt's end."""
        on = say(calls(left(3), read(3)), (("digit",),))
        return Place(None, {**dict.fromkeys("01", on), **({} if is_new else {"=": say((END,), ())})})

    def _digit(self) -> Place:
        return Place(None, {d: say((d, *calls(left(3), read(3))), (("carry", False),)) for d in DIGITS})
