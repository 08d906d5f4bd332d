"""A batch cut along its length, for truncated back-propagation."""

from collections.abc import Iterable
from typing import Any

import torch.nn.functional as F
from torch import Tensor

from hf_toolssm.protocol.render import IGNORED


def labels_of_next_tokens(inputs: dict[str, Any]) -> Tensor:
    """The labels (b, l - 1) of the tokens after those of a batch; (b, l) of a piece, which knows the one behind it."""
    shifted = inputs.get("shift_labels")
    return inputs["labels"][:, 1:] if shifted is None else shifted


def cut(inputs: dict[str, Any], length: int, longest: int, target_columns: Iterable[str]) -> list[dict[str, Any]]:
    """Pieces of a batch, as many on every process, because the metrics of each are summed over all.

    Args:
        inputs: of the collator; what is no column (b, l) goes along with every piece.
        length: of a piece.
        longest: how many tokens the longest row of all processes has.
        target_columns: what is cut beside `input_ids`, `attention_mask` and `labels`.
    """
    shifted = F.pad(labels_of_next_tokens(inputs), (0, 1), value=IGNORED)
    columns = {
        "input_ids": (inputs["input_ids"], 0),
        "attention_mask": (inputs["attention_mask"], 0),
        "labels": (inputs["labels"], IGNORED),
        "shift_labels": (shifted, IGNORED),
        **{column: (inputs[column], IGNORED) for column in target_columns},
    }
    uncut = {name: value for name, value in inputs.items() if name not in columns}
    pieces = []
    for start in range(0, -(-longest // length) * length, length):
        stop = min(start + length, longest)
        width = 1 if bool((~inputs["attention_mask"][:, start:stop].bool()).all()) else stop - start
        piece = {
            name: F.pad(part := values[:, start : start + width], (0, width - part.shape[1]), value=fill)
            for name, (values, fill) in columns.items()
        }
        pieces.append({**piece, **uncut})
    return pieces
