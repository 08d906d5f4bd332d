"""What a Hub keeps: repositories whose commits are whole trees of files, with branches and pull requests."""

import base64
import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from hub.messages import HubError

LARGE = (".parquet", ".png", ".safetensors")


@dataclass(frozen=True)
class File:
    content: bytes
    large: bool = False  # uploaded by itself before the commit (LFS), which only names it

    @property
    def oid(self) -> str:
        """By which a client tells whether its own copy is the same: SHA-256 of a large file, git's id of others."""
        if self.large:
            return hashlib.sha256(self.content).hexdigest()
        return hashlib.sha1(b"blob %d\0" % len(self.content) + self.content).hexdigest()


@dataclass(frozen=True)
class Commit:
    oid: str
    parent: str | None
    tree: Mapping[str, File]  # by path
    title: str


class Repository:
    """One model or dataset."""

    def __init__(self, repo_id: str, page: str, private: bool):
        self.id = repo_id
        self.page = page  # the path of its page, which downloads and git's protocol share
        self.private = private
        self.objects: dict[str, bytes] = {}  # large files by SHA-256, uploaded and perhaps not committed yet
        self.commits: dict[str, Commit] = {}
        self.refs: dict[str, str] = {}  # name of a branch, or refs/pr/N -> id of its commit
        self._add("main", None, {".gitattributes": File(b"")}, "initial commit")

    def resolve(self, revision: str) -> Commit:
        """The commit that a branch, a pull request or a commit's id names."""
        oid = self.refs.get(revision, revision)
        if oid not in self.commits:
            raise HubError(404, f"Invalid rev id: {revision}", "RevisionNotFound")
        return self.commits[oid]

    def history(self, revision: str = "main") -> list[Commit]:
        """The commits of a revision, newest first."""
        commits = [self.resolve(revision)]
        while commits[-1].parent:
            commits.append(self.commits[commits[-1].parent])
        return commits

    def commit(self, ref: str, operations: Sequence[Mapping], title: str, parent: str | None = None) -> Commit:
        """Move a branch to a new commit, with `parent` only if it still stands there; all of its operations or none.

        Args:
            ref: an existing branch, or "refs/pr/N", which starts where the main branch is.
            operations: the lines of a commit request after its header, each with a key and a value.
        """
        head = self.resolve("main" if ref.startswith("refs/pr/") else ref)
        if parent and parent != head.oid:
            raise HubError(412, "A commit has happened since. Please refresh and try again.")
        tree = dict(head.tree)
        for operation in operations:
            value = operation["value"]
            match operation["key"]:
                case "file":
                    tree[value["path"]] = File(base64.b64decode(value["content"]))
                case "lfsFile" if value["oid"] in self.objects:
                    tree[value["path"]] = File(self.objects[value["oid"]], large=True)
                case "deletedFile" if value["path"] in tree:
                    del tree[value["path"]]
                case _:
                    raise HubError(400, f"No such operation here, or nothing to do it with: {operation}")
        return self._add(ref, head.oid, tree, title)

    def _add(self, ref: str, parent: str | None, tree: Mapping[str, File], title: str) -> Commit:
        identity = [parent, title, [(path, file.oid) for path, file in tree.items()]]
        oid = hashlib.sha1(json.dumps(identity).encode()).hexdigest()
        self.commits[oid] = Commit(oid, parent, tree, title)
        self.refs[ref] = oid
        return self.commits[oid]
