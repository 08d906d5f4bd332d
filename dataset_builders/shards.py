"""A dataset as a folder of Parquet files, which `load_dataset` opens.

The work is cut into shards of a fixed number of rows. A shard appears under its name only when it is whole, so that an
interrupted build goes on where it stopped and nothing half-written passes as whole; the card is written last. It names
every configuration's content, which is what tells `load_dataset` that a folder was built anew: of local files the key
of its cache holds the folder's last name and the card's `configs` block, and nothing else.
"""

import hashlib
import json
import multiprocessing
import os
import re
from array import array
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow
import pyarrow.parquet
from tqdm import tqdm

from dataset_builders.problem_sets import ProblemSet, generate_rows, generate_trajectories
from hf_toolssm.errors import DatasetMismatchError, DatasetWriteError
from hf_toolssm.protocol.trajectory import Step, Trajectory, step_to_row

_TEXT = pyarrow.string()
SCHEMA = pyarrow.schema(
    {
        "id": _TEXT,
        "problem": _TEXT,
        "steps": pyarrow.list_(
            pyarrow.struct({"kind": _TEXT, "name": _TEXT, "cells": pyarrow.list_(_TEXT), "text": _TEXT})
        ),
        "answer": _TEXT,
        "length": pyarrow.int64(),
    }
)
"""The columns of a row."""

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
        task = self.problems.task
        described = vars(self.problems) | {"task": task.saved_name, "sizes": dict(self.problems.sizes)}
        return described | {"version": task.version, "split": self.split, "start": self.start, "stop": self.stop}


def plan_shards(problems: ProblemSet, folder: Path) -> list[Shard]:
    """The files of a configuration; names as `datasets` expects them."""
    shards = []
    for split, size in problems.sizes:
        starts = range(0, size, problems.task.rows_per_shard)
        for number, start in enumerate(starts):
            path = folder / problems.name / f"{split}-{number:05d}-of-{len(starts):05d}.parquet"
            shards.append(Shard(problems, split, start, min(start + starts.step, size), path))
    return shards


def write_shards(problem_sets: Sequence[ProblemSet], folder: Path, num_proc: int) -> None:
    """Writes the shards of these configurations that are not there yet; see `build.build_folder`."""
    shards = [shard for problems in problem_sets for shard in plan_shards(problems, folder)]
    _check_one_task(folder, {(p.task.saved_name, p.task.version) for p in problem_sets})
    _check_present({shard.path: shard for shard in shards})
    problem_sets[0].task.save(folder)
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


def read_identity(path: Path) -> dict[str, Any] | None:
    """What a shard's metadata says of it, and under `content` the SHA-256 of its rows.

    None for a file that this module did not write whole.
    """
    try:
        metadata = pyarrow.parquet.read_metadata(path).metadata or {}
        found = {**json.loads(metadata[METADATA_KEY]), "content": metadata[CONTENT_KEY].decode()}
    except (OSError, ValueError, KeyError):  # what Arrow, a damaged description and a missing one raise
        return None
    return found if found.keys() == _IDENTITY else None


_IDENTITY = {field.name for field in fields(ProblemSet)} | {"version", "split", "start", "stop", "content"}


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


def _check_present(expected: dict[Path, Shard]) -> None:
    """Each file beside these shards is one of them."""
    for path in sorted(file for folder in {path.parent for path in expected} for file in folder.glob("*.parquet")):
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
    temporary = shard.path.with_suffix(".incomplete")
    schema = SCHEMA.with_metadata({METADATA_KEY: json.dumps(shard.identity()).encode()})
    content = hashlib.sha256()
    try:
        temporary.parent.mkdir(parents=True, exist_ok=True)
        with temporary.open("wb") as sink:
            with pyarrow.parquet.ParquetWriter(sink, schema, compression="zstd", write_page_checksum=True) as writer:
                for rows in row_groups(generate_trajectories(shard.problems, shard.split, shard.start, shard.stop)):
                    writer.write_table(rows.table(schema))
                    for row in rows.json:
                        content.update(row.encode())
                    if progress is not None:
                        progress.update(len(rows.json))
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


def row_size(row: Mapping[str, Any]) -> int:
    """Cells and characters of a row, about what it takes to hold it."""
    return sum(1 + len(step["cells"] or step["text"] or ()) for step in row["steps"])


class RowGroup:
    """Rows on their way into a file. Equal short steps are one object (`protocol.trajectory.step`), so most of a row's
    steps were met before, and each is turned into JSON and Arrow's values once.

    Attributes:
        json: every row as `json.dumps` writes what `generate_rows` gives.
        size: of all rows, as `row_size` counts.
    """

    def __init__(self) -> None:
        self.json: list[str] = []
        self.size = 0
        self._rows: list[tuple[str, str, str, int]] = []
        self._taken, self._ends = array("q"), array("i", [0])
        self._steps: list[Step] = []  # each once, which also keeps their ids theirs
        self._step_json: list[str] = []
        self._step_sizes: list[int] = []
        self._known: dict[int, int] = {}

    def add(self, name: str, trajectory: Trajectory, length: int) -> None:
        known, taken = self._known, list[int]()
        for each in trajectory.steps:
            number = known.get(id(each))
            if number is None:
                number = known[id(each)] = len(self._steps)
                self._steps.append(each)
                self._step_json.append(json.dumps(step_to_row(each)))
                self._step_sizes.append(1 + len(each.content or ()))
            taken.append(number)
        self._taken.extend(taken)
        self._ends.append(len(self._taken))
        self.size += sum(map(self._step_sizes.__getitem__, taken))
        problem, answer = trajectory.steps[0].text, trajectory.answer
        self._rows.append((name, problem, answer, length))
        steps = ", ".join(map(self._step_json.__getitem__, taken))
        self.json.append(
            f'{{"id": {json.dumps(name)}, "problem": {json.dumps(problem)}, "steps": [{steps}], '
            f'"answer": {json.dumps(answer)}, "length": {length}}}'
        )

    def table(self, schema: pyarrow.Schema) -> pyarrow.Table:
        """The rows as Arrow has them."""
        names, problems, answers, lengths = zip(*self._rows) if self._rows else ((), (), (), ())
        column = schema.field("steps").type
        steps = pyarrow.array(map(step_to_row, self._steps), column.value_type, size=len(self._steps))
        ends = pyarrow.array(np.frombuffer(self._ends, np.int32))
        steps = pyarrow.ListArray.from_arrays(ends, steps.take(np.frombuffer(self._taken, np.int64)), column)
        return pyarrow.table([names, problems, steps, answers, lengths], schema=schema)


def row_groups(trajectories: Iterator[tuple[str, Trajectory, int]]) -> Iterator[RowGroup]:
    """Rows in groups of bounded memory; where a group ends depends on the rows alone."""
    group = RowGroup()
    for each in trajectories:
        group.add(*each)
        if group.size >= CELLS_PER_ROW_GROUP:
            yield group
            group = RowGroup()
    yield group
