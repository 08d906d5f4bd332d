"""ToolMamba: `MambaForCausalLM` whose state is exact, and whose `generate` runs tools.

It loads plain Mamba checkpoints unchanged, transformers' and mamba_ssm's. Three things differ from the class it
extends: tokens may come whole, in any pieces or singly, with the same result; padding on either side leaves the state
as it is; and the scan is linear in length on a CPU, forwards and backwards.
"""

from typing import Any

import torch
from torch import Tensor, nn
from transformers import AutoConfig, AutoModelForCausalLM, MambaForCausalLM, MambaModel
from transformers.activations import SiLUActivation
from transformers.conversion_mapping import register_checkpoint_conversion_mapping
from transformers.models.mamba.modeling_mamba import MambaBlock, MambaMixer, MambaOutput
from transformers.utils import can_return_tuple

from hf_toolssm.cache.recurrent_state import MambaState, StateInForward
from hf_toolssm.generation.tool_loop import generate_with_tools
from hf_toolssm.models.configuration_tool_mamba import ToolMambaConfig
from hf_toolssm.models.native_checkpoint import NATIVE_NAMES
from hf_toolssm.ops.causal_convolution import causal_convolution
from hf_toolssm.ops.causal_convolution_cuda import convolve_from_state
from hf_toolssm.ops.checks import check_model_inputs
from hf_toolssm.ops.compiled_step import CompiledStep, compiled_step
from hf_toolssm.ops.mamba_inner import mamba_inner
from hf_toolssm.ops.padding import gather_rows, tokens_first
from hf_toolssm.ops.plain_modules import is_plain
from hf_toolssm.ops.projection import are_projectable, project
from hf_toolssm.ops.rms_norm import ToolMambaNorm
from hf_toolssm.ops.selective_scan import selective_scan


class ToolMambaMixer(MambaMixer):
    """The Mamba block (arXiv 2312.00752, section 3.4) from any state.

    A layer that is more than it seems (an adapter, a hook, offloaded or quantized weights) is called as a module, and
    its weights are never read.
    """

    # Dynamo would compile one mixer after the other, up to its limit, and between calls of numba there is nothing to
    # fuse.
    @torch.compiler.disable
    def forward(
        self,
        hidden_states: Tensor,
        cache_params: MambaState | None = None,
        attention_mask: Tensor | None = None,
        **kwargs: Any,
    ) -> Tensor:
        """Args: hidden_states (b, l, e); cache_params, read and replaced; attention_mask (b, l), ones first."""
        lengths = None if attention_mask is None else attention_mask.sum(1)
        conv_state, recurrent_state = (None, None) if cache_params is None else cache_params.read(self.layer_idx)

        xz = project(self.in_proj, hidden_states)  # (b, l, 2 d)
        run = self._fused if self._can_be_fused(xz) else self._composed
        y, conv_state, recurrent_state = run(xz, conv_state, recurrent_state, lengths)
        if cache_params is not None:
            cache_params.write(self.layer_idx, conv_state, recurrent_state)
        return project(self.out_proj, y.to(hidden_states.dtype))

    def _can_be_fused(self, xz: Tensor) -> bool:
        parts = self._modules  # an attribute that is a module is slow to get, and every layer asks at every token
        x_proj, dt_proj = parts["x_proj"], parts["dt_proj"]
        return (
            self._convolution_is_plain()
            and is_plain(x_proj, nn.Linear)
            and is_plain(dt_proj, nn.Linear)
            and x_proj.bias is None
            and dt_proj.bias is not None
            and are_projectable(xz, parts["conv1d"], x_proj, dt_proj)
        )

    def _fused(
        self, xz: Tensor, conv_state: Tensor | None, recurrent_state: Tensor | None, lengths: Tensor | None
    ) -> tuple[Tensor, Tensor, Tensor]:
        convolution = (self.conv1d.weight.squeeze(1), self.conv1d.bias)
        projections = (self.x_proj.weight, self.dt_proj.weight, self.dt_proj.bias)
        scan = (-torch.exp(self.A_log.float()), self.D.float())
        return mamba_inner(xz, *convolution, *projections, *scan, conv_state, recurrent_state, lengths)

    def _composed(
        self, xz: Tensor, conv_state: Tensor | None, recurrent_state: Tensor | None, lengths: Tensor | None
    ) -> tuple[Tensor, Tensor, Tensor]:
        x, gate = xz.chunk(2, dim=-1)  # (b, l, d) each
        if self._convolution_is_plain():
            weight, bias = self.conv1d.weight.squeeze(1), self.conv1d.bias
            x, conv_state = causal_convolution(x, weight, bias, conv_state, lengths)
        else:
            x, conv_state = self._convolve(x, conv_state, lengths)
        rank, size = self.time_step_rank, self.ssm_state_size
        dt, B, C = torch.split(project(self.x_proj, x), [rank, size, size], dim=-1)
        A = -torch.exp(self.A_log.float())
        y, recurrent_state = selective_scan(
            x, project(self.dt_proj, dt), A, B, C, self.D, gate, recurrent_state, lengths
        )
        return y, conv_state, recurrent_state

    def _convolution_is_plain(self) -> bool:
        act, conv1d = self._modules["act"], self._modules["conv1d"]
        return (is_plain(act, SiLUActivation) or is_plain(act, nn.SiLU)) and is_plain(conv1d, nn.Conv1d)

    def _convolve(self, x: Tensor, conv_state: Tensor | None, lengths: Tensor | None) -> tuple[Tensor, Tensor]:
        """What `causal_convolution` gives, by calling the modules, on any device."""
        # The module pads on both sides: what stands behind the last input is cut off.
        y, last = convolve_from_state(
            lambda window: self.conv1d(window)[:, :, : window.shape[2]], self.conv_kernel_size, x, conv_state, lengths
        )
        return self.act(y), last


class ToolMambaBlock(MambaBlock):
    def __init__(self, config: ToolMambaConfig, layer_idx: int) -> None:
        super().__init__(config, layer_idx)
        self.norm = ToolMambaNorm(config.hidden_size, eps=config.layer_norm_epsilon)
        self.mixer = ToolMambaMixer(config, layer_idx, initialize_mixer_weights=False)


class ToolMambaModel(MambaModel):
    """The backbone. Padding and the recurrent state are handled here, so every head and loss gets them right."""

    config_class = ToolMambaConfig
    _no_split_modules = ["ToolMambaBlock"]

    def __init__(self, config: ToolMambaConfig) -> None:
        super().__init__(config)
        self.layers = nn.ModuleList(ToolMambaBlock(config, index) for index in range(config.num_hidden_layers))
        self.norm_f = ToolMambaNorm(config.hidden_size, eps=config.layer_norm_epsilon)
        self.post_init()

    @can_return_tuple
    def forward(
        self,
        input_ids: Tensor | None = None,
        inputs_embeds: Tensor | None = None,
        cache_params: MambaState | None = None,
        use_cache: bool | None = None,
        attention_mask: Tensor | None = None,
        **kwargs: Any,
    ) -> tuple | MambaOutput:
        """Runs the layers from `cache_params`, which then holds the state after each row's last real token.

        Args:
            input_ids: (b, l), or inputs_embeds (b, l, e).
            cache_params: the state to start from; None is zeros.
            use_cache: return the state; by default so outside training.
            attention_mask: (b, l), ones for real tokens. Padding may stand left or right of a row's tokens.

        Raises:
            InputMismatchError: ids, embeddings or mask do not fit each other or the model.
            PaddingError: a row has padding between its tokens.
            StateMismatchError: `cache_params` is no state of this model and of as many rows.
        """
        rows, attention_mask = check_model_inputs(self.embeddings.weight, input_ids, inputs_embeds, attention_mask)
        cache_params, use_cache = MambaState.begin(self, cache_params, rows, use_cache)
        running = None if cache_params is None else StateInForward(cache_params)

        back = None
        if attention_mask is not None:
            # Inside, every row's tokens come first: what follows them cannot reach them, and the state stops at the
            # last.
            first, undo = tokens_first(attention_mask)
            if bool(first[:, 0].any()):  # a row is padded on the left
                inputs_embeds = gather_rows(
                    self.embeddings(input_ids) if inputs_embeds is None else inputs_embeds, first
                )
                input_ids, attention_mask, back = None, attention_mask.gather(1, first), undo
        output = super().forward(
            input_ids,
            inputs_embeds,
            cache_params=running,
            use_cache=use_cache,
            attention_mask=attention_mask,
            return_dict=True,
            **kwargs,
        )
        if running is not None and cache_params is not None:
            running.hand_over(cache_params)
            output.cache_params = cache_params if use_cache else None
        if back is not None:
            output.last_hidden_state = gather_rows(output.last_hidden_state, back)
            if output.hidden_states is not None:
                output.hidden_states = tuple(gather_rows(h, back) for h in output.hidden_states)
        return output


class ToolMambaForCausalLM(MambaForCausalLM):
    """A Mamba language model that calls tools while it generates.

    `generate` runs the tools that the config names, or those passed as `tools=`; see
    `hf_toolssm.generation.tool_loop.generate_with_tools` for its arguments and its result.
    """

    config_class = ToolMambaConfig
    _no_split_modules = ["ToolMambaBlock"]
    state_class = MambaState
    """What can be passed from one batch of training to the next."""

    rows_run_side_by_side = True
    """Rows of unequal length may follow any state in one forward, padded on either side; see `ModelRunner`."""

    def __init__(self, config: ToolMambaConfig) -> None:
        super().__init__(config)
        self.backbone = ToolMambaModel(config)
        self.post_init()

    def _prepare_cache_for_generation(self, generation_config, model_kwargs, *args, **kwargs) -> None:
        ours = generation_config.use_cache is not False and generation_config.cache_implementation is None
        if ours and model_kwargs.get("cache_params") is None:
            model_kwargs["cache_params"] = MambaState(self.config)
        super()._prepare_cache_for_generation(generation_config, model_kwargs, *args, **kwargs)

    def compiled_step(self) -> CompiledStep | None:
        """Which compiled step decodes this model; see `ops.compiled_step`."""
        return compiled_step(self, _KNOWN) if type(self) is ToolMambaForCausalLM else None

    def generate(self, inputs: Tensor | None = None, *args: Any, **kwargs: Any) -> Any:
        """Generates with tools executed; see `hf_toolssm.generation.tool_loop.generate_with_tools`.

        A model whose config names no tools, called without `tools=`, generates as any Mamba does.
        """
        if self.config.tools is None and kwargs.get("tools") is None:
            return super().generate(inputs, *args, **kwargs)
        return generate_with_tools(self, inputs, *args, **kwargs)


_KNOWN = {
    *(ToolMambaForCausalLM, ToolMambaModel, ToolMambaBlock, ToolMambaMixer),
    *(ToolMambaNorm, nn.Embedding, nn.Linear, nn.Conv1d, nn.ModuleList, SiLUActivation),
}
"""The modules that the compiled steps compute."""

AutoConfig.register(ToolMambaConfig.model_type, ToolMambaConfig)
AutoModelForCausalLM.register(ToolMambaConfig, ToolMambaForCausalLM)
register_checkpoint_conversion_mapping(ToolMambaConfig.model_type, list(NATIVE_NAMES), overwrite=True)
