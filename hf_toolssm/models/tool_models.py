"""A model and a tokenizer that know their tools: a small one from scratch, or a checkpoint."""

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from transformers import AutoTokenizer, PreTrainedModel, PreTrainedTokenizerBase
from transformers.utils.hub import cached_file, extract_commit_hash

from hf_toolssm.errors import TokenizerNeededError, UnsafeTrainingError
from hf_toolssm.models.architectures import make_model
from hf_toolssm.models.modeling_tool_mamba import ToolMambaForCausalLM
from hf_toolssm.models.tool_embeddings import add_tool_tokens_to_model
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
    """A Mamba checkpoint, transformers' or mamba_ssm's, to which tool tokens and their embeddings are added.

    Args:
        checkpoint: a folder or a Hub id.
        tokenizer: the checkpoint's; it gets the tool tokens.
        specs: of the tools.

    Raises:
        UnsafeTrainingError: the tokenizer has more tokens than the checkpoint.
    """
    trained_vocabulary = len(tokenizer)
    add_tool_tokens(tokenizer, [make_tool(spec) for spec in specs])
    # Full precision: in bfloat16 small updates of the weights would be rounded away.
    model = ToolMambaForCausalLM.from_pretrained(checkpoint, dtype=torch.float32)
    rows = model.get_input_embeddings().num_embeddings
    if trained_vocabulary > rows:
        raise UnsafeTrainingError(
            f"the tokenizer has {trained_vocabulary} tokens and the checkpoint only {rows}: name the one that it was "
            "trained with, by --tokenizer"
        )
    add_tool_tokens_to_model(model, tokenizer, specs, trained_vocabulary)
    model.generation_config.max_new_tokens = _MAX_NEW_TOKENS
    return model, tokenizer


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
