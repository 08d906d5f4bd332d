"""LoRA on any causal language model: which weights an adapter may touch, and the new token embeddings beside it.

Adapters stand on the linear layers that a forward calls (see `adapter_targets`). PEFT merges none into a depthwise
convolution, and one on the tied embedding or head would be merged into both: those are never targets. The rows of the
tool tokens, or of a chat's new markers, train in full, as PEFT's trainable tokens, also in a head that is not tied.
"""

import copy
from collections.abc import Sequence

from peft import LoraConfig, PeftModel, get_peft_model
from torch import nn
from transformers import PreTrainedModel

from hf_toolssm.errors import UnsafeTrainingError
from hf_toolssm.training.adapter_targets import adapter_targets


def add_lora(model: PreTrainedModel, rank: int, new_tokens: Sequence[int] | None = None) -> PeftModel:
    """Freezes a model and puts a LoRA of that rank on its linear layers; embeddings of new tokens stay trainable.

    Args:
        model: with its tool tokens (see `models.tool_embeddings`), or with those of a chat.
        rank: of the adapters; their scale is 2.
        new_tokens: whose embeddings are trained; by default those of the tool tokens. `()` trains none.

    Raises:
        UnsafeTrainingError: the rank is not positive, or see `complete_lora`.
    """
    if rank < 1:
        raise UnsafeTrainingError(f"a LoRA has a rank of at least 1, not {rank}")
    config = LoraConfig(r=rank, lora_alpha=2 * rank, task_type="CAUSAL_LM")
    return get_peft_model(model, complete_lora(model, config, new_tokens))


def complete_lora(model: PreTrainedModel, config: LoraConfig, new_tokens: Sequence[int] | None = None) -> LoraConfig:
    """The same configuration with what a model with new tokens needs beside it, as a copy.

    What the configuration leaves open is filled in: the linear layers as targets, and the rows of the new tokens,
    which otherwise would stay frozen as they were added.

    Raises:
        UnsafeTrainingError: the model has an adapter, or knows no tool tokens and no others are named; its head has a
            bias, or the configuration is none of a LoRA, or leaves rows of new tokens out; see `adapter_targets`.
    """
    if isinstance(model, str):
        raise UnsafeTrainingError(
            f"the tool tokens of {model!r} are known once it is loaded: pass "
            f"hf_toolssm.models.architectures.load_model({model!r})"
        )
    if isinstance(model, PeftModel):
        raise UnsafeTrainingError("the model has an adapter already: leave out peft_config to train that one")
    if not isinstance(config, LoraConfig):
        raise UnsafeTrainingError(
            f"a {type(config).__name__} would leave the rows of the tool tokens frozen: use a LoraConfig"
        )
    tool_tokens = (getattr(model.config, "tool_token_ids", None) or {}).values()
    ids = sorted(tool_tokens if new_tokens is None else new_tokens)
    if not ids and new_tokens is None:
        raise UnsafeTrainingError(
            "the model has no tool tokens, whose new embeddings must be trained: call add_tool_tokens_to_model first"
        )
    rows = config.trainable_token_indices
    tables = _tables(model) if ids or rows else []
    chosen = dict.fromkeys(tables, rows or ids)
    if isinstance(rows, dict):  # PEFT takes the end of a name too
        chosen = {next((t for t in tables if f".{t}".endswith(f".{name}")), name): rows[name] for name in rows}
    if config.modules_to_save or not all(set(ids) <= set(chosen.get(table, ())) for table in tables):
        raise UnsafeTrainingError(
            "the rows of new tokens must be trained, and only as trainable tokens are they merged rightly: leave "
            f"out modules_to_save, and trainable_token_indices or let it hold all of {ids} for {' and '.join(tables)}"
        )
    completed = copy.deepcopy(config)
    trained = {table: sorted(tokens) for table, tokens in chosen.items() if tokens}
    completed.trainable_token_indices = trained or None
    completed.task_type = config.task_type or "CAUSAL_LM"  # by which PEFT's auto classes load the adapter
    completed.target_modules = config.target_modules or adapter_targets(model)
    return completed


def _tables(model: PreTrainedModel) -> list[str]:
    """The names of the embedding and, where it is not tied, of the head."""
    embedding, head = model.get_input_embeddings(), model.get_output_embeddings()
    is_tied = head.weight is embedding.weight
    if is_tied != bool(model.config.get_text_config().tie_word_embeddings):
        raise UnsafeTrainingError(
            f"PEFT goes by the config of a {type(model).__name__}, which says tie_word_embeddings={not is_tied}, and "
            "the weights are otherwise: set it as they are"
        )
    if is_tied:
        return [_name(model, embedding)]
    if head.bias is not None:
        raise UnsafeTrainingError(
            f"the head of a {type(model).__name__} has a bias, which PEFT leaves out where its rows train: train "
            "all weights"
        )
    return [_name(model, embedding), _name(model, head)]


def _name(model: nn.Module, module: nn.Module) -> str:
    return next(name for name, each in model.named_modules() if each is module)
