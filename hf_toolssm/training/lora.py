"""LoRA on ToolMamba: which weights an adapter may touch, and the new token embeddings beside it.

Every projection of `ToolMambaMixer` is called as a module, so adapters on all four train and merge exactly. The
convolution is not (its weight is read directly), and an adapter on the tied embedding or head would be merged into
both: those are never targets. The rows of the tool tokens train in full, as PEFT's trainable tokens.
"""

from peft import LoraConfig, PeftModel, get_peft_model

from hf_toolssm.errors import UnsafeTrainingError
from hf_toolssm.models.modeling_tool_mamba import ADAPTER_TARGETS, ToolMambaForCausalLM


def add_lora(model: ToolMambaForCausalLM, rank: int) -> PeftModel:
    """Freezes a model and puts a LoRA of that rank on its projections; tool token embeddings stay trainable.

    Args:
        model: a ToolMamba with its tool tokens (see `models.tool_embeddings`).
        rank: of the adapters; their scale is 2.

    Raises:
        UnsafeTrainingError: the model is no ToolMamba or knows no tool tokens, the rank is not positive, or its head
            is not tied.
    """
    if not isinstance(model, ToolMambaForCausalLM):
        raise UnsafeTrainingError(
            f"a LoRA is put on the projections of a ToolMamba, and not of a {type(model).__name__}: train all weights"
        )
    if rank < 1:
        raise UnsafeTrainingError(f"a LoRA has a rank of at least 1, not {rank}")
    if not model.config.tool_token_ids:
        raise UnsafeTrainingError(
            "the model has no tool tokens, whose new embeddings must be trained: call add_tool_tokens_to_model first"
        )
    if not model.config.tie_word_embeddings:
        raise UnsafeTrainingError(
            "the head of this model is not tied to its embeddings, so its new rows would stay untrained: "
            "train all weights instead"
        )
    config = LoraConfig(
        r=rank,
        lora_alpha=2 * rank,
        target_modules=list(ADAPTER_TARGETS),
        trainable_token_indices={"embeddings": sorted(model.config.tool_token_ids.values())},
        task_type="CAUSAL_LM",
    )
    adapted = get_peft_model(model, config)
    # TRL reads the head's bias, which PEFT's wrapper around a tied head does not pass on.
    adapted.get_output_embeddings().bias = None
    return adapted
