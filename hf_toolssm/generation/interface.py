"""`generate` of transformers around rows that run tools: its arguments, its options and what it returns.

How the rows are fed is left to the caller, so that a model without this package takes and returns the same.
"""

import functools
import logging
from array import array
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
import torch
from torch import Tensor
from transformers import (
    EosTokenCriteria,
    GenerationConfig,
    GenerationMixin,
    LogitsProcessorList,
    MaxLengthCriteria,
    PreTrainedTokenizerBase,
    PreTrainedTokenizerFast,
    StoppingCriteriaList,
)
from transformers.generation.streamers import BaseStreamer
from transformers.utils import ModelOutput

from hf_toolssm.errors import (
    EmptyProblemError,
    PaddingError,
    TokenizerNeededError,
    UnsupportedGenerationError,
)
from hf_toolssm.generation.row import Row
from hf_toolssm.generation.token_protocol import check_prompts
from hf_toolssm.models.checks import check_ids, check_mask
from hf_toolssm.models.padding import tokens_first
from hf_toolssm.tools import Tool, make_tool

logger = logging.getLogger(__name__)


class Listener(Protocol):
    """Hears of every token, in order for each row."""

    def fed(self, rows: Sequence[int], tokens: Sequence[int], observed: Sequence[bool]) -> None:
        """One token of each of these rows, and whether a tool wrote it."""

    def fed_run(self, row: int, tokens: Sequence[int], observed: Sequence[bool]) -> None:
        """Several tokens of one row."""


class Steering(Protocol):
    """Chooses tokens and ends rows."""

    def choose(self, rows: Sequence[int], logits: Tensor) -> list[int]:
        """A token for each of these rows, given logits (r, v)."""

    def stop(self, rows: Sequence[int], logits: Tensor) -> list[bool]:
        """Which of these rows end now; `logits` (r, v) are those that their last tokens were chosen by."""


class RunningRows(Protocol):
    """Rows that have read their prompts."""

    rows: list[Row]

    def run(self, max_new_tokens: int, *, listener: Listener, steering: Steering | None) -> int:
        """Generates until every row has ended or has taken so many tokens; returns the number of all tokens."""


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
        session: the rows after their last token, tools included. A `Session` goes on with those that were cut, by
            `session.run()`, greedily and without the processors of this call.
    """

    sequences: Tensor | None = None
    lengths: list[int] | None = None
    observation_mask: Tensor | None = None
    answer_ids: list[list[int]] | None = None
    tool_calls: list[int] | None = None
    complete: list[bool] | None = None
    errors: list[str | None] | None = None
    session: Any = None

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


def generate_rows(
    model: Any,
    start: Callable[..., RunningRows],
    input_ids: Tensor | None,
    *args: Any,
    attention_mask: Tensor | None = None,
    tools: Sequence[Mapping[str, Any] | Tool] | None = None,
    tokenizer: PreTrainedTokenizerBase | None = None,
    streamer: BaseStreamer | None = None,
    **kwargs: Any,
) -> Tensor | ToolGenerateOutput:
    """Checks the prompts and hands the loop to transformers as its `custom_generate`.

    Args:
        model: any causal language model.
        start: starts the rows: `start(prompts, tools=..., tokenizer=..., end_ids=...)`.
        input_ids, attention_mask, tools, tokenizer, streamer, kwargs: see `tool_loop.generate_with_tools`, also for
            what is returned and raised.
    """
    if input_ids is None:
        raise EmptyProblemError("generate needs input_ids: the problem that the tools will work on")
    check_ids(input_ids)
    if attention_mask is not None:
        check_mask(input_ids.shape, attention_mask)
    _check_padding(model, input_ids, attention_mask)
    mask = torch.ones_like(input_ids) if attention_mask is None else attention_mask
    check_prompts(model, _prompts(input_ids, mask))
    for name in ("past_key_values", "inputs_embeds"):
        if kwargs.get(name) is not None:
            raise UnsupportedGenerationError(f"{name} is not supported while tools run: pass input_ids")
    if kwargs.pop("custom_generate", None) is not None:
        raise UnsupportedGenerationError("custom_generate would replace the tool loop: leave it out")
    if kwargs.pop("stop_strings", None) is not None:  # transformers' criterion cannot read a vocabulary of cells
        raise UnsupportedGenerationError("stop_strings is not supported while tools run: pass a StoppingCriteria")
    made = None if tools is None else [make_tool(spec) if isinstance(spec, Mapping) else spec for spec in tools]
    loop = functools.partial(_run_tool_loop, start=start, tools=made, tokenizer=tokenizer, streamer=streamer)
    return GenerationMixin.generate(
        model, input_ids, *args, attention_mask=attention_mask, streamer=streamer, custom_generate=loop, **kwargs
    )


def _prompts(input_ids: Tensor, mask: Tensor) -> list[list[int]]:
    return [ids[keep.bool()].tolist() for ids, keep in zip(input_ids, mask)]


def _check_padding(model: Any, input_ids: Tensor, attention_mask: Tensor | None) -> None:
    if input_ids.shape[1] == 0:
        raise EmptyProblemError("a prompt has no token: state a problem of at least one cell")
    pad = model.config.pad_token_id
    if attention_mask is None and pad is not None and bool((input_ids[:, 0] == pad).any()):
        raise PaddingError("a prompt begins with padding: pass the tokenizer's attention_mask as well")
    padded = input_ids[:, -1] == (-1 if pad is None else pad) if attention_mask is None else attention_mask[:, -1] == 0
    if bool(padded.any()) and (attention_mask is None or bool(attention_mask.any(1).all())):
        raise PaddingError(
            "a prompt is padded on the right, which would be read as part of the problem: "
            "set tokenizer.padding_side = 'left' and tokenize again"
        )
    if attention_mask is not None:
        tokens_first(attention_mask)  # refuses padding between tokens


def _tokenizer_beside(model: Any) -> PreTrainedTokenizerBase | None:
    """The tokenizer of the checkpoint that the model was loaded from, if it knows the model's tool tokens."""
    try:
        # Not AutoTokenizer: where the package is missing it would run the folder's code, of whichever revision.
        found = PreTrainedTokenizerFast.from_pretrained(model.name_or_path) if model.name_or_path else None
    except (OSError, ValueError):  # no tokenizer there: `answers` says so by name
        return None
    ids = getattr(model.config, "tool_token_ids", None) or {}
    same = found is not None and all(found.convert_tokens_to_ids(text) == ids[text] for text in ids)
    return found if same else None


def _run_tool_loop(
    model: Any,
    input_ids: Tensor,
    logits_processor: LogitsProcessorList,
    stopping_criteria: StoppingCriteriaList,
    generation_config: GenerationConfig,
    *,
    start: Callable[..., RunningRows],
    tools: Sequence[Tool] | None,
    tokenizer: PreTrainedTokenizerBase | None,
    streamer: BaseStreamer | None,
    **model_kwargs: Any,  # transformers would take away what the signature names
) -> Tensor | ToolGenerateOutput:
    _refuse_unsupported(generation_config)
    mask = model_kwargs.get("attention_mask")
    prompts = _prompts(input_ids, torch.ones_like(input_ids) if mask is None else mask)
    end = generation_config.eos_token_id
    session = start(prompts, tools=tools, tokenizer=tokenizer, end_ids=end if isinstance(end, list) else [end])
    pad = generation_config._pad_token_tensor
    tokens = _TokenBuffer(input_ids, 0 if pad is None else int(pad), streamer)
    # The end of a row is decided where observations are known, and the length by the session.
    criteria = [c for c in stopping_criteria if not isinstance(c, (EosTokenCriteria, MaxLengthCriteria))]
    steering = None
    if logits_processor or criteria or generation_config.do_sample:
        steering = _TransformersSteering(tokens, logits_processor, criteria, bool(generation_config.do_sample))
    session.run(generation_config.max_length - input_ids.shape[1], listener=tokens, steering=steering)
    if streamer is not None:
        streamer.end()
    if not generation_config.return_dict_in_generate:
        _warn_of_cut_rows(session.rows, generation_config)
        return tokens.padded()
    output = ToolGenerateOutput(
        sequences=tokens.padded(),
        lengths=tokens.lengths(),
        observation_mask=tokens.observed(),
        answer_ids=[row.answer for row in session.rows],
        tool_calls=[row.tool_calls for row in session.rows],
        complete=[row.complete for row in session.rows],
        errors=[row.error for row in session.rows],
        session=session,
    )
    output.find_tokenizer = (lambda: tokenizer) if tokenizer is not None else lambda: _tokenizer_beside(model)
    return output


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


class _TokenBuffer:
    """Listens to a session: the tokens of all rows and who wrote them."""

    def __init__(self, prompts: Tensor, pad_id: int, streamer: BaseStreamer | None) -> None:
        self._device = prompts.device
        self._pad_id = pad_id
        self._streamer = streamer
        self._ids = [array("q", prompt) for prompt in prompts.tolist()]
        self._observed = [bytearray(prompts.shape[1]) for _ in self._ids]

    def fed(self, rows: Sequence[int], tokens: Sequence[int], observed: Sequence[bool]) -> None:
        for row, token, by_tool in zip(rows, tokens, observed):
            self._ids[row].append(token)
            self._observed[row].append(by_tool)
        if self._streamer is not None:
            self._streamer.put(torch.tensor(tokens))

    def fed_run(self, row: int, tokens: Sequence[int], observed: Sequence[bool]) -> None:
        self._ids[row].extend(tokens)
        self._observed[row].extend(observed)
        if self._streamer is not None:
            for token in tokens:
                self._streamer.put(torch.tensor([token]))

    def lengths(self) -> list[int]:
        """Tokens of each row, the padding of its prompt included."""
        return [len(ids) for ids in self._ids]

    def padded(self, running: Sequence[int] = ()) -> Tensor:
        """(b, l) on the prompts' device, padded behind a row's last token, or before its first if the row goes on."""
        return self._matrix(self._ids, np.int64, self._pad_id, running)

    def observed(self) -> Tensor:
        """(b, l), true where a tool wrote the token."""
        return self._matrix(self._observed, np.uint8, 0).bool()

    def _matrix(self, rows: Sequence[Any], dtype: Any, filling: int, running: Sequence[int] = ()) -> Tensor:
        width = max(map(len, rows))
        matrix = np.full((len(rows), width), filling, dtype)
        for index, row in enumerate(rows):
            start = width - len(row) if index in running else 0
            matrix[index, start : start + len(row)] = np.frombuffer(row, dtype)
        return torch.from_numpy(matrix).to(self._device)


class _TransformersSteering:
    """Logits processors, sampling and stopping criteria of transformers.

    They see the whole batch in its own order, because one may know something of each row; rows that have ended have
    scores of zero, and what is said of them is dropped. A row that has read less than others is padded on the left.
    """

    def __init__(
        self, tokens: _TokenBuffer, processors: LogitsProcessorList, criteria: Sequence[Any], do_sample: bool
    ) -> None:
        self._tokens = tokens
        self._processors = processors
        self._criteria = criteria
        self._do_sample = do_sample

    def choose(self, rows: Sequence[int], logits: Tensor) -> list[int]:
        if self._processors:
            logits = self._ask(self._processors, rows, logits)
        if self._do_sample:
            return torch.multinomial(torch.softmax(logits, dim=-1), num_samples=1)[:, 0].tolist()
        return logits.argmax(-1).tolist()

    def stop(self, rows: Sequence[int], logits: Tensor) -> list[bool]:
        stop = [False] * len(rows)
        for criterion in self._criteria:
            stop = [a or bool(b) for a, b in zip(stop, self._ask(criterion, rows, logits))]
        return stop

    def _ask(self, function: Callable[[Tensor, Tensor], Any], rows: Sequence[int], scores: Tensor) -> Tensor:
        """A processor's scores (r, v) or a criterion's verdicts (r,) on these rows."""
        ids = self._tokens.padded(rows)
        whole = scores.new_zeros(len(ids), scores.shape[1])
        whole[list(rows)] = scores
        result = torch.as_tensor(function(ids, whole))
        return result.expand(len(whole))[list(rows)] if result.dim() < 2 else result[list(rows)]


def _warn_of_cut_rows(rows: Sequence[Row], config: GenerationConfig) -> None:
    """For callers that see bare sequences only; a `ToolGenerateOutput` says it in `complete` and `errors`."""
    cut = [row for row in rows if not row.complete]
    if cut:
        why = cut[0].error or f"the limit was {config.max_length} tokens, prompt included: raise max_new_tokens"
        logger.warning("%d of %d rows ended before their answer was complete (%s)", len(cut), len(rows), why)
