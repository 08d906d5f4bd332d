"""Bugs of one line, put into a program that lacks v10 already; `repair.py` has what undoes each.

    name       a variable or a function is misspelt: a capital letter, or the first letter twice
    import     a line `from f40 import f40` is missing
    colon      the colon behind a `def` or an `if` is missing
    arguments  a call has one argument too many, or lacks its last

A kind may come several times. Every bug stands in a file of its own as long as there are files, and in a line of its
own always.
"""

import random
import re
from collections.abc import Iterator, Mapping, Sequence

from dataset_builders.algorithms.programs import MISSING, Program
from hf_toolssm.errors import TooFewProblemsError

_CALL = re.compile(r"(\s*v\d = )(f\w+)\((.*)\)")
_VALUE = re.compile(r"(?: {4})?(?:v\d = |return )(.*)")
"""A line that every run executes: what stands below a condition, eight spaces in, may never be."""

_WORD = re.compile(r"\bv\d\b|\bf\d+\b|\bfoo\b")

Change = tuple[str, int, str | None]
"""A file, the index of one of its lines, and what stands there instead; None takes the line away."""


def with_bugs(program: Program, kinds: Sequence[str], rng: random.Random) -> dict[str, str]:
    """The files of a program whose v10 is not passed on, with one more bug of each of these kinds.

    Raises:
        TooFewProblemsError: the program has no line left for one of them.
    """
    files = {name: text.split("\n") for name, text in program.files().items()}
    changes: list[Change] = []
    for kind in kinds:
        candidates = list(_CANDIDATES[kind](program, files, rng))
        free = [c for c in candidates if not any(_disturb(files, c, change) for change in changes)]
        apart = [c for c in free if c[0] not in {name for name, _, _ in changes}]
        if not free:
            raise TooFewProblemsError(
                f"a program of {len(files) - 1} functions has no line for a bug of kind {kind!r}"
            )
        changes.append(rng.choice(apart or free))
    changed = {(name, at): line for name, at, line in changes}
    kept = {name: [changed.get((name, at), line) for at, line in enumerate(lines)] for name, lines in files.items()}
    return {name: "\n".join(line for line in lines if line is not None) for name, lines in kept.items()}


def _disturb(files: Mapping[str, list[str]], first: Change, second: Change) -> bool:
    """Whether two changes stand in one line, or one takes the import away that the other's hint comes from."""
    if first[0] != second[0]:
        return False
    lines = [files[name][at] for name, at, _ in (first, second)]
    imported = [line.removeprefix("from ").split()[0] for line in lines if line.startswith("from ")]
    return first[1] == second[1] or any(f" {name}(" in line for name in imported for line in lines)


def _lines(files: Mapping[str, list[str]]) -> Iterator[tuple[str, int, str]]:
    for name, lines in files.items():
        for at, line in enumerate(lines):
            yield name, at, line


def _misspelt(program: Program, files: Mapping[str, list[str]], rng: random.Random) -> Iterator[Change]:
    for name, at, line in _lines(files):
        found = _VALUE.fullmatch(line)
        words = [w for w in _WORD.finditer(line, *found.span(1)) if w[0] != MISSING] if found else []
        if words:
            functions = [w for w in words if w[0].startswith("f")]  # a call's, which are few among all words
            word = rng.choice(functions if functions and rng.random() < 0.5 else words)
            # Only the capital letter where two names would be as near: `ff12` to f12 and f112, `vv0` to v0 and v10.
            double = word[0].startswith("v") and word[0] != "v0" and rng.random() < 0.5
            wrong = word[0][0] + word[0] if double else word[0].capitalize()
            yield name, at, line[: word.start()] + wrong + line[word.end() :]


def _not_imported(program: Program, files: Mapping[str, list[str]], rng: random.Random) -> Iterator[Change]:
    return ((name, at, None) for name, at, line in _lines(files) if line.startswith("from "))


def _without_colon(program: Program, files: Mapping[str, list[str]], rng: random.Random) -> Iterator[Change]:
    return ((name, at, line[:-1]) for name, at, line in _lines(files) if line.endswith(":"))


def _wrong_arguments(program: Program, files: Mapping[str, list[str]], rng: random.Random) -> Iterator[Change]:
    """Only where the callee never gets v10, or has no other caller: else v10 would be taken for the argument."""
    on_path = program.on_path()
    callers = [callee for function in program.functions.values() for callee in function.callees]
    for name, at, line in _lines(files):
        found = _CALL.fullmatch(line)
        if found is None or (found[2] in on_path and callers.count(found[2]) > 1):
            continue
        arguments = found[3].split(", ")
        lacks = len(arguments) > 1 and rng.random() < 0.75  # whose name is copied
        changed = arguments[:-1] if lacks else [*arguments, rng.choice(arguments)]
        yield name, at, f"{found[1]}{found[2]}({', '.join(changed)})"


_CANDIDATES = {
    "name": _misspelt,
    "import": _not_imported,
    "colon": _without_colon,
    "arguments": _wrong_arguments,
}
KINDS = tuple(_CANDIDATES)
