"""Free-running accuracy: the model generates, the tools run, and every token is compared with the reference."""

import time
from collections.abc import Sequence
from dataclasses import dataclass
from types import SimpleNamespace
from typing import Any

from tqdm import tqdm
from transformers import PreTrainedTokenizerBase

from hf_toolssm.evaluation.exactness import (
    LengthResult,
    RowOutcome,
    first_error,
    in_evaluation_mode,
    most_tokens,
    summarize,
)
from hf_toolssm.generation.recording import Recording
from hf_toolssm.generation.session import Session
from hf_toolssm.generation.tool_loop import generate_with_tools
from hf_toolssm.ops.plain_modules import input_device
from hf_toolssm.protocol.render import Renderer
from hf_toolssm.protocol.trajectory import StepKind, Trajectory, Writer, asks_for_answer


def evaluate_free_running(
    model,
    tokenizer: PreTrainedTokenizerBase,
    problem_set: str,
    length: int,
    references: Sequence[Trajectory],
    batch_size: int = 32,
    tools: Sequence[Any] | None = None,
) -> LengthResult:
    """Generates greedily from each problem, and from every later input of its reference, and compares.

    Args:
        model: any causal language model with a cache, on any device.
        tokenizer: its tokenizer.
        problem_set, length: for the report.
        references: the problems with their reference trajectories; at least one.
        batch_size: problems that run side by side. Memory, speed and where a lost row is cut depend on it, accuracies
            do not. Of references that are solved when they are asked for, no more are held than these.
        tools: in place of those that the model's config names.

    Raises:
        ValueError: there is no reference.
    """
    if not references:
        raise ValueError(f"{problem_set} has no problem: nothing can be measured")
    renderer = Renderer(tokenizer)
    outcomes: list[RowOutcome] = []
    start = time.perf_counter()
    with in_evaluation_mode(model):
        for first in range(0, len(references), batch_size):
            part = references[first : first + batch_size]
            turns = [_turns(renderer, reference) for reference in part]
            inputs = renderer.pad([row[0].input for row in turns]).to(input_device(model))
            longest = max(len(row[0].written) for row in turns)
            with tqdm(total=longest + 1, desc=f"{problem_set}, free-running", unit="step", disable=None) as bar:
                result: Any = generate_with_tools(  # its fields are None only before the run
                    model,
                    **inputs,
                    tokenizer=tokenizer,
                    tools=tools,
                    do_sample=False,
                    max_new_tokens=most_tokens(longest),
                    return_dict_in_generate=True,
                    streamer=SimpleNamespace(
                        put=lambda _, bar=bar: bar.update(), end=bar.refresh
                    ),  # the prompt, steps
                )
            width = inputs["input_ids"].shape[1]
            found = [result.sequences[row, width : result.lengths[row]].tolist() for row in range(len(part))]
            right = [[row[0].is_right(at_work)] for row, at_work in zip(turns, result.session.rows)]
            later = range(1, max(map(len, turns)))
            for number in tqdm(later, desc=f"{problem_set}, free-running", unit="turn", disable=not later or None):
                _take_turn(result.session, number, turns, found, right)
            for reference, row, tokens, exact in zip(part, turns, found, right):
                expected = [token for turn in row for token in turn.written]
                error = first_error(len(outcomes), expected, tokens, tokenizer.convert_ids_to_tokens)
                answers = [each for each, turn in zip(exact, row) if turn.answer is not None]
                outcomes.append(RowOutcome(reference.problem, answers, all(exact), error is None, error, len(tokens)))
    return summarize(problem_set, length, "free-running", outcomes, time.perf_counter() - start)


@dataclass(frozen=True)
class _Turn:
    """What a user says, what is written then, and which of it is the answer; None where no answer is given."""

    input: Sequence[int]
    written: Sequence[int]
    answer: Sequence[int] | None

    def is_right(self, row: Any) -> bool:
        if self.answer is None:
            return row.finished and row.error is None and not row.answering
        return row.complete and row.answer == self.answer


def _turns(renderer: Renderer, reference: Trajectory) -> list[_Turn]:
    turns = []
    for steps in reference.turns():
        rendered = [list(renderer.step(step)) for step in steps]
        written = [token for tokens in rendered[1:] for token in tokens] + [renderer.end]
        outputs = [token for step, tokens in zip(steps, rendered) if step.kind is StepKind.OUTPUT for token in tokens]
        turns.append(_Turn(rendered[0], written, outputs if asks_for_answer(steps) else None))
    return turns


def _take_turn(
    session: Session, number: int, turns: Sequence[Sequence[_Turn]], found: list[list[int]], right: list[list[bool]]
) -> None:
    """Says the next input of every row that has one, and notes what the row writes then."""
    now = {row: each[number] for row, each in enumerate(turns) if number < len(each)}
    session.append([now[row].input if row in now else [] for row in range(len(turns))])
    heard = Recording(len(turns))
    session.run(most_tokens(max(len(turn.input) + len(turn.written) for turn in now.values())), sink=heard)
    for row, turn in now.items():
        found[row] += [token for token, by in zip(heard.ids[row], heard.writers[row]) if by != Writer.USER]
        right[row].append(turn.is_right(session.rows[row]))
