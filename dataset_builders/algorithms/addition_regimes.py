"""Addition without interaction (PAPER section 4, ablations): the same problems, answered in four other ways.

Written for `7+5=`, with `a` for the answer marker:

    no_cot           a 1 2
    reversed_answer  a 2 1                                     lowest digit first; the answer is read that way too
    plain_cot        the interactive trajectory, all of it as thoughts, then a 1 2: the model itself predicts what a
                     tool would have shown
    calculator       <|calculate|> 7 + 5 <|/calculate|> 12 a 1 2 one call of a tool: the observation is copied
"""

from hf_toolssm.protocol.calls import begin_token
from hf_toolssm.protocol.recorder import Recorder
from hf_toolssm.protocol.trajectory import ANSWER, StepKind, Trajectory, step
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
    shown = pen.call(CALCULATE, problem.removesuffix("="))
    pen.think(ANSWER)
    for digit in shown:
        pen.output(digit)
    return pen.trajectory()
