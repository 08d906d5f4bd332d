"""One decode step of a Mamba as a CUDA graph: the whole forward in one launch.

A step of one token spends its time in launching hundreds of small kernels. A graph records them once and launches them
together, always on the same memory: the ids and the state are copied into it, and the state stays in it.
"""

import torch
from torch import Tensor
from transformers import PreTrainedModel

from hf_toolssm.cache.recurrent_state import MambaState
from hf_toolssm.errors import StateMismatchError

_WARM_UP = 3
"""Steps before the capture: kernels are compiled, chosen and given their workspaces in the first ones."""


class GraphedStep:
    """The step of a fixed number of rows, captured on construction; it starts from zeros.

    Args:
        model: on a CUDA device, in evaluation mode. A captured step reads the weights where they lie: load others in
            place, or build a new step.
        batch: rows that step together.
    """

    @torch.no_grad()
    def __init__(self, model: PreTrainedModel, batch: int) -> None:
        self._batch = batch
        self._ids = torch.zeros(batch, 1, dtype=torch.int64, device=model.device)
        self._memory = step_memory(model, self._ids)
        self._graph = torch.cuda.CUDAGraph()
        with torch.cuda.device(model.device):
            stream = torch.cuda.Stream()
            stream.wait_stream(torch.cuda.current_stream())
            with torch.cuda.stream(stream):
                for _ in range(_WARM_UP):
                    step_in_place(model, self._ids, self._memory)
            torch.cuda.current_stream().wait_stream(stream)
            with torch.cuda.graph(self._graph):
                self._logits = step_in_place(model, self._ids, self._memory)
        self.load(MambaState(model.config))

    @torch.no_grad()
    def __call__(self, ids: Tensor) -> Tensor:
        """Feeds one token per row, (b,) int64; returns the logits (b, v) of the next, valid until the next call."""
        self._ids.copy_(ids[:, None])
        with torch.cuda.device(self._ids.device):
            self._graph.replay()
        return self._logits

    @torch.no_grad()
    def load(self, state: MambaState) -> None:
        """Goes on from a state, which is copied; one that has seen no token is zeros.

        Raises:
            StateMismatchError: the state has another number of rows.
        """
        if state.batch_size not in (None, self._batch):
            raise StateMismatchError(
                f"the state has {state.batch_size} rows and the graph was captured for {self._batch}: "
                "build a GraphedStep for that many"
            )
        for layer in range(len(self._memory.layers)):
            for own, given in zip(self._memory.tensors(layer), state.read(layer)):
                own.zero_() if given is None else own.copy_(given)

    def state(self) -> MambaState:
        """A copy of the state after the last step."""
        return self._memory.clone()


@torch.no_grad()
def step_memory(model: PreTrainedModel, ids: Tensor) -> MambaState:
    """A state whose tensors have the shapes and types that a step on ids (b, 1) leaves, in memory of their own."""
    state = MambaState(model.config)
    model(ids, cache_params=state, use_cache=True)
    return state.clone()


def step_in_place(model: PreTrainedModel, ids: Tensor, memory: MambaState) -> Tensor:
    """Feeds ids (b, 1) and writes the new state over the old one, tensor by tensor; returns the logits (b, v).

    A model replaces the tensors of the state that it is given. A graph needs them to stay where they are.
    """
    state = MambaState(model.config)
    for layer in range(len(memory.layers)):
        state.write(layer, *memory.tensors(layer))
    logits = model(ids, cache_params=state, use_cache=True, logits_to_keep=1).logits[:, -1]
    for layer in range(len(memory.layers)):
        for old, new in zip(memory.tensors(layer), state.tensors(layer)):
            old.copy_(new)
    return logits
