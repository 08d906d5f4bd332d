"""One token per row and step: the model as it is, or for a ToolMamba a compiled step on a CPU and a graph on a GPU.

A tiny model spends nearly all of a step in Python and in dispatch, so all layers of all rows run in one compiled call.
A large one waits for its weights to come from memory, so they are streamed once, at full bandwidth. Both compute in
float32: for a float32 model what the model computes, for a bfloat16 model the same without rounding between layers.
"""

from collections.abc import Sequence
from typing import Literal, Protocol

import numpy as np
import torch
from torch import Tensor, nn
from transformers.activations import SiLUActivation
from transformers.models.mamba.modeling_mamba import MambaRMSNorm

from hf_toolssm.errors import UnsupportedGenerationError
from hf_toolssm.generation.model_runner import ModelRunner
from hf_toolssm.models.cpu_kernels import float32_array
from hf_toolssm.models.fused_step import FusedStep
from hf_toolssm.models.graphed_step import GraphedStep
from hf_toolssm.models.model_state import ModelState
from hf_toolssm.models.modeling_tool_mamba import (
    ToolMambaBlock,
    ToolMambaForCausalLM,
    ToolMambaMixer,
    ToolMambaModel,
)
from hf_toolssm.models.state import MambaState
from hf_toolssm.models.streamed_step import StreamedStep

StepWeights = Literal["int8"] | None
"""How the matrices of a decode step are stored; None is as the model stores them."""

FUSED_PARAMETERS = 2_000_000
"""The largest model whose whole step is one call: weights are read once per row, so they must stay in the cache."""


_KNOWN = {
    *(ToolMambaForCausalLM, ToolMambaModel, ToolMambaBlock, ToolMambaMixer),
    *(MambaRMSNorm, nn.Embedding, nn.Linear, nn.Conv1d, nn.ModuleList, SiLUActivation),
}
"""The modules that the compiled steps compute."""


class Decoder(Protocol):
    """Rows that each take one token a step. A shallow copy shares the weights; `load` gives it rows of its own.

    Attributes:
        piece_from: tokens of one row from which a forward over all of them is faster than a step for each.
        exact: whether a step gives what the model's forward gives, so that a forward may check drafts.
    """

    piece_from: int
    exact: bool

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


def make_decoder(runner: ModelRunner, step_weights: StepWeights = None) -> Decoder:
    """The compiled step where it applies, the model itself everywhere else.

    Args:
        runner: of the model.
        step_weights: "int8" steps with weights rounded to eight bits; None with the model's own.

    Raises:
        UnsupportedGenerationError: the weights cannot be rounded, because no compiled step applies.
    """
    model = runner.model
    if _is_plain(model) and model.device.type == "cpu":
        return CompiledDecoder(model, step_weights)
    if step_weights is not None:
        raise UnsupportedGenerationError(
            f"step_weights={step_weights!r} needs a ToolMamba on a CPU in evaluation mode, in float32 or bfloat16, "
            "without adapters or hooks: leave it out"
        )
    if _is_plain(model) and model.device.type == "cuda":
        return GraphedDecoder(model)
    return ModelDecoder(runner)


class ModelDecoder:
    """Steps through the model's own forward."""

    piece_from = 8
    exact = True

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


class CompiledDecoder:
    """Steps a ToolMamba through compiled calls, with the states in arrays of their own."""

    def __init__(self, model: ToolMambaForCausalLM, step_weights: StepWeights) -> None:
        self._config = model.config
        small = model.num_parameters() <= FUSED_PARAMETERS and step_weights is None
        self._step: FusedStep | StreamedStep = FusedStep(model) if small else StreamedStep(model, step_weights)
        self.piece_from = 64 if small else 4
        self.exact = model.dtype == torch.float32 and step_weights is None

    def load(self, state: ModelState) -> None:
        pairs = [state.cache.tensors(layer) for layer in range(self._config.num_hidden_layers)]
        # (b, layers, k, d) and (b, layers, n, d)
        self._conv = np.stack([float32_array(conv.transpose(1, 2)) for conv, _ in pairs], axis=1)
        self._recurrent = np.stack([float32_array(recurrent.transpose(1, 2)) for _, recurrent in pairs], axis=1)
        self._lengths = np.array(state.lengths, np.int64)
        self._logits = state.logits.numpy().copy()
        self._best = self._logits.argmax(1)

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
        self._logits, self._best = self._step(np.array(ids, np.int64), self._conv, self._recurrent)
        self._lengths += 1

    def greedy(self) -> list[int]:
        return self._best.tolist()

    def logits(self) -> Tensor:
        return torch.from_numpy(self._logits)


class GraphedDecoder:
    """Steps a ToolMamba on a GPU by a CUDA graph, one for each number of rows that it has had."""

    piece_from = 8
    exact = True

    def __init__(self, model: ToolMambaForCausalLM) -> None:
        self._model = model
        self._graphs: dict[int, GraphedStep] = {}

    def __copy__(self) -> "GraphedDecoder":
        return GraphedDecoder(self._model)  # a graph's memory belongs to one decoder

    def load(self, state: ModelState) -> None:
        rows = len(state.lengths)
        if rows not in self._graphs:
            self._graphs[rows] = GraphedStep(self._model, rows)
        self._graph = self._graphs[rows]
        self._graph.load(state.cache)
        self._lengths, self._logits = list(state.lengths), state.logits.clone()

    def state(self) -> ModelState:
        return ModelState(self._graph.state(), list(self._lengths), self._logits.clone())

    def step(self, ids: Sequence[int]) -> None:
        self._logits = self._graph(torch.tensor(ids, device=self._model.device)).float()
        self._lengths = [length + 1 for length in self._lengths]

    def greedy(self) -> list[int]:
        return self._logits.argmax(-1).tolist()

    def logits(self) -> Tensor:
        return self._logits


def _is_plain(model) -> bool:
    """Whether the compiled steps know all that this model computes: no adapter, no hook, no other layer."""
    if not isinstance(model, ToolMambaForCausalLM):
        return False
    if any(weight.dtype not in (torch.float32, torch.bfloat16) for weight in model.parameters()):
        return False
    if model.config.hidden_act != "silu" or model.training:
        return False
    # Anything else among the modules (an adapter, a quantized layer) computes something that the steps do not know.
    plain = all(type(m) in _KNOWN for m in model.modules())
    return plain and not any(m._forward_hooks or m._forward_pre_hooks for m in model.modules())
