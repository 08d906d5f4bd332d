"""The Hub's API: what each request to the first port reads or changes, as the HF libraries call it."""

import json
from typing import TYPE_CHECKING, Any

from hub.messages import Answer, HubError, Request, content_answer, json_answer
from hub.repository import Commit, File, Repository, Tree, entries, is_large, tree_id

if TYPE_CHECKING:
    from hub.server import Account, HubServer

KINDS = {"models": "model", "datasets": "dataset"}


def respond(hub: "HubServer", request: Request) -> Answer:
    """The answer to a request. One that no client of the tests needs is refused with 501, which nobody retries."""
    account = hub.account_of(request)
    match request.method, request.segments:
        case "GET", ["api", "whoami-v2"]:
            who = signed_in(account)
            role = {"accessToken": {"displayName": "tests", "role": who.role}}
            return json_answer({"type": "user", "name": who.name, "fullname": who.name, "orgs": [], "auth": role})
        case "GET", ["api", "agent-harnesses"]:
            return json_answer({"standardEnvVars": [], "harnesses": {}})
        case "POST", ["api", "validate-yaml"]:
            return json_answer({"errors": [], "warnings": []})
        case "POST", ["api", "repos", "create"]:
            return create_repository(hub, request, account)
        case "DELETE", ["api", "repos", "delete"]:
            kind, repo_id = named_repository(request, account)
            repository = writable(hub.find(kind, repo_id, account), account)
            del hub.repositories[kind, repository.id]
            return json_answer({})
        case _, ["api", ("models" | "datasets") as kinds, namespace, name, *rest]:
            repository = hub.find(KINDS[kinds], f"{namespace}/{name}", account)
            return repository_api(hub, request, account, repository, rest)
        case _, ["datasets", namespace, name, *rest]:
            return repository_files(hub, request, account, ("dataset", namespace, name), rest)
        case _, [namespace, name, *rest]:
            return repository_files(hub, request, account, ("model", namespace, name), rest)
    raise not_served(request)


def repository_api(
    hub: "HubServer", request: Request, account: "Account | None", repository: Repository, rest: list[str]
) -> Answer:
    """What follows api/models/NAMESPACE/NAME."""
    match request.method, rest:
        case "GET", []:
            return json_answer(repository_info(request, repository, repository.resolve("main")))
        case "GET", ["revision", revision]:
            return json_answer(repository_info(request, repository, repository.resolve(revision)))
        case "GET", ["tree", revision, *folder]:
            listed = entries(repository.resolve(revision).tree, "/".join(folder), request.asks("recursive"))
            return page(hub, request, [entry(path, found) for path, found in listed.items()])
        case "POST", ["paths-info", revision]:
            listed = entries(repository.resolve(revision).tree)
            paths = request.form.get("paths", [])
            return json_answer([entry(path, listed[path]) for path in paths if path in listed])
        case "GET", ["commits", revision]:
            return page(hub, request, [described(commit) for commit in repository.history(revision)])
        case "GET", ["refs"]:
            return json_answer(refs(repository, request.asks("include_prs")))
        case "POST", ["branch", name]:
            start = request.json.get("startingPoint", "main")
            writable(repository, account).create_branch(name, start)
            return json_answer({})
        case "DELETE", ["branch", name]:
            writable(repository, account).delete_branch(name)
            return json_answer({})
        case "POST", ["preupload", revision]:
            signed_in(account)
            tree = repository.resolve(revision).tree
            return json_answer({"files": [upload_mode(tree, file) for file in request.json["files"]]})
        case "POST", ["commit", revision]:
            return commit(hub, request, account, repository, revision)
        case "POST", ["discussions"]:
            return open_discussion(request, account, repository)
        case "GET", ["discussions", num] if 0 < int(num) <= len(repository.pull_requests):
            return json_answer(discussion(repository, int(num)))
    raise not_served(request)


def repository_files(
    hub: "HubServer", request: Request, account: "Account | None", place: tuple[str, str, str], rest: list[str]
) -> Answer:
    """What follows NAMESPACE/NAME on the pages' side: downloads, and git's protocol for large files."""
    kind, namespace, name = place
    match request.method, rest:
        case (("GET" | "HEAD"), ["resolve", revision, *path]):
            repository = hub.find(kind, f"{namespace}/{name}", account)
            return download(hub, request, account, repository, repository.resolve(revision), "/".join(path))
        case "POST", ["info", "lfs", "objects", "batch"]:
            repository = hub.find(kind, f"{namespace}/{name.removesuffix('.git')}", account)
            signed_in(account)
            wanted = [upload_actions(hub, repository, item) for item in request.json["objects"]]
            return json_answer({"transfer": "basic", "objects": wanted})
        case "POST", ["info", "lfs", "verify"]:
            repository = hub.find(kind, f"{namespace}/{name.removesuffix('.git')}", account)
            stored = repository.objects.get(request.json["oid"])
            if stored is None or len(stored) != request.json["size"]:
                raise HubError(404, None, f"LFS object {request.json['oid']} did not arrive whole")
            return json_answer({})
    raise not_served(request)


def create_repository(hub: "HubServer", request: Request, account: "Account | None") -> Answer:
    kind, repo_id = named_repository(request, account)
    made = Repository(kind, repo_id, account.name, request.json.get("visibility") == "private")
    existing = hub.repositories.setdefault((kind, repo_id), writable(made, account))
    url = {"id": repo_id, "name": repo_id, "url": f"{hub.endpoint}/{existing.page}"}
    if existing is not made:
        return json_answer(url | {"error": f"You already created this {kind} repo: {repo_id}"}, 409)
    return json_answer(url)


def named_repository(request: Request, account: "Account | None") -> tuple[str, str]:
    """Kind and id of the repository that a body names; without an organization it is the account's own."""
    signed_in(account)
    owner = request.json.get("organization") or account.name
    kind = request.json.get("type", "model")
    if kind not in KINDS.values():
        raise not_served(request)
    return kind, f"{owner}/{request.json['name']}"


def signed_in(account: "Account | None") -> "Account":
    if account is None:
        raise HubError(401, None, "Invalid username or password.")
    return account


def writable(repository: Repository, account: "Account | None") -> Repository:
    """The repository, for an account that may change it: its owner with a token that may write."""
    if signed_in(account).role != "write" or account.name != repository.namespace:
        raise HubError(403, None, f"Forbidden: {account.name} may not write to {repository.namespace}")
    return repository


def not_served(request: Request) -> HubError:
    return HubError(501, None, f"The test server does not serve {request.method} {request.target}")


def page(hub: "HubServer", request: Request, items: list) -> Answer:
    """One page of a listing; the Link header leads to the next one."""
    cursor = int(request.query.get("cursor", ["0"])[0])
    following = cursor + hub.page_size
    headers = {}
    if following < len(items):
        path = request.target.split("?")[0]
        kept = f"recursive={request.asks('recursive')}".lower()
        headers["Link"] = f'<{hub.endpoint}{path}?{kept}&cursor={following}>; rel="next"'
    return json_answer(items[cursor:following], headers=headers)


def entry(path: str, found: File | Tree) -> dict[str, Any]:
    """A file or folder of a tree listing."""
    if not isinstance(found, File):
        return {"type": "directory", "path": path, "oid": tree_id(found), "size": 0}
    size = len(found.content)
    lfs = {"lfs": {"oid": found.sha256, "size": size, "pointerSize": len(found.pointer)}} if found.lfs else {}
    return {"type": "file", "path": path, "oid": found.blob_id, "size": size, **lfs}


def sibling(path: str, file: File, with_metadata: bool) -> dict[str, Any]:
    """A file of a repository's description."""
    if not with_metadata:
        return {"rfilename": path}
    size = len(file.content)
    lfs = {"lfs": {"sha256": file.sha256, "size": size, "pointerSize": len(file.pointer)}} if file.lfs else {}
    return {"rfilename": path, "size": size, "blobId": file.blob_id, **lfs}


def repository_info(request: Request, repository: Repository, commit: Commit) -> dict[str, Any]:
    """A repository at a commit. With `expand` in the query, only its id and what that names."""
    created = repository.history()[-1].date
    with_metadata = request.asks("blobs")
    info = {
        "id": repository.id,
        "author": repository.namespace,
        "sha": commit.oid,
        "createdAt": created,
        "lastModified": commit.date,
        "private": repository.private,
        "gated": repository.gated,
        "disabled": False,
        "downloads": 0,
        "likes": 0,
        "tags": [],
        "siblings": [sibling(path, file, with_metadata) for path, file in sorted(commit.tree.items())],
    }
    expand = request.query.get("expand")
    return info if expand is None else {key: info[key] for key in ["id", *expand] if key in info}


def described(commit: Commit) -> dict[str, Any]:
    authors = [{"user": commit.author}]
    return {
        "id": commit.oid,
        "title": commit.title,
        "message": commit.message,
        "date": commit.date,
        "authors": authors,
    }


def refs(repository: Repository, with_pull_requests: bool) -> dict[str, list]:
    def under(prefix: str) -> list[dict[str, str]]:
        found = [(ref, oid) for ref, oid in repository.refs.items() if ref.startswith(prefix)]
        return [{"name": ref.removeprefix("refs/heads/"), "ref": ref, "targetCommit": oid} for ref, oid in found]

    listed = {"branches": under("refs/heads/"), "tags": [], "converts": []}
    return listed | {"pullRequests": under("refs/pr/")} if with_pull_requests else listed


def upload_mode(tree: Tree, file: dict) -> dict[str, Any]:
    """How a file is to be uploaded, and the id of what stands at its path: equal ids spare the client a commit."""
    mode = "lfs" if is_large(file["path"], file["size"]) else "regular"
    there = {"oid": tree[file["path"]].etag} if file["path"] in tree else {}
    return {"path": file["path"], "uploadMode": mode, "shouldIgnore": False, **there}


def upload_actions(hub: "HubServer", repository: Repository, item: dict) -> dict[str, Any]:
    """Where to upload a large file; an object that is already stored needs no action."""
    if item["oid"] in repository.objects:
        return item
    upload = f"{hub.storage_endpoint}/objects/{repository.page}/{item['oid']}"
    verify = f"{hub.endpoint}/{repository.page}.git/info/lfs/verify"
    return item | {"actions": {"upload": {"href": upload}, "verify": {"href": verify}}}


def commit(
    hub: "HubServer", request: Request, account: "Account | None", repository: Repository, revision: str
) -> Answer:
    """All of a commit's operations or none. With `create_pr`, on a pull request that anyone signed in may open."""
    header, *operations = (json.loads(line) for line in request.body.splitlines())
    title, message = header["value"]["summary"], header["value"]["description"]
    parent = header["value"].get("parentCommit")
    links = {}
    if request.asks("create_pr"):
        base = repository.resolve(parent or revision)
        repository.apply(operations, base)  # what fails must not leave an empty pull request
        opened = repository.open_pull_request(base, title, message, signed_in(account).name, "open")
        revision, parent = opened.ref, base.oid
        links["pullRequestUrl"] = f"{hub.endpoint}/{repository.page}/discussions/{opened.num}"
    else:
        writable(repository, account)
    made = repository.commit(revision, operations, title=title, message=message, author=account.name, parent=parent)
    links["commitUrl"] = f"{hub.endpoint}/{repository.page}/commit/{made.oid}"
    return json_answer({"success": True, "commitOid": made.oid, "hookOutput": "", **links})


def open_discussion(request: Request, account: "Account | None", repository: Repository) -> Answer:
    """A pull request without changes yet, a draft. Discussions without one are not kept."""
    asked = request.json
    if not asked["pullRequest"]:
        raise not_served(request)
    base, author = repository.resolve("main"), signed_in(account).name
    opened = repository.open_pull_request(base, asked["title"], asked["description"], author, "draft")
    return json_answer({"num": opened.num})


def discussion(repository: Repository, num: int) -> dict[str, Any]:
    opened = repository.pull_requests[num - 1]
    return {
        "num": num,
        "title": opened.title,
        "author": {"name": opened.author},
        "createdAt": opened.date,
        "status": opened.status,
        "repo": {"name": repository.id, "type": repository.kind},
        "isPullRequest": True,
        "changes": {"base": "refs/heads/main"},
        "filesWithConflicts": [],
        "events": [],
    }


def download(
    hub: "HubServer",
    request: Request,
    account: "Account | None",
    repository: Repository,
    commit: Commit,
    path: str,
) -> Answer:
    """A small file's content, or the way to a large file's: another origin, where the token must not go."""
    at_commit = {"X-Repo-Commit": commit.oid}
    if repository.gated and (account is None or account.name not in {repository.namespace, *repository.granted}):
        status = 401 if account is None else 403
        raise HubError(status, "GatedRepo", f"Access to {repository.kind} {repository.id} is restricted")
    if path not in commit.tree:
        raise HubError(404, "EntryNotFound", "Entry not found", at_commit)
    file = commit.tree[path]
    if not file.lfs:
        return content_answer(request, file.content, at_commit | {"ETag": f'"{file.etag}"'})
    linked = {"X-Linked-Etag": f'"{file.etag}"', "X-Linked-Size": str(len(file.content))}
    location = f"{hub.storage_endpoint}/objects/{repository.page}/{file.sha256}"
    return Answer(302, headers=at_commit | linked | {"Location": location})
