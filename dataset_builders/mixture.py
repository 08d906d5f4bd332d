"""Several tasks in one training set (PAPER section 4, task 8): which, how long, how often, and with which tools.

A share reads `addition:5=0.25`: problems of at most 5 digits, a quarter as often as those of a task of weight 1.
"""

import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from datasets import Dataset, interleave_datasets

from dataset_builders.catalog import load_task
from dataset_builders.problem_sets import TRAINING, ProblemSet
from dataset_builders.task import Task
from hf_toolssm.errors import InvalidMixtureError

_WEIGHT = r"[0-9]+\.?[0-9]*|\.[0-9]+"
_SHARE = re.compile(rf"([a-z0-9_]+|(?:[A-Za-z]:)?[^:=]+\.tm)(?:/([a-z0-9_]+))?:([1-9][0-9]*)=({_WEIGHT})")


@dataclass(frozen=True)
class Share:
    """One task of a mixture.

    Attributes:
        task: of its own weight and lengths.
        variant: which of its algorithms.
        max_length: longest training problem.
        weight: how often its rows are drawn, beside those of the other tasks.
    """

    task: Task
    variant: str
    max_length: int
    weight: float

    def training_set(self, size: int, seed: int) -> ProblemSet:
        """Its training problems, so many of them."""
        return ProblemSet(self.task, TRAINING, self.max_length, (("train", size),), self.variant, seed)

    def __str__(self) -> str:
        """As `trained_part` reads it; a table of the user's own by its file's name."""
        return f"{self.task.saved_name}/{self.variant}:{self.max_length}={self.weight:g}"


def parse_share(text: str) -> Share:
    """Reads `task:max_length=weight`, or `task/variant:max_length=weight`.

    Raises:
        InvalidMixtureError: the text is no share, or its weight is 0.
        UnknownTaskError: there is no such task.
        InvalidProblemError: the task has no such variant.
    """
    match = re.fullmatch(_SHARE, text)
    if match is None or not float(match[4]):
        raise InvalidMixtureError(
            f"{text!r} is no share of a mixture: write task:max_length=weight, as in addition:5=0.25"
        )
    name, variant, length, weight = match.groups()
    task = load_task(name)
    return Share(task, task.check_variant(variant or task.variants[0]), int(length), float(weight))


def training_shares(task: Task, variant: str | None, max_length: int, mixture: Sequence[str]) -> list[Share]:
    """What a training is on: its own task, of weight 1, and those that are mixed in.

    Args:
        task: which the model is trained and measured for.
        variant: of its algorithms; by default the first.
        max_length: longest training problem.
        mixture: shares as `parse_share` reads them.

    Raises:
        InvalidMixtureError: a text is no share, or two tables have one name.
        UnknownTaskError, InvalidProblemError: see `parse_share`.
    """
    shares = [Share(task, variant or task.variants[0], max_length, 1.0), *map(parse_share, mixture)]
    names = [name for name, _ in {(share.task.saved_name, share.task.version) for share in shares}]
    if len(set(names)) < len(names):
        raise InvalidMixtureError(f"two tables of the mixture have the same name, of {sorted(names)}: rename one")
    return shares


def measured_task(about: Mapping[str, Any], model: str, task: str | None, variant: str | None) -> tuple[Task, str]:
    """What a model is measured on, and the variant: by default what it was trained on.

    Args:
        about: what `recipes/sft.py` wrote of the training.
        model: a folder, where a table of the user's own lies beside the model; or a Hub id.
        task: as `load_task` takes it.
        variant: of the task's algorithms.

    Raises:
        UnknownTaskError, InvalidProblemError: see `parse_share`.
    """
    found = load_task(task or about.get("task", "addition"), beside=model)
    return found, found.check_variant(variant or trained_part(about, found).get("variant", found.variants[0]))


def trained_part(about: Mapping[str, Any], task: Task) -> dict[str, Any]:
    """Variant and training maximum of one task of a training, which may be a mixture; nothing for any other task.

    Args:
        about: what `recipes/sft.py` wrote of the training.
        task: which of its tasks.
    """
    if about.get("task") == task.saved_name:
        return {fact: about[fact] for fact in ("variant", "train_max_length")}
    for share in about.get("mixture", []):
        found = re.fullmatch(_SHARE, share)
        if found is not None and found[1] == task.saved_name:
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
