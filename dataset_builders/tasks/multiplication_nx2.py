"""Multiplication of n digits by two digits; see multiplication.py."""

from dataset_builders.algorithms.multiplication import Multiplication


class MultiplicationNx2(Multiplication):
    """Problems read `98765*43=`; training has second numbers of one and of two digits."""

    second_digits = 2
    title = "Multiplication of a decimal number of n digits by one of two digits with a pointer memory"
