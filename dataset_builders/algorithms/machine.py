"""A Turing machine as a table in a small text format, checked line by line.

    # Adds one to a binary number.
    symbols: 01_
    input: [01]+
    start: right
    halt: done

    right 01 -> right R
    right _  -> carry L
    carry 1  -> carry 0 L
    carry 0_ -> done 1 S

The first line is the title, and every other line that begins with `#` a comment. A rule reads: in this state, on any
of these symbols, go into that state, write that symbol (left out: the same one), and move left or right or stay (L, R,
S). Also possible are `blank:`, the symbol of all cells that were never written (`_`), and `answer:`, which is `tape`
(what is left on the tape, without blanks) or `state` (the halt state). What `input:` may say is in
`machine_inputs.py`.
"""

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from dataset_builders.algorithms.machine_inputs import Inputs, parse_inputs
from hf_toolssm.errors import DidNotHaltError, InvalidMachineError, NoRuleError, UnknownToolError
from hf_toolssm.tools.tape import MAX_CELLS, Tape

LEFT, RIGHT, STAY = "L", "R", "S"
TAPE, STATE = "tape", "state"

_FIELDS = {"symbols", "input", "start", "halt", "blank", "answer"}
_FIELD = re.compile(r"([a-z]+)\s*:\s*(.*)")
_RULE = re.compile(r"(\S+)\s+(\S+)\s+->\s+(\S+)(?:\s+(\S))?\s+([LRS])")
_LATIN = "".join(letter for letter in map(chr, range(0xC0, 0x250)) if letter.isalpha())
_LETTERS = f"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz{_LATIN}"


@dataclass(frozen=True)
class Rule:
    """What a machine does in a state on a symbol: the next state, the symbol it writes, and L, R or S."""

    state: str
    symbol: str
    move: str


_Found = list[tuple[int, str, str, Rule]]
"""Line, state, symbol and rule."""


@dataclass(frozen=True)
class Outcome:
    """How a run ended.

    Attributes:
        state: the halt state.
        tape: all cells that were ever input or written, from left to right, and blank ones on either side.
        steps: how many rules were carried out.
    """

    state: str
    tape: str
    steps: int


@dataclass(frozen=True)
class Machine:
    """A checked machine.

    Attributes:
        name: the file's name without its ending.
        title: one line.
        symbols: the tape's symbols, one character each.
        blank: the symbol of cells that were never written.
        start: the first state.
        halts: the states in which it stops.
        answer: "tape" or "state".
        inputs: what its problems look like.
        rules: by state and symbol.
        letters: one character for each state, which is no symbol.
        table: the whole text.
    """

    name: str
    title: str
    symbols: str
    blank: str
    start: str
    halts: Sequence[str]
    answer: str
    inputs: Inputs
    rules: Mapping[tuple[str, str], Rule]
    letters: Mapping[str, str]
    table: str

    def rule(self, state: str, symbol: str) -> Rule:
        """What to do in a state on a symbol.

        Raises:
            NoRuleError: the table does not say.
        """
        found = self.rules.get((state, symbol))
        if found is None:
            raise NoRuleError(
                f"{self.name} has no rule for the state {state} on {symbol!r}: add a line `{state} {symbol} -> ...`"
            )
        return found

    def run(self, tape: str, max_steps: int) -> Outcome:
        """Runs the machine by itself, without a tool.

        Raises:
            DidNotHaltError: it has not halted after that many steps, or on as many cells as a tape may have.
            NoRuleError: it came to a state and a symbol of which the table says nothing.
        """
        # Blank cells are added on the side that the head leaves, so that an index is all that it takes.
        cells, at, state, steps, halts = list(tape), 0, self.start, 0, set(self.halts)
        table = {key: (r.state, r.symbol, "LSR".index(r.move) - 1) for key, r in self.rules.items()}
        while state not in halts:
            if steps == max_steps:
                raise DidNotHaltError(
                    f"{self.name} has not halted after {max_steps:,} steps on {tape[:40]!r}: give an input on which "
                    "it does, or allow more steps"
                )
            try:
                state, cells[at], move = table[state, cells[at]]
            except KeyError:
                self.rule(state, cells[at])
                raise
            at, steps = at + move, steps + 1
            if 0 <= at < len(cells):
                continue
            if len(cells) >= MAX_CELLS:
                raise DidNotHaltError(f"{self.name} has not halted on {len(cells):,} cells, after {steps:,} steps")
            if at < 0:
                spare = len(cells)  # doubling keeps the cost of moving all cells small
                cells[:0], at = [self.blank] * spare, at + spare
            else:
                cells.append(self.blank)
        return Outcome(state, "".join(cells), steps)


def read_machine(path: Path) -> Machine:
    """Reads and checks a table.

    Raises:
        InvalidMachineError: the file is no such table; the message names the line.
    """
    try:
        text = path.read_text(encoding="utf-8-sig")
    except (OSError, UnicodeDecodeError) as error:
        raise InvalidMachineError(f"the machine {path} cannot be read: {error}") from error
    return parse_machine(text, path.stem)


def parse_machine(text: str, name: str) -> Machine:
    """The machine that a text describes; see `read_machine`."""
    lines = [(number, line.strip()) for number, line in enumerate(text.split("\n"), 1) if line.strip()]
    titles = [line.strip("# \t") for _, line in lines[:1] if line.startswith("#")]
    fields: dict[str, tuple[int, str]] = {}
    found: _Found = []
    for number, line in lines:
        if line.startswith("#"):
            continue
        if rule := re.fullmatch(_RULE, line):
            state, read, target, written, move = rule.groups()
            found.extend((number, state, symbol, Rule(target, written or symbol, move)) for symbol in read)
        elif (field := re.fullmatch(_FIELD, line)) and field[1] in _FIELDS:
            if field[1] in fields:
                raise _wrong(name, number, f"{field[1]} was given in line {fields[field[1]][0]} already")
            fields[field[1]] = number, field[2].strip()
        else:
            expected = f"a rule like `right 01 -> right R` nor one of {sorted(_FIELDS)}"
            raise _wrong(name, number, f"{line!r} is neither {expected}")
    for needed in ("symbols", "input", "start", "halt"):
        if needed not in fields:
            raise InvalidMachineError(f"{name}: a line `{needed}: ...` is missing")
    number, symbols = fields["symbols"]
    try:
        Tape(symbols)
    except UnknownToolError as error:
        raise _wrong(name, number, str(error)) from error
    number, blank = fields.get("blank", (number, "_"))
    if len(blank) != 1 or blank not in symbols:
        raise _wrong(name, number, f"the blank {blank!r} is none of the symbols {symbols}")
    halts = fields["halt"][1].split()
    if not halts:
        raise _wrong(name, fields["halt"][0], "halt names no state: write one or several in which the machine stops")
    rules = _rules(name, found, symbols, halts)
    _check_states(name, fields, found, halts)
    answer = fields.get("answer", (0, TAPE))
    if answer[1] not in (TAPE, STATE):
        raise _wrong(name, answer[0], f"answer is tape or state, not {answer[1]!r}")
    number, pattern = fields["input"]
    try:
        inputs = parse_inputs(pattern)
    except InvalidMachineError as error:
        raise _wrong(name, number, str(error)) from error
    if unknown := inputs.symbols - set(symbols):
        raise _wrong(name, number, f"the input has {min(unknown)!r}, which is none of the symbols {symbols}")
    start = fields["start"][1]
    states = list(dict.fromkeys([start, *(state for _, state, _, _ in found), *halts]))
    return Machine(
        name=name,
        title=(titles or [""])[0] or name,
        symbols=symbols,
        blank=blank,
        start=start,
        halts=tuple(halts),
        answer=answer[1],
        inputs=inputs,
        rules=rules,
        letters=_letters(name, states, symbols),
        table=text,
    )


def _wrong(name: str, number: int, message: str) -> InvalidMachineError:
    return InvalidMachineError(f"{name}, line {number}: {message}")


def _rules(name: str, found: _Found, symbols: str, halts: Sequence[str]) -> dict[tuple[str, str], Rule]:
    rules: dict[tuple[str, str], Rule] = {}
    for number, state, symbol, rule in found:
        for used in (symbol, rule.symbol):
            if used not in symbols:
                raise _wrong(name, number, f"{used!r} is none of the symbols {symbols}")
        if state in halts:
            raise _wrong(name, number, f"{state} is a halt state, and has a rule")
        if rules.setdefault((state, symbol), rule) is not rule:
            first = next(line for line, *key, _ in found if key == [state, symbol])
            raise _wrong(name, number, f"the state {state} on {symbol!r} has a rule in line {first} already")
    return rules


def _check_states(name: str, fields: Mapping[str, tuple[int, str]], found: _Found, halts: Sequence[str]) -> None:
    """Every state that is named has rules or halts, and is reached from the start."""
    line, start = fields["start"]
    with_rules = {state for _, state, _, _ in found}
    if start not in with_rules:
        raise _wrong(name, line, f"the start state {start} has no rule")
    for number, _, _, rule in found:
        if rule.state not in with_rules and rule.state not in halts:
            raise _wrong(name, number, f"the state {rule.state} has no rule and is no halt state")
    reached = [start]
    for state in reached:  # it grows meanwhile
        reached += {rule.state for _, source, _, rule in found if source == state}.difference(reached)
    for number, state, _, _ in found:
        if state not in reached:
            raise _wrong(name, number, f"the state {state} is never reached from {start}: remove it, or lead to it")
    for state in halts:
        if state not in reached:
            raise _wrong(name, fields["halt"][0], f"the halt state {state} is never reached from {start}")


def _letters(name: str, states: Sequence[str], symbols: str) -> dict[str, str]:
    """A character for each state: its own name where that is one, and otherwise the next free letter."""
    own = {state for state in states if len(state) == 1 and state not in symbols}
    free = [letter for letter in _LETTERS if letter not in own and letter not in symbols]
    others = [state for state in states if state not in own]
    if len(others) > len(free):
        raise InvalidMachineError(
            f"{name}: {len(states)} states are more than the {len(_LETTERS)} letters that name them: leave "
            "states out, or give some of them a single character as their name"
        )
    letters = dict(zip(others, free))
    return {state: letters.get(state, state) for state in states}
