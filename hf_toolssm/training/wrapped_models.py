"""What other libraries put around a model while it trains: PEFT's wrapper, TRL's forward, accelerate's."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from torch import nn


def own_models(model: Any) -> list[Any]:
    """The causal language models in it that have a state to pass on."""
    modules = model.modules() if isinstance(model, nn.Module) else ()  # a name is loaded by TRL
    return [module for module in modules if hasattr(type(module), "state_class")]


def own_forwards(model: Any) -> dict[Any, Any]:
    """Of each of them, the forward that stands on the module itself; None where it is its class's."""
    return {module: vars(module).get("forward") for module in own_models(model)}


def take_off_forwards(model: Any, before: dict[Any, Any]) -> None:
    """Takes off TRL's, without which `ToolSFTTrainer.compute_loss` does, and puts back what was there `before`."""
    for module in own_models(model):
        del module.forward
        if before.get(module) is not None:
            module.forward = before[module]


def causal_lm_in(model: Any) -> Any:
    """The causal language model in PEFT's wrapper, or the model itself."""
    return model.get_base_model() if hasattr(model, "get_base_model") else model


def give_head_a_bias(causal_lm: Any) -> None:
    """TRL's loss asks the head for one, and where its rows train, PEFT's wrapper of it has none."""
    head = causal_lm.get_output_embeddings()
    if not hasattr(head, "bias"):
        head.bias = None


def move(model: Any, device: Any) -> None:
    """Moves a model to where it will be trained; one that is quantized or spread over devices stays."""
    stays = getattr(model, "is_quantized", False) or getattr(model, "hf_device_map", None) is not None
    if isinstance(model, nn.Module) and not stays:
        model.to(device)


@contextmanager
def as_saved(model: Any) -> Iterator[None]:
    """Takes off what accelerate puts on a model for mixed precision, which is no part of what is saved."""
    mixed = vars(model).pop("forward", None) if hasattr(model, "_original_forward") else None
    try:
        yield
    finally:
        if mixed is not None:
            model.forward = mixed
