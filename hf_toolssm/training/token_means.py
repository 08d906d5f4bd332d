"""Metrics of a training as means over tokens, whatever batches, pieces and processes they came in."""

from collections import defaultdict
from collections.abc import Mapping

import torch
from accelerate import Accelerator
from torch import Tensor


class TokenMeans:
    """Sums since the last log. Nothing waits for the device before they are read.

    Attributes:
        num_tokens: that the training has read, of all processes; padding is none.
    """

    def __init__(self, accelerator: Accelerator) -> None:
        self._accelerator = accelerator
        self._sums: dict[str, dict[str, list[Tensor]]] = {"train": defaultdict(list), "eval": defaultdict(list)}
        self._unread: list[Tensor] = []
        self.num_tokens = 0

    def add(self, mode: str, sums: Mapping[str, tuple[Tensor, Tensor]], num_tokens: Tensor | None = None) -> None:
        """Adds a batch's, or a piece's. Every process calls it equally often.

        Args:
            mode: "train" or "eval".
            sums: by metric, its sum over this process's tokens and how many these are, both ().
            num_tokens: (), that were trained on.
        """
        parts = [part for pair in sums.values() for part in pair] + ([] if num_tokens is None else [num_tokens])
        totals = self._accelerator.reduce(torch.stack([part.detach().float() for part in parts]), "sum")
        for index, name in enumerate(sums):
            self._sums[mode][name].append(totals[2 * index : 2 * index + 2])
        if num_tokens is not None:
            self._unread.append(totals[-1])

    def take(self, mode: str) -> dict[str, float]:
        """The means since the last call with that mode; none if nothing was added."""
        self.num_tokens += sum(int(count.item()) for count in self._unread)
        self._unread.clear()
        totals = {name: torch.stack(sums).double().sum(0).tolist() for name, sums in self._sums[mode].items()}
        self._sums[mode].clear()
        return {name: total / max(1.0, count) for name, (total, count) in totals.items()}
