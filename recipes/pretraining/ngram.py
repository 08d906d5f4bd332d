"""A 5-gram model of tokens, to tell what a language model is worth: interpolated counts, Witten and Bell's."""

import numpy as np
from numpy.typing import NDArray

BITS = 12
"""Of a token: five of them are one whole number, so that counting is sorting."""

MOST_TOKENS = 1 << BITS

Ids = NDArray[np.int64]


def ngram_log2(train: Ids, test: Ids, vocabulary: int, order: int = 5) -> NDArray[np.float64]:
    """The logarithm to base 2 of every token's probability in `test`, given those before it.

    The probability by n tokens is that by n - 1, weighted by how many different tokens have followed what stands
    before, and the counts (I. Witten and T. Bell, The Zero-Frequency Problem, 1991, method C).

    Args:
        train: tokens, at least `order`.
        test: tokens, at least `order`; of the first ones fewer stand before.
        vocabulary: tokens in all, at most 4,096.
        order: tokens counted together.
    """
    if not 0 < vocabulary <= MOST_TOKENS:
        raise ValueError(f"a vocabulary has at most {MOST_TOKENS:,} tokens here, and not {vocabulary:,}")
    known = np.full(len(test), 1 / vocabulary)
    for length in range(1, order + 1):
        grams, counts = np.unique(_packed(train, length), return_counts=True)
        contexts, begins = np.unique(grams >> BITS, return_index=True)
        followed = np.add.reduceat(counts, begins)
        kinds = np.diff(np.append(begins, len(grams)))
        asked = _packed(test, length)
        count = _looked_up(grams, counts, asked)
        total, different = (_looked_up(contexts, each, asked >> BITS) for each in (followed, kinds))
        rest = slice(length - 1, None)
        known[rest] = np.where(
            total > 0, (count + different * known[rest]) / np.maximum(total + different, 1), known[rest]
        )
    return np.log2(known)


def _packed(ids: Ids, length: int) -> Ids:
    """Every `length` tokens in a row as one number, the last in the lowest bits."""
    ids = ids.astype(np.int64)
    packed = np.zeros(len(ids) - length + 1, dtype=np.int64)
    for at in range(length):
        packed = (packed << BITS) | ids[at : at + len(packed)]
    return packed


def _looked_up(keys: Ids, values: NDArray[np.int64], asked: Ids) -> NDArray[np.int64]:
    """The values of what is asked for among sorted keys; 0 where there is none."""
    at = np.minimum(np.searchsorted(keys, asked), len(keys) - 1)
    return np.where(keys[at] == asked, values[at], 0)
