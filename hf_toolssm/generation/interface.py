"""`generate` of transformers around rows that run tools: its arguments, its options and what it returns.

How the rows are fed is left to the caller, so that a model without this package takes and returns the same.
"""

import copy
import functools
import logging
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, fields
from typing import Any, Protocol

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
    SnapshotError,
    TokenizerNeededError,
    UnsupportedGenerationError,
)
from hf_toolssm.generation.events import EventSink
from hf_toolssm.generation.options import check_options, named_options
from hf_toolssm.generation.row import Row
from hf_toolssm.generation.sampler import NOBODY, Sampler, TokenBuffer, TransformersSampler
from hf_toolssm.generation.token_protocol import TokenProtocol, check_prompts
from hf_toolssm.ops.checks import check_ids, check_mask
from hf_toolssm.ops.padding import tokens_first
from hf_toolssm.protocol.given_tools import GivenTool, make_tools
from hf_toolssm.protocol.trajectory import Trajectory, Writer
from hf_toolssm.tools import Tool, facts_of

logger = logging.getLogger(__name__)


class RunningRows(Protocol):
    """Rows that have read their prompts."""

    rows: list[Any]

    protocol: TokenProtocol

    def run(self, max_new_tokens: int, *, sink: EventSink, sampler: Sampler | None, log_probs: bool) -> int:
        """Generates until every row has ended or has taken so many tokens; returns the number of all tokens."""


@dataclass
class ToolGenerateOutput(ModelOutput):
    """What `generate(..., return_dict_in_generate=True)` returns when tools run.

    Attributes:
        sequences: (b, l) prompt, what the model wrote and what the tools answered; padded after a row's end.
        lengths: per row, how many tokens of `sequences` are not padding behind its end.
        writers: (b, l) the `Writer` of each token; 255 of padding.
        answer_ids: per row, the tokens after the answer marker.
        tool_calls: per row, how many calls were carried out.
        complete: per row, whether the model wrote an answer and then the end token. False when `max_new_tokens`, a
            stopping criterion or a tool error ended the row: its answer may be cut off.
        errors: per row, the call that a tool refused and why; None where there was none.
        log_probs, sampled_log_probs: (b, l) with `log_probs=True`, of every token that the model wrote, by its own
            distribution and by the one that it was drawn from, after temperature and processors (0 where the choice
            was greedy); nan of all others.
        messages: per row, all whole turns of model and tools, where calls are written by a chat template.
        session: the rows after their last token, tools included. A `Session` goes on with those that were cut, by
            `session.run()`, greedily and without the processors of this call. It is no part of what is pickled:
            `session.save` writes it.
        texts: what `answers` are decoded by.
    """

    sequences: Tensor | None = None
    lengths: list[int] | None = None
    writers: Tensor | None = None
    answer_ids: list[list[int]] | None = None
    tool_calls: list[int] | None = None
    complete: list[bool] | None = None
    errors: list[str | None] | None = None
    log_probs: Tensor | None = None
    sampled_log_probs: Tensor | None = None
    messages: list[list[dict[str, Any]]] | None = None
    session: Any = None
    texts: Any = None

    @property
    def answers(self) -> list[str]:
        """The text of every row's answer, special tokens included; of a chat, the content of the last turn.

        Raises:
            TokenizerNeededError: no tokenizer is known.
        """
        if self.messages is not None:
            return [row[-1]["content"] if row and row[-1]["role"] == "assistant" else "" for row in self.messages]
        return self._tokenizer("answers").batch_decode(self.answer_ids)

    @property
    def trajectories(self) -> list[Trajectory]:
        """Every row as a trajectory; what broke off is there as far as it went.

        Raises:
            TokenizerNeededError: no tokenizer is known.
            SnapshotError: this output was pickled, and lacks its session.
        """
        assert self.sequences is not None
        assert self.writers is not None
        tokenizer, protocol = self._tokenizer("trajectories"), self.session.protocol
        written = [
            (ids[by != NOBODY].tolist(), by[by != NOBODY].tolist()) for ids, by in zip(self.sequences, self.writers)
        ]
        return [protocol.trajectory(ids, writers, tokenizer) for ids, writers in written]

    @property
    def observation_mask(self) -> Tensor:
        """(b, l) true where a tool wrote the token."""
        assert self.writers is not None
        return self.writers == Writer.TOOL

    def _tokenizer(self, what: str) -> PreTrainedTokenizerBase:
        tokenizer = None if self.texts is None else self.texts.tokenizer
        if tokenizer is None:
            raise TokenizerNeededError(
                f"{what} are text and no tokenizer is known: call generate(tokenizer=...), load the model from a "
                "folder that holds its tokenizer, or read answer_ids"
            )
        return tokenizer

    def __reduce__(self) -> tuple[Any, ...]:
        return ToolGenerateOutput, tuple((self._values() | {"session": _NotPickled()}).values())

    def __copy__(self) -> "ToolGenerateOutput":
        return ToolGenerateOutput(**self._values())

    def __deepcopy__(self, memo: dict[int, Any]) -> "ToolGenerateOutput":
        return ToolGenerateOutput(**copy.deepcopy(self._values(), memo))

    def _values(self) -> dict[str, Any]:
        return {field.name: getattr(self, field.name) for field in fields(self)}


class _NotPickled:
    """In the place of a session that was not pickled with its output."""

    def __getattr__(self, name: str) -> Any:
        if name.startswith("__"):  # what Python itself asks an object for
            raise AttributeError(name)
        raise SnapshotError(
            "this output was pickled, and a session is no part of that: keep it with output.session.save(path) before "
            "and Session.load(path, model) behind"
        )


@dataclass(frozen=True)
class _TokenTexts:
    """The tokenizer that was given, or else the one of the checkpoint that the model was loaded from."""

    given: PreTrainedTokenizerBase | None
    checkpoint: str
    tool_token_ids: Mapping[str, int]

    @property
    def tokenizer(self) -> PreTrainedTokenizerBase | None:
        """None where there is none, or one that does not know the model's tool tokens."""
        if self.given is not None or not self.checkpoint:
            return self.given
        try:
            # Not AutoTokenizer: where the package is missing it would run the folder's code, of whichever revision.
            found = PreTrainedTokenizerFast.from_pretrained(self.checkpoint)
        except (OSError, ValueError):  # no tokenizer there: `answers` says so by name
            return None
        same = all(found.convert_tokens_to_ids(text) == token for text, token in self.tool_token_ids.items())
        return found if same else None


def generate_rows(
    model: Any,
    start: Callable[..., RunningRows],
    input_ids: Tensor | None,
    *args: Any,
    attention_mask: Tensor | None = None,
    tools: Sequence[GivenTool] | None = None,
    tokenizer: PreTrainedTokenizerBase | None = None,
    log_probs: bool = False,
    chat_template_kwargs: Mapping[str, Any] | None = None,
    **kwargs: Any,
) -> Tensor | ToolGenerateOutput:
    """Checks prompts and options and hands the loop to transformers as its `custom_generate`.

    Args:
        model: any causal language model.
        start: starts the rows: `start(prompts, tools=..., tokenizer=..., end_ids=...)`.
        input_ids, attention_mask, tools, tokenizer, log_probs, chat_template_kwargs, args, kwargs: see
            `tool_loop.generate_with_tools`, also for what is returned and raised.
    """
    if input_ids is None:
        raise EmptyProblemError("generate needs input_ids: the problem that the tools will work on")
    check_ids(input_ids)
    if attention_mask is not None:
        check_mask(input_ids.shape, attention_mask)
    options = named_options(model, input_ids, args, kwargs)
    config = check_options(model, options)
    _check_padding(model, config, input_ids, attention_mask)
    mask = torch.ones_like(input_ids) if attention_mask is None else attention_mask
    check_prompts(model, _prompts(input_ids, mask))
    if log_probs and not config.return_dict_in_generate:
        raise UnsupportedGenerationError("log_probs stand in the output: add return_dict_in_generate=True")
    made = None if tools is None else make_tools(tools)
    texts = _TokenTexts(tokenizer, model.name_or_path, getattr(model.config, "tool_token_ids", None) or {})
    streamer = options.get("streamer")
    if chat_template_kwargs:
        start = functools.partial(start, chat_template_kwargs=chat_template_kwargs)
    loop = functools.partial(
        _run_tool_loop, start=start, tools=made, texts=texts, streamer=streamer, log_probs=log_probs
    )
    options["custom_generate"] = loop
    return GenerationMixin.generate(model, input_ids, attention_mask=attention_mask, **options)


def one_of(inputs: Tensor | None, input_ids: Tensor | None) -> Tensor | None:
    """The prompts, which transformers takes under either name.

    Raises:
        UnsupportedGenerationError: they were given twice.
    """
    if inputs is not None and input_ids is not None:
        raise UnsupportedGenerationError("inputs and input_ids are the same argument: pass one of them")
    return inputs if input_ids is None else input_ids


def _prompts(input_ids: Tensor, mask: Tensor) -> list[list[int]]:
    return [ids[keep.bool()].tolist() for ids, keep in zip(input_ids, mask)]


def _check_padding(model: Any, config: GenerationConfig, input_ids: Tensor, attention_mask: Tensor | None) -> None:
    if input_ids.shape[1] == 0:
        raise EmptyProblemError("a prompt has no token: state a problem of at least one cell")
    pad = model.config.pad_token_id if config.pad_token_id is None else config.pad_token_id
    if attention_mask is None and pad is not None and bool((input_ids[:, 0] == pad).any()):
        raise PaddingError("a prompt begins with padding: pass the tokenizer's attention_mask as well")
    padded = input_ids[:, -1] == (-1 if pad is None else pad) if attention_mask is None else attention_mask[:, -1] == 0
    if bool(padded.any()) and (attention_mask is None or bool(attention_mask.any(1).all())):
        raise PaddingError(
            "a prompt is padded on the right, which would be read as part of the problem: "
            "set tokenizer.padding_side = 'left' and tokenize again"
        )


def _run_tool_loop(
    model: Any,
    input_ids: Tensor,
    logits_processor: LogitsProcessorList,
    stopping_criteria: StoppingCriteriaList,
    generation_config: GenerationConfig,
    *,
    start: Callable[..., RunningRows],
    tools: Sequence[Tool] | None,
    texts: "_TokenTexts",
    streamer: BaseStreamer | None,
    log_probs: bool,
    **model_kwargs: Any,  # transformers would take away what the signature names
) -> Tensor | ToolGenerateOutput:
    mask = model_kwargs.get("attention_mask")
    if mask is not None:  # the caller's, or what transformers takes for padding
        tokens_first(mask)  # refuses padding between tokens
    mask = torch.ones_like(input_ids) if mask is None else mask
    prompts = _prompts(input_ids, mask)
    # Rows end where observations are known, and at their own length, so these two are not asked. A caller's own take
    # the place of those that transformers made of its options.
    ends = [c.eos_token_id.flatten().tolist() for c in stopping_criteria if type(c) is EosTokenCriteria]
    longest = min(c.max_length for c in stopping_criteria if type(c) is MaxLengthCriteria)
    criteria = [c for c in stopping_criteria if type(c) not in (EosTokenCriteria, MaxLengthCriteria)]
    running = make_tools(getattr(model.config, "tools", None) or []) if tools is None else tools
    reads_text = any(facts_of(tool).unit == "text" for tool in running)
    tokenizer = texts.tokenizer if reads_text else texts.given
    session = start(prompts, tools=tools, tokenizer=tokenizer, end_ids=sum(ends, []))
    session.protocol.check_asked(prompts)
    pad = generation_config._pad_token_tensor
    tokens = TokenBuffer(input_ids, mask, 0 if pad is None else int(pad), streamer)
    sampler = None
    if logits_processor or criteria or generation_config.do_sample:
        sampler = TransformersSampler(tokens, logits_processor, criteria, bool(generation_config.do_sample))
    session.run(max(1, longest - input_ids.shape[1]), sink=tokens, sampler=sampler, log_probs=log_probs)
    if streamer is not None:
        streamer.end()
    if not generation_config.return_dict_in_generate:
        _warn_of_cut_rows(session.rows, longest)
        return tokens.padded()
    own, sampled = tokens.scores()
    return ToolGenerateOutput(
        sequences=tokens.padded(),
        lengths=tokens.lengths(),
        writers=tokens.written_by(),
        log_probs=own,
        sampled_log_probs=sampled,
        answer_ids=[row.answer for row in session.rows],
        tool_calls=[row.tool_calls for row in session.rows],
        complete=[row.complete for row in session.rows],
        errors=[row.error for row in session.rows],
        messages=[row.messages for row in session.rows] if hasattr(session.rows[0], "messages") else None,
        session=session,
        texts=texts,
    )


def _warn_of_cut_rows(rows: Sequence[Row], longest: int) -> None:
    """For callers that see bare sequences only; a `ToolGenerateOutput` says it in `complete` and `errors`."""
    cut = [row for row in rows if not row.complete]
    if cut:
        why = cut[0].error or f"the limit was {longest} tokens, prompt included: raise max_new_tokens"
        logger.warning("%d of %d rows ended before their answer was complete (%s)", len(cut), len(rows), why)
