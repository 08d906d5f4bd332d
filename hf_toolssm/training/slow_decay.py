"""A penalty on states that decay slowly, so that a proof finds narrow bounds for them (`evaluation.certification`).

A state that keeps nearly all of itself from token to token adds up what no short context tells. Where training says
nothing about it, as within a prompt, nothing holds it back either. Where a proof does not know what a convolution has
read, as behind the last tokens of a prompt, it has to reckon with the worst: so the penalty may, too.
"""

from collections.abc import Iterator
from contextlib import contextmanager

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle

from hf_toolssm.models.modeling_tool_mamba import ToolMambaMixer

FREE = 1.0
"""A state whose step size times rate is as large, which keeps exp(-1) = 0.37 of itself, costs nothing."""


@contextmanager
def slow_decays(model: nn.Module, attention_mask: Tensor, at_worst: bool) -> Iterator[list[Tensor]]:
    """Of every layer that runs forward meanwhile, with a gradient, how slowly its states decay, at least 0.

    It is the mean, over real tokens and channels, of 1 - x / FREE where a channel's slowest state keeps exp(-x) of
    itself with x below FREE, and of 0 elsewhere. At worst, it is the mean over channels of how far a step size could
    lie below the one that costs nothing, both before the softplus, whose own slope is 0 for the smallest: whatever the
    scan reads, as long as no channel is larger than the batch's largest.

    Args:
        model: whose `ToolMambaMixer` are its layers.
        attention_mask: (b, l), of the batch that it runs on.
        at_worst: see above.
    """
    found: list[Tensor] = []
    lengths = attention_mask.sum(1, keepdim=True)

    def real(values: Tensor) -> Tensor:
        """Those (t, ...) of real tokens: wherever a batch's padding stands, the layers have a row's tokens first."""
        return values[torch.arange(values.shape[1], device=lengths.device) < lengths].float()

    def read(mixer: ToolMambaMixer, before_softplus: Tensor) -> None:
        if torch.is_grad_enabled():
            decay = F.softplus(real(before_softplus)) * mixer.A_log.float().exp().amin(1)  # (t, d)
            found.append(F.relu(1 - decay / FREE).mean())

    def read_worst(mixer: ToolMambaMixer, inputs: Tensor) -> None:
        if torch.is_grad_enabled():
            with torch.autocast(inputs.device.type, enabled=False):  # a bound is no bound in bfloat16
                largest = real(inputs.detach()).abs().amax(0)  # (d,)
                weights = mixer.dt_proj.weight.float() @ mixer.x_proj.weight.float()[: mixer.time_step_rank]
                lowest = mixer.dt_proj.bias.float() - weights.abs() @ largest
                size = FREE * (-mixer.A_log.float()).exp().amax(1)  # of a step that costs nothing
                free = size + (-torch.expm1(-size)).log()  # before the softplus
                found.append(F.relu(free - lowest).mean())

    def hook(mixer: ToolMambaMixer) -> RemovableHandle:
        if at_worst:
            return mixer.x_proj.register_forward_hook(lambda _, args, output: read_worst(mixer, args[0]))
        return mixer.dt_proj.register_forward_hook(lambda _, args, output: read(mixer, output))

    handles = [hook(mixer) for mixer in model.modules() if isinstance(mixer, ToolMambaMixer)]
    try:
        yield found
    finally:
        for handle in handles:
            handle.remove()
