"""Which rows step side by side, and what the model remembers of all others."""

import copy
import sys
from collections.abc import Iterable, Sequence

from hf_toolssm.cache.model_state import ModelState
from hf_toolssm.generation.decoder import Decoder
from hf_toolssm.generation.model_runner import ModelRunner, Prefill


class Batch:
    """The rows that a decoder holds, and the states of those that are out of it.

    Args:
        runner: of the model.
        decoder: of the model; holds no rows yet.
        state: of every row.

    Attributes:
        rows: those that the decoder holds, in its order.
        apart_from: pending tokens from which a row reads them out of the decoder, in pieces.
    """

    def __init__(self, runner: ModelRunner, decoder: Decoder, state: ModelState) -> None:
        self.runner = runner
        self.decoder = decoder
        self.rows: list[int] = []
        singly = runner.prefill is Prefill.TOKEN_BY_TOKEN
        self.apart_from = sys.maxsize if singly else decoder.piece_from
        self._out = {row: state.select([row]) for row in range(len(state.lengths))}

    def __contains__(self, row: int) -> bool:
        return row not in self._out

    @property
    def state(self) -> ModelState:
        """What the model remembers of every row, in order, as a copy; none may be held by the decoder."""
        return ModelState.concatenate([self._out[row] for row in range(len(self._out))])

    def select(self, rows: Sequence[int]) -> "Batch":
        """Copies of those rows, in that order, with a decoder of their own; none may be held."""
        return Batch(self.runner, copy.copy(self.decoder), self.state.select(rows))

    def join(self, rows: Sequence[int]) -> None:
        """Puts rows into the decoder."""
        if rows:
            states = [self.decoder.state()] if self.rows else []
            self.decoder.load(ModelState.concatenate([*states, *(self._out.pop(i) for i in rows)]))
            self.rows = [*self.rows, *rows]

    def leave(self, rows: Iterable[int]) -> None:
        """Takes rows out of the decoder, each with its own state; those that are out already stay there."""
        going = {row for row in rows if row in self.rows}
        if not going:
            return
        state = self.decoder.state()
        for at, row in enumerate(self.rows):
            if row in going:
                self._out[row] = state.select([at])
        staying = [at for at, row in enumerate(self.rows) if row not in going]
        self.rows = [self.rows[at] for at in staying]
        if staying:
            self.decoder.load(state.select(staying))

    def feed(self, row: int, tokens: Sequence[int]) -> None:
        """Feeds several tokens to a row that is out of the decoder."""
        self._out[row], _ = self.runner.feed(self._out[row], [tokens])
