"""Teacher-forced accuracy: a fast check that is no proof. The model reads the reference and predicts each next token.

A free run can still fail where this one succeeds, because a free run reads its own tokens. An answer counts here when
every output is predicted behind the reference's own thoughts, even if the model would have thought otherwise. Say
"teacher-forced" beside every figure that comes from here.
"""

import time
from collections.abc import Iterator, Sequence

import torch
from tqdm import tqdm
from transformers import PreTrainedTokenizerBase

from hf_toolssm.errors import UnsupportedArchitectureError
from hf_toolssm.evaluation.exactness import LengthResult, RowOutcome, first_error, in_evaluation_mode, summarize
from hf_toolssm.ops.plain_modules import input_device
from hf_toolssm.protocol.render import IGNORED, Renderer
from hf_toolssm.protocol.trajectory import StepKind, Trajectory, asks_for_answer

LOGITS_PER_PIECE = 2**27


def evaluate_teacher_forced(
    model,
    tokenizer: PreTrainedTokenizerBase,
    problem_set: str,
    length: int,
    references: Sequence[Trajectory],
    piece: int | None = None,
) -> LengthResult:
    """Streams each reference through the model in pieces, with the state carried, and compares every prediction.

    Args:
        model: a ToolMamba, LSTM, GRU or RMT, on any device.
        tokenizer: its tokenizer.
        problem_set, length: for the report.
        references: the problems with their reference trajectories; at least one.
        piece: tokens of one forward; memory depends on it, results do not. By default so many that their logits take
            at most half a GiB.

    Raises:
        ValueError: there is no reference.
        UnsupportedArchitectureError: the model has no state that could be carried from piece to piece.
    """
    if not hasattr(type(model), "state_class"):
        raise UnsupportedArchitectureError(
            f"{type(model).__name__} would forget its past at every piece: measure it free-running"
        )
    if not references:
        raise ValueError(f"{problem_set} has no problem: nothing can be measured")
    renderer = Renderer(tokenizer)
    piece = piece or min(16_384, LOGITS_PER_PIECE // model.config.vocab_size)
    start = time.perf_counter()
    with in_evaluation_mode(model):
        outcomes = [
            _stream(model, tokenizer, renderer, reference, index, piece)
            for index, reference in enumerate(tqdm(references, desc=f"{problem_set}, teacher-forced", disable=None))
        ]
    return summarize(problem_set, length, "teacher-forced", outcomes, time.perf_counter() - start)


@torch.no_grad()
def _stream(model, tokenizer, renderer: Renderer, reference: Trajectory, index: int, piece: int) -> RowOutcome:
    rendered = renderer.render(reference)
    ids = torch.tensor([rendered["input_ids"]])
    labels = torch.tensor(rendered["labels"])
    state = type(model).state_class(model.config)
    predicted = [
        model(part.to(input_device(model)), cache_params=state, use_cache=True).logits[0].argmax(-1).cpu()
        for part in ids[:, :-1].split(piece, dim=1)
    ]
    found = torch.cat(predicted)
    expected = labels[1:]
    wrong = ((found != expected) & (expected != IGNORED)).nonzero()[:, 0]
    problem_tokens = len(renderer.step(reference.steps[0]))
    wrong_places = set((wrong + 1).tolist())
    turns = [(asks, places.isdisjoint(wrong_places)) for asks, places in _answer_places(renderer, reference)]
    answers, answer_exact = [right for asks, right in turns if asks], all(right for _, right in turns)
    followed = torch.where(expected == IGNORED, ids[0, 1:], found)[problem_tokens - 1 :].tolist()
    written = rendered["input_ids"][problem_tokens:]
    error = first_error(index, written, followed, tokenizer.convert_ids_to_tokens)
    return RowOutcome(reference.problem, answers, answer_exact, error is None, error, len(labels) - problem_tokens)


def _answer_places(renderer: Renderer, reference: Trajectory) -> Iterator[tuple[bool, set[int]]]:
    """Of each turn, whether it asks for an answer, and where the tokens of its outputs and of its end stand."""
    at = 0
    for turn in reference.turns():
        places: set[int] = set()
        for step in turn:
            size = len(renderer.step(step))
            if step.kind is StepKind.OUTPUT:
                places.update(range(at, at + size))
            at += size
        yield asks_for_answer(turn), places | {at}
        at += 1
