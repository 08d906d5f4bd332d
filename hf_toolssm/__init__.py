"""Mamba models that call tools while they generate, and keep one fixed-size state at any length.

Importing the package loads nothing heavy: each public name is imported on first use. transformers' Auto classes know
our architectures from then on, whichever of the two packages is imported first.
"""

from importlib import import_module
from types import ModuleType
from typing import TYPE_CHECKING, Any

import wrapt

if TYPE_CHECKING:
    from hf_toolssm.cache.recurrent_state import MambaState
    from hf_toolssm.generation.chat import Chat
    from hf_toolssm.generation.session import Session
    from hf_toolssm.generation.tool_loop import generate_with_tools
    from hf_toolssm.models.configuration_rmt import RmtConfig
    from hf_toolssm.models.configuration_rnn import RnnConfig
    from hf_toolssm.models.configuration_tool_mamba import ToolMambaConfig
    from hf_toolssm.models.modeling_rmt import RmtForCausalLM, RmtModel
    from hf_toolssm.models.modeling_rnn import RnnForCausalLM, RnnModel
    from hf_toolssm.models.modeling_tool_mamba import ToolMambaForCausalLM, ToolMambaModel
    from hf_toolssm.protocol.chat_tokens import add_chat_tokens
    from hf_toolssm.protocol.render import Renderer
    from hf_toolssm.protocol.special_tokens import add_tool_tokens
    from hf_toolssm.protocol.trajectory import Step, StepKind, Trajectory
    from hf_toolssm.tools.bash import Bash
    from hf_toolssm.tools.function import Declared, Function
    from hf_toolssm.tools.mcp import Mcp

__version__ = "0.1.0"

_HOME_OF = {
    "Renderer": "hf_toolssm.protocol.render",
    "add_chat_tokens": "hf_toolssm.protocol.chat_tokens",
    "add_tool_tokens": "hf_toolssm.protocol.special_tokens",
    "Bash": "hf_toolssm.tools.bash",
    "Declared": "hf_toolssm.tools.function",
    "Function": "hf_toolssm.tools.function",
    "Mcp": "hf_toolssm.tools.mcp",
    "generate_with_tools": "hf_toolssm.generation.tool_loop",
    "MambaState": "hf_toolssm.cache.recurrent_state",
    "Chat": "hf_toolssm.generation.chat",
    "Session": "hf_toolssm.generation.session",
    "RmtConfig": "hf_toolssm.models.configuration_rmt",
    "RmtForCausalLM": "hf_toolssm.models.modeling_rmt",
    "RmtModel": "hf_toolssm.models.modeling_rmt",
    "RnnConfig": "hf_toolssm.models.configuration_rnn",
    "RnnForCausalLM": "hf_toolssm.models.modeling_rnn",
    "RnnModel": "hf_toolssm.models.modeling_rnn",
    "Step": "hf_toolssm.protocol.trajectory",
    "StepKind": "hf_toolssm.protocol.trajectory",
    "ToolMambaConfig": "hf_toolssm.models.configuration_tool_mamba",
    "ToolMambaForCausalLM": "hf_toolssm.models.modeling_tool_mamba",
    "ToolMambaModel": "hf_toolssm.models.modeling_tool_mamba",
    "Trajectory": "hf_toolssm.protocol.trajectory",
}

__all__ = ["Chat", "Renderer", "Session", "Step", "StepKind", "Trajectory", "add_chat_tokens", "add_tool_tokens"]
__all__ += ["generate_with_tools"]
__all__ += ["Bash", "Declared", "Function", "Mcp"]
__all__ += ["MambaState", "ToolMambaConfig", "ToolMambaForCausalLM", "ToolMambaModel"]
__all__ += ["RmtConfig", "RmtForCausalLM", "RmtModel", "RnnConfig", "RnnForCausalLM", "RnnModel"]


def __getattr__(name: str) -> Any:
    if name in _HOME_OF:
        return getattr(import_module(_HOME_OF[name]), name)
    raise AttributeError(f"module 'hf_toolssm' has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted([*globals(), *_HOME_OF])


def _register_first(wrapped: Any, instance: Any, args: Any, kwargs: Any) -> Any:
    for home in sorted(set(_HOME_OF.values())):
        if ".modeling_" in home:
            import_module(home)  # registers its architecture
    return wrapped(*args, **kwargs)


# When one of them is called, and not at once: the import of transformers may stand in the middle of another one, from
# which our models would import.
@wrapt.when_imported("transformers.models.auto.configuration_auto")
def _make_configurations_known(module: ModuleType) -> None:
    for name in ("from_pretrained", "for_model"):
        wrapt.wrap_function_wrapper(module, f"AutoConfig.{name}", _register_first)


@wrapt.when_imported("transformers.models.auto.auto_factory")
def _make_models_known(module: ModuleType) -> None:
    for name in ("from_pretrained", "from_config"):
        wrapt.wrap_function_wrapper(module, f"_BaseAutoModelClass.{name}", _register_first)
