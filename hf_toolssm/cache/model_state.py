"""What any causal language model remembers of several rows, as a value."""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from transformers import Cache

from hf_toolssm.cache.cache_tensors import cache_tensors, fit_slots, has_attention, join_rows, map_tensors


@dataclass
class ModelState:
    """The memory of a model after the last token of each row, and what the model says next.

    Rows need not have seen equally many tokens. A recurrent model's state has one size whatever it has seen; an
    attention model's rows stand in the last slots of its keys and values (see `cache_tensors.fit_slots`).

    Attributes:
        cache: the model's own cache, (b, ...) in every tensor.
        lengths: tokens that each row has seen.
        logits: (b, v) float32, of the token that follows each row.
    """

    cache: Cache
    lengths: list[int]
    logits: Tensor

    def clone(self) -> "ModelState":
        """An independent copy."""
        return ModelState(map_tensors(self.cache, Tensor.clone), list(self.lengths), self.logits.clone())

    def select(self, rows: Sequence[int]) -> "ModelState":
        """The given rows in that order, as a copy; a row that is taken several times is forked."""
        index = torch.tensor(rows, dtype=torch.int64, device="cpu")
        lengths = [self.lengths[row] for row in rows]
        cache = map_tensors(self.cache, lambda t: t.index_select(0, index.to(t.device)))
        if has_attention(cache) and lengths:
            cache = fit_slots(cache, max(lengths))
        return ModelState(cache, lengths, self.logits.index_select(0, index.to(self.logits.device)))

    @staticmethod
    def concatenate(states: Sequence["ModelState"]) -> "ModelState":
        """The rows of all states, in order, as a copy."""
        lengths = [length for state in states for length in state.lengths]
        caches = [state.cache for state in states]
        if has_attention(caches[0]):
            caches = [fit_slots(cache, max(lengths)) for cache in caches]
        return ModelState(join_rows(caches), lengths, torch.cat([state.logits for state in states]))

    def replace_rows(self, rows: Sequence[int], others: "ModelState") -> "ModelState":
        """A copy in which those rows are the others' rows, in order."""
        order = list(range(len(self.lengths)))
        for at, row in enumerate(rows):
            order[row] = len(order) + at
        return ModelState.concatenate([self, others]).select(order)

    def to_tensors(self) -> dict[str, Tensor]:
        """Every tensor by name, ready for safetensors."""
        tensors = {f"cache.{name}": tensor for name, tensor in cache_tensors(self.cache).items()}
        tensors |= {"logits": self.logits, "lengths": torch.tensor(self.lengths, device="cpu")}
        return {name: tensor.detach().cpu().contiguous() for name, tensor in tensors.items()}
