"""Records a trajectory by running the real tools, so that training and inference cannot differ."""

from collections.abc import Sequence
from typing import Any

from hf_toolssm.errors import EmptyProblemError, ToolError, UnknownCallError
from hf_toolssm.protocol.calls import CommandTokens
from hf_toolssm.protocol.trajectory import ANSWER, Content, Step, StepKind, Trajectory, canonical, step
from hf_toolssm.tools.tool import Tool, argument_of, cells_of, error_text, facts_of, text_of, unit_of


class Recorder:
    """The pen of a dataset builder: what it thinks, outputs and calls is carried out at once and written down.

    What it writes is cells where a tool reads cells, each of them one text, and spans of text otherwise.

    Args:
        problem: its cells, or its text.
        tools: those that answer the calls.

    Attributes:
        tools: the same, at work.

    Raises:
        EmptyProblemError: the problem is empty.
        UnknownToolError: two tools share a call.
    """

    def __init__(self, problem: Sequence[str], *tools: Tool) -> None:
        if not problem:
            raise EmptyProblemError("the problem is empty: state a problem of at least one cell")
        self._facts = [facts_of(tool) for tool in tools]
        self._calls = CommandTokens(self._facts, str)
        self._in_cells = unit_of(self._facts) == "cells"
        self.tools = [
            facts.start(tuple(problem) if facts.unit == "cells" else "".join(problem), str) for facts in self._facts
        ]
        self._told = [at_work.write for facts, at_work in zip(self._facts, self.tools) if facts.is_told]
        # Of cells, where an error always ends it. Rows are mostly such calls.
        self._plain = {
            name: (at_work.call, step(StepKind.CALL, None, name))
            for facts, at_work in zip(self._facts, self.tools)
            for name, takes_argument in facts.calls.items()
            if facts.unit == "cells" and not takes_argument
        }
        self._steps: list[Step] = [self._step(StepKind.INPUT, problem)]

    def input(self, content: Sequence[str]) -> None:
        """Begins another turn by what a user or the environment says: cells, or a text."""
        if not content:
            raise EmptyProblemError("the input is empty: a turn begins with at least one cell")
        self._steps.append(self._step(StepKind.INPUT, content))
        self._remember(content)

    def think(self, content: str) -> None:
        """Writes a thought: one cell, or a text."""
        self._write(StepKind.THOUGHT, content)

    def begin_answer(self) -> None:
        """Writes the marker behind which outputs stand."""
        self._steps.append(step(StepKind.THOUGHT, (ANSWER,)))
        self._remember((ANSWER,))

    def output(self, content: str) -> None:
        """Writes an output: one cell, or a text."""
        self._write(StepKind.OUTPUT, content)

    def call(self, name: str, argument: Sequence[str] = ()) -> Any:
        """Writes a call, lets the tool carry it out, and returns the observation: cells, or a text.

        The argument, cells or a text as the tool reads them (JSON where it has schemas), is part of the call: it
        carries loss and does not enter memory. What a tool refuses is its observation where it says so (`on_error`).

        Raises:
            UnknownCallError: no tool has such a call, or one without an argument.
            ToolError: the tool refuses it.
        """
        if not argument and name in self._plain:
            act, written = self._plain[name]
            cells = cells_of(act(name, ()), name)
            self._steps.append(written)
            if cells:
                self._steps.append(step(StepKind.OBSERVATION, tuple(cells)))
            return cells
        index = self._calls.tool_of.get(name)
        if index is None or (argument and not self._facts[index].calls[name]):
            named = "no tool has a call" if index is None else "there is no argument for the call"
            raise UnknownCallError(f"{named} {name!r}; the calls are {', '.join(self._calls.tool_of)}")
        facts = self._facts[index]
        is_text = facts.unit == "text"
        content: Content = "".join(argument) if is_text else tuple(argument)
        try:
            given = argument_of(facts, name, content) if isinstance(content, str) else content
            observed = self.tools[index].call(name, given)
            observed = (text_of if is_text else cells_of)(observed, name)
        except ToolError as error:
            if facts.on_error == "end":
                raise
            observed = error_text(error)
        self._steps.append(step(StepKind.CALL, content if facts.calls[name] else None, name))
        if observed:
            self._steps.append(step(StepKind.OBSERVATION, observed if isinstance(observed, str) else tuple(observed)))
        return observed

    def trajectory(self) -> Trajectory:
        """What was recorded, checked."""
        return Trajectory(canonical(self._steps)).check()

    def _write(self, kind: StepKind, content: str) -> None:
        self._steps.append(self._step(kind, (content,) if self._in_cells else content))
        self._remember((content,))

    def _step(self, kind: StepKind, content: Sequence[str]) -> Step:
        written: Content = tuple(content) if self._in_cells else "".join(content)
        return step(kind, written)

    def _remember(self, cells: Sequence[str]) -> None:
        for write in self._told:
            for cell in cells:
                write(cell)
