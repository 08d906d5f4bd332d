"""Records a trajectory by running the real tool, so that training and inference cannot differ."""

from collections.abc import Sequence

from hf_toolssm.errors import EmptyProblemError
from hf_toolssm.tools.tool import Tool
from hf_toolssm.trajectory import Step, StepKind, Trajectory, step


class Recorder:
    """The pen of a dataset builder: what it thinks, outputs and calls is carried out at once and written down.

    Args:
        problem: the cells of the problem.
        tool: the tool that answers the commands.

    Raises:
        EmptyProblemError: the problem has no cell.
    """

    def __init__(self, problem: Sequence[str], tool: Tool) -> None:
        if not problem:
            raise EmptyProblemError("the problem is empty: state a problem of at least one cell")
        self._problem = tuple(problem)
        self._session = tool.start(self._problem, marker=str)
        self._steps: list[Step] = []
        self._answer: list[str] = []

    def think(self, cell: str) -> None:
        """Writes a thought."""
        self._steps.append(step(StepKind.THOUGHT, cell))
        self._session.write(cell)

    def output(self, cell: str) -> None:
        """Writes an output."""
        self._steps.append(step(StepKind.OUTPUT, cell))
        self._session.write(cell)
        self._answer.append(cell)

    def call(self, command: str) -> Sequence[str]:
        """Writes a command, lets the tool carry it out, and returns the observation: cells, or characters."""
        observed = self._session.execute(command)
        observation = observed.decode("utf-8", errors="replace") if isinstance(observed, bytes) else observed
        self._steps.append(step(StepKind.COMMAND, command))
        for cell in observation:
            self._steps.append(step(StepKind.OBSERVATION, cell))
        return observation

    def ask(self, begin: str, argument: Sequence[str], end: str) -> Sequence[str]:
        """Writes a command with an argument, as in `<|find|> a b <|search|>`, and returns the observation.

        The argument's cells are part of the command: they carry loss and do not enter memory.
        """
        self.call(begin)
        for cell in argument:
            self._steps.append(step(StepKind.COMMAND, cell))
            self._session.write(cell)
        return self.call(end)

    def trajectory(self) -> Trajectory:
        """What was recorded, checked."""
        return Trajectory(self._problem, self._steps, "".join(self._answer)).check()
