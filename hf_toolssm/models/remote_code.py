"""The code that a saved model carries, so that it runs its tools where hf_toolssm is not installed.

transformers loads such code from one folder of modules that import each other as `from .name import ...`. So the
modules of this package that `plain_tool_mamba.py` needs, and the tools that the model names, are written there as
`hf_toolssm_*.py`, so that they meet no file of the user's. Only their imports are changed, to relative ones.

transformers' `custom_generate/generate.py` would need the same modules with the same imports, and more: a model type
that transformers knows, whose `generate`, without `trust_remote_code`, writes on past the calls and runs no tool.
"""

import re
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from hf_toolssm.files import write_atomically
from hf_toolssm.sources import needed_sources
from hf_toolssm.tools import class_name

PREFIX = "hf_toolssm_"
ENTRY = "hf_toolssm.models.plain_tool_mamba"
TOOLS = "hf_toolssm.tools"
AUTO_MAP = {
    "AutoConfig": f"{PREFIX}plain_tool_mamba.PlainToolMambaConfig",
    "AutoModelForCausalLM": f"{PREFIX}plain_tool_mamba.PlainToolMambaForCausalLM",
}
"""A config's `auto_map`. Where the package is imported its own classes come first, and no remote code is loaded."""

_IMPORT = re.compile(r"^(\s*)from hf_toolssm(?:\.\w+)*\.(\w+) import ", re.MULTILINE)
_HEADER = "# Part of hf_toolssm, Apache-2.0: runs this model's tools where the package is not installed.\n"

_MAKE_TOOL = '''"""The tools that this model's config names."""

from collections.abc import Mapping
from typing import Any

from hf_toolssm.errors import UnknownToolError
from hf_toolssm.tools.tool import Tool, ToolFacts, facts_of, with_options
{imports}

_TOOLS = {{{entries}}}


def make_tool(spec: Mapping[str, Any]) -> Tool:
    """The tool that a config describes: its `name`, and its own options."""
    if spec.get("name") not in _TOOLS:
        raise UnknownToolError(
            f"this model carries no tool named {{spec.get('name')!r}}, only {{', '.join(_TOOLS)}}: install hf_toolssm"
        )
    return with_options(_TOOLS[spec["name"]], spec)
'''

_NO_SCHEMAS = '''"""A config names no tool with JSON Schemas, so this model needs no library that checks them."""

from typing import Any

from hf_toolssm.errors import InvalidSchemaError


def check_schemas(schemas: Any) -> Any:
    """Refuses them."""
    raise InvalidSchemaError("the code that this model carries runs no tool with schemas: install hf_toolssm")


def read_arguments(name: str, parameters: Any, written: Any) -> Any:
    """Refuses them."""
    check_schemas(parameters)
'''


def write_remote_code(folder: Path, tools: Iterable[Mapping[str, Any]]) -> list[Path]:
    """Writes the modules into a model's folder.

    Args:
        folder: exists.
        tools: the specs that the model's config names.

    Returns:
        The files.
    """
    names = sorted({spec["name"] for spec in tools})
    sources = needed_sources([ENTRY], given={TOOLS: _make_tool(names), f"{TOOLS}.schemas": _NO_SCHEMAS})
    written = []
    for module, source in sources.items():
        path = folder / f"{PREFIX}{module.rpartition('.')[2]}.py"
        assert path not in written, f"two modules of the package would both be {path.name}"
        write_atomically(path, _HEADER + _IMPORT.sub(rf"\1from .{PREFIX}\2 import ", source))
        written.append(path)
    return written


def _make_tool(names: list[str]) -> str:
    imports = "\n".join(f"from {TOOLS}.{name} import {class_name(name)}" for name in names)
    return _MAKE_TOOL.format(imports=imports, entries=", ".join(f'"{name}": {class_name(name)}' for name in names))
