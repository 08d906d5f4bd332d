"""A built dataset on the Hub: a repository whose configurations are those of one folder."""

from collections.abc import Iterable
from pathlib import Path

from dataset_builders.card import whole_identity
from hf_toolssm.errors import DatasetMismatchError
from hf_toolssm.hub.publish import Destination, Published, check_destination, publish_files, published_files


def check_dataset_destination(destination: Destination, configurations: Iterable[str]) -> None:
    """Finds what would make publishing fail, before anything is built.

    Args:
        destination: where.
        configurations: the names of all that the folder will hold.

    Raises:
        InvalidHubNameError, HubAccessError, HubUnavailableError: see `check_destination`.
        DatasetMismatchError: the repository holds a configuration that the folder will not: its card, which
            `load_dataset` reads, would no longer name it.
    """
    check_destination(destination)
    held = {path.partition("/")[0] for path in published_files(destination) if path.endswith(".parquet")}
    others = sorted(held - set(configurations))
    if others:
        raise DatasetMismatchError(
            f"{destination.repo_id} also holds {', '.join(others)}: build that into the same folder, or choose "
            "another repository or branch"
        )


def publish_dataset(folder: Path, destination: Destination, message: str | None = None) -> Published:
    """Makes one commit of a folder that `build_folder` built, or none where nothing changed.

    Args:
        folder: with its card.
        destination: where.
        message: the commit's first line; by default what the folder holds, and of which generator version.

    Raises:
        InvalidHubNameError, HubAccessError, HubUnavailableError, HubRefusedError, PublishConflictError: see
            `publish_files`.
        DatasetMismatchError: see `check_dataset_destination`.
    """
    directories = sorted(path for path in folder.iterdir() if path.is_dir())
    identities = {path.name: identity for path in directories if (identity := whole_identity(path)) is not None}
    names = list(identities)
    check_dataset_destination(destination, names)
    identity = identities[names[0]]
    built = f"{identity['task']}, generator version {identity['version']}: {', '.join(names)}"
    paths = [path for path in sorted(folder.rglob("*")) if path.is_file() and path.name[0] != "."]
    files = {path.relative_to(folder).as_posix(): path for path in paths if path.suffix != ".incomplete"}
    return publish_files(
        files, destination, message or built, owned=lambda path: path.rpartition("/")[0] in identities
    )
