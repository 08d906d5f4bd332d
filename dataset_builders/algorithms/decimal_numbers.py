"""Decimal numbers as texts of any length, for the arithmetic tasks."""

import random
import re

from hf_toolssm.errors import EmptyProblemError, InvalidProblemError

DIGITS = "0123456789"


def random_number(rng: random.Random, length: int) -> str:
    """A number of that many digits, without a leading zero; of one digit it may be 0."""
    if length == 1:
        return rng.choice(DIGITS)
    return rng.choice(DIGITS[1:]) + "".join(rng.choices(DIGITS, k=length - 1))


def number_with_zeros(rng: random.Random, length: int) -> str:
    """A number of that many digits whose first and last digit are not 0 and nine in ten of the others are."""
    digits = [rng.choice(DIGITS[1:]) for _ in range(length)]
    for at in range(1, length - 1):
        if rng.random() < 0.9:
            digits[at] = "0"
    return "".join(digits)


def two_numbers(sign: str, second_digits: int | None = None) -> dict[str, dict[str, str]]:
    """The form of a problem `number sign number =`: where one may stand, each cell that may come next, and its place.

    Args:
        second_digits: the most digits of the second number; None for any number.

    Returns:
        From `first`, in front of it, on; `end`, behind it, is no key.
    """
    form: dict[str, dict[str, str]] = {
        "first": {**dict.fromkeys(DIGITS[1:], "first digits"), "0": "first zero"},
        "first digits": {**dict.fromkeys(DIGITS, "first digits"), sign: "second"},
        "first zero": {sign: "second"},
        "second": {**dict.fromkeys(DIGITS[1:], "second 1"), "0": "second zero"},
        "second zero": {"=": "end"},
    }
    last = second_digits or 1
    for n in range(1, last + 1):
        more = last if second_digits is None else n + 1
        form[f"second {n}"] = {**(dict.fromkeys(DIGITS, f"second {more}") if more <= last else {}), "=": "end"}
    return form


def operands(problem: str, task: str, sign: str) -> tuple[str, str]:
    """The two numbers of a problem `number sign number =`.

    Raises:
        EmptyProblemError: the problem is empty.
        InvalidProblemError: the problem is no such text; the message names the task.
    """
    if not problem:
        raise EmptyProblemError("the problem is empty: state a problem of at least one cell")
    match = re.fullmatch(rf"(0|[1-9][0-9]*){re.escape(sign)}(0|[1-9][0-9]*)=", problem)
    if match is None:
        raise InvalidProblemError(
            f"{problem[:60]!r} is no {task} problem: write two numbers of decimal digits without leading zeros, "
            f"as in 98765{sign}4321="
        )
    return match[1], match[2]
