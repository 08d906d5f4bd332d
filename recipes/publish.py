"""Publishes a finished model: weights, tokenizer, the code that runs its tools anywhere, card, figures and picture.

    python recipes/publish.py --model outputs/addition --repo_id org/name

One commit, or none where nothing changed. The card is written anew from what was measured (`results.json`).
"""

from dataclasses import dataclass, field
from pathlib import Path

from transformers import HfArgumentParser

from hf_toolssm.files import escape_unprintable
from hf_toolssm.hub.model_card import read_json
from hf_toolssm.hub.publish import MAIN, Destination
from hf_toolssm.hub.publish_model import publish_model

MODEL_CARDS = Path(__file__).parents[1] / "model_cards"

CHAT, PRETRAINING = "chat", "pretraining"
"""The task, in `results.json`, of a model that was trained on messages, and of one that was on plain texts."""

_TEMPLATES = {CHAT: "chat.md", PRETRAINING: "pretrained.md"}


@dataclass
class PublishArguments:
    model: str = field(metadata={"help": "The output_dir of a finished recipes/sft.py, or pretraining."})
    repo_id: str = field(metadata={"help": "Where to, as org/name; made if need be."})
    private: bool = field(default=False, metadata={"help": "Make a new repository private."})
    branch: str = field(default=MAIN, metadata={"help": "Of the repository; made if need be."})
    pull_request: bool = field(default=False, metadata={"help": "Propose the commit instead of making it."})
    message: str | None = field(default=None, metadata={"help": "Of the commit."})


def main() -> None:
    escape_unprintable()
    (options,) = HfArgumentParser(PublishArguments).parse_args_into_dataclasses()
    destination = Destination(options.repo_id, "model", options.private, options.branch, options.pull_request)
    folder = Path(options.model)
    published = publish_model(folder, destination, card_template(folder), options.message)
    print(published)


def card_template(folder: Path) -> Path:
    """The template of a model's card, by what it was trained for."""
    results = folder / "results.json"
    task = read_json(results)["task"] if results.exists() else None
    return MODEL_CARDS / _TEMPLATES.get(task, "template.md")


if __name__ == "__main__":
    main()
