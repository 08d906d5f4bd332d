"""Every context that `sorting` may come into, whatever the keys: its rule, for proofs.

A state knows the pass, the pointer that moves and where on its way it is, and not which keys there are: a pointer that
looks for a key's last digit sees any digit, or the sign behind the list.
"""

from collections.abc import Hashable

from dataset_builders.algorithms.decimal_numbers import DIGITS
from hf_toolssm.protocol.rule import END, KEPT_OF_PROMPTS, Place, Rule, States, calls, say
from hf_toolssm.protocol.trajectory import ANSWER
from hf_toolssm.tools.pointer_memory import NEW_POINTER, left, read, right

KEY_DIGITS = 3
RESTING = 9
"""Pointers that never move."""
SIGNS = ("x", "y", ANSWER)
"""Of each pass, what stands behind the list that it goes along."""


class SortingContexts(Rule):
    """The rule of `sorting`."""

    start: Hashable = ("prompt", 0, True)
    alike = dict.fromkeys(DIGITS, "0")
    exact = 7

    def _prompt(self, at: int, is_first: bool) -> Place:
        """Behind so many cells of a key."""
        if at == KEY_DIGITS:
            return Place(None, {",": (("prompt", 0, False),)}, keeps=KEPT_OF_PROMPTS)
        follows: dict[str, States] = dict.fromkeys(DIGITS, (("prompt", at + 1, is_first),))
        if not (at or is_first):
            tokens = ("=", SIGNS[0], *calls(*[NEW_POINTER] * RESTING))
            follows["="] = say(tokens, self._begin(0, 0))
        return Place(None, follows, keeps=KEPT_OF_PROMPTS)

    def _begin(self, turn: int, digit: int) -> States:
        """The pointer of a digit, in its first, second or third turn, goes to the first last digit."""
        pointer = RESTING + 1 + digit
        made = (NEW_POINTER, *[right(pointer)] * (KEY_DIGITS - 1)) if turn == 0 else [right(pointer)] * KEY_DIGITS
        return say(calls(*made, read(pointer)), (("looking", turn, digit, True),))

    def _looking(self, turn: int, digit: int, is_first: bool) -> Place:
        """At the last digit of a key, or behind the list."""
        pointer = RESTING + 1 + digit
        on = calls(*[right(pointer)] * (KEY_DIGITS + 1), read(pointer))
        follows = dict.fromkeys(DIGITS, say(on, (("looking", turn, digit, False),)))
        follows[DIGITS[digit]] = say(
            (DIGITS[digit], *calls(*[left(pointer)] * (KEY_DIGITS - 1), read(pointer))),
            (("copying", turn, digit, KEY_DIGITS - 1),),
        )
        if not is_first:
            follows[SIGNS[turn]] = self._next(turn, digit)
        return Place(None, follows)

    def _next(self, turn: int, digit: int) -> States:
        if digit < len(DIGITS) - 1:
            return self._begin(turn, digit + 1)
        if turn == len(SIGNS) - 1:
            return say((END,), ())
        return say(("=", "=", SIGNS[turn + 1]), self._begin(turn + 1, 0))

    def _copying(self, turn: int, digit: int, left_to_copy: int) -> Place:
        """A digit of a key that goes behind its last one."""
        pointer = RESTING + 1 + digit
        then = calls(right(pointer), read(pointer))
        if left_to_copy > 1:
            states: States = (("copying", turn, digit, left_to_copy - 1),)
        else:
            then = (",", *calls(*[right(pointer)] * (KEY_DIGITS + 2), read(pointer)))
            states = (("looking", turn, digit, False),)
        return Place(None, {cell: say((cell, *then), states) for cell in DIGITS})
