"""Models from scratch: ToolMamba, and the baselines that it is measured against (PAPER section 4, "Models").

The baselines are transformers' own classes where there is one: GPT-NeoX (the architecture of Pythia), Mistral with a
sliding window, Mamba-2, and FalconH1, a hybrid whose layers run attention and Mamba-2 side by side. At one width and
depth they have between 0.7 and 2.1 times the parameters of a ToolMamba.
"""

from collections.abc import Mapping
from typing import Any

from transformers import (
    MODEL_FOR_CAUSAL_LM_MAPPING,
    AutoConfig,
    AutoModelForCausalLM,
    FalconH1Config,
    FalconH1ForCausalLM,
    GPTNeoXConfig,
    GPTNeoXForCausalLM,
    Mamba2Config,
    Mamba2ForCausalLM,
    MistralConfig,
    MistralForCausalLM,
    PreTrainedConfig,
    PreTrainedModel,
)

from hf_toolssm.errors import UnknownArchitectureError, UnsupportedArchitectureError
from hf_toolssm.generation.model_runner import cache_argument
from hf_toolssm.models.configuration_rmt import RmtConfig
from hf_toolssm.models.configuration_rnn import CELLS, RnnConfig
from hf_toolssm.models.configuration_tool_mamba import ToolMambaConfig
from hf_toolssm.models.modeling_rmt import RmtForCausalLM
from hf_toolssm.models.modeling_rnn import RnnForCausalLM
from hf_toolssm.models.modeling_tool_mamba import ToolMambaForCausalLM
from hf_toolssm.models.native_checkpoint import is_native

TOOL_MAMBA = "tool_mamba"
BASELINES = (*CELLS, "gpt_neox", "mistral", "mamba2", "hybrid", "rmt")
SLIDING_WINDOW = 64
"""Tokens that the Mistral sees in one layer. The paper's has 512, at twelve times our width."""

SEGMENT, MEMORY = 32, 8
"""Tokens between two updates of the recurrent memory transformer's memory, and its vectors."""

_HEADS = 4


def make_model(
    architecture: str, vocabulary_size: int, width: int, depth: int, state_size: int, mamba: Mapping[str, Any]
) -> PreTrainedModel:
    """A model with random weights.

    Args:
        architecture: "tool_mamba" or one of `BASELINES`.
        vocabulary_size: tokens.
        width: hidden size, a multiple of 16.
        depth: layers.
        state_size: numbers per channel in the state of the Mambas and the hybrid; others have none.
        mamba: more fields of `ToolMambaConfig` that a `Mamba2Config` has as well; for these two.

    Raises:
        UnknownArchitectureError: there is no such architecture, or it cannot have that width.
    """
    if architecture not in (TOOL_MAMBA, *BASELINES):
        raise UnknownArchitectureError(
            f"no architecture is named {architecture!r}: choose one of {', '.join((TOOL_MAMBA, *BASELINES))}"
        )
    if width % 16:
        raise UnknownArchitectureError(f"the width is a multiple of 16, which all heads can share, and not {width}")
    shape: dict[str, Any] = {"vocab_size": vocabulary_size, "hidden_size": width, "num_hidden_layers": depth}
    if architecture == TOOL_MAMBA:
        return ToolMambaForCausalLM(ToolMambaConfig(**{**shape, "state_size": state_size, **mamba}))
    if architecture in CELLS:
        return RnnForCausalLM(RnnConfig(**{**shape, "cell": architecture}))
    shape |= {"tie_word_embeddings": True, "bos_token_id": None}
    attention = {"num_attention_heads": _HEADS, "intermediate_size": 2 * width}
    if architecture == "rmt":
        memory = {"segment_length": SEGMENT, "num_memory_tokens": MEMORY}
        return RmtForCausalLM(RmtConfig(**{**shape, **attention, **memory}))
    grouped = {**attention, "num_key_value_heads": _HEADS, "head_dim": width // _HEADS}
    if architecture == "gpt_neox":
        return GPTNeoXForCausalLM(GPTNeoXConfig(**shape, **attention))
    if architecture == "mistral":
        return MistralForCausalLM(MistralConfig(**shape, **grouped, sliding_window=SLIDING_WINDOW))
    if architecture == "mamba2":
        heads = {"num_heads": 2 * width // 16, "head_dim": 16, "n_groups": 1}
        return Mamba2ForCausalLM(Mamba2Config(**shape, **heads, state_size=state_size, chunk_size=32, **mamba))
    heads = {"mamba_n_heads": width // 16, "mamba_d_head": 16, "mamba_n_groups": 1, "mamba_d_ssm": width}
    return FalconH1ForCausalLM(
        FalconH1Config(**shape, **grouped, **heads, mamba_d_state=state_size, mamba_chunk_size=32)
    )


def check_checkpoint(checkpoint: str) -> None:
    """Finds by its config alone that a checkpoint is no model that could work through tools.

    Raises:
        UnsupportedArchitectureError: it is none.
    """
    if not _is_mamba(checkpoint):
        try:
            config = AutoConfig.from_pretrained(checkpoint)
            model_class = MODEL_FOR_CAUSAL_LM_MAPPING[type(config)]
        except (KeyError, ValueError) as error:
            raise UnsupportedArchitectureError(
                f"transformers loads no causal language model from {checkpoint}: {error}"
            ) from error
        cache_argument(model_class)


def load_model(checkpoint: str, **options: Any) -> PreTrainedModel:
    """The model of a folder or a Hub id; a Mamba of transformers or of mamba_ssm becomes a ToolMamba.

    Args:
        options: of `from_pretrained`, for example its `dtype`.
    """
    model_class = ToolMambaForCausalLM if _is_mamba(checkpoint) else AutoModelForCausalLM
    return model_class.from_pretrained(checkpoint, **options)


def _is_mamba(checkpoint: str) -> bool:
    config, _ = PreTrainedConfig.get_config_dict(checkpoint)
    return is_native(config) or config.get("model_type") in ("mamba", ToolMambaConfig.model_type)
