"""A session: rows that generate with tools, and everything they remember, as one value."""

import copy
import math
import random
import sys
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from transformers import PreTrainedTokenizerBase

from hf_toolssm.cache.model_state import ModelState
from hf_toolssm.errors import (
    RecordingError,
    SessionRunningError,
    SessionTornError,
    StateMismatchError,
    TokenizerNeededError,
    UnsupportedGenerationError,
)
from hf_toolssm.generation.batch import Batch
from hf_toolssm.generation.compiled_loop import make_compiled_loop
from hf_toolssm.generation.decoder import StepWeights, make_decoder
from hf_toolssm.generation.decoding import HeldChoices, RowSampler, make_decoding
from hf_toolssm.generation.events import Event, EventSink
from hf_toolssm.generation.model_runner import ModelRunner, Prefill
from hf_toolssm.generation.protocols import make_protocol
from hf_toolssm.generation.recording import Recording, RecordingFile, begin_recording
from hf_toolssm.generation.row import Row
from hf_toolssm.generation.running import Running
from hf_toolssm.generation.sampler import Sampler
from hf_toolssm.generation.snapshot import Snapshot, Value, read_snapshot, write_snapshot
from hf_toolssm.generation.speculative_decoding import NgramDrafter, extend
from hf_toolssm.generation.token_protocol import TokenProtocol, check_prompts
from hf_toolssm.protocol.given_tools import GivenTool
from hf_toolssm.protocol.trajectory import Trajectory, Writer


class Session(Value):
    """Rows in the making. Use `Session.start`; `clone` is a snapshot, and going on from it is a roll back.

    Memory does not grow with what is generated, unless a tool's or the answer does, or the model keeps a key-value
    cache: tokens that have been fed are not kept. Pass a sink to `run` to see them. An exception in the middle of a
    step, as Ctrl-C may be, leaves a session that says so and refuses to go on: keep a clone, or a file.

    Attributes:
        runner: the model and how it is fed.
        protocol: the tools and their tokens.
        rows: their answers, tools, errors; see `generation.row.Row`.
        temperature: of the sampling; 0 is greedy.
        randoms: per row, what its samples are drawn by.
        step_weights: how the weights of a decode step are stored.
        tokenizer: for `answers`, if there is one.
        recording: what keeps the tokens; None where nothing does.
        tokens: fed since the start, all rows together, the prompts not counted.
        held_choices: what rows take first, because they stopped before a call, or because somebody decided it.
        beside: what else stood in the file that it was loaded from; see `save`.
    """

    def __init__(
        self, runner: ModelRunner, protocol: TokenProtocol, value: Snapshot, tokenizer: PreTrainedTokenizerBase | None
    ) -> None:
        self.runner = runner
        self.protocol = protocol
        self.tokenizer = tokenizer
        self.rows, self.held_choices, self.tokens = value.rows, value.held_choices, value.tokens
        self.temperature, self.randoms = value.temperature, value.randoms
        self.step_weights = value.step_weights
        self.recording, self.beside = value.recording, value.beside
        self._running = self._is_torn = False
        decoder = make_decoder(runner, value.step_weights)
        self._batch = Batch(runner, decoder, value.state)
        self._compiled_loop = make_compiled_loop(decoder, protocol)
        drafts = decoder.exact and runner.prefill is not Prefill.TOKEN_BY_TOKEN and protocol.allows_drafts
        drafts = drafts and self._compiled_loop is None
        self._drafter = NgramDrafter(decoder.draft_from) if drafts else None

    @classmethod
    def start(
        cls,
        model: Any,
        prompts: Sequence[Sequence[int]],
        *,
        tools: Sequence[GivenTool] | None = None,
        tokenizer: PreTrainedTokenizerBase | None = None,
        end_ids: Sequence[int] | None = None,
        state: ModelState | None = None,
        temperature: float = 0.0,
        seed: int | str = 0,
        step_weights: StepWeights = None,
        record: bool | str | Path = False,
        chat_template_kwargs: Mapping[str, Any] | None = None,
    ) -> "Session":
        """Reads the prompts and starts the tools on them.

        Args:
            model: any causal language model with a cache.
            prompts: per row the token ids of its problem, without padding.
            tools: tools, functions or specs; by default those that the model's config names.
            tokenizer: for `answers`, for tools that read text, and for a model whose config knows no tool tokens.
            end_ids: the tokens that end a row; by default the model's own.
            state: what the model remembers before the prompts; the tools still start on the prompts alone.
            temperature: 0 is greedy.
            seed: of the sampling.
            step_weights: "int8" rounds the weights of each decode step to eight bits, which is faster for a large
                model on a CPU and may change tokens; None keeps the model's own.
            chat_template_kwargs: for the tokenizer's chat template, where that says how calls are written, for example
                `{"enable_thinking": False}`.
            record: keeps every token in `recording`, for `trajectories`; or the path of a file that they are written
                to, so that memory does not grow.

        Raises:
            EmptyProblemError: a prompt has no token.
            RecordingError: the file to record to is there already, or its folder is not.
            InvalidProblemError: a prompt holds the token for unknown symbols, a token of a call or the answer marker.
            MissingToolTokensError: the model has no tokens for these tools.
            StateMismatchError: `state` has not one row per prompt.
            UnknownToolError: a tool's name or option does not exist.
            UnsafeToolError: the config names a tool with side effects, and the caller did not pass it.
            UnsupportedArchitectureError: the model cannot be fed exactly.
            UnsupportedGenerationError: the temperature is no number of at least 0, or the weights of this model's
                steps cannot be rounded.
        """
        prompts = check_prompts(model, prompts)
        if not isinstance(temperature, int | float) or not 0 <= temperature < math.inf:
            raise UnsupportedGenerationError(f"the temperature is a number of at least 0, and not {temperature!r}")
        if state is not None and len(state.lengths) != len(prompts):
            raise StateMismatchError(
                f"{len(state.lengths)} rows of a state for {len(prompts)} prompts: use select(rows)"
            )
        protocol = make_protocol(model, tools, tokenizer, end_ids, chat_template_kwargs)
        protocol.check_problems(prompts)
        runner = ModelRunner(model)
        rows = [protocol.start_row(prompt) for prompt in prompts]
        recording = begin_recording(record, len(rows))
        fed, _ = runner.feed(state, prompts)
        randoms = [random.Random(f"{seed}/{row}") for row in range(len(rows))]
        _take_prompts(rows, prompts, [0] * len(rows), recording)
        value = Snapshot(rows, fed, temperature, randoms, step_weights, 0, HeldChoices(), recording)
        return cls(runner, protocol, value, tokenizer)

    @classmethod
    def load(
        cls,
        path: str | Path,
        model: Any,
        *,
        tools: Sequence[GivenTool] | None = None,
        tokenizer: PreTrainedTokenizerBase | None = None,
        end_ids: Sequence[int] | None = None,
        record: str | Path | None = None,
        chat_template_kwargs: Mapping[str, Any] | None = None,
    ) -> "Session":
        """The session that `save` wrote, on the model's device.

        Args:
            path, model, tools, tokenizer, end_ids, chat_template_kwargs: of the file, and those it was started with.
            record: the file that it recorded to and goes on with, or a new one for what it kept in memory.

        Raises:
            RecordingError: the file lacks what the session took before.
            SnapshotError, StateMismatchError: see `generation.snapshot.read_snapshot`.
        """
        protocol = make_protocol(model, tools, tokenizer, end_ids, chat_template_kwargs)
        runner = ModelRunner(model)
        session = cls(runner, protocol, read_snapshot(path, runner, protocol), tokenizer)
        if record is not None:
            session.recording = RecordingFile.going_on(record, [r.length for r in session.rows], session.recording)
        return session

    def save(self, path: str | Path, beside: Mapping[str, Any] | None = None) -> None:
        """Writes everything into one safetensors file, whole or not at all, with more tensors and JSON values by name
        `beside` it; calls under way end first.

        Raises:
            SnapshotError: the file cannot be written, or a tool's state is none.
        """
        self.wait()
        value = (self.temperature, self.randoms, self.step_weights, self.tokens, self.held_choices, self.recording)
        snapshot = Snapshot(self.rows, self.state, *value, beside=beside or {})
        write_snapshot(snapshot, self.runner.model, self.protocol, path)

    @property
    def finished(self) -> bool:
        """Whether every row has ended."""
        return all(row.finished for row in self.rows)

    @property
    def answers(self) -> list[str]:
        """The text of every row's answer so far, special tokens included.

        Raises:
            TokenizerNeededError: the session was started without a tokenizer.
        """
        if self.tokenizer is None:
            raise TokenizerNeededError("answers are text: start the session with tokenizer=, or read rows[i].answer")
        return self.tokenizer.batch_decode([row.answer for row in self.rows])

    @property
    def trajectories(self) -> list[Trajectory]:
        """Every row as a trajectory, from its first prompt on; what broke off is there as far as it went, and what was
        appended once it is fed.

        Raises:
            RecordingError, TokenizerNeededError: the session was started without `record=True`, or a tokenizer.
        """
        if not isinstance(self.recording, Recording):
            raise RecordingError("no tokens are kept: start with record=True, or use read_recording on the file")
        if self.tokenizer is None:
            raise TokenizerNeededError("trajectories are texts: start the session with tokenizer=")
        return self.recording.trajectories(self.tokenizer, self.protocol)

    @property
    def state(self) -> ModelState:
        """What the model remembers of every row, in order, as a copy."""
        self._refuse_while_running()
        return self._batch.state

    def run(
        self,
        max_new_tokens: int | None = None,
        *,
        stop_before_call: bool = False,
        sink: EventSink | None = None,
        sampler: Sampler | None = None,
        log_probs: bool = False,
    ) -> int:
        """Generates until every row has ended, has taken `max_new_tokens` tokens, or stands before a tool call.

        Args:
            max_new_tokens: of each row, observations included; None is no limit.
            stop_before_call: a row that would complete a call stops before it; the next `run` carries it out.
            sink: hears of every token.
            sampler: chooses tokens and ends rows; without it the session samples at its temperature.
            log_probs: whether sink and recording hear those of the model's tokens, which takes a step a token.

        Returns:
            How many tokens were fed, all rows together.
        """
        self._refuse_while_running()
        limit = limit_of(max_new_tokens)
        unfinished = {i for i, row in enumerate(self.rows) if not row.finished}
        # A row that was stopped before a call carries it out first.
        watched = unfinished - self.held_choices.stopped if stop_before_call else None
        held, chooser = self.held_choices, sampler
        if sampler is None and self.temperature > 0:
            chooser = RowSampler(self.temperature, self.randoms, lambda i: not self.rows[i].pending and i not in held)
        ways = (self._batch.decoder, self._compiled_loop, self._drafter)
        decoding = make_decoding(*ways, held, chooser, watched, log_probs)
        sinks = [each for each in (self.recording, sink) if each is not None]
        running = Running(self.rows, self._batch, decoding, limit, sinks, sampler, self._drafter is not None)
        self._running = True
        try:
            running.run()
        finally:
            self.tokens += running.tokens
            self._running, self._is_torn = False, decoding.is_moving
        return running.tokens

    def append(self, prompts: Sequence[Sequence[int]]) -> None:
        """Adds what the user says, per row its tokens, which may be none: they enter the tools' memory and are fed
        before the model goes on, also in a row that had ended.

        Raises:
            InvalidProblemError, StateMismatchError: see `start`.
        """
        self._refuse_while_running()
        prompts = check_prompts(self.runner.model, prompts, may_be_empty=True)
        if len(prompts) != len(self.rows):
            raise StateMismatchError(f"there are {len(self.rows)} rows and {len(prompts)} prompts: give one per row")
        self.protocol.check_problems(prompts)
        self.wait()
        for i, prompt in enumerate(prompts):
            if len(prompt):
                self.held_choices.take(i, 0)
                self.rows[i].append(prompt)

    def rewind(self, state: ModelState | None, prompts: Sequence[Sequence[int]]) -> None:
        """Puts the model's memory back to `state` (None: nothing), and feeds what is to follow it now; tools stay.

        Raises:
            StateMismatchError: not one prompt, or one row of the state, per row.
        """
        self._refuse_while_running()
        prompts = check_prompts(self.runner.model, prompts)
        lengths = [0] * len(prompts) if state is None else state.lengths
        if {len(prompts), len(lengths)} != {len(self.rows)}:
            raise StateMismatchError(f"there are {len(self.rows)} rows: give a prompt and a state for each")
        self.wait()
        fed, _ = self.runner.feed(state, prompts)
        self._batch = Batch(self.runner, self._batch.decoder, fed)
        self.held_choices = HeldChoices()
        for row in self.rows:
            row.drop_pending()
        self.tokens += sum(map(len, prompts))
        _take_prompts(self.rows, prompts, lengths, self.recording)

    def wait(self) -> None:
        """Waits for the tool calls under way, because a call is no part of a value."""
        for row in self.rows:
            row.wait()

    def clone(self) -> "Session":
        """An independent session in this state, to roll back to. Calls under way end first; the model is shared."""
        return self.select(range(len(self.rows)))

    def select(self, rows: Iterable[int]) -> "Session":
        """A session of copies of the given rows, in that order; a row taken several times is forked.

        A fork samples by randomness of its own; the first copy of a row goes on with the row's. What is kept in memory
        is copied too; a copy of a session that records to a file records nothing.

        Raises:
            StateMismatchError: there is no such row, or none is given.
        """
        self._refuse_while_running()
        chosen = self.check_rows(rows)
        self.wait()
        other = object.__new__(Session)
        vars(other).update(vars(self))
        other.rows = [self.rows[i].clone() for i in chosen]
        other._batch = self._batch.select(chosen)
        other.held_choices = self.held_choices.select(chosen)
        other.recording = self.recording.select(chosen) if isinstance(self.recording, Recording) else None
        other.randoms = _randoms_of_copies(self.randoms, chosen)
        return other

    def check_rows(self, rows: Iterable[int]) -> list[int]:
        """The numbers of some of the rows, as they are.

        Raises:
            StateMismatchError: there is no such row, or none is given.
        """
        chosen: list[Any] = list(rows) if isinstance(rows, Iterable) else [None]
        wrong = [row for row in chosen if not isinstance(row, int | np.integer) or not 0 <= row < len(self.rows)]
        if wrong or not chosen:
            raise StateMismatchError(f"select takes some of the rows 0 to {len(self.rows) - 1}, and not {chosen}")
        return chosen

    def _refuse_while_running(self) -> None:
        if self._is_torn:
            raise SessionTornError("an exception in a step left model and tools apart: go on from a clone or a file")
        if self._running:
            raise SessionRunningError(
                "the session is in the middle of run(): look at it, copy or save it before or after"
            )


def _take_prompts(
    rows: Sequence[Row], prompts: Sequence[Sequence[int]], starts: Sequence[int], recording: Any
) -> None:
    """Takes note of prompts that were fed, and forgets what was recorded from where each of them starts on."""
    for i, (row, prompt, start) in enumerate(zip(rows, prompts, starts)):
        row.length, row.context = start + len(prompt), extend(0, prompt)
        if recording is not None:
            recording.cut(i, start)
            recording.take([Event(i, start, prompt, bytes([Writer.USER]) * len(prompt))])


def _randoms_of_copies(randoms: Sequence[random.Random], chosen: Sequence[int]) -> list[random.Random]:
    """By what each copy of a row samples: the first as the row would, any other by randomness of its own."""
    copies = [copy.copy(randoms[i]) for i in chosen]
    forks = [list(chosen[:new]).count(chosen[new]) for new in range(len(chosen))]
    return [random.Random(f"{each.random()}/{fork}") if fork else each for each, fork in zip(copies, forks)]


def limit_of(max_new_tokens: Any) -> int:
    """How many tokens a row may take; None is no limit.

    Raises:
        UnsupportedGenerationError: it is no whole number.
    """
    whole = isinstance(max_new_tokens, int | np.integer) and not isinstance(max_new_tokens, bool)
    if max_new_tokens is not None and not (whole and max_new_tokens >= 0):
        raise UnsupportedGenerationError(f"max_new_tokens is a whole number from 0 on, and not {max_new_tokens!r}")
    return sys.maxsize if max_new_tokens is None else int(max_new_tokens)
