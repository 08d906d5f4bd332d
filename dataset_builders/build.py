"""Builds a task's dataset into a folder that `load_dataset` opens, and publishes it.

    python -m dataset_builders.build addition --output outputs/tool-addition \\
        --train-max-length 5 --num-examples 100_000 --lengths 5 10 100 1000 --adversarial-lengths 1000 --num-proc 2
    python -m dataset_builders.build addition --train-max-length 5 --push-to-hub org/tool-addition --private
"""

import argparse
from collections.abc import Sequence
from pathlib import Path

from dataset_builders.catalog import load_task
from dataset_builders.problem_sets import TRAINING, ProblemSet, evaluation_sets
from dataset_builders.shards import write_shards
from hf_toolssm.errors import DatasetWriteError
from hf_toolssm.files import escape_unprintable


def build_folder(problem_sets: Sequence[ProblemSet], folder: Path | str, num_proc: int = 1) -> Path:
    """Builds problem sets into a folder, reuses the shards that are there, and writes the card.

    Args:
        problem_sets: one per configuration; all of one task.
        folder: created if need be; sets that an earlier call built there stay.
        num_proc: processes. The bytes of the result do not depend on it.

    Returns:
        The folder.

    Raises:
        DatasetMismatchError: the folder holds a configuration of that name that was built in another way, or whose
            rows the task does not write any more.
        DatasetWriteError: the disk is full or a file cannot be written; finished shards stay.
    """
    from dataset_builders.card import write_card  # half a second that `--help` does not need

    folder = Path(folder)
    write_shards(problem_sets, folder, num_proc)
    try:
        write_card(folder)
    except OSError as error:
        raise DatasetWriteError(
            f"the card of {folder} could not be written ({error}): run the command again"
        ) from error
    return folder


def main(arguments: Sequence[str] | None = None) -> None:
    escape_unprintable()
    parser = argparse.ArgumentParser(
        prog="python -m dataset_builders.build", description="Builds a task's dataset, and publishes it if told to."
    )
    parser.add_argument(
        "task",
        help="a file of dataset_builders/tasks/ or machines/, or the path of your own .tm",
    )
    parser.add_argument("--output", type=Path, help="the folder to build into; by default outputs/tool-TASK")
    parser.add_argument("--train-max-length", type=int, help="longest problem of the training set; none without it")
    parser.add_argument("--num-examples", type=int, default=40_000, help="rows of the training split")
    parser.add_argument("--num-validation", type=int, default=1_000, help="rows of the validation split")
    parser.add_argument("--lengths", type=int, nargs="*", default=[], help="lengths of the plain test sets")
    parser.add_argument("--adversarial-lengths", type=int, nargs="*", default=[], help="of the adversarial sets")
    parser.add_argument("--num-problems", type=int, default=32, help="rows of every test set")
    parser.add_argument("--variant", help="which of the task's algorithms; by default its first")
    parser.add_argument("--seed", type=int, default=0, help="another seed gives other problems")
    parser.add_argument("--num-proc", type=int, default=1, help="processes")
    parser.add_argument("--push-to-hub", metavar="ORG/NAME", help="publish the folder there, in one commit")
    parser.add_argument("--private", action="store_true", help="make a new repository private")
    parser.add_argument("--branch", default="main", help="of the repository; made if need be")
    parser.add_argument("--pull-request", action="store_true", help="propose the commit instead of making it")
    parser.add_argument("--message", help="of the commit; by default what the folder holds")
    options = parser.parse_args(arguments)

    task = load_task(options.task)
    variant = options.variant or task.variants[0]
    sets = []
    if options.train_max_length:
        sizes = [("train", options.num_examples), ("validation", options.num_validation)]
        present = tuple((split, size) for split, size in sizes if size)
        sets.append(ProblemSet(task, TRAINING, options.train_max_length, present, variant, options.seed))
    sets += evaluation_sets(
        task, variant, options.lengths, options.adversarial_lengths, options.num_problems, options.seed
    )
    if not sets:
        parser.error("nothing to build: give --train-max-length, --lengths or --adversarial-lengths")
    folder = options.output or Path("outputs") / f"tool-{task.name}"
    destination = None
    if options.push_to_hub:
        from dataset_builders.publish import check_dataset_destination, publish_dataset
        from hf_toolssm.hub.publish import Destination

        destination = Destination(
            options.push_to_hub, "dataset", options.private, options.branch, options.pull_request
        )
        built = {path.name for path in folder.iterdir() if path.is_dir()} if folder.is_dir() else set()
        check_dataset_destination(destination, built | {problems.name for problems in sets})
    build_folder(sets, folder, options.num_proc)
    print(f"{len(sets)} configurations in {folder}: " + ", ".join(problems.name for problems in sets))
    if destination is not None:
        published = publish_dataset(folder, destination, options.message)
        print(published)


if __name__ == "__main__":
    main()
