"""Padding that leaves a recurrent model exact: inside, every row's tokens come first.

What follows a row's tokens cannot reach them, and the state stops at the last.
"""

import torch
from torch import Tensor

from hf_toolssm.errors import PaddingError


def tokens_first(attention_mask: Tensor) -> tuple[Tensor, Tensor]:
    """Where to gather from so that every row's tokens come first, and where to gather from to undo it.

    Args:
        attention_mask: (b, l), ones for real tokens. Padding may stand left or right of a row's tokens.

    Returns:
        Two index tensors (b, l) for `gather_rows`.

    Raises:
        PaddingError: a row has padding between its tokens.
    """
    mask = attention_mask.to(torch.int64)
    padding = mask.argmax(1, keepdim=True)  # on the left
    length = mask.shape[1]
    steps = torch.arange(length, device=mask.device)
    first = (steps + padding) % length
    if not torch.equal(mask.gather(1, first), (steps < mask.sum(1, keepdim=True)).long()):
        raise PaddingError(
            "a row has padding between its tokens, which would change the recurrent state: "
            "pad only before the first or after the last token"
        )
    return first, (steps - padding).clamp(min=0)


def gather_rows(values: Tensor, position: Tensor) -> Tensor:
    """values (b, l, e) at position (b, l), row by row."""
    return values.gather(1, position[:, :, None].expand(-1, -1, values.shape[2]))
