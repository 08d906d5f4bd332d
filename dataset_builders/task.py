"""What a task is, and how its problems fall into splits."""

import hashlib
import random
from collections.abc import Mapping, Sequence
from typing import Any, Protocol

from hf_toolssm.errors import InvalidProblemError
from hf_toolssm.protocol.trajectory import Trajectory
from hf_toolssm.tools import Tool, make_tool

_SPLIT_SHARES = {"train": 80, "validation": 10, "test": 10}


class Task(Protocol):
    """A problem distribution and the algorithm that solves it by calling real tools.

    Attributes:
        title: one line for the dataset card.
        version: the generator's version; raise it whenever a row would change.
        variants: names of the algorithms; the first is the one to train.
        adversarial: names of the adversarial evaluation sets.
        unit: what a problem's length counts, for example "digits".
    """

    title: str
    version: str
    variants: Sequence[str]
    adversarial: Sequence[str]
    unit: str

    def tools(self, variant: str) -> list[dict[str, Any]]:
        """The tools that a variant calls, as a model's config names them."""

    def cells(self, variant: str) -> Sequence[str]:
        """The cells that problems, thoughts and outputs are made of, each one character."""

    def sample_training(self, rng: random.Random, max_length: int) -> str:
        """A problem from the training distribution."""

    def sample_test(self, rng: random.Random, length: int) -> str:
        """A problem of exactly that length."""

    def sample_adversarial(self, name: str, rng: random.Random, length: int, index: int) -> str:
        """The problem number `index` of an adversarial set."""

    def held_out(self, problem: str) -> bool:
        """Whether a problem may only be tested, whatever its hash says."""

    def length(self, problem: str) -> int:
        """The length of a problem in the task's unit."""

    def solve(self, problem: str, variant: str) -> Trajectory:
        """The trajectory of the algorithm, recorded by driving the real tool."""

    def answer(self, problem: str, variant: str) -> str:
        """The right answer as the variant writes it, found in another way than by its algorithm."""


def check_variant(task: Task, variant: str) -> None:
    """Raises InvalidProblemError where the task has no variant of that name."""
    if variant not in task.variants:
        name = type(task).__module__.rpartition(".")[2]
        raise InvalidProblemError(f"{name} has no variant {variant!r}; they are {', '.join(task.variants)}")


def task_tool(task: Task, variant: str) -> Tool:
    """The one tool that an interactive variant of a task calls.

    Raises:
        InvalidProblemError: the task has no such variant.
    """
    check_variant(task, variant)
    (spec,) = task.tools(variant)
    return make_tool(spec)


def split_of(task: Task, problem: str) -> str:
    """The split that a problem belongs to, decided by the problem alone: splits are disjoint by construction."""
    if task.held_out(problem):
        return "test"
    bucket = int.from_bytes(hashlib.sha256(problem.encode()).digest()[:8]) % sum(_SPLIT_SHARES.values())
    for split, share in _SPLIT_SHARES.items():
        if bucket < share:
            return split
        bucket -= share
    raise AssertionError("the shares cover every bucket")


def example_rng(*identity: object) -> random.Random:
    """A generator for one example, seeded by all that identifies it, so that neighbours and seeds share nothing."""
    digest = hashlib.sha256("\x1f".join(map(str, identity)).encode()).digest()
    return random.Random(int.from_bytes(digest))


def describe_tools(specs: Sequence[Mapping[str, Any]]) -> str:
    """Tool specs in one line of text, for cards and messages."""
    texts = [spec["name"] + "".join(f", {k} {v}" for k, v in spec.items() if k != "name") for spec in specs]
    return "; ".join(texts) or "none"
