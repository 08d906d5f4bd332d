"""Which tasks there are, and how a command finds one by its name or by its file; behind it tasks are objects."""

import pkgutil
from functools import cache
from importlib import import_module
from pathlib import Path

from dataset_builders import tasks
from dataset_builders.algorithms.machine import read_machine
from dataset_builders.algorithms.turing_machine import TABLE, TuringMachine
from dataset_builders.task import Task
from hf_toolssm.errors import UnknownTaskError

MACHINES = Path(__file__).parent / "machines"


@cache
def available_tasks() -> tuple[str, ...]:
    """The names of all tasks that are files of `tasks/`, sorted."""
    return tuple(sorted(module.name for module in pkgutil.iter_modules(tasks.__path__)))


@cache
def available_machines() -> tuple[str, ...]:
    """The names of the Turing machines in `machines/`, sorted."""
    return tuple(sorted(path.stem for path in MACHINES.glob(f"*{TABLE}")))


def load_task(name: str, beside: Path | str = "") -> Task:
    """The task that a file of `tasks/` defines, or a Turing machine's table.

    Args:
        name: of a task or of a machine in `machines/`, or the path of any other table, which ends in `.tm`.
        beside: the folder of a dataset or a model that names the task: a copy of the user's own table may lie there.

    Raises:
        UnknownTaskError: there is no such file.
        InvalidMachineError: the table is not right; the message names the line.
    """
    if name in available_tasks():
        module = import_module(f"{tasks.__name__}.{name}")
        return getattr(module, "".join(part.title() for part in name.split("_")))()
    try:
        name.encode()
    except UnicodeEncodeError as error:
        raise UnknownTaskError(
            f"the file's name {name!r} is not readable in this locale: set PYTHONUTF8=1, or rename the file"
        ) from error
    of_user = name.endswith(TABLE)
    paths = (Path(beside) / name, Path(name)) if of_user else (MACHINES / f"{name}{TABLE}",)
    path = next(filter(Path.is_file, paths), None)
    if path is None:
        raise UnknownTaskError(
            f"no task is named {name!r}; the tasks are {', '.join(available_tasks())}; the Turing machines are "
            f"{', '.join(available_machines())}, and any file of yours that ends in {TABLE}"
        )
    return TuringMachine(read_machine(path), of_user)
