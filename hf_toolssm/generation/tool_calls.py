"""One tool call: carried out, limited in time, and its answer turned into tokens. Whatever goes wrong has a name.

| what the tool does | the error |
|---|---|
| raises `ToolError` | that error |
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

import threading
import time
from collections.abc import Callable, Sequence
from typing import Any

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
from hf_toolssm.tools.tool import ToolFacts, cells_of, text_of

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
        argument = call.argument if facts.unit == "cells" else self.text(call.argument)
        try:
            observed = at_work.call(call.name, argument)
            return (self._cells if facts.unit == "cells" else self._text)(observed, call.name)
        except ToolError:
            raise
        except (Exception, SystemExit) as error:
            raise fault(f"on {call.name}", error) from error

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

    def _text(self, observed: Any, call: str) -> list[int]:
        text = text_of(observed, call)
        _check_length(text, call)
        return self.encode(text, call)

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
        work: makes the call and returns the observation's tokens.
        limit: seconds.
    """

    def __init__(self, work: Callable[[], Sequence[int]], limit: float) -> None:
        self._work = work
        self._limit = limit
        self._deadline = time.monotonic() + limit
        self._tokens: Sequence[int] = ()
        self._error: BaseException | None = None
        # A daemon, because a call that hangs must not keep the program from ending.
        self._thread = threading.Thread(target=self._run, daemon=True)
        self._thread.start()

    def _run(self) -> None:
        try:
            self._tokens = self._work()
        except BaseException as error:  # also what would end the thread without a word, such as SystemExit
            self._error = error

    @property
    def over(self) -> bool:
        """Whether there is a result, or no time left for one."""
        return not self._thread.is_alive() or time.monotonic() >= self._deadline

    def wait(self, seconds: float | None = None) -> None:
        """Blocks until the call is over, or for that many seconds."""
        left = max(0.0, self._deadline - time.monotonic())
        self._thread.join(left if seconds is None else min(left, seconds))

    def result(self) -> Sequence[int]:
        """The observation's tokens, once the call is over.

        Raises:
            ToolError: the tool refused, failed, or took too long.
        """
        if self._thread.is_alive():
            raise ToolTimeoutError(
                f"the tool took longer than its time limit of {self._limit:g} seconds: raise the tool's time_limit, "
                "or let it answer in parts"
            )
        if isinstance(self._error, ToolError):
            raise self._error
        if self._error is not None:
            raise fault("on its thread", self._error)
        return self._tokens
