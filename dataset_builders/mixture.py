"""Several tasks in one training set (PAPER section 4, task 8): which, how long, how often, and with which tools.

A share reads `addition:5=0.25`: problems of at most 5 digits, a quarter as often as those of a task of weight 1.
"""

import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from datasets import Dataset, interleave_datasets

from dataset_builders.catalog import load_task, task_file
from dataset_builders.problem_sets import TRAINING, ProblemSet
from dataset_builders.task import Task, check_variant
from hf_toolssm.errors import InvalidMixtureError

_SHARE = re.compile(r"([a-z0-9_]+|(?:[A-Za-z]:)?[^:=]+\.tm)(?:/([a-z0-9_]+))?:([1-9][0-9]*)=([0-9.]+)")


@dataclass(frozen=True)
class Share:
    """One task of a mixture.

    Attributes:
        task: the task's name.
        variant: which of its algorithms.
        max_length: longest training problem.
        weight: how often its rows are drawn, beside those of the other tasks.
    """

    task: str
    variant: str
    max_length: int
    weight: float

    def training_set(self, size: int, seed: int) -> ProblemSet:
        """Its training problems, so many of them."""
        return ProblemSet(self.task, TRAINING, self.max_length, (("train", size),), self.variant, seed)

    def __str__(self) -> str:
        """As `trained_part` reads it; a table of the user's own by its file's name."""
        return f"{task_file(self.task)}/{self.variant}:{self.max_length}={self.weight:g}"


def parse_share(text: str) -> Share:
    """Reads `task:max_length=weight`, or `task/variant:max_length=weight`.

    Raises:
        InvalidMixtureError: the text is no share, or its weight is 0.
        UnknownTaskError: there is no such task.
        InvalidProblemError: the task has no such variant.
    """
    match = re.fullmatch(_SHARE, text)
    if match is None or not _is_positive(match[4]):
        raise InvalidMixtureError(
            f"{text!r} is no share of a mixture: write task:max_length=weight, as in addition:5=0.25"
        )
    name, variant, length, weight = match.groups()
    task = load_task(name)
    variant = variant or task.variants[0]
    check_variant(task, variant)
    return Share(name, variant, int(length), float(weight))


def training_shares(task: str, variant: str | None, max_length: int, mixture: Sequence[str]) -> list[Share]:
    """What a training is on: its own task, of weight 1, and those that are mixed in.

    Args:
        task: as `load_task` takes it.
        variant: of its algorithms; by default the first.
        max_length: longest training problem.
        mixture: shares as `parse_share` reads them.

    Raises:
        InvalidMixtureError: a text is no share, or two tables have one name.
        UnknownTaskError, InvalidProblemError: see `parse_share`.
    """
    shares = [Share(task, variant or load_task(task).variants[0], max_length, 1.0), *map(parse_share, mixture)]
    tables = {share.task for share in shares}
    if len({task_file(table) for table in tables}) < len(tables):
        raise InvalidMixtureError(f"two tables of the mixture have the same name, of {sorted(tables)}: rename one")
    return shares


def trained_part(about: Mapping[str, Any], task: str) -> dict[str, Any]:
    """Variant and training maximum of one task of a training, which may be a mixture; nothing for any other task.

    Args:
        about: what `recipes/sft.py` wrote of the training.
        task: as `load_task` takes it.
    """
    name = task_file(task)  # as the training calls it: a table of the user's own lies beside the model by its name
    if about.get("task") == name:
        return {fact: about[fact] for fact in ("variant", "train_max_length")}
    for share in about.get("mixture", []):
        found = re.fullmatch(_SHARE, share)
        if found is not None and found[1] == name:
            return {"variant": found[2], "train_max_length": int(found[3])}
    return {}


def merge_tools(tasks: Iterable[tuple[Task, str]]) -> list[dict[str, Any]]:
    """The tools of all these tasks and variants, each once, with the largest of every number and all characters."""
    merged: dict[str, dict[str, Any]] = {}
    for task, variant in tasks:
        for spec in task.tools(variant):
            known = merged.setdefault(spec["name"], dict(spec))
            for option, value in spec.items():
                before = known.get(option, value)
                if isinstance(value, str) and option != "name":
                    known[option] = "".join(dict.fromkeys(before + value))  # a tape's symbols
                else:
                    known[option] = max(before, value)
    return list(merged.values())


def merge_cells(tasks: Iterable[tuple[Task, str]]) -> list[str]:
    """The cells of all these tasks and variants, each once."""
    return list(dict.fromkeys(cell for task, variant in tasks for cell in task.cells(variant)))


def mix(datasets: Sequence[Dataset], weights: Sequence[float], seed: int) -> Dataset:
    """Rows of all datasets, drawn by weight until every row was drawn at least once; of one, its own."""
    if len(datasets) == 1:
        return datasets[0]
    probabilities = [weight / sum(weights) for weight in weights]
    return interleave_datasets(list(datasets), probabilities, seed=seed, stopping_strategy="all_exhausted")


def _is_positive(text: str) -> bool:
    try:
        return float(text) > 0
    except ValueError:  # two points in a number
        return False
