"""The real huggingface_hub client finds on the test server what it would find on a Hub."""

import os
import subprocess
import sys

import huggingface_hub
import pytest
from huggingface_hub import CommitOperationAdd, CommitOperationCopy, CommitOperationDelete, HfApi, snapshot_download
from huggingface_hub.errors import (
    EntryNotFoundError,
    GatedRepoError,
    HfHubHTTPError,
    RepositoryNotFoundError,
    RevisionNotFoundError,
)

WEIGHTS = bytes(range(256)) * 1000
FILES = {
    "config.json": b"{}",
    "model.safetensors": WEIGHTS,
    "code/generate.py": b"# c\xc3\xb6de\n",
    "empty": b"",
}


@pytest.fixture
def folder(tmp_path):
    """Small and large files, one in a subfolder, one empty."""
    for name, content in FILES.items():
        path = tmp_path / "folder" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content)
    return tmp_path / "folder"


@pytest.fixture
def published(hub, folder):
    """The id of a model that holds the folder's files."""
    repo_id = hub.repo_id("model")
    hub.api.create_repo(repo_id)
    hub.api.upload_folder(repo_id=repo_id, folder_path=folder)
    return repo_id


def statuses(hub, method, path):
    """How the requests since the test began were answered, of those with a method and a part of their path."""
    return [request.status for request in hub.log if request.method == method and path in request.path]


def add(path, content):
    return CommitOperationAdd(path_in_repo=path, path_or_fileobj=content)


def read(api, repo_id, path, **where):
    with open(api.hf_hub_download(repo_id, path, **where), "rb") as file:
        return file.read()


def test_an_uploaded_folder_is_read_back_byte_by_byte(hub, published):
    downloaded = snapshot_download(published)
    for name, content in FILES.items():
        with open(os.path.join(downloaded, name), "rb") as file:
            assert file.read() == content, name
    assert hub.commits("model")[0].tree["model.safetensors"].lfs
    assert not hub.commits("model")[0].tree["empty"].lfs


def test_a_large_file_travels_through_the_second_port_without_the_token(hub, published):
    read(hub.api, published, "model.safetensors")
    objects = [request for request in hub.log if request.path.startswith("/objects/")]
    assert [(request.method, request.status) for request in objects] == [("PUT", 200), ("GET", 200)]


def test_uploading_the_same_folder_again_makes_no_commit(hub, published, folder):
    head = hub.commits("model")[0].oid
    again = hub.api.upload_folder(repo_id=published, folder_path=folder)
    assert again.oid == head
    assert len(hub.commits("model")) == 2
    assert len(statuses(hub, "PUT", "/objects/")) == 1


def test_creating_a_repository_twice_is_a_conflict_unless_it_may_exist(hub):
    first = hub.api.create_repo(hub.repo_id("model"))
    with pytest.raises(HfHubHTTPError, match="already created") as refused:
        hub.api.create_repo(hub.repo_id("model"))
    assert refused.value.response.status_code == 409
    assert hub.api.create_repo(hub.repo_id("model"), exist_ok=True) == first
    assert hub.api.create_repo("model", repo_type="dataset").repo_id == hub.repo_id("model")


def test_a_deleted_repository_is_gone(hub, published):
    hub.api.delete_repo(published)
    assert not hub.api.repo_exists(published)
    with pytest.raises(RepositoryNotFoundError):
        hub.api.delete_repo(published)


def test_a_private_repository_is_seen_by_its_owner_only(hub, hub_server):
    repo_id = hub.repo_id("secret")
    hub.api.create_repo(repo_id, private=True)
    hub.api.upload_file(repo_id=repo_id, path_in_repo="a.txt", path_or_fileobj=b"secret")
    assert hub.api.model_info(repo_id).private
    for token in (False, hub_server.new_account().token):
        stranger = HfApi(endpoint=hub.endpoint, token=token)
        assert not stranger.repo_exists(repo_id)
        for ask in (stranger.model_info, stranger.list_repo_refs, stranger.snapshot_download):
            with pytest.raises(RepositoryNotFoundError):
                ask(repo_id)
        with pytest.raises(RepositoryNotFoundError):
            read(stranger, repo_id, "a.txt")


def test_only_the_owner_with_a_token_that_may_write_writes(hub, hub_server, published):
    for account in (hub_server.new_account(), hub_server.new_account(role="read")):
        stranger = HfApi(endpoint=hub.endpoint, token=account.token)
        assert stranger.whoami()["name"] == account.name
        with pytest.raises(HfHubHTTPError, match="may not write") as refused:
            stranger.upload_file(repo_id=published, path_in_repo="a.txt", path_or_fileobj=b"a")
        assert refused.value.response.status_code == 403
    with pytest.raises(HfHubHTTPError, match="Invalid user token"):
        hub.api.whoami(token="hf_unknown")
    assert len(hub.commits("model")) == 2


def test_a_gated_repository_shows_its_description_and_hides_its_files(hub, hub_server, published):
    hub.repository("model").gated = "auto"
    reader = hub_server.new_account()
    stranger = HfApi(endpoint=hub.endpoint, token=reader.token)
    assert stranger.model_info(published).gated == "auto"
    with pytest.raises(GatedRepoError):
        read(stranger, published, "config.json")
    hub.repository("model").granted.add(reader.name)
    assert read(stranger, published, "config.json") == FILES["config.json"]


def test_what_is_missing_is_named(hub, published):
    with pytest.raises(RepositoryNotFoundError):
        hub.api.model_info(hub.repo_id("nothing"))
    with pytest.raises(RevisionNotFoundError):
        hub.api.model_info(published, revision="nothing")
    with pytest.raises(EntryNotFoundError):
        read(hub.api, published, "nothing")
    with pytest.raises(EntryNotFoundError):
        list(hub.api.list_repo_tree(published, "nothing"))
    with pytest.raises(HfHubHTTPError, match="does not serve"):
        hub.api.create_tag(published, tag="v1")


def test_the_description_lists_the_files_with_sizes_and_hashes(hub, published):
    info = hub.api.model_info(published, files_metadata=True)
    assert info.sha == hub.commits("model")[0].oid
    assert {file.rfilename for file in info.siblings} == {".gitattributes", *FILES}
    weights = next(file for file in info.siblings if file.rfilename == "model.safetensors")
    assert weights.size == weights.lfs.size == len(WEIGHTS)
    assert hub.api.model_info(published, expand=["sha"]).siblings is None
    assert hub.api.model_info(published, revision=info.sha[:8]).sha == info.sha


def test_the_tree_is_listed_by_folder_whole_and_in_pages(hub, hub_server, published, monkeypatch):
    assert [item.path for item in hub.api.list_repo_tree(published, "code")] == ["code/generate.py"]
    assert "code" in [item.path for item in hub.api.list_repo_tree(published)]
    whole = [item.path for item in hub.api.list_repo_tree(published, recursive=True)]
    assert whole == sorted([".gitattributes", "code", *FILES])
    monkeypatch.setattr(hub_server, "page_size", 2)
    assert [item.path for item in hub.api.list_repo_tree(published, recursive=True)] == whole
    assert [item.path for item in hub.api.get_paths_info(published, ["code", "empty", "nothing"])] == ["code", "empty"]


def test_a_commit_adds_deletes_and_copies_and_older_commits_stay(hub, published):
    before = hub.commits("model")[0].oid
    operations = [
        add("new.txt", b"new"),
        CommitOperationDelete("config.json"),
        CommitOperationDelete("code/"),
        CommitOperationCopy("model.safetensors", "copy.safetensors"),
    ]
    hub.api.create_commit(published, operations, commit_message="Change", commit_description="all of it")
    assert set(hub.api.list_repo_files(published)) == {
        *(".gitattributes", "new.txt", "empty", "model.safetensors", "copy.safetensors")
    }
    assert read(hub.api, published, "copy.safetensors") == WEIGHTS
    assert read(hub.api, published, "config.json", revision=before) == FILES["config.json"]
    newest, *_, oldest = hub.api.list_repo_commits(published)
    assert (newest.title, newest.message, newest.authors) == ("Change", "all of it", [hub.account.name])
    assert oldest.title == "initial commit"


def test_a_commit_with_one_impossible_operation_changes_nothing(hub, published):
    before = hub.commits("model")[0]
    for create_pr in (False, True):
        with pytest.raises(EntryNotFoundError, match="doesn't exist"):
            hub.api.create_commit(
                published,
                [add("new.txt", b"new"), CommitOperationDelete("nothing")],
                commit_message="Change",
                create_pr=create_pr,
            )
    assert hub.commits("model")[0] == before
    assert hub.repository("model").pull_requests == []


def test_a_branch_goes_its_own_way_until_it_is_deleted(hub, published):
    hub.api.create_branch(published, branch="tests/a")
    hub.api.upload_file(repo_id=published, path_in_repo="b.txt", path_or_fileobj=b"b", revision="tests/a")
    assert read(hub.api, published, "b.txt", revision="tests/a") == b"b"
    assert not hub.api.file_exists(published, "b.txt")
    assert {branch.name for branch in hub.api.list_repo_refs(published).branches} == {"main", "tests/a"}
    with pytest.raises(HfHubHTTPError, match="already exists"):
        hub.api.create_branch(published, branch="tests/a")
    hub.api.delete_branch(published, branch="tests/a")
    with pytest.raises(RevisionNotFoundError):
        hub.api.model_info(published, revision="tests/a")


def test_a_pull_request_holds_a_strangers_change_beside_main(hub, hub_server, published):
    stranger = HfApi(endpoint=hub.endpoint, token=hub_server.new_account().token)
    change = stranger.create_commit(published, [add("fix.bin", b"fix")], commit_message="Fix", create_pr=True)
    assert change.pr_revision == "refs/pr/1"
    assert read(hub.api, published, "fix.bin", revision="refs/pr/1") == b"fix"
    assert not hub.api.file_exists(published, "fix.bin")
    assert hub.api.get_discussion_details(published, 1).status == "open"


def test_a_draft_pull_request_takes_commits(hub, published):
    draft = hub.api.create_pull_request(published, title="Later")
    assert (draft.num, draft.status, draft.git_reference) == (1, "draft", "refs/pr/1")
    hub.api.upload_file(repo_id=published, path_in_repo="b.txt", path_or_fileobj=b"b", revision="refs/pr/1")
    assert read(hub.api, published, "b.txt", revision="refs/pr/1") == b"b"
    refs = hub.api.list_repo_refs(published, include_pull_requests=True)
    assert [ref.name for ref in refs.pull_requests] == ["refs/pr/1"]


def test_a_commit_whose_parent_has_moved_is_refused(hub, published):
    parent = hub.commits("model")[0].oid
    hub.api.create_commit(published, [add("a", b"1")], commit_message="First", parent_commit=parent)
    with pytest.raises(HfHubHTTPError, match="A commit has happened since") as refused:
        hub.api.create_commit(published, [add("a", b"2")], commit_message="Second", parent_commit=parent)
    assert refused.value.response.status_code == 412
    assert read(hub.api, published, "a") == b"1"


def test_a_test_sees_its_own_namespace_and_another_host_is_out_of_reach(hub, tmp_path):
    assert huggingface_hub.whoami()["name"] == hub.account.name
    code = "from huggingface_hub.utils import get_session; get_session().get('http://datasets-server.invalid/info')"
    subprocess.run([sys.executable, "-c", code], env=hub.environment, check=True)
    assert [request.status for request in hub.log if "datasets-server.invalid" in request.path] == [403]


def test_outside_of_a_test_the_libraries_are_offline(hub_server):
    assert huggingface_hub.is_offline_mode()
    with pytest.raises(huggingface_hub.errors.OfflineModeIsEnabled):
        HfApi(endpoint=hub_server.endpoint).model_info("some/model")
