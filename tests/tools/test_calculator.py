"""The calculator computes as Python does, at any length, and refuses everything else by name."""

import sys

import pytest
from hypothesis import given
from hypothesis import strategies as st

from hf_toolssm.errors import InvalidExpressionError, NoArgumentError, UnknownCommandError
from hf_toolssm.tools.calculator import CALCULATE, EQUALS, Calculator, evaluate


def calculate(expression):
    session = Calculator().start("any problem", marker=str)
    session.execute(CALCULATE)
    for symbol in expression:
        session.write(symbol)
    return "".join(session.execute(EQUALS))


NUMBERS = st.integers(-(10**30), 10**30)


@given(numbers=st.lists(NUMBERS, min_size=1, max_size=6), operators=st.lists(st.sampled_from("+-*"), min_size=5))
def test_expressions_have_the_value_that_python_gives_them(numbers, operators):
    expression = str(numbers[0]) + "".join(f"{o}{n}" for o, n in zip(operators, numbers[1:]))
    assert calculate(expression) == str(eval(expression))


def test_numbers_beyond_pythons_digit_limit_are_computed():
    digits = sys.get_int_max_str_digits() + 1_000
    assert calculate("9" * digits + "+1") == "1" + "0" * digits
    assert calculate("-" + "9" * digits + "*" + "1" + "0" * digits) == "-" + "9" * digits + "0" * digits


@pytest.mark.parametrize("zero", ["-0", "0*-7", "5-5", "-3+3", "00"])
def test_there_is_one_zero(zero):
    assert calculate(zero) == "0"


@pytest.mark.parametrize(
    "wrong", ["", "+", "1+", "*2", "1++2", "1**2", "1--2-", "1/2", "2.5", "1e9", "a", "٣", "1 +2"]
)
def test_what_is_no_expression_is_refused_and_stays_open(wrong):
    session = Calculator().start("=", marker=str)
    session.execute(CALCULATE)
    for symbol in wrong:
        session.write(symbol)
    with pytest.raises(InvalidExpressionError, match="12\\+7\\*2"):
        session.execute(EQUALS)
    assert session.state()["expression"] == list(wrong)


def test_nothing_is_computed_that_was_not_begun():
    session = Calculator().start("=", marker=str)
    session.write("1")
    with pytest.raises(NoArgumentError, match="none is open"):
        session.execute(EQUALS)
    with pytest.raises(UnknownCommandError, match="search"):
        session.execute("<|search|>")


def test_the_observation_is_cells_of_the_session():
    ids = {symbol: 50 + at for at, symbol in enumerate(Calculator.markers)}
    session = Calculator().start([7], marker=ids.__getitem__)
    session.execute(CALCULATE)
    for symbol in "9*9":
        session.write(ids[symbol])
    assert session.execute(EQUALS) == (ids["8"], ids["1"])
    assert evaluate("9*9") == "81"
