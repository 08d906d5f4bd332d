"""The configuration of a Mamba that works through tools."""

from typing import Any

from huggingface_hub.dataclasses import strict
from transformers import MambaConfig

from hf_toolssm.errors import ArchitectureMismatchError, MissingToolTokensError
from hf_toolssm.protocols.special_tokens import tool_tokens
from hf_toolssm.tools import Tool, make_tool

_LOADABLE = ("mamba", "tool_mamba")


@strict
class ToolMambaConfig(MambaConfig):
    """A `MambaConfig` that names its tools, so that a checkpoint runs them with no further argument.

    Args:
        tools: the tools by name with their options, as data: `[{"name": "pointer_memory", "max_pointers": 3}]`.
        tool_token_ids: the id of every command, marker and of the answer marker.
        unknown_token_id: the id that the tokenizer gives to what it does not know; prompts that hold it are refused.

    Raises:
        UnknownToolError: a tool's name or option does not exist.
        MissingToolTokensError: a token of the named tools has no id.
    """

    model_type = "tool_mamba"

    tools: list | None = None
    tool_token_ids: dict | None = None
    unknown_token_id: int | None = None

    def __post_init__(self, **kwargs):
        super().__post_init__(**kwargs)
        if self.tools is not None:
            missing = [text for text in tool_tokens(self.make_tools()) if text not in (self.tool_token_ids or {})]
            if missing:
                raise MissingToolTokensError(
                    f"the config names tools but gives no id for {missing[0]!r}: set tool_token_ids with "
                    "hf_toolssm.protocols.tool_token_ids(tokenizer, tools)"
                )

    def make_tools(self) -> list[Tool]:
        """The tools that this config names, in order."""
        return [make_tool(spec) for spec in self.tools or []]

    @classmethod
    def get_config_dict(cls, *args: Any, **kwargs: Any) -> tuple[dict[str, Any], dict[str, Any]]:
        """Reads a checkpoint's config; a plain Mamba's is taken over, any other architecture's is refused.

        Raises:
            ArchitectureMismatchError: the checkpoint is of another architecture.
        """
        config_dict, remaining = super().get_config_dict(*args, **kwargs)
        found = config_dict.get("model_type")
        if found not in _LOADABLE:
            raise ArchitectureMismatchError(
                f"this checkpoint's model_type is {found!r}, and ToolMamba loads only Mamba checkpoints in "
                f"transformers' format ({' or '.join(_LOADABLE)}): choose such a one, or load this with its own class"
            )
        return {**config_dict, "model_type": cls.model_type}, remaining
