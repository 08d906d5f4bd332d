"""Which problems a dataset has, and its rows of tool trajectories.

One configuration is one training maximum or one evaluation length: `max_length_5` (train, validation), `length_1000`
(test), `all_carries_1000` (test). A row depends on its configuration, split and index alone, so that any number of
processes writes the same rows.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from dataset_builders.task import Task, example_rng, split_of
from hf_toolssm.errors import InvalidProblemError, TooFewProblemsError
from hf_toolssm.protocol.trajectory import Trajectory

TRAINING, TEST = "max_length", "length"
_MAX_DRAWS = 10_000


@dataclass(frozen=True)
class ProblemSet:
    """One configuration of a task's dataset.

    Attributes:
        task: whose problems they are.
        kind: "max_length" for training, "length" for a plain test, or the name of an adversarial set.
        length: the longest (training) or the exact (test) length of the problems.
        sizes: rows per split.
        variant: which of the task's algorithms.
        seed: another seed gives other problems.

    Raises:
        InvalidProblemError: the kind or the variant does not exist, the length is not positive, or the splits do not
            fit the kind.
    """

    task: Task
    kind: str
    length: int
    sizes: tuple[tuple[str, int], ...]
    variant: str
    seed: int = 0

    def __post_init__(self) -> None:
        name, kinds = self.task.name, (TRAINING, TEST, *self.task.adversarial)
        if self.kind not in kinds:
            raise InvalidProblemError(f"{name} has no problem set {self.kind!r}; they are {', '.join(kinds)}")
        self.task.check_variant(self.variant)
        if self.length < 1 or not self.sizes or any(size < 1 for _, size in self.sizes):
            raise InvalidProblemError(
                f"lengths and sizes start at 1, with at least one split: {self.kind} {self.length} {self.sizes}"
            )
        allowed = {"train", "validation"} if self.kind == TRAINING else {"test"}
        if not {split for split, _ in self.sizes} <= allowed:
            raise InvalidProblemError(f"a {self.kind} set has the splits {', '.join(sorted(allowed))}: {self.sizes}")

    @property
    def name(self) -> str:
        """The configuration's name, for example `max_length_5`; another variant than the first is part of it."""
        plain = f"{self.kind}_{self.length}"
        return plain if self.variant == self.task.variants[0] else f"{self.variant}_{plain}"


def problem_at(problems: ProblemSet, split: str, index: int) -> str:
    """The problem of one row, drawn until its own hash puts it into the split.

    Raises:
        TooFewProblemsError: the split has no problem of that length.
    """
    task = problems.task
    rng = example_rng(task.name, problems.kind, problems.length, problems.seed, split, index)
    for _ in range(_MAX_DRAWS):
        if problems.kind == TRAINING:
            problem = task.sample_training(rng, problems.length)
        elif problems.kind == TEST:
            problem = task.sample_test(rng, problems.length)
        else:
            problem = task.sample_adversarial(problems.kind, rng, problems.length, index)
        # Whether a problem suits may take far longer to find out.
        if split_of(task, problem) == split and (problems.kind != TRAINING or task.suits(problem, problems.variant)):
            return problem
    raise TooFewProblemsError(
        f"no problem of {problems.name} falls into the split {split}: choose a larger length"
        + (", or no validation split" if split == "validation" else "")
    )


def generate_trajectories(
    problems: ProblemSet, split: str, start: int, stop: int
) -> Iterator[tuple[str, Trajectory, int]]:
    """The problems start..stop of a split, solved, each with the row's id and its length."""
    task = problems.task
    for index in range(start, stop):
        problem = problem_at(problems, split, index)
        name = f"{task.name}/{problems.name}/{problems.seed}/{split}/{index}"
        yield name, task.solve(problem, problems.variant), task.length(problem)


def generate_rows(problems: ProblemSet, split: str, start: int, stop: int) -> Iterator[dict[str, Any]]:
    """The rows start..stop of a split, as `SCHEMA` of shards.py describes them."""
    for name, trajectory, length in generate_trajectories(problems, split, start, stop):
        yield {"id": name, **trajectory.to_row(), "length": length}


def evaluation_sets(
    task: Task,
    variant: str,
    lengths: Sequence[int],
    adversarial_lengths: Sequence[int],
    num_problems: int,
    seed: int = 0,
) -> list[ProblemSet]:
    """The test configurations: the plain ones by length, then every adversarial set of the task by length."""
    kinds = [(TEST, length) for length in lengths]
    kinds += [(name, length) for length in adversarial_lengths for name in task.adversarial]
    return [ProblemSet(task, kind, length, (("test", num_problems),), variant, seed) for kind, length in kinds]


class ReferenceTrajectories(Sequence[Trajectory]):
    """The solved problems of a split, the same as the dataset's rows.

    The problems are drawn at once, so that a set that does not exist is said before anything runs. Each is solved
    whenever it is asked for, since a solution can be thousands of times as long as its problem.

    Attributes:
        problem_set: what they are.
        problems: their texts.

    Raises:
        TooFewProblemsError: the split has too few problems of that length.
        DidNotHaltError, NoRuleError: a Turing machine does not solve one.
    """

    def __init__(self, problem_set: ProblemSet, split: str = "test") -> None:
        self.problem_set = problem_set
        self.problems = [problem_at(problem_set, split, index) for index in range(dict(problem_set.sizes)[split])]

    def __len__(self) -> int:
        return len(self.problems)

    def __getitem__(self, at: Any) -> Any:
        """One, or for a slice a list of them."""
        if isinstance(at, slice):
            return [self[index] for index in range(*at.indices(len(self)))]
        return self.problem_set.task.solve(self.problems[at], self.problem_set.variant)
