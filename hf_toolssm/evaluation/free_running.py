"""Free-running accuracy: the model generates, the tools run, and every token is compared with the reference."""

import time
from collections.abc import Sequence

import torch
from tqdm import tqdm
from transformers import PreTrainedTokenizerBase
from transformers.generation.streamers import BaseStreamer

from hf_toolssm.evaluation.exactness import (
    CONTEXT,
    FirstError,
    LengthResult,
    RowOutcome,
    batches,
    first_difference,
    summarize,
)
from hf_toolssm.protocols.render import Renderer
from hf_toolssm.trajectory import Trajectory

SLACK = 1.1
"""How much longer than its reference a trajectory may get before it is cut: a lost model must not run for ever."""


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
        model: a ToolMamba, on any device.
        tokenizer: its tokenizer.
        problem_set, length: for the report.
        references: the problems with their reference trajectories; at least one.
        batch_size: problems that run side by side; memory and speed depend on it, results do not.

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
    for part in batches(references, batch_size):
        rendered = [renderer.render(reference)["input_ids"] for reference in part]
        prompts = [ids[: len(reference.problem)] for ids, reference in zip(rendered, part)]
        inputs = tokenizer.pad({"input_ids": prompts}, padding_side="left", return_tensors="pt").to(model.device)
        longest = max(len(ids) - len(prompt) for ids, prompt in zip(rendered, prompts))
        with tqdm(total=longest, desc=f"{problem_set}, free-running", unit="step", disable=None) as bar:
            result = model.generate(
                **inputs,
                tokenizer=tokenizer,
                do_sample=False,
                max_new_tokens=int(longest * SLACK) + CONTEXT,
                return_dict_in_generate=True,
                streamer=_ProgressStreamer(bar),
            )
        width = inputs["input_ids"].shape[1]
        for row, (reference, ids, prompt) in enumerate(zip(part, rendered, prompts)):
            found = _without_padding(result.sequences[row, width:], tokenizer.pad_token_id)
            error = _first_error(len(outcomes), ids[len(prompt) :], found, tokenizer)
            exact = result.complete[row] and result.answers[row] == reference.answer
            outcomes.append(RowOutcome(exact, error is None, error, len(found)))
    model.train(was_training)
    return summarize(problem_set, length, "free-running", outcomes, time.perf_counter() - start)


class _ProgressStreamer(BaseStreamer):
    """Moves a progress bar by one for every step of the loop."""

    def __init__(self, bar: tqdm) -> None:
        self._bar = bar
        self._prompt_seen = False

    def put(self, value: torch.Tensor) -> None:
        if self._prompt_seen:
            self._bar.update()
        self._prompt_seen = True

    def end(self) -> None:
        self._bar.refresh()


def _without_padding(ids: torch.Tensor, pad_token_id: int) -> list[int]:
    """The tokens of a row up to its end; padding stands only after it."""
    tokens = ids.tolist()
    stop = len(tokens)
    while stop and tokens[stop - 1] == pad_token_id:
        stop -= 1
    return tokens[:stop]


def _first_error(
    problem: int, expected: list[int], found: list[int], tokenizer: PreTrainedTokenizerBase
) -> FirstError | None:
    at = first_difference(expected, found)
    if at is None:
        return None
    text = tokenizer.convert_ids_to_tokens
    return FirstError(
        problem=problem,
        position=at,
        expected=text(expected[at]) if at < len(expected) else None,
        found=text(found[at]) if at < len(found) else None,
        context=tuple(text(expected[max(0, at - CONTEXT) : at])),
    )
