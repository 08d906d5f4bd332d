"""The real clients find on the test server what the tests beside this one count on."""

import subprocess
import sys
from pathlib import Path

import huggingface_hub
import pytest
import torch
from huggingface_hub import CommitOperationAdd, CommitOperationDelete, constants, snapshot_download
from huggingface_hub.errors import HfHubHTTPError, RepositoryNotFoundError, RevisionNotFoundError
from huggingface_hub.utils import httpx
from transformers import AutoModelForCausalLM, MambaConfig, MambaForCausalLM

WEIGHTS = bytes(range(256)) * 8000  # more than the kernel's socket buffers hold, so that a cut is in the middle
FILES = {"config.json": b"{}", "model.safetensors": WEIGHTS, "code/generate.py": b"# c\xc3\xb6de\n", "empty": b""}


@pytest.fixture
def published(hub, tmp_path):
    """The id of a model that holds small and large files, one in a subfolder, one empty."""
    for name, content in FILES.items():
        path = tmp_path / "folder" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content)
    huggingface_hub.create_repo(hub.repo_id("model"))
    huggingface_hub.upload_folder(repo_id=hub.repo_id("model"), folder_path=tmp_path / "folder")
    return hub.repo_id("model")


def test_an_uploaded_folder_is_read_back_byte_by_byte_also_over_a_broken_connection(hub, published, monkeypatch):
    monkeypatch.setattr(constants, "DOWNLOAD_CHUNK_SIZE", 10_000)
    hub.faults.cut_answer("GET", "model.safetensors")
    downloaded = Path(snapshot_download(published))
    assert {name: (downloaded / name).read_bytes() for name in FILES} == FILES
    assert [path for path, file in hub.commits("model")[0].tree.items() if file.large] == ["model.safetensors"]
    assert 206 in [status for _, _, status in hub.log]


def test_a_commit_is_made_whole_and_on_the_parent_that_it_names_or_not_at_all(hub, published):
    head = hub.commits("model")[0].oid
    new = CommitOperationAdd(path_in_repo="new", path_or_fileobj=b"new")
    for operations, parent in ([new, CommitOperationDelete("nothing")], head), ([new], hub.commits("model")[1].oid):
        with pytest.raises(HfHubHTTPError):
            huggingface_hub.create_commit(published, operations, commit_message="Change", parent_commit=parent)
    hub.faults.cut_request("POST", "/commit/")
    with pytest.raises(httpx.TransportError):
        huggingface_hub.create_commit(published, [new], commit_message="Change")
    assert hub.commits("model")[0].oid == head
    huggingface_hub.create_commit(published, [new, CommitOperationDelete("empty")], commit_message="Change")
    assert set(huggingface_hub.list_repo_files(published)) == {".gitattributes", "new", *FILES} - {"empty"}


def test_what_is_missing_or_not_served_is_named(hub, published):
    with pytest.raises(RepositoryNotFoundError):
        huggingface_hub.model_info(hub.repo_id("nothing"))
    with pytest.raises(RevisionNotFoundError):
        huggingface_hub.model_info(published, revision="nothing")
    assert not huggingface_hub.file_exists(published, "nothing")
    with pytest.raises(HfHubHTTPError, match="does not serve"):
        huggingface_hub.create_tag(published, tag="v1")


def test_a_model_is_pushed_to_a_branch_and_loaded_from_it(hub):
    model = MambaForCausalLM(MambaConfig(vocab_size=8, hidden_size=8, num_hidden_layers=1, state_size=4))
    model.push_to_hub(hub.repo_id("tiny"), revision="trial")
    loaded = AutoModelForCausalLM.from_pretrained(hub.repo_id("tiny"), revision="trial")
    assert all(torch.equal(value, loaded.state_dict()[name]) for name, value in model.state_dict().items())


def test_another_host_is_out_of_reach(hub):
    code = "from huggingface_hub.utils import get_session; get_session().get('http://datasets-server.invalid/info')"
    subprocess.run([sys.executable, "-c", code], env=hub.environment, check=True)
    assert [status for _, path, status in hub.log if "datasets-server.invalid" in path] == [403]


def test_outside_of_a_test_the_libraries_are_offline():
    with pytest.raises(huggingface_hub.errors.OfflineModeIsEnabled):
        huggingface_hub.model_info("some/model")
