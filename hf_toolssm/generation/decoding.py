"""Ways to decode, behind one method: `advance` moves the rows of a batch on and returns what each of them took.

| | one call |
|---|---|
| `Steps` | a token a row, chosen by a sampler or greedily |
| `Drafting` | runs that n-grams predict and the model checks, greedily; steps where none is at hand |
| `Compiled` | all that model and memory write in one compiled call, greedily; a step where only Python knows |
"""

import random
from collections.abc import Callable, Iterable, Sequence

import torch
from torch import Tensor

from hf_toolssm.errors import InputMismatchError, ToolFaultError
from hf_toolssm.generation.compiled_loop import CompiledLoop
from hf_toolssm.generation.decoder import Decoder, FusedDecoder
from hf_toolssm.generation.events import Run
from hf_toolssm.generation.row import Row
from hf_toolssm.generation.sampler import Sampler
from hf_toolssm.generation.speculative_decoding import Draft, NgramDrafter
from hf_toolssm.protocol.trajectory import Writer


class HeldChoices(dict[int, int]):
    """What rows take first, by row, once they have read what is pending.

    Attributes:
        stopped: the rows whose choice completes a call before which they were stopped: it is carried out next.
    """

    def __init__(self, choices: Iterable[tuple[int, int]] = (), stopped: Iterable[int] = ()) -> None:
        super().__init__(choices)
        self.stopped = set(stopped)

    def take(self, row: int, otherwise: int) -> int:
        """A row's choice, which it has taken then; `otherwise` if it has none."""
        self.stopped.discard(row)
        return self.pop(row, otherwise)

    def select(self, rows: Sequence[int]) -> "HeldChoices":
        """Those of copies of these rows, in that order."""
        held = [(new, self[old]) for new, old in enumerate(rows) if old in self]
        return HeldChoices(held, [new for new, old in enumerate(rows) if old in self.stopped])


def make_decoding(
    decoder: Decoder,
    loop: CompiledLoop | None,
    drafter: NgramDrafter | None,
    held: HeldChoices,
    sampler: Sampler | None,
    watched: set[int] | None,
    log_probs: bool,
) -> "Steps":
    """The fastest way that gives what is asked.

    Args:
        decoder: holds the rows.
        loop: where model and memory are compiled.
        drafter: where a forward may check drafts.
        held, sampler, watched, log_probs: see `Steps`.
    """
    steps = Steps(decoder, held, sampler, watched, log_probs)
    if sampler is not None or watched is not None or log_probs:
        return steps
    if loop is not None:
        return Compiled(decoder, held, loop)
    return steps if drafter is None else Drafting(decoder, held, drafter)


class Steps:
    """A token a row.

    Args:
        decoder: holds the rows.
        held: what rows take first.
        sampler: chooses; None is greedy.
        watched: rows that stop before they complete a call; None where none does.
        log_probs: whether runs say them.

    Attributes:
        is_moving: whether rows and decoder move; after an exception, that it left them apart.
    """

    def __init__(
        self,
        decoder: Decoder,
        held: HeldChoices,
        sampler: Sampler | None = None,
        watched: set[int] | None = None,
        log_probs: bool = False,
    ) -> None:
        self._decoder = decoder
        self._held = held
        self._sampler = sampler
        self._watched = watched
        self._log_probs = log_probs
        self.is_moving = False

    def advance(self, batch: Sequence[int], rows: Sequence[Row], left: Sequence[int]) -> list[Run]:
        """Moves rows on, their tools included.

        Args:
            batch: which rows they are.
            rows: in the order in which the decoder holds them; none has ended or waits for a call.
            left: how many tokens each may take at most.
        """
        choices = self._choose(batch, rows)
        if self._watched is not None:
            free = [at for at, row in enumerate(rows) if not row.pending]
            calling = [at for at in free if batch[at] in self._watched and rows[at].completes_call(choices[at])]
            if calling:
                self._held.update((batch[at], choices[at]) for at in free)
                self._held.stopped.update(batch[at] for at in calling)
                return [Run([], b"", stopped=at in calling) for at in range(len(rows))]
            self._watched.update(batch[at] for at in free)
        scored = self._score(choices) if self._log_probs else None
        self.is_moving = True
        taken = [row.advance(choice) for row, choice in zip(rows, choices)]
        self._decoder.step([token for token, _ in taken])
        self.is_moving = False
        runs = [Run([token], _WRITERS[writer]) for token, writer in taken]
        if scored is not None:
            for run, own, sampled in zip(runs, *scored):
                written = run.writers[0] == Writer.MODEL
                run.log_probs, run.sampled_log_probs = ([own], [sampled]) if written else ([_NAN], [_NAN])
        return runs

    def _choose(self, batch: Sequence[int], rows: Sequence[Row]) -> list[int]:
        if self._sampler is None:
            choices = self._decoder.greedy()
        else:
            logits = self._decoder.logits()
            choices = self._sampler.choose(batch, logits)
            if len(choices) != len(batch) or not 0 <= min(choices) <= max(choices) < logits.shape[1]:
                raise InputMismatchError(
                    f"the sampler chose {choices} for {len(batch)} rows: choose one of the model's "
                    f"{logits.shape[1]} tokens for each"
                )
        if self._held:
            choices = [
                choice if row.pending else self._held.take(i, choice) for i, row, choice in zip(batch, rows, choices)
            ]
        return choices

    def _score(self, choices: Sequence[int]) -> tuple[list[float], list[float]]:
        """The choices' log-probabilities, by the model and by what they were drawn from."""
        sampled = None if self._sampler is None else self._sampler.sampled_from()
        own = _log_probs_of(self._decoder.logits(), choices)
        return own, [0.0] * len(choices) if sampled is None else _log_probs_of(sampled, choices)


_NAN = float("nan")
_WRITERS = [bytes([writer]) for writer in Writer]


def _log_probs_of(logits: Tensor, choices: Sequence[int]) -> list[float]:
    index = torch.tensor(choices, device=logits.device)[:, None]
    return logits.double().log_softmax(-1).gather(1, index)[:, 0].tolist()


class RowSampler:
    """Samples at a temperature, each row by randomness of its own.

    Args:
        temperature: above 0.
        randoms: per row, what its samples are drawn by.
        chooses: whether a row chooses now: others do not draw, and so do not change its samples.
    """

    def __init__(self, temperature: float, randoms: list[random.Random], chooses: Callable[[int], bool]) -> None:
        self._temperature = temperature
        self._randoms = randoms
        self._chooses = chooses
        self._scores: Tensor | None = None

    def choose(self, rows: Sequence[int], logits: Tensor) -> list[int]:
        logits = logits.cpu().double()
        self._scores = (logits - logits.amax(-1, keepdim=True)) / self._temperature
        choices = []
        for i, share in zip(rows, torch.softmax(self._scores, dim=-1).cumsum(-1)):
            drawn = self._randoms[i].random() if self._chooses(i) else 0.0
            choices.append(min(int(torch.searchsorted(share, drawn * share[-1], right=True)), len(share) - 1))
        return choices

    def sampled_from(self) -> Tensor | None:
        return self._scores

    def stop(self, rows: Sequence[int]) -> list[bool]:
        return [False] * len(rows)


class Drafting(Steps):
    """Runs that are checked at once, greedily, and a step where there is none.

    Args:
        decoder: holds the rows; a forward of its model computes what its steps compute.
        held: see `Steps`.
        drafter: of all rows of the session.
    """

    def __init__(self, decoder: Decoder, held: HeldChoices, drafter: NgramDrafter) -> None:
        super().__init__(decoder, held)
        self._drafter = drafter

    def advance(self, batch: Sequence[int], rows: Sequence[Row], left: Sequence[int]) -> list[Run]:
        few = len(rows) <= self._decoder.draft_rows
        runs = self._runs(rows, left) if few and self._drafter.may_try() and not self._held else None
        if runs is None:
            before = [row.context for row in rows]
            runs = super().advance(batch, rows, left)
            for context, run in zip(before, runs):
                if run.writers == _WRITERS[Writer.MODEL]:
                    self._drafter.tree.learn(context, run.tokens[0])
        return runs

    def _runs(self, rows: Sequence[Row], left: Sequence[int]) -> list[Run] | None:
        """Lets every row write a run; none if the runs are too short to pay."""
        drafter = self._drafter
        drafts = [drafter.draft(row, choice, len(rows)) for row, choice in zip(rows, self._decoder.greedy())]
        lengths = [len(draft.tokens) for draft in drafts]
        # A row that stands before its end has no draft.
        if min(left) <= max(lengths) or not all(lengths) or not drafter.pays(sum(lengths), len(rows)):
            drafter.judge(False)
            return None
        observed = [[writer != Writer.MODEL for writer in draft.writers] for draft in drafts]
        self.is_moving = True
        agreed = self._decoder.check([draft.tokens for draft in drafts], observed)
        for row, draft, count in zip(rows, drafts, agreed):
            self._accept(row, draft, count)
        self.is_moving = False
        drafter.judge(drafter.pays(sum(agreed), len(rows)))
        return [Run(draft.tokens[:n], bytes(draft.writers[:n])) for draft, n in zip(drafts, agreed)]

    def _accept(self, row: Row, draft: Draft, count: int) -> None:
        """Makes the first tokens of a draft real."""
        if draft.writers[0] == Writer.MODEL:  # the one token that the tree did not predict, but the model chose
            self._drafter.tree.learn(row.context, draft.tokens[0])
        if count == len(draft.tokens):
            row.adopt(draft.row)
            return
        for token, writer in zip(draft.tokens[:count], draft.writers):
            if row.advance(token) != (token, writer):
                row.fail(ToolFaultError("the tool's clone shares what it remembers: copy it in clone()"))
                return


class Compiled(Steps):
    """The compiled decode loop, greedy, and a step where it stops.

    Args:
        decoder: holds the rows.
        held: see `Steps`.
        loop: of the session's tool.
    """

    def __init__(self, decoder: Decoder, held: HeldChoices, loop: CompiledLoop) -> None:
        super().__init__(decoder, held)
        self._loop = loop
        self._stands = False

    def advance(self, batch: Sequence[int], rows: Sequence[Row], left: Sequence[int]) -> list[Run]:
        if self._stands or self._held:
            self._stands = False
            return super().advance(batch, rows, left)
        self.is_moving = True
        assert isinstance(self._decoder, FusedDecoder)
        runs, self._stands = self._loop.write(self._decoder, rows, left)
        self.is_moving = False
        return runs
