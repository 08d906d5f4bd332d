"""The card of a dataset folder, computed from its files."""

import hashlib
import shlex
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any

import jinja2
import numpy as np
import pyarrow.parquet
from pyarrow import compute

from dataset_builders.catalog import load_task
from dataset_builders.problem_sets import TRAINING
from dataset_builders.shards import read_identity, row_size
from dataset_builders.task import describe_tools
from hf_toolssm.files import write_atomically
from hf_toolssm.protocol.calls import begin_token
from hf_toolssm.protocol.locality import Locality, locality
from hf_toolssm.protocol.trajectory import Step, StepKind, Trajectory

LOCALITY_ROWS = 500
"""Rows of each configuration from which the card's k is computed."""

LOCALITY_CELLS = 1_000_000
"""Cells of one configuration at which fewer rows than that are enough."""

ROWS_AT_ONCE = 100
"""That are made dicts of: most of a row group are never asked for."""

_SIGNS = {StepKind.INPUT: "? ", StepKind.OUTPUT: "!", StepKind.OBSERVATION: "→ "}


@dataclass(frozen=True)
class ConfigSummary:
    """What the card says of one configuration.

    Attributes:
        identity: what its shards say of it, and under `content` the SHA-256 of all their rows.
        locality: of some of its rows, where they hold text in characters.
    """

    name: str
    identity: dict[str, Any]
    tokens: tuple[int, int, int]
    locality: Locality
    locality_rows: int


def write_card(folder: Path) -> None:
    """Writes `README.md`, which `load_dataset` reads for the configurations, from the whole ones in the folder."""
    summaries = [s for s in map(summarize, sorted(p for p in folder.iterdir() if p.is_dir())) if s is not None]
    summaries.sort(key=lambda s: (s.identity["kind"] != TRAINING, s.identity["kind"], s.identity["length"]))
    first = summaries[0].identity
    task = load_task(first["task"], beside=folder)
    template = jinja2.Template(
        (Path(__file__).parent / "card_template.md").read_text(encoding="utf-8"), trim_blocks=True, lstrip_blocks=True
    )
    text = template.render(
        task=task,
        tools={s.identity["variant"]: describe_tools(task.tools(s.identity["variant"])) for s in summaries},
        summaries=summaries,
        rebuild_commands=list(dict.fromkeys(map(rebuild_command, summaries))),
        example=_example(folder, summaries),
        in_text=not task.cells(first["variant"]),
        locality_rows=LOCALITY_ROWS,
    )
    write_atomically(folder / "README.md", text)


def whole_identity(directory: Path) -> dict[str, Any] | None:
    """What a configuration's shards say of it, see `ConfigSummary`; None when one is missing."""
    paths = sorted(directory.glob("*.parquet"))
    identities = [identity for path in paths if (identity := read_identity(path)) is not None]
    if not paths or len(identities) < len(paths):
        return None
    rows: dict[str, int] = {}
    content = hashlib.sha256()
    for path, identity in zip(paths, identities):
        content.update(f"{path.name} {identity['content']}\n".encode())
        rows[identity["split"]] = rows.get(identity["split"], 0) + pyarrow.parquet.read_metadata(path).num_rows
    shared = {k: v for k, v in identities[0].items() if k not in ("split", "start", "stop")}
    shared["content"] = content.hexdigest()
    return shared if rows == shared["sizes"] else None


def summarize(directory: Path) -> ConfigSummary | None:
    """Reads one configuration's folder; None when a shard is missing."""
    shared = whole_identity(directory)
    if shared is None:
        return None
    paths = sorted(directory.glob("*.parquet"))
    sampled = list(_sample(paths))
    lengths = sorted(length for path in paths for length in _token_counts(path))
    tokens = (lengths[0], lengths[len(lengths) // 2], lengths[-1]) if lengths else (0, 0, 0)
    return ConfigSummary(directory.name, shared, tokens, locality(sampled), len(sampled))


def rebuild_command(summary: ConfigSummary) -> str:
    """The command that builds this configuration again."""
    identity = summary.identity
    variant = f" --variant {identity['variant']} --seed {identity['seed']}"
    if identity["kind"] == TRAINING:
        sizes = identity["sizes"]
        what = f"--train-max-length {identity['length']} --num-examples {sizes['train']}"
        what += f" --num-validation {sizes.get('validation', 0)}"
    else:
        option = "--lengths" if identity["kind"] == "length" else "--adversarial-lengths"
        what = f"{option} {identity['length']} --num-problems {identity['sizes']['test']}"
    return f"python -m dataset_builders.build {shlex.quote(identity['task'])} --output FOLDER {what}{variant}"


def _sample(paths: list[Path]) -> Iterator[Trajectory]:
    cells = 0
    for row in islice(read_rows(paths), LOCALITY_ROWS):
        yield Trajectory.from_row(row)
        cells += row_size(row)
        if cells > LOCALITY_CELLS:
            return


def read_rows(paths: list[Path]) -> Iterator[dict[str, Any]]:
    """The rows of shards, a few at a time in memory."""
    for path in paths:
        with pyarrow.parquet.ParquetFile(path) as file:
            for group in range(file.num_row_groups):  # as many rows as were held in memory to write them
                for some in file.read_row_group(group).to_batches(max_chunksize=ROWS_AT_ONCE):
                    yield from some.to_pylist()


def _token_counts(path: Path) -> list[int]:
    """Tokens per row: its cells, those that begin and end a call, and an end a turn; of a span its characters."""
    counts: list[int] = []
    with pyarrow.parquet.ParquetFile(path) as file:
        for number in range(file.num_row_groups):
            rows = file.read_row_group(number, columns=["steps"])["steps"].combine_chunks()
            kind, name, cells, text = (rows.flatten().field(column) for column in ("kind", "name", "cells", "text"))
            argument = compute.coalesce(compute.list_value_length(cells), compute.utf8_length(text))
            tokens = np.nan_to_num(argument.to_numpy(zero_copy_only=False)).astype(int)
            tokens += np.asarray(name.is_valid()) * (1 + np.asarray(argument.is_valid()))
            tokens += np.asarray(compute.equal(kind, StepKind.INPUT.value))
            counts += np.add.reduceat(tokens, rows.offsets.to_numpy()[:-1] - rows.offsets[0].as_py()).tolist()
    return counts


def _example(folder: Path, summaries: list[ConfigSummary]) -> str:
    """The shortest of the first rows, step by step; see `_SIGNS`."""
    paths = sorted((folder / summaries[0].name).glob("*.parquet"))
    row = min(islice(read_rows(paths), 100), key=lambda r: len(r["steps"]))
    trajectory = Trajectory.from_row(row)
    shown = [text for step in trajectory.steps[1:] for text in _shown(step)]
    return f"problem: {row['problem']}\n" + "  ".join(shown) + f"\nanswer: {trajectory.answer}"


def _shown(step: Step) -> list[str]:
    sign = _SIGNS.get(step.kind, "")
    if isinstance(step.content, str):
        return [sign + (begin_token(step.name) + " " if step.name else "") + repr(step.content)]
    return [sign + cell for cell in step.cells()]
