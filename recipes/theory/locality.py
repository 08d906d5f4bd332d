"""How local the trajectories of a task are, and which contexts need more than a few tokens.

    python recipes/theory/locality.py --task addition --lengths 5 50 500
    python recipes/theory/locality.py --dataset outputs/tool-addition --k 6

says for every variant and length the smallest k such that the last k tokens determine every token that the model
writes, and shows the contexts that need more than `--k`. Whether a k that grows is a model's undoing is measured by
`python recipes/reproduce/run.py locality`.
"""

import argparse
from collections.abc import Iterable, Iterator
from itertools import islice
from pathlib import Path

from dataset_builders.card import read_rows, whole_identity
from dataset_builders.catalog import load_task
from dataset_builders.problem_sets import ReferenceTrajectories, evaluation_sets
from dataset_builders.task import Task
from hf_toolssm.errors import DatasetMismatchError
from hf_toolssm.files import escape_unprintable
from hf_toolssm.protocol.locality import locality, open_contexts, tokens
from hf_toolssm.protocol.trajectory import StepKind, Trajectory


def main() -> None:
    escape_unprintable()
    parser = argparse.ArgumentParser(description="Computes how local trajectories are.")
    parser.add_argument("--task", help="a task or a Turing machine; or --dataset")
    parser.add_argument("--variants", nargs="*", help="of the task; by default all")
    parser.add_argument("--lengths", type=int, nargs="+", default=[5, 50], help="of the task's problems")
    parser.add_argument("--dataset", type=Path, help="a folder that dataset_builders.build wrote, every configuration")
    parser.add_argument("--rows", type=int, default=100, help="problems of each length, or rows of each configuration")
    parser.add_argument("--k", type=int, help="show the contexts that need more tokens than this")
    parser.add_argument("--contexts", type=int, default=5, help="how many of them")
    options = parser.parse_args()
    if (options.task is None) == (options.dataset is None):
        parser.error("give a --task, or the folder of a --dataset")
    if options.task is not None:
        sets = of_task(load_task(options.task), options.variants, options.lengths, options.rows)
    else:
        sets = of_folder(options.dataset, options.rows)
    for name, trajectories in sets:
        report(name, trajectories, options.k, options.contexts)


def of_task(
    task: Task, variants: Iterable[str] | None, lengths: Iterable[int], rows: int
) -> Iterator[tuple[str, list[Trajectory]]]:
    """Every variant's solved problems of the first length, then those of the second with them, and so on."""
    for variant in variants or task.variants:
        so_far: list[Trajectory] = []
        measured: list[str] = []
        for problems in evaluation_sets(task, variant, sorted(lengths), [], rows):
            so_far = [*so_far, *ReferenceTrajectories(problems, "test")]
            measured.append(f"{problems.length:,}")
            yield f"{variant}, length {' and '.join(measured)}", so_far


def of_folder(folder: Path, rows: int) -> Iterator[tuple[str, list[Trajectory]]]:
    """The first rows of every split of every whole configuration."""
    whole = [path for path in sorted(folder.glob("*")) if path.is_dir() and whole_identity(path) is not None]
    if not whole:
        raise DatasetMismatchError(f"{folder} holds no dataset: build one by python -m dataset_builders.build")
    for path in whole:
        for split in sorted({shard.name.partition("-")[0] for shard in path.glob("*.parquet")}):
            found = islice(read_rows(sorted(path.glob(f"{split}-*.parquet"))), rows)
            yield f"{path.name}, {split}", [Trajectory.from_row(row) for row in found]


def report(name: str, trajectories: list[Trajectory], k: int | None, contexts: int) -> None:
    found = locality(trajectories)
    longest = max(sum(len(tokens(s)) for s in each.steps if s.kind is not StepKind.INPUT) for each in trajectories)
    needs = "no number of tokens is enough" if found.k is None else f"k = {found.k}"
    print(f"{name}: {needs}; {len(trajectories)} trajectories of at most {longest:,} tokens", flush=True)
    if k is None:
        return
    more = open_contexts(trajectories, k)
    print(f"  {len(more)} contexts of {k} tokens do not say what follows")
    for context in more[:contexts]:
        after = ", ".join(f"{token} ({count})" for token, count in context.continuations.items())
        print(f"    {' '.join(context.tokens)}  ->  {after}".replace("\n", "\\n"))


if __name__ == "__main__":
    main()
