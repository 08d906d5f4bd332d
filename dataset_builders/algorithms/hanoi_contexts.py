"""Every context that the towers of Hanoi may come into, whatever the disks: their rules, for proofs.

A state knows where in a list of moves a pointer may stand, the rods that are still needed, and whether a list is the
last, and not which disk is which: a pointer that looks at a label sees any digit.
"""

from collections.abc import Hashable

from dataset_builders.algorithms.decimal_numbers import DIGITS
from dataset_builders.algorithms.hanoi import RODS
from hf_toolssm.protocol.rule import END, KEPT_OF_PROMPTS, Place, Rule, States, calls, say
from hf_toolssm.protocol.trajectory import ANSWER
from hf_toolssm.tools.pointer_memory import MEMORY_BEGIN, NEW_POINTER, left, read, right


class HanoiContexts(Rule):
    """What the rules of both ways share.

    Args:
        end: the cell behind the disks.
        resting: how many pointers never move.
    """

    start: Hashable = ("prompt", 0, True)
    alike = dict.fromkeys(DIGITS, "0")

    def __init__(self, end: str, resting: int) -> None:
        self._end, self._pointers = end, range(resting + 1, resting + 4)

    def _prompt(self, digits: int, is_first: bool) -> Place:
        """Behind so many digits of a label."""
        follows: dict[str, States] = dict.fromkeys(DIGITS, (("prompt", (digits + 1) % 2, is_first and not digits),))
        if not (digits or is_first):
            follows[self._end] = self._begin()
        return Place(None, follows, keeps=KEPT_OF_PROMPTS)

    def _begin(self) -> States:
        """Behind the problem."""
        raise NotImplementedError


SWAPS = (str.maketrans("BC", "CB"), str.maketrans("AB", "BA"))
"""Of the rods, in the recursion's first copy of the moves and in its second."""


class RecursiveHanoiContexts(HanoiContexts):
    """The rule of `hanoi_recursive`, with three pointers."""

    exact = 5
    context = 8

    def _begin(self) -> States:
        resting = self._pointers[0] - 1
        return self._walk(0, calls(*[NEW_POINTER] * resting))

    def _walk(self, number: int, before: tuple[str, ...]) -> States:
        """A new pointer goes behind the disks."""
        pointer = self._pointers[number]
        tokens = (*before, *calls(NEW_POINTER, right(pointer), right(pointer), read(pointer)))
        return say(tokens, (("walking", number),))

    def _walking(self, number: int) -> Place:
        disk, pointer = self._pointers[0], self._pointers[number]
        on = calls(right(pointer), right(pointer), read(pointer))
        follows = dict.fromkeys(DIGITS, say(on, (("walking", number),)))
        before = calls(left(disk), left(disk)) if number == 0 else calls(right(pointer))
        follows[self._end] = self._walk(number + 1, before) if number < 2 else self._announce(before, True)
        return Place(None, follows)

    def _announce(self, before: tuple[str, ...], is_first: bool) -> States:
        disk = self._pointers[0]
        return say((*before, *calls(left(disk), left(disk), read(disk))), (("announcing", is_first),))

    def _announcing(self, is_first: bool) -> Place:
        """Whether a disk is larger."""
        disk = self._pointers[0]
        look, copy = calls(read(disk + 1)), self._copies
        more = say((*calls(right(disk), right(disk)), "#", *look), (copy(0, False, is_first),))
        last = say((*calls(right(disk)), ANSWER, *look), (copy(0, True, is_first),))
        return Place(None, {**dict.fromkeys(DIGITS, more), MEMORY_BEGIN: last})

    @staticmethod
    def _copies(copy: int, is_last: bool, is_first: bool) -> Hashable:
        """A pointer begins to copy a list, which is empty at first."""
        return ("behind", copy, is_last) if is_first else ("tens", copy, is_last)

    def _behind(self, copy: int, is_last: bool) -> Place:
        """A pointer looks behind an empty list."""
        return Place(None, self._list_end(copy, is_last, True))

    def _list_end(self, copy: int, is_last: bool, is_first: bool) -> dict[str, States]:
        disk, pointer = self._pointers[0], self._pointers[copy + 1]
        on = calls(right(pointer))
        if copy == 0:
            then = say((*on, *calls(read(disk))), (("disk", is_last, is_first),))
        elif is_last:
            then = say((*on, END), ())
        else:
            then = self._announce((*on, *calls(left(disk), left(disk))), False)
        return {ANSWER if is_last else "#": then}

    def _copied(self, cell: str, copy: int, then: Hashable) -> States:
        pointer = self._pointers[copy + 1]
        return say((cell.translate(SWAPS[copy]), *calls(right(pointer), read(pointer))), (then,))

    def _tens(self, copy: int, is_last: bool, may_end: bool = False) -> Place:
        """A pointer looks at a move's first cell."""
        follows = {cell: self._copied(cell, copy, ("units", copy, is_last)) for cell in DIGITS}
        return Place(None, {**follows, **(self._list_end(copy, is_last, False) if may_end else {})})

    def _units(self, copy: int, is_last: bool) -> Place:
        return Place(None, {cell: self._copied(cell, copy, ("from", copy, is_last)) for cell in DIGITS})

    def _from(self, copy: int, is_last: bool) -> Place:
        return Place(None, {rod: self._copied(rod, copy, ("to", copy, is_last, rod)) for rod in RODS})

    def _to(self, copy: int, is_last: bool, start: str) -> Place:
        """Behind a move to C alone may a list end: all of its moves bring a tower from A to C, the last its smallest
        disk."""
        goals = [rod for rod in RODS if rod != start]
        return Place(None, {rod: self._copied(rod, copy, ("tens", copy, is_last, rod == "C")) for rod in goals})

    def _disk(self, is_last: bool, is_first: bool) -> Place:
        """The label of a list's largest disk."""
        disk = self._pointers[0]
        on, then = calls(right(disk), read(disk)), (("disk_units", is_last, is_first),)
        return Place(None, {cell: say((cell, *on), then) for cell in DIGITS})

    def _disk_units(self, is_last: bool, is_first: bool) -> Place:
        disk = self._pointers[0]
        then = (self._copies(1, is_last, is_first),)
        return Place(None, {c: say((c, *calls(left(disk)), "A", "C", *calls(read(disk + 2))), then) for c in DIGITS})


SWAP = {"A": "A", "B": "C", "C": "B"}
NEXT = {"-": {"A": "C", "C": "B", "B": "A"}, "+": {"A": "B", "B": "C", "C": "A"}}
"""By the sign of how many disks there are, and by where it is, the smallest disk's next rod."""


class IterativeHanoiContexts(HanoiContexts):
    """The rule of `hanoi_iterative`, at half speed."""

    exact = 7
    context = 17

    def _begin(self) -> States:
        return say(calls(*[NEW_POINTER] * (self._pointers[0] + 1)), self._sign("-"))

    def _sign(self, sign: str) -> States:
        way = [right(pointer) for pointer in self._pointers[:2] for _ in range(2)]
        return say((*calls(*way), sign, *calls(read(self._pointers[0]))), (("signs", sign),))

    def _signs(self, sign: str) -> Place:
        on = calls(right(self._pointers[0]), read(self._pointers[0]))
        follows = dict.fromkeys(DIGITS, self._sign("+" if sign == "-" else "-"))
        follows[self._end] = say((ANSWER, *on), (("to_answer", True),))
        return Place(None, follows)

    def _to_answer(self, is_new: bool) -> Place:
        """The first pointer goes along the signs."""
        sign, disk, move = self._pointers
        follows = dict.fromkeys("+-", say(calls(right(sign), read(sign)), (("to_answer", False),)))
        if not is_new:
            way = calls(left(sign), left(disk), left(disk), NEW_POINTER, right(move), read(move))
            follows[ANSWER] = say(way, (("along", "units"),))
        return Place(None, follows)

    def _along(self, form: str) -> Place:
        """The third pointer goes along the problem and the signs."""
        _, disk, move = self._pointers
        cells = {
            "units": dict.fromkeys(DIGITS, "tens"),
            "tens": {**dict.fromkeys(DIGITS, "units"), self._end: "first sign"},
            "first sign": {"-": "sign"},
            "sign": {"+": "sign", "-": "sign"},
        }
        on = calls(right(move), read(move))
        follows = {cell: say(on, (("along", then),)) for cell, then in cells[form].items()}
        if form == "sign":
            follows[ANSWER] = say(calls(right(move), read(disk)), (("smallest", "A"),))
        return Place(None, follows)

    def _smallest(self, start: str) -> Place:
        """The smallest disk's label, which stands on a rod."""
        disk = self._pointers[1]
        on = calls(right(disk), read(disk))
        return Place(None, {cell: say((cell, *on), (("smallest_units", start),)) for cell in DIGITS})

    def _smallest_units(self, start: str) -> Place:
        sign, disk, _ = self._pointers
        on = calls(left(disk), read(sign))
        return Place(None, {cell: say((cell, *on), (("turning", start),)) for cell in DIGITS})

    def _turning(self, start: str) -> Place:
        move = self._pointers[2]
        return Place(None, {sign: say((start, NEXT[sign][start], *calls(read(move))), (("moved",),)) for sign in "-+"})

    def _moved(self) -> Place:
        """The tens of move j's disk, then those of a disk."""
        look = calls(read(self._pointers[1]))
        return Place(None, {cell: say(look, (("compared", cell),)) for cell in DIGITS})

    def _compared(self, tens: str) -> Place:
        _, disk, move = self._pointers
        other = say(calls(left(disk), left(disk), read(move)), (("moved",),))
        same = say(calls(right(move), read(move)), (("moved_units",),))
        return Place(None, {cell: same if cell == tens else other for cell in DIGITS})

    def _moved_units(self) -> Place:
        disk = self._pointers[1]
        look = calls(right(disk), read(disk))
        return Place(None, {cell: say(look, (("compared_units", cell),)) for cell in DIGITS})

    def _compared_units(self, units: str) -> Place:
        _, disk, move = self._pointers
        way = calls(*[left(disk)] * 3)
        other = say((*calls(left(move)), *way, *calls(read(move))), (("moved",),))
        same = say((*way, *calls(read(disk))), (("larger",),))
        return Place(None, {cell: same if cell == units else other for cell in DIGITS})

    def _larger(self) -> Place:
        """The next larger disk's label, if there is one."""
        disk = self._pointers[1]
        on = calls(right(disk), read(disk))
        return Place(
            None,
            {**{cell: say((cell, *on), (("larger_units",),)) for cell in DIGITS}, MEMORY_BEGIN: say((END,), ())},
        )

    def _larger_units(self) -> Place:
        disk = self._pointers[1]
        on = calls(right(disk), read(disk))
        return Place(None, {cell: say((cell, *on), (("back", 0, True),)) for cell in DIGITS})

    def _back(self, digits: int, is_new: bool) -> Place:
        """The second pointer goes back to the smallest disk."""
        _, disk, move = self._pointers
        on = calls(right(disk), read(disk))
        follows = dict.fromkeys(DIGITS, say(on, (("back", (digits + 1) % 2, False),)))
        if not (digits or is_new):
            way = calls(left(disk), left(disk), right(move), read(move))
            follows[self._end] = say(way, (("from",),))
        return Place(None, follows)

    def _from(self) -> Place:
        move = self._pointers[2]
        on = calls(right(move), read(move))
        return Place(None, {rod: say((SWAP[rod], *on), (("to", SWAP[rod]),)) for rod in RODS})

    def _to(self, start: str) -> Place:
        _, disk, move = self._pointers
        on, follows = calls(right(move), read(disk)), dict[str, States]()
        for rod in RODS:
            if SWAP[rod] != start:
                (third,) = set(RODS) - {start, SWAP[rod]}
                follows[rod] = say((SWAP[rod], *on), (("smallest", third),))
        return Place(None, follows)
