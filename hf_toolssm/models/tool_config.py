"""What a model's configuration says of its tools, whatever the architecture."""

from dataclasses import dataclass
from typing import Any

from hf_toolssm.errors import MissingToolTokensError
from hf_toolssm.protocol.special_tokens import tool_tokens
from hf_toolssm.tools import Tool, make_tool


@dataclass(kw_only=True)
class ToolFields:
    """The fields by which a checkpoint runs its tools with no further argument. Stands before the configuration class.

    Args:
        tools: the tools by name with their options, as data: `[{"name": "pointer_memory", "max_pointers": 3}]`.
        tool_token_ids: the id of every token of a call, of every marker and of the answer marker.
        unknown_token_id: the id that the tokenizer gives to what it does not know; prompts that hold it are refused.

    Raises:
        UnknownToolError: a tool's name or option does not exist.
        MissingToolTokensError: a token of the named tools has no id.
    """

    tools: list | None = None
    tool_token_ids: dict | None = None
    unknown_token_id: int | None = None

    def __post_init__(self, **kwargs: Any) -> None:
        super().__post_init__(**kwargs)  # type: ignore[misc]  # of the configuration class behind this one
        if self.tools is not None:
            missing = [text for text in tool_tokens(self.make_tools()) if text not in (self.tool_token_ids or {})]
            if missing:
                raise MissingToolTokensError(
                    f"the config names tools but gives no id for {missing[0]!r}: set tool_token_ids with "
                    "hf_toolssm.protocol.special_tokens.tool_token_ids(tokenizer, tools)"
                )

    def make_tools(self) -> list[Tool]:
        """The tools that this config names, in order."""
        return [make_tool(spec) for spec in self.tools or []]
