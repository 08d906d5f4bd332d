"""The test of `measure_calls.py` as a task of Inspect AI, which asks the questions and carries out the calls itself.

    pip install -c constraints.txt -e ".[inspect]"
    inspect eval recipes/function_calling/inspect_task.py --model toolssm/outputs/function-calling -T num_problems=200

The problems, what is offered and how a conversation is judged are those of `measure_calls.py`, and so are the figures.
"""

from typing import Any

from inspect_ai import Task, task
from inspect_ai.dataset import Sample
from inspect_ai.model import GenerateConfig
from inspect_ai.scorer import Score, Target, mean, scorer, stderr
from inspect_ai.solver import Generate, TaskState, generate, solver

from conversations import test_problem
from hf_toolssm.evaluation.inspect_provider import message_of, tool_of
from measure_calls import FIGURES, GROUPS, MAX_NEW_TOKENS, judge

MOST_MESSAGES = 12


@task
def function_calling(num_problems: int = 200) -> Task:
    """Every group's problems; figures are told of all, and the log says the group of each.

    A conversation has at most `MOST_MESSAGES`, as a model may call for ever. In `measure_calls.py` a whole reply has
    the limit of tokens that a turn has here.

    Args:
        num_problems: of each group of functions.
    """
    samples = [
        Sample(
            id=f"{group}, {index}",
            input=test_problem(name, index).request,
            metadata={"group": group, "name": name, "index": index},
        )
        for group, names in GROUPS.items()
        for index, name in enumerate((list(names) * num_problems)[:num_problems])
    ]
    config = GenerateConfig(max_tokens=MAX_NEW_TOKENS)
    solvers = [offer_functions(), generate()]
    return Task(dataset=samples, solver=solvers, scorer=calls(), config=config, message_limit=MOST_MESSAGES)


@solver
def offer_functions() -> Any:
    """Offers a problem's functions."""

    async def solve(state: TaskState, generate: Generate) -> TaskState:
        problem = test_problem(state.metadata["name"], state.metadata["index"])
        state.tools = [tool_of(function.schema()["function"], function) for function in problem.offered]
        return state

    return solve


@scorer(metrics={"*": [mean(), stderr()]})
def calls() -> Any:
    """Whether a conversation reaches each of the figures of `measure_calls.py`."""

    async def score(state: TaskState, target: Target) -> Score:
        problem = test_problem(state.metadata["name"], state.metadata["index"])
        said = [message_of(message) for message in state.messages[1:]]
        reached, fault = judge(said, state.output.completion, problem)
        return Score(
            value={name: int(at < reached) for at, name in enumerate(FIGURES)},
            explanation=fault or "as it should be",
        )

    return score
