"""Scores only the tokens that carry a label: the head is most of the work where the vocabulary is large.

TRL's fused head, off a GPU, computes logits at every position and throws away those of the prompt and of the
observations.
"""

import functools
import types
from typing import Any

import torch
from torch import Tensor
from transformers import PreTrainedModel
from trl.kernels import ChunkedLogProbFunction
from trl.trainer.utils import FusedCausalLMOutput

from hf_toolssm.protocols.render import IGNORED

VOCABULARY_CHUNK = 32_768
"""Logits of one token that are held at a time."""


def score_only_labelled_tokens(model: PreTrainedModel) -> None:
    """Replaces what `model(..., labels=labels, fused_lm_head=True)` computes, which `SFTTrainer` calls.

    The result is TRL's `FusedCausalLMOutput` with per-token fields (b, l - 1), or (b, l) with `shift_labels`, which
    holds for every token the label of the token after it. Every other call of the model is as before.
    """

    @functools.wraps(type(model).forward)  # `generate` looks for its arguments in the signature
    def labelled_forward(
        self: PreTrainedModel,
        *args: Any,
        fused_lm_head: bool = False,
        labels: Tensor | None = None,
        shift_labels: Tensor | None = None,
        **kwargs: Any,
    ) -> Any:
        if not fused_lm_head:
            return type(self).forward(self, *args, labels=labels, **kwargs)
        hidden = self.base_model(*args, **kwargs).last_hidden_state
        if shift_labels is None:
            assert labels is not None, "SFTTrainer passes labels with every call of the fused head"
            hidden, shift_labels = hidden[:, :-1], labels[:, 1:]
        mask = shift_labels != IGNORED
        weight = self.get_output_embeddings().weight
        scores = ChunkedLogProbFunction.apply(
            *(hidden[mask], weight, None, shift_labels[mask], 1.0, min(len(weight), VOCABULARY_CHUNK)),
            *(None, 1.0, ("log_probs", "entropy", "is_top1")),
        )
        log_probs, entropy, _, _, is_top1 = (
            None if score is None else torch.zeros_like(mask, dtype=score.dtype).masked_scatter(mask, score)
            for score in scores
        )
        return FusedCausalLMOutput(log_probs=log_probs, entropy=entropy, is_top1=is_top1, label_mask=mask)

    model.forward = types.MethodType(labelled_forward, model)
