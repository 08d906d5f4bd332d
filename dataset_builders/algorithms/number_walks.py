"""What the rules of addition and multiplication share: a problem of two numbers, and pointers that walk along it."""

from collections.abc import Hashable, Mapping
from dataclasses import replace

from dataset_builders.algorithms.decimal_numbers import DIGITS
from hf_toolssm.protocol.rule import KEPT_OF_PROMPTS, Place, Rule, Saying, States, calls, say
from hf_toolssm.tools.pointer_memory import NEW_POINTER, read, right


class NumberWalks(Rule):
    """A rule whose pointers walk along the problem to the right, each until it sees a cell.

    Attributes:
        text: the form of the memory's text, as `decimal_numbers.two_numbers` has it, and behind the problem.
        until: by pointer, where its walk ends.
    """

    start: Hashable = ("prompt", "first")
    alike = dict.fromkeys(DIGITS, "0")
    text: Mapping[str, Mapping[str, str]]
    until: Mapping[int, str]

    def _arrived(self, pointer: int, row: int) -> States:
        """What follows where a walk ends. The row is a multiplication's that begins there; an addition has one."""
        raise NotImplementedError

    def _prompt(self, form: str) -> Place:
        if form == "end":
            return replace(self._walk(1).place(), keeps=KEPT_OF_PROMPTS)
        return Place(
            None, {cell: (("prompt", then),) for cell, then in self.text[form].items()}, keeps=KEPT_OF_PROMPTS
        )

    def _walk(self, pointer: int, row: int = 0) -> Saying:
        """A new pointer, at the first cell."""
        return Saying(calls(NEW_POINTER, read(pointer)), (("walking", pointer, "first", row),))

    def _walking(self, pointer: int, form: str, row: int) -> Place:
        """It looks at a cell of the problem, on its way to the right."""
        on = calls(right(pointer), read(pointer))
        follows = {cell: say(on, (("walking", pointer, then, row),)) for cell, then in self.text[form].items()}
        if self.until[pointer] in follows:
            follows[self.until[pointer]] = self._arrived(pointer, row)
        return Place(None, follows)
