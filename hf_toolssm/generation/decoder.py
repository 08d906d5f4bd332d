"""One token per row and step: the model as it is, or a fused step for small models on a CPU.

A tiny model spends nearly all of a step in Python and in dispatch. The fused step computes all layers of all rows in
one compiled call, in float32, on a copy of the weights that one `generate` call makes for itself.
"""

from collections.abc import Sequence
from typing import Protocol

import numpy as np
import torch
from torch import Tensor, nn
from transformers.activations import SiLUActivation
from transformers.models.mamba.modeling_mamba import MambaRMSNorm

from hf_toolssm.models.fused_step import FusedStep
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
    """Running rows, each with its state."""

    def step(self, ids: Sequence[int]) -> Tensor:
        """Feeds one token per row; returns the logits (b, v) of the next."""

    def keep(self, rows: Sequence[int]) -> None:
        """Drops all other rows."""

    def state(self, row: int) -> MambaState:
        """The state of one row, (1, ...); it does not change when the others go on."""


def make_decoder(model, state: MambaState) -> Decoder:
    """The fused step where it applies, the model itself everywhere else."""
    return FusedDecoder(model, state) if _can_fuse(model) else ModelDecoder(model, state)


class ModelDecoder:
    """Steps through the model's own forward."""

    def __init__(self, model, state: MambaState) -> None:
        self._model = model
        self._state = state

    def step(self, ids: Sequence[int]) -> Tensor:
        tokens = torch.tensor(ids, device=self._model.device)[:, None]
        return self._model(tokens, cache_params=self._state, use_cache=True, logits_to_keep=1).logits[:, -1]

    def keep(self, rows: Sequence[int]) -> None:
        self._state = self._state.select(rows)

    def state(self, row: int) -> MambaState:
        return self._state.select([row])


class FusedDecoder:
    """Steps through one compiled call."""

    def __init__(self, model: ToolMambaForCausalLM, state: MambaState) -> None:
        config = model.config
        self._config = config
        self._fused = FusedStep(model)
        pairs = [state.tensors(layer) for layer in range(config.num_hidden_layers)]
        # (b, layers, k, d) and (b, layers, n, d): rows first, so that keeping rows is one selection.
        self._conv = np.stack([_array(conv.transpose(1, 2)) for conv, _ in pairs], axis=1)
        self._recurrent = np.stack([_array(recurrent.transpose(1, 2)) for _, recurrent in pairs], axis=1)

    def step(self, ids: Sequence[int]) -> Tensor:
        logits, best = np.empty((len(ids), self._config.vocab_size), np.float32), np.empty(len(ids), np.int64)
        self._fused(np.array(ids, np.int64)[:, None], self._conv, self._recurrent, logits, best)
        return torch.from_numpy(logits)

    def keep(self, rows: Sequence[int]) -> None:
        self._conv, self._recurrent = self._conv[list(rows)], self._recurrent[list(rows)]

    def state(self, row: int) -> MambaState:
        state = MambaState(self._config)
        for layer in range(self._config.num_hidden_layers):
            conv, recurrent = (
                torch.from_numpy(values[row, layer].copy()).t().contiguous()[None]
                for values in (self._conv, self._recurrent)
            )
            state.write(layer, conv, recurrent)
        return state


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
