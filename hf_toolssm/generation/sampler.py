"""Who chooses tokens: logits processors, sampling and stopping criteria of transformers, for rows of any lengths."""

from collections.abc import Iterator, Sequence
from typing import Any, Protocol

import numpy as np
import torch
from torch import Tensor
from transformers import LogitsProcessorList
from transformers.generation.streamers import BaseStreamer

from hf_toolssm.generation.events import Event
from hf_toolssm.generation.recording import Recording
from hf_toolssm.protocol.trajectory import Writer


class Sampler(Protocol):
    """Chooses tokens and ends rows."""

    def choose(self, rows: Sequence[int], logits: Tensor) -> list[int]:
        """A token for each of these rows, given logits (r, v). A row is asked too while it reads what a user or a tool
        says, and then the choice is dropped."""

    def sampled_from(self) -> Tensor | None:
        """The logits (r, v) of the distributions that `choose` drew from last; None if it did not draw. Asked only for
        log-probabilities."""

    def stop(self, rows: Sequence[int]) -> list[bool]:
        """Which of these rows, which have just taken a token, end now."""


NOBODY = 255
"""In the place of a `Writer`, of padding."""


class TokenBuffer(Recording):
    """A recording in the shape of transformers: padded prompts, and what the rows took behind them.

    Args:
        prompts: (b, l).
        mask: (b, l), what of them is no padding.
        pad_id: pads behind a row's last token.
        streamer: hears of every token.
    """

    def __init__(self, prompts: Tensor, mask: Tensor, pad_id: int, streamer: BaseStreamer | None) -> None:
        everyone = [(row, 0, prompt) for row, prompt in enumerate(prompts.tolist())]
        super().__init__(len(everyone))
        by = torch.where(mask.bool(), int(Writer.USER), NOBODY).tolist()
        super().take([Event(*prompt, bytes(writers)) for prompt, writers in zip(everyone, by)])
        self._device = prompts.device
        self._pad_id = pad_id
        self._streamer = streamer

    def take(self, events: Sequence[Event]) -> None:
        super().take(events)
        if self._streamer is None:
            return
        if all(len(event.tokens) == 1 for event in events):
            self._streamer.put(torch.tensor([event.tokens[0] for event in events], device="cpu"))
        else:
            for token in (token for event in events for token in event.tokens):
                self._streamer.put(torch.tensor([token], device="cpu"))

    def lengths(self) -> list[int]:
        """Tokens of each row, the padding of its prompt included."""
        return [len(ids) for ids in self.ids]

    def padded(self) -> Tensor:
        """(b, l) on the prompts' device, padded behind a row's last token."""
        return self._matrix(self.ids, np.int64, self._pad_id, max(self.lengths()))

    def written_by(self) -> Tensor:
        """(b, l), the `Writer` of each token; `NOBODY` of padding behind a row's last token."""
        return self._matrix(self.writers, np.uint8, NOBODY, max(self.lengths()))

    def scores(self) -> list[Tensor | None]:
        """(b, l) log-probabilities, of the model's own distribution and of the one sampled from; nan where there are
        none, and None where no event said any."""
        width = max(self.lengths())
        columns = (self.log_probs, self.sampled_log_probs)
        return [self._matrix(column, np.float64, np.nan, width) if any(column) else None for column in columns]

    def by_length(self, rows: Sequence[int]) -> Iterator[tuple[Tensor, list[int]]]:
        """These rows, those of one length at a time: (b, their length), and which they are.

        The others are cut off there or padded behind their last token.
        """
        for length in sorted({len(self.ids[row]) for row in rows}):
            same = [row for row in rows if len(self.ids[row]) == length]
            yield self._matrix(self.ids, np.int64, self._pad_id, length), same

    def _matrix(self, rows: Sequence[Any], dtype: Any, filling: float, width: int) -> Tensor:
        matrix = np.full((len(rows), width), filling, dtype)
        for index, row in enumerate(rows):
            matrix[index, : len(row)] = np.asarray(row, dtype)[:width]
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
        self._scores = scores[list(rows)]
        if self._do_sample:
            return torch.multinomial(torch.softmax(scores, dim=-1), num_samples=1)[list(rows), 0].tolist()
        return self._scores.argmax(-1).tolist()

    def sampled_from(self) -> Tensor | None:
        return self._scores if self._do_sample else None

    def stop(self, rows: Sequence[int]) -> list[bool]:
        ended: set[int] = set()
        for ids, same in self._tokens.by_length(rows) if self._criteria else ():
            for criterion in self._criteria:
                verdicts = torch.as_tensor(criterion(ids, None)).reshape(-1).expand(len(ids)).tolist()
                ended.update(row for row in same if verdicts[row])
        return [row in ended for row in rows]
