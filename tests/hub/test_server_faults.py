"""What the real clients do when the Hub refuses or a connection breaks, and what others then see of an upload."""

import pytest
from huggingface_hub import constants
from huggingface_hub.errors import HfHubHTTPError
from huggingface_hub.utils import httpx

from hub.faults import Cut, Faults
from hub.messages import Answer

WEIGHTS = bytes(range(256)) * 8000  # more than the kernel's socket buffers hold, so that a cut is in the middle


@pytest.fixture
def repo_id(hub):
    """An empty model."""
    return hub.api.create_repo(hub.repo_id("model")).repo_id


@pytest.fixture
def folder(tmp_path):
    folder = tmp_path / "folder"
    folder.mkdir()
    (folder / "config.json").write_bytes(b"{}")
    (folder / "model.safetensors").write_bytes(WEIGHTS)
    return folder


def statuses(hub, method, path):
    """How the requests since the test began were answered, of those with a method and a part of their path."""
    return [request.status for request in hub.log if request.method == method and path in request.path]


def visible(hub):
    return set(hub.api.list_repo_files(hub.repo_id("model"))) - {".gitattributes"}


def test_an_upload_outlasts_errors_of_the_server(hub, repo_id, folder):
    hub.faults.answer(500, "POST", "/preupload/", times=2)
    hub.faults.answer(429, "POST", "/objects/batch", headers={"Retry-After": "0"})
    hub.api.upload_folder(repo_id=repo_id, folder_path=folder)
    assert statuses(hub, "POST", "/preupload/") == [500, 500, 200]
    assert statuses(hub, "POST", "/objects/batch") == [429, 200]
    assert visible(hub) == {"config.json", "model.safetensors"}


def test_a_large_upload_that_breaks_in_the_middle_is_sent_again_whole(hub, repo_id, folder):
    hub.faults.cut_request("PUT", "/objects/")
    hub.api.upload_folder(repo_id=repo_id, folder_path=folder)
    assert statuses(hub, "PUT", "/objects/") == [None, 200]
    assert hub.commits("model")[0].tree["model.safetensors"].content == WEIGHTS


@pytest.mark.parametrize("status", [401, 403, 409, 412, 500])
def test_a_refused_commit_is_an_error_with_its_status_and_publishes_nothing(hub, repo_id, folder, status):
    hub.faults.answer(status, "POST", "/commit/", message="Not now")
    with pytest.raises(HfHubHTTPError) as refused:
        hub.api.upload_folder(repo_id=repo_id, folder_path=folder)
    assert refused.value.response.status_code == status
    assert refused.value.server_message == "Not now"
    assert visible(hub) == set()


def test_a_commit_that_never_arrives_whole_publishes_nothing_and_the_next_upload_sends_no_large_file_again(
    hub, repo_id, folder
):
    hub.faults.cut_request("POST", "/commit/")
    with pytest.raises(httpx.TransportError):
        hub.api.upload_folder(repo_id=repo_id, folder_path=folder)
    assert visible(hub) == set()
    hub.api.upload_folder(repo_id=repo_id, folder_path=folder)
    assert visible(hub) == {"config.json", "model.safetensors"}
    assert statuses(hub, "PUT", "/objects/") == [200]


def test_a_commit_whose_answer_is_lost_is_there_and_is_not_made_twice(hub, repo_id, folder):
    hub.faults.cut_answer("POST", "/commit/")
    with pytest.raises(httpx.TransportError):
        hub.api.upload_folder(repo_id=repo_id, folder_path=folder)
    assert visible(hub) == {"config.json", "model.safetensors"}
    hub.api.upload_folder(repo_id=repo_id, folder_path=folder)
    assert len(hub.commits("model")) == 2


def test_a_download_that_breaks_in_the_middle_goes_on_where_it_stopped(hub, repo_id, folder, monkeypatch):
    hub.api.upload_folder(repo_id=repo_id, folder_path=folder)
    monkeypatch.setattr(constants, "DOWNLOAD_CHUNK_SIZE", 10_000)
    hub.faults.cut_answer("GET", "/objects/")
    with open(hub.api.hf_hub_download(repo_id, "model.safetensors"), "rb") as file:
        assert file.read() == WEIGHTS
    assert statuses(hub, "GET", "/objects/") == [200, 206]


def test_a_file_that_is_missing_or_hidden_for_a_while_is_there_afterwards(hub, repo_id, folder):
    hub.api.upload_folder(repo_id=repo_id, folder_path=folder)
    hub.faults.answer(404, "HEAD", "/resolve/main/config.json", code="EntryNotFound")
    assert not hub.api.file_exists(repo_id, "config.json")
    assert hub.api.file_exists(repo_id, "config.json")


def test_faults_strike_in_order_the_requests_they_match_and_no_more():
    faults = Faults()
    faults.cut_answer("GET|HEAD", "/a/", skip=1, times=2)
    faults.answer(503, "GET", r"/a/b$")
    assert faults.strike("POST", "/a/b") is None
    first = faults.strike("GET", "/a/b")
    assert isinstance(first, Answer)
    assert first.status == 503
    assert [faults.strike("HEAD", "/a/b") for _ in range(3)] == [Cut.ANSWER, Cut.ANSWER, None]
    faults.cut_request("PUT", "/nothing/")
    assert [fault.path for fault in faults.withdraw()] == ["/nothing/"]
    assert faults.strike("PUT", "/nothing/") is None
