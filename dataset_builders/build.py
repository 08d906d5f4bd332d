"""Builds a task's dataset into a folder that `load_dataset` opens, and publishes it.

    python -m dataset_builders.build addition --output outputs/tool-addition \\
        --train-max-length 5 --num-examples 100_000 --lengths 5 10 100 1000 --adversarial-lengths 1000 --num-proc 2
    python -m dataset_builders.build addition --train-max-length 5 --push-to-hub org/tool-addition --private

The work is cut into shards of a fixed number of rows. A shard appears under its name only when it is whole, so that an
interrupted build goes on where it stopped and nothing half-written passes as whole; the card is written last. It names
every configuration's content, which is what tells `load_dataset` that a folder was built anew: of local files the key
of its cache holds the folder's last name and the card's `configs` block, and nothing else.
"""

import argparse
import hashlib
import json
import multiprocessing
import os
import re
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import pyarrow
import pyarrow.parquet
from tqdm import tqdm

from dataset_builders.builder import TRAINING, ProblemSet, evaluation_sets, generate_rows, shard_ranges
from dataset_builders.task import copy_table, load_task, task_file, task_name
from hf_toolssm.errors import DatasetMismatchError, DatasetWriteError
from hf_toolssm.files import escape_unprintable

ROWS_PER_SHARD = 5_000
CELLS_PER_ROW_GROUP = 500_000
METADATA_KEY = b"hf_toolssm"
CONTENT_KEY = b"hf_toolssm_content"
ROWS_PER_COMPARISON = 100
"""Of so many rows of a shard that is reused, one is solved again and compared."""


@dataclass(frozen=True)
class Shard:
    """One Parquet file: a range of a split's rows."""

    problems: ProblemSet
    split: str
    start: int
    stop: int
    path: Path

    def identity(self) -> dict[str, Any]:
        """All that determines the file's content; it stands in the file's own metadata."""
        version = load_task(self.problems.task).version
        described = asdict(self.problems) | {"sizes": dict(self.problems.sizes)}
        described["task"] = task_file(self.problems.task)
        return described | {"version": version, "split": self.split, "start": self.start, "stop": self.stop}


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
    from dataset_builders.card import write_card  # the card reads what this module writes

    folder = Path(folder)
    shards = [shard for problems in problem_sets for shard in plan_shards(problems, folder)]
    _check_one_task(folder, {(task_file(p.task), load_task(p.task).version) for p in problem_sets})
    for directory in {shard.path.parent for shard in shards}:
        _check_directory(directory, {shard.path: shard for shard in shards})
    for task in {problems.task for problems in problem_sets}:
        copy_table(task, folder)
    missing = [shard for shard in shards if not shard.path.exists()]
    _forget_card(folder, {shard.problems.name for shard in missing})
    with tqdm(
        total=sum(s.stop - s.start for s in shards),
        initial=sum(s.stop - s.start for s in shards if s not in missing),
        desc="building rows",
        unit="row",
    ) as progress:
        if num_proc == 1:
            for shard in missing:
                _write_shard(shard, progress)
        else:
            # Spawned, not forked: the caller may have started threads.
            with multiprocessing.get_context("spawn").Pool(num_proc) as pool:
                for count in pool.imap_unordered(_write_shard, missing):
                    progress.update(count)
    try:
        write_card(folder)
    except OSError as error:
        raise DatasetWriteError(
            f"the card of {folder} could not be written ({error}): run the command again"
        ) from error
    return folder


def plan_shards(problems: ProblemSet, folder: Path) -> list[Shard]:
    """The files of a configuration; names as `datasets` expects them."""
    shards = []
    for split, size in problems.sizes:
        ranges = shard_ranges(size, ROWS_PER_SHARD)
        for number, (start, stop) in enumerate(ranges):
            path = folder / problems.name / f"{split}-{number:05d}-of-{len(ranges):05d}.parquet"
            shards.append(Shard(problems, split, start, stop, path))
    return shards


def read_identity(path: Path) -> dict[str, Any] | None:
    """What a shard's metadata says of it, and under `content` the SHA-256 of its rows.

    None for a file that this module did not write whole.
    """
    try:
        metadata = pyarrow.parquet.read_metadata(path).metadata or {}
        return {**json.loads(metadata[METADATA_KEY]), "content": metadata[CONTENT_KEY].decode()}
    except (OSError, ValueError, KeyError):  # what Arrow, a damaged description and a missing one raise
        return None


def _check_one_task(folder: Path, tasks: set[tuple[str, str]]) -> None:
    """The card of a folder tells of one task, in one version."""
    identities = [identity for path in folder.glob("*/*.parquet") if (identity := read_identity(path))]
    found = tasks | {(identity["task"], identity["version"]) for identity in identities}
    if len(found) > 1:
        named = " and ".join(f"{task}, version {version}" for task, version in sorted(found))
        raise DatasetMismatchError(f"{folder} would hold {named}: choose another --output")


def _forget_card(folder: Path, unfinished: set[str]) -> None:
    """Removes a card that names what stood where configurations are yet to be built.

    `load_dataset` would answer it from its cache, should the build be interrupted.
    """
    card = folder / "README.md"
    if card.exists():
        named = re.findall("^- config_name: (.+)$", card.read_text(encoding="utf-8"), re.MULTILINE)
        if not unfinished.isdisjoint(named):
            card.unlink()


def _check_directory(directory: Path, expected: dict[Path, Shard]) -> None:
    for path in sorted(directory.glob("*.parquet")):
        shard = expected.get(path)
        if shard is None or not _holds(path, shard):
            raise DatasetMismatchError(
                f"{path} was built with other settings, by another version, or is damaged: "
                "choose another --output, or delete that configuration's folder"
            )


def _holds(path: Path, shard: Shard) -> bool:
    """Whether a file holds that shard: by what it says, every page's checksum, and rows that are solved again.

    The last finds a task whose code was changed under the same version, unless only other rows changed.
    """
    found = read_identity(path)
    if found is None or {**shard.identity(), "content": found["content"]} != found:
        return False
    index = shard.start
    try:
        with pyarrow.parquet.ParquetFile(path, page_checksum_verification=True) as file:
            for group in map(file.read_row_group, range(file.num_row_groups)):
                first = -(index - shard.start) % ROWS_PER_COMPARISON
                for at in range(first, group.num_rows, ROWS_PER_COMPARISON):
                    (row,) = generate_rows(shard.problems, shard.split, index + at, index + at + 1)
                    if group.slice(at, 1).to_pylist() != [row]:
                        return False
                index += group.num_rows
    except OSError:  # what Arrow raises
        return False
    return index == shard.stop


def _write_shard(shard: Shard, progress: tqdm | None = None) -> int:
    """Writes one shard under a temporary name and renames it when it is whole."""
    from dataset_builders.datasets_builder import FEATURES  # half a second that `--help` does not need

    temporary = shard.path.with_suffix(".incomplete")
    schema = FEATURES.arrow_schema
    schema = schema.with_metadata({**schema.metadata, METADATA_KEY: json.dumps(shard.identity()).encode()})
    content = hashlib.sha256()
    try:
        temporary.parent.mkdir(parents=True, exist_ok=True)
        with temporary.open("wb") as sink:
            with pyarrow.parquet.ParquetWriter(sink, schema, compression="zstd", write_page_checksum=True) as writer:
                for rows in _row_groups(generate_rows(shard.problems, shard.split, shard.start, shard.stop)):
                    writer.write_table(pyarrow.Table.from_pylist(rows, schema=schema))
                    for row in rows:
                        content.update(json.dumps(row).encode())
                    if progress is not None:
                        progress.update(len(rows))
                writer.add_key_value_metadata({CONTENT_KEY: content.hexdigest()})
            sink.flush()
            os.fsync(sink.fileno())
        os.replace(temporary, shard.path)
    except OSError as error:
        raise DatasetWriteError(
            f"{shard.path} could not be written ({error}): free some space or choose another --output and run the "
            "same command again; finished shards are kept"
        ) from error
    finally:
        if temporary.exists():
            temporary.unlink()
    return shard.stop - shard.start


def _row_groups(rows: Iterator[dict[str, Any]]) -> Iterator[list[dict[str, Any]]]:
    """Rows in groups of bounded memory; where a group ends depends on the rows alone."""
    group: list[dict[str, Any]] = []
    cells = 0
    for row in rows:
        group.append(row)
        cells += len(row["steps"])
        if cells >= CELLS_PER_ROW_GROUP:
            yield group
            group, cells = [], 0
    yield group


def main(arguments: Sequence[str] | None = None) -> None:
    escape_unprintable()
    parser = argparse.ArgumentParser(
        prog="python -m dataset_builders.build", description="Builds a task's dataset, and publishes it if told to."
    )
    parser.add_argument(
        "task",
        help="a file of dataset_builders/ or its machines/, or the path of your own .tm",
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
        sets.append(ProblemSet(options.task, TRAINING, options.train_max_length, present, variant, options.seed))
    sets += evaluation_sets(
        options.task, variant, options.lengths, options.adversarial_lengths, options.num_problems, options.seed
    )
    if not sets:
        parser.error("nothing to build: give --train-max-length, --lengths or --adversarial-lengths")
    folder = options.output or Path("outputs") / f"tool-{task_name(options.task)}"
    destination = None
    if options.push_to_hub:
        from dataset_builders.publish import check_dataset_destination, publish_dataset  # reads what this writes
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
