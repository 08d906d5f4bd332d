"""The tensors inside a transformers cache, whatever its layers are: named, replaced, joined row by row.

A layer holds attention keys and values (b, heads, slots, head dim), the state of a recurrence, or both. All tensors
have the rows of the batch first.
"""

import copy
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor
from transformers import Cache
from transformers.cache_utils import (
    DummyLayer,
    DynamicLayer,
    DynamicSlidingWindowLayer,
    LinearAttentionAndFullAttentionLayer,
    LinearAttentionAndSlidingWindowAttentionLayer,
    LinearAttentionLayer,
)

from hf_toolssm.errors import StateMismatchError, UnsupportedArchitectureError

_ATTENTION = ("keys", "values")
_RECURRENT = ("conv_states", "recurrent_states")
_KNOWN = {
    *(DummyLayer, DynamicLayer, DynamicSlidingWindowLayer, LinearAttentionLayer),
    *(LinearAttentionAndFullAttentionLayer, LinearAttentionAndSlidingWindowAttentionLayer),
}
"""The layers whose whole memory is in the tensors named above."""


def check_cache(cache: Any) -> Cache:
    """The cache itself, if every layer is of a kind whose tensors are all known.

    Raises:
        UnsupportedArchitectureError: it is no transformers cache, or a layer may hold more than is known.
    """
    if not isinstance(cache, Cache):
        raise UnsupportedArchitectureError(
            f"the model's memory is a {type(cache).__name__} and not a transformers Cache, so it cannot be copied row "
            "by row: use a model of transformers whose forward returns past_key_values or cache_params"
        )
    unknown = next((type(layer).__name__ for layer in cache.layers if type(layer) not in _KNOWN), None)
    if unknown is not None:
        raise UnsupportedArchitectureError(
            f"the cache has a {unknown}, which may hold more than keys, values and recurrent states: "
            "use the model's default dynamic cache"
        )
    held = (name for name, value in vars(cache).items() if isinstance(value, Tensor | list | tuple | dict))
    beside = next((name for name in held if name != "layers"), None)
    if beside is not None:
        raise UnsupportedArchitectureError(
            f"the {type(cache).__name__} keeps {beside} beside its layers, which cannot be copied row by row: use a "
            "model whose whole memory is in the layers of its cache"
        )
    return cache


def cache_tensors(cache: Cache) -> dict[str, Tensor]:
    """Every tensor of a cache by name, as in `1.keys` or `0.conv_states.0`; empty before the first token."""
    found: dict[str, Tensor] = {}
    for index, layer in enumerate(cache.layers):
        for name in _ATTENTION:
            value = getattr(layer, name, None)
            if value is not None and value.numel():
                found[f"{index}.{name}"] = value
        for name in _RECURRENT:
            for slot, value in getattr(layer, name, {}).items():
                if value is not None:
                    found[f"{index}.{name}.{slot}"] = value
    return found


def replace_tensors(cache: Cache, tensors: Mapping[str, Tensor]) -> Cache:
    """A cache of the same kind with other tensors; the given one stays as it is.

    Raises:
        StateMismatchError: the names are not those of the cache's own tensors.
    """
    if set(tensors) != set(cache_tensors(cache)):
        raise StateMismatchError("the state has other layers than the model: use the model that it came from")
    replaced = copy.copy(cache)
    replaced.layers = [copy.copy(layer) for layer in cache.layers]
    for layer in replaced.layers:
        for name, value in vars(layer).items():
            if isinstance(value, dict):
                setattr(layer, name, dict(value))
    for path, tensor in tensors.items():
        index, name, *slot = path.split(".")
        layer = replaced.layers[int(index)]
        if slot:
            getattr(layer, name)[int(slot[0])] = tensor
        else:
            setattr(layer, name, tensor)
    return replaced


def map_tensors(cache: Cache, change: Callable[[Tensor], Tensor]) -> Cache:
    """A cache of the same kind whose tensors are changed one by one."""
    return replace_tensors(cache, {name: change(tensor) for name, tensor in cache_tensors(cache).items()})


def join_rows(caches: Sequence[Cache]) -> Cache:
    """One cache with the rows of all, in order; attention layers must have as many slots (see `fit_slots`)."""
    named = [cache_tensors(cache) for cache in caches]
    return replace_tensors(caches[0], {name: torch.cat([tensors[name] for tensors in named]) for name in named[0]})


def has_attention(cache: Cache) -> bool:
    """Whether any layer keeps keys and values, so that positions and masks matter."""
    return any(name.rpartition(".")[2] in _ATTENTION for name in cache_tensors(cache))


def fit_slots(cache: Cache, length: int) -> Cache:
    """The same memory for rows of which the longest has seen `length` tokens.

    Every row's tokens stand in its last slots, so that rows of unequal length lie in one tensor: the slots before a
    short row's tokens are padding, which the attention mask must hide. Slots are dropped or added on the left only.
    """
    fitted = replace_tensors(cache, cache_tensors(cache))
    for layer in fitted.layers:
        keys = getattr(layer, "keys", None)
        if keys is None or not keys.numel():
            continue
        window = getattr(layer, "sliding_window", None)
        slots = length if window is None else min(length, window - 1)
        for name in _ATTENTION:
            value = getattr(layer, name)
            missing = slots - value.shape[-2]
            if missing > 0:
                value = torch.nn.functional.pad(value, (0, 0, missing, 0))
            setattr(layer, name, value[..., value.shape[-2] - slots :, :].contiguous())
        if window is not None:
            layer.cumulative_length = length
    return fitted
