"""A search for a run on which a model errs: long walks through its task's rule, into states as extreme as they get.

The model is checked at every token that it has to write, by the kernel that decodes.
"""

from dataclasses import dataclass
from typing import Any

import numpy as np
from tqdm import tqdm
from transformers import PreTrainedTokenizerBase

from hf_toolssm.evaluation.certification.bounds import check_model
from hf_toolssm.evaluation.certification.graph import TokenIds
from hf_toolssm.evaluation.certification.walks import Walks
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


def attack(model: Any, tokenizer: PreTrainedTokenizerBase, rule: Rule, tokens: int, seed: int = 0) -> Attack:
    """Feeds so many tokens, all rows together, and stops at the first error.

    Raises:
        CertificationError: the model is none that a proof knows, or lacks a token of the rule.
    """
    check_model(model)
    ids, rng = TokenIds(tokenizer), np.random.default_rng(seed)
    walks, step, config = Walks(rule, ids), FusedStep(model), model.config
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
