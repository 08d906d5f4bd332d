"""The loop that samples, recognises a command, runs the tool and feeds the observation."""

from hf_toolssm.generation.interface import ToolGenerateOutput
from hf_toolssm.generation.session import Session
from hf_toolssm.generation.tool_loop import generate_with_tools

__all__ = ["Session", "ToolGenerateOutput", "generate_with_tools"]
