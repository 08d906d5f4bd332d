"""Scores only the tokens that carry a label: the head is most of the work where the vocabulary is large.

TRL's fused head, off a GPU, computes logits at every position and throws away those of the prompt and of the
observations.
"""

import functools
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from hf_toolssm.ops.plain_modules import is_plain
from hf_toolssm.protocol.render import IGNORED

VOCABULARY_CHUNK = 32_768
"""Logits of one token that are held at a time."""


def with_labelled_head(forward: Callable[..., Any]) -> Callable[..., Any]:
    """A causal language model's `forward` that also answers TRL's call, `fused_lm_head=True`.

    That call gives TRL's `FusedCausalLMOutput`, with per-token fields (b, l - 1), or (b, l) with `shift_labels`, which
    holds for every token the label of the token after it. Every other call is as before.
    """

    @functools.wraps(forward)  # `generate` looks for its arguments in the signature
    def labelled_forward(
        self: PreTrainedModel,
        *args: Any,
        fused_lm_head: bool = False,
        labels: Tensor | None = None,
        shift_labels: Tensor | None = None,
        **kwargs: Any,
    ) -> Any:
        if fused_lm_head:
            assert labels is not None, "SFTTrainer passes labels with every call of the fused head"
            return _score(self, labels, shift_labels, self.base_model(*args, **kwargs).last_hidden_state)
        given = {"labels": labels, "shift_labels": shift_labels}
        return forward(self, *args, **{name: value for name, value in given.items() if value is not None}, **kwargs)

    return labelled_forward


def _score(model: PreTrainedModel, labels: Tensor, shift_labels: Tensor | None, hidden: Tensor) -> Any:
    from trl.kernels import ChunkedLogProbFunction  # a model that is not trained needs no TRL
    from trl.trainer.utils import FusedCausalLMOutput

    if shift_labels is None:
        hidden, shift_labels = hidden[:, :-1], labels[:, 1:]
    mask = shift_labels != IGNORED
    head = model.get_output_embeddings()
    if _is_a_weight(head):
        weight, bias = head.weight, getattr(head, "bias", None)
        log_probs, entropy, _, _, is_top1 = ChunkedLogProbFunction.apply(
            *(hidden[mask], weight, bias, shift_labels[mask], 1.0, min(len(weight), VOCABULARY_CHUNK)),
            *(None, 1.0, ("log_probs", "entropy", "is_top1")),
        )
    else:
        every = head(hidden[mask]).float().log_softmax(-1)
        log_probs = every.gather(1, shift_labels[mask][:, None])[:, 0]
        with torch.no_grad():
            entropy, is_top1 = -(every.exp() * every).sum(1), every.argmax(1) == shift_labels[mask]
    log_probs, entropy, is_top1 = (
        torch.zeros_like(mask, dtype=score.dtype).masked_scatter(mask, score)
        for score in (log_probs, entropy, is_top1)
    )
    return FusedCausalLMOutput(log_probs=log_probs, entropy=entropy, is_top1=is_top1, label_mask=mask)


def _is_a_weight(head: nn.Module) -> bool:
    """Whether the head is its weight and bias: a plain layer, or PEFT's around one of which it trains some rows."""
    rows_are_trained = hasattr(head, "token_adapter") and not (head._forward_hooks or head._forward_pre_hooks)
    return rows_are_trained or is_plain(head, nn.Linear)
