"""mini-swe-agent repairs our problems through a real endpoint on loopback, and whatever the endpoint does is survived.

The tests that need it run where `MINI_SWE_PYTHON` is the Python of an environment with mini-swe-agent.
"""

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections import Counter

import pytest
from agent_files import reply, reply_in_wrong_format, trajectory
from conftest import ROOT, in_sandbox, run_script
from datasets import load_dataset
from scripted_endpoint import RUN, SUBMIT, serve, teacher

from dataset_builders.catalog import load_task
from hf_toolssm.errors import DatasetMismatchError
from hf_toolssm.protocol.messages import to_messages
from hf_toolssm.tools.tool import facts_of

PYTHON = os.environ.get("MINI_SWE_PYTHON")
STYLES = ("tool_calls", "text")

FAULTS = {
    "500": "out of memory",
    "reset": "Connection error",
    "slow": "Timeout",
    "garbage": "Unterminated string",
    "no choices": "IndexError",
}
"""Of the endpoint, and what names them in the report."""

with_agent = [
    in_sandbox,
    pytest.mark.slow,
    pytest.mark.skipif(not PYTHON, reason="needs MINI_SWE_PYTHON, a Python with mini-swe-agent"),
]


def words(endpoint, output, *more, python=PYTHON, style="tool_calls"):
    asked = ["--agent_python", python, "--api_base", endpoint.url, "--model", "scripted", "--output", output]
    return [
        *asked,
        "--style",
        style,
        "--max_length",
        "6",
        "--seed",
        "1",
        "--attempts",
        "1",
        "--request_seconds",
        "5",
        *more,
    ]


def run(endpoint, output, *more, **options):
    """What the recipe prints, and its files by number."""
    printed = run_script("recipes/distillation/run_agent.py", *words(endpoint, output, *more, **options))
    return printed, read(output)


def read(output):
    paths = sorted(output.glob("*.traj.json"))
    return {int(path.name[:6]): json.loads(path.read_text(encoding="utf-8")) for path in paths}


def distilled(folder, output, *more):
    asked = ["--trajectories", folder, "--output", output, *more]
    run_script("recipes/distillation/import_trajectories.py", *asked)
    return load_dataset(str(output), split="train")


@in_sandbox
def test_without_mini_swe_agent_the_error_says_what_to_install(tmp_path):
    with serve() as endpoint:
        with pytest.raises(ValueError, match="--agent_python .* does not start") as missing:
            run(endpoint, tmp_path / "out", python=tmp_path / "no_python")
        with pytest.raises(ValueError, match="pip install 'mini-swe-agent>=2.4,<3'") as empty:
            run(endpoint, tmp_path / "out", python=sys.executable)
    assert {type(error.value).__name__ for error in (missing, empty)} == {"AgentError"}
    assert "No module named" in (tmp_path / "out" / "agent.log").read_text(encoding="utf-8")


@in_sandbox
def test_a_folder_of_other_settings_is_refused_before_anything_runs(tmp_path):
    with serve() as endpoint:
        for seed, expected in (("1", "does not start"), ("2", "with another seed")):
            with pytest.raises(ValueError, match=expected) as error:
                run(endpoint, tmp_path, "--seed", seed, python=tmp_path / "no_python")
    assert isinstance(error.value, DatasetMismatchError)


@pytest.fixture(scope="module")
def repaired(tmp_path_factory):
    """Folders of trajectories of the teacher's rules, by style, with what was printed."""
    folders = {}
    for style in STYLES:
        with serve() as endpoint:
            output = tmp_path_factory.mktemp(style)
            printed, _ = run(endpoint, output, "--num_problems", "5", "--workers", "3", style=style)
            folders[style] = output, printed
    return folders


@pytest.mark.parametrize("style", STYLES, ids=STYLES)
class TestWithAgent:
    pytestmark = with_agent

    def test_repositories_are_repaired_and_the_rows_say_what_the_task_itself_would(self, repaired, tmp_path, style):
        """The model behind the endpoint follows the teacher's rules, so the rows are the task's own trajectories."""
        output, printed = repaired[style]
        assert "5 ran to an end, 5 are repaired, the endpoint failed on 0; Submitted 5" in printed
        task = load_task("code_fixing")
        tools = task.make_tools("three_files")
        for path in output.glob("*.traj.json"):  # one by one, as some are longer than the mean
            folder = tmp_path / path.stem
            folder.mkdir()
            shutil.copy(path, folder)
            (row,) = distilled(folder, tmp_path / f"rows of {path.stem}")
            expected = to_messages(task.solve(row["messages"][0]["content"], "three_files"), tools)
            assert wordless(row["messages"]) == wordless(expected)
            assert row["tools"][0]["function"] == facts_of(tools[0]).schemas["bash"]

    def test_the_writer_of_the_tests_writes_what_mini_swe_agent_writes(self, repaired, tmp_path, style):
        def policy(observations):
            return ("Done.", [SUBMIT]) if len(observations) > 1 else ("I look.", ["echo a"])

        asked = []

        def fault(body):
            asked.append(body)
            return "wrong format" if len(asked) == 2 else None

        with serve(policy, fault) as endpoint:
            _, contents = run(endpoint, tmp_path, "--num_problems", "1", style=style)
        steps = [reply("I look.", ("echo a", "a\n")), reply_in_wrong_format(), reply("I look.", ("echo a", "a\n"))]
        ours = trajectory(style, [*steps, reply("Done.", (SUBMIT, None))])
        found = contents[0]
        assert found.pop("problem")["solved"] is False
        assert shape(found) == shape(ours)

    def test_a_reply_in_a_wrong_format_is_asked_for_again_and_left_out_of_the_row(self, repaired, tmp_path, style):
        asked = Counter()

        def fault(body):
            asked[len(body["messages"])] += 1
            return ("wrong format" if style == "text" else "other tool") if asked.total() == 3 else None

        with serve(fault=fault) as endpoint:
            _, contents = run(endpoint, tmp_path / "out", "--num_problems", "1", style=style)
        (row,) = distilled(tmp_path / "out", tmp_path / "rows")
        assert contents[0]["problem"]["solved"]
        assert str(contents[0]["messages"]).count("'interrupt_type': 'FormatError'") == 1
        roles = [message["role"] for message in row["messages"]]
        assert roles == ["user", *["assistant", "tool"] * roles.count("tool"), "assistant"]

    def test_problems_that_the_endpoint_fails_on_are_named_and_tried_again(self, tmp_path, style):
        left = list(FAULTS)

        def once(body):
            return left.pop() if len(body["messages"]) == 4 and left else None

        more = ["--num_problems", "7", "--workers", "2"]
        with serve(fault=once) as endpoint:
            printed, contents = run(endpoint, tmp_path, *more, style=style)
            assert "2 ran to an end, 2 are repaired, the endpoint failed on 5" in printed
            named = [line for line in printed.splitlines() if line.startswith("problem ")]
            assert {int(line.split()[1]) for line in named} == {*range(7)} - contents.keys()
            assert all(sum(said in line for line in named) == 1 for said in FAULTS.values())
            before = len(endpoint.requests)
            printed, after = run(endpoint, tmp_path, *more, style=style)
        assert "7 ran to an end, 7 are repaired, the endpoint failed on 0" in printed
        assert {number: after[number] for number in contents} == contents
        assert sum(len(body["messages"]) == 2 for body, _ in endpoint.requests[before:]) == 5

    def test_how_the_model_itself_fails_is_the_trajectorys_end_and_no_row(self, tmp_path, style):
        begun = []

        def always(body):
            first = body["messages"][2:4]
            if len(first) < 2:
                return None
            if first not in begun:
                begun.append(first)
            return ("empty", "wrong format", "context")[begun.index(first)]

        with serve(fault=always) as endpoint:
            printed, _ = run(endpoint, tmp_path / "out", "--num_problems", "3", "--workers", "1", style=style)
        assert "3 ran to an end, 0 are repaired, the endpoint failed on 0" in printed
        with pytest.raises(ValueError, match="none of 3 files"):
            distilled(tmp_path / "out", tmp_path / "rows")
        report = json.loads((tmp_path / "rows" / "report.json").read_text(encoding="utf-8"))
        assert report["counts"] == {"ended by RepeatedFormatError": 2, "ended by ContextWindowExceededError": 1}


class TestWithAgentOnce:
    pytestmark = with_agent

    def test_several_calls_of_one_reply_are_all_carried_out(self, tmp_path):
        def policy(observations):
            words, commands = teacher(observations)
            edit, semicolon, _ = commands[0].rpartition("; ")
            return words, [edit, RUN] if semicolon else commands

        with serve(policy) as endpoint:
            _, contents = run(endpoint, tmp_path / "out", "--num_problems", "1")
        assert contents[0]["problem"]["solved"]
        (row,) = distilled(tmp_path / "out", tmp_path / "rows")
        calls = [len(message.get("tool_calls", ())) for message in row["messages"] if message["role"] == "assistant"]
        assert calls == [1, *[2] * (len(calls) - 2), 0]

    def test_who_submits_without_a_repair_or_takes_the_checks_away_has_not_solved_it(self, tmp_path):
        for name, command in {"nothing": "ls", "no calls": "echo 'print(1)' > main.py"}.items():

            def policy(observations, command=command):
                return "", [SUBMIT if observations else command]

            with serve(policy) as endpoint:
                printed, _ = run(endpoint, tmp_path / name, "--num_problems", "1")
            assert "1 ran to an end, 0 are repaired, the endpoint failed on 0; Submitted 1" in printed

    def test_the_step_limit_ends_a_run(self, tmp_path):
        with serve(lambda observations: ("", ["ls"])) as endpoint:
            printed, _ = run(endpoint, tmp_path, "--num_problems", "1", "--step_limit", "3")
            assert len(endpoint.requests) == 3
        assert "LimitsExceeded 1" in printed

    def test_an_endpoint_that_is_down_stops_the_command(self, tmp_path):
        down = pytest.raises(ValueError, match="10 problems in a row: .*out of memory")
        with serve(fault=lambda body: "500") as endpoint, down:
            run(endpoint, tmp_path, "--num_problems", "40")
        assert len(endpoint.requests) < 20

    def test_the_key_stands_in_no_file_and_nothing_is_written_to_the_home(self, tmp_path, monkeypatch):
        monkeypatch.setenv("OPENAI_API_KEY", "sk-very-secret")
        monkeypatch.setenv("HOME", str(tmp_path / "home"))
        (tmp_path / "home").mkdir()
        with serve() as endpoint:
            run(endpoint, tmp_path / "out", "--num_problems", "1")
        assert {headers["Authorization"] for _, headers in endpoint.requests} == {"Bearer sk-very-secret"}
        for path in (tmp_path / "out").iterdir():
            assert "sk-very-secret" not in path.read_text(encoding="utf-8")
        assert not list((tmp_path / "home").iterdir())

    @pytest.mark.parametrize("how", [signal.SIGINT, signal.SIGKILL])
    def test_interrupted_the_same_command_goes_on_and_nothing_is_left_running(self, tmp_path, how):
        def policy(observations):
            time.sleep(0.2)
            return teacher(observations)

        with serve(policy) as endpoint:
            more = ["--num_problems", "6", "--workers", "2"]
            command = [sys.executable, "recipes/distillation/run_agent.py", *words(endpoint, tmp_path, *more)]
            process = subprocess.Popen([*map(str, command)], cwd=ROOT, stderr=subprocess.DEVNULL)
            while len(read(tmp_path)) < 2:
                assert process.poll() is None
                time.sleep(0.02)
            process.send_signal(how)
            process.wait(60)
            before = read(tmp_path)
            time.sleep(1)
            asked = len(endpoint.requests)
            time.sleep(1)
            assert len(endpoint.requests) == asked
            printed, after = run(endpoint, tmp_path, *more)
        assert "6 ran to an end, 6 are repaired" in printed
        assert len(before) < 6
        assert {number: after[number] for number in before} == before


def wordless(messages):
    """Messages without what the assistant says beside its calls."""
    return [message | {"content": ""} if message["role"] == "assistant" else message for message in messages]


def shape(value, key=""):
    """What a JSON value is made of: its keys and the types of its values, and what says of what kind something is."""
    if isinstance(value, dict):
        return {key: shape(value[key], key) for key in sorted(value)}
    if isinstance(value, list):
        return [shape(each) for each in value]
    return value if key in _SAID else type(value).__name__


_SAID = ("role", "interrupt_type", "exit_status", "submission", "action_regex", "trajectory_format", "model_type")
_SAID += ("agent_type", "environment_type", "raw_output", "returncode", "n_actions", "command")
