"""The hidden states that a training passes on: what a batch starts from, and what the next one goes on from.

The trainer owns them. A model is never handed the one copy of a state, because a loss may run it twice and a backward
may run it again: every forward over the batch's own tokens starts from the same state.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from random import Random
from typing import Any

import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from hf_toolssm.cache.cache_tensors import map_tensors
from hf_toolssm.cache.recurrent_state import RecurrentState
from hf_toolssm.errors import UnsafeTrainingError


@contextmanager
def reading(backbone: nn.Module) -> Iterator[list[Tensor]]:
    """A list of the final hidden states (b, l, e) of every forward that the backbone runs meanwhile."""
    read: list[Tensor] = []
    handle = backbone.register_forward_hook(lambda backbone, args, output: read.append(output[0]))
    try:
        yield read
    finally:
        handle.remove()


class Start:
    """A batch's initial state, for the time of its forwards and its backward.

    Args:
        ids: the batch's tokens (b, l).
        state: what they start from; it stays as it is.
    """

    def __init__(self, ids: Tensor, state: RecurrentState) -> None:
        self._ids = ids
        self._state = state
        self._end: RecurrentState | None = None
        self._is_trained = False

    @contextmanager
    def of(self, backbone: nn.Module) -> Iterator[None]:
        """Lets every forward of the backbone over the batch's tokens start from the state, however often it runs."""
        handle = backbone.register_forward_pre_hook(self._enter, with_kwargs=True)
        try:
            yield
        finally:
            handle.remove()

    def _enter(self, backbone: nn.Module, args: tuple, kwargs: dict[str, Any]) -> tuple[tuple, dict] | None:
        ids = args[0] if args else kwargs.get("input_ids")
        # A loss may run the model on other tokens as well: those start from zeros, as they do without this trainer.
        if ids is None or ids.shape != self._ids.shape or not torch.equal(ids, self._ids.to(ids.device)):
            return None
        end = map_tensors(self._state, lambda tensor: tensor)
        # A loss may also run other weights over the batch, or run it without a gradient (a reference to stay near,
        # metrics): what goes on is the model that is trained.
        if self._end is None or (torch.is_grad_enabled() and not self._is_trained):
            self._end, self._is_trained = end, torch.is_grad_enabled()
        return args, {**kwargs, "cache_params": end}

    @property
    def end(self) -> RecurrentState:
        """The state after the batch's last tokens, without a gradient.

        Raises:
            UnsafeTrainingError: no forward ran over the batch's tokens.
        """
        if self._end is None:
            raise UnsafeTrainingError(
                "the loss ran no forward over the batch's input_ids, so there is no state to pass on: pass the inputs "
                "as they are, or set state_passing_share: 0 and no state_noise_share or bptt_length"
            )
        return self._end.detach()


class CarriedStates:
    """The last states of the batches before, row by row, and the choice of what a batch starts from.

    Args:
        state_class: of the model.
        config: the model's.
        seed: decides, with the count of batches, which batches go on.
        process: of several; each draws noise of its own.

    Attributes:
        batches: how many have been trained.
        states: of the last of them, and of larger ones before; None before the first.
    """

    def __init__(self, state_class: type[RecurrentState], config: Any, seed: int, process: int) -> None:
        self._state_class = state_class
        self._config = config
        self._seed = seed
        self._process = process
        self.batches = 0
        self.states: RecurrentState | None = None

    def draw(self, rows: int, passing_share: float, noise_share: float) -> RecurrentState:
        """What a batch starts from: the states of earlier batches, noise like them, or zeros."""
        chance = Random(f"{self._seed}/{self.batches}").random()
        if self.states is not None and self.states.batch_size:
            if chance < passing_share:
                return self.states.select([row % self.states.batch_size for row in range(rows)])
            if chance < passing_share + noise_share:
                # Every process draws its own, the same again when a run is resumed.
                draw = Random(f"noise/{self._seed}/{self.batches}/{self._process}")
                return self.states.noise(rows, torch.Generator().manual_seed(draw.getrandbits(63)))
        return self._state_class(self._config)

    def keep(self, state: RecurrentState) -> None:
        """Takes a batch's final states; of a smaller batch than there was, in place of as many rows."""
        size = state.batch_size or 0
        kept = (self.states.batch_size or 0) if self.states is not None else 0
        if self.states is not None and kept > size:
            state = state.concatenate([state, self.states.select(range(size, kept))])
        self.states = state
        self.batches += 1

    def save(self, checkpoint: Path) -> None:
        """Writes them into a checkpoint's folder; nothing before the first batch."""
        if self.states is not None:
            checkpoint.mkdir(parents=True, exist_ok=True)
            save_file(self.states.to_tensors(), self.file(checkpoint), {"batches": str(self.batches)})

    def load(self, checkpoint: Path, device: str) -> None:
        """Reads what `save` wrote."""
        with safe_open(self.file(checkpoint), "pt") as opened:
            self.batches = int(opened.metadata()["batches"])
        self.states = self._state_class.from_tensors(self._config, load_file(self.file(checkpoint), device=device))

    def file(self, checkpoint: Path) -> Path:
        """Where a process keeps its states in a checkpoint's folder."""
        return checkpoint / f"carried_state_{self._process}.safetensors"
