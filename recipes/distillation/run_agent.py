"""Runs a language model under mini-swe-agent on problems of `code_fixing`, with any OpenAI-compatible endpoint.

    python -m venv agent && agent/bin/pip install "mini-swe-agent>=2.4,<3"
    OPENAI_API_KEY=... python recipes/distillation/run_agent.py --agent_python agent/bin/python \\
        --api_base http://localhost:8000/v1 --model Qwen/Qwen3-Coder-30B --output outputs/agent

This is the paper's third teacher of code fixing (section 4, task 6, c): a model of software engineering that is told
to work three files at a time. mini-swe-agent's dependencies pin versions that this package cannot share, so it runs in
an environment of its own, by `agent_worker.py`; its commands run here, in the sandbox of `Bash`, and it reads of them
what any model of ours would. Whether a repository was repaired is decided by the task's own check of the final files.

Every problem becomes one file of mini-swe-agent's format, with a `problem` beside what that has. The same command goes
on where it was interrupted, and tries again what the endpoint failed on. `import_trajectories.py` makes rows of them.
"""

import json
import os
import queue
import re
import subprocess
import tempfile
import threading
from collections import Counter
from collections.abc import Callable, Mapping
from concurrent.futures import Future, ThreadPoolExecutor, as_completed
from contextlib import closing
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from tqdm import tqdm
from transformers import HfArgumentParser

from dataset_builders.problem_sets import TRAINING, ProblemSet, problem_at
from dataset_builders.task import task_tool
from dataset_builders.tasks.code_fixing import CodeFixing
from hf_toolssm.errors import DatasetMismatchError, ToolError, ToolSSMError
from hf_toolssm.evaluation.report import write_json
from hf_toolssm.files import escape_unprintable
from hf_toolssm.tools.bash import Shell
from hf_toolssm.tools.tool import ToolFacts, argument_of, error_text, facts_of, text_of

STYLES = {
    "tool_calls": "You repair programs with the tool bash. Every reply calls it once, after a few words of reasoning.",
    "text": (
        "You repair programs in a shell. Every reply has a few words of reasoning and exactly one command, in a block "
        "like this one:\n\n```mswea_bash_command\nls\n```"
    ),
}
"""What the system says, by how the model writes its commands."""

TASK = """\
Here stands a Python program: main.py, and a file for each function that it uses. `python3 main.py` fails.

- The variable v10, which main.py sets, is used in foo.py, but it is not passed there. It has to become the last \
parameter and the last argument of every function and call between main.py and foo.
- There may be other bugs of one line: a misspelt name, a missing import, a missing colon, an argument too many or \
too few.

Repair it, and change nothing else. The lines of main.py that set v0 to v10 stay as they are; v10 is set nowhere else.

Work on three files at a time: run the program, read the last three frames and the error, edit at most these three \
files, for example with sed, and run it again, until it does not fail any more. Files and the working directory are \
kept from command to command. At the end run this, and nothing with it: echo COMPLETE_TASK_AND_SUBMIT_FINAL_OUTPUT"""

VARIANT = "three_files"
MOST_FAILURES = 10
"""In a row, after which the endpoint is taken to be down."""


class AgentError(ToolSSMError):
    """mini-swe-agent is missing or has ended, or its endpoint fails on everything."""


@dataclass
class AgentArguments:
    agent_python: str = field(metadata={"help": "the Python of the environment that has mini-swe-agent"})
    api_base: str = field(metadata={"help": "of the endpoint, as http://localhost:8000/v1; OPENAI_API_KEY opens it"})
    model: str = field(metadata={"help": "as the endpoint names it"})
    output: str = field(metadata={"help": "folder of the trajectories"})
    style: str = field(default="tool_calls", metadata={"help": "how the model writes commands", "choices": [*STYLES]})
    max_length: int = field(default=16, metadata={"help": "functions of a problem, at most"})
    num_problems: int = field(default=100, metadata={"help": "problems; more of them go on where fewer ended"})
    seed: int = field(default=0, metadata={"help": "another seed gives other problems"})
    workers: int = field(default=4, metadata={"help": "problems that run side by side"})
    step_limit: int = field(default=100, metadata={"help": "replies of the model to one problem, at most"})
    temperature: float | None = field(default=None, metadata={"help": "by default the endpoint's own"})
    request_seconds: float = field(default=300.0, metadata={"help": "that a reply may take"})
    attempts: int = field(default=10, metadata={"help": "at a reply, before the endpoint has failed on the problem"})


def main() -> None:
    escape_unprintable()
    (options,) = HfArgumentParser(AgentArguments).parse_args_into_dataclasses()
    output = Path(options.output)
    task = CodeFixing()
    sizes = (("train", options.num_problems),)
    problems = ProblemSet(task, TRAINING, options.max_length, sizes, VARIANT, options.seed)
    claim(output, options, task)
    paths = {index: output / f"{index:06}.traj.json" for index in range(options.num_problems)}
    left = [index for index, path in paths.items() if not path.exists()]
    failed: dict[int, str] = {}
    if left:
        start_shell(task, problem_at(problems, "train", left[0]))  # where there is no sandbox it is said at once
        with closing(Agent(options, output / "agent.log")) as agent:

            def work(index: int) -> None:
                write_json(paths[index], solve(task, problem_at(problems, "train", index), index, agent))

            failed = run_all(work, left, options.workers)
    for index, reason in sorted(failed.items()):
        print(f"problem {index} failed: {reason}")
    print(summary(paths.values(), failed))


def run_all(work: Callable[[int], None], indices: list[int], workers: int) -> dict[int, str]:
    """Does the work of all of them, several side by side, and says of which it failed and why.

    Raises:
        AgentError: it cannot go on.
    """
    failed: dict[int, str] = {}
    in_a_row = 0
    pool = ThreadPoolExecutor(workers)
    futures: dict[Future[None], int] = {pool.submit(work, index): index for index in indices}
    try:
        for done in tqdm(as_completed(futures), total=len(futures), desc="mini-swe-agent", unit="problem"):
            try:
                done.result()
                in_a_row = 0
            except RunFailedError as error:
                failed[futures[done]] = str(error)
                in_a_row += 1
                if in_a_row == MOST_FAILURES:
                    raise AgentError(
                        f"the endpoint failed on {in_a_row} problems in a row: see to it, and run the same command "
                        f"again. The last time it was {error}"
                    ) from error
    finally:
        pool.shutdown(wait=False, cancel_futures=True)
    return failed


def solve(task: CodeFixing, problem: str, number: int, agent: "Agent") -> dict[str, Any]:
    """The agent's trajectory on a problem, with what is known of it.

    Raises:
        RunFailedError: the endpoint did not answer.
        AgentError: mini-swe-agent has ended.
    """
    facts, shell = start_shell(task, problem)
    trajectory = agent.run(number, TASK, lambda command: carry_out(facts, shell, command))
    known = {"text": problem, "length": task.length(problem), "solved": task.passes(problem, shell)}
    return {"problem": known, **trajectory}


def start_shell(task: CodeFixing, problem: str) -> tuple[ToolFacts, Shell]:
    """The task's shell, at work on a problem.

    Raises:
        SandboxUnavailableError: there is no sandbox on this machine.
    """
    facts = facts_of(task_tool(task, VARIANT))
    return facts, facts.start(problem, str)


def carry_out(facts: ToolFacts, shell: Shell, command: Any) -> dict[str, Any]:
    """What a command prints, as generation shows it, and its exit code; -1 where it was not run to its end."""
    try:
        observation = text_of(shell.call("bash", argument_of(facts, "bash", {"command": command})), "bash")
    except ToolError as error:
        return {"output": error_text(error), "returncode": -1}
    note = re.search(r"(?:^|\n)\[(?:exit code (\d+)|ended by [^\n]*)\]$", observation)
    return {"output": observation, "returncode": int(note[1] or -1) if note else 0}


class RunFailedError(ToolSSMError):
    """The endpoint failed on one problem."""


class Agent:
    """mini-swe-agent in a process of its own, which runs any number of problems side by side.

    Args:
        log: a file for what it warns of, such as replies that are asked for again.

    Raises:
        AgentError: there is no such Python.
    """

    def __init__(self, options: AgentArguments, log: Path) -> None:
        self._python, self._log = options.agent_python, log
        self._runs: dict[int, queue.SimpleQueue[dict[str, Any]]] = {}
        self._writing = threading.Lock()
        self._home = tempfile.TemporaryDirectory()
        environment = {
            "OPENAI_API_KEY": "none",
            **os.environ,
            "MSWEA_GLOBAL_CONFIG_DIR": self._home.name,  # else one in the user's home is made, and read
            "MSWEA_SILENT_STARTUP": "1",
            "MSWEA_MODEL_RETRY_STOP_AFTER_ATTEMPT": str(options.attempts),
            "LITELLM_LOCAL_MODEL_COST_MAP": "True",  # else prices are looked up in the internet
            "PYTHONIOENCODING": "utf-8",
        }
        with log.open("a", encoding="utf-8") as errors:
            try:
                self._process = subprocess.Popen(
                    [
                        options.agent_python,
                        str(Path(__file__).with_name("agent_worker.py")),
                        json.dumps(settings(options)),
                    ],
                    stdin=subprocess.PIPE,
                    stdout=subprocess.PIPE,
                    stderr=errors,
                    text=True,
                    encoding="utf-8",
                    env=environment,
                    start_new_session=True,  # an interruption of the terminal is this process's to handle
                )
            except OSError as error:
                raise AgentError(f"--agent_python {options.agent_python} does not start: {error}") from error
        threading.Thread(target=self._listen, daemon=True).start()

    def run(self, number: int, task: str, execute: Callable[[Any], Mapping[str, Any]]) -> dict[str, Any]:
        """Runs the agent on a task, and returns its trajectory as mini-swe-agent saves it.

        Raises:
            RunFailedError: the endpoint did not answer.
            AgentError: mini-swe-agent is missing, or has ended.
        """
        heard = self._runs[number] = queue.SimpleQueue()
        self._say({"run": number, "task": task})
        while "command" in (message := heard.get()):
            self._say({"run": number, **execute(message["command"])})
        if "failed" in message:
            raise RunFailedError(message["failed"])
        if "trajectory" not in message:
            raise self._ended()
        return message["trajectory"]

    def close(self) -> None:
        """Ends it, with all runs."""
        self._process.kill()
        self._process.wait()
        self._home.cleanup()

    def _say(self, message: Mapping[str, Any]) -> None:
        try:
            with self._writing:
                print(json.dumps(message), file=self._process.stdin, flush=True)
        except BrokenPipeError:
            raise self._ended() from None

    def _listen(self) -> None:
        for line in self._process.stdout:
            message = json.loads(line)
            self._runs[message["run"]].put(message)
        for heard in list(self._runs.values()):
            heard.put({})

    def _ended(self) -> AgentError:
        return AgentError(
            f"mini-swe-agent's process has ended; {self._log} says why. If a module is missing, run `{self._python} "
            "-m pip install 'mini-swe-agent>=2.4,<3'`; else the same command goes on"
        )


def settings(options: AgentArguments) -> dict[str, Any]:
    """Of `agent_worker.py`; mini-swe-agent writes them into the trajectories."""
    asked = {"api_base": options.api_base, "timeout": options.request_seconds, "max_retries": 0}
    if options.temperature is not None:
        asked["temperature"] = options.temperature
    return {
        "style": options.style,
        "model": {
            "model_name": f"openai/{options.model}",
            "model_kwargs": asked,
            "cost_tracking": "ignore_errors",
            "observation_template": "{{ output.output }}",
        },
        "agent": {
            "system_template": STYLES[options.style],
            "instance_template": "{{ task }}",
            "step_limit": options.step_limit,
            "cost_limit": 0,
        },
    }


def claim(output: Path, options: AgentArguments, task: CodeFixing) -> None:
    """Makes the folder one of these settings.

    Raises:
        DatasetMismatchError: it is one of others.
    """
    decides = ("model", "style", "max_length", "seed", "step_limit", "temperature")
    said = {name: getattr(options, name) for name in decides} | {"task": TASK, "task_version": task.version}
    output.mkdir(parents=True, exist_ok=True)
    path = output / "settings.json"
    if path.exists():
        before = json.loads(path.read_text(encoding="utf-8"))
        other = [name for name, value in said.items() if before.get(name) != value]
        if other:
            raise DatasetMismatchError(
                f"{output} holds trajectories with another {', '.join(other)}: give another --output"
            )
    write_json(path, said)


def summary(paths, failed: Mapping[int, str]) -> str:
    """How many problems ran, how they ended, and how many are solved."""
    read = [json.loads(path.read_text(encoding="utf-8")) for path in paths if path.exists()]
    ends = Counter(each["info"]["exit_status"] for each in read)
    solved = sum(each["problem"]["solved"] for each in read)
    ended = "".join(f"; {name} {count}" for name, count in ends.most_common())
    return f"{len(read)} ran to an end, {solved} are repaired, the endpoint failed on {len(failed)}{ended}"


if __name__ == "__main__":
    main()
