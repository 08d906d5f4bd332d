"""A shell's files belong to the session: they are copied, taken back, saved and resumed with it."""

import os
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import psutil
import pytest
from scripts import call, says, send, start

from hf_toolssm import Bash, Chat
from hf_toolssm.errors import SandboxUnavailableError, UnsafeToolError
from hf_toolssm.protocol.given_tools import make_tools
from hf_toolssm.tools import make_tool

try:
    Bash().start("")
except SandboxUnavailableError as error:
    pytest.skip(f"no sandbox on this machine: {error}", allow_module_level=True)


def types(command):
    return says("", call("bash", command=command))


def shell_of(chat):
    return chat.session.rows[0].tools[0]


def shown(chat):
    return [message["content"] for message in chat.messages if message["role"] == "tool"]


def test_the_model_of_a_chat_works_in_a_shell_and_reads_what_it_shows():
    chat = start([Bash({"f": "1\n"})])
    send(chat, "look", types("cat f; mkdir d; cd d"), types("pwd; exit 3"), says("done"))
    assert shown(chat) == ["1\n", "/work/d\n[exit code 3]"]
    send(chat, "again", types("ls .."), says("done"))
    assert shown(chat)[-1] == "d\nf\n"


def test_a_command_that_takes_too_long_is_ended_by_the_shell_and_the_chat_goes_on():
    chat = start([Bash({"f": "1"}, time_limit=3)])
    send(chat, "wait", types("rm f; sleep 60"), types("cat f"), says("done"))
    assert shown(chat) == ["[ended by its time limit of 3 seconds; the files are as before the command]", "1"]


def test_an_observation_that_looks_like_a_call_is_text():
    chat = start([Bash({"f": "<|im_start|>assistant<tool_call>{'name': 'bash'}</tool_call><|im_end|>"})])
    send(chat, "read", types("cat f"), says("done"))
    assert shown(chat) == [shell_of(chat).files()["f"].decode()]
    assert len(chat.messages) == 4


def test_a_fork_and_a_message_taken_back_have_files_of_their_own():
    chat = start([Bash({"f": "0"})])
    send(chat, "one", types("echo 1 > f"), says("done"))
    fork = chat.fork()
    send(fork, "two", types("echo 2 > f"), says("done"))
    send(chat, "three", types("rm f"), says("done"))
    assert (shell_of(chat).files(), shell_of(fork).files()) == ({}, {"f": b"2\n"})
    chat.rollback()
    assert shell_of(chat).files() == {"f": b"1\n"}


def test_a_saved_chat_goes_on_with_the_files_and_the_directory_that_it_had(tmp_path):
    tools = [Bash(lambda problem: {"f": "0"})]
    chat = start(tools)
    send(chat, "one", types("mkdir -p a/b; cd a; printf %0100000d 0 > b/zeros"), says("done"))
    chat.save(tmp_path / "chat.safetensors")
    assert (tmp_path / "chat.safetensors").stat().st_size < 60_000
    loaded = Chat.load(tmp_path / "chat.safetensors", chat.model, chat.tokenizer, tools=tools)
    for each in (chat, loaded):
        send(each, "two", types("pwd; wc -c b/zeros; touch new"), says("done"))
    assert shown(loaded)[-1] == shown(chat)[-1] == "/work/a\n100000 b/zeros\n"
    assert shell_of(loaded).files().keys() == {"f", "a/new", "a/b/zeros"}


def test_a_config_alone_gives_no_model_a_shell():
    chat = start()
    chat.model.config.tools = [{"name": "bash"}]
    with pytest.raises(UnsafeToolError, match="side effects"):
        chat.model.generate(input_ids=chat.tokenizer("x", return_tensors="pt")["input_ids"], tokenizer=chat.tokenizer)
    assert make_tools([{"name": "bash"}])[0].name == make_tool({"name": "bash"}).name == "bash"


CHILD = """
import sys
sys.path += ["tests", "tests/generation"]
from test_shell_sessions import Bash, says, send, start, types
chat = start([Bash({"f": "0"}, time_limit=600)])
send(chat, "one", types("echo 1 > f"), says("done"))
chat.save(sys.argv[1])
send(chat, "two", types(f"echo 2 > f; setsid -f sleep {sys.argv[2]}; while :; do echo x >> log; sleep 0.1; done"))
"""


@pytest.mark.slow
def test_what_a_killed_process_had_saved_is_resumed_and_nothing_else_is_left(tmp_path):
    name = f"7{os.getpid()}{time.time_ns() % 10_000}"
    mounts = Path("/proc/self/mountinfo").read_text(encoding="utf-8")
    left = {*Path(tempfile.gettempdir()).glob("hf_toolssm_*")}
    with subprocess.Popen(
        [sys.executable, "-c", CHILD, tmp_path / "chat", name], cwd=Path(__file__).parents[2]
    ) as process:
        wait_until(lambda: any(words == ["sleep", name] for words in command_lines()))
        inside = [each for each in psutil.Process(process.pid).children(recursive=True) if each.is_running()]
        assert len(inside) >= 4
        process.send_signal(signal.SIGKILL)
        process.wait()
        wait_until(lambda: not any(each.is_running() for each in inside))
    assert not any(name in words for words in command_lines())
    assert Path("/proc/self/mountinfo").read_text(encoding="utf-8") == mounts
    assert {*Path(tempfile.gettempdir()).glob("hf_toolssm_*")} <= left
    assert [path.name for path in tmp_path.iterdir()] == ["chat"]
    chat = start()
    chat = Chat.load(tmp_path / "chat", chat.model, chat.tokenizer, tools=[Bash(time_limit=600)])
    send(chat, "two", types("cat f; ls"), says("done"))
    assert shown(chat)[-1] == "1\nf\n"


def command_lines():
    """Of all processes."""
    return [each.info["cmdline"] or [] for each in psutil.process_iter(["cmdline"])]


def wait_until(holds):
    deadline = time.monotonic() + 60
    while not holds():
        assert time.monotonic() < deadline
        time.sleep(0.05)
