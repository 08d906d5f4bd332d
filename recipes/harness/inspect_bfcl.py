"""BFCL's categories of one turn as a task of Inspect AI; the scores are those of `bfcl.py`, of the same entries.

    pip install -c constraints.txt -e ".[inspect]"
    inspect eval recipes/harness/inspect_bfcl.py --model toolssm/outputs/function-calling \\
        -T category=simple_python -T bfcl_python=$PWD/bfcl/bin/python
"""

from typing import Any

from inspect_ai import Task, task
from inspect_ai.dataset import Sample
from inspect_ai.model import ChatMessageAssistant, ChatMessageSystem, ChatMessageUser, GenerateConfig
from inspect_ai.scorer import Score, Target, accuracy, scorer, stderr
from inspect_ai.solver import Generate, TaskState, generate, solver

from bfcl import MAX_NEW_TOKENS, result_of
from bfcl_backend import Worker, json_schema
from hf_toolssm.evaluation.inspect_provider import message_of, tool_of

MESSAGES = {"system": ChatMessageSystem, "user": ChatMessageUser, "assistant": ChatMessageAssistant}


@task
def bfcl(category: str, bfcl_python: str) -> Task:
    """The entries of a category.

    Args:
        category: such as "simple_python".
        bfcl_python: the Python of the environment that has bfcl-eval, from the root on.
    """
    worker = Worker(bfcl_python)
    samples = [
        Sample(
            id=entry["id"],
            input=[MESSAGES[message["role"]](content=message["content"]) for message in entry["messages"]],
            metadata={"functions": [json_schema(function) for function in entry["functions"]]},
        )
        for entry in worker.ask("entries", category)
    ]
    return Task(
        dataset=samples,
        solver=[offer_functions(), generate(tool_calls="none")],
        scorer=right(category, worker),
        config=GenerateConfig(max_tokens=MAX_NEW_TOKENS),
    )


@solver
def offer_functions() -> Any:
    """Offers an entry's functions, none of which is ever called."""

    async def solve(state: TaskState, generate: Generate) -> TaskState:
        state.tools = [tool_of(schema, _never) for schema in state.metadata["functions"]]
        return state

    return solve


def _never(**arguments: Any) -> str:
    raise AssertionError("BFCL's categories of one turn are over with the first call")


@scorer(metrics=[accuracy(), stderr()])
def right(category: str, worker: Worker) -> Any:
    """Whether BFCL's checker takes the calls for right."""

    async def score(state: TaskState, target: Target) -> Score:
        calls = message_of(state.output.message).get("tool_calls", ())
        result = result_of(calls) or state.output.completion
        name = str(state.sample_id)
        fault = worker.ask("judge", category, [{"id": name, "result": result}])[name]
        return Score(value=int(not fault), answer=str(result), explanation=fault or "right")

    return score
