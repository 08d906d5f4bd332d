"""What a task is, and how its problems fall into splits."""

import hashlib
import pkgutil
import random
from collections.abc import Mapping, Sequence
from functools import cache
from importlib import import_module
from pathlib import Path
from typing import Any, Protocol

from hf_toolssm.errors import InvalidProblemError, UnknownTaskError
from hf_toolssm.files import write_whole
from hf_toolssm.tools import Tool, make_tool
from hf_toolssm.trajectory import Trajectory

_NOT_TASKS = {"build", "builder", "card", "datasets_builder", "mixture", "publish", "task"}
_SHARED_BY_TASKS = {
    "addition_regimes",
    "decimal_numbers",
    "hanoi",
    "hanoi_states",
    "machine",
    "machine_inputs",
    "multiplication",
    "partial_products",
    "pointer_steps",
    "turing_machine",
}

_FOLDER = Path(__file__).parent

MACHINE = ".tm"
"""How the name of a Turing machine's table ends."""

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


@cache
def available_tasks() -> tuple[str, ...]:
    """The names of all tasks that are files of this folder, sorted."""
    others = _NOT_TASKS | _SHARED_BY_TASKS
    return tuple(sorted(m.name for m in pkgutil.iter_modules([str(_FOLDER)]) if m.name not in others))


@cache
def available_machines() -> tuple[str, ...]:
    """The names of the Turing machines in `machines/`, sorted."""
    return tuple(sorted(path.stem for path in (_FOLDER / "machines").glob(f"*{MACHINE}")))


def load_task(name: str) -> Task:
    """The task that a file of this folder defines, or a Turing machine's table.

    Args:
        name: of a task or of a machine in `machines/`, or the path of any other table, which ends in `.tm`.

    Raises:
        UnknownTaskError: there is no such file.
        InvalidMachineError: the table is not right; the message names the line.
    """
    if name in available_tasks():
        module = import_module(f"dataset_builders.{name}")
        return getattr(module, "".join(part.title() for part in name.split("_")))()
    try:
        name.encode()
    except UnicodeEncodeError as error:
        raise UnknownTaskError(
            f"the file's name {name!r} is not readable in this locale: set PYTHONUTF8=1, or rename the file"
        ) from error
    path = Path(name) if name.endswith(MACHINE) else _FOLDER / "machines" / f"{name}{MACHINE}"
    if not path.is_file():
        raise UnknownTaskError(
            f"no task is named {name!r}; the tasks are {', '.join(available_tasks())}; the Turing machines are "
            f"{', '.join(available_machines())}, and any file of yours that ends in {MACHINE}"
        )
    return _machine_task(path, path.stat().st_mtime_ns)


@cache
def _machine_task(path: Path, changed: int) -> Task:
    """Read once as long as the file does not change."""
    from dataset_builders.machine import read_machine
    from dataset_builders.turing_machine import TuringMachine

    return TuringMachine(read_machine(path))


def task_name(name: str) -> str:
    """What a task is called in ids, folders and titles: its name, and of a table's path the file's name."""
    return Path(name).stem if name.endswith(MACHINE) else name


def task_file(name: str) -> str:
    """What a task is called beside a copy of its table: its name, and of a table's path the file's name."""
    return Path(name).name if name.endswith(MACHINE) else name


def task_beside(folder: Path | str, name: str) -> str:
    """What `load_task` takes for a task that a dataset or a model in a folder names.

    A table of the user's own is named by its file, and a copy of it lies there.
    """
    beside = Path(folder) / name
    return str(beside) if name.endswith(MACHINE) and beside.is_file() else name


def copy_table(name: str, folder: Path) -> str:
    """Puts a copy of a table of the user's own into a folder; what the task is called from there on."""
    if not name.endswith(MACHINE):
        return name
    folder.mkdir(parents=True, exist_ok=True)
    write_whole(folder / task_file(name), Path(name).read_text(encoding="utf-8-sig"))
    return task_file(name)


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
