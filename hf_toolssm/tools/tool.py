"""What a tool is: calls by name, and what carries them out for one problem.

A tool never learns how a call was written. It gets the call's name and its argument, and gives back an observation:

| it reads | argument | observation |
|---|---|---|
| text, the default | str | str, or bytes that are read as UTF-8 |
| text, with `schemas` | a dict, checked against the call's schema | the same |
| cells | a tuple of cells, () where the call takes none | a tuple or list of cells, () for nothing |

One that reads cells is also told, by `write`, what the model thinks and outputs.

The smallest is an object with a name:

    class Clock:
        name = "clock"

        def call(self, name: str, argument: str) -> str:
            return datetime.now(UTC).isoformat()

One that remembers has `start`, which gives what works on one problem (it has `call`, and `state` where it can be
saved), and `restore`, which gives that back from its state. Without `start` one object serves all rows.
"""

import copy
import inspect
import re
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from typing import Any, Literal, NamedTuple, Protocol, TypeVar

from hf_toolssm.errors import (
    InvalidSchemaError,
    ToolError,
    ToolFaultError,
    UnforkableToolError,
    UnknownToolError,
    UnsafeToolError,
)
from hf_toolssm.tools.schemas import check_schemas, read_arguments

Cell = TypeVar("Cell")
"""A memory cell. The dataset builders use its text; `generate` uses its token id, so that what a tool stores and gives
back is never decoded and encoded again (token in, token out)."""

TIME_LIMIT = 30.0
"""Seconds for a call of a tool that does not say its `time_limit`."""

NO_PARAMETERS = {"type": "object", "properties": {}, "additionalProperties": False}
"""Of a call without an argument."""


class View(NamedTuple):
    """What a person who reads along sees of a memory of cells; place 0 is the problem's first.

    Attributes:
        start: the place of the first cell.
        stop: the place behind the last.
        marks: by name, the places that a pointer, a head or a match stands on.
    """

    start: int
    stop: int
    marks: Mapping[str, range]


class AtWork(Protocol[Cell]):
    """A tool at work on one problem. `write`, `clone` and `state` are only of tools that remember, `view` and `cell`
    of those whose memory is cells that a person can look at, as `recipes/trace.py` shows it."""

    def call(self, name: str, argument: Any) -> Any:
        """Carries out a call and returns its observation; see the table above.

        Nothing that is observed is ever a call, a marker or an end: text has no special tokens in it.

        Raises:
            ToolError: it cannot be carried out, and nothing has changed.
        """

    def write(self, cell: Cell) -> None:
        """Takes a thought or an output that the model has just written. Only of tools that read cells."""

    def clone(self) -> "AtWork[Cell]":
        """The same, independent of this one. Without it a fork is `restore(state())`."""

    def state(self) -> Mapping[str, Any]:
        """All that is remembered: numpy arrays for what is large, JSON values for the rest. It may be the tool's own,
        since it is copied before it is changed."""

    def view(self) -> View:
        """Where memory begins and ends and what stands in it, in constant time. Between two views memory grows at its
        ends, and a call changes only a cell on which a mark of one place stood."""

    def cell(self, at: int) -> Cell:
        """The cell at a place within memory."""


class Tool(Protocol):
    """What all problems share. Only `name`, `calls` or `schemas` is needed; `call` or `start` is.

    Attributes:
        name: of the one call that it has, with an argument, unless `calls` or `schemas` says others.
        calls: the name of every call, and whether it takes an argument. `schemas` say so too.
        schemas: `{"description": str, "parameters": JSON Schema of an object}` of every call. The model then writes
            that object as JSON, and `call` gets it as a dict. Only of tools that read text.
        parameter: what a chat calls the argument of a tool of text without `schemas`, "argument" if it does not say.
        description: what a chat tells a model of such a tool; the first line of its class's docstring if it does not.
        owner: calls of one owner that the model makes in one turn run in order, and all others side by side. That is
            what works on the problem, where a tool has `start`; else none if it does not say.
        markers: cells that only the tool writes, such as the begin of memory. They become special tokens.
        unit: "text" or "cells", what it reads and writes.
        time_limit: seconds that a call may take, 30 if it does not say. None is a promise that a call takes no more
            than a few milliseconds, that a clone is cheap at any length, and that neither touches anything else: such
            calls run at once, may run on a clone to draft ahead, and have no limit. Calls with a limit run on threads
            of their own, those of several rows side by side; one that is given up must not change anything afterwards.
        has_side_effects: whether it touches anything but what it remembers, as a shell or a network does; true if it
            does not say, and then it never runs on a clone. A config may name such a tool, but it runs only where the
            caller passes it; making it must touch nothing yet.
        not_in_specs: options that a config must not decide on.
        on_error: "observe": the error's text is the observation, of tools that read text if they do not say; "end":
            the row ends with the error, of tools that read cells always, because an error's text is none.
        late_calls: how many calls, of all rows together, the tool itself has ended because they took too long. Only of
            tools that do so.
        fork: what becomes of it in a copy of a row: "copy", "shared" (both rows have it) or "never" (a row that has it
            is neither copied nor saved).
    """

    def start(self, problem: Any, marker: Callable[[str], Cell]) -> AtWork[Cell]:
        """What works on a new problem. One that reads text is started with the problem's text alone.

        Args:
            problem: its cells, the initial memory.
            marker: the cell for a marker's text (its token id in `generate`, the text itself in a builder).
        """

    def restore(self, state: Mapping[str, Any], marker: Callable[[str], Cell]) -> AtWork[Cell]:
        """What has that state; one that reads text gets the state alone."""


@dataclass(frozen=True)
class ToolFacts:
    """What a tool says of itself, and what holds where it does not say; see `Tool`.

    Attributes:
        schemas: of every call of a tool of text `{"name", "description", "parameters"}`, as a chat template gets it.
        parameter: the name of a text argument where a chat has arguments by name.
        gets_dict: whether `call` gets arguments as a dict.
    """

    tool: Any
    calls: Mapping[str, bool]
    schemas: Mapping[str, Mapping[str, Any]]
    parameter: str
    gets_dict: bool
    markers: tuple[str, ...]
    unit: Literal["text", "cells"]
    time_limit: float | None
    has_side_effects: bool
    on_error: Literal["observe", "end"]
    fork: Literal["copy", "shared", "never"]

    @property
    def remembers(self) -> bool:
        """Whether every problem has one of its own at work."""
        return hasattr(self.tool, "start")

    @property
    def is_told(self) -> bool:
        """Whether it hears, by `write`, what the model thinks and outputs."""
        return self.unit == "cells" and self.remembers

    def owner(self, at_work: Any) -> Any:
        """Whose calls of one turn run in order with those of this one; None where they run beside all others."""
        return at_work if self.remembers else getattr(self.tool, "owner", None)

    def start(self, problem: Any, marker: Callable[[str], Any]) -> Any:
        """What works on a problem, given as cells, or as text for a tool that reads text."""
        if not self.remembers:
            return self.tool
        return self.tool.start(problem, marker) if self.unit == "cells" else self.tool.start(problem)

    def restore(self, state: Mapping[str, Any], marker: Callable[[str], Any]) -> Any:
        """What has that state."""
        if not self.remembers:
            return self.tool
        if not hasattr(self.tool, "restore"):
            raise UnforkableToolError(f"{self.tool!r} has no restore(state): write it, or set fork = 'never'")
        return self.tool.restore(state, marker) if self.unit == "cells" else self.tool.restore(state)

    def state(self, at_work: Any) -> Mapping[str, Any]:
        """What is to be saved of it.

        Raises:
            UnforkableToolError: it is not to be saved.
        """
        self._check_fork("saved")
        return self._state_of(at_work) if self.remembers else {}

    def copy(self, at_work: Any, marker: Callable[[str], Any]) -> Any:
        """What a copy of its row has.

        Raises:
            UnforkableToolError: it is not to be copied.
        """
        self._check_fork("copied")
        if self.fork == "shared" or not self.remembers:
            return at_work
        if hasattr(at_work, "clone"):
            return at_work.clone()
        return self.restore(copy.deepcopy(self._state_of(at_work)), marker)

    def _state_of(self, at_work: Any) -> Mapping[str, Any]:
        state = at_work.state() if hasattr(at_work, "state") else None
        if not isinstance(state, Mapping) or not hasattr(self.tool, "restore"):
            raise UnforkableToolError(
                f"{type(at_work).__name__} cannot be copied or saved: give it state(), which returns a mapping, and "
                "its tool restore(state); or set fork = 'never'"
            )
        return state

    def _check_fork(self, done: str) -> None:
        if self.fork == "never":
            raise UnforkableToolError(
                f"a row with the tool {next(iter(self.calls))!r} is not {done}, as its `fork` says: end the row "
                "first, or let it say another"
            )


def facts_of(tool: Any) -> ToolFacts:
    """What holds of a tool.

    Raises:
        UnknownToolError: it is no tool, or says something of itself that there is not.
        InvalidSchemaError: its schemas are none, or not those of its calls.
    """
    schemas = {} if isinstance(tool, type) or not hasattr(tool, "schemas") else check_schemas(tool.schemas)
    calls = getattr(tool, "calls", None) or {
        name: said["parameters"] != NO_PARAMETERS for name, said in schemas.items()
    }
    calls = calls or ({tool.name: True} if hasattr(tool, "name") else None)
    works = callable(getattr(tool, "call", None)) or callable(getattr(tool, "start", None))
    if not calls or not works or isinstance(tool, type):
        raise UnknownToolError(
            f"{tool!r} is no tool: give a spec, as in {{'name': 'pointer_memory'}}, or an object with a name (or "
            "calls) and a method call(name, argument), or start(problem)"
        )
    if not isinstance(calls, Mapping) or not all(
        isinstance(name, str) and CALL_NAME.fullmatch(name) and isinstance(has, bool) for name, has in calls.items()
    ):
        raise UnknownToolError(
            "a tool's calls are a mapping from names, of ASCII characters without space and not beginning with /, to "
            f"whether they take an argument, and not {calls!r}"
        )
    unit: Any = getattr(tool, "unit", "text")
    if schemas and (unit != "text" or {*schemas} != {*calls}):
        raise InvalidSchemaError(
            f"schemas are of tools that read text, one for every call: there are {', '.join(schemas)} for the calls "
            f"{', '.join(calls)}"
        )
    said = schemas or _default_schemas(tool, calls)
    told = {name: {"name": name, **said[name]} for name in calls}
    facts = ToolFacts(
        tool=tool,
        calls=calls,
        schemas=told if unit == "text" else {},
        parameter=getattr(tool, "parameter", "argument"),
        gets_dict=bool(schemas),
        markers=tuple(getattr(tool, "markers", ())),
        unit=unit,
        time_limit=getattr(tool, "time_limit", TIME_LIMIT),
        has_side_effects=getattr(tool, "has_side_effects", True),
        on_error=getattr(tool, "on_error", "observe" if unit == "text" else "end"),
        fork=getattr(tool, "fork", "copy"),
    )
    if facts.unit == "cells" and facts.on_error == "observe":
        raise UnknownToolError("on_error of a tool that reads cells is 'end', because an error's text is no cell")
    limit = facts.time_limit
    if limit is not None and not (isinstance(limit, int | float) and 0 < limit <= LONGEST_LIMIT):
        raise UnknownToolError(f"a tool's time_limit is a number of seconds above 0, or None, and not {limit!r}")
    for what, allowed in _ALLOWED.items():
        if getattr(facts, what) not in allowed:
            raise UnknownToolError(f"a tool's {what} is one of {', '.join(allowed)}, and not {getattr(facts, what)!r}")
    return facts


def _default_schemas(tool: Any, calls: Mapping[str, bool]) -> dict[str, dict[str, Any]]:
    """Of a tool that says none: its calls take a text, or nothing."""
    parameter = getattr(tool, "parameter", "argument")
    description = getattr(tool, "description", None) or (type(tool).__doc__ or "").strip().partition("\n")[0]
    takes_text = {
        "type": "object",
        "properties": {parameter: {"type": "string"}},
        "required": [parameter],
        "additionalProperties": False,
    }
    return {
        name: {"description": description, "parameters": takes_text if takes else NO_PARAMETERS}
        for name, takes in calls.items()
    }


def argument_of(facts: ToolFacts, name: str, written: str | Mapping[str, Any]) -> Any:
    """What a tool of text gets for what the model wrote.

    Args:
        facts: of the tool.
        name: of the call.
        written: the text between the call's tokens, or the arguments as a chat template's parser gave them.

    Returns:
        A dict for a tool with schemas, and a text for any other.

    Raises:
        InvalidArgumentsError: it is not what the call's schema says.
    """
    if isinstance(written, str) and not facts.gets_dict:
        return written
    arguments = read_arguments(name, facts.schemas[name]["parameters"], written)
    return arguments if facts.gets_dict else arguments.get(facts.parameter, "")


def check_names(tools: Sequence[ToolFacts]) -> None:
    """Finds two calls of one name.

    Raises:
        UnknownToolError: two of the tools share a call.
    """
    names = Counter(name for facts in tools for name in facts.calls)
    shared = [name for name, count in names.items() if count > 1]
    if shared:
        raise UnknownToolError(f"two of the tools share a call, {shared[0]!r}: give each tool once, or rename one")


def unit_of(tools: Sequence[ToolFacts]) -> Literal["text", "cells"]:
    """What is written where these tools work: text if all of them read text, and cells otherwise."""
    return "text" if tools and all(facts.unit == "text" for facts in tools) else "cells"


def text_of(observed: Any, call: str) -> str:
    """The text of what a tool that reads text has returned.

    Raises:
        ToolFaultError: it is neither text nor bytes.
    """
    if not isinstance(observed, str | bytes):
        raise ToolFaultError(f"the tool returned {type(observed).__name__} on {call}: return text, and '' for nothing")
    return observed.decode("utf-8", errors="replace") if isinstance(observed, bytes) else observed


def cells_of(observed: Any, call: str) -> Sequence[Any]:
    """The cells of what a tool that reads cells has returned.

    Raises:
        ToolFaultError: it is neither a tuple nor a list.
    """
    if not isinstance(observed, tuple | list):
        raise ToolFaultError(
            f"the tool returned {type(observed).__name__} on {call}: return cells as a tuple or a list, and () for "
            "nothing"
        )
    return observed


def error_text(error: ToolError) -> str:
    """What the model reads of an error that is an observation; `?` stands for halves of characters."""
    return f"{type(error).__name__}: {error}"[:500].encode("utf-8", "replace").decode()


CALL_NAME = re.compile("(?!/)[!-~]+")

LONGEST_LIMIT = 1e6
"""Seconds; threads cannot wait for much more."""

_ALLOWED = {"unit": ("text", "cells"), "on_error": ("observe", "end"), "fork": ("copy", "shared", "never")}


@cache
def _parameters_of(tool_class: Callable[..., Any]) -> Sequence[str]:
    return list(inspect.signature(tool_class).parameters)


def with_options(tool_class: Callable[..., Any], spec: Mapping[str, Any]) -> Any:
    """A tool with the options of a spec, which are all its keys but `name`.

    Raises:
        UnknownToolError: the tool does not take one of them.
        UnsafeToolError: the tool's `not_in_specs` names one, because a config must not decide on it.
    """
    options = {key: value for key, value in spec.items() if key != "name"}
    parameters = _parameters_of(tool_class)
    unknown = sorted(set(options) - set(parameters))
    if unknown:
        raise UnknownToolError(
            f"tool {spec['name']!r} has no option {unknown[0]!r}; its options are {', '.join(parameters)}"
        )
    unsafe = sorted(set(options) & set(getattr(tool_class, "not_in_specs", ())))
    if unsafe:
        raise UnsafeToolError(
            f"no config decides on {unsafe[0]!r} of the tool {spec['name']!r}: make {tool_class.__name__} in your code"
        )
    return tool_class(**options)
