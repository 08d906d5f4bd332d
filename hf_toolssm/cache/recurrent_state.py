"""The recurrent state as a value: all that a Mamba remembers, of the same size at any length."""

from collections.abc import Mapping, Sequence
from typing import Any, Self

import torch
from torch import Tensor
from transformers import DynamicCache, PreTrainedConfig

from hf_toolssm.cache.cache_tensors import cache_tensors, join_rows, map_tensors
from hf_toolssm.errors import StateMismatchError


class RecurrentState(DynamicCache):
    """The state of every layer of a recurrent model, in the layout of transformers' own recurrent caches.

    Per layer it holds `recurrent_states[0]` (b, ...), and `conv_states[0]` where there is a convolution; None before
    the first token, which means zeros. A model that is given a state reads it and leaves the state after its own
    tokens in it.

    Args:
        config: the model's configuration.

    Attributes:
        continuous: whether the state holds real numbers; otherwise it holds token ids, to which no noise can be added.
    """

    continuous = True

    def __init__(self, config: PreTrainedConfig) -> None:
        super().__init__(config=config)

    @classmethod
    def row_shapes(cls, config: PreTrainedConfig) -> dict[str, tuple[int, ...]]:
        """The shape of one row of each tensor of a layer, by name; every architecture says its own."""
        raise NotImplementedError

    @classmethod
    def check(cls, state: object, config: PreTrainedConfig, rows: int) -> None:
        """Finds, before a model reads a state, what would not fit.

        Args:
            state: is to be one of this class.
            config: of the model.
            rows: how many rows of tokens there are.

        Raises:
            StateMismatchError: it is no such state, one of another model, or has another number of rows.
        """
        if not isinstance(state, cls):
            raise StateMismatchError(
                f"cache_params is a {type(state).__name__}: pass a {cls.__name__}, as the model's forward returns it"
            )
        if state.batch_size is None:
            return
        if state.batch_size != rows:
            raise StateMismatchError(
                f"cache_params has {state.batch_size} rows and there are {rows} rows of tokens: use its select(rows)"
            )
        shapes = {name: (rows, *shape) for name, shape in cls.row_shapes(config).items()}
        if len(state.layers) != len(cls(config).layers) or any(
            getattr(layer, name)[0] is None or getattr(layer, name)[0].shape != shape
            for layer in state.layers
            for name, shape in shapes.items()
        ):
            raise StateMismatchError("cache_params is the state of another model: use the model that it came from")

    @classmethod
    def begin(cls, model: Any, given: Self | None, rows: int, use_cache: bool | None) -> tuple[Self | None, bool]:
        """The state that a model's forward starts from, and whether it is asked for: by default outside training.

        It is the given one, checked, and otherwise a new one where it is asked for.
        """
        asked = model.config.use_cache and not model.training if use_cache is None else use_cache
        if given is not None:
            cls.check(given, model.config, rows)
        return cls(model.config) if given is None and asked else given, asked

    @property
    def batch_size(self) -> int | None:
        """The number of rows; None before the first token."""
        state = self.layers[0].recurrent_states[0]
        return None if state is None else state.shape[0]

    def put(self, layer: int, name: str, value: Tensor) -> None:
        """Replaces a layer's `recurrent_states` or `conv_states`.

        Nothing is copied in place, so gradients flow through a carried state.
        """
        slot = self.layers[layer]
        slot.device, slot.dtype = value.device, value.dtype
        getattr(slot, name)[0], getattr(slot, f"is_{name}_initialized")[0] = value, True
        slot.has_previous_state[0] = True

    def clone(self) -> Self:
        """An independent copy: what is fed to one does not change the other."""
        return map_tensors(self, Tensor.clone)

    def __deepcopy__(self, memo: dict[int, Any]) -> Self:
        return self.clone()  # torch itself copies no tensor that has a history

    def detach(self) -> Self:
        """The same values, cut off from the graph that computed them."""
        return map_tensors(self, Tensor.detach)

    def select(self, rows: Sequence[int] | Tensor) -> Self:
        """A new state of the given rows, in that order; a row may be taken several times, which forks it.

        Args:
            rows: row indices, or a boolean mask (b,).
        """
        index = rows if isinstance(rows, Tensor) else torch.tensor(rows, device="cpu")
        index = index.nonzero().squeeze(1) if index.dtype == torch.bool else index.to(torch.int64)
        return map_tensors(self, lambda t: t.index_select(0, index.to(t.device)))

    def noise(self, rows: int, generator: torch.Generator) -> Self:
        """That many rows of Gaussian noise, with the mean and the deviation of this state's rows, number by number.

        Of one row there is no deviation, and every row of the result is that row.

        Args:
            rows: how many.
            generator: on the CPU, so that every device draws the same.
        """

        def drawn(tensor: Tensor) -> Tensor:
            noise = torch.randn(rows, *tensor.shape[1:], dtype=tensor.dtype, generator=generator, device="cpu")
            return tensor.mean(0) + tensor.std(0, correction=0) * noise.to(tensor.device)

        return map_tensors(self, drawn)

    @staticmethod
    def concatenate(states: Sequence["RecurrentState"]) -> "RecurrentState":
        """One state whose rows are those of all the given states, in order."""
        return join_rows(states)

    def to_tensors(self) -> dict[str, Tensor]:
        """The state as named tensors, ready for safetensors; empty before the first token."""
        return {name: tensor.detach().contiguous() for name, tensor in cache_tensors(self).items()}

    @classmethod
    def from_tensors(cls, config: PreTrainedConfig, tensors: Mapping[str, Tensor]) -> Self:
        """The state that `to_tensors` gave.

        Raises:
            StateMismatchError: the tensors are of a model with another number of layers.
        """
        state = cls(config)
        layers = {int(path.partition(".")[0]) for path in tensors}
        if tensors and layers != set(range(len(state.layers))):
            raise StateMismatchError(
                f"the state has {len(layers)} layers and the model {len(state.layers)}: "
                "use the model that it came from"
            )
        for path, tensor in tensors.items():
            layer, name, _ = path.split(".")
            state.put(int(layer), name, tensor)
        return state


class MambaState(RecurrentState):
    """The state of a Mamba.

    Per layer it holds `conv_states[0]` (b, d, k), the last k = `conv_kernel` inputs of the convolution, and
    `recurrent_states[0]` (b, d, n), the state of the scan.
    """

    @classmethod
    def row_shapes(cls, config: PreTrainedConfig) -> dict[str, tuple[int, ...]]:
        channels = config.intermediate_size
        return {"conv_states": (channels, config.conv_kernel), "recurrent_states": (channels, config.state_size)}

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
        """Replaces a layer's state."""
        self.put(layer, "conv_states", conv_state)
        self.put(layer, "recurrent_states", recurrent_state)


class StateInForward:
    """What the layers are given of a state for the time of one forward: all of them read the state from before it.

    So a layer that runs twice, as it does when activations are recomputed in the backward, reads the same both times,
    and a forward that fails leaves the state as it was.

    Args:
        before: the state that the forward starts from.
    """

    def __init__(self, before: MambaState) -> None:
        self._before = [before.read(layer) for layer in range(len(before.layers))]
        self._after = list(self._before)

    def read(self, layer: int) -> tuple[Tensor | None, Tensor | None]:
        """The convolution's and the scan's state of a layer, before the forward."""
        return self._before[layer]

    def write(self, layer: int, conv_state: Tensor, recurrent_state: Tensor) -> None:
        """Keeps a layer's state after the forward."""
        self._after[layer] = conv_state, recurrent_state

    def hand_over(self, state: MambaState) -> None:
        """Replaces a state by the one after the forward."""
        for layer, (conv_state, recurrent_state) in enumerate(self._after):
            if conv_state is not None and recurrent_state is not None:
                state.write(layer, conv_state, recurrent_state)
