"""Lazy retrieval: a controller decides before an answer whether the state is trusted or a tool is asked (TASS).

A model that can answer either way begins each by a token of its own: the marker of an answer, or the first call of a
retrieval. The controller reads the hidden state behind the question, where neither has been chosen::

    controller = Head("controller", nn.Linear(width, 1), "knows", binary_loss, weight=0.3)  # training/heads.py
    load_heads([controller], folder)
    lazy = LazyRetrieval(controller.module, threshold=0.9, answers=answer_id, asks=first_call_id)
    session.append(questions)
    lazy.decide(session)  # what the rows begin with is held
    session.run()

`evaluation/selective.py` calibrates the threshold, so that the answers keep an error rate with a confidence.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from numbers import Real

import torch
from torch import nn

from hf_toolssm.errors import InputMismatchError, StateMismatchError, UnsupportedGenerationError
from hf_toolssm.generation.session import Session


@dataclass(frozen=True, eq=False)
class LazyRetrieval:
    """How rows are to begin their answers.

    Attributes:
        controller: final hidden states (b, 1, e), float32, to logits (b, 1) or (b, 1, 1) that the state is right.
        threshold: of the probability, from which on the state answers; 0 never asks, and above 1 always does.
        answers: the token that begins an answer out of the state.
        asks: the token that begins a retrieval.

    Raises:
        UnsupportedGenerationError: the threshold is no number of at least 0.
    """

    controller: nn.Module
    threshold: float
    answers: int
    asks: int

    def __post_init__(self) -> None:
        if not isinstance(self.threshold, Real) or not self.threshold >= 0:
            raise UnsupportedGenerationError(
                f"a threshold is a number of at least 0, of a probability, and not {self.threshold!r}"
            )
        ways = (self.answers, self.asks)
        if not all(isinstance(way, int) for way in ways) or self.answers == self.asks:
            raise UnsupportedGenerationError(f"an answer and a retrieval begin with two different tokens, not {ways}")

    def decide(self, session: Session, rows: Sequence[int] | None = None) -> dict[int, float]:
        """Holds the token that rows begin with once what a user said to them is read.

        Args:
            session: nothing of it is moved but its held choices. What was said is read twice, here and by the session.
            rows: of those that a question was appended to; by default all.

        Returns:
            The probability of each that its state is right.

        Raises:
            InputMismatchError: `answers` or `asks` is no token of the model, or the controller does not give one
                finite number a row.
            StateMismatchError: there is no such row, or it stands behind no question. Where the first turn is one,
                start the session with all of it but its last token, and append that.
        """
        rows = session.check_rows(range(len(session.rows)) if rows is None else rows)
        if silent := [row for row in rows if not session.rows[row].inputs]:
            raise StateMismatchError(f"nothing was appended to row {silent[0]}: append a question, and then decide")
        state = session.state.select(rows)
        if not (min(self.answers, self.asks) >= 0 and max(self.answers, self.asks) < state.logits.shape[1]):
            raise InputMismatchError(
                f"the tokens {self.answers} and {self.asks} begin an answer and a retrieval, and the model has "
                f"{state.logits.shape[1]:,} tokens"
            )
        hidden = session.runner.hidden(state, [list(session.rows[row].pending) for row in rows])
        try:
            with torch.no_grad():
                found = self.controller.eval()(hidden[:, None]).float().sigmoid()
        except RuntimeError as error:
            raise InputMismatchError(
                f"the controller does not run on hidden states {tuple(hidden[:, None].shape)} in float32: {error}"
            ) from error
        if found.numel() != len(rows) or not bool(found.isfinite().all()):
            raise InputMismatchError(
                f"the controller gave {tuple(found.shape)} for {len(rows)} rows: one finite number each"
            )
        probabilities = dict(zip(rows, found.reshape(-1).tolist()))
        for row, probability in probabilities.items():
            session.held_choices[row] = self.answers if probability >= self.threshold else self.asks
        return probabilities
