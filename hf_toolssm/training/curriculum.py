"""In which order rows are trained: a curriculum, short trajectories first, or a rebalanced order of each epoch."""

import random
from typing import Any

from datasets import Dataset
from transformers import TrainerCallback
from transformers.trainer_pt_utils import BatchRebalanceSampler

from hf_toolssm.errors import UnsafeTrainingError
from hf_toolssm.training.sft_config import ToolSFTConfig


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


def in_curriculum(rows: Dataset, config: ToolSFTConfig) -> Dataset:
    """The rows of a whole training in the order of a curriculum, which the config then keeps.

    Raises:
        UnsafeTrainingError: the training has no fixed number of steps, or orders its rows in another way.
    """
    if config.max_steps < 1:
        raise UnsafeTrainingError("a curriculum is planned over the whole training: set max_steps")
    if config.train_sampling_strategy != "random":
        raise UnsafeTrainingError(
            f"a curriculum orders the rows itself: leave out train_sampling_strategy: {config.train_sampling_strategy}"
        )
    config.train_sampling_strategy = "sequential"
    per_step = config.train_batch_size * config.gradient_accumulation_steps * config.world_size
    return short_rows_first(rows, config.max_steps * per_step, config.seed)


class EpochOfRows(TrainerCallback):
    """Tells a rebalanced order its epoch, which transformers forgets when several processes resume."""

    def __init__(self, sampler: BatchRebalanceSampler) -> None:
        self._sampler = sampler

    def on_epoch_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        self._sampler.set_epoch(int((state.epoch or 0.0) + 1e-6))
