"""Addition without interaction (PAPER section 4, ablations): the same problems, answered in four other ways.

Written for `7+5=`, with `a` for the answer marker:

    no_cot           a 1 2
    reversed_answer  a 2 1                                     lowest digit first; the answer is read that way too
    plain_cot        the interactive trajectory, all of it as thoughts, then a 1 2: the model itself predicts what a
                     tool would have shown
    calculator       <|calculate|> 7 + 5 <|equals|> 12 a 1 2   one call of a tool: the observation is copied
"""

from hf_toolssm.tools import make_tool
from hf_toolssm.tools.calculator import CALCULATE, EQUALS
from hf_toolssm.tools.pointer_memory import MEMORY_BEGIN, NEW_POINTER, left, read, right
from hf_toolssm.tools.recorder import Recorder
from hf_toolssm.trajectory import ANSWER, StepKind, Trajectory, step

NO_COT, REVERSED_ANSWER, PLAIN_COT, CALCULATOR = "no_cot", "reversed_answer", "plain_cot", "calculator"
REGIMES = (NO_COT, REVERSED_ANSWER, PLAIN_COT, CALCULATOR)

_COMMANDS = [NEW_POINTER, *(make(pointer) for pointer in (1, 2, 3) for make in (read, left, right))]
LETTERS = dict(zip([*_COMMANDS, MEMORY_BEGIN, ANSWER], "abcdefghijkl"))
"""What plain CoT writes in place of a command, and of an observed marker: cells that no tool listens to."""

CALCULATOR_TOOL = {"name": "calculator"}


def answer_at_once(problem: str, answer: str) -> Trajectory:
    """Nothing but the answer."""
    outputs = [step(StepKind.OUTPUT, digit) for digit in answer]
    return Trajectory(tuple(problem), [step(StepKind.THOUGHT, ANSWER), *outputs], answer).check()


def think_without_tool(interactive: Trajectory) -> Trajectory:
    """The same steps as thoughts, and the answer behind them."""
    thoughts = [step(StepKind.THOUGHT, LETTERS.get(s.text, s.text)) for s in interactive.steps]
    answered = answer_at_once("".join(interactive.problem), interactive.answer)
    return Trajectory(answered.problem, [*thoughts, *answered.steps], answered.answer).check()


def call_calculator(problem: str) -> Trajectory:
    """One call, and a copy of what it shows."""
    pen = Recorder(problem, make_tool(CALCULATOR_TOOL))
    shown = pen.ask(CALCULATE, problem.removesuffix("="), EQUALS)
    pen.think(ANSWER)
    for digit in shown:
        pen.output(digit)
    return pen.trajectory()
