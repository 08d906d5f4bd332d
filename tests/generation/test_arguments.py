"""A command with an argument in the loop: the argument is fed but kept from memory, and the observation follows."""

import pytest

from dataset_builders.task import load_task, task_tool
from hf_toolssm.generation.row import Row
from hf_toolssm.generation.token_protocol import TokenProtocol
from hf_toolssm.generation.tool_calls import ObservationReader
from hf_toolssm.protocols import Renderer, build_task_tokenizer, tool_token_ids
from hf_toolssm.tools.search_memory import SEARCH
from hf_toolssm.trajectory import StepKind

PROBLEM = "1:abc\n0:def\n1:xyz\ndef-&=ghi\nabc+/ghi\nghi-==jkl\n>jkl\n"


@pytest.fixture(scope="module")
def rendered():
    """A solved logical graph, its tokens behind the problem, and a protocol that carries them out."""
    task = load_task("logical_graph")
    tool = task_tool(task, "depth_first")
    tokenizer = build_task_tokenizer(task.cells("depth_first"), [tool])
    renderer = Renderer(tokenizer)
    reader = ObservationReader(len(tokenizer), tokenizer)
    protocol = TokenProtocol([tool], tool_token_ids(tokenizer, [tool]), [tokenizer.eos_token_id], reader)
    trajectory = task.solve(PROBLEM, "depth_first")
    return trajectory, renderer.render(trajectory)["input_ids"], renderer.problem(PROBLEM), protocol


def test_a_row_that_makes_the_right_choices_repeats_the_recorded_trajectory(rendered):
    trajectory, tokens, problem, protocol = rendered
    row = Row.start(problem, protocol)
    for token in tokens[len(problem) :]:
        row = row.clone()  # as a draft has it
        written, _ = row.advance(token)
        assert written == token
    assert row.complete
    assert row.error is None
    assert row.answer == [protocol.reader._tokenizer.convert_tokens_to_ids(trajectory.answer)]
    memory = [
        *trajectory.problem,
        *(s.text for s in trajectory.steps if s.kind in (StepKind.THOUGHT, StepKind.OUTPUT)),
    ]
    assert protocol.reader._tokenizer.convert_ids_to_tokens(row.sessions[0].memory) == memory


def test_what_a_search_refuses_ends_the_row_by_name(rendered):
    _, _, problem, protocol = rendered
    row = Row.start(problem, protocol)
    row.advance(protocol.ids[SEARCH])
    assert row.finished
    assert row.error.startswith("NoArgumentError")
