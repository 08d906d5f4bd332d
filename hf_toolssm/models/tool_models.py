"""A model and a tokenizer that know their tools: a small one from scratch, or a checkpoint."""

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from transformers import AutoTokenizer, PreTrainedModel, PreTrainedTokenizerBase
from transformers.utils.hub import cached_file, extract_commit_hash

from hf_toolssm.errors import TokenizerNeededError, UnsafeTrainingError
from hf_toolssm.models.architectures import load_model, make_model
from hf_toolssm.models.tool_embeddings import add_tool_tokens_to_model, fit_to_tokenizer
from hf_toolssm.protocol.chat_template import ChatTemplate
from hf_toolssm.protocol.special_tokens import add_tool_tokens
from hf_toolssm.protocol.task_tokenizer import build_task_tokenizer
from hf_toolssm.tools import make_tool

_MAX_NEW_TOKENS = 200_000
"""Long enough for thousands of digits; a longer problem says max_new_tokens itself."""


def from_scratch(
    architecture: str, cells: Sequence[str], specs: Sequence[Mapping[str, Any]], **shape: Any
) -> tuple[PreTrainedModel, PreTrainedTokenizerBase]:
    """A model with random weights and a tokenizer of a task's cells.

    Args:
        architecture: "tool_mamba" or a baseline.
        cells: of the task.
        specs: of the tools.
        shape: width, depth, state_size and mamba, see `make_model`.
    """
    tokenizer = build_task_tokenizer(cells, [make_tool(spec) for spec in specs])
    model = make_model(architecture, len(tokenizer), **shape)
    add_tool_tokens_to_model(model, tokenizer, specs, trained_vocabulary=0)
    model.generation_config.max_new_tokens = _MAX_NEW_TOKENS
    return model, tokenizer


def from_checkpoint(
    checkpoint: str, tokenizer: PreTrainedTokenizerBase, specs: Sequence[Mapping[str, Any]]
) -> tuple[PreTrainedModel, PreTrainedTokenizerBase]:
    """A checkpoint of any causal language model, to which tool tokens and their embeddings are added.

    A Mamba, transformers' or mamba_ssm's, becomes a ToolMamba.

    Args:
        checkpoint: a folder or a Hub id.
        tokenizer: the checkpoint's; it gets the tool tokens.
        specs: of the tools.

    Raises:
        UnsafeTrainingError: the tokenizer has more tokens than the checkpoint.
    """
    trained_vocabulary = len(tokenizer)
    add_tool_tokens(tokenizer, [make_tool(spec) for spec in specs])
    model = _loaded(checkpoint, trained_vocabulary)
    add_tool_tokens_to_model(model, tokenizer, specs, trained_vocabulary)
    model.generation_config.max_new_tokens = _MAX_NEW_TOKENS
    return model, tokenizer


def chat_from_scratch(architecture: str, tokenizer: PreTrainedTokenizerBase, **shape: Any) -> PreTrainedModel:
    """A model with random weights that is to chat.

    Args:
        architecture: "tool_mamba" or a baseline.
        tokenizer: has a chat template.
        shape: width, depth, state_size and mamba, see `make_model`.
    """
    model = make_model(architecture, len(tokenizer), **shape)
    return _ready_to_chat(model, tokenizer, trained_vocabulary=0)


def chat_from_checkpoint(
    checkpoint: str, tokenizer: PreTrainedTokenizerBase, trained_vocabulary: int
) -> PreTrainedModel:
    """A checkpoint of any causal language model that is to chat; a Mamba becomes a ToolMamba.

    Args:
        checkpoint: a folder or a Hub id.
        tokenizer: the checkpoint's, which has a chat template.
        trained_vocabulary: the tokenizer's length before it got tokens that the checkpoint does not know.

    Raises:
        UnsafeTrainingError: the tokenizer had more tokens than the checkpoint, or that calls its tools by tokens.
    """
    model = _loaded(checkpoint, trained_vocabulary)
    if getattr(model.config, "tool_token_ids", None):
        raise UnsafeTrainingError(
            f"{checkpoint} was trained to call its tools by tokens, not by a chat template: take another checkpoint, "
            "or train it on trajectories"
        )
    return _ready_to_chat(model, tokenizer, trained_vocabulary)


def _ready_to_chat(
    model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, trained_vocabulary: int
) -> PreTrainedModel:
    fit_to_tokenizer(model, tokenizer, trained_vocabulary)
    model.generation_config.eos_token_id = sorted(ChatTemplate(tokenizer).ends)
    return model


def _loaded(checkpoint: str, trained_vocabulary: int) -> PreTrainedModel:
    # Full precision: in bfloat16 small updates of the weights would be rounded away.
    model = load_model(checkpoint, dtype=torch.float32)
    rows = model.get_input_embeddings().num_embeddings
    if trained_vocabulary > rows:
        raise UnsafeTrainingError(
            f"the tokenizer has {trained_vocabulary} tokens and the checkpoint only {rows}: name the one that it was "
            "trained with, by --tokenizer"
        )
    return model


def checkpoint_tokenizer(checkpoint: str, tokenizer: str | None) -> PreTrainedTokenizerBase:
    """The tokenizer of a checkpoint.

    Args:
        checkpoint: a folder or a Hub id.
        tokenizer: where its tokenizer is, if not beside it.

    Raises:
        TokenizerNeededError: there is none.
    """
    name = tokenizer or checkpoint
    try:
        return AutoTokenizer.from_pretrained(name)
    except (OSError, ValueError) as error:
        raise TokenizerNeededError(
            f"no tokenizer can be loaded from {name}: name the one that the checkpoint was trained with, by "
            "--tokenizer FOLDER_OR_ID (of state-spaces' Mamba 130m to 2.8b it is EleutherAI/gpt-neox-20b)"
        ) from error


def checkpoint_revision(checkpoint: str) -> str | None:
    """The commit of a checkpoint on the Hub; None for a folder."""
    return extract_commit_hash(cached_file(checkpoint, "config.json"), None)
