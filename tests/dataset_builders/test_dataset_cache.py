"""A dataset that was built anew is never read from the cache of the one before."""

import shutil

import pytest
from datasets import load_dataset

from dataset_builders.build import build_folder
from dataset_builders.catalog import load_task
from dataset_builders.problem_sets import TRAINING, ProblemSet, evaluation_sets
from dataset_builders.tasks.addition import Addition
from hf_toolssm.errors import DatasetMismatchError, TooFewProblemsError
from hf_toolssm.protocol.trajectory import ANSWER, StepKind, Trajectory, step


def training_set(seed=0, train=20):
    return ProblemSet(load_task("addition"), TRAINING, 3, (("train", train),), "local", seed)


@pytest.fixture
def opened(tmp_path):
    """What `load_dataset` answers of a folder, with one cache for all."""

    def opened(folder):
        return load_dataset(str(folder), "max_length_3", split="train", cache_dir=tmp_path / "cache")

    return opened


@pytest.fixture
def changed_code(monkeypatch):
    """The task writes its answers at once from now on, under the version that it had."""

    def at_once(self, problem, variant):
        answer = self.answer(problem, variant)
        said = {StepKind.INPUT: tuple(problem), StepKind.THOUGHT: (ANSWER,), StepKind.OUTPUT: tuple(answer)}
        return Trajectory(tuple(step(kind, cells) for kind, cells in said.items())).check()

    return lambda: monkeypatch.setattr(Addition, "solve", at_once)


def test_a_folder_that_is_built_again_with_another_seed_opens_with_its_own_rows(tmp_path, opened):
    folder = tmp_path / "data"
    for seed in (0, 1, 2):
        shutil.rmtree(folder, ignore_errors=True)
        build_folder([training_set(seed)], folder)
        assert opened(folder)["id"][0] == f"addition/max_length_3/{seed}/train/0"


def test_folders_of_one_name_open_with_their_own_rows(tmp_path, opened):
    folders = [build_folder([training_set(seed)], tmp_path / str(seed) / "data") for seed in (0, 1)]
    assert [opened(folder)["id"][0].split("/")[2] for folder in [*folders, folders[0]]] == ["0", "1", "0"]


def test_a_folder_that_is_built_again_by_other_code_opens_with_its_own_rows(tmp_path, opened, changed_code):
    folder = build_folder([training_set()], tmp_path / "data")
    before = opened(folder)[0]
    shutil.rmtree(folder)
    changed_code()
    after = opened(build_folder([training_set()], folder))[0]
    assert after["problem"] == before["problem"]
    assert len(after["steps"]) < len(before["steps"])


def test_an_interrupted_build_leaves_no_card_that_names_the_rows_before(tmp_path, opened):
    folder = build_folder([training_set()], tmp_path / "data")
    opened(folder)
    shutil.rmtree(folder / "max_length_3")
    too_many = evaluation_sets(load_task("addition"), "local", [], [2], 30)
    with pytest.raises(TooFewProblemsError):
        build_folder([training_set(1), *too_many], folder)
    with pytest.raises(ValueError, match="max_length_3"):
        opened(folder)


def test_a_build_that_only_adds_to_a_folder_leaves_it_open_to_readers_when_it_fails(tmp_path, opened):
    folder = build_folder([training_set()], tmp_path / "data")
    with pytest.raises(TooFewProblemsError):
        build_folder(evaluation_sets(load_task("addition"), "local", [], [2], 30), folder)
    assert opened(folder).num_rows == 20


def test_shards_of_other_code_are_not_taken_for_whole_ones(tmp_path, changed_code):
    folder = build_folder([training_set()], tmp_path / "data")
    changed_code()
    with pytest.raises(DatasetMismatchError, match="another version"):
        build_folder([training_set()], folder)
