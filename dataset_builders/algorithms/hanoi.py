"""The Tower of Hanoi: what both ways of solving it share (PAPER section 4, tasks 3 and 4).

A problem names the disks on rod A, largest first, each by two digits that say nothing of its size: `970345<` is a
tower of three, with 45 on top. The answer is every move in order as disk and rods: `45AC03AB45CB...`. The cell behind
the disks says which way it is solved, so that one model can learn both: `<` recursively, `>` iteratively. The pointers
that move are others than those of the tasks on numbers, and others for either way: one model of all tasks, trained on
short problems, took the steps of one task for those of another where the same pointers moved in both.
"""

import random
import re
from collections.abc import Sequence

from dataset_builders.algorithms.decimal_numbers import DIGITS
from dataset_builders.task import Task
from hf_toolssm.errors import InvalidProblemError

RODS = "ABC"
MOST_DISKS = 99
_DISKS = re.compile(r"((?!00)[0-9][0-9])+")


class HanoiPuzzle(Task):
    """The problems of both tasks and their right answers.

    Attributes:
        end: the cell behind the disks.
    """

    end: str
    version = "4"
    adversarial: Sequence[str] = ("consecutive_labels", "equal_units", "growing_labels")
    unit = "disks"

    def cells(self, variant: str) -> Sequence[str]:
        return (*DIGITS, *RODS, self.end)

    def sample_test(self, rng: random.Random, length: int) -> str:
        _check_number(length)
        return self._problem(rng.sample(range(1, 100), length))

    def sample_adversarial(self, name: str, rng: random.Random, length: int, index: int) -> str:
        _check_number(length)
        if name == "consecutive_labels":  # neighbours share their tens
            start = rng.randint(1, MOST_DISKS - length + 1)
            labels = list(range(start, start + length))
            rng.shuffle(labels)
        elif name == "equal_units":  # labels that only their tens tell apart, as many as there are
            units = rng.randrange(10)
            labels = sorted(range(1, 100), key=lambda label: (label % 10 != units, rng.random()))[:length]
        elif name == "growing_labels":  # the larger the disk, the smaller its label
            labels = sorted(rng.sample(range(1, 100), length))
        else:
            raise self.unknown_set(name)
        return self._problem(labels)

    def length(self, problem: str) -> int:
        return len(self.labels(problem))

    def answer(self, problem: str, variant: str) -> str:
        """Every move from the binary digits of its number, which neither algorithm looks at.

        The disk of move m is the number of zeros at the end of m, and its rods are m & (m - 1) and (m | (m - 1)) + 1
        modulo 3, where an even number of disks swaps the goal with the other rod.
        """
        labels = self.labels(problem)[::-1]
        rods = "ABC" if len(labels) % 2 else "ACB"
        moves = range(1, 2 ** len(labels))
        return "".join(
            labels[(m & -m).bit_length() - 1] + rods[(m & (m - 1)) % 3] + rods[((m | (m - 1)) + 1) % 3] for m in moves
        )

    def labels(self, problem: str) -> list[str]:
        """The labels of the disks, largest disk first.

        Raises:
            InvalidProblemError: the problem is not two digits per disk and `end`, or a label repeats.
        """
        disks = problem.removesuffix(self.end)
        labels = [disks[at : at + 2] for at in range(0, len(disks), 2)]
        if disks == problem or not _DISKS.fullmatch(disks) or len(set(labels)) < len(labels):
            raise InvalidProblemError(
                f"{problem[:60]!r} is no tower to be solved so: write two digits from 01 to 99 for each disk, largest "
                f"disk first, no label twice, and {self.end} behind them, as in 970345{self.end}"
            )
        return labels

    def _problem(self, labels: Sequence[int]) -> str:
        return "".join(f"{label:02}" for label in labels) + self.end


def _check_number(length: int) -> None:
    if length > MOST_DISKS:
        raise InvalidProblemError(f"there are labels for {MOST_DISKS} disks, and not for {length}")
