"""Records a trajectory by running the real tool, so that training and inference cannot differ."""

from collections.abc import Sequence

from hf_toolssm.errors import EmptyProblemError, UnknownCallError, UnknownToolError
from hf_toolssm.protocol.calls import begin_token, end_token
from hf_toolssm.protocol.trajectory import Step, StepKind, Trajectory, step
from hf_toolssm.tools.tool import Tool, facts_of


class Recorder:
    """The pen of a dataset builder: what it thinks, outputs and calls is carried out at once and written down.

    Args:
        problem: the cells of the problem.
        tool: the tool that answers the calls, in cells.

    Raises:
        EmptyProblemError: the problem has no cell.
        UnknownToolError: the tool reads text, of which a trajectory of cells has none.
    """

    def __init__(self, problem: Sequence[str], tool: Tool) -> None:
        if not problem:
            raise EmptyProblemError("the problem is empty: state a problem of at least one cell")
        self._problem = tuple(problem)
        self._facts = facts_of(tool)
        if self._facts.unit != "cells":
            raise UnknownToolError("a trajectory is recorded in cells: give a tool that reads cells")
        self._at_work = self._facts.start(self._problem, str)
        self._steps: list[Step] = []
        self._answer: list[str] = []

    def think(self, cell: str) -> None:
        """Writes a thought."""
        self._write(StepKind.THOUGHT, cell)

    def output(self, cell: str) -> None:
        """Writes an output."""
        self._write(StepKind.OUTPUT, cell)
        self._answer.append(cell)

    def _write(self, kind: StepKind, cell: str) -> None:
        self._steps.append(step(kind, cell))
        if self._facts.is_told:
            self._at_work.write(cell)

    def call(self, name: str, argument: Sequence[str] = ()) -> Sequence[str]:
        """Writes a call, lets the tool carry it out, and returns the observation.

        The argument's cells are part of the call: they carry loss and do not enter memory.

        Raises:
            UnknownCallError: the tool has no such call, or one without an argument.
            ToolError: the tool refuses it.
        """
        if name not in self._facts.calls or (argument and not self._facts.calls[name]):
            named = "no call" if name not in self._facts.calls else "no argument for the call"
            raise UnknownCallError(f"the tool has {named} {name!r}; its calls are {', '.join(self._facts.calls)}")
        observation = self._at_work.call(name, tuple(argument))
        self._steps.append(step(StepKind.COMMAND, begin_token(name)))
        if self._facts.calls[name]:
            self._steps.extend(step(StepKind.COMMAND, cell) for cell in argument)
            self._steps.append(step(StepKind.COMMAND, end_token(name)))
        for cell in observation:
            self._steps.append(step(StepKind.OBSERVATION, cell))
        return observation

    def trajectory(self) -> Trajectory:
        """What was recorded, checked."""
        return Trajectory(self._problem, self._steps, "".join(self._answer)).check()
