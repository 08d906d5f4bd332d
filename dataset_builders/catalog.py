"""Which tasks there are, and how one is found by its name or by its file."""

import pkgutil
from functools import cache
from importlib import import_module
from pathlib import Path

from dataset_builders import tasks
from dataset_builders.algorithms.machine import read_machine
from dataset_builders.algorithms.turing_machine import TuringMachine
from dataset_builders.task import Task
from hf_toolssm.errors import UnknownTaskError
from hf_toolssm.files import write_atomically

MACHINES = Path(__file__).parent / "machines"

MACHINE = ".tm"
"""How the name of a Turing machine's table ends."""


@cache
def available_tasks() -> tuple[str, ...]:
    """The names of all tasks that are files of `tasks/`, sorted."""
    return tuple(sorted(module.name for module in pkgutil.iter_modules(tasks.__path__)))


@cache
def available_machines() -> tuple[str, ...]:
    """The names of the Turing machines in `machines/`, sorted."""
    return tuple(sorted(path.stem for path in MACHINES.glob(f"*{MACHINE}")))


def load_task(name: str) -> Task:
    """The task that a file of `tasks/` defines, or a Turing machine's table.

    Args:
        name: of a task or of a machine in `machines/`, or the path of any other table, which ends in `.tm`.

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
    path = Path(name) if name.endswith(MACHINE) else MACHINES / f"{name}{MACHINE}"
    if not path.is_file():
        raise UnknownTaskError(
            f"no task is named {name!r}; the tasks are {', '.join(available_tasks())}; the Turing machines are "
            f"{', '.join(available_machines())}, and any file of yours that ends in {MACHINE}"
        )
    return _machine_task(path, path.stat().st_mtime_ns)


@cache
def _machine_task(path: Path, changed: int) -> Task:
    """Read once as long as the file does not change."""
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
    write_atomically(folder / task_file(name), Path(name).read_text(encoding="utf-8-sig"))
    return task_file(name)
