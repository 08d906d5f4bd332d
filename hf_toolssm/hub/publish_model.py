"""A finished model on the Hub: what runs it, what was measured, and nothing that only its training needed."""

from pathlib import Path

from transformers import AutoConfig, PreTrainedConfig

from hf_toolssm.errors import UnfinishedModelError
from hf_toolssm.hub.model_card import write_model_card
from hf_toolssm.hub.publish import Destination, Published, publish_files

_PUBLISHED = {".json", ".safetensors", ".py", ".png", ".md", ".jinja", ".model"}
_VOCABULARIES = {"merges.txt", "vocab.txt"}
_OF_ONE_VERSION = (".py", ".safetensors", ".safetensors.index.json")
"""What a newer version of a model may have fewer of: code, and pieces of weights."""


def check_finished(folder: Path) -> None:
    """Finds what a folder lacks, before anything is published.

    Raises:
        UnfinishedModelError: it holds no weights, no tokenizer or no results.
    """
    if not folder.is_dir():
        raise UnfinishedModelError(f"{folder} is no folder: give the output_dir of a finished training")
    for what, pattern in (
        ("configuration", "config.json"),
        ("weights", "model*.safetensors"),
        ("tokenizer", "tokenizer_config.json"),
        ("measured results", "results.json"),
    ):
        if not any(folder.glob(pattern)):
            raise UnfinishedModelError(
                f"{folder} has no {what} ({pattern}): finish recipes/sft.py there, with --resume_from_checkpoint true "
                "if it was interrupted"
            )


def publish_model(folder: Path, destination: Destination, template: Path, message: str | None = None) -> Published:
    """Makes one commit of a folder that `recipes/sft.py` finished, or none where nothing changed.

    The card and the code that runs the tools without this package are written anew first, into the folder too.

    Args:
        folder: checkpoints, datasets, logs and optimizer states in it are left out.
        destination: where.
        template: of the card, see `write_model_card`.
        message: the commit's first line; by default the model and its task.

    Raises:
        UnfinishedModelError: see `check_finished`.
        InvalidHubNameError, HubAccessError, HubUnavailableError, HubRefusedError, PublishConflictError: see
            `publish_files`.
    """
    check_finished(folder)
    config: PreTrainedConfig = AutoConfig.from_pretrained(folder)
    config.save_pretrained(folder)
    write_model_card(folder, template, destination.repo_id)
    files = {path.name: path for path in sorted(folder.iterdir()) if _is_published(path)}
    built = f"{config.model_type} that runs its tools, with its tokenizer and measured results"
    return publish_files(files, destination, message or built, owned=_is_of_one_version)


def _is_published(path: Path) -> bool:
    if not path.is_file() or path.name.startswith("."):
        return False
    return path.suffix in _PUBLISHED or path.name in _VOCABULARIES


def _is_of_one_version(path: str) -> bool:
    return "/" not in path and path.endswith(_OF_ONE_VERSION)
