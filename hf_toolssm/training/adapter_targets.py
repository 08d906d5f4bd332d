"""Which layers an adapter may stand on: the linear layers that a forward calls.

A fused kernel reads a layer's weights and never calls it. An adapter there would not train, and merging it would
change the model all the same. Which layers these are depends on the architecture, the kernels at hand and the mode, so
it is not looked up by name but seen in one forward of the model, as it is trained and where it is. Where layers share
one weight, as the blocks that a Zamba repeats, the adapter of each would be merged into all of them.
"""

import re
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import nn
from torch.nn.modules.module import register_module_forward_pre_hook
from transformers import PreTrainedModel
from transformers.pytorch_utils import Conv1D

from hf_toolssm.errors import UnsafeTrainingError
from hf_toolssm.ops.plain_modules import input_device

_LINEAR = (nn.Linear, Conv1D)
"""What PEFT merges into; the second is GPT-2's linear layer."""

_REFUSED_BY_PEFT = dict.fromkeys(("mamba", "mamba2", "falcon_mamba", "falcon_h1", "nemotron_h"), "out_proj")
"""By model type, a name that PEFT takes for a layer that a fused kernel reads, whether one does or not."""

_LAYER = re.compile(r"(.*?\.\d+)\.")


def adapter_targets(model: PreTrainedModel) -> list[str]:
    """The names of the layers that a LoRA is put on: all linear ones that are called, with a weight of their own, but
    for the head and what PEFT refuses.

    Args:
        model: on the device where it will be trained, because the kernels there decide.

    Raises:
        UnsafeTrainingError: there is none.
    """
    is_adaptable = _adaptable_in(model)
    refused = _REFUSED_BY_PEFT.get(model.config.model_type)
    linear = [name for name, module in model.named_modules() if isinstance(module, _LINEAR) and is_adaptable(module)]
    found = [name for name in linear if name.rpartition(".")[2] != refused]
    if not found:
        raise UnsafeTrainingError(
            f"a {type(model).__name__} calls no linear layer that a LoRA could be put on: train all weights"
        )
    return found


def check_adapters(model: Any) -> None:
    """Raises UnsafeTrainingError where an adapter would not train, or not be merged exactly.

    Args:
        model: with adapters, PEFT's wrapper or not, or without.
    """
    adapted = {name: module for name, module in model.named_modules() if hasattr(module, "lora_A")}
    if not adapted:
        return
    is_adaptable = _adaptable_in(model)
    for name, module in adapted.items():
        if not (isinstance(module.get_base_layer(), _LINEAR) and is_adaptable(module)):
            raise UnsafeTrainingError(
                f"a LoRA on {name} would not train or not merge: leave out target_modules, and all layers that can "
                "have one get it"
            )


def what_trains(model: nn.Module) -> str:
    """In words, how many of a model's layers and parameters train."""
    sizes = {name: (parameter.numel(), parameter.requires_grad) for name, parameter in model.named_parameters()}
    total, trained = sum(size for size, _ in sizes.values()), sum(size for size, trains in sizes.values() if trains)
    layers = {found[1]: False for name in sizes if (found := _LAYER.match(name))}
    for name, (_, trains) in sizes.items():
        if trains and (found := _LAYER.match(name)):
            layers[found[1]] = True
    return (
        f"{trained:,} of {total:,} parameters ({trained / total:.2%}) train, in {sum(layers.values())} of "
        f"{len(layers)} layers"
    )


def _adaptable_in(model: Any) -> Callable[[Any], bool]:
    """Runs the model once, and says of modules whether one is called, its weight nobody else's, and not the head."""
    called, head = _called(model), model.get_output_embeddings()
    owners = Counter(id(weight) for module in model.modules() for weight in module._parameters.values())

    def is_adaptable(module: Any) -> bool:
        return module in called and module is not head and owners[id(module.weight)] == 1

    return is_adaptable


def _called(model: Any) -> set[nn.Module]:
    """The modules that a forward of a few tokens calls, in the mode that training has."""
    seen: set[nn.Module] = set()
    ids = torch.zeros(1, 4, dtype=torch.long, device=input_device(model))
    with _training(model), torch.random.fork_rng([ids.device] if ids.is_cuda else []):
        handle = register_module_forward_pre_hook(lambda module, _: seen.add(module))
        try:
            with torch.no_grad():
                model(input_ids=ids, use_cache=False)
        finally:
            handle.remove()
    return seen


@contextmanager
def _training(model: nn.Module) -> Iterator[None]:
    modes = {module: module.training for module in model.modules()}
    model.train()
    try:
        yield
    finally:
        for module, mode in modes.items():
            module.training = mode
