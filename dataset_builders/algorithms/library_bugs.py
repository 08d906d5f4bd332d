"""One bug in a module of the standard library, of the kinds that `bugs.py` has, in a line that its check executes.

name       a name is misspelt: a capital letter, or the first letter twice
import     a line `import os` is missing, whose name an executed line uses
colon      the colon at the end of a `def`, an `if`, ... is missing
arguments  a call of positional arguments has one argument too many, or lacks its last
"""

import ast
import io
import re
import tokenize
from collections.abc import Iterator
from functools import cache

from dataset_builders.algorithms.library import Module
from dataset_builders.algorithms.repair import read_run

KINDS = ("import", "arguments", "name", "colon")
"""From the rarest on."""

Change = tuple[int, str | None]
"""The index of a line, and what stands there instead; None takes the line away."""


def changed(text: str, change: Change) -> str:
    """A text with one line changed."""
    at, line = change
    lines = text.split("\n")
    lines[at : at + 1] = [] if line is None else [line]
    return "\n".join(lines)


@cache
def changes(module: Module, kind: str) -> tuple[Change, ...]:
    """All bugs of a kind, in the order of the lines; of one place, which argument or which letter is drawn by it."""
    lines = module.text.split("\n")
    return tuple(sorted(_CHANGES[kind](module, lines), key=lambda c: (c[0], c[1] or "")))


def _executed(module: Module, lines: list[str]) -> Iterator[ast.expr]:
    """The expressions that stand on one line, which is executed and has no character beyond ASCII."""
    usable = {at for at in module.executed if lines[at - 1 : at] and lines[at - 1].isascii()}
    for node in ast.walk(ast.parse(module.text)):
        if isinstance(node, ast.expr) and node.lineno == node.end_lineno and node.lineno in usable:
            yield node


def _misspelt(module: Module, lines: list[str]) -> Iterator[Change]:
    known = set(re.findall(r"\w+", module.text))
    for node in _executed(module, lines):
        if isinstance(node, ast.Name) and isinstance(node.ctx, ast.Load) and node.id[0].isalpha():
            line = lines[node.lineno - 1]
            for wrong in {node.id[0] + node.id, node.id[0].upper() + node.id[1:]} - known:
                yield node.lineno - 1, line[: node.col_offset] + wrong + line[node.end_col_offset :]


def _not_imported(module: Module, lines: list[str]) -> Iterator[Change]:
    used = {node.id for node in _executed(module, lines) if isinstance(node, ast.Name)}
    for at, line in enumerate(lines):
        if (found := re.fullmatch(r"import (\w+)", line)) and found[1] in used and lines.count(line) == 1:
            yield at, None


def _without_colon(module: Module, lines: list[str]) -> Iterator[Change]:
    before = None
    for token in tokenize.generate_tokens(io.StringIO(module.text).readline):
        if token.type == tokenize.NEWLINE and before is not None and before.string == ":":
            line = lines[token.start[0] - 1]
            if line.endswith(":"):
                yield token.start[0] - 1, line[:-1]
        before = token


def _wrong_arguments(module: Module, lines: list[str]) -> Iterator[Change]:
    """An argument more is one of the call's own without parts; one less was a name."""
    for node in _executed(module, lines):
        if not isinstance(node, ast.Call) or node.keywords or not node.args:
            continue
        line, last = lines[node.lineno - 1], node.args[-1]
        end = last.end_col_offset or 0
        if isinstance(last, ast.Starred | ast.GeneratorExp) or line[end] != ")":
            continue
        head, tail = line[:end], line[end:]
        for argument in node.args:
            if isinstance(argument, ast.Name | ast.Attribute | ast.Constant):
                yield node.lineno - 1, f"{head}, {line[argument.col_offset : argument.end_col_offset]}{tail}"
        if len(node.args) > 1 and isinstance(last, ast.Name):
            yield node.lineno - 1, line[: node.args[-2].end_col_offset] + tail


_SHOWN = {
    "import": re.compile(r"NameError: "),
    "arguments": re.compile(r"TypeError: .*\barguments?\b"),
    "name": re.compile(r"NameError: "),
    "colon": re.compile(r"SyntaxError: "),
}


def is_shown(kind: str, observation: str) -> bool:
    """Whether a check fails by a bug of that kind, and says so in the same words every time."""
    _, error = read_run(observation)
    return _SHOWN[kind].match(error) is not None and " at 0x" not in observation


_CHANGES = {"import": _not_imported, "arguments": _wrong_arguments, "name": _misspelt, "colon": _without_colon}
