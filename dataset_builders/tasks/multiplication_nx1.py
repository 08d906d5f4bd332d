"""Multiplication of n digits by one digit; see multiplication.py."""

from collections.abc import Sequence

from dataset_builders.algorithms.multiplication import Multiplication
from dataset_builders.algorithms.partial_products import PARTIAL_PRODUCTS


class MultiplicationNx1(Multiplication):
    """Problems read `98765*4=`."""

    second_digits = 1
    title = "Multiplication of a decimal number of n digits by one of one digit with a pointer memory"
    variants: Sequence[str] = ("local", PARTIAL_PRODUCTS)
