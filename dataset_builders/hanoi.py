"""The Tower of Hanoi: what both ways of solving it share (PAPER section 4, tasks 3 and 4).

A problem names the disks on rod A, largest first, each by two digits that say nothing of its size: `970345=` is a
tower of three, with 45 on top. The answer is every move in order as disk and rods: `45AC03AB45CB...`.
"""

import random
import re
from collections.abc import Sequence

from hf_toolssm.errors import InvalidProblemError

DIGITS = "0123456789"
RODS = "ABC"
MOST_DISKS = 99
_PROBLEM = re.compile(r"((?!00)[0-9][0-9])+=")


class HanoiPuzzle:
    """The problems of both tasks and their right answers."""

    version = "1"
    cells: Sequence[str] = (*DIGITS, *RODS, "=", "#", "+", "-")
    adversarial: Sequence[str] = ("consecutive_labels", "equal_units", "growing_labels")
    unit = "disks"

    def sample_training(self, rng: random.Random, max_length: int) -> str:
        return self.sample_test(rng, rng.randint(1, max_length))

    def sample_test(self, rng: random.Random, length: int) -> str:
        _check_number(length)
        return _state(rng.sample(range(1, 100), length))

    def sample_adversarial(self, name: str, rng: random.Random, length: int, index: int) -> str:
        """The problem number `index` of an adversarial set.

        Raises:
            InvalidProblemError: no set has that name, or there are not so many labels.
        """
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
            raise InvalidProblemError(f"there is no adversarial set {name!r}; they are {', '.join(self.adversarial)}")
        return _state(labels)

    def held_out(self, problem: str) -> bool:
        return False

    def length(self, problem: str) -> int:
        return len(labels_of(problem))

    def answer(self, problem: str) -> str:
        """Every move from the binary digits of its number, which neither algorithm looks at.

        The disk of move m is the number of zeros at the end of m, and its rods are m & (m - 1) and (m | (m - 1)) + 1
        modulo 3, where an even number of disks swaps the goal with the other rod.
        """
        labels = labels_of(problem)[::-1]
        rods = "ABC" if len(labels) % 2 else "ACB"
        moves = range(1, 2 ** len(labels))
        return "".join(
            labels[(m & -m).bit_length() - 1] + rods[(m & (m - 1)) % 3] + rods[((m | (m - 1)) + 1) % 3] for m in moves
        )


def labels_of(problem: str) -> list[str]:
    """The labels of the disks, largest disk first.

    Raises:
        InvalidProblemError: the problem is not two digits per disk and `=`, or a label repeats.
    """
    labels = [problem[at : at + 2] for at in range(0, len(problem) - 1, 2)]
    if not _PROBLEM.fullmatch(problem) or len(set(labels)) < len(labels):
        raise InvalidProblemError(
            f"{problem[:60]!r} is no tower: write two digits from 01 to 99 for each disk, largest disk first, no "
            "label twice, as in 970345="
        )
    return labels


def _check_number(length: int) -> None:
    if length > MOST_DISKS:
        raise InvalidProblemError(f"there are labels for {MOST_DISKS} disks, and not for {length}")


def _state(labels: Sequence[int]) -> str:
    return "".join(f"{label:02}" for label in labels) + "="
