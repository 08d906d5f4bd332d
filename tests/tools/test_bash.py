"""A shell in a sandbox: what a model reads of a command, and what becomes of files, limits, copies and rows."""

import json
import os
import platform
import re
import socket
import subprocess
import sys
import tempfile
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import psutil
import pytest

from hf_toolssm.errors import (
    InvalidCommandError,
    InvalidWorkdirError,
    SandboxUnavailableError,
    UnknownToolError,
    UnsafeToolError,
)
from hf_toolssm.protocol.messages import from_messages, to_messages
from hf_toolssm.tools import facts_of, make_tool
from hf_toolssm.tools.bash import LONGEST_COMMAND, Bash
from hf_toolssm.tools.sandbox import check_sandbox, interpreter
from hf_toolssm.tools.seccomp import SYSTEM_CALLS

try:
    Bash().start("")
except SandboxUnavailableError as error:
    pytest.skip(f"no sandbox on this machine: {error}", allow_module_level=True)

HOLD = "python3 -c 'import time; held = b\"1\" * (40 << 20); time.sleep(60)'"
AS_BEFORE = "the files are as before the command]"


def shell(workdir=None, **options):
    return Bash(workdir, **options).start("a problem")


def run(*commands, workdir=None, **options):
    """What the last of some commands shows."""
    made = shell(workdir, **options)
    return [made.call("bash", command) for command in commands][-1]


@pytest.mark.parametrize("sandbox", [True, False])
@pytest.mark.parametrize(
    ("commands", "shown"),
    [
        (["echo hi"], "hi\n"),
        (["printf hi"], "hi"),
        ([""], ""),
        (["# nothing"], ""),
        (["exit 3"], "[exit code 3]"),
        (["printf hi; exit 3"], "hi\n[exit code 3]"),
        (["echo hi; false"], "hi\n[exit code 1]"),
        (["kill -9 $$"], "[exit code 137]"),
        (["no_such_program"], "bash: line 1: no_such_program: command not found\n[exit code 127]"),
        (["echo a; echo b >&2; echo c"], "a\nb\nc\n"),
        (["cat <<X\n a\n'b'\nX\necho \"$((1 + 1))\""], " a\n'b'\n2\n"),
        (["cat; read line; echo $?"], "1\n"),
        (["printf 'a\\0b\\033[1m\\377'"], "a\0b\x1b[1m\N{REPLACEMENT CHARACTER}"),
        (["echo ä€𝄞"], "ä€𝄞\n"),
        (["echo 1 > f", "cat f"], "1\n"),
        (["mkdir -p a/b && cd a/b", "echo x > c; cd ..", "ls b; cat b/c"], "c\nx\n"),
        (["mkdir a; cd a", "exit 2", "basename $PWD"], "a\n"),
        (["mkdir a; cd a; kill -9 $$", "ls"], "a\n"),
        (["mkdir a; cd a; rmdir ../a", "basename $PWD"], "work\n"),
        (["mkdir a; cd a; exec true", "basename $PWD"], "work\n"),
        (["mkdir $'a\\n\\xff b'; cd a*", 'basename "$PWD" | od -An -c'], "   a  \\n 377       b  \\n\n"),
        (["cd /usr/bin", "pwd"], "/usr/bin\n"),
        (["cd /tmp; echo x > kept_nowhere", "ls | grep kept; pwd"], "/tmp\n"),
        (["x=1; f() { :; }; export x", "echo $x; f"], "\nbash: line 1: f: command not found\n[exit code 127]"),
        (["--help"], "bash: line 1: --help: command not found\n[exit code 127]"),
        (["exec 9>&-; mkdir a; cd a", "echo forged >&9; printf '\\0/usr\\0' >&9; basename $PWD"], "work\n"),
        (["diff <(echo a) <(echo a) && echo same"], "same\n"),
    ],
)
def test_what_a_command_shows(commands, shown, sandbox):
    if "/tmp" not in commands[0] or sandbox:
        assert run(*commands, sandbox=sandbox) == shown


def test_long_output_is_shown_at_its_begin_and_its_end():
    shown = run("seq 100000", output=1024)
    whole = "".join(f"{number}\n" for number in range(1, 100_001))
    assert shown == f"{whole[:512]}\n[... {len(whole) - 1024:,} bytes left out ...]\n{whole[-512:]}"


def test_output_of_ten_megabytes_and_one_that_is_as_long_as_may_be():
    shown = run("head -c 10000000 /usr/bin/python3 /usr/bin/*gcc* /usr/lib/*/lib*.so* | head -c 10000000; exit 4")
    assert len(shown) < 40_000
    assert shown.endswith("\n[exit code 4]")
    assert run("yes | head -c 1024", output=1024) == "y\n" * 512
    assert "[... 2 bytes left out ...]" in run("yes | head -c 1026", output=1024)


@pytest.mark.parametrize("sandbox", [True, False])
def test_a_process_that_is_left_behind_holds_up_nothing_and_ends(sandbox):
    made, name = shell(sandbox=sandbox), f"7{os.getpid()}{time.time_ns() % 1000}"
    assert made.call("bash", f"sleep {name} & sleep {name} & echo done") == "done\n"
    left = [each for each in psutil.process_iter(["cmdline"]) if name in (each.info["cmdline"] or ())]
    assert not left or not sandbox
    _, alive = psutil.wait_procs(left, timeout=10)  # killed, and in no namespace that would be waited for
    assert not alive


SET_UP = r"""
chmod 640 a
touch -d '2001-02-03 04:05:06.123456789' a
ln -s a l; ln -s /usr m; ln -s ../../.. n; ln a h
mkfifo p
echo > .hidden; echo x > -C; echo y > $'f\n\xff'; echo z > --checkpoint-action=exec=id
truncate -s 1M sparse
touch 'a  b' '*'; chmod u+s 'a  b'; chmod 0 '*'
mkdir d; chmod 000 d; chmod 711 .
"""
LOOK = r"""
stat -c '%n %a %Y %F %h' -- * .h* . | sort
stat -c %y a | cut -c 21-29
readlink l m n
cat -- h* ./-C; od -An -c f*
"""


def test_a_process_that_leaves_its_session_without_a_sandbox_holds_nothing_up():
    left = "setsid -f sh -c 'echo $$ > number; exec sleep 600'"
    wait = "until [ -s number ]; do sleep 0.1; done; cat number"
    number = shell(sandbox=False, time_limit=60).call("bash", f"{left}; {wait}")
    assert int(number)  # and no limit of time
    psutil.Process(int(number)).kill()


def test_files_are_kept_with_all_that_belongs_to_them():
    made = shell({"a": "1"})
    made.call("bash", SET_UP)
    before = made.call("bash", LOOK)
    assert "123456789" in before
    assert "fifo" in before
    assert "a  b 4644 " in before
    assert made.call("bash", LOOK) == before
    assert made.clone().call("bash", LOOK) == before
    assert Bash().restore(made.state()).call("bash", LOOK) == before


def test_a_file_that_is_edited_within_a_second_to_the_same_size_is_run_as_it_is():
    made = shell({"main.py": "import part\nprint(part.value)", "part.py": "value = 1"})
    for value in (2, 3, 4):
        assert made.call("bash", f"sed -i 's/[0-9]/{value}/' part.py; python3 main.py") == f"{value}\n"


def test_a_socket_is_not_kept_and_everything_else_is():
    assert (
        run("python3 -c 'import socket; socket.socket(1).bind(\"s\")'; echo > f; cd /usr", "pwd; ls /work")
        == "/usr\nf\n"
    )


def test_a_tool_counts_the_commands_of_all_its_shells_that_took_too_long():
    tool = Bash(time_limit=1)
    first, second = tool.start(""), tool.start("")
    first.call("bash", "sleep 0")
    assert tool.late_calls == 0
    second.clone().call("bash", "sleep 60")
    assert "its time limit of 1 seconds" in first.call("bash", "sleep 60")
    assert tool.late_calls == 2


@pytest.mark.parametrize(
    ("command", "limit", "options"),
    [
        ("sleep 60", "time limit of 3 seconds", {"time_limit": 3}),
        ("yes", "limit of 65,536 bytes of output", {"size": "64K"}),
        (
            "for i in 1 2 3; do python3 -c 'import time; x = b\"1\" * (40 << 20); time.sleep(60)' & done; wait",
            "memory",
            {},
        ),
        ("cd /work; python3 -c 'for i in range(90_000): open(str(i), \"w\")'; sleep 60", "memory", {}),
    ],
)
def test_what_a_limit_ends_leaves_files_and_directory_as_they_were(command, limit, options):
    made = shell({"d/f": "kept"}, memory="64M", **options)
    made.call("bash", "cd d")
    shown = made.call("bash", f"echo begun; echo lost > f; rm -r /work/*; cd /usr; {command}")
    assert shown.startswith("begun\n")
    assert limit in shown.splitlines()[-1]
    assert shown.endswith(AS_BEFORE)
    assert made.files() == {"d/f": b"kept"}
    assert made.call("bash", "cat f") == "kept"


def test_what_one_process_wants_beyond_a_limit_is_refused_and_the_command_goes_on():
    limits = {"memory": "64M", "size": "1M", "processes": 20}
    memory = "python3 -c 'bytearray(80 << 20)' 2>&1 | tail -n 1"
    assert run(memory, **limits) == "MemoryError\n"
    assert "No space left" in run("for i in 1 2 3 4; do head -c 400K /dev/urandom > $i; done; echo on", **limits)
    assert "File size limit exceeded" in run("head -c 2M /dev/urandom > f; echo on", **limits)
    assert "Resource temporarily unavailable" in run("for i in {1..30}; do sleep 9 & done; echo on", **limits)


def test_rows_work_side_by_side_and_one_that_takes_too_long_disturbs_none():
    tool = Bash(lambda problem: {"mine": problem}, time_limit=60)
    slow = Bash(time_limit=1).start("")
    shells = [tool.start(f"row {number}") for number in range(32)]
    with ThreadPoolExecutor(33) as threads:
        late = threads.submit(slow.call, "bash", "yes > /dev/null & sleep 60")
        shown = [
            threads.submit(each.call, "bash", "mine=$(cat mine); echo $mine | tee mine; sleep 0.2") for each in shells
        ]
        assert [each.result() for each in shown] == [f"row {number}\n" for number in range(32)]
        assert late.result().endswith(AS_BEFORE)
    assert [each.files() for each in shells] == [{"mine": f"row {number}\n".encode()} for number in range(32)]
    assert threading.active_count() < 10


def test_copies_have_files_of_their_own():
    made = shell({"f": "0"})
    made.call("bash", "mkdir d; cd d")
    other = made.clone()
    assert other._files is made._files
    made.call("bash", "echo 1 > ../f; cd ..")
    other.call("bash", "echo 2 > ../f")
    assert (made.files()["f"], other.files()["f"]) == (b"1\n", b"2\n")
    assert (made.call("bash", "pwd"), other.call("bash", "pwd")) == ("/work\n", "/work/d\n")


def test_a_state_is_small_and_json_and_a_command_that_changes_nothing_leaves_it():
    made = shell({f"f{number}.py": f"def f{number}(): pass\n" for number in range(100)})
    made.call("bash", "mkdir $'\\xff'; cd $'\\xff'")
    state = made.state()
    small = json.loads(json.dumps({key: value for key, value in state.items() if not isinstance(value, np.ndarray)}))
    assert state["files"].nbytes < 20_000
    restored = Bash().restore({**small, "files": state["files"].copy()})
    assert restored.files() == made.files()
    assert restored.call("bash", "ls ..; pwd") == made.call("bash", "ls ..; pwd")
    assert np.array_equal(restored.state()["files"], state["files"])
    assert made.state()["directory"] == state["directory"]


def test_saved_files_that_are_too_large_are_refused():
    made = shell({"f": bytes(10 * 2**20)})
    assert made.state()["files"].nbytes < 100_000
    with pytest.raises(InvalidWorkdirError, match="larger than its size"):
        Bash(size="1M").restore(made.state())


def test_the_files_are_a_folder_s_a_mapping_s_or_the_problem_s(tmp_path):
    (tmp_path / "sub" / "empty").mkdir(parents=True)
    (tmp_path / "sub" / "f").write_bytes(b"\xff")
    (tmp_path / "run").write_text("#!/bin/sh\necho ran", encoding="utf-8")
    (tmp_path / "run").chmod(0o4755)
    (tmp_path / "link").symlink_to("/etc/shadow")
    (tmp_path / "loop").symlink_to(".")
    made = shell(tmp_path)
    assert made.files().keys() == {"run", "sub/f"}
    assert made.call("bash", "./run; readlink link loop; stat -c '%a %u' run; rm -r *; touch new") == (
        "ran\n/etc/shadow\n.\n755 1000\n"
    )
    assert {path.name for path in tmp_path.iterdir()} == {"sub", "run", "link", "loop"}
    assert shell(str(tmp_path)).files() == shell(tmp_path).files()
    assert run("find . -type f -exec head {} +", workdir={"a/b/c": "1", "a/b d": b""}).count("==>") == 2
    assert Bash(lambda problem: {"f": problem}).start("x").files() == {"f": b"x"}
    assert Bash().start("x").files() == {}


@pytest.mark.parametrize("path", ["/f", "../f", "a/../f", "./f", "a//f", "a/", "", ".", "a\0", 3, "d/f/g"])
def test_a_path_that_leads_elsewhere_is_refused(path):
    with pytest.raises(InvalidWorkdirError, match="a relative path"):
        Bash({"d/f": "", path: ""})


def test_files_that_no_shell_can_have_are_refused(tmp_path):
    with pytest.raises(InvalidWorkdirError, match="has no folder"):
        Bash(tmp_path / "none")
    for files, reason in (
        ({"f": 3}, "text or bytes, and not int"),
        ({"f": "\ud800"}, "half a character"),
        ({"f\ud800": ""}, "half a character"),
        ({"d/" + "ä" * 128: ""}, "has 256 bytes"),
    ):
        with pytest.raises(InvalidWorkdirError, match=reason):
            Bash(files)
    with pytest.raises(InvalidWorkdirError, match="take 8,192 bytes or more, .* its size is 4,096"):
        Bash({"f": "x" * 4097}, size="4K")
    (tmp_path / "f").write_bytes(bytes(4097))
    with pytest.raises(InvalidWorkdirError, match="its size is 4,096"):
        Bash(tmp_path, size="4K")
    with (tmp_path / "huge").open("wb") as file:
        file.truncate(2**40)  # it is refused before it is read
    with pytest.raises(InvalidWorkdirError, match="its size is 67,108,864"):
        Bash(tmp_path)
    (tmp_path / "huge").unlink()
    os.mkfifo(tmp_path / "p")
    with pytest.raises(InvalidWorkdirError, match="'p' .* is a pipe"):
        Bash(tmp_path)


def test_what_is_in_the_files_can_be_taken_out_and_put_in(tmp_path):
    made = shell({"a/f": "1", "g": "2"})
    made.call("bash", "ln -s f a/l; ln g h; cd a")
    made.put("a/f", "new")
    made.put("b/c", b"\0")
    made.put("h", "alone")
    assert made.files() == {"a/f": b"new", "b/c": b"\0", "g": b"2", "h": b"alone"}
    (tmp_path / "other").write_text("kept", encoding="utf-8")
    (tmp_path / "g").symlink_to("other")
    made.copy_to(tmp_path)
    copied = {name: (tmp_path / name).read_text(encoding="utf-8") for name in ("a/l", "g", "h", "other")}
    assert copied == {"a/l": "new", "g": "2", "h": "alone", "other": "kept"}
    assert made.call("bash", "cat l ../g ../h; pwd") == "new2alone/work/a\n"
    for path in ("a", "g/x", "a/l/x", "../x"):
        with pytest.raises(InvalidWorkdirError):
            made.put(path, "")
    assert made.call("bash", "cat l") == "new"


@pytest.mark.parametrize("command", ["ln -s /etc e", "ln -s ../.. e", "mkfifo e", "ln -s /etc e; mkdir d; mv e d"])
def test_nothing_that_leads_out_of_the_files_is_copied(tmp_path, command):
    made = shell({"f": "1"})
    made.call("bash", command)
    with pytest.raises(InvalidWorkdirError):
        made.copy_to(tmp_path / "copied")
    assert made.files() == {"f": b"1"}


def test_a_file_of_many_names_is_in_memory_once_and_a_link_to_a_link_is_no_file(tmp_path):
    made = shell({"f": "1"})
    made.call("bash", "for i in 1 2 3; do ln f f$i; done; ln -s loop loop; ln loop b; ln -s nowhere c; ln c d")
    files = made.files()
    assert files.keys() == {"f", "f1", "f2", "f3"}
    assert len({id(content) for content in files.values()}) == 1
    made.copy_to(tmp_path)
    assert {path.name for path in tmp_path.iterdir()} == {"f", "f1", "f2", "f3", "loop", "b", "c", "d"}


def test_what_a_folder_cannot_take_is_named(tmp_path):
    (tmp_path / "f").mkdir()
    with pytest.raises(InvalidWorkdirError, match="cannot take"):
        shell({"f": "1"}).copy_to(tmp_path)


def test_sparse_files_that_are_too_long_are_not_read():
    made = shell(size="1M")
    assert made.call("bash", "for i in {1..9}; do truncate -s 1M $i; done; du -s . | cut -f 1") == "0\n"
    assert made.call("bash", "ls | wc -l") == "9\n"
    with pytest.raises(InvalidWorkdirError, match="9,437,184 bytes long"):
        made.files()


def test_a_command_that_no_shell_can_be_given_is_refused():
    made = shell()
    assert made.call("bash", f": {'x' * (LONGEST_COMMAND - 2)}") == ""
    for command in (f": {'x' * (LONGEST_COMMAND - 1)}", "echo \0", "echo \ud800", "ä" * LONGEST_COMMAND):
        with pytest.raises(InvalidCommandError):
            made.call("bash", command)


@pytest.mark.parametrize(
    "options",
    [
        {"time_limit": 0},
        {"time_limit": True},
        {"time_limit": float("nan")},
        {"time_limit": "30"},
        {"processes": 1.5},
        {"processes": -1},
        {"memory": "512"},
        {"memory": "0M"},
        {"size": -1},
        {"size": 1.5},
        {"output": "1T"},
        {"output": None},
        {"network": 1},
        {"sandbox": None},
    ],
)
def test_an_option_that_is_none_is_refused(options):
    with pytest.raises(UnknownToolError, match=f"bash: .*{next(iter(options))}"):
        Bash(**options)


def test_a_config_names_it_and_only_code_lets_it_near_this_machine(tmp_path):
    tool = make_tool({"name": "bash", "time_limit": 3, "size": "1M"})
    assert (tool.limits.time, tool.limits.size) == (3, 2**20)
    assert facts_of(tool).has_side_effects
    assert facts_of(tool).time_limit > 3
    for option, value in {"sandbox": False, "network": True, "workdir": str(tmp_path)}.items():
        with pytest.raises(UnsafeToolError, match=f"'{option}'"):
            make_tool({"name": "bash", option: value})


def test_a_chat_calls_the_argument_a_command():
    tool = Bash(time_limit=7)
    (schema,) = facts_of(tool).schemas.values()
    assert schema["parameters"]["required"] == ["command"]
    assert "7 seconds" in schema["description"]
    messages = [
        {"role": "user", "content": "look"},
        {
            "role": "assistant",
            "content": "",
            "tool_calls": [{"type": "function", "function": {"name": "bash", "arguments": {"command": "ls"}}}],
        },
        {"role": "tool", "name": "bash", "content": "f"},
        {"role": "assistant", "content": "f"},
    ]
    assert to_messages(from_messages(messages, [tool]), [tool]) == messages


def test_the_host_s_network_is_there_only_if_it_is_asked_for():
    with socket.create_server(("127.0.0.1", 0)) as server:
        command = f"exec 5<>/dev/tcp/127.0.0.1/{server.getsockname()[1]} && echo reached"
        assert "reached" not in run(command)
        assert run(command, network=True) == "reached\n"
    abstract = f"hf_toolssm {os.urandom(8).hex()}"
    with socket.socket(socket.AF_UNIX) as server:
        server.bind(f"\0{abstract}")
        server.listen()
        command = (
            f"python3 -c 'import socket; socket.socket(socket.AF_UNIX).connect(\"\\0{abstract}\")' 2>&1 | tail -n 1"
        )
        assert run(command, network=True) == "PermissionError: [Errno 1] Operation not permitted\n"


def test_without_a_sandbox_nothing_is_left_in_the_temporary_folder(monkeypatch, tmp_path):
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    made = shell({"d/f": "1"}, sandbox=False, time_limit=3, size="1M")
    assert made.call("bash", "pwd; cd d; chmod 0 f .").startswith(str(tmp_path))
    assert made.files() == {"d/f": b"1"}
    assert made.call("bash", "basename $PWD; rm f; sleep 60").endswith(AS_BEFORE)
    assert made.call("bash", "yes").endswith(AS_BEFORE)
    assert made.files() == {"d/f": b"1"}
    assert not list(tmp_path.iterdir())


def test_the_interpreter_is_that_of_the_system():
    assert re.fullmatch(r"Python 3\.\d+\.\d+\S*", interpreter())
    assert run("python3 --version") == interpreter() + "\n"


def test_without_bubblewrap_it_says_what_to_install(monkeypatch, tmp_path):
    monkeypatch.setenv("PATH", str(tmp_path))
    check_sandbox.cache_clear()
    try:
        with pytest.raises(SandboxUnavailableError, match="apt install bubblewrap"):
            Bash().start("")
        with pytest.raises(SandboxUnavailableError, match="apt install bubblewrap"):
            Bash().restore({})
    finally:
        check_sandbox.cache_clear()


def test_where_user_namespaces_are_forbidden_it_says_so_and_runs_nothing():
    code = "from hf_toolssm.tools.bash import Bash; Bash({'f': ''}).start('')"
    forbidden = ["bwrap", "--dev-bind", "/", "/", "--unshare-user", "--disable-userns", "--uid", "1000", "--"]
    done = subprocess.run(
        [*forbidden, sys.executable, "-c", code], capture_output=True, encoding="utf-8", cwd=Path(__file__).parents[2]
    )
    assert "SandboxUnavailableError: no shell runs in a sandbox here" in done.stderr
    assert "let the system allow user namespaces" in done.stderr


@pytest.mark.parametrize(
    ("header", "column"),
    [(f"/usr/include/{platform.machine()}-linux-gnu/asm/unistd_64.h", 0), ("/usr/include/asm-generic/unistd.h", 1)],
)
def test_system_calls_have_the_kernel_s_numbers(header, column):
    if not Path(header).exists():
        pytest.skip(f"this machine has no {header}")
    text = Path(header).read_text(encoding="utf-8")
    found = dict(re.findall(r"#define __NR(?:3264)?_(\w+)\s+(\d+)", text))
    assert {name: int(found[name]) for name in SYSTEM_CALLS} == {name: n[column] for name, n in SYSTEM_CALLS.items()}
