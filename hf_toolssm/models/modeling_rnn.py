"""LSTM and GRU language models with an exact state: the baselines that a Mamba is measured against.

Tokens may come whole, in any pieces or singly, with the same result, and padding on either side leaves the state as it
is.
"""

import math
from typing import Any

import torch
from torch import Tensor, nn
from transformers import AutoConfig, AutoModelForCausalLM, GenerationMixin, PreTrainedModel, initialization
from transformers.models.mamba.modeling_mamba import MambaCausalLMOutput, MambaOutput

from hf_toolssm.cache.recurrent_state import RecurrentState
from hf_toolssm.models.causal_lm import RecurrentLM
from hf_toolssm.models.configuration_rnn import RnnConfig
from hf_toolssm.ops.checks import check_model_inputs
from hf_toolssm.ops.padding import gather_rows, tokens_first
from hf_toolssm.ops.plain_modules import is_plain

_MODULE_OF = {"lstm": nn.LSTM, "gru": nn.GRU}
_SATURATING = 1e4
"""Far beyond a gate's own input: its sigmoid is then 0 or 1 in every float type."""


class RnnState(RecurrentState):
    """Per layer `recurrent_states[0]` (b, s, hidden): the hidden state, and for an LSTM (s = 2) the cell state."""

    @classmethod
    def row_shapes(cls, config: RnnConfig) -> dict[str, tuple[int, ...]]:
        return {"recurrent_states": (1 + (config.cell == "lstm"), config.hidden_size)}


class RnnLayer(nn.Module):
    """One recurrent layer, from any state."""

    def __init__(self, config: RnnConfig, index: int) -> None:
        super().__init__()
        self.index = index
        self._kind = _MODULE_OF[config.cell]
        self.cell = self._kind(config.hidden_size, config.hidden_size, batch_first=True)
        self._has_cell_state = config.cell == "lstm"

    # Dynamo leaves nn.LSTM and nn.GRU alone, and there is nothing else here to compile.
    @torch.compiler.disable
    def forward(self, x: Tensor, cache: RecurrentState | None, lengths: Tensor | None) -> Tensor:
        """Args: x (b, l, e); cache, read and replaced; lengths (b,), how many tokens of each row are real."""
        if not x.shape[1]:  # torch refuses to run over nothing, which leaves the state as it is
            return x
        state = None if cache is None else cache.layers[self.index].recurrent_states[0]
        if state is None:
            state = x.new_zeros(x.shape[0], 1 + self._has_cell_state, x.shape[2])
        if cache is None or lengths is None:
            y, last = self._run(x, state)
        elif is_plain(self.cell, self._kind):
            y, last = self._run_through_padding(x, state, lengths)
        else:
            y, last = self._run_from_end_to_end(x, state, lengths)
        if cache is not None:
            cache.put(self.index, "recurrent_states", last)
        return y

    def _run(self, x: Tensor, state: Tensor) -> tuple[Tensor, Tensor]:
        """The cell's outputs and last state (b, s, hidden), from another one."""
        parts = tuple(part.contiguous()[None] for part in state.unbind(1))  # torch wants (1, b, hidden) each
        y, end = self.cell(x, parts if self._has_cell_state else parts[0])
        return y, torch.cat(end if self._has_cell_state else [end]).transpose(0, 1)

    def _run_from_end_to_end(self, x: Tensor, state: Tensor, lengths: Tensor) -> tuple[Tensor, Tensor]:
        """The same with the state of each row's last token: the cell is called up to every length that a row has."""
        outputs, last, at = [], state, 0
        for stop in sorted({*lengths.tolist(), x.shape[1]} - {0}):
            y, state = self._run(x[:, at:stop], state)
            last = torch.where((lengths == stop)[:, None, None], state, last)
            outputs.append(y)
            at = stop
        return torch.cat(outputs, dim=1), last

    def _run_through_padding(self, x: Tensor, state: Tensor, lengths: Tensor) -> tuple[Tensor, Tensor]:
        """The same for a plain cell, in one call: packed rows took twelve times as long on a CPU.

        The hidden state of a row's last token is its output. For the cell state of an LSTM one more channel, 1 behind
        a row's tokens, opens the forget gate and closes the input gate, both exactly: so it passes the padding.
        """
        if self._has_cell_state:
            cell, hidden = self.cell, x.shape[2]
            behind = torch.arange(x.shape[1], device=x.device) >= lengths[:, None]
            of_padding = x.new_zeros(4, hidden)  # input, forget, cell and output gate
            of_padding[0], of_padding[1] = -_SATURATING, _SATURATING
            weights = [torch.cat([cell.weight_ih_l0, of_padding.view(-1, 1)], dim=1)]
            weights += [cell.weight_hh_l0, cell.bias_ih_l0, cell.bias_hh_l0]
            x = torch.cat([x, behind[:, :, None].to(x)], dim=2)
            start = [part.contiguous()[None] for part in state.unbind(1)]
            y, _, cell_state = torch.lstm(x, start, weights, True, 1, 0.0, self.training, False, True)
            of_cell = [cell_state.transpose(0, 1)]
        else:
            y, of_cell = self._run(x, state)[0], []
        last = torch.cat([gather_rows(y, (lengths - 1).clamp(min=0)[:, None]), *of_cell], dim=1)
        return y, torch.where((lengths > 0)[:, None, None], last, state)


class RnnPreTrainedModel(PreTrainedModel):
    config_class = RnnConfig
    base_model_prefix = "backbone"
    _no_split_modules = ["RnnLayer"]
    _is_stateful = True

    @torch.no_grad()
    def _init_weights(self, module: nn.Module) -> None:
        if isinstance(module, (nn.LSTM, nn.GRU)):
            bound = 1 / math.sqrt(module.hidden_size)
            for parameter in module.parameters():
                initialization.uniform_(parameter, -bound, bound)
        else:
            super()._init_weights(module)


class RnnModel(RnnPreTrainedModel):
    """The backbone: embeddings and plainly stacked recurrent layers."""

    def __init__(self, config: RnnConfig) -> None:
        super().__init__(config)
        self.embeddings = nn.Embedding(config.vocab_size, config.hidden_size)
        self.layers = nn.ModuleList(RnnLayer(config, index) for index in range(config.num_hidden_layers))
        self.post_init()

    def get_input_embeddings(self) -> nn.Module:
        return self.embeddings

    def set_input_embeddings(self, new_embeddings: nn.Module) -> None:
        self.embeddings = new_embeddings

    def forward(
        self,
        input_ids: Tensor | None = None,
        attention_mask: Tensor | None = None,
        inputs_embeds: Tensor | None = None,
        cache_params: RnnState | None = None,
        use_cache: bool | None = None,
        output_hidden_states: bool | None = None,
        return_dict: bool | None = None,
    ) -> tuple | MambaOutput:
        """Runs the layers from `cache_params`, which then holds the state after each row's last real token.

        Args:
            input_ids: (b, l), or inputs_embeds (b, l, e).
            attention_mask: (b, l), ones for real tokens. Padding may stand left or right of a row's tokens.
            cache_params: the state to start from; None is zeros.
            use_cache: return the state; by default so outside training.
            output_hidden_states: also return what each layer gave, the embeddings first.

        Raises:
            PaddingError: a row has padding between its tokens.
            InputMismatchError: ids, embeddings or mask do not fit each other or the model.
            StateMismatchError: `cache_params` is the state of another model, or of another number of rows.
        """
        rows, attention_mask = check_model_inputs(self.embeddings.weight, input_ids, inputs_embeds, attention_mask)
        if use_cache is None:
            use_cache = self.config.use_cache and not self.training
        if cache_params is None and use_cache:
            cache_params = RnnState(self.config)
        if cache_params is not None:
            RnnState.check(cache_params, self.config, rows)
        x = self.embeddings(input_ids) if inputs_embeds is None else inputs_embeds
        lengths = back = None
        if attention_mask is not None:
            first, back = tokens_first(attention_mask)
            x, lengths = gather_rows(x, first), attention_mask.sum(1)

        hidden_states = [x]
        for layer in self.layers:
            hidden_states.append(layer(hidden_states[-1], cache_params, lengths))
        if back is not None:
            hidden_states = [gather_rows(h, back) for h in hidden_states]

        wanted = self.config.output_hidden_states if output_hidden_states is None else output_hidden_states
        output = MambaOutput(
            last_hidden_state=hidden_states[-1],
            cache_params=cache_params if use_cache else None,
            hidden_states=tuple(hidden_states) if wanted else None,
        )
        as_dict = self.config.return_dict if return_dict is None else return_dict
        return output if as_dict else output.to_tuple()


class RnnForCausalLM(RecurrentLM, RnnPreTrainedModel, GenerationMixin):
    """An LSTM or GRU language model with the interface of `MambaForCausalLM`."""

    backbone_class = RnnModel
    state_class = RnnState

    def forward(
        self,
        input_ids: Tensor | None = None,
        attention_mask: Tensor | None = None,
        inputs_embeds: Tensor | None = None,
        cache_params: RnnState | None = None,
        labels: Tensor | None = None,
        output_hidden_states: bool | None = None,
        return_dict: bool | None = None,
        use_cache: bool | None = None,
        logits_to_keep: int | Tensor = 0,
        **kwargs: Any,
    ) -> tuple | MambaCausalLMOutput:
        """See `RnnModel` and `RecurrentLM.with_logits`."""
        output = self.backbone(
            input_ids,
            attention_mask=attention_mask,
            inputs_embeds=inputs_embeds,
            cache_params=cache_params,
            use_cache=use_cache,
            output_hidden_states=output_hidden_states,
            return_dict=True,
        )
        return self.with_logits(output, labels, logits_to_keep, return_dict, **kwargs)


AutoConfig.register(RnnConfig.model_type, RnnConfig)
AutoModelForCausalLM.register(RnnConfig, RnnForCausalLM)
