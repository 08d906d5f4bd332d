"""What our own baselines have in common as causal language models: a backbone, logits of what it gives, `generate`."""

from typing import Any

from torch import Tensor, nn
from transformers import GenerationMixin, PreTrainedConfig, PreTrainedModel
from transformers.modeling_utils import slice_logits_to_keep
from transformers.models.mamba.modeling_mamba import MambaCausalLMOutput
from transformers.utils import can_return_tuple

from hf_toolssm.cache.recurrent_state import RecurrentState
from hf_toolssm.errors import UnsupportedGenerationError


class RecurrentLM(GenerationMixin):
    """A causal language model with the interface of `MambaForCausalLM`, around a backbone with `embeddings`.

    It stands before the architecture's `PreTrainedModel` among the bases. `GenerationMixin` stands there once more:
    transformers looks only at a class's own bases for whether it can generate.

    Attributes:
        backbone_class: made with the configuration.
        state_class: the state that it carries.
    """

    backbone_class: type[PreTrainedModel]
    state_class: type[RecurrentState]
    _tied_weights_keys = {"lm_head.weight": "backbone.embeddings.weight"}
    rows_run_side_by_side = True
    """Rows of unequal length may follow any state in one forward, padded on either side; see `ModelRunner`."""

    def __init__(self, config: PreTrainedConfig) -> None:
        super().__init__(config)
        self.backbone = self.backbone_class(config)
        self.lm_head = nn.Linear(config.hidden_size, config.vocab_size, bias=False)
        self.post_init()

    @can_return_tuple
    def forward(
        self,
        input_ids: Tensor | None = None,
        attention_mask: Tensor | None = None,
        inputs_embeds: Tensor | None = None,
        cache_params: RecurrentState | None = None,
        labels: Tensor | None = None,
        output_hidden_states: bool | None = None,
        use_cache: bool | None = None,
        logits_to_keep: int | Tensor = 0,
        **kwargs: Any,
    ) -> tuple | MambaCausalLMOutput:
        """The backbone's output with logits, and with the loss where there are labels.

        Args:
            labels: (b, l), -100 where there is no loss; they are shifted inside.
            logits_to_keep: how many of the last positions get logits, or which; 0 is all.
            kwargs: go to the loss function; all others to the backbone.
        """
        output = self.backbone(
            input_ids,
            attention_mask=attention_mask,
            inputs_embeds=inputs_embeds,
            cache_params=cache_params,
            use_cache=use_cache,
            output_hidden_states=output_hidden_states,
            return_dict=True,
        )
        logits = self.lm_head(slice_logits_to_keep(output.last_hidden_state, logits_to_keep)).float()
        loss = None
        if labels is not None:
            loss = self.loss_function(logits=logits, labels=labels, vocab_size=self.config.vocab_size, **kwargs)
        return MambaCausalLMOutput(
            loss=loss, logits=logits, cache_params=output.cache_params, hidden_states=output.hidden_states
        )

    def _prepare_cache_for_generation(self, generation_config, model_kwargs, *args, **kwargs) -> None:
        # Not the method that this overrides: it names the cache by whether the class is called a Mamba.
        if generation_config.cache_implementation is not None:
            raise UnsupportedGenerationError(
                f"{type(self).__name__} has a state of its own in place of a cache: leave out cache_implementation"
            )
        if generation_config.use_cache is not False and model_kwargs.get("cache_params") is None:
            model_kwargs["cache_params"] = self.state_class(self.config)

    def prepare_inputs_for_generation(self, *args: Any, **kwargs: Any) -> dict[str, Any]:
        """As for any model, but from the second step on there is no padding: one token per row is fed."""
        inputs = super().prepare_inputs_for_generation(*args, **kwargs)
        if kwargs.get("use_cache") and not kwargs.get("is_first_iteration"):
            inputs["attention_mask"] = None
        return inputs
