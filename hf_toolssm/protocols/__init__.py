"""Steps to tokens: special command tokens, the task tokenizer, and rendering one cell at a time."""

from hf_toolssm.protocols.render import Renderer
from hf_toolssm.protocols.special_tokens import add_tool_tokens, tool_token_ids, tool_tokens
from hf_toolssm.protocols.task_tokenizer import build_task_tokenizer

__all__ = ["Renderer", "add_tool_tokens", "build_task_tokenizer", "tool_token_ids", "tool_tokens"]
