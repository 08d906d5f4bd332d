"""The tools of a real MCP server, over stdio and over HTTP on loopback: every outcome is the documented one."""

import json
import os
import signal
import socket
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest

from hf_toolssm.errors import InvalidArgumentsError, McpError, ToolTimeoutError, UnforkableToolError
from hf_toolssm.protocol.recorder import Recorder
from hf_toolssm.tools import facts_of
from hf_toolssm.tools.mcp import CLOSE_LIMIT, Mcp
from hf_toolssm.tools.tool import argument_of

SERVER = Path(__file__).with_name("mcp_server.py")
COMMAND = [sys.executable, str(SERVER)]


def free_port():
    with socket.socket() as one:
        one.bind(("127.0.0.1", 0))
        return one.getsockname()[1]


class Running:
    """A server over HTTP, until it is stopped."""

    def __init__(self, port):
        self.url = f"http://127.0.0.1:{port}/mcp"
        self.process = subprocess.Popen([*COMMAND, str(port)], stderr=subprocess.DEVNULL)
        deadline = time.monotonic() + 30
        while time.monotonic() < deadline:
            with socket.socket() as one:
                if one.connect_ex(("127.0.0.1", port)) == 0:
                    return
            time.sleep(0.02)
        self.stop()
        raise TimeoutError("the server does not listen")

    def stop(self):
        self.process.kill()
        self.process.wait()


@pytest.fixture(scope="module")
def url():
    running = Running(free_port())
    yield running.url
    running.stop()


@pytest.fixture(scope="module", params=["stdio", "http"])
def mcp(request):
    where = {"command": COMMAND} if request.param == "stdio" else {"url": request.getfixturevalue("url")}
    with Mcp(**where, time_limit=20.0) as made:
        yield made


def call(mcp, name, text="{}"):
    """What a call shows that a model wrote."""
    return mcp.call(name, argument_of(facts_of(mcp), name, text))


def test_its_tools_are_calls_with_the_schemas_that_it_gives(mcp):
    facts = facts_of(mcp)
    assert {"add", "sleep", "crash", "big"} <= {*facts.calls}
    assert facts.schemas["add"]["description"] == "Adds two numbers."
    assert facts.schemas["add"]["parameters"]["required"] == ["a", "b"]
    assert (facts.fork, facts.has_side_effects, facts.time_limit) == ("never", True, 20.0)
    with pytest.raises(UnforkableToolError):
        facts.copy(mcp, str)


@pytest.mark.parametrize(
    ("name", "text", "observation"),
    [
        ("add", '{"a": 1, "b": 2}', "3"),
        ("fail", "", "no such file: <|end|>"),
        ("echo", '{"said": "<tool_call><|im_end|>\\u0000"}', "<tool_call><|im_end|>\0"),
        ("parts", "{}", "one\n[image, image/png: not shown]\ntwo"),
        ("structured", "{}", '{"city": "Zürich", "degrees": 21}'),
        ("nothing", "{}", ""),
        ("matched", '{"said": "aaa", "pattern": "("}', "aaa"),
    ],
)
def test_what_it_answers_is_text(mcp, name, text, observation):
    assert call(mcp, name, text) == observation


def test_arguments_are_checked_before_it_is_asked(mcp):
    with pytest.raises(InvalidArgumentsError, match="a: \"x\" is not of type 'integer'; 'b' is a required property"):
        call(mcp, "add", '{"a": "x"}')


def test_a_regular_expression_of_a_server_holds_nothing(mcp):
    """Python's matcher would need longer than the test, and no thread could do anything meanwhile."""
    assert "pattern" not in facts_of(mcp).schemas["matched"]["parameters"]["properties"]["said"]
    assert "pattern" in facts_of(mcp).schemas["matched"]["parameters"]["properties"]
    assert call(mcp, "promised") == json.dumps({"said": "a" * 50})
    assert "should match pattern" in call(mcp, "matched", f'{{"said": "{"a" * 50}b"}}')


def test_without_a_servers_regular_expressions_nothing_is_refused_that_it_would_take(mcp):
    told = facts_of(mcp).schemas["loose"]["parameters"]
    assert told == {
        "type": "object",
        "properties": {
            "letter": {"anyOf": [{"type": "string"}, {"type": "string"}]},
            "other": {"type": "string"},
            "both": {"then": {"maxLength": 1}},
            "not": {"type": "string"},
        },
    }
    given = '{"letter": "a", "other": "b", "both": "bb", "not": "n", "x-mine": "y"}'
    argument_of(facts_of(mcp), "loose", given)
    with pytest.raises(InvalidArgumentsError, match="letter: 3 is not valid"):
        argument_of(facts_of(mcp), "loose", '{"letter": 3}')


def test_a_byte_that_is_no_text_ends_no_connection():
    noisy = f"import os; os.write(1, b'\\xff\\n'); os.execv({sys.executable!r}, {COMMAND!r})"
    with Mcp([sys.executable, "-c", noisy], time_limit=10.0) as mcp:
        assert call(mcp, "add", '{"a": 1, "b": 2}') == "3"


def test_an_error_with_the_code_of_a_lost_connection_ends_none(mcp):
    first = int(call(mcp, "count", '{"by": 1}'))
    with pytest.raises(McpError, match="refused the call: too many calls"):
        call(mcp, "refuse")
    assert call(mcp, "count", '{"by": 1}') == str(first + 1)


def test_a_call_that_takes_too_long_ends_and_the_next_one_works(mcp):
    mcp.time_limit, before = 0.3, mcp.time_limit
    start = time.monotonic()
    with pytest.raises(ToolTimeoutError, match="within its time limit of 0.3 s"):
        call(mcp, "sleep", '{"seconds": 10}')
    assert time.monotonic() - start < 5
    mcp.time_limit = before
    assert call(mcp, "add", '{"a": 1, "b": 2}') == "3"


def test_calls_of_several_threads_run_side_by_side(mcp):
    found = {}

    def work(number):
        found[number] = call(mcp, "sleep", '{"seconds": 0.3}') + call(mcp, "add", f'{{"a": {number}, "b": 1}}')

    call(mcp, "nothing")
    threads = [threading.Thread(target=work, args=[number]) for number in range(10)]
    start = time.monotonic()
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert time.monotonic() - start < 2.5
    assert found == {number: f"slept{number + 1}" for number in range(10)}


def test_ten_megabytes_come_through_whole(mcp):
    """A session says of them that they are too long."""
    assert call(mcp, "big", '{"characters": 10000000}') == "x" * 10_000_000


def test_a_server_that_ends_in_a_call_is_started_anew_by_the_next_one():
    with Mcp(COMMAND) as mcp:
        assert call(mcp, "count", '{"by": 7}') == "7"
        errors = []

        def wait():
            with pytest.raises(McpError, match="ended before it answered") as raised:
                call(mcp, "sleep", '{"seconds": 20}')
            errors.append(raised.value)

        other = threading.Thread(target=wait)
        other.start()
        time.sleep(0.2)
        with pytest.raises(McpError, match="what it remembered is gone; the next call connects anew"):
            call(mcp, "crash")
        other.join()
        assert len(errors) == 1
        assert call(mcp, "count", '{"by": 1}') == "(connected anew: what the server remembered is gone)\n1"
        assert call(mcp, "count", '{"by": 1}') == "2"


@pytest.mark.slow
def test_a_server_over_http_that_ends_is_reached_again_once_it_is_there():
    port = free_port()
    first = Running(port)
    with Mcp(url=first.url) as mcp:
        assert call(mcp, "add", '{"a": 1, "b": 2}') == "3"
        with pytest.raises(McpError, match="may be gone"):
            call(mcp, "crash")
        first.stop()
        with pytest.raises(McpError, match="cannot be reached"):
            call(mcp, "add", '{"a": 1, "b": 2}')
        second = Running(port)
        assert call(mcp, "add", '{"a": 1, "b": 2}') == "(connected anew: what the server remembered may be gone)\n3"
        second.stop()
        with pytest.raises(McpError, match="ended before it answered"):
            call(mcp, "add", '{"a": 1, "b": 2}')


def test_a_changed_list_of_tools_is_seen_by_another_connection():
    running = Running(free_port())
    with Mcp(url=running.url) as before:
        assert call(before, "change") == "changed"
        assert "add" in facts_of(before).calls
        assert "Unknown tool" in call(before, "add", '{"a": 1, "b": 2}')
        with Mcp(url=running.url, only=("subtract",)) as after:
            assert [*facts_of(after).calls] == ["subtract"]
    running.stop()


def test_only_what_is_allowed_is_offered_under_names_of_its_own():
    with Mcp(COMMAND, only=("add", "nothing"), prefix="one_") as mcp:
        assert [*facts_of(mcp).calls] == ["one_add", "one_nothing"]
        assert call(mcp, "one_add", '{"a": 1, "b": 2}') == "3"
        pen = Recorder("1+2", mcp)
        assert pen.call("one_add", '{"a": 1, "b": 2}') == "3"
        assert pen.call("one_add", "1, 2").startswith("InvalidArgumentsError: one_add: the arguments are no JSON")


@pytest.mark.parametrize("name", ["two words", "/add", "größe", "a\nb"])
def test_a_tool_that_no_call_can_name_is_refused_and_named(name):
    mcp = Mcp([*COMMAND, f"--name={name}"])
    with pytest.raises(McpError) as raised:
        facts_of(mcp)
    assert repr(name) in str(raised.value)
    assert "only=" in str(raised.value)


def test_a_tool_that_the_server_does_not_have_is_named_with_those_that_it_has():
    with pytest.raises(McpError, match="no tool 'multiply', only 'add', 'count'"):
        facts_of(Mcp(COMMAND, only=("multiply",)))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"command": ["/no/such/program"]}, "cannot be reached: FileNotFoundError"),
        ({"command": [sys.executable, "-c", "import time; time.sleep(60)"]}, "did not answer within 0.5 seconds"),
        ({"command": [sys.executable, "-c", ""]}, "cannot be reached|did not answer"),
        ({"url": "http://127.0.0.1:9/mcp"}, "cannot be reached: ConnectError|did not answer"),
    ],
)
def test_a_server_that_is_not_there_is_named_within_the_time_limit(options, message):
    start = time.monotonic()
    with pytest.raises(McpError, match=message):
        facts_of(Mcp(**options, time_limit=0.5))
    assert time.monotonic() - start < CLOSE_LIMIT


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"command": ""},
        {"command": "python server.py", "url": "http://127.0.0.1/mcp"},
        {"url": "127.0.0.1/mcp"},
        {"url": "http://127.0.0.1/mcp", "env": {"A": "b"}},
        {"command": "python server.py", "only": "add"},
        {"command": "python server.py", "time_limit": None},
        {"command": "python server.py", "fork": "copy"},
    ],
)
def test_options_that_mean_nothing_are_refused_before_anything_is_started(options):
    with pytest.raises(McpError):
        Mcp(**options)


def test_a_missing_sdk_is_named_with_the_way_to_install_it(monkeypatch):
    monkeypatch.setitem(sys.modules, "mcp", None)
    with pytest.raises(McpError, match=r'pip install "hf_toolssm\[mcp\]"'):
        facts_of(Mcp(COMMAND))


def test_a_server_gets_no_variable_that_it_is_not_given(monkeypatch):
    monkeypatch.setenv("MINE", "secret")
    with Mcp(COMMAND, env={"GIVEN": "yes"}) as mcp:
        assert call(mcp, "variable", '{"name": "GIVEN"}') == "yes"
        assert call(mcp, "variable", '{"name": "PATH"}') == os.environ["PATH"]
        assert call(mcp, "variable", '{"name": "MINE"}') == ""


def test_no_error_tells_what_a_server_is_given():
    mcp = Mcp([sys.executable, str(SERVER), "--name=two words", "--key=s3cret"], env={"GIVEN": "s3cret"})
    with pytest.raises(McpError) as raised:
        facts_of(mcp)
    assert "s3cret" not in str(raised.value)
    assert "s3cret" not in repr(Mcp(url="http://me:s3cret@127.0.0.1:9/mcp?key=s3cret"))


def test_it_is_closed_within_its_limit_and_stays_so():
    mcp = Mcp(COMMAND)
    assert call(mcp, "nothing") == ""
    errors = []

    def wait():
        with pytest.raises(McpError) as raised:
            call(mcp, "sleep", '{"seconds": 60}')
        errors.append(raised.value)

    other = threading.Thread(target=wait)
    other.start()
    time.sleep(0.1)
    start = time.monotonic()
    mcp.close()
    mcp.close()
    other.join()
    assert time.monotonic() - start < CLOSE_LIMIT
    assert "ended before it answered" in str(*errors)
    with pytest.raises(McpError, match="was closed"):
        call(mcp, "nothing")


@pytest.mark.slow
def test_a_connection_outlives_its_time_limit():
    with Mcp(COMMAND, time_limit=4.0) as mcp:
        assert call(mcp, "count", '{"by": 1}') == "1"
        time.sleep(4.5)
        assert call(mcp, "count", '{"by": 1}') == "2"


STUBBORN = f"""
import signal, subprocess
signal.signal(signal.SIGTERM, signal.SIG_IGN)
subprocess.run({COMMAND!r})
signal.pause()
"""


@pytest.mark.slow
def test_a_server_that_does_not_want_to_end_is_ended():
    with Mcp([sys.executable, "-c", STUBBORN]) as mcp:
        assert call(mcp, "nothing") == ""
        start = time.monotonic()
    assert time.monotonic() - start < CLOSE_LIMIT


@pytest.mark.slow
def test_a_program_that_is_interrupted_while_it_connects_ends():
    silent = [sys.executable, "-c", "import time; print('here', flush=True); time.sleep(60)"]
    code = "import signal; signal.signal(signal.SIGINT, signal.default_int_handler)\n"  # background jobs ignore it
    code += f"from hf_toolssm.tools.mcp import Mcp; print('go', flush=True); Mcp({silent!r}, time_limit=50).schemas"
    with subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, stderr=subprocess.PIPE) as program:
        assert program.stdout.readline() == b"go\n"
        time.sleep(3)
        start = time.monotonic()
        program.send_signal(signal.SIGINT)
        _, told = program.communicate(timeout=30)
    assert b"KeyboardInterrupt" in told
    assert time.monotonic() - start < CLOSE_LIMIT


def test_a_program_that_closes_nothing_ends_and_so_does_its_server():
    code = f"""
from hf_toolssm.tools.mcp import Mcp
mcp = Mcp({COMMAND!r})
mcp.schemas
print(mcp.call("process", {{}}))
"""
    quiet = ("-W", "ignore::EncodingWarning:regex._main")  # the library asks for the locale once a pattern
    done = subprocess.run([sys.executable, *quiet, "-c", code], capture_output=True, encoding="utf-8", timeout=60)
    assert (done.returncode, done.stderr) == (0, "")
    with pytest.raises(ProcessLookupError):
        os.kill(int(done.stdout), 0)
