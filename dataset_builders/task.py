"""What a task is, and how its problems fall into splits."""

import hashlib
import random
from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from hf_toolssm.errors import CertificationError, InvalidProblemError
from hf_toolssm.protocol.rule import Rule
from hf_toolssm.protocol.trajectory import Trajectory
from hf_toolssm.tools import Tool, make_tool

_SPLIT_ENDS = {"train": 80, "validation": 90, "test": 100}
"""Up to where, of 100, a problem's hash falls into a split."""


class Task(ABC):
    """A problem distribution and the algorithm that solves it by calling real tools.

    It can be pickled: a builder hands it to its processes.

    Attributes:
        title: one line for the dataset card.
        version: the generator's version; raise it whenever a row would change.
        variants: names of the algorithms; the first is the one to train.
        adversarial: names of the adversarial evaluation sets.
        unit: what a problem's length counts, for example "digits".
        has_words_for_tests: whether tests are made of words that training never shows.
        most_tokens: tokens per unit of length that a solution may take, where not the answer but `passes` says whether
            a problem is solved; None where the answer and the trajectory are compared.
        rows_per_shard: rows of a dataset's file, which is built by one process, and anew where that is interrupted.
    """

    title: str
    version: str
    variants: Sequence[str]
    adversarial: Sequence[str]
    unit: str
    has_words_for_tests: bool = False
    most_tokens: int | None = None
    rows_per_shard: int = 5_000

    @property
    def name(self) -> str:
        """What ids, folders and titles call it: the name of its file."""
        return type(self).__module__.rpartition(".")[2]

    @property
    def saved_name(self) -> str:
        """What a dataset's card or a model's facts call it, by which `catalog.load_task` finds it there again."""
        return self.name

    @property
    def environment(self) -> str:
        """What the tools run in, where observations depend on it, for cards; "" where they do not."""
        return ""

    def save(self, folder: Path) -> str:
        """Puts what `catalog.load_task` needs, beside this package, into a dataset's or a model's folder.

        Returns:
            `saved_name`.
        """
        return self.saved_name

    @abstractmethod
    def tools(self, variant: str) -> list[dict[str, Any]]:
        """The tools that a variant calls, as a model's config names them."""

    def make_tools(self, variant: str) -> list[Any]:
        """The same tools themselves, as they start on its problems."""
        return [make_tool(spec) for spec in self.tools(self.check_variant(variant))]

    @abstractmethod
    def cells(self, variant: str) -> Sequence[str]:
        """The cells that problems, thoughts and outputs are made of, each one character."""

    def sample_training(self, rng: random.Random, max_length: int) -> str:
        """A problem from the training distribution: by default of any length up to that."""
        return self.sample_test(rng, rng.randint(1, max_length))

    @abstractmethod
    def sample_test(self, rng: random.Random, length: int) -> str:
        """A problem of exactly that length."""

    @abstractmethod
    def sample_adversarial(self, name: str, rng: random.Random, length: int, index: int) -> str:
        """The problem number `index` of an adversarial set.

        Raises:
            InvalidProblemError: no set has that name, or its problems cannot be so long.
            TooFewProblemsError: the set has no problem of that number or length.
        """

    def suits(self, problem: str, variant: str) -> bool:
        """Whether a variant is trained on a problem of the training distribution."""
        return True

    def held_out(self, problem: str) -> bool:
        """Whether a problem may only be tested, whatever its hash says."""
        return False

    @abstractmethod
    def length(self, problem: str) -> int:
        """The length of a problem in the task's unit."""

    @abstractmethod
    def solve(self, problem: str, variant: str) -> Trajectory:
        """The trajectory of the algorithm, recorded by driving the real tool."""

    @abstractmethod
    def answer(self, problem: str, variant: str) -> str:
        """The right answer as the variant writes it, found in another way than by its algorithm."""

    def dialogue(self, problem: str, variant: str) -> Iterator[tuple[str, str | None]]:
        """What is said to the model, turn by turn, and the right answer; None where none is given.

        By default the problem itself, and `answer`.
        """
        yield problem, self.answer(problem, variant)

    def passes(self, problem: str, *at_work: Any) -> bool:
        """Whether what the tools hold in the end solves a problem. Only of tasks with `most_tokens`."""
        raise NotImplementedError

    def rule(self, variant: str) -> Rule:
        """What the model has to write in any context of any problem, for proofs; see `recipes/certify.py`.

        Raises:
            CertificationError: the task has none.
        """
        raise CertificationError(f"{self.name} has no rule of contexts yet, so nothing can be proved of it")

    def check_variant(self, variant: str) -> str:
        """The variant's name; raises InvalidProblemError where the task has no such variant."""
        if variant not in self.variants:
            raise InvalidProblemError(f"{self.name} has no variant {variant!r}; they are {', '.join(self.variants)}")
        return variant

    def unknown_set(self, name: str) -> InvalidProblemError:
        """What `sample_adversarial` raises for a name that is none of `adversarial`."""
        sets = ", ".join(self.adversarial)
        return InvalidProblemError(f"{self.name} has no adversarial set {name!r}; they are {sets}")


def task_tool(task: Task, variant: str) -> Tool:
    """The one tool that an interactive variant of a task calls.

    Raises:
        InvalidProblemError: the task has no such variant.
    """
    (tool,) = task.make_tools(variant)
    return tool


def split_of(task: Task, problem: str) -> str:
    """The split that a problem belongs to, decided by the problem alone: splits are disjoint by construction."""
    if task.held_out(problem):
        return "test"
    return next(split for split, end in _SPLIT_ENDS.items() if bucket(problem) < end)


def bucket(text: str) -> int:
    """A number below 100, decided by a text alone."""
    return int.from_bytes(hashlib.sha256(text.encode()).digest()[:8]) % 100


def example_rng(*identity: object) -> random.Random:
    """A generator for one example, seeded by all that identifies it, so that neighbours and seeds share nothing."""
    digest = hashlib.sha256("\x1f".join(map(str, identity)).encode()).digest()
    return random.Random(int.from_bytes(digest))


def describe_tools(specs: Sequence[Mapping[str, Any]]) -> str:
    """Tool specs in one line of text, for cards and messages."""
    texts = [spec["name"] + "".join(f", {k} {v}" for k, v in spec.items() if k != "name") for spec in specs]
    return "; ".join(texts) or "none"
