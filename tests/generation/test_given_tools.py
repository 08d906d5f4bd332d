"""Functions and MCP servers as tools of a session: what the model reads, and that no other row waits."""

import sys
import time
from pathlib import Path

import pytest
from small_models import Heard
from test_text_tools import END, Script, call, make, play, start

from hf_toolssm.errors import UndescribedToolError, UnforkableToolError
from hf_toolssm.generation.session import Session
from hf_toolssm.generation.tool_loop import generate_with_tools
from hf_toolssm.protocol.given_tools import make_tools
from hf_toolssm.protocol.trajectory import Writer
from hf_toolssm.tools.function import Function
from hf_toolssm.tools.mcp import Mcp

COMMAND = [sys.executable, str(Path(__file__).parents[1] / "tools" / "mcp_server.py")]


def add(a: int, b: int) -> int:
    """Adds two numbers.

    Args:
        a: One.
        b: The other.
    """
    return a + b


def now() -> str:
    """Tells the time."""
    return "12:00"


def fail(text: str):
    """Fails.

    Args:
        text: Any.
    """
    raise OSError(text)


def test_a_session_calls_functions_and_goes_on_after_every_mistake():
    session = start(make_tools([add, now, fail]))
    (written,) = play(
        session,
        [*call("add", '{"a": 1, "b": 41}'), "x", "<|now|>", "y"]
        + [*call("add", '{"a": "1"}'), *call("add", "1, 2"), *call("fail", '{"text": "<|end|>"}'), *END],
    )
    assert written.startswith('<|add|>{"a": 1, "b": 41}<|/add|>42x<|now|>12:00y')
    assert "InvalidArgumentsError: add: a: \"1\" is not of type 'integer'; 'b' is a required property" in written
    assert "InvalidArgumentsError: add: the arguments are no JSON" in written
    assert written.endswith("ToolFaultError: the tool raised OSError on fail: <|end|><|end|>")
    assert session.rows[0].tool_calls == 2
    assert session.rows[0].error is None


def test_generate_takes_functions_themselves():
    tokenizer, model = make(make_tools([add, now]))
    model.config.tool_token_ids = None
    ids = tokenizer(["ab="], return_tensors="pt")["input_ids"]
    found = generate_with_tools(model, ids, tools=[add, now], tokenizer=tokenizer, max_new_tokens=5)
    assert found.shape[1] > ids.shape[1]
    with pytest.raises(UndescribedToolError, match="a lambda"):
        generate_with_tools(model, ids, tools=[lambda a: a], tokenizer=tokenizer)


def test_a_copy_of_a_row_has_the_function_too_but_no_method_unless_it_is_shared():
    class Account:
        def pay(self) -> None:
            """Pays."""

    session = start(make_tools([now]))
    assert session.clone().rows[0].tools[0] is session.rows[0].tools[0]
    with pytest.raises(UnforkableToolError, match="'pay' is not copied"):
        start(make_tools([Account().pay])).clone()
    start(make_tools([Function(Account().pay, fork="shared")])).clone()


class Order(Heard):
    """Which row was heard, in order, of the model or of a tool."""

    def __init__(self, rows):
        super().__init__(rows)
        self.events = []

    def take(self, events):
        super().take(events)
        self.events += [(event.row, bytes(event.writers)) for event in events]


def test_other_rows_go_on_while_a_call_to_a_server_takes_too_long():
    with Mcp(COMMAND, only=("sleep", "echo")) as mcp:
        assert {*mcp.schemas} == {"sleep", "echo"}
        mcp.time_limit = 1.0
        session = start([mcp], ["a", "b"])
        before = time.monotonic()
        heard = Order(2)
        slow = [*call("sleep", '{"seconds": 600}'), *call("echo", '{"said": "<|end|>"}'), *END]
        session.run(sink=heard, sampler=Script(session, slow, [*("x" * 200), *END]))
        assert time.monotonic() - before < 10
    first, second = ("".join(session.tokenizer.convert_ids_to_tokens(tokens)) for tokens in heard.tokens)
    assert "<|/sleep|>ToolTimeoutError: " in first
    assert first.endswith('<|echo|>{"said": "<|end|>"}<|/echo|><|end|><|end|>')
    assert session.rows[0].tool_calls == 1
    assert second == "x" * 200 + "<|end|>"
    observed = next(i for i, (row, writers) in enumerate(heard.events) if Writer.TOOL in writers)
    assert all(row == 0 for row, _ in heard.events[observed:])


def test_what_a_server_answers_and_how_it_ends_is_read_and_nothing_of_it_acts():
    with Mcp(COMMAND) as mcp:
        session = start([mcp])
        calls = [*call("big", '{"characters": 10000000}'), *call("fail", "{}"), *call("add", '{"a": 1}')]
        (written,) = play(session, [*calls, *call("crash", ""), *2 * call("count", '{"by": 3}'), *END])
        with pytest.raises(UnforkableToolError, match="is not copied"):
            session.clone()
    assert "<|/big|>ObservationTooLongError: the tool returned 10,000,000" in written
    assert "<|fail|>{}<|/fail|>no such file: <|end|><|add|>" in written
    assert "<|/add|>InvalidArgumentsError: add: 'b' is a required property." in written
    assert "<|/crash|>McpError: the MCP server" in written
    assert "<|/count|>(connected anew: what the server remembered is gone)\n3<|count|>" in written
    assert written.endswith("<|/count|>6<|end|>")
    assert session.rows[0].error is None


def test_a_tool_with_side_effects_is_never_called_ahead():
    (tool,) = make_tools([now])
    tokenizer, model = make([tool])
    model.config.tool_token_ids = None
    assert not Session.start(model, [[5]], tools=[now], tokenizer=tokenizer).protocol.allows_drafts
