"""Tools that a model calls while it generates. One file is one tool; nothing else needs editing.

The file `pointer_memory.py` holds the class `PointerMemory`; a config names it by the file's name:
`{"name": "pointer_memory", "max_pointers": 3}`. What a config can name is data, never code: only files of this
folder are tools, and the other keys are the class's keyword arguments.
"""

import pkgutil
from collections.abc import Mapping
from functools import cache
from importlib import import_module
from typing import Any

from hf_toolssm.errors import UnknownToolError
from hf_toolssm.tools.tool import Tool, ToolFacts, facts_of, with_options

__all__ = ["Tool", "ToolFacts", "available_tools", "class_name", "facts_of", "make_tool"]

_NOT_TOOLS = {
    "alphabet",
    "function",
    "key_value_file",
    "key_value_memory",
    "mcp",
    "sandbox",
    "schemas",
    "seccomp",
    "tool",
    "words",
}


@cache
def available_tools() -> tuple[str, ...]:
    """The names that a config may use, sorted."""
    return tuple(sorted(m.name for m in pkgutil.iter_modules(__path__) if m.name not in _NOT_TOOLS))


def make_tool(spec: Mapping[str, Any]) -> Tool:
    """The tool that a config describes.

    Args:
        spec: `name` and the tool's own options, for example `{"name": "pointer_memory", "max_pointers": 3}`.

    Raises:
        UnknownToolError: no file in hf_toolssm/tools/ has that name, or the tool does not take those options.
    """
    name = spec.get("name") if isinstance(spec, Mapping) else spec
    if not isinstance(spec, Mapping) or name not in available_tools():
        raise UnknownToolError(f"no tool is named {name!r}; the tools are {', '.join(available_tools())}")
    return with_options(getattr(import_module(f"{__name__}.{name}"), class_name(name)), spec)


def class_name(tool: str) -> str:
    """The class in a tool's file."""
    return "".join(part.title() for part in tool.split("_"))
