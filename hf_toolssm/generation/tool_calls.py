"""One tool call: carried out, limited in time, and its answer turned into tokens. Whatever goes wrong has a name.

| what the tool does | what happens |
|---|---|
| raises `ToolError` | the row ends with that error |
| raises anything else | the row ends with `ToolFaultError`, which says what was raised |
| takes longer than its `time_limit` | the row ends with `ToolTimeoutError`; the call is left to itself |
| returns None, or cells that are no tokens of the model | the row ends with `ToolFaultError` |
| returns an empty observation | the model goes on with nothing to read |
| returns more than `MAX_OBSERVATION` cells or characters | the row ends with `ObservationTooLongError` |
| returns bytes that are no UTF-8 | they are read with replacement characters |
| returns text with added tokens in it | they are read as plain text; no observation is ever carried out |
| returns text that has no tokens but added ones or the unknown one | the row ends with `ToolFaultError` |

A row that ends this way keeps its state; other rows are not touched.
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
    UnknownToolError,
    UnspellableTextError,
)
from hf_toolssm.protocols.plain_text import encode_plain
from hf_toolssm.tools import Tool, ToolSession

MAX_OBSERVATION = 1_000_000
"""Cells, or characters of text, that one observation may have: beyond it a tool has gone wrong."""

TIME_LIMIT = 30.0
"""Seconds for a call of a tool that does not say its `time_limit`."""


def time_limit(tool: Tool) -> float | None:
    """Seconds that a call of this tool may take; None for a tool that answers at once.

    Raises:
        UnknownToolError: the tool's `time_limit` is no such number.
    """
    limit = getattr(tool, "time_limit", TIME_LIMIT)
    if limit is not None and not 0 < limit <= threading.TIMEOUT_MAX:
        raise UnknownToolError(f"a tool's time_limit is a number of seconds above 0, or None, and not {limit!r}")
    return limit


def fault(what: str, error: BaseException) -> ToolFaultError:
    """A tool's exception as a fault with a short text, even if the exception has none."""
    try:
        text = str(error)[:500]
    except Exception:
        text = "(its text cannot be shown)"
    return ToolFaultError(f"the tool raised {type(error).__name__} {what}: {text}")


class ObservationReader:
    """What tools return, as tokens.

    Args:
        vocabulary: how many tokens the model has.
        tokenizer: for tools that return text.
    """

    def __init__(self, vocabulary: int, tokenizer: PreTrainedTokenizerBase | None) -> None:
        self._vocabulary = vocabulary
        self._tokenizer = tokenizer

    def call(self, session: ToolSession[int], command: str) -> Sequence[int]:
        """Carries out a command and returns the observation's tokens.

        Raises:
            ToolError: the tool refused the command, or failed; see the table above.
        """
        try:
            return self._tokens(session.execute(command), command)
        except ToolError:
            raise
        except (Exception, SystemExit) as error:
            raise fault(f"on {command}", error) from error

    def _tokens(self, observed: Any, command: str) -> Sequence[int]:
        if type(observed) is tuple and not observed:  # most commands show nothing
            return observed
        if not isinstance(observed, (tuple, list, str, bytes)):
            raise ToolFaultError(
                f"the tool returned {type(observed).__name__} on {command}: return cells as a tuple or a list, () for "
                "nothing, or text"
            )
        if len(observed) > MAX_OBSERVATION:
            raise ObservationTooLongError(
                f"the tool returned {len(observed):,} cells or characters on {command}, and an observation has at "
                f"most {MAX_OBSERVATION:,}: let the tool return a part and a way to ask for more"
            )
        if isinstance(observed, bytes):
            observed = observed.decode("utf-8", errors="replace")
        if isinstance(observed, str):
            observed = self._text(observed, command)
        for cell in observed:
            if type(cell) is not int or not 0 <= cell < self._vocabulary:
                raise ToolFaultError(f"the tool returned {cell!r} on {command}, which is no token of the model")
        return observed

    def _text(self, text: str, command: str) -> list[int]:
        if self._tokenizer is None:
            raise ToolFaultError(
                f"the tool returned text on {command} and no tokenizer is known: pass tokenizer= to generate"
            )
        try:
            return encode_plain(self._tokenizer, text)
        except UnspellableTextError as error:
            raise ToolFaultError(f"the tool returned text on {command} that has no tokens: {error}") from error


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
