"""The recurrent state as a value: all that a Mamba remembers, of the same size at any length."""

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor
from transformers import DynamicCache, PreTrainedConfig

from hf_toolssm.errors import StateMismatchError
from hf_toolssm.models.cache_tensors import cache_tensors, join_rows, map_tensors


class MambaState(DynamicCache):
    """The state of every layer, in the layout of transformers' own Mamba cache.

    Per layer it holds `conv_states[0]` (b, d, k), the last k = `conv_kernel` inputs of the convolution, and
    `recurrent_states[0]` (b, d, n), the state of the scan; both are None before the first token, which means zeros.
    A model that is given a state reads it and leaves the state after its own tokens in it.

    Args:
        config: the model's configuration.
    """

    def __init__(self, config: PreTrainedConfig) -> None:
        super().__init__(config=config)

    @property
    def batch_size(self) -> int | None:
        """The number of rows; None before the first token."""
        state = self.layers[0].recurrent_states[0]
        return None if state is None else state.shape[0]

    def read(self, layer: int) -> tuple[Tensor | None, Tensor | None]:
        """The convolution's and the scan's state of a layer."""
        return self.layers[layer].conv_states[0], self.layers[layer].recurrent_states[0]

    def tensors(self, layer: int) -> tuple[Tensor, Tensor]:
        """Like `read`, for a state that has seen a token."""
        conv_state, recurrent_state = self.read(layer)
        if conv_state is None or recurrent_state is None:
            raise ValueError("the state has seen no token yet: feed it one first")
        return conv_state, recurrent_state

    def write(self, layer: int, conv_state: Tensor, recurrent_state: Tensor) -> None:
        """Replaces a layer's state. Nothing is copied in place, so gradients flow through a carried state."""
        slot = self.layers[layer]
        slot.device, slot.dtype = conv_state.device, conv_state.dtype
        for states, initialized, value in (
            (slot.conv_states, slot.is_conv_states_initialized, conv_state),
            (slot.recurrent_states, slot.is_recurrent_states_initialized, recurrent_state),
        ):
            states[0], initialized[0] = value, True
        slot.has_previous_state[0] = True

    def clone(self) -> "MambaState":
        """An independent copy: what is fed to one does not change the other."""
        return map_tensors(self, Tensor.clone)

    def detach(self) -> "MambaState":
        """The same values, cut off from the graph that computed them."""
        return map_tensors(self, Tensor.detach)

    def select(self, rows: Sequence[int] | Tensor) -> "MambaState":
        """A new state of the given rows, in that order; a row may be taken several times, which forks it.

        Args:
            rows: row indices, or a boolean mask (b,).
        """
        index = torch.as_tensor(rows)
        index = index.nonzero().squeeze(1) if index.dtype == torch.bool else index.to(torch.int64)
        return map_tensors(self, lambda t: t.index_select(0, index.to(t.device)))

    @staticmethod
    def concatenate(states: Sequence["MambaState"]) -> "MambaState":
        """One state whose rows are those of all the given states, in order."""
        return join_rows(states)

    def to_tensors(self) -> dict[str, Tensor]:
        """The state as named tensors, ready for safetensors; empty before the first token."""
        return {name: tensor.detach().contiguous() for name, tensor in cache_tensors(self).items()}

    @classmethod
    def from_tensors(cls, config: PreTrainedConfig, tensors: Mapping[str, Tensor]) -> "MambaState":
        """The state that `to_tensors` gave.

        Raises:
            StateMismatchError: the tensors are of a model with another number of layers.
        """
        state = cls(config)
        if tensors:
            layers = len(tensors) // 2
            if layers != len(state.layers):
                raise StateMismatchError(
                    f"the state has {layers} layers and the model {len(state.layers)}: use the model that it came from"
                )
            for layer in range(len(state.layers)):
                state.write(layer, tensors[f"{layer}.conv_states.0"], tensors[f"{layer}.recurrent_states.0"])
        return state
