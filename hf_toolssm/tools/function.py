"""A Python callable as a tool, and one that only the caller of a chat can call.

| what it returns | the observation |
|---|---|
| str, bytes | that |
| None | nothing |
| anything else | JSON; what JSON does not know, by its `str` |

An exception is observed as any tool's is. `async def` runs to its end on the thread of the call. Arguments come as
JSON has them: an enum's value, a list for a tuple.
"""

import asyncio
import inspect
import json
from collections.abc import Callable, Mapping
from dataclasses import KW_ONLY, dataclass
from functools import partial
from typing import Any, ClassVar, Literal

from hf_toolssm.errors import InvalidSchemaError, UnknownToolError
from hf_toolssm.tools.schemas import check_schemas
from hf_toolssm.tools.tool import TIME_LIMIT


@dataclass(frozen=True, eq=False)
class Function:
    """A callable and what a model is told of it.

    Args:
        callable: gets the arguments by name.
        schema: `{"name": ..., "description": ..., "parameters": JSON Schema}`, also as the `"function"` of an OpenAI
            tool. None: `make_tools` derives it from the type hints and the docstring.
        fork: "copy" says that it remembers nothing, "shared" that copies of a row may share what it remembers. By
            default "never" for a method, whose object may remember, and "copy" for any other.
        time_limit, has_side_effects: see `Tool`.

    Raises:
        InvalidSchemaError: the schema is none.
    """

    callable: Callable[..., Any]
    schema: Mapping[str, Any] | None = None
    _: KW_ONLY
    fork: Literal["copy", "shared", "never"] | None = None
    time_limit: float | None = TIME_LIMIT
    has_side_effects: bool = True

    def __post_init__(self) -> None:
        if self.fork is None:
            object.__setattr__(self, "fork", "copy" if self.owner is None else "never")
        if self.schema is not None:
            check_schemas(self.schemas)

    @property
    def schemas(self) -> Mapping[str, Any]:
        """By its name, as `Tool` says them."""
        try:
            return _by_name(self.schema)
        except InvalidSchemaError as error:
            raise InvalidSchemaError(
                f"{self.callable!r}: {error}; or pass the function itself in tools=, where it is derived"
            ) from None

    @property
    def owner(self) -> Any:
        """The object of a bound method."""
        function = self.callable.func if isinstance(self.callable, partial) else self.callable
        return function.__self__ if inspect.ismethod(function) else None

    def call(self, name: str, arguments: Mapping[str, Any]) -> str | bytes:
        """Calls it; `name` is its own."""
        result = self.callable(**arguments)
        if inspect.iscoroutine(result):
            result = asyncio.run(result)
        if isinstance(result, str | bytes):
            return result
        return "" if result is None else json.dumps(result, ensure_ascii=False, default=str)


@dataclass(frozen=True)
class Declared:
    """A function that a model is told of, and that the caller of a chat carries out, as a server's clients do.

        chat = Chat.start(model, tokenizer, tools=[Declared(schema)])
        reply = chat.send("What is the weather in Paris?")  # ends at the model's calls
        reply = chat.answer([look_up(call["function"]) for call in reply.tool_calls])

    Args:
        schema: see `Function`.

    Raises:
        InvalidSchemaError: the schema is none.
    """

    schema: Mapping[str, Any]

    fork: ClassVar = "copy"
    time_limit: ClassVar = None
    has_side_effects: ClassVar = False

    def __post_init__(self) -> None:
        check_schemas(self.schemas)

    @property
    def schemas(self) -> Mapping[str, Any]:
        """By its name, as `Tool` says them."""
        return _by_name(self.schema)

    def call(self, name: str, arguments: Mapping[str, Any]) -> str:
        """Is never called: a chat ends its reply before."""
        raise UnknownToolError(f"{name} is declared, and only the caller of a chat carries it out")


def _by_name(schema: Any) -> Mapping[str, Any]:
    said = schema.get("function", schema) if isinstance(schema, Mapping) else schema
    if not isinstance(said, Mapping) or not isinstance(said.get("name"), str):
        raise InvalidSchemaError(f"it needs a schema with a name, a description and parameters, not {said!r:.200}")
    return {said["name"]: {key: said.get(key) for key in ("description", "parameters")}}
