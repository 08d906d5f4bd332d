"""One token per row and step: the model as it is, or a fused step for small models on a CPU.

A tiny model spends nearly all of a step in Python and in dispatch. The fused step computes all layers of all rows in
one compiled call, in float32, on a copy of the weights that the decoder makes for itself.
"""

from collections.abc import Sequence
from typing import Protocol

import numpy as np
import torch
from torch import Tensor, nn
from transformers.activations import SiLUActivation
from transformers.models.mamba.modeling_mamba import MambaRMSNorm

from hf_toolssm.generation.model_runner import ModelRunner
from hf_toolssm.models.fused_step import STEP, LayerLayout
from hf_toolssm.models.model_state import ModelState
from hf_toolssm.models.modeling_tool_mamba import (
    ToolMambaBlock,
    ToolMambaForCausalLM,
    ToolMambaMixer,
    ToolMambaModel,
)
from hf_toolssm.models.state import MambaState

FUSED_PARAMETERS = 2_000_000
"""The largest model for the fused step: its weights are read once per row, so they must stay in the CPU's cache."""


_KNOWN = {
    *(ToolMambaForCausalLM, ToolMambaModel, ToolMambaBlock, ToolMambaMixer),
    *(MambaRMSNorm, nn.Embedding, nn.Linear, nn.Conv1d, nn.ModuleList, SiLUActivation),
}
"""The modules that the fused step computes."""


class Decoder(Protocol):
    """Rows that each take one token a step. A shallow copy shares the weights; `load` gives it rows of its own.

    Attributes:
        piece_from: tokens of one row from which a forward over all of them is faster than a step for each.
    """

    piece_from: int

    def load(self, state: ModelState) -> None:
        """Takes these rows in place of those it has."""

    def state(self) -> ModelState:
        """A copy of what the rows remember."""

    def step(self, ids: Sequence[int]) -> None:
        """Feeds one token per row."""

    def greedy(self) -> list[int]:
        """Each row's most likely next token."""

    def logits(self) -> Tensor:
        """(b, v), of each row's next token."""


def make_decoder(runner: ModelRunner) -> Decoder:
    """The fused step where it applies, the model itself everywhere else."""
    return FusedDecoder(runner.model) if _can_fuse(runner.model) else ModelDecoder(runner)


class ModelDecoder:
    """Steps through the model's own forward."""

    piece_from = 8

    def __init__(self, runner: ModelRunner) -> None:
        self._runner = runner

    def load(self, state: ModelState) -> None:
        self._state = state.clone()  # a model may write into its cache

    def state(self) -> ModelState:
        return self._state.clone()

    def step(self, ids: Sequence[int]) -> None:
        self._runner.step(self._state, ids)

    def greedy(self) -> list[int]:
        return self._state.logits.argmax(-1).tolist()

    def logits(self) -> Tensor:
        return self._state.logits


class FusedDecoder:
    """Steps through one compiled call."""

    piece_from = 64

    def __init__(self, model: ToolMambaForCausalLM) -> None:
        self._config = model.config
        self._layout = LayerLayout(model.config)
        self._layers = np.stack([self._layout.pack(block) for block in model.backbone.layers])
        self._embeddings = _array(model.backbone.embeddings.weight)
        self._head = _array(model.lm_head.weight).ravel()
        self._norm = _array(model.backbone.norm_f.weight)
        self._parameters = model.num_parameters()

    def load(self, state: ModelState) -> None:
        pairs = [state.cache.tensors(layer) for layer in range(self._config.num_hidden_layers)]
        # (b, layers, k, d) and (b, layers, n, d)
        self._conv = np.stack([_array(conv.transpose(1, 2)) for conv, _ in pairs], axis=1)
        self._recurrent = np.stack([_array(recurrent.transpose(1, 2)) for _, recurrent in pairs], axis=1)
        self._lengths = np.array(state.lengths, np.int64)
        self._logits = state.logits.numpy().copy()

    def state(self) -> ModelState:
        cache = MambaState(self._config)
        for layer in range(self._config.num_hidden_layers):
            conv, recurrent = (
                torch.from_numpy(np.ascontiguousarray(values[:, layer].transpose(0, 2, 1)))
                for values in (self._conv, self._recurrent)
            )
            cache.write(layer, conv, recurrent)
        return ModelState(cache, self._lengths.tolist(), torch.from_numpy(self._logits.copy()))

    def step(self, ids: Sequence[int]) -> None:
        work = self._parameters * len(ids) if len(ids) > 1 else 0  # the rows are what can be shared out
        STEP(
            *(work, np.array(ids, np.int64), self._embeddings, self._layers, self._layout.shape),
            *(self._layout.epsilon, self._norm, self._head, self._conv, self._recurrent, self._logits),
        )
        self._lengths += 1

    def greedy(self) -> list[int]:
        return self._logits.argmax(-1).tolist()

    def logits(self) -> Tensor:
        return torch.from_numpy(self._logits)


def _array(tensor: Tensor) -> np.ndarray:
    return np.ascontiguousarray(tensor.detach().float().numpy())


def _can_fuse(model) -> bool:
    """Whether the compiled step computes just what this model computes: float32 on a CPU, no adapter, no hook."""
    if not isinstance(model, ToolMambaForCausalLM) or model.device.type != "cpu" or model.dtype != torch.float32:
        return False
    if model.num_parameters() > FUSED_PARAMETERS or model.config.hidden_act != "silu" or model.training:
        return False
    # Anything else among the modules (an adapter, a quantized layer) computes something that the step does not know.
    plain = all(type(m) in _KNOWN for m in model.modules())
    return plain and not any(m._forward_hooks or m._forward_pre_hooks for m in model.modules())
