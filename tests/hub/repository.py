"""What a Hub keeps: repositories whose commits are whole trees of files, with branches and pull requests."""

import base64
import hashlib
import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from functools import cached_property
from pathlib import PurePosixPath

from hub.messages import HubError

LFS_EXTENSIONS = (".arrow", ".bin", ".gz", ".npy", ".npz", ".parquet", ".png", ".pt", ".safetensors", ".zip")
LFS_MIN_BYTES = 1_000_000  # the real Hub draws this line at about 10 MB: tests should reach it sooner


def is_large(path: str, size: int) -> bool:
    """Whether a file goes through LFS. An empty one never does: the storage cannot hold it."""
    return size > 0 and (path.endswith(LFS_EXTENSIONS) or size >= LFS_MIN_BYTES)


def now() -> str:
    return datetime.now(UTC).strftime("%Y-%m-%dT%H:%M:%S.%fZ")


@dataclass(frozen=True)
class File:
    content: bytes
    lfs: bool = False

    @cached_property
    def sha256(self) -> str:
        return hashlib.sha256(self.content).hexdigest()

    @cached_property
    def blob_id(self) -> str:
        """Git's id of what the repository itself holds: the content, or an LFS file's pointer."""
        blob = self.pointer if self.lfs else self.content
        return hashlib.sha1(b"blob %d\0" % len(blob) + blob).hexdigest()

    @property
    def pointer(self) -> bytes:
        return f"oid sha256:{self.sha256}\nsize {len(self.content)}\n".encode()

    @property
    def etag(self) -> str:
        """The id by which a client tells whether its own copy is the same."""
        return self.sha256 if self.lfs else self.blob_id


Tree = Mapping[str, File]  # path in the repository -> file


@dataclass(frozen=True)
class Commit:
    oid: str
    parents: tuple[str, ...]
    tree: Tree
    title: str
    message: str
    author: str
    date: str


@dataclass
class PullRequest:
    num: int
    title: str
    description: str
    author: str
    date: str
    status: str  # "draft" when it was opened without changes, else "open"

    @property
    def ref(self) -> str:
        return f"refs/pr/{self.num}"


class Repository:
    """One model or dataset. `gated` asks for an account on `granted` (or the owner) to download a file."""

    def __init__(self, kind: str, repo_id: str, author: str, private: bool):
        self.kind = kind  # "model" or "dataset"
        self.id = repo_id
        self.private = private
        self.gated: str | bool = False
        self.granted: set[str] = set()
        self.commits: dict[str, Commit] = {}
        self.objects: dict[str, bytes] = {}  # large files by SHA-256, uploaded and perhaps not committed yet
        self.refs: dict[str, str] = {}  # full name of the ref -> id of its commit
        self.pull_requests: list[PullRequest] = []
        attributes = "".join(f"*{ending} filter=lfs diff=lfs merge=lfs -text\n" for ending in LFS_EXTENSIONS)
        tree = {".gitattributes": File(attributes.encode())}
        self.refs["refs/heads/main"] = self._store((), tree, "initial commit", "", author).oid

    @property
    def namespace(self) -> str:
        return self.id.split("/")[0]

    @property
    def page(self) -> str:
        """The path of its page, which git and downloads share."""
        return f"datasets/{self.id}" if self.kind == "dataset" else self.id

    def resolve(self, revision: str) -> Commit:
        """The commit that a branch, a full ref, or at least 7 digits of a commit's id name."""
        for ref in (revision, f"refs/heads/{revision}"):
            if ref in self.refs:
                return self.commits[self.refs[ref]]
        found = [oid for oid in self.commits if oid.startswith(revision)] if len(revision) >= 7 else []
        if len(found) != 1:
            raise HubError(404, "RevisionNotFound", f"Invalid rev id: {revision}")
        return self.commits[found[0]]

    def history(self, revision: str = "main") -> list[Commit]:
        """The commits of a revision, newest first."""
        commits = [self.resolve(revision)]
        while commits[-1].parents:
            commits.append(self.commits[commits[-1].parents[0]])
        return commits

    def branch_name(self, revision: str) -> str:
        """The full name of the ref that a commit can move. A commit's id names none."""
        for ref in (revision, f"refs/heads/{revision}"):
            if ref in self.refs:
                return ref
        raise HubError(404, "RevisionNotFound", f"Invalid rev id: {revision}")

    def commit(
        self,
        revision: str,
        operations: Iterable[Mapping],
        *,
        title: str,
        message: str,
        author: str,
        parent: str | None = None,
    ) -> Commit:
        """Move a branch or a pull request to a new commit; with `parent`, only if it still stands there."""
        ref = self.branch_name(revision)
        head = self.commits[self.refs[ref]]
        if parent and not head.oid.startswith(parent):
            raise HubError(412, None, "A commit has happened since. Please refresh and try again.")
        tree = self.apply(operations, head)
        made = self._store((head.oid,), tree, title, message, author)
        self.refs[ref] = made.oid
        return made

    def apply(self, operations: Iterable[Mapping], head: Commit) -> Tree:
        """The tree that a commit's operations make of another one; a failing operation leaves nothing behind.

        Args:
            operations: the lines of a commit request after its header, each with a key and a value.
            head: the commit to change.
        """
        tree = dict(head.tree)
        for operation in operations:
            value = operation["value"]
            path = value["path"].rstrip("/")
            match operation["key"]:
                case "file":
                    tree[path] = File(base64.b64decode(value["content"]))
                case "lfsFile" if value["oid"] in self.objects:
                    tree[path] = File(self.objects[value["oid"]], lfs=True)
                case "deletedFile" if path in tree:
                    del tree[path]
                case "deletedFolder" if any(name.startswith(f"{path}/") for name in tree):
                    tree = {name: file for name, file in tree.items() if not name.startswith(f"{path}/")}
                case "lfsFile":
                    raise HubError(400, None, f"The large file {path} was never uploaded: {value['oid']}")
                case "deletedFile" | "deletedFolder":
                    raise HubError(404, "EntryNotFound", f"A file with this name doesn't exist: {path}")
                case unknown:
                    raise HubError(400, None, f"Unknown operation in a commit: {unknown}")
        return tree

    def open_pull_request(self, base: Commit, title: str, description: str, author: str, status: str) -> PullRequest:
        """A pull request that starts where `base` is; commits to its ref add changes to it."""
        opened = PullRequest(len(self.pull_requests) + 1, title, description, author, now(), status)
        self.pull_requests.append(opened)
        self.refs[opened.ref] = base.oid
        return opened

    def create_branch(self, name: str, start: str) -> None:
        if f"refs/heads/{name}" in self.refs:
            raise HubError(409, None, f"Reference already exists: {name}")
        self.refs[f"refs/heads/{name}"] = self.resolve(start).oid

    def delete_branch(self, name: str) -> None:
        if name == "main":
            raise HubError(403, None, "The main branch cannot be deleted")
        if self.refs.pop(f"refs/heads/{name}", None) is None:
            raise HubError(404, "RevisionNotFound", f"Invalid rev id: {name}")

    def _store(self, parents: tuple[str, ...], tree: Tree, title: str, message: str, author: str) -> Commit:
        date = now()
        # The number of commits so far keeps two equal commits of the same moment apart.
        identity = [len(self.commits), parents, tree_id(tree), title, message, author, date]
        oid = hashlib.sha1(json.dumps(identity).encode()).hexdigest()
        self.commits[oid] = Commit(oid, parents, dict(tree), title, message, author, date)
        return self.commits[oid]


def tree_id(tree: Tree) -> str:
    listing = [(path, file.blob_id) for path, file in sorted(tree.items())]
    return hashlib.sha1(json.dumps(listing).encode()).hexdigest()


def entries(tree: Tree, folder: str = "", recursive: bool = True) -> dict[str, File | Tree]:
    """Files and folders below a folder by their whole path, sorted; a folder is the tree of what it holds.

    Raises:
        HubError: EntryNotFound where the folder does not exist or is a file.
    """
    below = {path: file for path, file in tree.items() if not folder or path.startswith(f"{folder}/")}
    if folder and not below:
        raise HubError(404, "EntryNotFound", f"No folder {folder}")
    start = len(folder) + 1 if folder else 0
    listed: dict[str, File | Tree] = dict(below)
    for path, file in below.items():
        for parent in map(str, PurePosixPath(path).parents):
            if parent != "." and len(parent) > start:  # inside the listed folder, not itself or above it
                listed.setdefault(parent, {})[path] = file
    return {path: listed[path] for path in sorted(listed) if recursive or "/" not in path[start:]}
