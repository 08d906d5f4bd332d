"""Publishing files to the Hub: in one commit, made only where something changed, and never half.

The branch is read first and the commit names what was read as its parent, so that two writers never mix. What fails by
chance (a dropped connection, an overloaded server) is tried again. That is safe: every attempt compares contents anew,
so a commit whose answer was lost is found and not made twice.
"""

import logging
import re
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, TypeVar

from huggingface_hub import CommitOperationAdd, CommitOperationDelete, HfApi
from huggingface_hub.errors import (
    HfHubHTTPError,
    HFValidationError,
    LocalTokenNotFoundError,
    OfflineModeIsEnabled,
    RepositoryNotFoundError,
    RevisionNotFoundError,
)
from huggingface_hub.utils import httpx, validate_repo_id

from hf_toolssm.errors import (
    HubAccessError,
    HubRefusedError,
    HubUnavailableError,
    InvalidHubNameError,
    PublishConflictError,
)

logger = logging.getLogger(__name__)

MAIN = "main"
ATTEMPTS = 5
LONGEST_WAIT = 60.0
"""Seconds between two attempts at most; a server that asks for more is given up."""

_BRANCH = re.compile(r"\w[\w.-]*(/\w[\w.-]*)*", re.ASCII)
_T = TypeVar("_T")


@dataclass(frozen=True)
class Destination:
    """Where to publish.

    Attributes:
        repo_id: "org/name".
        kind: what the repository holds.
        private: whether a repository that does not exist yet is made private; an existing one stays as it is.
        branch: made from the main branch if need be.
        pull_request: propose the commit to the main branch instead of making it.
    """

    repo_id: str
    kind: Literal["model", "dataset"]
    private: bool = False
    branch: str = MAIN
    pull_request: bool = False

    @property
    def repository(self) -> dict[str, Any]:
        """How `HfApi` names it."""
        return {"repo_id": self.repo_id, "repo_type": self.kind}


@dataclass(frozen=True)
class Published:
    """What is on the Hub now.

    Attributes:
        url: of the commit, or of the pull request.
        revision: the commit's id.
        changed: whether there was anything to commit.
    """

    url: str
    revision: str
    changed: bool

    def __str__(self) -> str:
        return f"{'published' if self.changed else 'nothing has changed'}: {self.url}"


def check_destination(destination: Destination) -> None:
    """Finds what would make publishing fail, before any work is done.

    Raises:
        InvalidHubNameError: the repository or the branch cannot be named so.
        HubAccessError: there is no token, or it is not valid.
        HubUnavailableError: there is no network, or HF_HUB_OFFLINE is set.
    """
    try:
        validate_repo_id(destination.repo_id)
    except HFValidationError as error:
        raise InvalidHubNameError(f"no repository can be named {destination.repo_id!r}: {error}") from error
    if destination.repo_id.count("/") != 1:
        raise InvalidHubNameError(f"{destination.repo_id!r} names no owner: write org/name")
    if not _BRANCH.fullmatch(destination.branch) or ".." in destination.branch:
        raise InvalidHubNameError(
            f"no branch can be named {destination.branch!r}: use letters, digits and - _ . with / between parts"
        )
    if destination.pull_request and destination.branch != MAIN:
        raise InvalidHubNameError("a pull request goes to the main branch: leave out the branch or the pull request")
    _attempt(lambda: HfApi().whoami(), destination)


def published_files(destination: Destination) -> set[str]:
    """The paths that the branch holds; none where it, or the repository, does not exist yet.

    Raises:
        HubAccessError, HubUnavailableError: see `check_destination`.
    """

    def listed() -> set[str]:
        try:
            return set(HfApi().list_repo_files(**destination.repository, revision=destination.branch))
        except (RepositoryNotFoundError, RevisionNotFoundError):
            return set()

    return _attempt(listed, destination)


def publish_files(
    files: Mapping[str, Path], destination: Destination, message: str, owned: Callable[[str], bool]
) -> Published:
    """Makes one commit of files, or none where the branch holds them already.

    Args:
        files: by their path in the repository.
        destination: where.
        message: the commit's first line.
        owned: for a path in the repository, whether it is left over from an earlier commit if it is not among `files`,
            and goes away with this one.

    Raises:
        InvalidHubNameError, HubAccessError, HubUnavailableError: see `check_destination`. After the last, the same
            call goes on: files that arrived are not sent again.
        HubRefusedError: the Hub does not take a file.
        PublishConflictError: someone else committed meanwhile.
    """
    check_destination(destination)
    api, where = HfApi(), destination.repository
    _attempt(lambda: api.create_repo(**where, private=destination.private, exist_ok=True), destination)
    if destination.branch != MAIN:
        _attempt(lambda: api.create_branch(**where, branch=destination.branch, exist_ok=True), destination)
    start = _attempt(lambda: api.repo_info(**where, revision=destination.branch).sha, destination)

    def commit() -> Published:
        head = api.repo_info(**where, revision=destination.branch).sha
        obsolete = [
            name for name in sorted(api.list_repo_files(**where, revision=head)) if name not in files and owned(name)
        ]
        info = api.create_commit(
            **where,
            operations=[
                *(CommitOperationAdd(name, path) for name, path in files.items()),
                *map(CommitOperationDelete, obsolete),
            ],
            commit_message=message,
            revision=destination.branch,
            parent_commit=head,
            create_pr=destination.pull_request,
        )
        return Published(info.pr_url or info.commit_url, info.oid, info.oid != start)

    # Of a pull request whose answer was lost nothing tells, so a second attempt could open a second one.
    return _attempt(commit, destination, attempts=1 if destination.pull_request else ATTEMPTS)


def _attempt(action: Callable[[], _T], destination: Destination, attempts: int = ATTEMPTS) -> _T:
    """Does something on the Hub, again where it failed by chance; every other failure gets a named error."""
    name = destination.repo_id
    failure: Exception
    for attempt in range(1, attempts + 1):
        try:
            return action()
        except LocalTokenNotFoundError as error:
            raise HubAccessError("there is no token: run `hf auth login`, or set HF_TOKEN") from error
        except OfflineModeIsEnabled as error:
            raise HubUnavailableError("HF_HUB_OFFLINE is set: unset it to publish") from error
        except HfHubHTTPError as error:
            failure, wait = error, _seconds_to_wait(error, name, attempt)
        except (httpx.TransportError, ConnectionError, TimeoutError) as error:  # the built-in ones are of Xet
            failure, wait = error, float(2 ** (attempt - 1))
        if attempt == attempts or wait > LONGEST_WAIT:
            break
        logger.warning("%s: %s; again in %.0f s", name, failure, wait)
        time.sleep(wait)
    raise HubUnavailableError(
        f"{name} could not be reached {attempt} time(s), the last time because of: {failure}. Nothing of it is "
        "visible that was not before: run the same command again"
    ) from failure


def _seconds_to_wait(error: HfHubHTTPError, name: str, attempt: int) -> float:
    """Before the next attempt, of a failure by chance; any other is raised under its name."""
    status = error.response.status_code
    if status in (401, 403, 404):
        raise HubAccessError(
            f"{name}: the token is not valid, or may not see or write this ({error}): check its role and the owner"
        ) from error
    if status in (409, 412):
        raise PublishConflictError(
            f"{name} was changed by someone else meanwhile ({error}): look at what changed, and run it again"
        ) from error
    if status != 429 and status < 500:
        raise HubRefusedError(f"{name} does not take this ({error})") from error
    asked = error.response.headers.get("Retry-After", "")
    return float(asked) if asked.isdigit() else float(2 ** (attempt - 1))
