"""`recipes/sft.py` on rows of `messages` and `tools`: a model that chats and calls tools, by a chat template.

    accelerate launch --config_file recipes/accelerate/cpu.yaml recipes/sft.py --dataset org/conversations \\
        --model state-spaces/mamba-130m-hf --chat_template toolssm --output_dir outputs/chat

The rows are as TRL's documentation has them (see `hf_toolssm.training.message_rows`). Every turn of the assistant is
learned, with the token that ends it. What `output_dir` holds then is what `Chat.start(model, tokenizer, tools=[...])`
needs. Nothing is measured but the loss.
"""

from pathlib import Path

from accelerate import PartialState
from datasets import Dataset, get_dataset_config_names, load_dataset_builder
from publish import CHAT
from sft_arguments import FOR_TRAJECTORIES, RecipeArguments, refuse
from sft_training import base_tokenizer, train, write_card_and_publish
from transformers import PreTrainedModel, PreTrainedTokenizerBase, set_seed

from hf_toolssm.errors import ChatTemplateError, UnsafeTrainingError
from hf_toolssm.evaluation.report import hardware, write_json, write_report
from hf_toolssm.hub.publish import Destination
from hf_toolssm.models import tool_models
from hf_toolssm.protocol.chat_tokens import add_chat_tokens
from hf_toolssm.protocol.text_tokenizer import build_text_tokenizer
from hf_toolssm.training.message_rows import holds_messages, render_messages, texts_of
from hf_toolssm.training.sft_config import ToolSFTConfig

TEMPLATE = "toolssm"
READ_FOR_TOKENIZER = 10_000
"""Rows that a tokenizer is learned from."""


def conversations(dataset: str | None) -> tuple[Dataset, str | None] | None:
    """The training rows of a dataset of messages, with its commit if it is on the Hub; None for any other dataset.

    Args:
        dataset: a folder or a Hub id. One of trajectories has a configuration for every problem set, of its name.

    Raises:
        UnsafeTrainingError: the rows are neither messages nor trajectories.
    """
    if dataset is None:
        return None
    is_folder = Path(dataset).is_dir()
    source = str(Path(dataset).resolve()) if is_folder else dataset
    if len(get_dataset_config_names(source)) > 1:
        return None
    builder = load_dataset_builder(source)
    builder.download_and_prepare()
    rows = builder.as_dataset("train")
    if holds_messages(rows):
        return rows, None if is_folder else builder.hash
    if builder.config.name == "default":
        raise UnsafeTrainingError(
            f"{dataset} has the columns {', '.join(rows.column_names)}: conversations stand in a column messages (and "
            "tools), or in prompt and completion"
        )
    return None


def train_on(
    rows: Dataset,
    dataset_revision: str | None,
    recipe: RecipeArguments,
    config: ToolSFTConfig,
    start: float,
    destination: Destination | None,
) -> None:
    """Trains on conversations, and saves model, tokenizer, card and what is known of the training."""
    refuse(recipe, FOR_TRAJECTORIES, "is of trajectories, and --dataset holds messages")
    output = Path(config.output_dir)
    tokenizer, trained_vocabulary = chat_tokenizer(recipe, rows)
    set_seed(config.seed)
    try:
        model = model_for(recipe, tokenizer, trained_vocabulary)
        with PartialState().main_process_first():
            rendered = render_messages(rows, tokenizer, recipe.num_proc)
    except ChatTemplateError as error:
        error.add_note("--chat_template toolssm gives the tokenizer a template of ours that can.")
        raise
    new_tokens = range(trained_vocabulary, len(tokenizer))
    trained = train(model, tokenizer, rendered, recipe, config, start, new_tokens)
    if trained is None:
        return
    about = {
        "task": CHAT,
        "dataset": recipe.dataset,
        "dataset_revision": dataset_revision,
        "num_rows": len(rows),
        "example_problem": next(iter(texts_of(rows.select(range(1))))),
        "chat_template": recipe.chat_template,
        "vocabulary_size": len(tokenizer),
        **trained[1],
    }
    write_json(output / "training.json", {**about, "hardware": hardware()})
    write_report(output, [], [], about)
    write_card_and_publish(output, destination)
    print(f"model, tokenizer with its chat template, results.json and README.md are in {output}")


def model_for(recipe: RecipeArguments, tokenizer: PreTrainedTokenizerBase, trained_vocabulary: int) -> PreTrainedModel:
    """A small model, or the checkpoint, that ends its turns by the tokenizer's template."""
    if recipe.model is not None:
        return tool_models.chat_from_checkpoint(recipe.model, tokenizer, trained_vocabulary)
    return tool_models.chat_from_scratch(
        recipe.architecture,
        tokenizer,
        width=recipe.hidden_size,
        depth=recipe.num_hidden_layers,
        state_size=recipe.state_size,
        mamba=recipe.mamba,
    )


def chat_tokenizer(recipe: RecipeArguments, rows: Dataset) -> tuple[PreTrainedTokenizerBase, int]:
    """The tokenizer, and how many tokens it had before our template's came."""
    if recipe.chat_template not in (None, TEMPLATE):
        raise UnsafeTrainingError(
            f"--chat_template is {TEMPLATE}, or is left out where the tokenizer has its own, and not "
            f"{recipe.chat_template}"
        )
    tokenizer = base_tokenizer(recipe)
    if tokenizer is None and recipe.tokenizer is not None:
        tokenizer = tool_models.checkpoint_tokenizer(recipe.tokenizer, None)
    learned = tokenizer is None
    if tokenizer is None:
        some = rows.select(range(min(len(rows), READ_FOR_TOKENIZER)))
        tokenizer = build_text_tokenizer(texts_of(some), recipe.vocabulary_size)
    length = len(tokenizer)
    if learned or recipe.chat_template == TEMPLATE:
        add_chat_tokens(tokenizer)
    return tokenizer, length
