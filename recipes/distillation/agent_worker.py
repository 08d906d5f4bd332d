"""mini-swe-agent for `run_agent.py`, by lines of JSON: it runs where mini-swe-agent is, and not this package.

    > {"run": 7, "task": "Repair it."}                  begins a run, which is a thread
    < {"run": 7, "command": "python3 main.py"}          one of its commands
    > {"run": 7, "output": "42\\n", "returncode": 0}     what came of it
    < {"run": 7, "trajectory": {...}}                   its end, as mini-swe-agent saves it
    < {"run": 7, "failed": "Timeout: ..."}              or why there is none

Settings are the command's one argument, as JSON.
"""

import json
import os
import queue
import sys
import threading
from collections.abc import Callable
from contextlib import suppress
from typing import Any

import litellm
from minisweagent.agents.default import DefaultAgent
from minisweagent.exceptions import Submitted
from minisweagent.models.litellm_model import LitellmModel
from minisweagent.models.litellm_textbased_model import LitellmTextbasedModel

MODELS = {"tool_calls": LitellmModel, "text": LitellmTextbasedModel}
MARKER = "COMPLETE_TASK_AND_SUBMIT_FINAL_OUTPUT"


class Shell:
    """An environment whose commands run elsewhere."""

    config: dict[str, Any] = {}

    def __init__(self, ask: Callable[[Any], dict[str, Any]]) -> None:
        self._ask = ask

    def execute(self, action: dict[str, Any], cwd: str = "") -> dict[str, Any]:
        output = {"exception_info": "", **self._ask(action["command"])}
        first, _, rest = output["output"].lstrip().partition("\n")
        if first.strip() == MARKER and output["returncode"] == 0:
            submitted = {"exit_status": "Submitted", "submission": rest}
            raise Submitted({"role": "exit", "content": rest, "extra": submitted})
        return output

    def get_template_vars(self, **more: Any) -> dict[str, Any]:
        return more

    def serialize(self) -> dict[str, Any]:
        return {"info": {"config": {"environment": {}, "environment_type": "hf_toolssm.tools.bash.Shell"}}}


def run(settings: dict[str, Any], task: str, ask: Callable[[Any], dict[str, Any]]) -> dict[str, Any]:
    """Runs the agent on a task to its end.

    Args:
        settings: `style`, one of `MODELS`, and the configurations of `model` and `agent`.
        ask: has a command carried out.
    """
    try:
        agent = DefaultAgent(MODELS[settings["style"]](**settings["model"]), Shell(ask), **settings["agent"])
        with suppress(litellm.exceptions.ContextWindowExceededError):  # an end like a limit: the last message names it
            agent.run(task)
        return {"trajectory": agent.save(None)}
    except Exception as error:
        return {"failed": f"{type(error).__name__}: {error}"}


def main() -> None:
    settings = json.loads(sys.argv[1])
    litellm.suppress_debug_info = True
    answers, sys.stdout = sys.stdout, sys.stderr  # what a library prints is no answer
    writing = threading.Lock()
    outputs: dict[int, queue.SimpleQueue[dict[str, Any]]] = {}

    def say(number: int, message: dict[str, Any]) -> None:
        line = json.dumps({"run": number, **message}, default=repr)
        with writing:
            print(line, file=answers, flush=True)

    def ask(number: int, command: Any) -> dict[str, Any]:
        say(number, {"command": command})
        return outputs[number].get()

    def begin(number: int, task: str) -> None:
        outputs[number] = queue.SimpleQueue()
        say(number, run(settings, task, lambda command: ask(number, command)))
        del outputs[number]

    for line in sys.stdin:
        request = json.loads(line)
        number = request.pop("run")
        if "task" in request:
            threading.Thread(target=begin, args=(number, request["task"]), daemon=True).start()
        else:
            outputs[number].put(request)
    os._exit(0)  # whoever asked has ended, and runs may wait for their endpoint for minutes


if __name__ == "__main__":
    main()
