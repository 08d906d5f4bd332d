"""The configuration of an LSTM or GRU language model that works through tools."""

from typing import Any

from huggingface_hub.dataclasses import strict
from transformers import PreTrainedConfig

from hf_toolssm.models.tool_config import ToolFields

CELLS = ("lstm", "gru")


@strict
class RnnConfig(ToolFields, PreTrainedConfig):
    """A stack of LSTM (Hochreiter & Schmidhuber 1997) or GRU (arXiv 1406.1078) layers; `ToolFields` adds its tools.

    Args:
        cell: "lstm" or "gru".
        hidden_size: width of the embeddings and of every layer.
        num_hidden_layers: layers, each fed with the outputs of the one below.
        initializer_range: standard deviation of new embeddings; recurrent layers start as torch's own.

    Raises:
        ValueError: the cell is neither of the two.
    """

    model_type = "tool_rnn"

    vocab_size: int = 50280
    hidden_size: int = 1536
    num_hidden_layers: int = 4
    cell: str = "lstm"
    initializer_range: float = 0.02
    tie_word_embeddings: bool = True
    use_cache: bool = True

    def __post_init__(self, **kwargs: Any) -> None:
        super().__post_init__(**kwargs)
        if self.cell not in CELLS:
            raise ValueError(f"no cell is named {self.cell!r}: choose one of {', '.join(CELLS)}")

    @property
    def layer_types(self) -> list[str]:
        """Tells transformers' cache that each layer holds a recurrent state and no keys or values."""
        return ["linear_attention"] * self.num_hidden_layers
