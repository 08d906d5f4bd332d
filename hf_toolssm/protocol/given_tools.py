"""Tools in any form in which a caller gives them: specs, objects, Python functions."""

import inspect
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from functools import partial
from typing import Any, TypeAlias

from transformers.utils import get_json_schema
from transformers.utils.chat_template_utils import DocstringParsingException, TypeHintParsingException

from hf_toolssm.errors import UndescribedToolError, UnknownToolError
from hf_toolssm.tools import Tool, facts_of, make_tool
from hf_toolssm.tools.function import Declared, Function
from hf_toolssm.tools.tool import check_names

GivenTool: TypeAlias = Mapping[str, Any] | Tool | Function | Declared | Callable[..., Any]
"""A spec, a tool, or a function with type hints and a docstring."""


def make_tools(given: Sequence[GivenTool]) -> list[Tool]:
    """Tools as they were given, those that specs describe, and functions as tools.

    Raises:
        UnknownToolError: they are no list, one of them is neither a spec nor a tool, or two share a call.
        UndescribedToolError: a function says too little of itself.
        InvalidSchemaError: a tool's schema is none.
    """
    if isinstance(given, str | Mapping) or not isinstance(given, Sequence):
        raise UnknownToolError(f'tools is a list, as in [{{"name": "pointer_memory"}}], and not {given!r}')
    tools = [_make(tool) for tool in given]
    check_names([facts_of(tool) for tool in tools])
    return tools


def _make(given: Any) -> Any:
    if isinstance(given, Mapping | str):  # a text is neither a spec nor a tool, as `make_tool` says
        return make_tool(given)  # type: ignore[arg-type]
    if isinstance(given, Function):
        return given if given.schema is not None else replace(given, schema=describe(given.callable))
    if inspect.isroutine(given) or isinstance(given, partial):
        return Function(given, describe(given))
    return given


def describe(function: Callable[..., Any]) -> dict[str, Any]:
    """The schema of a function: its name, and what its type hints and its docstring, in Google's form, say.

    Of a `functools.partial` it is that of the function, without the arguments that are given already, under the
    partial's own `__name__` if it has one. Arguments that are not in the signature are refused.

    Raises:
        UndescribedToolError: a type hint, the docstring, a description or the name is missing.
    """
    inner, bound = (function.func, function) if isinstance(function, partial) else (function, partial(function))
    name: Any = getattr(function, "__name__", None) or getattr(inner, "__name__", "function")
    if name == "<lambda>":
        raise UndescribedToolError(f"a lambda has no name that a model could call: {_form('name', inner)}")
    try:
        parameters = inspect.signature(inner).parameters
        left = inspect.signature(partial(inner, *bound.args, **bound.keywords)).parameters
        schema = get_json_schema(inner)["function"]
    except (DocstringParsingException, TypeHintParsingException, NameError, TypeError, ValueError) as error:
        raise UndescribedToolError(f"{name} cannot be a tool: {error}\nFor that, {_form(name, inner)}") from error
    nameless = [key for key, each in left.items() if each.kind in (each.POSITIONAL_ONLY, each.VAR_POSITIONAL)]
    if nameless:
        raise UndescribedToolError(
            f"{name} cannot be a tool: a call gives every argument by name, and {nameless[0]!r} takes none"
        )
    properties = schema["parameters"]["properties"]
    unbound = [key for key in left if key not in properties]
    if unbound:
        raise UndescribedToolError(f"{name} cannot be a tool: it needs {unbound[0]!r}; pass the method of an object")
    others: Any = False
    for key, each in parameters.items():
        if each.kind is each.VAR_KEYWORD and bound.keywords:
            given = next(iter(bound.keywords))
            raise UndescribedToolError(
                f"{name} cannot be a tool: by its **{key} a call could give {given!r} anew; write a function without"
            )
        if each.kind is each.VAR_KEYWORD:
            others = {what: said for what, said in properties.pop(key).items() if what != "description"}
        elif key not in left or key in bound.keywords:
            properties.pop(key, None)  # `self` was never there
    required = [key for key in schema["parameters"].get("required", ()) if key in properties]
    said = {"type": "object", "properties": properties, "required": required, "additionalProperties": others}
    if not required:
        del said["required"]
    return {"name": name, "description": schema["description"], "parameters": said}


def _form(name: str, function: Callable[..., Any]) -> str:
    """How a function is written so that a model can be told of it."""
    try:
        arguments = [key for key in inspect.signature(function).parameters if key not in ("self", "cls")]
    except (TypeError, ValueError):  # one that is written in C
        arguments = ["city"]
    hints = ", ".join(f"{argument}: str" for argument in arguments)
    described = "".join(f"\n        {argument}: What it is." for argument in arguments)
    body = f"\n\n    Args:{described}\n    " if arguments else ""
    return f'write it as\n\ndef {name}({hints}) -> str:\n    """What it does.{body}"""'
