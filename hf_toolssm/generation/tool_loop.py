"""`generate` with tools executed: the model writes commands, the tools answer, the recurrent state goes on.

Every step feeds each row one token: the next one of a pending observation, or else the one that the model chose.
Rows of a batch are therefore free to be in different phases, and no row is ever padded in the middle. A row that ends
leaves the batch with its state as it is after its last token.
"""

import functools
import logging
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence
from transformers import (
    AutoTokenizer,
    EosTokenCriteria,
    GenerationConfig,
    LogitsProcessorList,
    MaxLengthCriteria,
    PreTrainedTokenizerBase,
    StoppingCriteriaList,
)
from transformers.generation.streamers import BaseStreamer
from transformers.utils import ModelOutput

from hf_toolssm.errors import (
    EmptyProblemError,
    InvalidProblemError,
    PaddingError,
    TokenizerNeededError,
    UnsupportedGenerationError,
)
from hf_toolssm.generation.decoder import make_decoder
from hf_toolssm.generation.row import Row, TokenProtocol
from hf_toolssm.models.state import MambaState
from hf_toolssm.tools import make_tool

logger = logging.getLogger(__name__)

PREFILL_PIECE = 8_192
"""Prompt tokens that one forward takes; a longer prompt goes in pieces, so that memory does not grow with it."""


class FinishedRow(NamedTuple):
    """A row that has ended, its tokens (l,), which of them a tool wrote (l,), and its state."""

    row: Row
    ids: Tensor
    observed: Tensor
    state: MambaState


@dataclass
class ToolGenerateOutput(ModelOutput):
    """What `generate(..., return_dict_in_generate=True)` returns when tools run.

    Attributes:
        sequences: (b, l) prompt, what the model wrote and what the tools answered; padded after a row's end.
        observation_mask: (b, l) true where a tool wrote the token.
        answer_ids: per row, the tokens after the answer marker.
        tool_calls: per row, how many commands were carried out.
        complete: per row, whether the model wrote an answer and then the end token. False when `max_new_tokens`, a
            stopping criterion or a tool error ended the row: its answer may be cut off.
        errors: per row, the command that a tool refused and why; None where there was none.
        cache_params: the state after every row's last token; feed it only the tokens that follow.
    """

    sequences: Tensor | None = None
    observation_mask: Tensor | None = None
    answer_ids: list[list[int]] | None = None
    tool_calls: list[int] | None = None
    complete: list[bool] | None = None
    errors: list[str | None] | None = None
    cache_params: MambaState | None = None

    @property
    def answers(self) -> list[str]:
        """The text of every row's answer.

        Raises:
            TokenizerNeededError: `generate` had no tokenizer.
        """
        tokenizer: PreTrainedTokenizerBase | None = getattr(self, "tokenizer", None)
        if tokenizer is None:
            raise TokenizerNeededError(
                "answers are text and no tokenizer is known: call generate(tokenizer=...), load the model from a "
                "folder that holds its tokenizer, or read answer_ids"
            )
        return tokenizer.batch_decode(self.answer_ids, skip_special_tokens=True)


def generate_with_tools(
    model,
    stock_generate: Callable[..., Any],
    inputs: Tensor | None = None,
    *args: Any,
    input_ids: Tensor | None = None,
    attention_mask: Tensor | None = None,
    tools: Sequence[Mapping[str, Any]] | None = None,
    tokenizer: PreTrainedTokenizerBase | None = None,
    streamer: BaseStreamer | None = None,
    stopping_criteria: StoppingCriteriaList | None = None,
    **kwargs: Any,
) -> Tensor | ToolGenerateOutput:
    """Checks the prompt and hands the loop to transformers as its `custom_generate`.

    Args:
        model: a ToolMamba.
        stock_generate: transformers' `generate` of that model.
        inputs: (b, l) prompts, padded on the left; or `input_ids`.
        tools: tool specs in place of the config's, for example `[{"name": "pointer_memory", "max_pointers": 3}]`.
        tokenizer: for `answers`; by default the one beside the checkpoint.
        streamer: receives every token of the running rows, observations included (transformers' own streamers take
            one row only).
        stopping_criteria: asked after every token; a row that one of them stops is not complete.
        kwargs: everything that `generate` takes: greedy or sampling options, `cache_params` to go on from a state, ...

    Returns:
        The sequences, or a `ToolGenerateOutput` with `return_dict_in_generate=True`.

    Raises:
        EmptyProblemError: a prompt has no token.
        InvalidProblemError: a prompt holds a symbol that the tokenizer does not know.
        PaddingError: a prompt is padded on the right.
        UnsupportedGenerationError: an option that has no meaning while tools run.
        UnknownToolError: a tool's name or option does not exist.
        MissingToolTokensError: the model has no tokens for these tools.
    """
    input_ids = inputs if input_ids is None else input_ids
    _check_prompt(model, input_ids, attention_mask)
    if "custom_generate" in kwargs:
        raise UnsupportedGenerationError("custom_generate would replace the tool loop: leave it out")
    if "stop_strings" in kwargs:  # transformers' criterion cannot read a vocabulary of single cells
        raise UnsupportedGenerationError("stop_strings is not supported while tools run: pass a StoppingCriteria")
    tokenizer = tokenizer if tokenizer is not None else _tokenizer_beside(model)
    config = model.config
    loop = functools.partial(
        _run_tool_loop,
        tools=config.make_tools() if tools is None else [make_tool(spec) for spec in tools],
        tokenizer=tokenizer,
        streamer=streamer,
    )
    return stock_generate(
        input_ids,
        *args,
        attention_mask=attention_mask,
        stopping_criteria=stopping_criteria,
        streamer=streamer,
        custom_generate=loop,
        **kwargs,
    )


def _check_prompt(model, input_ids: Tensor | None, attention_mask: Tensor | None) -> None:
    if input_ids is None:
        raise EmptyProblemError("generate needs input_ids: the problem that the tools will work on")
    if input_ids.shape[1] == 0 or (attention_mask is not None and bool((attention_mask.sum(1) == 0).any())):
        raise EmptyProblemError("a prompt has no token: state a problem of at least one cell")
    pad = model.config.pad_token_id
    padded = input_ids[:, -1] == (-1 if pad is None else pad) if attention_mask is None else attention_mask[:, -1] == 0
    if bool(padded.any()):
        raise PaddingError(
            "a prompt is padded on the right, which would be read as part of the problem: "
            "set tokenizer.padding_side = 'left' and tokenize again"
        )
    unknown = model.config.unknown_token_id
    if unknown is not None and bool((input_ids == unknown).any()):
        row = int((input_ids == unknown).any(1).nonzero()[0])
        raise InvalidProblemError(
            f"the prompt of row {row} holds a symbol that the tokenizer does not know: write the problem with the "
            "symbols that the model was trained on"
        )


def _tokenizer_beside(model) -> PreTrainedTokenizerBase | None:
    """The tokenizer of the checkpoint that the model was loaded from, read once."""
    if not hasattr(model, "_tool_tokenizer"):
        try:
            found = AutoTokenizer.from_pretrained(model.name_or_path) if model.name_or_path else None
        except (OSError, ValueError):  # no tokenizer there: `answers` says so by name when it is asked for
            found = None
        model._tool_tokenizer = found
    return model._tool_tokenizer


def _run_tool_loop(
    model,
    input_ids: Tensor,
    logits_processor: LogitsProcessorList,
    stopping_criteria: StoppingCriteriaList,
    generation_config: GenerationConfig,
    *,
    tools: Sequence[Any],
    tokenizer: PreTrainedTokenizerBase | None,
    streamer: BaseStreamer | None,
    **model_kwargs: Any,  # transformers would take away what the signature names
) -> Tensor | ToolGenerateOutput:
    _refuse_unsupported(generation_config)
    attention_mask: Tensor | None = model_kwargs.get("attention_mask")
    end = generation_config.eos_token_id
    end_ids = end if isinstance(end, list) else [end]
    protocol = TokenProtocol(tools, model.config.tool_token_ids or {}, end_ids)
    # The end of a row is decided where observations are known, and the length where the buffer is.
    criteria = [c for c in stopping_criteria if not isinstance(c, (EosTokenCriteria, MaxLengthCriteria))]

    mask = torch.ones_like(input_ids) if attention_mask is None else attention_mask
    rows = [Row.start(i, ids[keep.bool()].tolist(), protocol) for i, (ids, keep) in enumerate(zip(input_ids, mask))]
    state: MambaState = model_kwargs["cache_params"].clone()  # the caller's state stays as it was
    logits = _prefill(model, input_ids, mask, state)
    decoder = make_decoder(model, state)
    tokens = _TokenBuffer(input_ids)
    done: list[FinishedRow] = []

    while rows:
        scores = logits_processor(tokens.ids(), logits.float()) if logits_processor else logits
        if generation_config.do_sample:
            sampled = torch.multinomial(torch.softmax(scores, dim=-1), num_samples=1)[:, 0]
        else:
            sampled = scores.argmax(-1)
        advanced = [row.advance(token) for row, token in zip(rows, sampled.tolist())]
        next_ids = [token for token, _ in advanced]
        tokens.append(next_ids, [observed for _, observed in advanced])
        if streamer is not None:
            streamer.put(torch.tensor(next_ids))
        stop = [row.finished or tokens.length >= generation_config.max_length for row in rows]
        for criterion in criteria:
            stop = [a or bool(b) for a, b in zip(stop, criterion(tokens.ids(), scores))]
        logits = decoder.step(next_ids)
        if any(stop):
            done += [FinishedRow(rows[i], *tokens.row(i), decoder.state(i)) for i, ended in enumerate(stop) if ended]
            keep = [i for i, ended in enumerate(stop) if not ended]
            rows, logits = [rows[i] for i in keep], logits[keep]
            decoder.keep(keep)
            tokens.keep(keep)
    if streamer is not None:
        streamer.end()
    return _collect(done, generation_config, tokenizer)


def _refuse_unsupported(config: GenerationConfig) -> None:
    unsupported = {
        "num_beams": (config.num_beams or 1) > 1,
        "output_scores": config.output_scores,
        "output_logits": config.output_logits,
        "output_attentions": config.output_attentions,
        "output_hidden_states": config.output_hidden_states,
        "use_cache=False": config.use_cache is False,
    }
    for name, asked in unsupported.items():
        if asked:
            raise UnsupportedGenerationError(f"{name} is not supported while tools run: leave it out")


def _prefill(model, input_ids: Tensor, mask: Tensor, state: MambaState) -> Tensor:
    """Feeds the prompts and returns the logits (b, v) of the token that follows."""
    for ids, part in zip(input_ids.split(PREFILL_PIECE, dim=1), mask.split(PREFILL_PIECE, dim=1)):
        output = model(ids, attention_mask=part, cache_params=state, use_cache=True, logits_to_keep=1)
    return output.logits[:, -1]


class _TokenBuffer:
    """Tokens of the running rows and who wrote them. It grows by doubling: a step costs the same at any length."""

    def __init__(self, prompt: Tensor) -> None:
        self.length = prompt.shape[1]
        self._device = prompt.device
        self._ids = np.pad(prompt.cpu().numpy(), ((0, 0), (0, self.length + 256)))
        self._observed = np.zeros(self._ids.shape, np.bool_)

    def ids(self) -> Tensor:
        """(b, l) on the prompt's device; without a copy on a CPU."""
        return torch.from_numpy(self._ids[:, : self.length]).to(self._device)

    def row(self, index: int) -> tuple[Tensor, Tensor]:
        """The tokens of one row, and which of them a tool wrote."""
        ids, observed = (values[index, : self.length].copy() for values in (self._ids, self._observed))
        return torch.from_numpy(ids).to(self._device), torch.from_numpy(observed).to(self._device)

    def append(self, ids: list[int], observed: list[bool]) -> None:
        if self.length == self._ids.shape[1]:
            self._ids, self._observed = (np.pad(v, ((0, 0), (0, self.length))) for v in (self._ids, self._observed))
        self._ids[:, self.length] = ids
        self._observed[:, self.length] = observed
        self.length += 1

    def keep(self, rows: list[int]) -> None:
        self._ids, self._observed = self._ids[rows], self._observed[rows]


def _collect(
    done: list[FinishedRow], config: GenerationConfig, tokenizer: PreTrainedTokenizerBase | None
) -> Tensor | ToolGenerateOutput:
    done = sorted(done, key=lambda finished: finished.row.index)
    rows = [finished.row for finished in done]
    pad_id = int(config._pad_token_tensor)
    sequences = pad_sequence([finished.ids for finished in done], batch_first=True, padding_value=pad_id)
    if not config.return_dict_in_generate:
        _warn_of_cut_rows(rows, config)
        return sequences
    output = ToolGenerateOutput(
        sequences=sequences,
        observation_mask=pad_sequence([finished.observed for finished in done], batch_first=True),
        answer_ids=[row.answer for row in rows],
        tool_calls=[row.tool_calls for row in rows],
        complete=[row.complete for row in rows],
        errors=[row.error for row in rows],
        cache_params=MambaState.concatenate([finished.state for finished in done]),
    )
    output.tokenizer = tokenizer
    return output


def _warn_of_cut_rows(rows: Sequence[Row], config: GenerationConfig) -> None:
    """For callers that see bare sequences only; a `ToolGenerateOutput` says it in `complete` and `errors`."""
    cut = [row for row in rows if not row.complete]
    if cut:
        why = cut[0].error or f"the limit was {config.max_length} tokens, prompt included: raise max_new_tokens"
        logger.warning("%d of %d rows ended before their answer was complete (%s)", len(cut), len(rows), why)
