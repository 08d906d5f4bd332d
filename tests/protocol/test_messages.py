"""A trajectory of text tools is a conversation, and comes back from it."""

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from hf_toolssm.errors import CorruptRowError
from hf_toolssm.protocol.messages import from_messages, to_messages
from hf_toolssm.protocol.recorder import Recorder
from hf_toolssm.protocol.trajectory import ANSWER, Step, StepKind, Trajectory
from hf_toolssm.tools.pointer_memory import PointerMemory


class Shout:
    """Says a text loudly."""

    name = "shout"

    def call(self, name, argument):
        return argument.upper()


class Clock:
    """Tells the time, or nothing."""

    calls = {"now": False}

    def call(self, name, argument):
        return ""


class Weather:
    schemas = {
        "weather": {
            "description": "Tells the weather.",
            "parameters": {"type": "object", "properties": {"city": {"type": "string"}}},
        }
    }

    def call(self, name, arguments):
        return f"21 in {arguments['city']}"


TOOLS = [Shout(), Clock(), Weather()]


def test_what_was_recorded_is_a_conversation():
    recorder = Recorder("How warm is it?", *TOOLS)
    recorder.think("I ask.")
    recorder.call("weather", '{"city": "Oslo"}')
    recorder.call("now")
    recorder.think("Now I say it.")
    recorder.call("shout", "21")
    recorder.begin_answer()
    recorder.output("It is 21.")
    assert to_messages(recorder.trajectory(), TOOLS) == [
        {"role": "user", "content": "How warm is it?"},
        {
            "role": "assistant",
            "content": "",
            "reasoning_content": "I ask.",
            "tool_calls": [{"type": "function", "function": {"name": "weather", "arguments": {"city": "Oslo"}}}],
        },
        {"role": "tool", "name": "weather", "content": "21 in Oslo"},
        {
            "role": "assistant",
            "content": "",
            "tool_calls": [{"type": "function", "function": {"name": "now", "arguments": {}}}],
        },
        {"role": "tool", "name": "now", "content": ""},
        {
            "role": "assistant",
            "content": "",
            "reasoning_content": "Now I say it.",
            "tool_calls": [{"type": "function", "function": {"name": "shout", "arguments": {"argument": "21"}}}],
        },
        {"role": "tool", "name": "shout", "content": "21"},
        {"role": "assistant", "content": "It is 21."},
    ]


texts = st.text(st.characters(exclude_categories=["Cs"]), min_size=1, max_size=8)
arguments = st.dictionaries(texts, st.one_of(texts, st.integers(), st.none(), st.lists(st.integers())), max_size=3)
call_steps = st.one_of(
    arguments.map(lambda given: ("weather", json.dumps(given, ensure_ascii=False))),
    texts.map(lambda text: ("shout", text)),
    st.just(("now", None)),
)
worked = st.tuples(st.one_of(st.none(), texts), call_steps, st.one_of(st.none(), texts))


@st.composite
def trajectories(draw):
    steps = []
    for asked in draw(st.lists(texts, min_size=1, max_size=3)):
        steps.append(Step(StepKind.INPUT, asked))
        for thought, (name, content), observed in draw(st.lists(worked, max_size=3)):
            steps += [Step(StepKind.THOUGHT, thought)] * (thought is not None)
            steps.append(Step(StepKind.CALL, content, name))
            steps += [Step(StepKind.OBSERVATION, observed)] * (observed is not None)
        last = draw(st.one_of(st.none(), texts))
        steps += [Step(StepKind.THOUGHT, last)] * (last is not None)
        steps.append(Step(StepKind.THOUGHT, (ANSWER,)))
        answer = draw(st.one_of(st.none(), texts))
        steps += [Step(StepKind.OUTPUT, answer)] * (answer is not None)
    return Trajectory(tuple(steps))


@given(trajectories())
def test_a_trajectory_comes_back_from_its_messages(trajectory):
    assert from_messages(to_messages(trajectory, TOOLS), TOOLS) == trajectory


def test_calls_of_one_message_stand_one_after_the_other_with_their_results():
    both = {
        "role": "assistant",
        "content": "",
        "tool_calls": [
            {"type": "function", "function": {"name": "weather", "arguments": {"city": "Oslo"}}},
            {"type": "function", "function": {"name": "now", "arguments": {}}},
        ],
    }
    conversation = [
        {"role": "user", "content": "?"},
        both,
        {"role": "tool", "name": "weather", "content": "21"},
        {"role": "tool", "name": "now", "content": "noon"},
        {"role": "assistant", "content": "21 at noon"},
    ]
    steps = from_messages(conversation, TOOLS).steps
    assert [(step.name, step.text) for step in steps[1:5]] == [
        ("weather", '{"city": "Oslo"}'),
        ("", "21"),
        ("now", ""),
        ("", "noon"),
    ]
    with pytest.raises(CorruptRowError, match="'now' before it has no result"):
        from_messages([*conversation[:3], conversation[4]], TOOLS)
    with pytest.raises(CorruptRowError, match="answers no call"):
        from_messages([*conversation[:4], conversation[3]], TOOLS)


def of(*steps, cut=()):
    return Trajectory(tuple(Step(StepKind(kind), *rest) for kind, *rest in steps), cut)


ANSWERED = (("thought", (ANSWER,)), ("output", "!"))


@pytest.mark.parametrize(
    ("trajectory", "tools", "said"),
    [
        (of(("input", "?"), *ANSWERED, cut=(0,)), TOOLS, "turn 0 breaks off"),
        (of(("input", "?"), *ANSWERED, ("input", "and?"), ("thought", "hm")), TOOLS, "'and\\?' has no answer"),
        (of(("input", "?"), ("call", "x", "weather"), *ANSWERED), TOOLS, "are no JSON"),
        (of(("input", "?"), ("call", "[1]", "weather"), *ANSWERED), TOOLS, "are no JSON object"),
        (of(("input", "?"), ("call", "x", "stocks"), *ANSWERED), TOOLS, "no tool has the call 'stocks'"),
        (of(("input", "?"), *ANSWERED), [PointerMemory(1)], "reads cells"),
    ],
)
def test_what_no_conversation_can_say_is_refused(trajectory, tools, said):
    with pytest.raises(CorruptRowError, match=said):
        to_messages(trajectory, tools)


@pytest.mark.parametrize(
    ("messages", "said"),
    [
        ([{"role": "system", "content": "Be brief."}], "a trajectory has no system"),
        (
            [{"role": "user", "content": "?"}, {"role": "assistant", "content": "!"}]
            + [{"role": "assistant", "content": "", "reasoning_content": "hm"}],
            "a thought stands behind",
        ),
    ],
)
def test_what_no_trajectory_can_say_is_refused(messages, said):
    with pytest.raises(CorruptRowError, match=said):
        from_messages(messages, TOOLS)
