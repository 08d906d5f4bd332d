"""Walks through a task's rule: runs in which a tool shows anything that it could.

A walk does not ask what a tool's memory holds, only what the rule allows, as a proof does. For some time each row has
tokens that it would rather see than others, which drives states to one side; some rows avoid what leads to an end, and
some seek what the model has to write. So walks come where no problem leads, and both an attack and a training that is
to leave nothing open need them.
"""

from collections.abc import Hashable, Mapping

import numba
import numpy as np
from datasets import Dataset
from transformers import PreTrainedTokenizerBase

from hf_toolssm.evaluation.certification.graph import TokenIds
from hf_toolssm.protocol.render import IGNORED
from hf_toolssm.protocol.rule import Rule

_AT_ONCE = 128
"""Rows that are drawn together."""


class Walks:
    """A rule's states as arrays (states, choices): of each choice the token, whether the model writes it, the state
    behind it (-1 where the run ends), how long runs last from there, and how soon the model has to write in them.

    Args:
        rule: of a task.
        ids: of its tokens.
    """

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
    """See `Walks.draw`; what a row would rather see is weighed against Gumbel noise."""
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


def walk_rows(rule: Rule, tokenizer: PreTrainedTokenizerBase, count: int, most_tokens: int, seed: int) -> Dataset:
    """Walks from the beginning as training rows, `input_ids` and `labels`, which are of what the model has to write.

    Args:
        count: of rows.
        most_tokens: of each; then it is cut.
        seed: another one walks other ways.

    Raises:
        CertificationError: the tokenizer lacks a token of the rule.
    """
    walks, rng = Walks(rule, TokenIds(tokenizer)), np.random.default_rng(seed)
    rows: list[dict[str, list[int]]] = []
    while len(rows) < count:
        tokens, written, lengths, _ = walks.draw(np.zeros(_AT_ONCE, np.int64), most_tokens, rng, len(tokenizer))
        for ids, by_model, length in zip(tokens, written, lengths):
            labels = np.where(by_model, ids, IGNORED)[:length]
            if (labels != IGNORED).any():  # of a walk that only reads nothing is learned
                rows.append({"input_ids": ids[:length].tolist(), "labels": labels.tolist()})
    return Dataset.from_list(rows[:count])
