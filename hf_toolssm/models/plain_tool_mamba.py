"""A ToolMamba that needs torch and transformers only: what runs a published model where hf_toolssm is not installed.

`save_pretrained` puts this file and those that it imports beside the weights (see `models.remote_code`), so that
`AutoModelForCausalLM.from_pretrained(..., trust_remote_code=True)` finds it. The rows, the tools and the interface are
hf_toolssm's own; the model is transformers' Mamba.
"""

from collections.abc import Mapping, Sequence
from functools import partial
from typing import Any

import torch
from huggingface_hub.dataclasses import strict
from torch import Tensor
from transformers import MambaConfig, MambaForCausalLM

from hf_toolssm.errors import UnsupportedGenerationError
from hf_toolssm.generation.command_row import make_command_protocol
from hf_toolssm.generation.events import Event, EventSink
from hf_toolssm.generation.interface import ToolGenerateOutput, generate_rows, one_of
from hf_toolssm.generation.row import Row
from hf_toolssm.generation.sampler import Sampler
from hf_toolssm.generation.token_protocol import check_prompts, tools_of_session
from hf_toolssm.models.tool_config import ToolFields


@strict
class PlainToolMambaConfig(ToolFields, MambaConfig):
    """A `MambaConfig` that names its tools."""

    model_type = "tool_mamba"


class PlainToolMambaForCausalLM(MambaForCausalLM):
    """transformers' Mamba, whose `generate` runs the tools that its config names, or those passed as `tools=`."""

    config_class = PlainToolMambaConfig

    def generate(
        self, inputs: Tensor | None = None, *args: Any, input_ids: Tensor | None = None, **kwargs: Any
    ) -> Tensor | ToolGenerateOutput:
        """Generates the tokens that hf_toolssm's ToolMamba does (greedily, or one row); takes and returns the same.

        A session that can be saved and goes on, a state to start from and rounded weights need the package.
        """
        input_ids = one_of(inputs, input_ids)
        if self.config.tools is None and kwargs.get("tools") is None:
            return super().generate(input_ids, *args, **kwargs)
        for name in ("cache_params", "step_weights"):
            if kwargs.pop(name, None) is not None:
                raise UnsupportedGenerationError(f"{name} needs the package: pip install hf_toolssm, and load again")
        return generate_rows(self, partial(PlainRows.start, self), input_ids, *args, **kwargs)


class PlainRows:
    """Rows that generate side by side, one token of each row a step.

    Attributes:
        rows: see `Row`.
    """

    def __init__(self, model: MambaForCausalLM, rows: list[Row], prompts: Sequence[Sequence[int]]) -> None:
        self._model = model
        self._prompts = prompts
        self.rows = rows
        self.protocol = rows[0].protocol

    def __deepcopy__(self, memo: dict[int, Any]) -> "PlainRows":
        return PlainRows(self._model, [row.clone() for row in self.rows], self._prompts)

    @classmethod
    def start(
        cls,
        model: MambaForCausalLM,
        prompts: Sequence[Sequence[int]],
        *,
        tools: Sequence[Mapping[str, Any] | Any] | None,
        tokenizer: Any,
        end_ids: Sequence[int],
    ) -> "PlainRows":
        """Starts the tools on the prompts."""
        prompts = check_prompts(model, prompts)
        if model.config.use_bias and len(set(map(len, prompts))) > 1:
            raise UnsupportedGenerationError(
                "with use_bias a padded prompt would be read as another one: give prompts of one length, or install "
                "hf_toolssm"
            )
        protocol = make_command_protocol(model, tools_of_session(model, tools, tokenizer), tokenizer, end_ids)
        protocol.check_problems(prompts)
        return cls(model, [protocol.start_row(prompt) for prompt in prompts], prompts)

    @torch.inference_mode()
    def run(self, max_new_tokens: int, *, sink: EventSink, sampler: Sampler | None, log_probs: bool) -> int:
        """Generates until every row has ended, has taken `max_new_tokens` tokens, or was stopped.

        Raises:
            UnsupportedGenerationError: log-probabilities are asked for.
        """
        if log_probs:
            raise UnsupportedGenerationError("log_probs needs the package: install hf_toolssm")
        left = [max_new_tokens] * len(self.rows)
        # Padding on the left, and masked, leaves the state as it is of a Mamba whose projections have no bias.
        width = max(map(len, self._prompts))
        tokens = [[0] * (width - len(prompt)) + list(prompt) for prompt in self._prompts]
        mask = [[0] * (width - len(prompt)) + [1] * len(prompt) for prompt in self._prompts]
        output = self._feed(tokens, None, mask)
        while writing := [i for i, row in enumerate(self.rows) if left[i] > 0 and not row.finished]:
            logits = output.logits[:, -1].float()[writing]
            choices = logits.argmax(-1).tolist() if sampler is None else sampler.choose(writing, logits)
            next_tokens, events = [0] * len(self.rows), []  # a row that has ended reads on, and nothing looks at it
            for i, choice in zip(writing, choices):
                row = self.rows[i]
                next_tokens[i], writer = row.advance(choice)
                events.append(Event(i, row.length, [next_tokens[i]], bytes([writer])))
                row.length += 1
                left[i] -= 1
            for i in writing:  # their calls run side by side
                self.rows[i].wait()
            output = self._feed([[token] for token in next_tokens], output.cache_params)
            sink.take(events)
            if sampler is not None:
                for i, stop in zip(writing, sampler.stop(writing)):
                    left[i] = 0 if stop else left[i]
        return sum(max_new_tokens - each for each in left)

    def _feed(self, tokens: list[list[int]], cache: Any, mask: list[list[int]] | None = None) -> Any:
        device = self._model.device
        return self._model(
            input_ids=torch.tensor(tokens, device=device),
            attention_mask=None if mask is None else torch.tensor(mask, device=device),
            cache_params=cache,
            use_cache=True,
        )
