"""Every context that a Turing machine may come into, whatever its input: the rule of its task, for proofs.

The tape is abstracted. Of a configuration the cells next to the head are kept, and, for every state of the machine,
which two cells may stand side by side anywhere to the left of the head, and anywhere to its right. A cell knows where
its symbol is from, and which of the symbols that no input has stand further away from the head; what stands there does
not change before the head has come to the cell. A move brings a cell into sight: each that may stand there. So all
that a run can reach is explored, and perhaps more. That a cell is impossible, such as the right end's marker after
a move to the left, or a second mark where a machine sets one at a time, follows from nothing but this.

Why every run is explored, by induction over its steps: when the head leaves to the right, what is new on its left is
the pair of the cell left of it and the cell under it, which is noted for the next state; all other pairs on both sides
were noted for this state, and are for the next unless no row of noted pairs leads to them from the head's neighbour,
as one does to whatever stands there. A write changes the cell under the head alone, which stands in no noted pair. To
the left it is the same in the mirror.
"""

from collections import defaultdict
from collections.abc import Hashable, Iterable, Sequence
from dataclasses import dataclass, field
from typing import NamedTuple

from dataset_builders.algorithms.machine import LEFT, RIGHT, STATE, STAY, Machine
from dataset_builders.algorithms.machine_inputs import Inputs
from hf_toolssm.protocol.calls import begin_token
from hf_toolssm.protocol.rule import END, Place, Rule, calls, say
from hf_toolssm.protocol.trajectory import ANSWER
from hf_toolssm.tools.tape import TAPE_BEGIN, TAPE_END, TAPE_LEFT, TAPE_READ, TAPE_RIGHT, tape_write

_MOVES = {LEFT: calls(TAPE_LEFT), RIGHT: calls(TAPE_RIGHT), STAY: ()}
_READ = begin_token(TAPE_READ)
_MARKERS = (TAPE_BEGIN, TAPE_END)
_REWIND, _COPY = "to the left end", "to the right end"
"""States besides the machine's, in which the model is when it has halted, and writes what stands on the tape."""


class Cell(NamedTuple):
    """A symbol, and what else is known of it.

    Attributes:
        symbol: what stands there.
        place: which place of the input's form it has from there; 0 where it was written, or is a marker.
        writer: the state that wrote it, if one did. To write what is there already changes nothing.
        beyond: the symbols that no input has, of the cells further away from the head, which is not here.
    """

    symbol: str
    place: int = 0
    writer: str = ""
    beyond: str = ""


_BEGIN, _END, _NOTHING = Cell(TAPE_BEGIN), Cell(TAPE_END), Cell("")
_Rows = dict[Cell, set[Cell]]
"""Of each cell the cells that may stand behind it, seen from the head."""


class Window(NamedTuple):
    """The cell under the head and its neighbours; beyond a marker stands nothing."""

    left: Cell
    cell: Cell
    right: Cell


class _Step(NamedTuple):
    """What the model says in a state, what stands under the head then (None for what stood there), where the head
    goes, and the next state."""

    says: tuple[str, ...]
    written: Cell | None
    move: str
    state: str


@dataclass
class _Tapes:
    """All that the tape may be like in one state, or some of it."""

    windows: set[Window] = field(default_factory=set)
    left: _Rows = field(default_factory=lambda: defaultdict(set))
    right: _Rows = field(default_factory=lambda: defaultdict(set))

    def size(self) -> int:
        """How much is noted."""
        return len(self.windows) + sum(len(behind) for rows in (self.left, self.right) for behind in rows.values())


class MachineContexts(Rule):
    """The rule of one machine.

    A state and a symbol of which the table says nothing end a path, as they end a trajectory.
    """

    start: Hashable = ("prompt", 0)

    def __init__(self, machine: Machine) -> None:
        self._machine = machine
        self._word = _Word(machine.inputs)
        self._marks = {*machine.symbols} - {machine.blank} - {s for part in machine.inputs.parts for s in part.symbols}
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
        written = None if rule.symbol == cell else Cell(rule.symbol, writer=state)
        return _Step(says, written, rule.move, rule.state)

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
        tapes[self._machine.start].right |= self._word.rows()
        size = -1
        while size != (size := sum(tape.size() for tape in tapes.values())):
            for state, tape in list(tapes.items()):
                after = defaultdict[str, list[_Tapes]](list)
                for window in tape.windows:
                    if step := self._step(state, window):
                        after[step.state].append(self._moved(tape, window, step))
                for then, moved in after.items():
                    _carry_over(tapes[then], tape, moved)
        return tapes

    def _left_behind(self, cell: Cell, neighbour: Cell) -> Cell:
        """A cell that the head leaves, whose neighbour on the other side it has left before."""
        return cell._replace(beyond="".join(sorted({*neighbour.beyond} | ({neighbour.symbol} & self._marks))))

    def _moved(self, tape: _Tapes, window: Window, step: _Step) -> _Tapes:
        """What may be seen after a step, and what stands behind the cell that the head has left."""
        left, cell, right = window
        if step.written is not None:
            left, right = (_BEGIN if cell == _BEGIN else left), (_END if cell == _END else right)
            cell = step.written
        after = _Tapes({Window(left, cell, right)})
        if step.move == RIGHT and cell != _END:
            passed, seen = self._left_behind(cell, left), right._replace(beyond="")
            after.left[passed] |= {left} - {_NOTHING}
            after.windows = {Window(passed, seen, beyond) for beyond in _behind(tape.right, right, _END)}
        elif step.move == LEFT and cell != _BEGIN:
            passed, seen = self._left_behind(cell, right), left._replace(beyond="")
            after.right[passed] |= {right} - {_NOTHING}
            after.windows = {Window(beyond, seen, passed) for beyond in _behind(tape.left, left, _BEGIN)}
        return after


def _behind(rows: _Rows, cell: Cell, marker: Cell) -> set[Cell]:
    return {_NOTHING} if cell == marker else rows[cell]


def _carry_over(to: _Tapes, before: _Tapes, moved: Sequence[_Tapes]) -> None:
    """Adds what some steps from one state lead to, and of what stood there all that may still stand on its side."""
    windows = {window for each in moved for window in each.windows}
    to.windows |= windows
    lefts, rights = [before.left, *(each.left for each in moved)], [before.right, *(each.right for each in moved)]
    _carry_rows(to.left, _joined(lefts), {window.left for window in windows})
    _carry_rows(to.right, _joined(rights), {window.right for window in windows})


def _joined(several: Iterable[_Rows]) -> _Rows:
    joined: _Rows = defaultdict(set)
    for rows in several:
        for cell, behind in rows.items():
            joined[cell] |= behind
    return joined


def _carry_rows(to: _Rows, rows: _Rows, cells: set[Cell]) -> None:
    """Adds the rows of cells that begin with one of these."""
    known, waiting = set(cells), list(cells)
    while waiting:
        cell = waiting.pop()
        if behind := rows.get(cell):
            to[cell] |= behind
            waiting += behind - known
            known |= behind


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

    def rows(self) -> _Rows:
        """What may stand behind each cell of an input, the marker of its right end included."""
        cells = [Cell(symbol, at) for at in range(1, len(self._symbols)) for symbol in self._symbols[at]]
        return {cell: self.after(cell) for cell in cells}
