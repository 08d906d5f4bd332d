"""Multiplication of two numbers of n digits; see multiplication.py."""

from dataset_builders.algorithms.multiplication import Multiplication


class MultiplicationNxn(Multiplication):
    """Problems read `98765*43210=`; training draws the two lengths apart from each other."""

    variants = ("local",)
