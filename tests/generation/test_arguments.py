"""A call with an argument in the loop: the argument is fed but kept from memory, and the observation follows."""

import pytest

from dataset_builders.catalog import load_task
from dataset_builders.task import task_tool
from hf_toolssm.generation.command_row import CommandProtocol
from hf_toolssm.generation.tool_calls import ToolCaller
from hf_toolssm.protocol.calls import end_token
from hf_toolssm.protocol.render import Renderer
from hf_toolssm.protocol.special_tokens import tool_token_ids
from hf_toolssm.protocol.task_tokenizer import build_task_tokenizer
from hf_toolssm.protocol.trajectory import StepKind
from hf_toolssm.tools import facts_of
from hf_toolssm.tools.search_memory import FIND

PROBLEM = "1:abc\n0:def\n1:xyz\ndef-&=ghi\nabc+/ghi\nghi-==jkl\n>jkl\n"


@pytest.fixture(scope="module")
def rendered():
    """A solved logical graph, its tokens behind the problem, and a protocol that carries them out."""
    task = load_task("logical_graph")
    tool = task_tool(task, "depth_first")
    tokenizer = build_task_tokenizer(task.cells("depth_first"), [tool])
    renderer = Renderer(tokenizer)
    caller = ToolCaller(len(tokenizer), tokenizer)
    protocol = CommandProtocol([facts_of(tool)], tool_token_ids(tokenizer, [tool]), [tokenizer.eos_token_id], caller)
    trajectory = task.solve(PROBLEM, "depth_first")
    return trajectory, renderer.render(trajectory)["input_ids"], renderer.problem(PROBLEM), protocol


def test_a_row_that_makes_the_right_choices_repeats_the_recorded_trajectory(rendered):
    trajectory, tokens, problem, protocol = rendered
    row = protocol.start_row(problem)
    for token in tokens[len(problem) :]:
        row = row.clone()  # as a draft has it
        written, _ = row.advance(token)
        assert written == token
    assert row.complete
    assert row.error is None
    assert row.answer == [protocol.caller._tokenizer.convert_tokens_to_ids(trajectory.answer)]
    memory = [cell for kind, cell in trajectory.cells() if kind not in (StepKind.CALL, StepKind.OBSERVATION)]
    assert protocol.caller._tokenizer.convert_ids_to_tokens(row.tools[0].memory) == memory


def test_what_a_search_refuses_ends_the_row_by_name(rendered):
    _, _, problem, protocol = rendered
    row = protocol.start_row(problem)
    row.advance(protocol.ids[end_token(FIND)])
    assert row.finished
    assert row.error.startswith("MalformedCallError")
