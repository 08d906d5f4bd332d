"""Programs of many small files that one variable has to be passed through (PAPER section 4, task 6).

n functions stand one to a file; `main.py` calls some of them, and every other is called by one before it. Each takes
one to three of the variables v0..v9, passes some on, and the last, `foo`, also uses v10, which `main.py` sets. What is
broken is that v10 is passed along no path from `main.py` to `foo`. Names rise along the calls: f17 calls f40, and
never the other way.

    main.py                 f17.py                  foo.py
    from f17 import f17     from foo import foo     def foo(v2):
    v0 = 4                  def f17(v0, v2):            v2 = v10 + v2
    ...                         v5 = v0 + 3             return v2
    v10 = 7                     v5 = foo(v2)
    v3 = f17(v0, v2)            return v5 - v0
    print(v3)

A line is a statement of its own, so that a bug is a change of one line. Blank lines stand between the imports and the
rest, so many that a line's number says nothing about its function, and every number up to 30 is seen in training.
What a repaired program prints is computed here from the statements, and never by running the files.
"""

import random
from collections.abc import Mapping
from dataclasses import dataclass, replace

MAIN, FOO, MISSING = "main", "foo", "v10"
VARIABLES = tuple(f"v{i}" for i in range(10))

MOST_DEPTH = 60
"""Functions on one path of calls, and so of imports: Python gives up at about 150 files that import each other."""

MOST_CALLS = 6
"""Executed calls per function: with many second callers a run would take exponentially long."""

_NAMES = (100, 1000, 10_000)
"""A program's functions are numbered below one of these, or below twice their count: there names are most alike, and
the interpreter's hints mislead most. With each bound most names have one digit less than it, so that names of two,
three and four digits are about as frequent in training, where no program has a hundred functions.

Half of the programs that are small enough are numbered by two digits alone (f8, f87, f877, f8787): which digit comes
next in a name is then told by its place in the name and by nothing else, as it is anywhere among a thousand names."""

_MOST_LINES = 30
"""Lines of a file, blank ones among them."""


@dataclass(frozen=True)
class Line:
    """One statement.

    Attributes:
        target: the variable that is set; of a condition the one that is compared, of a return "".
        terms: variables that are added up, or a call's arguments.
        callee: the function that is called; "" for a sum.
        constant: what is added; of a condition the bound above which 7 is taken from the target.
        is_condition: whether it is one, which takes two lines of text.
    """

    target: str
    terms: tuple[str, ...] = ()
    callee: str = ""
    constant: int = 0
    is_condition: bool = False

    def text(self, passes_on: bool) -> list[str]:
        """Its text; with `passes_on` v10 is the last argument of its call."""
        if self.is_condition:
            return [f"    if {self.target} > {self.constant}:", f"        {self.target} = {self.target} - 7"]
        if self.callee:
            arguments = ", ".join((*self.terms, *(MISSING,) * passes_on))
            return [f"    {self.target} = {self.callee}({arguments})"]
        total = " + ".join(self.terms) + (f" + {self.constant}" if self.constant else "")
        return [f"    {self.target} = {total}" if self.target else f"    return {total}"]


@dataclass(frozen=True)
class Function:
    """A function, or `main.py`, whose parameters are what it sets first and whose return is what it prints."""

    name: str
    parameters: tuple[str, ...]
    body: tuple[Line, ...]
    blank_lines: int = 0

    @property
    def callees(self) -> tuple[str, ...]:
        """What it calls, each once."""
        return tuple(dict.fromkeys(line.callee for line in self.body if line.callee))


@dataclass(frozen=True)
class Program:
    """Functions by name, `main` first and `foo` last; every one is called from those before it.

    Attributes:
        functions: all of them.
        values: what `main.py` sets v0..v10 to.
    """

    functions: Mapping[str, Function]
    values: tuple[int, ...]

    def on_path(self) -> set[str]:
        """The functions from which `foo` is reached: those that need v10. `main` is one."""
        found = {FOO}
        for function in reversed([*self.functions.values()]):
            if found.intersection(function.callees):
                found.add(function.name)
        return found

    def files(self, repaired: bool = False) -> dict[str, str]:
        """The text of every file, in the order of the functions."""
        passed = self.on_path() if repaired else set()
        return {f"{name}.py": self._text(function, passed) for name, function in self.functions.items()}

    def _text(self, function: Function, passed: set[str]) -> str:
        lines = [f"from {callee} import {callee}" for callee in function.callees] + [""] * function.blank_lines
        body = [text for line in function.body for text in line.text(line.callee in passed)]
        if function.name == MAIN:
            lines += main_values(self.values)
            body = [text.removeprefix("    ").replace("return ", "print(", 1) for text in body]
            body[-1] += ")"
        else:
            parameters = ", ".join((*function.parameters, *(MISSING,) * (function.name in passed)))
            lines.append(f"def {function.name}({parameters}):")
        return "\n".join([*lines, *body]) + "\n"

    def printed(self, values: tuple[int, ...]) -> int:
        """What the repaired program prints where `main.py` sets v0..v10 to these."""
        return self._run(self.functions[MAIN], values[:-1], values[-1])

    def _run(self, function: Function, arguments: tuple[int, ...], missing: int) -> int:
        scope = dict(zip(function.parameters, arguments)) | {MISSING: missing}
        for line in function.body:
            terms = tuple(scope[term] for term in line.terms)
            if line.is_condition:
                scope[line.target] -= 7 * (scope[line.target] > line.constant)
            elif line.callee:
                scope[line.target] = self._run(self.functions[line.callee], terms, missing)
            else:
                scope[line.target] = sum(terms) + line.constant
        return scope[""]

    def depth_and_calls(self) -> tuple[int, int]:
        """Functions on the longest path of calls, and how many calls a run executes."""
        depth: dict[str, int] = {}
        calls: dict[str, int] = {}
        for name, function in reversed([*self.functions.items()]):
            called = [line.callee for line in function.body if line.callee]
            depth[name] = 1 + max((depth[callee] for callee in called), default=0)
            calls[name] = sum(1 + calls[callee] for callee in called)
        return depth[MAIN], calls[MAIN]


def main_values(values: tuple[int, ...]) -> list[str]:
    """The lines in which `main.py` sets v0..v10."""
    return [f"v{i} = {value}" for i, value in enumerate(values)]


def sample_values(rng: random.Random) -> tuple[int, ...]:
    """Values of v0..v10."""
    return tuple(rng.randrange(1, 100) for _ in range(len(VARIABLES) + 1))


def sample_program(rng: random.Random, length: int) -> Program:
    """A program of so many functions, `foo` among them, that runs in a bounded number of calls at any length."""
    names = [MAIN, *(f"f{number}" for number in _sample_numbers(rng, length)), FOO]
    calls = _sample_calls(rng, names)
    parameters = {name: tuple(sorted(rng.sample(VARIABLES, rng.randint(1, 3)))) for name in names[1:]}
    parameters[MAIN] = VARIABLES
    functions = {
        name: Function(name, parameters[name], _sample_body(rng, parameters, name, calls[name])) for name in names
    }
    program = Program(functions, sample_values(rng))
    lines = {name: text.count("\n") for name, text in zip(names, program.files().values())}
    spaced = {
        name: replace(function, blank_lines=rng.randrange(_MOST_LINES + 1 - lines[name]))
        for name, function in functions.items()
    }
    return replace(program, functions=spaced)


def _sample_numbers(rng: random.Random, length: int) -> list[int]:
    """The numbers of the functions but `foo`, in order."""
    two = {*rng.sample("0123456789", 2)}
    alike = [number for number in range(max(_NAMES)) if two.issuperset(str(number))]
    is_alike = rng.random() < 0.5 and len(alike) >= length - 1
    numbers = alike if is_alike else range(rng.choice((2 * length, *(max(most, length) for most in _NAMES))))
    return sorted(rng.sample(numbers, length - 1))


def _sample_calls(rng: random.Random, names: list[str]) -> dict[str, list[str]]:
    """Whom each function calls: a tree under main, most of whose leaves call foo, and a few second callers."""
    calls: dict[str, list[str]] = {name: [] for name in names}
    depth = {MAIN: 1}
    inner = names[1:-1]
    for at, name in enumerate(inner):
        callers = [c for c in names[: at + 1] if len(calls[c]) < 3 and depth[c] < MOST_DEPTH - 2]
        caller = rng.choice(callers)
        calls[caller].append(name)
        depth[name] = depth[caller] + 1
    for name in inner or [MAIN]:
        if not calls[name] and rng.random() < 0.8:
            calls[name].append(FOO)
    if not any(FOO in called for called in calls.values()):
        calls[names[-2]].append(FOO)
    for at, name in enumerate(inner):
        later = inner[at + 1 :]
        if later and len(calls[name]) < 3 and rng.random() < 0.15:
            second = rng.choice(later)
            if second not in calls[name] and _is_small(calls, names, name, second):
                calls[name].append(second)
    return calls


def _is_small(calls: dict[str, list[str]], names: list[str], caller: str, callee: str) -> bool:
    """Whether the program with one more call stays within `MOST_DEPTH` and `MOST_CALLS`."""
    depth: dict[str, int] = {}
    executed: dict[str, int] = {}
    for name in reversed(names):
        called = calls[name] + [callee] * (name == caller)
        depth[name] = 1 + max((depth[c] for c in called), default=0)
        executed[name] = sum(1 + executed[c] for c in called)
    return depth[MAIN] <= MOST_DEPTH and executed[MAIN] <= MOST_CALLS * len(names)


def _sample_body(
    rng: random.Random, parameters: dict[str, tuple[str, ...]], name: str, callees: list[str]
) -> tuple[Line, ...]:
    """Statements whose result depends on every call."""
    scope = list(parameters[name])
    body: list[Line] = []

    def add(target: str, terms: tuple[str, ...], constant: int = 0) -> None:
        body.append(Line(target, terms, constant=constant))
        if target not in scope:
            scope.append(target)

    if name == FOO:
        add(rng.choice(VARIABLES), (MISSING, rng.choice(scope)))
    elif name != MAIN:
        add(rng.choice(VARIABLES), (rng.choice(scope),), rng.randrange(1, 10))
    if name != MAIN and rng.random() < 0.3:
        body.append(Line(rng.choice(scope), constant=rng.randrange(100), is_condition=True))
    results: list[str] = []
    for callee in callees:
        for needed in parameters[callee]:
            if needed not in scope:
                add(needed, (rng.choice(scope),), rng.randrange(1, 10))
        result = rng.choice([v for v in VARIABLES if v not in results])
        body.append(Line(result, parameters[callee], callee))
        results.append(result)
        if result not in scope:
            scope.append(result)
    add("", tuple(results) or (body[0].target,))
    return tuple(body)
