"""Asks a model the questions of sessions both ways, out of its state and out of its store, at one and the same state.

A session's pairs are put free-running, with the tool executed. Then every question is asked of two forks of it: one
begins its answer at once, and one begins by asking the store. So the ways are compared question by question, and no
answer changes what the next one finds.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from tqdm import tqdm

from dataset_builders.algorithms.memory_task import TESTED
from dataset_builders.task import example_rng
from dataset_builders.tasks.short_recall import LETTERS, ShortRecall
from hf_toolssm import Session
from hf_toolssm.cache.cache_tensors import cache_tensors
from hf_toolssm.cache.model_state import ModelState
from hf_toolssm.evaluation.exactness import in_evaluation_mode, most_tokens
from hf_toolssm.files import atomic_write
from hf_toolssm.generation.model_runner import ModelRunner
from hf_toolssm.protocol.calls import begin_token
from hf_toolssm.protocol.render import Renderer
from hf_toolssm.protocol.trajectory import ANSWER
from hf_toolssm.tools.pointer_store import DONE, seek

TASK, VARIANT = ShortRecall(), "either"
_SIDE_BY_SIDE = 16
"""Sessions."""


class Ways(NamedTuple):
    """The tokens that begin an answer out of the state, and a retrieval."""

    answers: int
    asks: int


def ways(tokenizer: Any) -> Ways:
    """Those of a model of `short_recall`."""
    return Ways(*tokenizer.convert_tokens_to_ids([ANSWER, begin_token(seek("key"))]))


@dataclass(frozen=True, eq=False)
class Asked:
    """Questions, n of them, session by session; what the rules read is of the answer that the state begins.

    Attributes:
        session, load, distance: (n,) which session, how many pairs it has, and how many came behind the one asked for.
        key: (n,) the key, as `key_number` counts them.
        hidden: (n, e) behind the question, where neither way has begun.
        entropy, margin, largest, least, change: (n,) of the value's distribution its entropy in nats, the probability
            of the first value above the second's, and the first's; the least probability of a token of the answer, and
            how much of the recurrent state, relative to its norm, the value changes.
        state_is_right, tool_is_right: (n,) bool.
    """

    session: np.ndarray
    load: np.ndarray
    distance: np.ndarray
    key: np.ndarray
    hidden: np.ndarray
    entropy: np.ndarray
    margin: np.ndarray
    largest: np.ndarray
    least: np.ndarray
    change: np.ndarray
    state_is_right: np.ndarray
    tool_is_right: np.ndarray

    def save(self, path: Path) -> None:
        with atomic_write(path) as temporary, temporary.open("wb") as file:
            np.savez_compressed(file, **vars(self))

    @classmethod
    def load_from(cls, path: Path) -> "Asked":
        with np.load(path) as arrays:
            return cls(**arrays)

    def where(self, chosen: np.ndarray) -> "Asked":
        """Those of the questions that (n,) bool says."""
        return Asked(**{name: values[chosen] for name, values in vars(self).items()})


def key_number(key: str) -> int:
    """Of a key, its letters as digits, the first the lowest."""
    return sum(LETTERS.index(letter) * len(LETTERS) ** place for place, letter in enumerate(key))


def drawn_problems(of_tests: bool, load: int, count: int, questions: int, seed: str) -> list[str]:
    """Problems of one load, the same for the same seed; tests have keys that no training has."""
    rng = example_rng("lazy retrieval", seed, load)
    return [TASK.problem(rng, load, questions, TESTED if of_tests else None) for _ in range(count)]


def ask_both_ways(model: Any, tokenizer: Any, problems: Sequence[str], what: str) -> Asked:
    """Asks all questions of problems, each key of a session once; sessions of one load go side by side.

    Args:
        what: for the progress bar.
    """
    found: list[Asked] = []
    by_load: dict[int, list[tuple[int, str]]] = {}
    for number, problem in enumerate(problems):
        by_load.setdefault(TASK.length(problem), []).append((number, problem))
    with in_evaluation_mode(model), tqdm(total=len(problems), desc=what, unit="session") as bar:
        for of_load in by_load.values():
            left = iter(of_load)
            while part := list(islice(left, _SIDE_BY_SIDE)):
                found += _ask(model, tokenizer, part)
                bar.update(len(part))
    return Asked(**{name: np.concatenate([getattr(each, name) for each in found]) for name in vars(found[0])})


def _ask(model: Any, tokenizer: Any, problems: Sequence[tuple[int, str]]) -> Iterator[Asked]:
    """The questions of sessions of one load."""
    renderer, begin = Renderer(tokenizer), ways(tokenizer)
    load = TASK.length(problems[0][1])
    turns = []
    for _, problem in problems:
        every = list(TASK.session(problem))
        turns.append([*every[:load], *{turn[0].key: turn for turn in every[load:]}.values()])
    said = [[renderer.problem(text) for _, text, _ in each] for each in turns]
    session = Session.start(model, [each[0] for each in said], tools=TASK.make_tools(VARIANT), tokenizer=tokenizer)
    for at in range(load):
        if at:
            session.append([each[at] for each in said])
        session.run(most_tokens(40))
    order = [row for row, each in enumerate(said) for _ in each[load:]]
    questions = [text for each in said for text in each[load:]]
    right = [answer for each in turns for _, _, answer in each[load:]]
    forks = session.select(order)
    before = forks.state
    state = _out_of_state(session.runner, before, questions, begin, tokenizer, right)
    forks.append(questions)
    forks.held_choices.update(dict.fromkeys(range(len(order)), begin.asks))
    forks.run(most_tokens(40))
    tool_is_right = [row.complete and answer == each for row, answer, each in zip(forks.rows, forks.answers, right)]
    keys = [[turn.key for turn, *_ in each] for each in turns]
    distance = [load - 1 - keys[row].index(key) for row, each in enumerate(keys) for key in each[load:]]
    yield Asked(
        session=np.array([problems[row][0] for row in order]),
        load=np.full(len(order), load),
        distance=np.array(distance),
        key=np.array([key_number(key) for each in keys for key in each[load:]]),
        tool_is_right=np.array(tool_is_right),
        **state,
    )


@torch.no_grad()
def _out_of_state(
    runner: ModelRunner,
    before: ModelState,
    questions: Sequence[Sequence[int]],
    begin: Ways,
    tokenizer: Any,
    right: Sequence[str],
) -> dict[str, np.ndarray]:
    """What the state alone answers, greedily: no tool is called, so a session would write these very tokens."""
    hidden = runner.hidden(before, questions)
    value, _ = runner.feed(before, [[*question, begin.answers] for question in questions])
    chosen = value.logits.argmax(-1)
    end, _ = runner.feed(value, chosen[:, None].tolist())
    first = value.logits.double().softmax(-1)
    two = first.topk(2).values
    done = tokenizer.convert_tokens_to_ids(begin_token(DONE))
    stops = end.logits.double().softmax(-1)[:, done]
    wanted = torch.tensor(tokenizer.convert_tokens_to_ids(list(right)))
    found = {
        "hidden": hidden,
        "entropy": torch.special.entr(first).sum(1),
        "margin": two[:, 0] - two[:, 1],
        "largest": two[:, 0],
        "least": torch.minimum(two[:, 0], stops),
        "change": _change(value, end),
        "state_is_right": (chosen == wanted) & (end.logits.argmax(-1) == done),
    }
    return {name: tensor.numpy() for name, tensor in found.items()}


def _change(before: ModelState, after: ModelState) -> torch.Tensor:
    """How far (b,) a token moved the recurrent states, relative to their norm."""
    moved, whole = torch.zeros(len(before.lengths)), torch.zeros(len(before.lengths))
    olds = cache_tensors(before.cache)
    for name, new in cache_tensors(after.cache).items():
        if "recurrent" not in name:
            continue  # the convolution's window moves at every token, whatever that is
        moved += (new - olds[name]).flatten(1).square().sum(1)
        whole += new.flatten(1).square().sum(1)
    return (moved / whole).sqrt()
