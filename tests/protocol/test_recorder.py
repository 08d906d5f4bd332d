"""What a builder writes is what a session would have written, or it is refused."""

import numpy as np
import pytest

from hf_toolssm.errors import (
    CellNotOneTokenError,
    EmptyProblemError,
    ToolFaultError,
    UnknownCallError,
    UnspellableTextError,
)
from hf_toolssm.protocol.recorder import Recorder
from hf_toolssm.protocol.render import Renderer
from hf_toolssm.protocol.task_tokenizer import build_task_tokenizer
from hf_toolssm.protocol.trajectory import ANSWER, StepKind, step
from hf_toolssm.tools.pointer_memory import PointerMemory
from hf_toolssm.tools.search_memory import FIND, SearchMemory


class Peek:
    calls = {"peek": True}
    unit = "cells"

    def __init__(self, shown):
        self.shown = shown

    def call(self, name, argument):
        return self.shown


@pytest.mark.parametrize("shown", ["ab", None, 7])
def test_a_tool_of_cells_that_returns_none_is_a_fault_as_in_a_session(shown):
    with pytest.raises(ToolFaultError, match="return cells as a tuple or a list"):
        Recorder("a", Peek(shown)).call("peek", "b")


def test_a_call_that_no_tool_has_is_refused_and_nothing_is_written():
    pen = Recorder("a", PointerMemory(2))
    with pytest.raises(UnknownCallError, match="no tool has a call 'find'"):
        pen.call(FIND)
    with pytest.raises(UnknownCallError, match="there is no argument for the call"):
        pen.call("new_pointer", "1")
    with pytest.raises(EmptyProblemError, match="at least one cell"):
        pen.input("")
    pen.begin_answer()
    assert len(pen.trajectory().steps) == 2


@pytest.mark.parametrize("cell", ["<|/find|>", "<|find|>", "<|end|>", "<|search_end|>"])
def test_what_acts_stands_in_no_argument_no_thought_and_no_output(cell):
    """Or what was recorded would be read back, and carried out, as something else."""
    renderer = Renderer(build_task_tokenizer("ab\n", [SearchMemory()]))
    for kind, name in ((StepKind.THOUGHT, ""), (StepKind.OUTPUT, ""), (StepKind.CALL, FIND), (StepKind.INPUT, "")):
        with pytest.raises(CellNotOneTokenError, match="was added to the tokenizer"):
            renderer.step(step(kind, ("a", cell), name))
    assert len(renderer.step(step(StepKind.THOUGHT, (ANSWER,)))) == 1


def test_half_a_character_in_a_span_is_refused_by_name():
    renderer = Renderer(build_task_tokenizer("ab", [PointerMemory(2)]))
    with pytest.raises(UnspellableTextError, match="half of a character"):
        renderer.step(step(StepKind.INPUT, "a\ud800"))


def test_a_cell_of_numpy_is_one_of_python_whoever_comes_first():
    first = step(StepKind.THOUGHT, (np.str_("q"),))
    assert {type(cell) for each in (first, step(StepKind.THOUGHT, ("q",))) for cell in each.content} == {str}
    pen = Recorder("q", PointerMemory(2))
    pen.think(np.str_("q"))
    pen.begin_answer()
    assert pen.trajectory().check()
