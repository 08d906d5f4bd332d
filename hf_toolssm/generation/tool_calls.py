"""One tool call: carried out, limited in time, and its answer turned into tokens. Whatever goes wrong has a name.

| what the tool does | the error |
|---|---|
| raises `ToolError` | that error |
| has a schema that the arguments do not follow | `InvalidArgumentsError`; the tool is not called |
| raises anything else | `ToolFaultError`, which says what was raised |
| takes longer than its `time_limit` | `ToolTimeoutError`; the call is left to itself |
| returns None, or cells that are no tokens of the model | `ToolFaultError` |
| returns an empty observation | none: the model goes on with nothing to read |
| returns more than `MAX_OBSERVATION` cells or characters | `ObservationTooLongError` |
| returns bytes that are no UTF-8 | none: they are read with replacement characters |
| returns text with added tokens in it | none: they are read as plain text; no observation is ever carried out |
| returns text that has no tokens but added ones or the unknown one | `ToolFaultError` |

What an error does is the tool's to say (`on_error`): its text becomes the observation, or the row ends with it and
keeps its state. Other rows are not touched.
"""

import math
import threading
import time
from collections import deque
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

from transformers import PreTrainedTokenizerBase

from hf_toolssm.errors import (
    ObservationTooLongError,
    ToolError,
    ToolFaultError,
    ToolTimeoutError,
    UnspellableTextError,
)
from hf_toolssm.protocol.calls import Call
from hf_toolssm.protocol.plain_text import encode_plain
from hf_toolssm.tools.tool import ToolFacts, argument_of, cells_of, text_of

MAX_OBSERVATION = 1_000_000
"""Cells, or characters of text, that one observation may have: beyond it a tool has gone wrong."""


def fault(what: str, error: BaseException) -> ToolFaultError:
    """A tool's exception as a fault with a short text, even if the exception has none."""
    try:
        text = str(error)[:500]
    except Exception:
        text = "(its text cannot be shown)"
    return ToolFaultError(f"the tool raised {type(error).__name__} {what}: {text}")


class ToolCaller:
    """Carries out calls, in tokens.

    Args:
        vocabulary: how many tokens the model has.
        tokenizer: for tools that read text; None where there are none.
    """

    def __init__(self, vocabulary: int, tokenizer: PreTrainedTokenizerBase | None) -> None:
        self._vocabulary = vocabulary
        self._tokenizer = tokenizer

    def call(self, facts: ToolFacts, at_work: Any, call: Call[int]) -> Sequence[int]:
        """Carries out a call and returns the observation's tokens.

        Raises:
            ToolError: the tool refused the call, or failed; see the table above.
        """
        if facts.unit == "cells":
            return self.observe(facts, at_work, call.name, call.argument)
        return self.encode(self.observe(facts, at_work, call.name, self.text(call.argument)), call.name)

    def observe(self, facts: ToolFacts, at_work: Any, name: str, argument: Any) -> Any:
        """Carries out a call and returns what the tool shows: cells, or a text.

        Args:
            facts: of the tool.
            at_work: what works on the row's problem.
            name: of the call.
            argument: cells, a text, or the arguments of a call by name.

        Raises:
            ToolError: the tool refused the call, or failed; see the table above.
        """
        try:
            if facts.unit == "cells":
                return self._cells(at_work.call(name, argument), name)
            text = text_of(at_work.call(name, argument_of(facts, name, argument)), name)
        except ToolError:
            raise
        except (Exception, SystemExit) as error:
            raise fault(f"on {name}", error) from error
        _check_length(text, name)
        return text

    def text(self, tokens: Sequence[int]) -> str:
        """What stands in tokens."""
        assert self._tokenizer is not None
        return self._tokenizer.decode(tokens) if tokens else ""

    def _cells(self, observed: Any, call: str) -> Sequence[int]:
        if type(observed) is tuple and not observed:  # most calls show nothing
            return observed
        _check_length(cells_of(observed, call), call)
        for cell in observed:
            if type(cell) is not int or not 0 <= cell < self._vocabulary:
                raise ToolFaultError(f"the tool returned {cell!r} on {call}, which is no token of the model")
        return observed

    def encode(self, text: str, call: str) -> list[int]:
        """The tokens of a text that a tool has written.

        Raises:
            ToolFaultError: the tokenizer cannot write it.
        """
        if not text:
            return []
        try:
            return encode_plain(self._tokenizer, text)
        except UnspellableTextError as error:
            raise ToolFaultError(f"the tool returned text on {call} that has no tokens: {error}") from error


def _check_length(observed: Any, call: str) -> None:
    if len(observed) > MAX_OBSERVATION:
        raise ObservationTooLongError(
            f"the tool returned {len(observed):,} cells or characters on {call}, and an observation has at most "
            f"{MAX_OBSERVATION:,}: let the tool return a part and a way to ask for more"
        )


class WaitingCall:
    """A call on a thread of its own: other rows go on meanwhile, and a time limit holds.

    Args:
        work: makes the call and returns the observation.
        limit: seconds.
    """

    def __init__(self, work: Callable[[], Any], limit: float) -> None:
        self._work = work
        self._limit = limit
        self._deadline = time.monotonic() + limit
        self._observed: Any = ()
        self._error: BaseException | None = None
        # Not `Thread.is_alive`, which is wrong of a thread once Ctrl-C has broken off its `join`.
        self._ended = threading.Event()
        # A daemon, because a call that hangs must not keep the program from ending.
        threading.Thread(target=self._run, daemon=True).start()

    def _run(self) -> None:
        try:
            self._observed = self._work()
        except BaseException as error:  # also what would end the thread without a word, such as SystemExit
            self._error = error
        self._ended.set()

    @property
    def over(self) -> bool:
        """Whether there is a result, or no time left for one."""
        return self._ended.is_set() or time.monotonic() >= self._deadline

    def wait(self, seconds: float | None = None) -> None:
        """Blocks until the call is over, or for that many seconds."""
        left = max(0.0, self._deadline - time.monotonic())
        self._ended.wait(left if seconds is None else min(left, seconds))

    def result(self) -> Any:
        """The observation, once the call is over.

        Raises:
            ToolError: the tool refused, failed, or took too long.
        """
        if not self._ended.is_set():
            raise ToolTimeoutError(
                f"the tool took longer than its time limit of {self._limit:g} seconds: raise the tool's time_limit, "
                "or let it answer in parts"
            )
        if isinstance(self._error, ToolError):
            raise self._error
        if self._error is not None:
            raise fault("on its thread", self._error)
        return self._observed


class Work(NamedTuple):
    """A call that is to be made.

    Attributes:
        run: makes it and returns what the tool shows.
        limit: seconds; None where it returns at once.
        owner: calls of one owner are made one after the other; None has no order.
    """

    run: Callable[[], Any]
    limit: float | None
    owner: Any


AT_ONCE = 64
"""Threads that the calls of one turn may be made on side by side; a model may write thousands of calls."""


class WaitingCalls:
    """The calls of one turn: those of one owner in order, all others side by side, `AT_ONCE` at most.

    Args:
        works: at least one.

    Attributes:
        results: of every call what the tool shows, or its `ToolError`, once all are over.
    """

    def __init__(self, works: Sequence[Work]) -> None:
        self.results: list[Any] = [None] * len(works)
        lanes: dict[int, deque[tuple[int, Work]]] = {}
        for index, work in enumerate(works):
            lanes.setdefault(-1 - index if work.owner is None else id(work.owner), deque()).append((index, work))
        self._lanes = list(lanes.values())
        self._running: dict[int, WaitingCall] = {}
        self._go_on()

    @property
    def over(self) -> bool:
        """Whether every call has a result, or no time left for one."""
        self._go_on()
        return not self._lanes

    def wait(self, seconds: float | None = None) -> None:
        """Blocks until all calls are over, or for that many seconds."""
        until = math.inf if seconds is None else time.monotonic() + seconds
        while not self.over and (left := until - time.monotonic()) > 0:
            next(iter(self._running.values())).wait(min(left, 0.001))

    def _go_on(self) -> None:
        for lane in self._lanes:
            while lane and self._is_over(*lane[0]):
                index, _ = lane.popleft()
                if isinstance(self.results[index], ToolTimeoutError):
                    for other, _ in lane:  # it may still be at work on what these would touch
                        self.results[other] = ToolFaultError("not carried out: the call before it took too long")
                    lane.clear()
        self._lanes = [lane for lane in self._lanes if lane]

    def _is_over(self, index: int, work: Work) -> bool:
        """Starts a call that stands first in its lane, and takes its result."""
        running = self._running.get(index)
        if running is None and work.limit is not None:
            if len(self._running) >= AT_ONCE:
                return False
            running = self._running[index] = WaitingCall(work.run, work.limit)
        if running is not None and not running.over:
            return False
        try:
            self.results[index] = work.run() if running is None else running.result()
        except ToolError as error:
            self.results[index] = error
        self._running.pop(index, None)
        return True
