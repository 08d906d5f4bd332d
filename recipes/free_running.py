"""Measures a model on a problem set, free-running, as the task says what counts."""

from typing import Any

from transformers import PreTrainedTokenizerBase

from dataset_builders.problem_sets import ReferenceTrajectories
from dataset_builders.task import Task, example_rng
from hf_toolssm.evaluation import LengthResult, evaluate_checked, evaluate_free_running

SHORTEST = 10
"""Units of length that a run is allowed tokens for at least."""


def check_tools(task: Task, variant: str) -> None:
    """Starts the tools of a task that has a check, so that what this machine lacks is said before a training.

    Raises:
        SandboxUnavailableError: there is no sandbox here.
    """
    if task.most_tokens is not None:
        problem = task.sample_test(example_rng("check of the tools"), 1)
        for tool in task.make_tools(variant):
            tool.start(problem)


def free_running(
    model: Any, tokenizer: PreTrainedTokenizerBase, references: ReferenceTrajectories, batch_size: int
) -> LengthResult:
    """Compares with the references, which are solved on the way, or lets the task check what the tools hold.

    Args:
        batch_size: problems that run side by side.
    """
    problems = references.problem_set
    task, measured = problems.task, (model, tokenizer, problems.name, problems.length)
    if task.most_tokens is None:
        return evaluate_free_running(*measured, references, batch_size)
    tools, most = task.make_tools(problems.variant), task.most_tokens * max(problems.length, SHORTEST)
    return evaluate_checked(*measured, references.problems, task.passes, tools, most, batch_size)
