"""Decimal numbers as texts of any length, for the arithmetic tasks."""

import random

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
