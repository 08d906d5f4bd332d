"""Logits processors, sampling and stopping criteria of transformers, for rows that are not all equally long."""

from array import array
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor
from transformers import LogitsProcessorList
from transformers.generation.streamers import BaseStreamer


class TokenBuffer:
    """Collects the tokens of all rows, and who wrote them."""

    def __init__(self, prompts: Tensor, pad_id: int, streamer: BaseStreamer | None) -> None:
        self._device = prompts.device
        self._pad_id = pad_id
        self._streamer = streamer
        self._ids = [array("q", prompt) for prompt in prompts.tolist()]
        self._observed = [bytearray(prompts.shape[1]) for _ in self._ids]

    def fed(self, rows: Sequence[int], tokens: Sequence[int], observed: Sequence[bool]) -> None:
        for row, token, by_tool in zip(rows, tokens, observed):
            self._ids[row].append(token)
            self._observed[row].append(by_tool)
        if self._streamer is not None:
            self._streamer.put(torch.tensor(tokens, device="cpu"))

    def fed_run(self, row: int, tokens: Sequence[int], observed: Sequence[bool]) -> None:
        self._ids[row].extend(tokens)
        self._observed[row].extend(observed)
        if self._streamer is not None:
            for token in tokens:
                self._streamer.put(torch.tensor([token], device="cpu"))

    def lengths(self) -> list[int]:
        """Tokens of each row, the padding of its prompt included."""
        return [len(ids) for ids in self._ids]

    def padded(self) -> Tensor:
        """(b, l) on the prompts' device, padded behind a row's last token."""
        return self._matrix(self._ids, np.int64, self._pad_id, max(self.lengths()))

    def observed(self) -> Tensor:
        """(b, l), true where a tool wrote the token."""
        return self._matrix(self._observed, np.uint8, 0, max(self.lengths())).bool()

    def by_length(self, rows: Sequence[int]) -> Iterator[tuple[Tensor, list[int]]]:
        """These rows, those of one length at a time: (b, their length), and which they are.

        The others are cut off there or padded behind their last token.
        """
        for length in sorted({len(self._ids[row]) for row in rows}):
            same = [row for row in rows if len(self._ids[row]) == length]
            yield self._matrix(self._ids, np.int64, self._pad_id, length), same

    def _matrix(self, rows: Sequence[Any], dtype: Any, filling: int, width: int) -> Tensor:
        matrix = np.full((len(rows), width), filling, dtype)
        for index, row in enumerate(rows):
            matrix[index, : len(row)] = np.frombuffer(row, dtype)[:width]
        return torch.from_numpy(matrix).to(self._device)


class TransformersSampler:
    """Chooses tokens and ends rows as transformers' own loop does.

    Processors and criteria see the whole batch in its own order, because one may know something of each row, and each
    row at its own length, because one may count. Where rows differ in length they are asked once for each length; what
    they say of other rows is dropped. Samples too are drawn for the whole batch: rows that end do not change the
    others' samples, which are those of transformers where no tool has been called.
    """

    def __init__(
        self, tokens: TokenBuffer, processors: LogitsProcessorList, criteria: Sequence[Any], do_sample: bool
    ) -> None:
        self._tokens = tokens
        self._processors = processors
        self._criteria = criteria
        self._do_sample = do_sample

    def choose(self, rows: Sequence[int], logits: Tensor) -> list[int]:
        given = logits.new_zeros(len(self._tokens.lengths()), logits.shape[1])
        given[list(rows)] = logits
        scores = given.clone()
        if self._processors:
            for ids, same in self._tokens.by_length(rows):
                scores[same] = self._processors(ids, given.clone())[same]  # one may write into what it is given
        if self._do_sample:
            return torch.multinomial(torch.softmax(scores, dim=-1), num_samples=1)[list(rows), 0].tolist()
        return scores[list(rows)].argmax(-1).tolist()

    def stop(self, rows: Sequence[int], logits: Tensor) -> list[bool]:
        ended: set[int] = set()
        for ids, same in self._tokens.by_length(rows) if self._criteria else ():
            for criterion in self._criteria:
                verdicts = torch.as_tensor(criterion(ids, None)).reshape(-1).expand(len(ids)).tolist()
                ended.update(row for row in same if verdicts[row])
        return [row in ended for row in rows]
