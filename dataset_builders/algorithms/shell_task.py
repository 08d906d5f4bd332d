"""What tasks share whose problems name files that are repaired in a shell, and whose own check decides."""

from abc import abstractmethod
from collections.abc import Mapping, Sequence
from typing import Any

from dataset_builders.task import Task
from hf_toolssm.errors import InvalidWorkdirError, SandboxUnavailableError
from hf_toolssm.tools.bash import Bash, Shell
from hf_toolssm.tools.sandbox import interpreter

ANSWER = "fixed"
"""What the model says when it has repaired all; whether it has is `ShellTask.passes`."""


class ShellTask(Task):
    """A task of a shell that starts with the files of a problem."""

    rows_per_shard = 100

    @property
    def environment(self) -> str:
        try:
            return f"bubblewrap, with {interpreter()} as its python3"
        except SandboxUnavailableError:
            return "bubblewrap, which this machine lacks"

    def tools(self, variant: str) -> list[dict[str, Any]]:
        return [{"name": "bash"}]

    def make_tools(self, variant: str) -> list[Any]:
        """A shell beside the problem's files."""
        self.check_variant(variant)
        return [Bash(workdir=self.files)]

    def cells(self, variant: str) -> Sequence[str]:
        return ()

    @abstractmethod
    def files(self, problem: str) -> Mapping[str, str]:
        """The files that are to be repaired, by name.

        Raises:
            InvalidProblemError: the problem is none.
        """

    def answer(self, problem: str, variant: str) -> str:
        """What the model says, of any problem."""
        self.length(problem)
        return ANSWER

    def passes(self, problem: str, *at_work: Any) -> bool:
        """Whether the shell's files are repaired; files that nobody can look at are not."""
        (shell,) = at_work
        try:
            return self.is_repaired(problem, shell)
        except InvalidWorkdirError:  # sparse files, larger than any shell's
            return False

    @abstractmethod
    def is_repaired(self, problem: str, shell: Shell) -> bool:
        """Whether they are, by checks that never stood among them.

        Raises:
            InvalidWorkdirError: the files cannot be looked at.
        """
