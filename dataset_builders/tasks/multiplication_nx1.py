"""Multiplication of n digits by one digit; see multiplication.py."""

from dataset_builders.algorithms.multiplication import Multiplication


class MultiplicationNx1(Multiplication):
    """Problems read `98765*4=`."""

    second_digits = 1
    title = "Multiplication of a decimal number of n digits by one of one digit with a pointer memory"
