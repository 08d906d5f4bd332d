"""Every context that a Turing machine may come into, whatever its input: the rule of its task, for proofs.

The tape is abstracted. Of a configuration the cells next to the head are kept, and, for every state of the machine,
which two cells may stand side by side anywhere to the left of the head, and anywhere to its right; a cell of the input
knows which place of the input's form it has. A move brings a cell into sight: each that may stand there. So all that a
run can reach is explored, and perhaps more. That a cell is impossible, such as the marker of the right end after a
move to the left, follows from nothing but this.

Why every run is explored, by induction over its steps: when the head leaves to the right, what is new on its left is
the pair of the cell left of it and the cell under it, which is noted for the next state; all other pairs on both sides
were noted for this state, and are for the next unless no row of noted pairs leads to them from the head's neighbour,
as one does to whatever stands there. A write changes the cell under the head alone, which stands in no noted pair. To
the left it is the same in the mirror.
"""

from collections import defaultdict
from collections.abc import Hashable, Iterable
from dataclasses import dataclass, field
from typing import NamedTuple

from dataset_builders.algorithms.machine import LEFT, RIGHT, STATE, STAY, Machine
from dataset_builders.algorithms.machine_inputs import Inputs
from hf_toolssm.protocol.calls import begin_token
from hf_toolssm.protocol.rule import END, Place, Rule, say
from hf_toolssm.protocol.trajectory import ANSWER
from hf_toolssm.tools.tape import TAPE_BEGIN, TAPE_END, TAPE_LEFT, TAPE_READ, TAPE_RIGHT, tape_write

_MOVES = {LEFT: (begin_token(TAPE_LEFT),), RIGHT: (begin_token(TAPE_RIGHT),), STAY: ()}
_READ = begin_token(TAPE_READ)
_MARKERS = (TAPE_BEGIN, TAPE_END)
_REWIND, _COPY = "to the left end", "to the right end"
"""States besides the machine's, in which the model is when it has halted, and writes what stands on the tape."""


class Cell(NamedTuple):
    """A symbol, and which place of the input it has from there; 0 where it was written, or is a marker."""

    symbol: str
    place: int = 0


_BEGIN, _END, _NOTHING = Cell(TAPE_BEGIN), Cell(TAPE_END), Cell("")
_Pairs = set[tuple[Cell, Cell]]


class Window(NamedTuple):
    """The cell under the head and its neighbours; beyond a marker stands nothing."""

    left: Cell
    cell: Cell
    right: Cell


class _Step(NamedTuple):
    """What the model says in a state, what it writes under the head (None for nothing), where the head goes, and the
    next state."""

    says: tuple[str, ...]
    written: str | None
    move: str
    state: str


@dataclass
class _Tapes:
    """All that the tape may be like in one state."""

    windows: set[Window] = field(default_factory=set)
    left: _Pairs = field(default_factory=set)
    right: _Pairs = field(default_factory=set)

    def size(self) -> int:
        """How much is noted."""
        return len(self.windows) + len(self.left) + len(self.right)


class MachineContexts(Rule):
    """The rule of one machine.

    A state and a symbol of which the table says nothing end a path, as they end a trajectory.
    """

    start: Hashable = ("prompt", 0)

    def __init__(self, machine: Machine) -> None:
        self._machine = machine
        self._word = _Word(machine.inputs)
        self._tapes = self._all_tapes()

    def _prompt(self, at: int) -> Place:
        more = {symbol: tuple(("prompt", to) for to in ends) for symbol, ends in self._word.steps(at).items()}
        if not self._word.may_end(at):
            return Place(None, more)
        first = self._machine.letters[self._machine.start]
        return Place(first, {first: self._visits(self._machine.start, self._first_windows()), **more})

    def _seeing(self, state: str, window: Window) -> Place:
        return Place(None, {window.cell.symbol: say(*self._after(state, window))})

    def _after(self, state: str, window: Window) -> tuple[tuple[str, ...], tuple[Hashable, ...]]:
        """What the model says when it has seen the cell, or in a halt state, and the states in which it is then."""
        if state in self._machine.halts and self._machine.answer == STATE:
            return (ANSWER, self._machine.letters[state], END), ()
        if state == _COPY and window.cell == _END:
            return (END,), ()
        step = self._step(state, window)
        if step is None:
            return (), ()
        return step.says, self._visits(step.state, self._moved(self._tapes[state], window, step).windows)

    def _step(self, state: str, window: Window) -> _Step | None:
        """What happens in a state; None where nothing does any more, or the table does not say."""
        machine, cell = self._machine, window.cell.symbol
        if state in machine.halts:
            return None if machine.answer == STATE else _Step(_MOVES[LEFT], None, LEFT, _REWIND)
        if state == _REWIND and cell == TAPE_BEGIN:
            return _Step((ANSWER, *_MOVES[RIGHT]), None, RIGHT, _COPY)
        if state == _REWIND:
            return _Step(_MOVES[LEFT], None, LEFT, _REWIND)
        if state == _COPY:
            output = () if cell == machine.blank else (cell,)
            return None if cell == TAPE_END else _Step((*output, *_MOVES[RIGHT]), None, RIGHT, _COPY)
        rule = machine.rules.get((state, machine.blank if cell in _MARKERS else cell))
        if rule is None:
            return None
        says = (begin_token(tape_write(rule.symbol)), *_MOVES[rule.move], machine.letters[rule.state])
        return _Step(says, rule.symbol, rule.move, rule.state)

    def _visits(self, state: str, windows: Iterable[Window]) -> tuple[Hashable, ...]:
        """The model has come into a state; but for a halt state it reads."""
        if state in self._machine.halts:
            return tuple(then for window in sorted(windows) for then in say(*self._after(state, window)))
        return tuple(then for window in sorted(windows) for then in say((_READ,), (("seeing", state, window),)))

    def _first_windows(self) -> set[Window]:
        """Of an input, under a head at its first cell."""
        return {Window(_BEGIN, first, second) for first in self._word.firsts() for second in self._word.after(first)}

    def _all_tapes(self) -> dict[str, _Tapes]:
        """By state, in rounds until nothing is new."""
        tapes = defaultdict[str, _Tapes](_Tapes)
        tapes[self._machine.start].windows |= self._first_windows()
        tapes[self._machine.start].right |= self._word.pairs()
        size = -1
        while size != (size := sum(tape.size() for tape in tapes.values())):
            for state, tape in list(tapes.items()):
                for window in list(tape.windows):
                    if step := self._step(state, window):
                        after = self._moved(tape, window, step)
                        tapes[step.state].windows |= after.windows
                        tapes[step.state].left |= after.left
                        tapes[step.state].right |= after.right
        return tapes

    @staticmethod
    def _moved(tape: _Tapes, window: Window, step: _Step) -> _Tapes:
        """What may be seen after a step, and the pairs of symbols on both sides then."""
        left, cell, right = window
        lefts, rights = tape.left, tape.right
        if step.written is not None:
            left, right = (_BEGIN if cell == _BEGIN else left), (_END if cell == _END else right)
            cell = Cell(step.written)
        windows = {Window(left, cell, right)}
        if step.move == RIGHT and cell != _END:
            beyond = {second for first, second in rights if first == right} if right != _END else {_NOTHING}
            windows = {Window(cell, right, each) for each in beyond}
            lefts = lefts | ({(left, cell)} if left != _NOTHING else set())
        elif step.move == LEFT and cell != _BEGIN:
            beyond = {first for first, second in lefts if second == left} if left != _BEGIN else {_NOTHING}
            windows = {Window(each, left, cell) for each in beyond}
            rights = rights | ({(cell, right)} if right != _NOTHING else set())
        mirrored = {(second, first) for first, second in lefts}
        lefts = {(first, second) for second, first in _reached(mirrored, {window.left for window in windows})}
        return _Tapes(windows, lefts, _reached(rights, {window.right for window in windows}))


def _reached(pairs: _Pairs, cells: set[Cell]) -> _Pairs:
    """The pairs that a row of cells can hold that begins with one of these."""
    found, known = _Pairs(), set(cells)
    while new := {pair for pair in pairs - found if pair[0] in known}:
        found |= new
        known |= {second for _, second in new}
    return found


class _Word:
    """The inputs as an automaton: state 0 is before the first symbol, every other stands for one place of a part."""

    def __init__(self, inputs: Inputs) -> None:
        self._symbols: list[str] = [""]
        self._next: list[list[int]] = [[]]
        ends = [0]  # from where the next part may begin
        for part in inputs.parts:
            most, before = part.longest or max(1, part.shortest), ends if part.shortest == 0 else []
            reached = list[int]()
            for place in range(1, most + 1):
                at = len(self._symbols)
                self._symbols.append(part.symbols)
                self._next.append([at] if part.longest is None and place == most else [])
                for end in ends if place == 1 else [at - 1]:
                    self._next[end].append(at)
                if place >= part.shortest:
                    reached.append(at)
            ends = [*before, *reached]
        self._last = {*ends} - {0}

    def steps(self, at: int) -> dict[str, tuple[int, ...]]:
        """Every symbol that may follow in a state, and the states behind it."""
        follows = defaultdict[str, tuple[int, ...]](tuple)
        for to in self._next[at]:
            for symbol in self._symbols[to]:
                follows[symbol] += (to,)
        return dict(follows)

    def may_end(self, at: int) -> bool:
        return at in self._last

    def firsts(self) -> set[Cell]:
        """The cells with which an input may begin."""
        return {Cell(symbol, to) for symbol, ends in self.steps(0).items() for to in ends}

    def after(self, cell: Cell) -> set[Cell]:
        """What may stand behind a cell of the input, the marker of the right end included."""
        follows = {Cell(symbol, to) for symbol, ends in self.steps(cell.place).items() for to in ends}
        return follows | ({_END} if self.may_end(cell.place) else set())

    def pairs(self) -> _Pairs:
        """The cells that may stand side by side in an input, and those before the marker of its right end."""
        cells = [Cell(symbol, at) for at in range(1, len(self._symbols)) for symbol in self._symbols[at]]
        return {(cell, behind) for cell in cells for behind in self.after(cell)}
