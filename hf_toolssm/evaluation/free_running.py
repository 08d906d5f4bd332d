"""Free-running accuracy: the model generates, the tools run, and every token is compared with the reference."""

import time
from collections.abc import Sequence
from types import SimpleNamespace
from typing import Any

from tqdm import tqdm
from transformers import PreTrainedTokenizerBase

from hf_toolssm.evaluation.exactness import LengthResult, RowOutcome, first_error, most_tokens, summarize
from hf_toolssm.generation.tool_loop import generate_with_tools
from hf_toolssm.ops.plain_modules import input_device
from hf_toolssm.protocol.render import Renderer
from hf_toolssm.protocol.trajectory import StepKind, Trajectory


def evaluate_free_running(
    model,
    tokenizer: PreTrainedTokenizerBase,
    problem_set: str,
    length: int,
    references: Sequence[Trajectory],
    batch_size: int = 32,
) -> LengthResult:
    """Generates greedily from each problem and compares.

    Args:
        model: any causal language model with a cache, on any device.
        tokenizer: its tokenizer.
        problem_set, length: for the report.
        references: the problems with their reference trajectories; at least one.
        batch_size: problems that run side by side. Memory, speed and where a lost row is cut depend on it, accuracies
            do not. Of references that are solved when they are asked for, no more are held than these.

    Raises:
        ValueError: there is no reference.
    """
    if not references:
        raise ValueError(f"{problem_set} has no problem: nothing can be measured")
    renderer = Renderer(tokenizer)
    outcomes: list[RowOutcome] = []
    start = time.perf_counter()
    was_training = model.training
    model.eval()
    for first in range(0, len(references), batch_size):
        part = references[first : first + batch_size]
        written = [renderer.render(r)["input_ids"][len(r.problem) :] for r in part]
        inputs = renderer.prompts(r.problem for r in part).to(input_device(model))
        longest = max(map(len, written))
        with tqdm(total=longest + 1, desc=f"{problem_set}, free-running", unit="step", disable=None) as bar:
            result: Any = generate_with_tools(  # its fields are None only before the run
                model,
                **inputs,
                tokenizer=tokenizer,
                do_sample=False,
                max_new_tokens=most_tokens(longest),
                return_dict_in_generate=True,
                streamer=SimpleNamespace(put=lambda _, bar=bar: bar.update(), end=bar.refresh),  # the prompt, steps
            )
        width = inputs["input_ids"].shape[1]
        for row, (reference, expected) in enumerate(zip(part, written)):
            found = result.sequences[row, width : result.lengths[row]].tolist()
            error = first_error(len(outcomes), expected, found, tokenizer.convert_ids_to_tokens)
            outputs = [renderer.token(s.text) for s in reference.steps if s.kind is StepKind.OUTPUT]
            exact = result.complete[row] and result.answer_ids[row] == outputs
            outcomes.append(RowOutcome(reference.problem, exact, error is None, error, len(found)))
    model.train(was_training)
    return summarize(problem_set, length, "free-running", outcomes, time.perf_counter() - start)
