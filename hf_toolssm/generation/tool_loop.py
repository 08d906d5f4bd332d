"""`generate` with tools executed: the model writes commands, the tools answer, the recurrent state goes on.

Every step feeds each row one token: the next one of a pending observation, or else the one that the model chose.
Rows of a batch are therefore free to be in different phases, and no row is ever padded in the middle. A row that ends
leaves the batch with its state as it is after its last token.
"""

import functools
import logging
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor
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
    StateMismatchError,
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


@dataclass
class ToolGenerateOutput(ModelOutput):
    """What `generate(..., return_dict_in_generate=True)` returns when tools run.

    Attributes:
        sequences: (b, l) prompt, what the model wrote and what the tools answered; padded after a row's end.
        lengths: per row, how many tokens of `sequences` are not padding behind its end.
        observation_mask: (b, l) true where a tool wrote the token.
        answer_ids: per row, the tokens after the answer marker.
        tool_calls: per row, how many commands were carried out.
        complete: per row, whether the model wrote an answer and then the end token. False when `max_new_tokens`, a
            stopping criterion or a tool error ended the row: its answer may be cut off.
        errors: per row, the command that a tool refused and why; None where there was none.
        cache_params: the state after every row's last token; feed it only the tokens that follow. It is the model's
            memory, not the tools': a later `generate` starts its tools on its own prompt.
    """

    sequences: Tensor | None = None
    lengths: list[int] | None = None
    observation_mask: Tensor | None = None
    answer_ids: list[list[int]] | None = None
    tool_calls: list[int] | None = None
    complete: list[bool] | None = None
    errors: list[str | None] | None = None
    cache_params: MambaState | None = None

    @property
    def answers(self) -> list[str]:
        """The text of every row's answer, special tokens included.

        Raises:
            TokenizerNeededError: no tokenizer is known.
        """
        tokenizer = self.find_tokenizer()
        if tokenizer is None:
            raise TokenizerNeededError(
                "answers are text and no tokenizer is known: call generate(tokenizer=...), load the model from a "
                "folder that holds its tokenizer, or read answer_ids"
            )
        return tokenizer.batch_decode(self.answer_ids)


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
    **kwargs: Any,
) -> Tensor | ToolGenerateOutput:
    """`generate` of a ToolMamba: checks the prompt and hands the loop to transformers as its `custom_generate`.

    Args:
        model: a ToolMamba.
        stock_generate: transformers' `generate` of that model.
        inputs: (b, l) prompts, padded on the left; or `input_ids`.
        tools: tool specs in place of the config's, for example `[{"name": "pointer_memory", "max_pointers": 3}]`.
        tokenizer: for `answers`; by default the one beside the checkpoint.
        streamer: receives every token of the running rows, observations included (transformers' own streamers take
            one row only).
        kwargs: everything else that `generate` takes: greedy or sampling options, logits processors, stopping criteria
            (a row that one of them stops is not complete), `cache_params` to start from a state (with tools that
            start on this call's prompt), ...

    Returns:
        The sequences, or a `ToolGenerateOutput` with `return_dict_in_generate=True`.

    Raises:
        EmptyProblemError: a prompt has no token.
        InvalidProblemError: a prompt holds a symbol that the tokenizer does not know.
        PaddingError: a prompt is padded on the right, or on the left without an attention mask.
        StateMismatchError: `cache_params` is no `MambaState`, or has not one row per prompt.
        UnsupportedGenerationError: an option that has no meaning while tools run.
        UnknownToolError: a tool's name or option does not exist.
        MissingToolTokensError: the model has no tokens for these tools.
    """
    input_ids = inputs if input_ids is None else input_ids
    if input_ids is None:
        raise EmptyProblemError("generate needs input_ids: the problem that the tools will work on")
    _check_prompt(model, input_ids, attention_mask)
    _check_state(kwargs.get("cache_params"), input_ids.shape[0])
    if kwargs.pop("custom_generate", None) is not None:
        raise UnsupportedGenerationError("custom_generate would replace the tool loop: leave it out")
    if kwargs.pop("stop_strings", None) is not None:  # transformers' criterion cannot read a vocabulary of cells
        raise UnsupportedGenerationError("stop_strings is not supported while tools run: pass a StoppingCriteria")
    loop = functools.partial(
        _run_tool_loop,
        tools=model.config.make_tools() if tools is None else [make_tool(spec) for spec in tools],
        tokenizer=tokenizer,
        streamer=streamer,
    )
    return stock_generate(
        input_ids,
        *args,
        attention_mask=attention_mask,
        streamer=streamer,
        custom_generate=loop,
        **kwargs,
    )


def _check_prompt(model, input_ids: Tensor, attention_mask: Tensor | None) -> None:
    if input_ids.shape[1] == 0 or (attention_mask is not None and bool((attention_mask.sum(1) == 0).any())):
        raise EmptyProblemError("a prompt has no token: state a problem of at least one cell")
    pad = model.config.pad_token_id
    if attention_mask is None and pad is not None and bool((input_ids[:, 0] == pad).any()):
        raise PaddingError("a prompt begins with padding: pass the tokenizer's attention_mask as well")
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


def _check_state(state: Any, batch: int) -> None:
    if state is not None and not isinstance(state, MambaState):
        raise StateMismatchError(f"cache_params is a {type(state).__name__}: pass a MambaState, as forward returns it")
    if state is not None and state.batch_size not in (None, batch):
        raise StateMismatchError(
            f"cache_params has {state.batch_size} rows and there are {batch} prompts: use its select(rows)"
        )


def _tokenizer_beside(model) -> PreTrainedTokenizerBase | None:
    """The tokenizer of the checkpoint that the model was loaded from, if it knows the model's tool tokens."""
    try:
        found = AutoTokenizer.from_pretrained(model.name_or_path) if model.name_or_path else None
    except (OSError, ValueError):  # no tokenizer there: `answers` says so by name
        return None
    ids = model.config.tool_token_ids or {}
    same = found is not None and all(found.convert_tokens_to_ids(text) == ids[text] for text in ids)
    return found if same else None


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
    state = _state_of_rows(model_kwargs["cache_params"], len(rows))
    logits = _prefill(model, input_ids, mask, state)
    decoder = make_decoder(model, state)
    tokens = _TokenBuffer(input_ids, int(generation_config._pad_token_tensor))
    running = list(range(len(rows)))
    final_states: dict[int, MambaState] = {}

    while running:
        if logits_processor:
            logits = tokens.of_running(logits_processor, running, logits.float())
        if generation_config.do_sample:
            sampled = torch.multinomial(torch.softmax(logits, dim=-1), num_samples=1)[:, 0]
        else:
            sampled = logits.argmax(-1)
        advanced = [rows[i].advance(token) for i, token in zip(running, sampled.tolist())]
        next_ids = [token for token, _ in advanced]
        tokens.append(running, next_ids, [observed for _, observed in advanced])
        if streamer is not None:
            streamer.put(torch.tensor(next_ids))
        stop = [rows[i].finished or tokens.length >= generation_config.max_length for i in running]
        for criterion in criteria:
            stop = [a or bool(b) for a, b in zip(stop, tokens.of_running(criterion, running, logits))]
        logits = decoder.step(next_ids)
        if any(stop):
            for at, i in enumerate(running):
                if stop[at]:
                    rows[i].length, final_states[i] = tokens.length, decoder.state(at)
            keep = [at for at, ended in enumerate(stop) if not ended]
            running, logits = [running[at] for at in keep], logits[keep]
            decoder.keep(keep)
    if streamer is not None:
        streamer.end()
    if not generation_config.return_dict_in_generate:
        _warn_of_cut_rows(rows, generation_config)
        return tokens.ids()
    output = ToolGenerateOutput(
        sequences=tokens.ids(),
        lengths=[row.length for row in rows],
        observation_mask=tokens.observed(),
        answer_ids=[row.answer for row in rows],
        tool_calls=[row.tool_calls for row in rows],
        complete=[row.complete for row in rows],
        errors=[row.error for row in rows],
        cache_params=MambaState.concatenate([final_states[i] for i in range(len(rows))]),
    )
    output.find_tokenizer = (lambda: tokenizer) if tokenizer is not None else lambda: _tokenizer_beside(model)
    return output


def _state_of_rows(state: MambaState, rows: int) -> MambaState:
    """A copy to work on, so that the caller's state stays as it was, with one row for every sample of a prompt."""
    if state.batch_size in (None, rows):
        return state.clone()
    return state.select(torch.arange(state.batch_size).repeat_interleave(rows // state.batch_size))


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
    """The tokens of all rows and who wrote them, padded after a row's end. It grows by doubling."""

    def __init__(self, prompt: Tensor, pad_id: int) -> None:
        self.length = prompt.shape[1]
        self._device = prompt.device
        self._pad_id = pad_id
        self._ids = prompt.cpu().numpy()
        self._observed = np.zeros(self._ids.shape, np.bool_)

    def ids(self) -> Tensor:
        """(b, l) on the prompt's device; without a copy on a CPU."""
        return torch.from_numpy(self._ids[:, : self.length]).to(self._device)

    def observed(self) -> Tensor:
        """(b, l), true where a tool wrote the token."""
        return torch.from_numpy(self._observed[:, : self.length]).to(self._device)

    def append(self, rows: list[int], ids: list[int], observed: list[bool]) -> None:
        if self.length == self._ids.shape[1]:
            room = ((0, 0), (0, self.length + 256))
            self._ids = np.pad(self._ids, room, constant_values=self._pad_id)
            self._observed = np.pad(self._observed, room)
        self._ids[rows, self.length] = ids
        self._observed[rows, self.length] = observed
        self.length += 1

    def of_running(self, function: Callable[[Tensor, Tensor], Any], running: list[int], scores: Tensor) -> Tensor:
        """A processor's scores (r, v) or a criterion's verdicts (r,) on the running rows.

        Such a function sees the whole batch in its own order, as in transformers, because it may know something of
        each row; rows that have ended have scores of zero, and what it says of them is dropped.
        """
        whole = scores.new_zeros(len(self._ids), scores.shape[1])
        whole[running] = scores
        result = torch.as_tensor(function(self.ids(), whole))
        return result.expand(len(whole))[running] if result.dim() < 2 else result[running]


def _warn_of_cut_rows(rows: Sequence[Row], config: GenerationConfig) -> None:
    """For callers that see bare sequences only; a `ToolGenerateOutput` says it in `complete` and `errors`."""
    cut = [row for row in rows if not row.complete]
    if cut:
        why = cut[0].error or f"the limit was {config.max_length} tokens, prompt included: raise max_new_tokens"
        logger.warning("%d of %d rows ended before their answer was complete (%s)", len(cut), len(rows), why)
