"""Free-running accuracy where no reference is compared: a check of what the tools hold at the end decides."""

import time
from collections.abc import Callable, Sequence
from typing import Any

from tqdm import tqdm
from transformers import PreTrainedTokenizerBase

from hf_toolssm.evaluation.exactness import LengthResult, in_evaluation_mode
from hf_toolssm.generation.session import Session
from hf_toolssm.protocol.render import Renderer
from hf_toolssm.protocol.trajectory import StepKind, step


def evaluate_checked(
    model,
    tokenizer: PreTrainedTokenizerBase,
    problem_set: str,
    length: int,
    problems: Sequence[str],
    passes: Callable[..., bool],
    tools: Sequence[Any],
    max_new_tokens: int,
    batch_size: int = 32,
) -> LengthResult:
    """Generates greedily from each problem, and counts those that pass.

    Args:
        model: any causal language model with a cache, on any device.
        tokenizer: its tokenizer.
        problem_set, length: for the report.
        problems: their texts; at least one.
        passes: `passes(problem, *at_work)` of the problem and what its tools have become. A row that did not end by
            itself, or ended by an error, has not passed.
        tools: they start on the problem's text.
        max_new_tokens: of a row, observations included; then it has lost its way.
        batch_size: problems that run side by side; their calls do too.

    Returns:
        `answer_accuracy` is the share that passes, `trajectory_accuracy` is None.

    Raises:
        ValueError: there is no problem.
    """
    if not problems:
        raise ValueError(f"{problem_set} has no problem: nothing can be measured")
    renderer = Renderer(tokenizer)
    prompts = [list(renderer.step(step(StepKind.INPUT, problem))) for problem in problems]
    passed, tokens, start, late = 0, 0, time.perf_counter(), _late_calls(tools)
    with in_evaluation_mode(model), tqdm(total=len(problems), desc=f"{problem_set}, free-running", unit="row") as bar:
        for first in range(0, len(problems), batch_size):
            session = Session.start(model, prompts[first : first + batch_size], tools=tools, tokenizer=tokenizer)
            tokens += session.run(max_new_tokens)
            for problem, row in zip(problems[first:], session.rows):
                passed += row.complete and row.error is None and passes(problem, *row.tools)
                bar.update()
    return LengthResult(
        problem_set=problem_set,
        length=length,
        mode="free-running",
        num_problems=len(problems),
        distinct_problems=len(set(problems)),
        num_answers=len(problems),
        right_answers=passed,
        answer_accuracy=passed / len(problems),
        trajectory_accuracy=None,
        first_error=None,
        tokens=tokens,
        seconds=time.perf_counter() - start,
        late_calls=_late_calls(tools) - late,
    )


def _late_calls(tools: Sequence[Any]) -> int:
    return sum(getattr(tool, "late_calls", 0) for tool in tools)
