"""Rows of training data as a dataset is built, against a dict a row that Arrow and JSON read, in the same bytes."""

import hashlib
import io
import json
import tempfile
import time
from collections.abc import Iterable, Iterator
from pathlib import Path

import pyarrow
import pyarrow.parquet

from dataset_builders.build import build_folder
from dataset_builders.catalog import load_task
from dataset_builders.problem_sets import (
    TRAINING,
    ProblemSet,
    ReferenceTrajectories,
    generate_rows,
    generate_trajectories,
)
from dataset_builders.shards import SCHEMA, row_groups
from measure import Contender, interleave
from models import TASK, VARIANT, Scale
from results import Result, Target

DIGITS = 5
PROCESSES = 2
TIMES_MORE = 20
"""Rows of the whole folder, which is then that of the main job: 40,000."""


def building(scale: Scale, path: str | None) -> Iterator[Result]:
    """Additions of the main job: rows of one process, then a whole folder by two, its processes' start and its card
    included."""
    problems = ProblemSet(load_task(TASK), TRAINING, DIGITS, (("train", scale.rows),), VARIANT)
    tokens = sum(sum(1 for _ in each.cells()) for each in ReferenceTrajectories(problems, "train"))
    found: dict[str, tuple[bytes, str]] = {}

    def ours() -> None:
        groups = list(row_groups(generate_trajectories(problems, "train", 0, scale.rows)))
        found["ours"] = _file(group.table(SCHEMA) for group in groups), _hash(row for g in groups for row in g.json)

    def by_dicts() -> None:
        rows = list(generate_rows(problems, "train", 0, scale.rows))
        found["dicts"] = _file([pyarrow.Table.from_pylist(rows, schema=SCHEMA)]), _hash(map(json.dumps, rows))

    timings = interleave({"ours": Contender(ours, scale.repetitions), "stock": Contender(by_dicts, scale.repetitions)})
    yield Result(
        "rows of additions, one process",
        "tokens/s",
        tokens / timings["ours"].seconds,
        stock=tokens / timings["stock"].seconds,
        memory_mib=timings["ours"].peak_mib,
        stock_memory_mib=timings["stock"].peak_mib,
        repetitions={name: timing.repetitions for name, timing in timings.items()},
        details={"same_bytes": found["ours"] == found["dicts"], "tokens": tokens},
    )
    large = ProblemSet(problems.task, TRAINING, DIGITS, (("train", scale.rows * TIMES_MORE),), VARIANT)
    with tempfile.TemporaryDirectory() as folder:
        start = time.perf_counter()
        build_folder([large], Path(folder, "data"), PROCESSES)
        seconds = time.perf_counter() - start
    speed = tokens * TIMES_MORE / seconds
    targets = [Target("tokens a second", speed, ">=", 1e6)]
    yield Result("a dataset of additions, two processes", "tokens/s", speed, repetitions={"ours": 1}, targets=targets)


def _file(tables: Iterable[pyarrow.Table]) -> bytes:
    written = io.BytesIO()
    with pyarrow.parquet.ParquetWriter(written, SCHEMA, compression="zstd", write_page_checksum=True) as writer:
        for table in tables:
            writer.write_table(table)
    return written.getvalue()


def _hash(rows: Iterable[str]) -> str:
    digest = hashlib.sha256()
    for row in rows:
        digest.update(row.encode())
    return digest.hexdigest()
