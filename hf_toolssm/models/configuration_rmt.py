"""The configuration of a recurrent memory transformer that works through tools."""

from typing import Any

from huggingface_hub.dataclasses import strict
from transformers import PreTrainedConfig

from hf_toolssm.models.tool_config import ToolFields


@strict
class RmtConfig(ToolFields, PreTrainedConfig):
    """A recurrent memory transformer (Bulatov et al., arXiv 2207.06881); `ToolFields` adds its tools.

    Args:
        hidden_size: width.
        num_hidden_layers: transformer layers.
        num_attention_heads: heads of each.
        intermediate_size: width between the two projections of a layer.
        segment_length: tokens that are read between two updates of the memory.
        num_memory_tokens: vectors that are all that passes from segment to segment.
        initializer_range: standard deviation of new embeddings.

    Raises:
        ValueError: the heads do not share the width evenly, or a segment or the memory is empty.
    """

    model_type = "tool_rmt"

    vocab_size: int = 50280
    hidden_size: int = 768
    num_hidden_layers: int = 12
    num_attention_heads: int = 12
    intermediate_size: int = 1536
    segment_length: int = 512
    num_memory_tokens: int = 10
    initializer_range: float = 0.02
    tie_word_embeddings: bool = True
    use_cache: bool = True

    def __post_init__(self, **kwargs: Any) -> None:
        super().__post_init__(**kwargs)
        if self.hidden_size % self.num_attention_heads:
            raise ValueError(f"{self.num_attention_heads} heads cannot share a width of {self.hidden_size}")
        if self.segment_length < 1 or self.num_memory_tokens < 1:
            raise ValueError("a segment has at least one token, and the memory at least one vector")

    @property
    def layer_types(self) -> list[str]:
        """Tells transformers' cache that there are no keys or values to keep."""
        return ["linear_attention"] * self.num_hidden_layers
