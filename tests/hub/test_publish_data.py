"""A dataset is published whole or not at all, once, and loads as it was built."""

import time

import pytest
from datasets import load_dataset

from dataset_builders.build import main as build
from dataset_builders.tasks.addition import Addition
from hf_toolssm.errors import (
    DatasetMismatchError,
    HubAccessError,
    HubRefusedError,
    HubUnavailableError,
    InvalidHubNameError,
    PublishConflictError,
)

SMALL = ["--train-max-length", "3", "--num-examples", "30", "--num-validation", "5", "--lengths", "8"]
SMALL += ["--num-problems", "4"]


@pytest.fixture
def naps(monkeypatch):
    """How long publishing waited between attempts, without waiting."""
    waited = []
    monkeypatch.setattr(time, "sleep", waited.append)
    return waited


@pytest.fixture
def push(hub, tmp_path, capsys):
    """Builds into one folder and publishes it as the command does; returns what it printed last."""

    def push(*more, repository="sums", sizes=SMALL):
        build(
            ["addition", "--output", str(tmp_path / "sums"), *sizes, "--push-to-hub", hub.repo_id(repository), *more]
        )
        return capsys.readouterr().out.splitlines()[-1]

    return push


def commits(hub):
    return hub.commits("sums", kind="dataset")


def visible(hub):
    return {path for path in commits(hub)[0].tree if path.endswith((".parquet", ".md"))}


def test_what_is_published_loads_by_configuration_whole_and_streaming(hub, push, tmp_path):
    assert push().startswith("published: ")
    local = load_dataset(str(tmp_path / "sums"), "max_length_3", cache_dir=str(tmp_path / "cache"))
    loaded = load_dataset(hub.repo_id("sums"), "max_length_3")
    assert loaded.num_rows == {"train": 30, "validation": 5}
    assert loaded["train"].to_list() == local["train"].to_list()
    streamed = load_dataset(hub.repo_id("sums"), "length_8", split="test", streaming=True)
    assert len(list(streamed)) == 4
    assert "generator version 3" in commits(hub)[0].title


def test_the_same_data_makes_no_second_commit_and_another_version_does(hub, push, monkeypatch, tmp_path):
    push()
    before = len(commits(hub))
    assert push().startswith("nothing has changed: ")
    assert len(commits(hub)) == before
    monkeypatch.setattr(Addition, "version", "4")
    push("--output", str(tmp_path / "again"))
    assert len(commits(hub)) == before + 1
    assert "version 4" in commits(hub)[0].tree["README.md"].content.decode()


def test_a_configuration_is_added_to_those_that_the_folder_holds(hub, push, tmp_path):
    push()
    push(sizes=["--lengths", "9", "--num-problems", "4"])
    assert {path.partition("/")[0] for path in visible(hub)} == {"README.md", "max_length_3", "length_8", "length_9"}
    with pytest.raises(DatasetMismatchError, match="also holds length_8, length_9"):
        push("--output", str(tmp_path / "other"), sizes=SMALL[:6])
    assert not (tmp_path / "other").exists()


def test_shards_of_an_earlier_size_leave_with_the_commit_that_replaces_them(hub, push, tmp_path, monkeypatch):
    monkeypatch.setattr(Addition, "rows_per_shard", 10)
    push()
    assert len([path for path in visible(hub) if "train" in path]) == 3
    monkeypatch.undo()
    push("--output", str(tmp_path / "larger"))
    assert [path for path in visible(hub) if "train" in path] == ["max_length_3/train-00000-of-00001.parquet"]


def test_a_private_repository_a_branch_and_a_pull_request(hub, push):
    push("--private", "--branch", "next/try")
    assert hub.repository("sums", kind="dataset").private
    assert not visible(hub)
    loaded = load_dataset(hub.repo_id("sums"), "length_8", revision="next/try", split="test")
    assert loaded.num_rows == 4
    assert "/discussions/1" in push("--pull-request")
    assert not visible(hub)


def test_errors_by_chance_are_outlasted(hub, push, naps):
    hub.faults.answer(500, "POST", "/commit/", times=2)
    hub.faults.cut_request("PUT", "/objects/")
    assert push().startswith("published: ")
    assert len(commits(hub)) == 2  # the repository's first, and ours
    assert naps


def test_a_commit_whose_answer_was_lost_is_not_made_twice(hub, push, naps):
    hub.faults.cut_answer("POST", "/commit/")
    assert push().startswith("published: ")
    assert len(commits(hub)) == 2


def test_a_server_that_asks_for_time_gets_it_and_one_that_asks_for_too_much_is_left(hub, push, naps):
    hub.faults.answer(429, "POST", "/commit/", headers={"Retry-After": "3600"})
    with pytest.raises(HubUnavailableError, match="run the same command again"):
        push()
    assert not visible(hub)
    hub.faults.answer(429, "POST", "/commit/", headers={"Retry-After": "7"})
    push()
    assert 7 in naps
    assert visible(hub)


@pytest.mark.parametrize(
    ("status", "error"),
    [(401, HubAccessError), (403, HubAccessError), (409, PublishConflictError), (412, PublishConflictError)]
    + [(400, HubRefusedError), (503, HubUnavailableError)],
)
def test_a_commit_that_fails_shows_nothing_and_the_same_command_completes_it(hub, push, naps, status, error):
    hub.faults.answer(status, "POST", "/commit/", times=5 if status == 503 else 1)
    with pytest.raises(error):
        push()
    assert not visible(hub)
    assert push().startswith("published: ")
    assert "README.md" in visible(hub)


@pytest.mark.parametrize(
    ("name", "branch", "message"),
    [("org/two words", "main", "two words"), ("sums", "main", "org/name"), ("a/b/c", "main", "a/b/c")]
    + [("org/sums", "a..b", "branch"), ("org/sums", "/x", "branch"), ("org/sums", "a b", "branch")],
)
def test_a_bad_name_is_refused_before_anything_is_built(hub, tmp_path, name, branch, message):
    folder = tmp_path / "sums"
    with pytest.raises(InvalidHubNameError, match=message):
        build(["addition", "--output", str(folder), *SMALL, "--push-to-hub", name, "--branch", branch])
    assert not folder.exists()


def test_a_missing_token_a_wrong_one_and_no_network_are_named_before_anything_is_built(
    hub, push, monkeypatch, naps, tmp_path
):
    hub.faults.answer(401, "GET", "/whoami-v2")
    with pytest.raises(HubAccessError, match="not valid"):
        push()
    hub.faults.cut_answer("GET", "/whoami-v2", times=5)
    with pytest.raises(HubUnavailableError, match="could not be reached 5 time"):
        push()
    monkeypatch.delenv("HF_TOKEN")
    with pytest.raises(HubAccessError, match="HF_TOKEN"):
        push()
    assert not (tmp_path / "sums").exists()
