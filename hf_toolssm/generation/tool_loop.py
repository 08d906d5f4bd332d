"""`generate` with tools executed, for any causal language model: transformers' interface to a `Session`."""

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor
from transformers import PreTrainedTokenizerBase

from hf_toolssm.cache.model_state import ModelState
from hf_toolssm.cache.recurrent_state import RecurrentState
from hf_toolssm.errors import StateMismatchError
from hf_toolssm.generation.decoder import StepWeights
from hf_toolssm.generation.interface import ToolGenerateOutput, generate_rows, one_of
from hf_toolssm.generation.session import Session
from hf_toolssm.protocol.given_tools import GivenTool


def generate_with_tools(
    model: Any,
    inputs: Tensor | None = None,
    *args: Any,
    input_ids: Tensor | None = None,
    attention_mask: Tensor | None = None,
    tools: Sequence[GivenTool] | None = None,
    tokenizer: PreTrainedTokenizerBase | None = None,
    cache_params: RecurrentState | None = None,
    step_weights: StepWeights = None,
    log_probs: bool = False,
    chat_template_kwargs: Mapping[str, Any] | None = None,
    **kwargs: Any,
) -> Tensor | ToolGenerateOutput:
    """`generate` with tools executed.

    Args:
        model: a ToolMamba, or any causal language model of transformers with a dynamic cache.
        inputs: (b, l) prompts, padded on the left; or `input_ids`.
        tools: tools, or their specs, in place of the config's: `[{"name": "pointer_memory", "max_pointers": 3}]`.
        tokenizer: for `answers`, for tools that read text, and for a model whose config knows no tool tokens; by
            default, for the first two of these, the one beside the checkpoint.
        cache_params: what a recurrent model of ours remembers before the prompts; the tools start on the prompts
            alone. It stays as it is.
        step_weights: see `Session.start`.
        log_probs: whether the output says them, which takes a step a token.
        chat_template_kwargs: the options with which the tokenizer's chat template wrote the prompts, where it says how
            calls are written (see `generation.protocols`).
        args, kwargs: the options of `generate`, whether passed here, in `generation_config=` or set on
            `model.generation_config`: sampling, penalties, lengths, logits processors, stopping criteria (a row that
            one of them stops is not complete), a streamer (it receives every token of the running rows, observations
            included; transformers' own take one row only). `generation.options` lists those that hold while tools
            run; where no tool is called they give the tokens that transformers gives.

    Returns:
        The sequences, or a `ToolGenerateOutput` with `return_dict_in_generate=True`.

    Raises:
        EmptyProblemError: a prompt has no token.
        InvalidProblemError: a prompt holds a symbol that the tokenizer does not know.
        PaddingError: a prompt is padded on the right, or on the left without an attention mask.
        StateMismatchError: `cache_params` is no state of this model, or has not one row per prompt.
        UnsafeToolError: the config names a tool with side effects, and the caller did not pass it.
        UnsupportedArchitectureError: the model's memory cannot be carried exactly.
        UnsupportedGenerationError: an option that does not hold while tools run.
        UnknownToolError: a tool's name or option does not exist.
        MissingToolTokensError: the model has no tokens for these tools.
    """
    input_ids = one_of(inputs, input_ids)
    if cache_params is not None and input_ids is not None:
        state_class = getattr(type(model), "state_class", None)
        if state_class is None:
            raise StateMismatchError(f"{type(model).__name__} takes no cache_params: leave them out")
        state_class.check(cache_params, model.config, input_ids.shape[0])

    def start(prompts: list[list[int]], **options: Any) -> Session:
        state = _state_of_rows(cache_params, len(prompts))
        return Session.start(model, prompts, state=state, step_weights=step_weights, **options)

    return generate_rows(
        model,
        start,
        input_ids,
        *args,
        attention_mask=attention_mask,
        tools=tools,
        tokenizer=tokenizer,
        log_probs=log_probs,
        chat_template_kwargs=chat_template_kwargs,
        **kwargs,
    )


def _state_of_rows(state: RecurrentState | None, rows: int) -> ModelState | None:
    """The caller's state with one row for every sample of a prompt; it has no logits that anything would follow."""
    if state is None or state.batch_size is None:
        return None
    copies = torch.arange(state.batch_size, device="cpu").repeat_interleave(rows // state.batch_size)
    return ModelState(state.select(copies), [0] * rows, torch.empty(rows, 0, device="cpu"))
