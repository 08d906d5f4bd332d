"""Scores only the tokens that carry a label: the head is most of the work where the vocabulary is large."""

from dataclasses import dataclass

import torch
from torch import Tensor, nn
from trl.kernels import ChunkedLogProbFunction

from hf_toolssm.ops.plain_modules import is_plain

VOCABULARY_CHUNK = 32_768
"""Logits of one token that are held at a time."""

NO_LOGITS = torch.empty(0, dtype=torch.int64)
"""As `logits_to_keep`: the model's own forward runs its head at no position."""


@dataclass(frozen=True)
class LabelledScores:
    """What a language model says of n labels.

    Attributes:
        log_probs: (n,), of each label, with a gradient.
        entropy: (n,), of the distribution that the label is of.
        is_top1: (n,), whether the label is the most likely token.
    """

    log_probs: Tensor
    entropy: Tensor
    is_top1: Tensor


def score_labels(head: nn.Module, hidden: Tensor, labels: Tensor) -> LabelledScores:
    """Scores labels by the hidden states before them.

    Args:
        head: the model's output embeddings, (n, e) to logits (n, v).
        hidden: (n, e).
        labels: (n,) token ids.
    """
    if _is_a_weight(head):
        weight, bias = head.weight, getattr(head, "bias", None)
        log_probs, entropy, _, _, is_top1 = ChunkedLogProbFunction.apply(
            *(hidden, weight, bias, labels, 1.0, min(len(weight), VOCABULARY_CHUNK)),
            *(None, 1.0, ("log_probs", "entropy", "is_top1")),
        )
    else:
        every = head(hidden).float().log_softmax(-1)
        log_probs = every.gather(1, labels[:, None])[:, 0]
        with torch.no_grad():
            entropy, is_top1 = -(every.exp() * every).sum(1), every.argmax(1) == labels
    return LabelledScores(log_probs, entropy, is_top1)


def _is_a_weight(head: nn.Module) -> bool:
    """Whether the head is its weight and bias: a plain layer, or PEFT's around one of which it trains some rows."""
    rows_are_trained = hasattr(head, "token_adapter") and not (head._forward_hooks or head._forward_pre_hooks)
    return rows_are_trained or is_plain(head, nn.Linear)
