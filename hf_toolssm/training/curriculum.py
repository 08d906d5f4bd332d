"""A curriculum: short trajectories first, then all."""

import random

from datasets import Dataset


def short_rows_first(rows: Dataset, total: int, seed: int) -> Dataset:
    """As many rows as a training sees, in the order in which it is to see them.

    The first half goes from the shortest rows to the longest, the second half is in random order; both are drawn from
    all rows, none twice in a half before all were drawn once.

    Args:
        rows: rendered rows, with `input_ids`.
        total: rows that the training sees in all: steps times rows per step.
        seed: of the draw.
    """
    rng = random.Random(f"curriculum/{seed}")
    lengths = [len(ids) for ids in rows["input_ids"]]

    def draw(count: int) -> list[int]:
        order: list[int] = []
        while len(order) < count:
            order += rng.sample(range(len(rows)), min(len(rows), count - len(order)))
        return order

    first, second = draw(total // 2), draw(total - total // 2)
    return rows.select([*sorted(first, key=lengths.__getitem__), *second])
