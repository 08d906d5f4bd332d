"""The Hub's API: what each request reads or changes, as the HF libraries call it."""

import hashlib
import json
from typing import TYPE_CHECKING, Any

from hub.messages import Answer, HubError, Request, content_answer, json_answer
from hub.repository import LARGE, Commit, File, Repository

if TYPE_CHECKING:
    from hub.server import HubServer

KINDS = {"models": "model", "datasets": "dataset"}


def respond(hub: "HubServer", request: Request) -> Answer:
    """The answer to a request. One that no client of the tests needs is refused with 501, which nobody retries."""
    match request.method, request.segments:
        case "GET", ["api", "whoami-v2"]:
            return json_answer({"type": "user", "name": hub.user, "orgs": [], "auth": {}})
        case "POST", ["api", "validate-yaml"]:
            return json_answer({"errors": [], "warnings": []})
        case "POST", ["api", "repos", "create"]:
            return create_repository(hub, request)
        case _, ["api", ("models" | "datasets") as kinds, namespace, name, *rest]:
            return repository_api(hub, request, hub.find(KINDS[kinds], f"{namespace}/{name}"), rest)
        case _, ["datasets", namespace, name, *rest]:
            return repository_files(hub, request, hub.find("dataset", f"{namespace}/{name}"), rest)
        case _, [namespace, name, *rest]:
            return repository_files(hub, request, hub.find("model", f"{namespace}/{name}"), rest)
    raise not_served(request)


def not_served(request: Request) -> HubError:
    return HubError(501, f"The test server does not serve {request.method} {request.target}")


def create_repository(hub: "HubServer", request: Request) -> Answer:
    asked = request.json
    kind, repo_id = asked.get("type", "model"), f"{asked['organization']}/{asked['name']}"
    page = f"datasets/{repo_id}" if kind == "dataset" else repo_id
    exists = (kind, repo_id) in hub.repositories
    hub.repositories.setdefault((kind, repo_id), Repository(repo_id, page, asked.get("visibility") == "private"))
    return json_answer({"url": f"{hub.endpoint}/{page}"}, 409 if exists else 200)


def repository_api(hub: "HubServer", request: Request, repository: Repository, rest: list[str]) -> Answer:
    """What follows api/models/NAMESPACE/NAME."""
    match request.method, rest:
        case "GET", []:
            return json_answer(description(repository, repository.resolve("main")))
        case "GET", ["revision", revision]:
            return json_answer(description(repository, repository.resolve(revision)))
        case "GET", ["tree", revision, *folder]:
            listed = entries(repository.resolve(revision), "".join(f"{part}/" for part in folder))
            return json_answer([e for e in listed if request.asks("recursive") or e["inside"]])
        case "POST", ["paths-info", revision]:
            paths = request.form.get("paths", [])
            return json_answer([e for e in entries(repository.resolve(revision), "") if e["path"] in paths])
        case "POST", ["branch", name]:
            if name in repository.refs:
                raise HubError(409, f"Reference already exists: {name}")
            repository.refs[name] = repository.refs["main"]
            return json_answer({})
        case "POST", ["preupload", revision]:
            tree = repository.resolve(revision).tree
            return json_answer({"files": [upload_mode(tree, file["path"]) for file in request.json["files"]]})
        case "POST", ["commit", revision]:
            return commit(hub, request, repository, revision)
    raise not_served(request)


def repository_files(hub: "HubServer", request: Request, repository: Repository, rest: list[str]) -> Answer:
    """What follows NAMESPACE/NAME on the pages' side: downloads, and git's protocol for large files."""
    match request.method, rest:
        case (("GET" | "HEAD"), ["resolve", revision, *parts]):
            found = repository.resolve(revision)
            headers = {"X-Repo-Commit": found.oid}
            file = found.tree.get("/".join(parts))
            if file is None:
                raise HubError(404, "Entry not found", "EntryNotFound", headers)
            return content_answer(request, file.content, {**headers, "ETag": f'"{file.oid}"'})
        case "POST", ["info", "lfs", "objects", "batch"]:
            wanted = [upload_action(hub, repository, item) for item in request.json["objects"]]
            return json_answer({"transfer": "basic", "objects": wanted})
        case "PUT", ["objects", oid]:
            if hashlib.sha256(request.body).hexdigest() != oid:
                raise HubError(400, f"What arrived is not the content of {oid}")
            repository.objects[oid] = request.body
            return Answer(200)
    raise not_served(request)


def description(repository: Repository, commit: Commit) -> dict[str, Any]:
    """A repository at a commit."""
    files = [{"rfilename": path} for path in sorted(commit.tree)]
    return {"id": repository.id, "sha": commit.oid, "private": repository.private, "tags": [], "siblings": files}


def entries(commit: Commit, folder: str) -> list[dict[str, Any]]:
    """Files and folders below a folder, which ends in a slash or is empty; `inside` marks those right inside it."""
    below = {path: file for path, file in commit.tree.items() if path.startswith(folder)}
    if folder and not below:
        raise HubError(404, f"No folder {folder}", "EntryNotFound")
    folders = {path[:at] for path in below for at in range(len(folder), len(path)) if path[at] == "/"}
    listed = [{"type": "directory", "path": path, "oid": "", "size": 0} for path in folders]
    for path, file in below.items():
        size = len(file.content)
        lfs = {"lfs": {"oid": file.oid, "size": size, "pointerSize": 0}} if file.large else {}
        listed.append({"type": "file", "path": path, "oid": file.oid, "size": size, **lfs})
    return [e | {"inside": "/" not in e["path"][len(folder) :]} for e in sorted(listed, key=lambda e: e["path"])]


def upload_mode(tree: dict[str, File], path: str) -> dict[str, Any]:
    """How a file is to be uploaded, and the id of what stands at its path: equal ids spare the client a commit."""
    there = {"oid": tree[path].oid} if path in tree else {}
    return {"path": path, "uploadMode": "lfs" if path.endswith(LARGE) else "regular", "shouldIgnore": False, **there}


def upload_action(hub: "HubServer", repository: Repository, item: dict) -> dict[str, Any]:
    """Where to upload a large file; one that is already stored needs no action."""
    if item["oid"] in repository.objects:
        return item
    return item | {"actions": {"upload": {"href": f"{hub.endpoint}/{repository.page}/objects/{item['oid']}"}}}


def commit(hub: "HubServer", request: Request, repository: Repository, revision: str) -> Answer:
    header, *operations = (json.loads(line) for line in request.body.splitlines())
    page, links = f"{hub.endpoint}/{repository.page}", {}
    if request.asks("create_pr"):
        number = 1 + sum(ref.startswith("refs/pr/") for ref in repository.refs)
        revision, links["pullRequestUrl"] = f"refs/pr/{number}", f"{page}/discussions/{number}"
    made = repository.commit(revision, operations, header["value"]["summary"], header["value"].get("parentCommit"))
    return json_answer({"commitUrl": f"{page}/commit/{made.oid}", "commitOid": made.oid, **links})
