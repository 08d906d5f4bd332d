"""What our own baselines have in common as causal language models: a backbone, and logits of what it gives."""

from typing import Any

from torch import Tensor, nn
from transformers import PreTrainedConfig
from transformers.modeling_utils import slice_logits_to_keep
from transformers.models.mamba.modeling_mamba import MambaCausalLMOutput, MambaOutput

from hf_toolssm.models.state import RecurrentGeneration


class CausalHead(RecurrentGeneration):
    """Of a `PreTrainedModel` with a `backbone` that has `embeddings`; it stands before that class among the bases."""

    _tied_weights_keys = {"lm_head.weight": "backbone.embeddings.weight"}
    rows_run_side_by_side = True
    """Rows of unequal length may follow any state in one forward, padded on either side; see `ModelRunner`."""

    def add_head(self, backbone: nn.Module, config: PreTrainedConfig) -> None:
        """Completes the model; called once, when it is made."""
        self.backbone = backbone
        self.lm_head = nn.Linear(config.hidden_size, config.vocab_size, bias=False)
        self.post_init()

    def get_input_embeddings(self) -> nn.Module:
        return self.backbone.get_input_embeddings()

    def set_input_embeddings(self, new_embeddings: nn.Module) -> None:
        self.backbone.set_input_embeddings(new_embeddings)

    def score(
        self,
        output: MambaOutput,
        labels: Tensor | None,
        logits_to_keep: int | Tensor,
        return_dict: bool | None,
        **kwargs: Any,
    ) -> tuple | MambaCausalLMOutput:
        """The backbone's output with logits, and with the loss where there are labels.

        Args:
            labels: (b, l), -100 where there is no loss; they are shifted inside.
            logits_to_keep: how many of the last positions get logits, or which; 0 is all.
            kwargs: go to the loss function.
        """
        logits = self.lm_head(slice_logits_to_keep(output.last_hidden_state, logits_to_keep)).float()
        loss = None
        if labels is not None:
            loss = self.loss_function(logits=logits, labels=labels, vocab_size=self.config.vocab_size, **kwargs)
        result = MambaCausalLMOutput(
            loss=loss, logits=logits, cache_params=output.cache_params, hidden_states=output.hidden_states
        )
        as_dict = self.config.return_dict if return_dict is None else return_dict
        return result if as_dict else result.to_tuple()
