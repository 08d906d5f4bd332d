"""One run of a session: which rows step, which wait for a tool or read a long observation, and who hears of it.

In a step each row of the batch takes one token, or in a faster way of decoding several. A row that waits for a slow
tool or reads a long observation leaves the batch with its state and joins again, so no row ever waits for another, is
padded in the middle or read twice.
"""

from collections.abc import Iterable, Sequence
from itertools import islice

from hf_toolssm.generation.batch import Batch
from hf_toolssm.generation.decoding import Steps
from hf_toolssm.generation.events import Event, EventSink, Run
from hf_toolssm.generation.row import Row
from hf_toolssm.generation.sampler import Sampler
from hf_toolssm.generation.speculative_decoding import extend

PIECE = 2_048
"""Tokens of a long observation that one row takes between two steps of the others."""


class Running:
    """Rows on their way until each has ended, has taken its tokens, or was stopped.

    Args:
        rows: of the session.
        batch: of the session.
        decoding: how they are moved on.
        limit: tokens that each may take.
        sinks: hear of every token.
        sampler: ends rows.
        keeps_contexts: whether rows keep their last tokens in mind, for drafts.

    Attributes:
        tokens: that were fed so far, all rows together.
    """

    def __init__(
        self,
        rows: Sequence[Row],
        batch: Batch,
        decoding: Steps,
        limit: int,
        sinks: Sequence[EventSink],
        sampler: Sampler | None,
        keeps_contexts: bool,
    ) -> None:
        self._rows = rows
        self._batch = batch
        self._decoding = decoding
        self._left = {i: limit for i, row in enumerate(rows) if not row.finished}
        self._stopped: set[int] = set()  # rows before a call, and rows that the sampler has ended
        self._sinks = sinks
        self._sampler = sampler
        self._keeps_contexts = keeps_contexts
        self.tokens = 0

    def run(self) -> None:
        """Runs to the end. What a sink raises ends it too, and the rows stand where they are."""
        batch = self._batch
        try:
            waiting = self._schedule()
            while batch.rows or waiting:
                if batch.rows:
                    self._advance()
                else:
                    self._wait_for_any(waiting)
                if waiting or len(batch.rows) < len(self._left):
                    waiting = self._schedule()
        finally:
            batch.leave(batch.rows)

    def _schedule(self) -> list[int]:
        """Moves the rows on that are not in the batch; returns those that still wait or read."""
        left, batch = self._left, self._batch
        for i in [i for i in left if i in self._stopped or left[i] <= 0 or self._rows[i].finished]:
            if i not in batch:
                del left[i]
        waiting, joining = [], []
        for i in [i for i in left if i not in batch]:
            row = self._rows[i]
            if row.call is not None and row.call.over:
                row.receive()
            if row.call is None and not row.finished and len(row.pending) < batch.apart_from:
                joining.append(i)
                continue
            if row.call is None and not row.finished:
                self._read_piece(i)
            waiting.append(i)
        batch.join(joining)
        return waiting

    def _advance(self) -> None:
        batch = self._batch.rows
        runs = self._decoding.advance(batch, [self._rows[i] for i in batch], [self._left[i] for i in batch])
        self._take(batch, runs)
        if self._sampler is not None:
            self._stop(i for i, stop in zip(batch, self._sampler.stop(batch)) if stop)

    def _stop(self, rows: Iterable[int]) -> None:
        ending = list(rows)
        self._stopped.update(ending)
        self._batch.leave(ending)

    def _read_piece(self, i: int) -> None:
        row = self._rows[i]
        size = min(PIECE, len(row.pending), self._left[i])
        piece = list(islice(row.pending, size))
        self._batch.feed(i, piece)
        for _ in piece:
            row.pending.popleft()
        self._take([i], [Run(piece, row.took(size, len(row.pending)))])

    def _take(self, rows: Sequence[int], runs: Sequence[Run]) -> None:
        """Takes note of what rows took, lets those go that cannot go on, and tells of it."""
        leaving, events = [], []
        for i, run in zip(rows, runs):
            row, count = self._rows[i], len(run.tokens)
            if self._sinks and count:
                told = (run.log_probs, run.sampled_log_probs)
                events.append(Event(i, row.length, run.tokens, run.writers, *told))
            row.length += count
            if self._keeps_contexts:
                row.context = extend(row.context, run.tokens)
            self.tokens += count
            self._left[i] -= count
            if run.stopped:
                self._stopped.add(i)
            waits = row.call is not None or len(row.pending) >= self._batch.apart_from
            if run.stopped or waits or row.finished or self._left[i] == 0:
                leaving.append(i)
        self._batch.leave(leaving)
        # From here on all is in order, whatever a sink does.
        for sink in self._sinks if events else ():
            sink.take(events)

    def _wait_for_any(self, rows: Sequence[int]) -> None:
        """Nothing can be done before one of these rows' calls is over."""
        calls = [call for i in rows if (call := self._rows[i].call) is not None]
        if len(calls) == len(rows) and not any(call.over for call in calls):
            calls[0].wait(None if len(calls) == 1 else 0.001)
