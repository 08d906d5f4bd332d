"""A model is published whole or not at all, with its code and card, and runs its tools wherever it is loaded."""

import json
import re
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
from conftest import ROOT, run_script
from huggingface_hub import ModelCard, upload_file
from safetensors.torch import save_file

from dataset_builders.build import main as build
from hf_toolssm.errors import (
    HubAccessError,
    HubUnavailableError,
    InvalidHubNameError,
    PublishConflictError,
    UnfinishedModelError,
    UnsafeTrainingError,
)
from hf_toolssm.evaluation.exactness import LengthResult
from hf_toolssm.evaluation.report import weights_digest, write_report
from hf_toolssm.hub.publish import Destination
from hf_toolssm.hub.publish_model import publish_model
from hf_toolssm.models.architectures import load_model
from hub.test_model_card import ABOUT, TEMPLATE

TRAINING = ["recipes/sft.py", "--config", "recipes/configs/addition_cpu.yaml", "--dataset_seed", "7"]
SHORT = ["--max_steps", "2", "--num_examples", "40", "--num_proc", "1", "--per_device_train_batch_size", "8"]
SHORT += ["--eval_lengths", "2", "--eval_num_problems", "2"]


def run(words, environment):
    return subprocess.run([sys.executable, *words], env=environment, capture_output=True, encoding="utf-8", cwd=ROOT)


@pytest.fixture
def finished(model, tokenizer, tmp_path):
    """A folder as `recipes/sft.py` leaves it, with what only training needed beside."""
    folder = tmp_path / "finished"
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    row = LengthResult("length_77", 77, "free-running", 16, 16, 16, 15, 0.9375, 0.875, None, 1_000, 0.5)
    write_report(folder, [row], [], ABOUT)
    for name in ("training_args.bin", "notes.md", "tools.py", "credentials.json"):
        (folder / name).write_text("not for others", encoding="utf-8")
    (folder / "checkpoint-2").mkdir()
    (folder / "checkpoint-2" / "model.safetensors").write_bytes(b"older")
    return folder


@pytest.fixture
def push(hub, finished):
    def push(name="sums", **options):
        return publish_model(finished, Destination(hub.repo_id(name), "model", **options), TEMPLATE)

    return push


def visible(hub, revision="main"):
    return set(hub.commits("sums", revision=revision)[0].tree) - {".gitattributes"}


def test_a_model_is_published_with_its_code_and_card_and_without_what_training_left(hub, push):
    assert push(private=True).changed
    held = visible(hub)
    assert {"config.json", "model.safetensors", "tokenizer.json", "results.json", "README.md"} <= held
    assert {
        "hf_toolssm_plain_tool_mamba.py",
        "hf_toolssm_pointer_memory.py",
        "length_generalization.png",
    } <= held
    assert not {path for path in held if "/" in path}
    assert not {"training_args.bin", "notes.md", "tools.py", "credentials.json"} & held
    assert hub.repository("sums").private
    assert len(hub.commits("sums")) == 2  # the repository's own, and one
    assert not push().changed


def test_what_a_newer_version_lacks_goes_away_and_what_others_added_stays(hub, push, finished):
    save_file({"piece": torch.zeros(2)}, finished / "model-00001-of-00002.safetensors")
    push()
    for name in ("handler.py", "adapter_model.safetensors"):
        upload_file(repo_id=hub.repo_id("sums"), path_in_repo=name, path_or_fileobj=b"theirs")
    (finished / "model-00001-of-00002.safetensors").unlink()
    assert push().changed
    assert "model-00001-of-00002.safetensors" not in visible(hub)
    assert {"handler.py", "adapter_model.safetensors"} <= visible(hub)


def test_the_hub_reads_the_measured_figures_from_the_card(hub, push, finished):
    push()
    card = ModelCard.load(hub.repo_id("sums"))
    measured = json.loads((finished / "results.json").read_text(encoding="utf-8"))["by_length"][0]
    assert [(r.dataset_config, r.metric_name, r.metric_value) for r in card.data.eval_results] == [
        ("length_77", "exact answers at 77 digits", measured["answer_accuracy"]),
        ("length_77", "exact trajectories at 77 digits", measured["trajectory_accuracy"]),
    ]
    assert hub.repo_id("sums") in card.text
    links = re.findall(r"\]\(([^)]+)\)", card.text)
    assert links
    assert set(links) <= visible(hub)


def test_a_branch_and_a_pull_request_leave_the_main_branch_as_it_is(hub, push):
    push(branch="next/try")
    assert "model.safetensors" in visible(hub, "next/try")
    assert not visible(hub)
    assert "/discussions/1" in push(pull_request=True).url
    assert not visible(hub)


NEEDED = ["config.json", "generation_config.json", "model.safetensors", "tokenizer_config.json", "results.json"]


@pytest.mark.parametrize("missing", [*NEEDED, "length_generalization.png"])
def test_an_unfinished_folder_is_refused_before_the_hub_is_asked(hub, push, finished, missing):
    (finished / missing).unlink()
    with pytest.raises(UnfinishedModelError, match=re.escape(missing.replace("model.s", "model*.s"))):
        push()
    assert not hub.log


def test_weights_that_are_not_whole_are_refused(hub, push, finished):
    (finished / "model.safetensors").write_bytes(b"short")
    with pytest.raises(UnfinishedModelError, match="no whole file"):
        push()
    index = {"weight_map": {"a": "model-00001-of-00002.safetensors"}}
    (finished / "model.safetensors.index.json").write_text(json.dumps(index), encoding="utf-8")
    with pytest.raises(UnfinishedModelError, match="has no model-00001-of-00002"):
        push()
    assert not hub.log


@pytest.mark.parametrize("name", ["results.json", "model.safetensors.index.json"])
def test_a_file_of_a_write_that_was_cut_is_refused_by_name(hub, push, finished, name):
    (finished / name).write_text('{"cut": ', encoding="utf-8")
    with pytest.raises(UnfinishedModelError, match=name):
        push()
    assert not hub.log


def test_a_certificate_is_published_beside_the_weights_that_it_speaks_of_and_no_others(hub, push, finished):
    digest = weights_digest(load_model(str(finished)))
    certificate = finished / "certificate.json"
    certificate.write_text(json.dumps({"proved": False, "weights": digest[::-1]}), encoding="utf-8")
    with pytest.raises(UnfinishedModelError, match="other weights"):
        push()
    certificate.write_text(json.dumps({"proved": False, "weights": digest}), encoding="utf-8")
    push()
    assert "certificate.json" in visible(hub)


def test_publishing_leaves_the_folder_as_it_is(hub, push, finished):
    before = {path: path.read_bytes() for path in finished.rglob("*") if path.is_file()}
    push()
    with pytest.raises(InvalidHubNameError):
        publish_model(finished, Destination("two words", "model"), TEMPLATE)
    assert {path: path.read_bytes() for path in finished.rglob("*") if path.is_file()} == before


@pytest.mark.parametrize(
    ("status", "error"), [(401, HubAccessError), (409, PublishConflictError), (412, PublishConflictError)]
)
def test_a_push_that_fails_shows_nothing_and_the_same_call_completes_it(hub, push, status, error):
    hub.faults.answer(status, "POST", "/commit/")
    with pytest.raises(error):
        push()
    assert not visible(hub)
    assert push().changed


def test_dropped_connections_and_an_overloaded_server_are_outlasted_or_named(hub, push, monkeypatch):
    monkeypatch.setattr(time, "sleep", lambda seconds: None)
    hub.faults.cut_request("POST", "/commit/", times=5)
    with pytest.raises(HubUnavailableError, match="run the same command again"):
        push()
    assert not visible(hub)
    hub.faults.answer(500, "POST", "/commit/", times=2)
    hub.faults.answer(429, "POST", "/commit/", headers={"Retry-After": "1"})
    assert push().changed
    assert len(hub.commits("sums")) == 2


def test_the_command_publishes_a_finished_folder(hub, finished):
    for said in ("published: ", "nothing has changed: "):
        printed = run_script("recipes/publish.py", "--model", finished, "--repo_id", hub.repo_id("sums"))
        assert printed.startswith(said)


def test_with_xet_switched_on_a_hub_without_it_is_named_and_what_it_holds_still_loads(hub, finished):
    pytest.importorskip("hf_xet")
    words = ["recipes/publish.py", "--model", finished, "--repo_id", hub.repo_id("sums")]
    with_xet = {k: v for k, v in hub.environment.items() if k != "HF_HUB_DISABLE_XET"}
    refused = run(words, with_xet)
    assert "HubUnavailableError" in refused.stderr
    assert "xet" in refused.stderr
    assert not visible(hub)
    assert run_script(*words).startswith("published: ")
    code = f"from huggingface_hub import snapshot_download; print(snapshot_download({hub.repo_id('sums')!r}))"
    loaded = Path(run(["-c", code], with_xet).stdout.strip())
    assert (loaded / "model.safetensors").read_bytes() == (finished / "model.safetensors").read_bytes()


def test_the_recipe_fine_tunes_a_model_of_the_hub_on_a_dataset_of_the_hub_and_publishes_it(hub, push, tmp_path):
    push("base")
    data = hub.repo_id("tool-addition")
    built = ["--train-max-length", "5", "--num-examples", "40", "--num-validation", "0", "--seed", "7"]
    build(["addition", "--output", str(tmp_path / "rows"), *built, "--push-to-hub", data])
    output = tmp_path / "out"
    words = [*TRAINING, *SHORT, "--output_dir", output, "--dataset", data, "--model", hub.repo_id("base")]
    assert "published: " in run_script(*words, "--push_to_hub", "true", "--hub_model_id", hub.repo_id("sums"))
    results = json.loads((output / "results.json").read_text(encoding="utf-8"))
    revision = hub.commits("tool-addition", kind="dataset")[0].oid
    assert (results["dataset"], results["dataset_revision"]) == (data, revision)
    assert results["base_model_revision"] == hub.commits("base")[0].oid
    card = ModelCard.load(hub.repo_id("sums"))
    assert (card.data.datasets, card.data.base_model) == ([data], hub.repo_id("base"))
    assert revision in card.text
    assert len(hub.commits("sums")) == 2


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        ([], InvalidHubNameError, "hub_model_id"),
        (["--hub_model_id", "org/two words"], InvalidHubNameError, "two words"),
        (["--hub_model_id", "org/name", "--hub_strategy", "checkpoint"], UnsafeTrainingError, "hub_strategy"),
        (["--hub_model_id", "org/name", "--hub_token", "secret"], UnsafeTrainingError, "HF_TOKEN"),
    ],
)
def test_a_push_that_cannot_work_is_refused_before_any_training(hub, tmp_path, options, error, message):
    with pytest.raises(error, match=message):
        run_script(*TRAINING, *SHORT, "--output_dir", tmp_path / "out", "--push_to_hub", "true", *options)
    assert not (tmp_path / "out" / "dataset").exists()


def test_without_a_token_nothing_is_trained(hub, tmp_path, monkeypatch):
    monkeypatch.delenv("HF_TOKEN")
    words = [*TRAINING, *SHORT, "--output_dir", tmp_path / "out", "--push_to_hub", "true"]
    with pytest.raises(HubAccessError):
        run_script(*words, "--hub_model_id", hub.repo_id("sums"))
    assert not (tmp_path / "out" / "dataset").exists()
