"""Which compiled decode step computes all that a Mamba computes, if one does."""

from collections.abc import Collection
from typing import Any, Literal

import torch
from torch import nn

from hf_toolssm.ops.plain_modules import is_plain

CompiledStep = Literal["fused", "streamed", "graphed"]
"""All layers of all rows in one call on a CPU; layer by layer on a CPU; a graph on a GPU."""

FUSED_PARAMETERS = 2_000_000
"""The largest model whose whole step is one call: weights are read once per row, so they must stay in the cache."""


def compiled_step(model: Any, known: Collection[type[nn.Module]]) -> CompiledStep | None:
    """The fastest step that computes what the model's forward does; None where only the forward itself will do.

    Args:
        model: a Mamba for causal language modelling.
        known: the classes of modules that the compiled steps compute. Anything else among the model's modules (an
            adapter, a quantized layer) computes something that they do not know.
    """
    if model.training or model.config.hidden_act != "silu":
        return None
    if not all(type(module) in known and is_plain(module, type(module)) for module in model.modules()):
        return None
    layers, head = model.backbone.layers, model.lm_head
    if not all(_has_known_biases(block.mixer) for block in layers) or head.bias is not None:
        return None
    if len(layers) != model.config.num_hidden_layers or head.weight.shape != model.backbone.embeddings.weight.shape:
        return None  # somebody has cut the model or changed its head
    if not all(
        weight.dtype in (torch.float32, torch.bfloat16) and weight.device == model.device and weight.is_contiguous()
        for weight in model.parameters()
    ):
        return None
    if model.device.type == "cpu":
        return "fused" if model.num_parameters() <= FUSED_PARAMETERS else "streamed"
    return "graphed" if model.device.type == "cuda" else None


def _has_known_biases(mixer: Any) -> bool:
    projections = (mixer.in_proj.bias is not None, mixer.out_proj.bias is not None)
    inside = (mixer.conv1d.bias is not None, mixer.x_proj.bias is None, mixer.dt_proj.bias is not None)
    return projections == (mixer.use_bias,) * 2 and inside == (mixer.use_conv_bias, True, True)
