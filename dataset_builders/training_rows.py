"""The training rows of a problem set: from a dataset that is there, or from one that is built."""

from pathlib import Path

from datasets import Dataset, load_dataset, load_dataset_builder

from dataset_builders.build import build_folder
from dataset_builders.problem_sets import ProblemSet


def training_rows(
    problems: ProblemSet, dataset: str | None, folder: Path, num_proc: int, builds: bool
) -> tuple[Dataset, str | None]:
    """The training split, with its commit if it is on the Hub.

    Args:
        problems: names the configuration.
        dataset: a folder or a Hub id; None builds the rows.
        folder: to build into.
        num_proc: processes that build.
        builds: whether this process is the one that builds; the others find what it has built.

    Raises:
        DatasetMismatchError, DatasetWriteError: see `build_folder`.
    """
    if dataset is not None and not Path(dataset).is_dir():
        builder = load_dataset_builder(dataset, problems.name)
        builder.download_and_prepare()
        return builder.as_dataset("train"), builder.hash
    if dataset is None and builds:
        build_folder([problems], folder, num_proc)
    source = folder if dataset is None else Path(dataset)
    return load_dataset(str(source.resolve()), problems.name, split="train"), None
