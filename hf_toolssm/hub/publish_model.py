"""A finished model on the Hub: what runs it, what was measured, and nothing that only its training needed."""

from fnmatch import fnmatch
from pathlib import Path
from tempfile import TemporaryDirectory

from safetensors import SafetensorError, safe_open
from transformers import AutoConfig, PreTrainedConfig, TrainingArguments
from transformers.trainer_utils import HubStrategy

from hf_toolssm.errors import InvalidHubNameError, UnfinishedModelError, UnsafeTrainingError
from hf_toolssm.evaluation.report import REPORT_FILES, weights_digest
from hf_toolssm.files import write_atomically
from hf_toolssm.hub.model_card import CERTIFICATE, model_card, read_json
from hf_toolssm.hub.publish import MAIN, Destination, Published, check_destination, publish_files
from hf_toolssm.models.architectures import load_model

_WEIGHTS = ("model*.safetensors", "model.safetensors.index.json")
_CODE = "hf_toolssm_*.py"
_TOKENIZER = ("tokenizer*.json", "special_tokens_map.json", "added_tokens.json", "chat_template.jinja")
_VOCABULARY = ("vocab.json", "vocab.txt", "merges.txt", "tokenizer.model", "spiece.model")
_PUBLISHED = ("generation_config.json", *_WEIGHTS, *_TOKENIZER, *_VOCABULARY, *REPORT_FILES, "certificate.*", "*.tm")
"""What a folder gives, a Turing machine's table included; its configuration, code and card are written anew."""

_NEEDED = ("config.json", "generation_config.json", "model*.safetensors", "tokenizer_config.json", "results.json")


def training_destination(config: TrainingArguments) -> Destination | None:
    """Where a training's finished model is to go, checked before any work; the trainer itself then pushes nothing.

    Args:
        config: its `push_to_hub` is switched off, because the trainer would push checkpoints that nobody measured.

    Raises:
        UnsafeTrainingError: a push was asked for in another way than once, of the finished and measured model.
        InvalidHubNameError, HubAccessError, HubUnavailableError: see `hub.publish.check_destination`.
    """
    if not config.push_to_hub:
        return None
    if config.hub_model_id is None:
        raise InvalidHubNameError("--push_to_hub needs a name: add --hub_model_id org/name")
    if config.hub_token is not None:
        raise UnsafeTrainingError("hub_token would stand in logs and saved arguments: set HF_TOKEN, and leave it out")
    if config.hub_strategy != HubStrategy.EVERY_SAVE:  # its default
        raise UnsafeTrainingError("the model is pushed once, finished and measured: leave out hub_strategy")
    destination = Destination(config.hub_model_id, "model", bool(config.hub_private_repo), config.hub_revision or MAIN)
    check_destination(destination)
    config.push_to_hub = False
    return destination


def check_finished(folder: Path) -> None:
    """Finds what a folder lacks, before anything is published.

    Raises:
        UnfinishedModelError: something is missing, or a file is not whole.
    """
    index = folder / "model.safetensors.index.json"
    pieces = sorted(set(read_json(index)["weight_map"].values())) if index.exists() else []
    results = folder / "results.json"
    pictures = ["length_generalization.png"] if results.exists() and read_json(results).get("by_length") else []
    for pattern in (*_NEEDED, *pieces, *pictures):
        if not any(folder.glob(pattern)):
            raise UnfinishedModelError(
                f"{folder} has no {pattern}: give the output_dir of a training that recipes/sft.py has finished, with "
                "--resume_from_checkpoint true if it was interrupted"
            )
    for path in folder.glob("model*.safetensors"):
        try:
            with safe_open(path, "pt"):
                pass
        except SafetensorError as error:
            raise UnfinishedModelError(
                f"{path} is no whole file of weights ({error}): save the model again"
            ) from error
    certificate = folder / CERTIFICATE
    if certificate.exists() and read_json(certificate).get("weights") != weights_digest(load_model(str(folder))):
        raise UnfinishedModelError(
            f"{certificate} speaks of other weights: certify the model again with recipes/certify.py, or delete it"
        )


def publish_model(folder: Path, destination: Destination, template: Path, message: str | None = None) -> Published:
    """Makes one commit of a folder that `recipes/sft.py` finished, or none where nothing changed.

    Args:
        folder: stays as it is; checkpoints, datasets, logs and whatever else lies there are left out.
        destination: where.
        template: of the card, see `model_card`.
        message: the commit's first line; by default what is published.

    Raises:
        UnfinishedModelError: see `check_finished`, or the card lacks a fact.
        InvalidHubNameError, HubAccessError, HubUnavailableError, HubRefusedError, PublishConflictError: see
            `publish_files`.
    """
    check_finished(folder)
    with TemporaryDirectory() as name:
        written = Path(name)
        config: PreTrainedConfig = AutoConfig.from_pretrained(folder)
        config.save_pretrained(written)
        write_atomically(written / "README.md", model_card(folder, template, destination.repo_id))
        paths = [path for path in folder.iterdir() if any(fnmatch(path.name, pattern) for pattern in _PUBLISHED)]
        files = {path.name: path for path in (*sorted(paths), *sorted(written.iterdir()))}
        built = f"{config.model_type} with its tokenizer, its card and what was measured"
        return publish_files(files, destination, message or built, owned=_is_of_one_version)


def _is_of_one_version(path: str) -> bool:
    """Parts of the weights and of our code, of which a newer version may have fewer."""
    return "/" not in path and any(fnmatch(path, pattern) for pattern in (*_WEIGHTS, _CODE))
