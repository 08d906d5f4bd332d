"""A calculator for whole numbers of any length: the single-turn tool of PAPER's ablations (task 9).

A calculation is a command with an argument:

    <|calculate|> 1 2 + 7 * 2 <|equals|>      shows 2 6

What the model writes behind `<|calculate|>` is the expression: numbers, `+`, `-` and `*`, where `*` binds closer and a
number may have a minus of its own. Nothing is remembered but an expression that is not finished.
"""

import decimal
import re
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Generic

from hf_toolssm.errors import InvalidExpressionError, NoArgumentError, UnknownCommandError
from hf_toolssm.tools.tool import Cell

CALCULATE = "<|calculate|>"
EQUALS = "<|equals|>"
_SYMBOLS = "0123456789+-*"
_EXPRESSION = re.compile(r"-?[0-9]+([-+*]-?[0-9]+)*")
_TERM = re.compile(r"([-+]?)(-?[0-9]+(?:\*-?[0-9]+)*)")

# Exact or an error, at any length; unlike int() the decimal module reads and writes digits without a limit.
_EXACT = decimal.Context(
    prec=decimal.MAX_PREC, Emax=decimal.MAX_EMAX, Emin=decimal.MIN_EMIN, traps=[decimal.Inexact, decimal.Overflow]
)


class Calculator:
    """The calculator tool. A product of very long numbers takes its time, so calls have a limit."""

    time_limit = 30.0
    reaches_outside = False
    commands = (CALCULATE, EQUALS)
    markers = tuple(_SYMBOLS)

    def start(self, problem: Sequence[Cell], marker: Callable[[str], Cell]) -> "CalculatorSession[Cell]":
        return CalculatorSession({symbol: marker(symbol) for symbol in _SYMBOLS}, None)

    def restore(self, state: Mapping[str, Any], marker: Callable[[str], Cell]) -> "CalculatorSession[Cell]":
        session = self.start((), marker)
        session.expression = None if state["expression"] is None else list(state["expression"])
        return session


class CalculatorSession(Generic[Cell]):
    """One expression in the making.

    Attributes:
        expression: what was written since `<|calculate|>`; None when no expression is open.
    """

    def __init__(self, cell_of: Mapping[str, Cell], expression: list[Cell] | None) -> None:
        self._cell_of = cell_of
        self._symbol_of = {cell: symbol for symbol, cell in cell_of.items()}
        self.expression = expression

    def write(self, cell: Cell) -> None:
        if self.expression is not None:
            self.expression.append(cell)

    def execute(self, command: str) -> tuple[Cell, ...]:
        if command == CALCULATE:
            self.expression = []
            return ()
        if command != EQUALS:
            raise UnknownCommandError(f"calculator has no command {command!r}")
        if self.expression is None:
            raise NoArgumentError(
                f"{EQUALS} ends an expression, and none is open: write {CALCULATE} and the expression first"
            )
        expression, self.expression = self.expression, None  # before the work: a call that is given up changes nothing
        try:
            value = evaluate("".join(self._symbol_of.get(cell, "?") for cell in expression))
        except InvalidExpressionError:
            self.expression = expression
            raise
        return tuple(self._cell_of[symbol] for symbol in value)

    def clone(self) -> "CalculatorSession[Cell]":
        return CalculatorSession(self._cell_of, None if self.expression is None else self.expression.copy())

    def state(self) -> Mapping[str, Any]:
        return {"expression": None if self.expression is None else list(self.expression)}


def evaluate(expression: str) -> str:
    """The value of an expression, in decimal digits.

    Raises:
        InvalidExpressionError: it is not numbers with `+`, `-` or `*` between them.
    """
    if not _EXPRESSION.fullmatch(expression):
        raise InvalidExpressionError(
            f"{expression[:60]!r} is no expression: write whole numbers with + - or * between them, as in 12+7*2"
        )
    total = decimal.Decimal(0)
    for sign, product in _TERM.findall(expression):
        term = decimal.Decimal(1)
        for number in product.split("*"):
            term = _EXACT.multiply(term, _EXACT.create_decimal(number))
        total = _EXACT.subtract(total, term) if sign == "-" else _EXACT.add(total, term)
    return str(total)
