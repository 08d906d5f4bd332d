"""Which modules a fast path may compute itself: those that are exactly what they seem.

Offloading, hooks, adapters, quantization, pruning and sharding act when a module is called. What reads a module's
weights instead must know that none of them is there; otherwise it calls the module.
"""

from typing import Any

import torch
from accelerate.utils.operations import ConvertOutputsToFp32
from torch import Tensor, nn
from torch.nn.modules.module import _has_any_global_hook

_ORDINARY = (Tensor, nn.Parameter)


def is_plain(module: nn.Module, kind: type[nn.Module]) -> bool:
    """Whether calling the module does nothing but what the forward of that very class does on ordinary weights."""
    if type(module) is not kind or _has_any_global_hook():
        return False
    for weight in module._parameters.values():
        if type(weight) is not nn.Parameter and weight is not None:
            return False
    if module._forward_hooks or module._forward_pre_hooks or module._backward_hooks or module._backward_pre_hooks:
        return False
    own = vars(module).get("forward")
    return own is None or (_function_behind(own) is kind.forward and own.__self__ is module)


def _function_behind(own: Any) -> Any:
    """What a forward that stands on a module itself calls.

    accelerate leaves the class's own there: when it takes a hook off again, and within autocast for mixed precision,
    which asks for fewer bits and for nothing else.
    """
    function = getattr(own, "__func__", None)
    wrapper = getattr(function, "__wrapped__", None)
    if isinstance(wrapper, ConvertOutputsToFp32):
        function = getattr(wrapper.model_forward, "__wrapped__", None)
    return function


def are_readable(*tensors: Tensor | None) -> bool:
    """Whether a CPU kernel can read these: ordinary float32 tensors in the CPU's memory; None stands for no bias."""
    for tensor in tensors:
        if tensor is not None and not (
            type(tensor) in _ORDINARY
            and tensor.is_cpu
            and tensor.dtype is torch.float32
            and tensor.layout is torch.strided
        ):
            return False
    return True


def input_device(model: nn.Module) -> torch.device:
    """Where a model takes its input ids; its first weight says so, unless that one is offloaded."""
    return next((weight.device for weight in model.parameters() if not weight.is_meta), torch.device("cpu"))
