"""Addition without interaction (PAPER section 4, ablations): the same problems, answered in four other ways.

Written for `7+5=`, with `a` for the answer marker:

    no_cot           a 1 2
    reversed_answer  a 2 1                                     lowest digit first; the answer is read that way too
    plain_cot        the interactive trajectory, all of it as thoughts, then a 1 2: the model itself predicts what a
                     tool would have shown
    calculator       <|calculate|> 7 + 5 <|/calculate|> 12 a 1 2 one call of a tool: the observation is copied
"""

from collections.abc import Iterable

from hf_toolssm.protocol.calls import begin_token
from hf_toolssm.protocol.recorder import Recorder
from hf_toolssm.protocol.trajectory import ANSWER, StepKind, Trajectory, canonical, step
from hf_toolssm.tools import make_tool
from hf_toolssm.tools.calculator import CALCULATE
from hf_toolssm.tools.pointer_memory import MEMORY_BEGIN, NEW_POINTER, left, read, right

NO_COT, REVERSED_ANSWER, PLAIN_COT, CALCULATOR = "no_cot", "reversed_answer", "plain_cot", "calculator"
REGIMES = (NO_COT, REVERSED_ANSWER, PLAIN_COT, CALCULATOR)

_CALLS = [NEW_POINTER, *(make(pointer) for pointer in (1, 2, 3) for make in (read, left, right))]
LETTERS = dict(zip([*map(begin_token, _CALLS), MEMORY_BEGIN, ANSWER], "abcdefghijkl"))
"""What plain CoT writes in place of a call, and of an observed marker: cells that are no calls."""

CALCULATOR_TOOL = {"name": "calculator"}


def answer_at_once(problem: str, answer: str) -> Trajectory:
    """Nothing but the answer."""
    return _think(problem, (), answer)


def think_without_tool(interactive: Trajectory) -> Trajectory:
    """The same steps as thoughts, and the answer behind them."""
    thoughts = [LETTERS.get(cell, cell) for kind, cell in interactive.cells() if kind is not StepKind.INPUT]
    return _think("".join(interactive.problem), thoughts, interactive.answer)


def _think(problem: str, thoughts: Iterable[str], answer: str) -> Trajectory:
    steps = [
        step(StepKind.INPUT, tuple(problem)),
        step(StepKind.THOUGHT, (*thoughts, ANSWER)),
        step(StepKind.OUTPUT, tuple(answer)),
    ]
    return Trajectory(canonical(steps)).check()


def call_calculator(problem: str) -> Trajectory:
    """One call, and a copy of what it shows."""
    pen = Recorder(problem, make_tool(CALCULATOR_TOOL))
    shown = pen.call(CALCULATE, problem.removesuffix("="))
    pen.begin_answer()
    for digit in shown:
        pen.output(digit)
    return pen.trajectory()
