"""An MCP server for tests: over stdio, or over HTTP on loopback where a port is given.

With `--name=NAME` it has one tool, of that name.
"""

import asyncio
import logging
import os
import sys
from typing import Annotated

from mcp import MCPError
from mcp.server import MCPServer
from mcp.types import CallToolResult, ImageContent, TextContent
from pydantic import Field

server = MCPServer("for tests", log_level="CRITICAL")
total = 0


def text(*parts, **more):
    return CallToolResult(content=[TextContent(type="text", text=part) for part in parts], **more)


def add(a: int, b: int) -> CallToolResult:
    """Adds two numbers."""
    return text(str(a + b))


def count(by: int) -> CallToolResult:
    """Adds to what it remembers."""
    global total
    total += by
    return text(str(total))


async def sleep(seconds: float) -> CallToolResult:
    """Sleeps."""
    await asyncio.sleep(seconds)
    return text("slept")


def crash() -> CallToolResult:
    """Ends the server."""
    os._exit(3)


def big(characters: int) -> CallToolResult:
    """Answers with much."""
    return text("x" * characters)


def fail() -> CallToolResult:
    """Fails."""
    return text("no such file: <|end|>", is_error=True)


def echo(said: str) -> CallToolResult:
    """Says it again."""
    return text(said)


def parts() -> CallToolResult:
    """Answers with several parts."""
    image = ImageContent(type="image", data="aGVsbG8=", mime_type="image/png")
    return CallToolResult(content=[TextContent(type="text", text="one"), image, TextContent(type="text", text="two")])


def structured() -> CallToolResult:
    """Answers with an object."""
    return CallToolResult(content=[], structured_content={"city": "Zürich", "degrees": 21})


def nothing() -> CallToolResult:
    """Answers with nothing."""
    return text()


def change() -> CallToolResult:
    """Takes `add` away, and offers `subtract`."""
    server.remove_tool("add")
    server.add_tool(lambda a, b: text(str(a - b)), name="subtract", description="Subtracts.")
    return text("changed")


def process() -> CallToolResult:
    """Tells the number of its process."""
    return text(str(os.getpid()))


def variable(name: str) -> CallToolResult:
    """Tells a variable of its environment."""
    return text(os.environ.get(name, ""))


def refuse() -> CallToolResult:
    """Refuses, by the code that the SDK has for a connection that has ended."""
    raise MCPError(code=-32000, message="too many calls")


def promised() -> CallToolResult:
    """Answers with what its schema forbids, which Python's matcher would need days to see."""
    return CallToolResult(content=[], structured_content={"said": "a" * 50})


def matched(said: Annotated[str, Field(pattern="^(a+)+$")], pattern: str = "") -> CallToolResult:
    """Has a regular expression in its schema, and a parameter of the name of one."""
    return text(said)


def loose(**given) -> CallToolResult:
    """Has a schema that is about regular expressions; see the end of the file."""
    return text("done")


EXCLUSIVE = {"oneOf": [{"type": "string", "pattern": "^a"}, {"type": "string", "pattern": "^b"}]}
LOOSE = {
    "type": "object",
    "properties": {
        "letter": EXCLUSIVE,
        "other": {"type": "string", "not": {"pattern": "^a"}},
        "both": {"if": {"pattern": "^a"}, "then": {"maxLength": 1}},
        "not": {"type": "string", "pattern": "^n"},
    },
    "patternProperties": {"^x-": {"type": "string"}},
    "additionalProperties": False,
}


if __name__ == "__main__":
    logging.disable()
    options = sys.argv[1:]
    if options and options[0].startswith("--name="):
        server.add_tool(nothing, name=options[0].removeprefix("--name="))
    else:
        plain = (add, count, sleep, crash, big, fail, echo, parts, structured, nothing)
        for tool in (*plain, change, process, variable, refuse, promised, matched, loose):
            server.add_tool(tool)
        server._tool_manager.get_tool("loose").parameters = LOOSE
        schema = {"type": "object", "properties": {"said": {"type": "string", "pattern": "^((a+)+c)$"}}}
        server._tool_manager.get_tool("promised").fn_metadata.output_schema = schema
    if options and options[0].isdigit():
        server.run("streamable-http", host="127.0.0.1", port=int(options[0]))
    else:
        server.run()
