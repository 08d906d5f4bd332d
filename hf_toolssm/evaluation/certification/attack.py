"""A search for a run on which a model errs: long walks through its task's rule, into states as extreme as they get.

A walk does not ask what a tool's memory holds, only what the rule allows, as a proof does. For some time each row has
tokens that it would rather see than others, which drives states to one side; some rows avoid what leads to an end, and
some seek what the model has to write. The model is checked at every such token, by the kernel that decodes.
"""

from collections.abc import Hashable, Mapping
from dataclasses import dataclass
from typing import Any

import numba
import numpy as np
from tqdm import tqdm
from transformers import PreTrainedTokenizerBase

from hf_toolssm.evaluation.certification.bounds import check_model
from hf_toolssm.evaluation.certification.graph import TokenIds
from hf_toolssm.ops.fused_step import FusedState, FusedStep
from hf_toolssm.ops.memory_arrays import NO_MEMORIES
from hf_toolssm.protocol.rule import Rule

ROWS = 128
PIECE = 400
"""Tokens of a row that are drawn at once; then its preferences change, and where its run has ended another begins."""

KEPT = 10_000


@dataclass(frozen=True)
class Attack:
    """What a search has found.

    Attributes:
        tokens: how many were fed without an error.
        asked: how many of them the model has to write.
        error: where it wrote another one; None where it never did.
    """

    tokens: int
    asked: int
    error: "Counterexample | None"


@dataclass(frozen=True)
class Counterexample:
    """Where a model erred.

    Attributes:
        tokens: the run up to there, the last `KEPT` of it.
        right: what it should have written.
        wrote: what it wrote.
    """

    tokens: tuple[str, ...]
    right: str
    wrote: str


class _Walks:
    """A rule's states as arrays (states, choices): of each choice the token, whether the model writes it, the state
    behind it (-1 where the run ends), how long runs last from there, and how soon the model has to write in them."""

    def __init__(self, rule: Rule, ids: Mapping[str, int]) -> None:
        numbers: dict[Hashable, int] = {rule.start: 0}
        found: list[list[tuple[int, bool, int]]] = []
        waiting = [rule.start]
        for state in waiting:  # it grows meanwhile
            place = rule.place(state)
            after = [(token, then) for token, states in place.follows.items() for then in states or (None,)]
            new = dict.fromkeys(then for _, then in after if then is not None and then not in numbers)
            numbers |= {then: len(numbers) + at for at, then in enumerate(new)}
            waiting += new
            found.append([(ids[t], t == place.right, -1 if n is None else numbers[n]) for t, n in after])
        shape = (len(found), max(map(len, found)))
        self.tokens, self.targets = np.zeros(shape, np.int64), np.full(shape, -1)
        self.written, self.there = np.zeros(shape, bool), np.zeros(shape, bool)
        for at, choices in enumerate(found):
            for k, (token, written, target) in enumerate(choices):
                self.tokens[at, k], self.written[at, k], self.targets[at, k] = token, written, target
                self.there[at, k] = True
        self.lasts = self._expected(np.ones(len(found)), 0.99)
        self.asked = self._expected(self.written.any(1).astype(float), 0.9)

    def _expected(self, worth: np.ndarray, kept: float) -> np.ndarray:
        """The logarithm of what runs that choose evenly are worth behind each choice, when a step later all is worth
        so much less."""
        total = worth
        for _ in range(200):
            later = np.where(self.targets >= 0, total[self.targets], 0) * self.there
            total = worth + kept * later.sum(1) / np.maximum(self.there.sum(1), 1)
        return np.log(1e-3 + np.where(self.targets >= 0, total[self.targets], 0))

    def draw(self, at: np.ndarray, count: int, rng: np.random.Generator, vocabulary: int) -> tuple[np.ndarray, ...]:
        """Moves rows on, in place; returns their tokens and whether the model writes them (rows, count), how many
        there are of each row (rows,): fewer where a run ends; and whether it has ended (rows,)."""
        rows = len(at)
        tokens, written = np.zeros((rows, count), np.int64), np.zeros((rows, count), bool)
        lengths = np.full(rows, count)
        likes = rng.normal(size=(rows, vocabulary)) * rng.choice([0, 1, 10], size=(rows, 1))
        lasting, asking = rng.choice([0.0, 3.0, 30.0], size=(2, rows))
        ended = np.zeros(rows, bool)
        rule = (self.tokens, self.written, self.targets, self.there, self.lasts, self.asked)
        _draw(at, rule, likes, lasting, asking, rng, tokens, written, lengths, ended)
        return tokens, written, lengths, ended


@numba.njit(nogil=True)
def _draw(at, rule, likes, lasting, asking, rng, tokens, written, lengths, ended):
    """See `_Walks.draw`; what a row would rather see is weighed against Gumbel noise."""
    all_tokens, all_written, targets, there, lasts, asked = rule
    for row in range(len(at)):
        for step in range(tokens.shape[1]):
            state, best, choice = at[row], -np.inf, 0
            for k in range(there.shape[1]):
                if there[state, k]:
                    score = likes[row, all_tokens[state, k]]
                    score += lasting[row] * lasts[state, k] + asking[row] * asked[state, k]
                    score -= np.log(-np.log(1 - rng.random()))
                    if score > best:
                        best, choice = score, k
            tokens[row, step], written[row, step] = all_tokens[state, choice], all_written[state, choice]
            if targets[state, choice] < 0:
                at[row], lengths[row], ended[row] = 0, step + 1, True
                break
            at[row] = targets[state, choice]


def attack(model: Any, tokenizer: PreTrainedTokenizerBase, rule: Rule, tokens: int, seed: int = 0) -> Attack:
    """Feeds so many tokens, all rows together, and stops at the first error.

    Raises:
        CertificationError: the model is none that a proof knows, or lacks a token of the rule.
    """
    check_model(model)
    ids, rng = TokenIds(tokenizer), np.random.default_rng(seed)
    walks, step, config = _Walks(rule, ids), FusedStep(model), model.config
    at, runs = np.zeros(ROWS, np.int64), [list[int]() for _ in range(ROWS)]
    conv = np.zeros((ROWS, config.num_hidden_layers, config.conv_kernel, config.intermediate_size), np.float32)
    recurrent = np.zeros((ROWS, config.num_hidden_layers, config.state_size, config.intermediate_size), np.float32)
    logits = np.zeros((ROWS, config.vocab_size), np.float32)
    state = FusedState(conv, recurrent, logits, np.zeros(ROWS, np.int64))
    count = asked = 0  # tqdm counts nothing where it is switched off
    with tqdm(total=tokens, desc="attacking", unit="token", unit_scale=True) as progress:
        while count < tokens:
            drawn, written, lengths, ended = walks.draw(at, PIECE, rng, config.vocab_size)
            fed = step(drawn, ~written, lengths, lengths, NO_MEMORIES, state)
            if (erred := np.flatnonzero(fed < lengths)).size:
                row = erred[0]
                run = [*runs[row], *drawn[row, : fed[row]]]
                right, wrote = tokenizer.convert_ids_to_tokens([int(drawn[row, fed[row]]), int(state.best[row])])
                error = Counterexample(tuple(tokenizer.convert_ids_to_tokens(run)), right, wrote)
                return Attack(count, asked, error)
            for row in range(ROWS):
                runs[row] = [] if ended[row] else [*runs[row], *drawn[row, : lengths[row]].tolist()][-KEPT:]
            conv[ended], recurrent[ended] = 0, 0
            more = int(lengths.sum())
            count, asked = count + more, asked + int(written.sum())
            progress.update(more)
    return Attack(count, asked, None)
