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

from hf_toolssm.models.modeling_tool_mamba import ToolMambaMixer

FREE = 1.0
"""A state whose step size times rate is as large, which keeps exp(-1) = 0.37 of itself, costs nothing."""


@contextmanager
def slow_decays(model: nn.Module, attention_mask: Tensor, at_worst: bool) -> Iterator[list[Tensor]]:
    """Of every layer that runs forward meanwhile, with a gradient, how slowly its states decay: a number from 0 to 1.

    It is the mean, over real tokens and channels, of 1 - x / FREE where a channel's slowest state keeps exp(-x) of
    itself with x below FREE, and of 0 elsewhere. At worst, it is the mean over channels alone, and x as small as any
    inputs of `dt_proj` would make it that are no larger than the batch's.

    Args:
        model: whose `ToolMambaMixer` are its layers.
        attention_mask: (b, l), of the batch that it runs on.
        at_worst: see above.
    """
    found: list[Tensor] = []
    lengths = attention_mask.sum(1, keepdim=True)

    def read(mixer: ToolMambaMixer, inputs: Tensor, before_softplus: Tensor) -> None:
        if torch.is_grad_enabled():
            # Wherever a batch's padding stands, the layers have a row's tokens first.
            real = torch.arange(before_softplus.shape[1], device=lengths.device) < lengths
            before_softplus = before_softplus[real].float()  # (t, d)
            if at_worst:
                largest = inputs.detach()[real].float().abs().amax(0)
                before_softplus = mixer.dt_proj.bias.float() - mixer.dt_proj.weight.float().abs() @ largest
            decay = F.softplus(before_softplus) * mixer.A_log.float().exp().amin(1)
            found.append(F.relu(1 - decay / FREE).mean())

    handles = [
        mixer.dt_proj.register_forward_hook(lambda _, args, output, mixer=mixer: read(mixer, args[0], output))
        for mixer in model.modules()
        if isinstance(mixer, ToolMambaMixer)
    ]
    try:
        yield found
    finally:
        for handle in handles:
            handle.remove()
