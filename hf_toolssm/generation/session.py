"""A session: rows that generate with tools, and everything they remember, as one value.

Every row is free to be in its own phase. In a step each row of the batch takes one token, the next one of an
observation or the one that the model chose; a row that waits for a slow tool or reads a long observation leaves the
batch with its state and joins again, so no row ever waits for another, is padded in the middle or read twice.
"""

import copy
import math
import random
import sys
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor
from transformers import PreTrainedTokenizerBase

from hf_toolssm.cache.model_state import ModelState
from hf_toolssm.errors import (
    InputMismatchError,
    SessionRunningError,
    SnapshotError,
    StateMismatchError,
    TokenizerNeededError,
    ToolFaultError,
    UnsupportedGenerationError,
)
from hf_toolssm.generation.compiled_loop import CompiledLoop, make_compiled_loop
from hf_toolssm.generation.decoder import FusedDecoder, StepWeights, make_decoder
from hf_toolssm.generation.interface import Sampler, TokenSink
from hf_toolssm.generation.model_runner import ModelRunner, Prefill
from hf_toolssm.generation.row import Row
from hf_toolssm.generation.snapshot import Snapshot, read_snapshot, write_snapshot
from hf_toolssm.generation.speculative_decoding import ORDER, Draft, NgramDrafter, extend
from hf_toolssm.generation.token_protocol import TokenProtocol, check_prompts, make_protocol
from hf_toolssm.tools import Tool

PIECE = 2_048
"""Tokens of a long observation that one row takes between two steps of the others."""


class Session:
    """Rows in the making. Use `Session.start`; `clone` is a snapshot, and going on from it is a roll back.

    Memory does not grow with what is generated, unless a tool's or the answer does, or the model keeps a key-value
    cache: tokens that have been fed are not kept. Pass a sink to `run` to see them.

    Attributes:
        runner: the model and how it is fed.
        protocol: the tools and their tokens.
        rows: their answers, tools, errors; see `generation.row.Row`.
        temperature: of the sampling; 0 is greedy.
        randoms: per row, what its samples are drawn by.
        step_weights: how the weights of a decode step are stored.
        tokenizer: for `answers`, if there is one.
        tokens: tokens fed since the start, all rows together, the prompts not counted.
        held_choices: what a row has chosen but not yet done, because it stopped before a call.
    """

    def __init__(
        self,
        runner: ModelRunner,
        protocol: TokenProtocol,
        rows: list[Row],
        state: ModelState,
        temperature: float,
        randoms: list[random.Random],
        step_weights: StepWeights,
    ) -> None:
        self.runner = runner
        self.protocol = protocol
        self.rows = rows
        self.temperature = temperature
        self.randoms = randoms
        self._running = False
        self.tokenizer: PreTrainedTokenizerBase | None = None
        self.tokens = 0
        self.held_choices: dict[int, int] = {}
        self.step_weights = step_weights
        self._decoder = make_decoder(runner, step_weights)
        self._batch: list[int] = []  # the rows that the decoder holds, in its order
        self._waiting = {row: state.select([row]) for row in range(len(rows))}  # the state of every other row
        self._contexts = [0] * len(rows)
        self._drafter = NgramDrafter(self._decoder.draft_from)
        self._compiled_loop = make_compiled_loop(self._decoder, protocol)

    @classmethod
    def start(
        cls,
        model: Any,
        prompts: Sequence[Sequence[int]],
        *,
        tools: Sequence[Mapping[str, Any] | Tool] | None = None,
        tokenizer: PreTrainedTokenizerBase | None = None,
        end_ids: Sequence[int] | None = None,
        state: ModelState | None = None,
        temperature: float = 0.0,
        seed: int = 0,
        step_weights: StepWeights = None,
    ) -> "Session":
        """Reads the prompts and starts the tools on them.

        Args:
            model: any causal language model with a cache.
            prompts: per row the token ids of its problem, without padding.
            tools: tools or their specs; by default those that the model's config names.
            tokenizer: for `answers`, for tools that read text, and for a model whose config knows no tool tokens.
            end_ids: the tokens that end a row; by default the model's own.
            state: what the model remembers before the prompts; the tools still start on the prompts alone.
            temperature: 0 is greedy.
            seed: of the sampling.
            step_weights: "int8" rounds the weights of each decode step to eight bits, which is faster for a large
                model on a CPU and may change tokens; None keeps the model's own.

        Raises:
            EmptyProblemError: a prompt has no token.
            InvalidProblemError: a prompt holds the token for unknown symbols, a command or the answer marker.
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
                f"the state has {len(state.lengths)} rows and there are {len(prompts)} prompts: use its select(rows)"
            )
        protocol = make_protocol(model, tools, tokenizer, end_ids)
        protocol.check_problems(prompts)
        runner = ModelRunner(model)
        rows = [Row.start(prompt, protocol) for prompt in prompts]
        fed, _ = runner.feed(state, prompts)
        randoms = [random.Random(f"{seed}/{row}") for row in range(len(rows))]
        session = cls(runner, protocol, rows, fed, temperature, randoms, step_weights)
        session.tokenizer = tokenizer
        for row, prompt in enumerate(prompts):
            session._note(row, prompt)
        return session

    @classmethod
    def load(
        cls,
        path: str | Path,
        model: Any,
        *,
        tools: Sequence[Mapping[str, Any] | Tool] | None = None,
        tokenizer: PreTrainedTokenizerBase | None = None,
        end_ids: Sequence[int] | None = None,
    ) -> "Session":
        """The session that `save` wrote, on the model's device.

        Args:
            path: of the file.
            model: the one that it was saved with.
            tools, tokenizer, end_ids: those that it was started with.

        Raises:
            SnapshotError, StateMismatchError: see `generation.snapshot.read_snapshot`.
        """
        protocol, runner = make_protocol(model, tools, tokenizer, end_ids), ModelRunner(model)
        found = read_snapshot(path, runner, protocol)
        session = cls(runner, protocol, found.rows, found.state, found.temperature, found.randoms, found.step_weights)
        session.tokenizer, session.tokens, session.held_choices = tokenizer, found.tokens, found.held_choices
        return session

    def save(self, path: str | Path) -> None:
        """Writes everything into one safetensors file, whole or not at all; calls under way end first.

        Raises:
            SnapshotError: the file cannot be written, or a tool's state is none.
        """
        self.wait()
        snapshot = Snapshot(
            self.rows, self.state, self.temperature, self.randoms, self.step_weights, self.tokens, self.held_choices
        )
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
    def state(self) -> ModelState:
        """What the model remembers of every row, in order, as a copy."""
        self._refuse_while_running()
        return ModelState.concatenate([self._waiting[row] for row in range(len(self.rows))])

    def run(
        self,
        max_new_tokens: int | None = None,
        *,
        stop_before_call: bool = False,
        sink: TokenSink | None = None,
        sampler: Sampler | None = None,
    ) -> int:
        """Generates until every row has ended, has taken `max_new_tokens` tokens, or stands before a tool call.

        Args:
            max_new_tokens: of each row, observations included; None is no limit.
            stop_before_call: a row that would complete a call stops before it is carried out; the next `run` carries
                it out.
            sink: hears of every token.
            sampler: chooses tokens and ends rows; without it the session samples at its temperature.

        Returns:
            How many tokens were fed, all rows together.
        """
        self._refuse_while_running()
        whole = isinstance(max_new_tokens, int | np.integer) and not isinstance(max_new_tokens, bool)
        if max_new_tokens is not None and not (whole and max_new_tokens >= 0):
            raise UnsupportedGenerationError(f"max_new_tokens is a whole number from 0 on, and not {max_new_tokens!r}")
        before = self.tokens
        limit = sys.maxsize if max_new_tokens is None else max_new_tokens
        left = {i: limit for i, row in enumerate(self.rows) if not row.finished}
        # A row that was stopped before a call carries it out first.
        watched = set(left) - set(self.held_choices) if stop_before_call else None
        stopped: set[int] = set()  # rows before a call, and rows that `sampler` has ended
        greedy = sampler is None and self.temperature == 0 and not stop_before_call
        compiled_loop = self._compiled_loop if greedy else None
        drafting = greedy and compiled_loop is None
        drafting = drafting and self._decoder.exact and self.runner.prefill is not Prefill.TOKEN_BY_TOKEN
        drafting = drafting and self.protocol.allows_drafts
        self._running = True
        try:
            waiting = self._schedule(left, stopped, sink)
            while self._batch or waiting:
                if not self._batch:
                    self._wait_for_any(waiting)
                elif compiled_loop is not None and not self.held_choices:
                    if self._run_compiled(compiled_loop, left, sink):
                        self._step(left, stopped, watched, sink, sampler)
                elif not (drafting and self._may_draft() and self._run_drafts(left, sink)):
                    self._step(left, stopped, watched, sink, sampler)
                if waiting or len(self._batch) < len(left):
                    waiting = self._schedule(left, stopped, sink)
        finally:  # what a sink raises ends the run, and the rows stand where they are
            self._leave(range(len(self._batch)))
            self._running = False
        return self.tokens - before

    def append(self, prompts: Sequence[Sequence[int]]) -> None:
        """Adds what the user says to every row: it enters the tools' memory and is fed before the model goes on.

        Args:
            prompts: per row its tokens, which may be none; a row that had ended goes on, with a new answer.

        Raises:
            StateMismatchError: not one prompt per row.
            InvalidProblemError: see `start`.
        """
        self._refuse_while_running()
        if len(prompts) != len(self.rows):
            raise StateMismatchError(f"there are {len(self.rows)} rows and {len(prompts)} prompts: give one per row")
        prompts = [check_prompts(self.runner.model, [prompt])[0] if len(prompt) else [] for prompt in prompts]
        self.protocol.check_problems(prompts)
        self.wait()
        for i, prompt in enumerate(prompts):
            if len(prompt):
                self.held_choices.pop(i, None)
                self.rows[i].append(prompt)

    def wait(self) -> None:
        """Waits for the tool calls under way, because a call is no part of a value."""
        for row in self.rows:
            row.wait()

    def clone(self) -> "Session":
        """An independent session in the same state: a snapshot to roll back to. Calls under way end first.

        `copy.copy` and `copy.deepcopy` give the same. The model is shared.
        """
        return self.select(range(len(self.rows)))

    def __copy__(self) -> "Session":
        return self.clone()  # two sessions with the same rows would each move the other's

    def __deepcopy__(self, memo: dict[int, Any]) -> "Session":
        return self.clone()

    def __reduce__(self) -> Any:
        raise SnapshotError(
            "a session is not pickled, because its model is no part of it: use session.save(path), and "
            "Session.load(path, model) behind"
        )

    def select(self, rows: Iterable[int]) -> "Session":
        """A session of copies of the given rows, in that order; a row taken several times is forked.

        A fork samples by randomness of its own; the first copy of a row goes on with the row's.

        Raises:
            StateMismatchError: there is no such row, or none is given.
        """
        self._refuse_while_running()
        chosen = list(rows)
        wrong = [row for row in chosen if not 0 <= row < len(self.rows)]
        if wrong or not chosen:
            raise StateMismatchError(f"select takes some of the rows 0 to {len(self.rows) - 1}, and not {chosen}")
        self.wait()
        other = object.__new__(Session)
        vars(other).update(vars(self))
        other.rows = [self.rows[i].clone() for i in chosen]
        other._decoder = copy.copy(self._decoder)
        other._batch = []
        other._waiting = {new: self._waiting[old].clone() for new, old in enumerate(chosen)}
        other.held_choices = {
            new: self.held_choices[old] for new, old in enumerate(chosen) if old in self.held_choices
        }
        other._contexts = [self._contexts[i] for i in chosen]
        other.randoms = [self._random_of_copy(old, chosen[:new].count(old)) for new, old in enumerate(chosen)]
        return other

    def _random_of_copy(self, row: int, fork: int) -> random.Random:
        copied = copy.copy(self.randoms[row])
        return random.Random(f"{copied.random()}/{fork}") if fork else copied

    def _refuse_while_running(self) -> None:
        if self._running:
            raise SessionRunningError(
                "the session is in the middle of run(): look at it, copy it or save it before or after, and let the "
                "sink only take the tokens that it is given"
            )

    def _schedule(self, left: dict[int, int], stopped: set[int], sink: TokenSink | None) -> list[int]:
        """Moves the rows on that are not in the batch; returns those that still wait or read."""
        for i in [i for i in left if i in stopped or left[i] <= 0 or self.rows[i].finished]:
            if i in self._waiting:
                del left[i]
        waiting, joining = [], []
        for i in [i for i in left if i in self._waiting]:
            row = self.rows[i]
            if row.call is not None and row.call.over:
                row.receive()
            if row.call is None and not row.finished and not self._is_long(row):
                joining.append(i)
                continue
            if row.call is None and not row.finished:
                self._read_piece(i, left, sink)
            waiting.append(i)
        self._join(joining)
        return waiting

    def _step(
        self,
        left: dict[int, int],
        stopped: set[int],
        watched: set[int] | None,
        sink: TokenSink | None,
        sampler: Sampler | None,
    ) -> None:
        """One token for every row of the batch; a watched row leaves it instead when it chooses a command."""
        rows, batch = self.rows, self._batch
        choices = self._choose(sampler)
        if watched is not None:
            free = [at for at, i in enumerate(batch) if not rows[i].pending]
            calling = [at for at in free if batch[at] in watched and self._begins(batch[at], choices[at])]
            if calling:
                self.held_choices.update((batch[at], choices[at]) for at in free)
                stopped.update(batch[at] for at in calling)
                self._leave(calling)
                return
            watched.update(batch[at] for at in free)
        learn, contexts = self._drafter.tree.learn, self._contexts
        tokens, observed, leaving = [], [], []
        for at, i in enumerate(batch):
            row = rows[i]
            token, by_tool = row.advance(choices[at])
            tokens.append(token)
            observed.append(by_tool)
            context = contexts[i]
            if not by_tool:
                learn(context, token)
            contexts[i] = extend(context, token)
            left[i] -= 1
            if row.finished or row.call is not None or left[i] == 0 or self._is_long(row):
                leaving.append(at)
        chosen_by = None if sampler is None else self._decoder.logits().clone()
        self._decoder.step(tokens)
        self.tokens += len(tokens)
        # From here on all is in order, whatever the sink does.
        self._leave(leaving)
        if sink is not None:
            sink.fed(batch, tokens, observed)
        if sampler is not None:
            ending = [i for i, stop in zip(batch, sampler.stop(batch, chosen_by)) if stop]
            stopped.update(ending)
            self._leave([self._batch.index(i) for i in ending if i in self._batch])

    def _begins(self, i: int, token: int) -> bool:
        """Whether a token that a row would write is a call, or completes one."""
        protocol, reader = self.protocol, self.rows[i].reader
        if reader.open is not None:
            return protocol.calls.ends.get(token) == reader.open
        return token in protocol.calls.whole

    def _choose(self, sampler: Sampler | None) -> list[int]:
        batch = self._batch
        if sampler is not None:
            logits = self._decoder.logits()
            choices = sampler.choose(batch, logits)
            if len(choices) != len(batch) or not 0 <= min(choices) <= max(choices) < logits.shape[1]:
                raise InputMismatchError(
                    f"the sampler chose {choices} for {len(batch)} rows: choose one of the model's "
                    f"{logits.shape[1]} tokens for each"
                )
        elif self.temperature == 0:
            choices = self._decoder.greedy()
        else:
            choices = self._sample(self._decoder.logits().cpu().double())
        if self.held_choices:
            choices = [
                choice if self.rows[i].pending else self.held_choices.pop(i, choice)
                for i, choice in zip(batch, choices)
            ]
        return choices

    def _sample(self, logits: Tensor) -> list[int]:
        """A token for each row of the batch; a row draws only when it chooses, so others do not change its samples."""
        shares = torch.softmax((logits - logits.amax(-1, keepdim=True)) / self.temperature, dim=-1).cumsum(-1)
        choices = []
        for i, share in zip(self._batch, shares):
            drawn = 0.0 if self.rows[i].pending or i in self.held_choices else self.randoms[i].random()
            choices.append(min(int(torch.searchsorted(share, drawn * share[-1], right=True)), len(share) - 1))
        return choices

    def _run_compiled(self, compiled_loop: CompiledLoop, left: dict[int, int], sink: TokenSink | None) -> bool:
        """Runs the compiled loop over the batch; true if a row now stands before what only a step can do."""
        batch, rows, decoder = self._batch, self.rows, self._decoder
        assert isinstance(decoder, FusedDecoder)
        runs = compiled_loop.write(decoder, [rows[i] for i in batch], [left[i] for i in batch])
        for i, run in zip(batch, runs):
            self.tokens += len(run.tokens)
            left[i] -= len(run.tokens)
        self._leave([at for at, i in enumerate(batch) if left[i] == 0])
        # From here on all is in order, whatever the sink does.
        if sink is not None:
            for i, run in zip(batch, runs):
                if len(run.tokens):
                    sink.fed_run(i, run.tokens.tolist(), run.observed.tolist())
        return any(run.stopped and left[i] > 0 for i, run in zip(batch, runs))

    def _may_draft(self) -> bool:
        return len(self._batch) <= self._decoder.draft_rows and self._drafter.may_try()

    def _run_drafts(self, left: dict[int, int], sink: TokenSink | None) -> bool:
        """Lets every row of the batch write a run, checked at once; false if the runs are too short to pay."""
        if self.held_choices:
            return False
        drafter, batch, rows = self._drafter, self._batch, self.rows
        drafts = [
            drafter.draft(rows[i], self._contexts[i], choice, len(batch))
            for i, choice in zip(batch, self._decoder.greedy())
        ]
        lengths = [len(draft.tokens) for draft in drafts]
        within = all(left[i] > max(lengths) for i in batch)
        # A row that stands before its end has no draft.
        if not within or not all(lengths) or not drafter.pays(sum(lengths), len(batch)):
            drafter.judge(False)
            return False
        agreed = self._decoder.check([draft.tokens for draft in drafts], [draft.observed for draft in drafts])
        leaving = []
        for at, (i, draft) in enumerate(zip(batch, drafts)):
            self._accept(i, draft, agreed[at])
            left[i] -= agreed[at]
            if rows[i].finished or self._is_long(rows[i]):
                leaving.append(at)
        drafter.judge(drafter.pays(sum(agreed), len(batch)))
        self._leave(leaving)
        if sink is not None:  # as in `_step`, only once all rows are in order
            for i, draft, count in zip(batch, drafts, agreed):
                sink.fed_run(i, draft.tokens[:count], draft.observed[:count])
        return True

    def _accept(self, i: int, draft: Draft, count: int) -> None:
        """Makes the first tokens of a draft real."""
        self.tokens += count
        if not draft.observed[0]:  # the one token that the tree did not predict, but the model chose
            self._drafter.tree.learn(self._contexts[i], draft.tokens[0])
        if count == len(draft.tokens):
            self.rows[i].adopt(draft.row)
            self._contexts[i] = draft.context
            return
        row = self.rows[i]
        for token, by_tool in zip(draft.tokens[:count], draft.observed):
            if row.advance(token) != (token, by_tool):
                row.fail(ToolFaultError("the tool's clone shares what it remembers: copy it in clone()"))
                return
            self._contexts[i] = extend(self._contexts[i], token)

    def _is_long(self, row: Row) -> bool:
        """Whether an observation is pending that the row should read apart, in pieces."""
        return len(row.pending) >= self._decoder.piece_from and self.runner.prefill is not Prefill.TOKEN_BY_TOKEN

    def _read_piece(self, i: int, left: dict[int, int], sink: TokenSink | None) -> None:
        pending = self.rows[i].pending
        size = min(PIECE, len(pending), left[i])
        piece = [pending.popleft() for _ in range(size)]
        self._waiting[i], _ = self.runner.feed(self._waiting[i], [piece])
        self._note(i, piece)
        self.tokens += size
        left[i] -= size
        if sink is not None:
            sink.fed_run(i, piece, [True] * size)

    def _note(self, i: int, tokens: Sequence[int]) -> None:
        """Takes note of tokens that were fed, for the drafts."""
        for token in tokens[-ORDER:]:
            self._contexts[i] = extend(self._contexts[i], token)

    def _join(self, rows: Sequence[int]) -> None:
        """Puts rows into the batch."""
        if rows:
            states = [self._decoder.state()] if self._batch else []
            self._decoder.load(ModelState.concatenate([*states, *(self._waiting.pop(i) for i in rows)]))
            self._batch = [*self._batch, *rows]

    def _leave(self, places: Iterable[int]) -> None:
        """Takes the rows at these places out of the batch, each with its own state."""
        going = sorted(places)
        if not going:
            return
        state = self._decoder.state()
        for at in going:
            self._waiting[self._batch[at]] = state.select([at])
        staying = [at for at in range(len(self._batch)) if at not in going]
        self._batch = [self._batch[at] for at in staying]
        if staying:
            self._decoder.load(state.select(staying))

    def _wait_for_any(self, rows: Sequence[int]) -> None:
        """Nothing can be done before one of these rows' calls is over."""
        waiting = [self.rows[i].call for i in rows]
        calls = [call for call in waiting if call is not None]
        if len(calls) == len(rows) and not any(call.over for call in calls):
            calls[0].wait(None if len(calls) == 1 else 0.001)
