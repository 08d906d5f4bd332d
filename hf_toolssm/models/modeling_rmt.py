"""The recurrent memory transformer (Bulatov et al., arXiv 2207.06881) with an exact state: a baseline.

A segment of tokens stands between the memory's vectors and a second copy of them; what the layers make of the copy is
the memory of the next segment:

    memory | tokens of the segment | memory        causal attention from left to right

The state is the memory and the tokens of the segment that is not full yet, so that tokens may come whole, in any
pieces or singly with the same result. Each row counts its own segments.
"""

from typing import Any

import torch
from torch import Tensor, nn
from transformers import AutoConfig, AutoModelForCausalLM, GenerationMixin, PreTrainedModel, initialization
from transformers.models.mamba.modeling_mamba import MambaCausalLMOutput, MambaOutput

from hf_toolssm.cache.recurrent_state import RecurrentState
from hf_toolssm.models.causal_lm import RecurrentLM
from hf_toolssm.models.configuration_rmt import RmtConfig
from hf_toolssm.ops.checks import check_model_inputs
from hf_toolssm.ops.padding import gather_rows, tokens_first


class RmtState(RecurrentState):
    """One `recurrent_states[0]` (b, m * e + s + 1), whatever the number of layers.

    It holds the memory's m vectors, the tokens of the segment that has begun, and how many these are.
    """

    continuous = False

    def __init__(self, config: RmtConfig) -> None:
        super().__init__(config)
        del self.layers[1:]

    @classmethod
    def row_shapes(cls, config: RmtConfig) -> dict[str, tuple[int, ...]]:
        return {"recurrent_states": (config.num_memory_tokens * config.hidden_size + config.segment_length + 1,)}


class RmtAttention(nn.MultiheadAttention):
    """Causal self-attention that calls its last projection as a module; torch's reads that one's weights."""

    def forward(self, x: Tensor) -> Tensor:
        """Args: x (b, l, e)."""
        projected = nn.functional.linear(x, self.in_proj_weight, self.in_proj_bias)
        heads = projected.unflatten(2, (3, self.num_heads, -1)).permute(2, 0, 3, 1, 4)  # (3, b, heads, l, e / heads)
        y = nn.functional.scaled_dot_product_attention(*heads, is_causal=True)
        return self.out_proj(y.transpose(1, 2).flatten(2))


class RmtLayer(nn.Module):
    """A layer of a transformer that normalizes first; every part is called as a module."""

    def __init__(self, config: RmtConfig) -> None:
        super().__init__()
        width = config.hidden_size
        self.self_attn = RmtAttention(width, config.num_attention_heads)
        self.linear1 = nn.Linear(width, config.intermediate_size)
        self.linear2 = nn.Linear(config.intermediate_size, width)
        self.norm1, self.norm2 = nn.LayerNorm(width), nn.LayerNorm(width)

    def forward(self, x: Tensor) -> Tensor:
        """Args: x (b, l, e)."""
        x = x + self.self_attn(self.norm1(x))
        return x + self.linear2(nn.functional.gelu(self.linear1(self.norm2(x))))


class RmtPreTrainedModel(PreTrainedModel):
    config_class = RmtConfig
    base_model_prefix = "backbone"
    _no_split_modules = ["RmtLayer"]
    _is_stateful = True

    @torch.no_grad()
    def _init_weights(self, module: nn.Module) -> None:
        if isinstance(module, nn.MultiheadAttention):
            initialization.xavier_uniform_(module.in_proj_weight)
            initialization.zeros_(module.in_proj_bias)
        elif isinstance(module, RmtModel):
            for parameter in (module.memory, module.positions, module.write_position):
                initialization.normal_(parameter, std=module.config.initializer_range)
        else:
            super()._init_weights(module)


class RmtModel(RmtPreTrainedModel):
    """The backbone."""

    def __init__(self, config: RmtConfig) -> None:
        super().__init__(config)
        width = config.hidden_size
        self.embeddings = nn.Embedding(config.vocab_size, width)
        self.memory = nn.Parameter(torch.empty(config.num_memory_tokens, width))
        self.positions = nn.Parameter(torch.empty(config.segment_length, width))
        self.write_position = nn.Parameter(torch.empty(width))
        self.layers = nn.ModuleList(RmtLayer(config) for _ in range(config.num_hidden_layers))
        self.norm = nn.LayerNorm(width)
        self.post_init()

    def get_input_embeddings(self) -> nn.Module:
        return self.embeddings

    def set_input_embeddings(self, new_embeddings: nn.Module) -> None:
        self.embeddings = new_embeddings

    def forward(
        self,
        input_ids: Tensor,
        attention_mask: Tensor | None = None,
        cache_params: RmtState | None = None,
        use_cache: bool | None = None,
        return_dict: bool | None = None,
    ) -> tuple | MambaOutput:
        """Reads the tokens from `cache_params` on, which then holds the state after each row's last real token.

        Args:
            input_ids: (b, l).
            attention_mask: (b, l), ones for real tokens. Padding may stand left or right of a row's tokens.
            cache_params: the state to start from; None is the beginning.
            use_cache: return the state; by default so outside training.

        Raises:
            InputMismatchError: ids or mask do not fit each other or the model.
            PaddingError: a row has padding between its tokens.
            StateMismatchError: `cache_params` is the state of another model, or of another number of rows.
        """
        rows, attention_mask = check_model_inputs(self.embeddings.weight, input_ids, None, attention_mask)
        if use_cache is None:
            use_cache = self.config.use_cache and not self.training
        if cache_params is None and use_cache:
            cache_params = RmtState(self.config)
        if cache_params is not None:
            RmtState.check(cache_params, self.config, rows)
        batch, length = input_ids.shape
        lengths, back = input_ids.new_full((batch,), length), None
        if attention_mask is not None:
            first, back = tokens_first(attention_mask)
            input_ids, lengths = input_ids.gather(1, first), attention_mask.sum(1)

        memory, begun, count = self._read(cache_params, batch)
        stream = _append(begun, count, input_ids, lengths)  # (b, whole segments)
        total = count + lengths
        size = self.config.segment_length
        written = []
        for segment, tokens in enumerate(stream.split(size, dim=1)):
            outputs, updated = self._segment(tokens, memory)
            written.append(outputs)
            full = total >= (segment + 1) * size
            memory = torch.where(full[:, None, None], updated, memory)
        at = (count[:, None] + torch.arange(length, device=count.device)).clamp(max=stream.shape[1] - 1)
        hidden = gather_rows(torch.cat(written, dim=1), at)
        if cache_params is not None:
            rest = total // size * size
            at = rest[:, None] + torch.arange(size, device=rest.device)
            begun = torch.where(at < total[:, None], stream.gather(1, at.clamp(max=stream.shape[1] - 1)), 0)
            self._write(cache_params, memory, begun, total - rest)
        if back is not None:
            hidden = gather_rows(hidden, back)
        output = MambaOutput(last_hidden_state=hidden, cache_params=cache_params if use_cache else None)
        as_dict = self.config.return_dict if return_dict is None else return_dict
        return output if as_dict else output.to_tuple()

    def _segment(self, tokens: Tensor, memory: Tensor) -> tuple[Tensor, Tensor]:
        """What the layers make of a segment's tokens (b, s), and of the memory behind them."""
        size, slots = tokens.shape[1], memory.shape[1]
        x = torch.cat([memory, self.embeddings(tokens) + self.positions, memory + self.write_position], dim=1)
        # Tokens that are missing at a segment's end stand behind all that are there: nothing sees them but the
        # memory's copy, which is taken over only from a full segment.
        for layer in self.layers:
            x = layer(x)
        x = self.norm(x)
        return x[:, slots : slots + size], x[:, slots + size :]

    def _read(self, state: RmtState | None, batch: int) -> tuple[Tensor, Tensor, Tensor]:
        """The memory (b, m, e), the tokens of the segment that has begun (b, s), and how many there are (b,)."""
        packed = None if state is None else state.layers[0].recurrent_states[0]
        size, slots = self.config.segment_length, self.config.num_memory_tokens
        if packed is None:
            begun = torch.zeros(batch, size, dtype=torch.int64, device=self.memory.device)
            return self.memory.expand(batch, -1, -1), begun, begun[:, 0]
        memory, begun, count = packed.split([slots * self.config.hidden_size, size, 1], dim=1)
        return memory.unflatten(1, (slots, -1)).to(self.memory.dtype), begun.long(), count[:, 0].long()

    def _write(self, state: RmtState, memory: Tensor, begun: Tensor, count: Tensor) -> None:
        # One tensor, as a recurrent layer's cache has one; float32 holds every token id exactly.
        parts = (memory.flatten(1).float(), begun.float(), count[:, None].float())
        state.put(0, "recurrent_states", torch.cat(parts, dim=1))


def _append(begun: Tensor, count: Tensor, new: Tensor, lengths: Tensor) -> Tensor:
    """Each row's begun segment and its new tokens behind it, padded with zeros to whole segments."""
    size = begun.shape[1]
    longest = max((count + lengths).tolist(), default=0)
    places = torch.arange(max(1, -(-longest // size)) * size, device=new.device)[None]
    old = nn.functional.pad(begun, (0, places.shape[1] - size))
    at = places - count[:, None]
    fresh = nn.functional.pad(new, (0, 1)).gather(1, at.clamp(0, new.shape[1]))  # there may be no new token
    return torch.where(at < 0, old, torch.where(at < lengths[:, None], fresh, 0))


class RmtForCausalLM(RecurrentLM, RmtPreTrainedModel, GenerationMixin):
    """A recurrent memory transformer with the interface of `MambaForCausalLM`."""

    backbone_class = RmtModel
    state_class = RmtState

    def forward(
        self,
        input_ids: Tensor,
        attention_mask: Tensor | None = None,
        cache_params: RmtState | None = None,
        labels: Tensor | None = None,
        return_dict: bool | None = None,
        use_cache: bool | None = None,
        logits_to_keep: int | Tensor = 0,
        **kwargs: Any,
    ) -> tuple | MambaCausalLMOutput:
        """See `RmtModel` and `RecurrentLM.with_logits`."""
        output = self.backbone(
            input_ids, attention_mask, cache_params=cache_params, use_cache=use_cache, return_dict=True
        )
        return self.with_logits(output, labels, logits_to_keep, return_dict, **kwargs)


AutoConfig.register(RmtConfig.model_type, RmtConfig)
AutoModelForCausalLM.register(RmtConfig, RmtForCausalLM)
