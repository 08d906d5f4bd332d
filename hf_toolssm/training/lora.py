"""LoRA on ToolMamba: which weights an adapter may touch, and the new token embeddings beside it.

Every projection of `ToolMambaMixer` is called as a module, so adapters on all four train and merge exactly.
PEFT merges none into a depthwise convolution, and one on the tied embedding or head would be merged into both: those
are never targets. The rows of the tool tokens, or of a chat's new markers, train in full, as PEFT's trainable tokens.
"""

import copy
from collections.abc import Sequence

from peft import LoraConfig, PeftModel, get_peft_model

from hf_toolssm.errors import UnsafeTrainingError
from hf_toolssm.models.modeling_tool_mamba import ADAPTER_TARGETS, ToolMambaForCausalLM


def add_lora(model: ToolMambaForCausalLM, rank: int, new_tokens: Sequence[int] | None = None) -> PeftModel:
    """Freezes a model and puts a LoRA of that rank on its projections; embeddings of new tokens stay trainable.

    Args:
        model: a ToolMamba with its tool tokens (see `models.tool_embeddings`), or with those of a chat.
        rank: of the adapters; their scale is 2.
        new_tokens: whose embeddings are trained; by default those of the tool tokens. `()` trains none.

    Raises:
        UnsafeTrainingError: the rank is not positive, or see `complete_lora`.
    """
    if rank < 1:
        raise UnsafeTrainingError(f"a LoRA has a rank of at least 1, not {rank}")
    config = LoraConfig(r=rank, lora_alpha=2 * rank, task_type="CAUSAL_LM")
    return get_peft_model(model, complete_lora(model, config, new_tokens))


def complete_lora(
    model: ToolMambaForCausalLM, config: LoraConfig, new_tokens: Sequence[int] | None = None
) -> LoraConfig:
    """The same configuration with what a ToolMamba needs beside it, as a copy.

    What the configuration leaves open is filled in: the projections as targets, and the rows of the new tokens, which
    otherwise would stay frozen as they were added.

    Raises:
        UnsafeTrainingError: the model is no ToolMamba, or knows no tool tokens and no others are named; its head is
            not tied, or the configuration is none of a LoRA, or leaves rows of new tokens out.
    """
    if isinstance(model, str):
        raise UnsafeTrainingError(
            f"the tool tokens of {model!r} are known once it is loaded: pass "
            f"ToolMambaForCausalLM.from_pretrained({model!r})"
        )
    if isinstance(model, PeftModel):
        raise UnsafeTrainingError("the model has an adapter already: leave out peft_config to train that one")
    if not isinstance(model, ToolMambaForCausalLM):
        raise UnsafeTrainingError(
            f"a LoRA is put on the projections of a ToolMamba, and not of a {type(model).__name__}: train all weights"
        )
    if not isinstance(config, LoraConfig):
        raise UnsafeTrainingError(
            f"a {type(config).__name__} would leave the rows of the tool tokens frozen: use a LoraConfig"
        )
    ids = sorted((model.config.tool_token_ids or {}).values()) if new_tokens is None else sorted(new_tokens)
    if not ids and new_tokens is None:
        raise UnsafeTrainingError(
            "the model has no tool tokens, whose new embeddings must be trained: call add_tool_tokens_to_model first"
        )
    if ids and not model.config.tie_word_embeddings:
        raise UnsafeTrainingError(
            "the head of this model is not tied to its embeddings, so its new rows would stay untrained: "
            "train all weights instead"
        )
    rows = config.trainable_token_indices
    chosen = rows.get("embeddings", []) if isinstance(rows, dict) else rows
    if config.modules_to_save or (rows is not None and not set(ids) <= set(chosen)):
        raise UnsafeTrainingError(
            "the rows of new tokens must be trained, and only as trainable tokens are they merged rightly: leave "
            f"out modules_to_save, and trainable_token_indices or let it hold all of {ids}"
        )
    completed = copy.deepcopy(config)
    trained = sorted({*ids, *(chosen or [])})
    completed.trainable_token_indices = {"embeddings": trained} if trained else None
    completed.task_type = config.task_type or "CAUSAL_LM"  # by which PEFT's auto classes load the adapter
    completed.target_modules = config.target_modules or set(ADAPTER_TARGETS)
    return completed
