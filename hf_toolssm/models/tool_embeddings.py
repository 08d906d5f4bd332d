"""Makes any model know a tokenizer's tool tokens: new embedding rows, tied weights kept tied, the config filled in."""

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from transformers import GenerationConfig, PreTrainedModel, PreTrainedTokenizerBase

from hf_toolssm.protocol.special_tokens import tool_token_ids
from hf_toolssm.tools import make_tool

_DEVIATION = 0.5
"""New rows stand this many standard deviations around the mean of the old ones: near enough to be likely words, far
enough apart to be told from each other."""


def add_tool_tokens_to_model(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    tools: Sequence[Mapping[str, Any]],
    trained_vocabulary: int,
) -> None:
    """Resizes the embeddings to the tokenizer, fills the rows of new tokens, and names the tools in the config.

    The model's `generation_config` becomes a plain greedy one, by which a trajectory is exact or not; of the
    checkpoint's own, whose sampling and penalties were chosen for chat, only the lengths stay.

    Args:
        model: changed in place. Its embedding never shrinks: checkpoints often pad it beyond the tokenizer.
        tokenizer: has the tools' tokens (see `add_tool_tokens`).
        tools: tool specs, for example `[{"name": "pointer_memory", "max_pointers": 3}]`.
        trained_vocabulary: how many tokens the checkpoint was trained with, the tokenizer's length before the tool
            tokens came; rows from there on are new. 0 for a model from scratch, whose rows all stay as they are.

    Raises:
        MissingToolTokensError: the tokenizer lacks a tool token.
        UnknownToolError: a tool's name or option does not exist.
    """
    made = [make_tool(spec) for spec in tools]
    ids = tool_token_ids(tokenizer, made)
    fit_to_tokenizer(model, tokenizer, trained_vocabulary)
    config = model.config
    config.tools, config.tool_token_ids = [dict(spec) for spec in tools], ids
    config.unknown_token_id = tokenizer.unk_token_id if tokenizer.unk_token_id != tokenizer.eos_token_id else None


def fit_to_tokenizer(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, trained_vocabulary: int) -> None:
    """Resizes the embeddings, fills the rows of new tokens, and ends what is generated at the tokenizer's end token.

    This is all that a model needs for the tokens of our chat template (see `add_chat_tokens`). Arguments and
    `generation_config` are as in `add_tool_tokens_to_model`.
    """
    if len(tokenizer) > model.get_input_embeddings().num_embeddings:
        model.resize_token_embeddings(len(tokenizer), mean_resizing=False)
    if trained_vocabulary:
        tables = {id(m.weight): m.weight for m in (model.get_input_embeddings(), model.get_output_embeddings())}
        for weight in tables.values():  # one table when tied, two otherwise
            _fill_new_rows(weight.data, trained_vocabulary, len(tokenizer))
    special = {name: getattr(tokenizer, name) for name in ("eos_token_id", "pad_token_id", "bos_token_id")}
    model.config.update(special)
    before = model.generation_config
    lengths = {name: getattr(before, name) for name in ("max_length", "max_new_tokens")}
    # `do_sample` is said, because a pipeline samples where nothing is.
    model.generation_config = GenerationConfig(do_sample=False, **special, **lengths)


def _fill_new_rows(weight: torch.Tensor, first: int, stop: int) -> None:
    trained = weight[:first].float()
    generator = torch.Generator(device="cpu").manual_seed(0)
    noise = torch.randn(stop - first, weight.shape[1], dtype=torch.float32, generator=generator, device="cpu")
    weight[first:stop] = (trained.mean(0) + _DEVIATION * trained.std(0) * noise.to(weight.device)).to(weight.dtype)
