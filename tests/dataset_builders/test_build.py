"""A dataset folder is whole or says so, is the same for any number of processes, and opens with load_dataset."""

import filecmp
import json
import os
import resource
import signal
import subprocess
import sys
import time
from pathlib import Path

import pyarrow.parquet
import pytest
from datasets import load_dataset

from dataset_builders import build, shards
from dataset_builders.catalog import load_task
from dataset_builders.problem_sets import (
    TRAINING,
    ProblemSet,
    ReferenceTrajectories,
    evaluation_sets,
    generate_rows,
    generate_trajectories,
)
from dataset_builders.tasks.addition import Addition
from hf_toolssm.errors import DatasetMismatchError, DatasetWriteError, TooFewProblemsError
from hf_toolssm.protocol.locality import locality
from hf_toolssm.protocol.trajectory import Trajectory

ROOT = Path(__file__).parents[2]


def training_set(train=90, validation=10, seed=0):
    return ProblemSet(
        load_task("addition"), TRAINING, 3, (("train", train), ("validation", validation)), "local", seed
    )


@pytest.fixture
def small_shards(monkeypatch):
    monkeypatch.setattr(Addition, "rows_per_shard", 25)


def all_files(folder):
    return sorted(str(p.relative_to(folder)) for p in folder.rglob("*") if p.is_file())


def assert_same_bytes(one, other):
    files = all_files(one)
    assert files == all_files(other)
    assert filecmp.cmpfiles(one, other, files, shallow=False) == (files, [], [])


def test_the_bytes_do_not_depend_on_the_number_of_processes(tmp_path):
    sets = [training_set(), *evaluation_sets(load_task("addition"), "local", [4], [4], 5)]
    for num_proc in (1, 2, 3):
        build.build_folder(sets, tmp_path / str(num_proc), num_proc)
    assert_same_bytes(tmp_path / "1", tmp_path / "2")
    assert_same_bytes(tmp_path / "1", tmp_path / "3")


def test_load_dataset_gives_the_rows_that_the_card_describes(tmp_path, small_shards):
    sets = [training_set(), *evaluation_sets(load_task("addition"), "local", [4], [6], 5)]
    folder = build.build_folder(sets, tmp_path / "data")
    for problems in sets:
        loaded = load_dataset(str(folder), problems.name, cache_dir=tmp_path / "cache")
        assert set(loaded) == {split for split, _ in problems.sizes}
        for split, size in problems.sizes:
            assert list(loaded[split]) == list(generate_rows(problems, split, 0, size))
    assert set(load_dataset(str(folder), cache_dir=tmp_path / "cache")) == {"train", "validation"}
    card = (folder / "README.md").read_text(encoding="utf-8")
    for problems in sets:
        rows = [Trajectory.from_row(r) for split, n in problems.sizes for r in generate_rows(problems, split, 0, n)]
        (line,) = [line for line in card.splitlines() if line.startswith(f"| `{problems.name}`")]
        cells = [cell.strip() for cell in line.strip("|").split("|")]
        assert cells[1] == ", ".join(f"{split} {size}" for split, size in problems.sizes)
        assert int(cells[3]) == locality(rows).k
        counts = sorted(len(list(t.cells())) + 1 for t in rows)
        assert cells[2] == f"{counts[0]}, {counts[len(counts) // 2]}, {counts[-1]}"


def test_the_commands_on_the_card_build_the_folder_again(tmp_path):
    sets = [training_set(), *evaluation_sets(load_task("addition"), "two_pointers", [4], [], 5)]
    card = (build.build_folder(sets, tmp_path / "first") / "README.md").read_text(encoding="utf-8")
    commands = [line for line in card.splitlines() if line.startswith("python -m dataset_builders.build")]
    assert len(commands) == 2
    for command in commands:
        build.main(command.replace("FOLDER", str(tmp_path / "second")).split()[3:])
    assert_same_bytes(tmp_path / "first", tmp_path / "second")


def test_a_killed_build_goes_on_where_it_stopped(tmp_path):
    arguments = ["addition", "--train-max-length", "5", "--num-examples", "40_000", "--num-validation", "0"]
    command = [sys.executable, "-m", "dataset_builders.build", *arguments, "--output", str(tmp_path / "data")]
    process = subprocess.Popen(command, cwd=ROOT, stderr=subprocess.DEVNULL)
    first = tmp_path / "data" / "max_length_5" / "train-00000-of-00008.parquet"
    deadline = time.monotonic() + 120
    while not first.exists() and time.monotonic() < deadline:
        time.sleep(0.02)
    process.send_signal(signal.SIGKILL)
    process.wait()
    assert not (tmp_path / "data" / "README.md").exists()  # nothing half-built opens as a dataset
    finished = {p: p.stat().st_mtime_ns for p in (tmp_path / "data").rglob("*.parquet")}
    assert 1 <= len(finished) < 8
    subprocess.run(command, cwd=ROOT, check=True, capture_output=True)
    assert all(p.stat().st_mtime_ns == stamp for p, stamp in finished.items())
    rows = load_dataset(str(tmp_path / "data"), split="train", cache_dir=tmp_path / "cache")
    assert rows.num_rows == 40_000
    assert rows[39_999] == next(generate_rows(training_set_of_40_000(), "train", 39_999, 40_000))


def training_set_of_40_000():
    return ProblemSet(load_task("addition"), TRAINING, 5, (("train", 40_000),), "local")


def test_a_full_disk_is_named_and_leaves_nothing_that_passes_as_whole(tmp_path, small_shards):
    sets = [training_set(train=20), ProblemSet(load_task("addition"), "length", 400, (("test", 25),), "local")]
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    # The small set fits under the limit, the large one does not.
    resource.setrlimit(resource.RLIMIT_FSIZE, (30_000, before[1]))
    try:
        with pytest.raises(DatasetWriteError, match="free some space.*finished shards are kept"):
            build.build_folder(sets, tmp_path / "data")
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
    left = all_files(tmp_path / "data")
    assert left == ["max_length_3/train-00000-of-00001.parquet", "max_length_3/validation-00000-of-00001.parquet"]
    build.build_folder(sets, tmp_path / "data")
    build.build_folder(sets, tmp_path / "undisturbed")
    assert_same_bytes(tmp_path / "data", tmp_path / "undisturbed")


def test_a_truncated_shard_is_not_taken_for_a_whole_one(tmp_path):
    folder = build.build_folder([training_set()], tmp_path / "data")
    shard = folder / "max_length_3" / "train-00000-of-00001.parquet"
    os.truncate(shard, shard.stat().st_size // 2)
    with pytest.raises(DatasetMismatchError, match="damaged.*delete that configuration"):
        build.build_folder([training_set()], tmp_path / "data")


def test_a_flipped_bit_is_found(tmp_path):
    folder = build.build_folder([training_set()], tmp_path / "data")
    shard = folder / "max_length_3" / "train-00000-of-00001.parquet"
    good = shard.read_bytes()
    rows = pyarrow.parquet.read_table(shard).to_pylist()
    for at in range(100, len(good) - 100, len(good) // 40):
        shard.write_bytes(good[:at] + bytes([good[at] ^ 4]) + good[at + 1 :])
        try:
            build.build_folder([training_set()], folder)
        except DatasetMismatchError:
            continue
        assert pyarrow.parquet.read_table(shard).to_pylist() == rows  # a bit that no reader looks at


def test_what_cannot_be_written_is_named(tmp_path):
    (tmp_path / "file").write_text("in the way", encoding="utf-8")
    with pytest.raises(DatasetWriteError, match="choose another --output"):
        build.build_folder([training_set()], tmp_path / "file")


def test_a_set_that_runs_out_of_problems_leaves_nothing_behind(tmp_path):
    sets = evaluation_sets(load_task("addition"), "local", [], [2], 30)
    with pytest.raises(TooFewProblemsError, match="nines_plus_power_of_ten has 4"):
        build.build_folder(sets, tmp_path / "data")
    assert all(name.endswith(".parquet") for name in all_files(tmp_path / "data"))


@pytest.mark.parametrize("changed", [training_set(seed=1), training_set(train=50)])
def test_another_build_never_mixes_into_a_folder(tmp_path, changed):
    folder = build.build_folder([training_set()], tmp_path / "data")
    with pytest.raises(DatasetMismatchError, match="choose another --output"):
        build.build_folder([changed], folder)


def test_a_second_call_adds_configurations_and_rebuilds_none(tmp_path):
    folder = build.build_folder([training_set()], tmp_path / "data")
    shard = folder / "max_length_3" / "train-00000-of-00001.parquet"
    stamp = shard.stat().st_mtime_ns
    build.build_folder(evaluation_sets(load_task("addition"), "local", [4], [], 5), folder)
    assert shard.stat().st_mtime_ns == stamp
    card = (folder / "README.md").read_text(encoding="utf-8")
    assert "config_name: max_length_3" in card
    assert "config_name: length_4" in card


def test_the_file_says_what_it_is(tmp_path):
    folder = build.build_folder([training_set()], tmp_path / "data")
    path = folder / "max_length_3" / "validation-00000-of-00001.parquet"
    identity = shards.read_identity(path)
    assert identity["sizes"] == {"train": 90, "validation": 10}
    assert (identity["task"], identity["split"], identity["seed"]) == ("addition", "validation", 0)
    assert pyarrow.parquet.read_metadata(path).num_rows == 10


def test_nothing_to_build_is_said_at_once(tmp_path, capsys):
    with pytest.raises(SystemExit):
        build.main(["addition", "--output", str(tmp_path)])
    assert "nothing to build" in capsys.readouterr().err


def test_reference_trajectories_are_the_rows_of_the_dataset_and_are_solved_when_they_are_asked_for(monkeypatch):
    (problems,) = evaluation_sets(load_task("addition"), "local", [6], [], 5)
    rows = [Trajectory.from_row(row) for row in generate_rows(problems, "test", 0, 5)]
    solved = []
    solve = Addition.solve
    monkeypatch.setattr(Addition, "solve", lambda *words: solved.append(words[1]) or solve(*words))
    references = ReferenceTrajectories(problems)
    assert len(references) == 5
    assert solved == []
    assert (references[-1].answer, len(solved)) == (rows[-1].answer, 1)
    assert [r.to_row() for r in references[1:3]] == [r.to_row() for r in rows[1:3]]
    assert len(solved) == 3
    assert [r.to_row() for r in references] == [r.to_row() for r in rows]


@pytest.mark.parametrize("name", ["addition", "associative_recall", "label_aggregation", "logical_graph"])
def test_a_group_of_rows_says_what_its_rows_as_dicts_say(name):
    problems = ProblemSet(load_task(name), TRAINING, 4, (("train", 30),), load_task(name).variants[0])
    rows = list(generate_rows(problems, "train", 0, 30))
    (group,) = shards.row_groups(generate_trajectories(problems, "train", 0, 30))
    assert group.json == [json.dumps(row) for row in rows]
    assert group.table(shards.SCHEMA) == pyarrow.Table.from_pylist(rows, schema=shards.SCHEMA)
    assert group.size == sum(map(shards.row_size, rows))
