"""What our own baselines have in common as causal language models: a backbone, logits of what it gives, `generate`."""

from typing import Any

from torch import Tensor, nn
from transformers import GenerationMixin, PreTrainedConfig, PreTrainedModel
from transformers.modeling_utils import slice_logits_to_keep
from transformers.models.mamba.modeling_mamba import MambaCausalLMOutput, MambaOutput

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

    def get_input_embeddings(self) -> nn.Module:
        return self.backbone.get_input_embeddings()

    def set_input_embeddings(self, new_embeddings: nn.Module) -> None:
        self.backbone.set_input_embeddings(new_embeddings)

    def with_logits(
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

    def _prepare_cache_for_generation(self, generation_config, model_kwargs, *args, **kwargs) -> None:
        # Not the method that this overrides: it names the cache by whether the class is called a Mamba.
        if generation_config.cache_implementation is not None:
            raise UnsupportedGenerationError(
                f"{type(self).__name__} has a state of its own in place of a cache: leave out cache_implementation"
            )
        if generation_config.use_cache is not False and model_kwargs.get("cache_params") is None:
            model_kwargs["cache_params"] = self.state_class(self.config)

    def prepare_inputs_for_generation(
        self,
        input_ids: Tensor,
        is_first_iteration: bool | None = False,
        use_cache: bool | None = None,
        **kwargs: Any,
    ) -> dict[str, Any]:
        """As for any model, but from the second step on there is no padding: one token per row is fed."""
        inputs = super().prepare_inputs_for_generation(
            input_ids, is_first_iteration=is_first_iteration, use_cache=use_cache, **kwargs
        )
        if use_cache and not is_first_iteration:
            inputs["attention_mask"] = None
        return inputs
