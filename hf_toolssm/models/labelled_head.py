"""Scores only the tokens that carry a label: the head is most of the work where the vocabulary is large.

TRL's fused head, off a GPU, computes logits at every position and throws away those of the prompt and of the
observations.
"""

import functools
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from transformers import PreTrainedModel

from hf_toolssm.protocols.render import IGNORED

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
    weight = model.get_output_embeddings().weight
    scores = ChunkedLogProbFunction.apply(
        *(hidden[mask], weight, None, shift_labels[mask], 1.0, min(len(weight), VOCABULARY_CHUNK)),
        *(None, 1.0, ("log_probs", "entropy", "is_top1")),
    )
    log_probs, entropy, _, _, is_top1 = (
        None if score is None else torch.zeros_like(mask, dtype=score.dtype).masked_scatter(mask, score)
        for score in scores
    )
    return FusedCausalLMOutput(log_probs=log_probs, entropy=entropy, is_top1=is_top1, label_mask=mask)
