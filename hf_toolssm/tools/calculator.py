"""A calculator for whole numbers of any length: the single-turn tool of PAPER's ablations (task 9).

The call `calculate` has an expression as its argument, `12+7*2`, and shows its value: numbers, `+`, `-` and `*`, where
`*` binds closer and a number may have a minus of its own. Nothing is remembered.
"""

import decimal
import re
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Generic

from hf_toolssm.errors import InvalidExpressionError, UnknownCallError
from hf_toolssm.tools.tool import Cell

CALCULATE = "calculate"

_EXPRESSION = re.compile(r"-?[0-9]+([-+*]-?[0-9]+)*")
_TERM = re.compile(r"([-+]?)(-?[0-9]+(?:\*-?[0-9]+)*)")

# Exact or an error, at any length; unlike int() the decimal module reads and writes digits without a limit.
_EXACT = decimal.Context(
    prec=decimal.MAX_PREC, Emax=decimal.MAX_EMAX, Emin=decimal.MIN_EMIN, traps=[decimal.Inexact, decimal.Overflow]
)


class Calculator:
    """The calculator tool. A product of very long numbers takes its time, so calls have a limit."""

    unit = "cells"
    has_side_effects = False
    calls: Mapping[str, bool] = {CALCULATE: True}
    markers = tuple("0123456789+-*")

    def start(self, problem: Sequence[Cell], marker: Callable[[str], Cell]) -> "CalculatorSession[Cell]":
        return CalculatorSession({symbol: marker(symbol) for symbol in self.markers})

    def restore(self, state: Mapping[str, Any], marker: Callable[[str], Cell]) -> "CalculatorSession[Cell]":
        return self.start((), marker)


class CalculatorSession(Generic[Cell]):
    """Knows which cell is which symbol, and remembers nothing."""

    def __init__(self, cell_of: Mapping[str, Cell]) -> None:
        self._cell_of = cell_of
        self._symbol_of = {cell: symbol for symbol, cell in cell_of.items()}

    def write(self, cell: Cell) -> None:
        pass  # what the model thinks is no part of an expression

    def call(self, name: str, argument: Sequence[Cell]) -> tuple[Cell, ...]:
        if name != CALCULATE:
            raise UnknownCallError(f"calculator has no call {name!r}")
        value = evaluate("".join(self._symbol_of.get(cell, "?") for cell in argument))
        return tuple(self._cell_of[symbol] for symbol in value)

    def clone(self) -> "CalculatorSession[Cell]":
        return self

    def state(self) -> Mapping[str, Any]:
        return {}


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
