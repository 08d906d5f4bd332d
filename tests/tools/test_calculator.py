"""The calculator computes as Python does, at any length, and refuses everything else by name."""

import sys

import pytest
from hypothesis import given
from hypothesis import strategies as st

from hf_toolssm.errors import InvalidExpressionError, UnknownCallError
from hf_toolssm.tools.calculator import Calculator


def calculate(expression):
    return "".join(Calculator().start("any problem", str).call("calculate", expression))


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
def test_what_is_no_expression_is_refused(wrong):
    with pytest.raises(InvalidExpressionError, match="12\\+7\\*2"):
        calculate(wrong)


def test_what_it_cannot_do_is_named():
    with pytest.raises(UnknownCallError, match="search"):
        Calculator().start("=", str).call("search", "1")


def test_the_observation_is_cells_of_the_session():
    ids = {symbol: 50 + at for at, symbol in enumerate(Calculator.markers)}
    at_work = Calculator().start([7], ids.__getitem__)
    assert at_work.call("calculate", [ids[symbol] for symbol in "9*9"]) == (ids["8"], ids["1"])
    with pytest.raises(InvalidExpressionError):
        at_work.call("calculate", [7])
