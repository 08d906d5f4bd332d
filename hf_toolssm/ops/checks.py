"""Checks of what comes from outside, before compiled code that checks nothing: sizes, types, devices, values."""

from typing import Any

import numpy as np
import torch
from torch import Tensor

from hf_toolssm.errors import InputMismatchError, UnsupportedArchitectureError


def check_tensors(place: str, lengths: Tensor | None = None, **tensors: tuple[Tensor | None, str]) -> dict[str, int]:
    """Checks that tensors fit each other.

    Args:
        place: what takes them, for the message.
        lengths: how many tokens of each row are real, (b,); checked against the sizes named b and l.
        tensors: by name, each with the names of its sizes, such as "b l d"; None is a tensor that is left out.

    Returns:
        What each name of a size stands for.

    Raises:
        InputMismatchError: a tensor has another size than the ones before it say, is no floating-point number, or is
            on another device.
    """
    sizes: dict[str, int] = {}
    device = None
    for name, (tensor, names) in tensors.items():
        if tensor is None:
            continue
        expected = names.split()
        if not isinstance(tensor, Tensor) or not tensor.dtype.is_floating_point:
            kind = tensor.dtype if isinstance(tensor, Tensor) else type(tensor).__name__
            raise InputMismatchError(f"{place} takes {name} as a floating-point tensor, and not as {kind}")
        fits = tensor.dim() == len(expected)
        if not fits or any(sizes.setdefault(e, size) != size for e, size in zip(expected, tensor.shape)):
            wanted = ", ".join(f"{e} = {sizes[e]}" if e in sizes else e for e in expected)
            raise InputMismatchError(f"{place} takes {name} of shape ({wanted}), and not {tuple(tensor.shape)}")
        if device is None:
            device = tensor.device
        elif tensor.device != device:
            raise InputMismatchError(f"{place}: {name} is on {tensor.device} and what stands before it on {device}")
    empty = [name for name in ("d", "n", "k") if sizes.get(name) == 0]
    if empty:
        raise InputMismatchError(f"{place} takes no tensors whose size {empty[0]} is 0")
    if lengths is not None:
        _check_lengths(place, lengths, sizes["b"], sizes["l"])
    return sizes


def _check_lengths(place: str, lengths: Tensor, batch: int, length: int) -> None:
    if not isinstance(lengths, Tensor) or lengths.dtype not in _INTEGERS or lengths.shape != (batch,):
        raise InputMismatchError(
            f"{place} takes lengths as integers of shape ({batch},), and not {_described(lengths)}"
        )
    # Only where compiled code of ours takes them, because a GPU would have to be waited for.
    if lengths.device.type == "cpu" and batch and not 0 <= int(lengths.min()) <= int(lengths.max()) <= length:
        raise InputMismatchError(f"{place}: lengths are numbers from 0 to {length}, and not {lengths.tolist()}")


_INTEGERS = {torch.int64, torch.int32, torch.int16, torch.int8, torch.uint8}


def check_scan(
    x: Tensor,
    dt: Tensor,
    A: Tensor,
    B: Tensor,
    C: Tensor,
    D: Tensor,
    gate: Tensor,
    initial_state: Tensor | None,
    lengths: Tensor | None,
) -> None:
    """Checks the arguments of `selective_scan`.

    Raises:
        InputMismatchError: see `check_tensors`.
    """
    check_tensors(
        "selective_scan",
        lengths,
        x=(x, "b l d"),
        dt=(dt, "b l d"),
        A=(A, "d n"),
        B=(B, "b l n"),
        C=(C, "b l n"),
        D=(D, "d"),
        gate=(gate, "b l d"),
        initial_state=(initial_state, "b d n"),
    )


def check_arrays(place: str, **arrays: tuple[np.ndarray, tuple[int, ...], Any]) -> None:
    """Checks arrays, each given with its shape and its dtype, before a compiled loop writes into them.

    Raises:
        InputMismatchError: one has another shape or dtype, or is not contiguous.
    """
    for name, (array, shape, dtype) in arrays.items():
        if array.shape != shape or array.dtype != dtype or not array.flags.c_contiguous:
            raise InputMismatchError(
                f"{place} takes {name} as contiguous {np.dtype(dtype)} of shape {shape}, and not as {array.dtype} of "
                f"shape {array.shape}"
            )


def check_model_inputs(
    embeddings: Tensor, input_ids: Tensor | None, inputs_embeds: Tensor | None, attention_mask: Tensor | None
) -> tuple[int, Tensor | None]:
    """Checks what a recurrent model is called with, and returns what it needs of it.

    Args:
        embeddings: (v, e), the model's.
        input_ids: (b, l) integers from 0 to v - 1; or inputs_embeds (b, l, e).
        attention_mask: (b, l), 1 for the real tokens and 0 for padding.

    Returns:
        How many rows there are, and the mask in int64; None if there is no padding.

    Raises:
        InputMismatchError: one is of another shape or type, or holds another value.
        UnsupportedArchitectureError: the model is traced or exported.
    """
    if torch.jit.is_tracing() or torch.compiler.is_exporting():
        raise UnsupportedArchitectureError(
            "the kernels of this model are compiled by numba, which cannot be traced or exported: export a Mamba from "
            "the same folder by transformers' own class, MambaForCausalLM.from_pretrained"
        )
    if (input_ids is None) == (inputs_embeds is None):
        raise InputMismatchError("give exactly one of input_ids and inputs_embeds")
    vocabulary, width = embeddings.shape
    given = input_ids if input_ids is not None else inputs_embeds
    assert given is not None
    if input_ids is not None:
        check_ids(input_ids)
        on_cpu = input_ids.device.type == "cpu" and input_ids.numel() > 0  # a GPU would have to be waited for
        if on_cpu and not 0 <= int(input_ids.min()) <= int(input_ids.max()) < vocabulary:
            raise InputMismatchError(
                f"input_ids holds the id {int(input_ids.max())} or {int(input_ids.min())}, and the model knows 0 to "
                f"{vocabulary - 1}: use its own tokenizer"
            )
    elif not isinstance(given, Tensor) or not given.is_floating_point() or given.shape != (*given.shape[:2], width):
        raise InputMismatchError(
            f"inputs_embeds is {_described(given)}: give floating-point numbers of shape (rows, tokens, {width})"
        )
    if attention_mask is None:
        return len(given), None
    check_mask(given.shape[:2], attention_mask)
    return len(given), None if bool(attention_mask.all()) else attention_mask.to(torch.int64)


def check_ids(input_ids: Tensor) -> None:
    """Checks that token ids are integers of shape (b, l).

    Raises:
        InputMismatchError: they are not.
    """
    if not isinstance(input_ids, Tensor) or input_ids.dim() != 2 or input_ids.dtype not in (torch.int64, torch.int32):
        raise InputMismatchError(f"input_ids is {_described(input_ids)}: give integers of shape (rows, tokens)")


def _described(given: Any) -> str:
    return f"{given.dtype} of shape {tuple(given.shape)}" if isinstance(given, Tensor) else f"a {type(given).__name__}"


def check_mask(shape: torch.Size, attention_mask: Tensor) -> None:
    """Checks an attention mask for tokens of shape (b, l).

    Raises:
        InputMismatchError: it has another shape, or holds something else than 0 and 1.
    """
    if not isinstance(attention_mask, Tensor) or attention_mask.is_complex():
        raise InputMismatchError(f"the attention mask is {_described(attention_mask)}: give a tensor of 0 and 1")
    if attention_mask.shape != shape:
        behind = (
            attention_mask.dim() == 2 and attention_mask.shape[0] == shape[0] and attention_mask.shape[1] > shape[1]
        )
        hint = f": behind a state, give the part for the new tokens, attention_mask[:, -{shape[1]}:]" if behind else ""
        raise InputMismatchError(
            f"the attention mask is {tuple(attention_mask.shape)} and the tokens are {tuple(shape)}{hint}"
        )
    # A GPU would have to be waited for.
    if attention_mask.device.type == "cpu" and not bool(((attention_mask == 0) | (attention_mask == 1)).all()):
        raise InputMismatchError("the attention mask holds other values than 1, a token, and 0, padding")
