"""Tools that are only declared: a reply ends at their calls, the caller gives the results, nothing is read twice."""

import pytest
import torch
from scripts import ASKS, FAMILIES, SCHEMA, Script, says, send, start, tiny_model, told, weather, whole_logits
from template_families import family_tokenizer

from hf_toolssm import Chat, Declared, Function, Session
from hf_toolssm.errors import (
    ChatTemplateError,
    InvalidSchemaError,
    MessageError,
    SnapshotError,
    UnknownToolError,
    UnspellableTextError,
)
from hf_toolssm.protocol.trajectory import StepKind


def answer(chat, results, *turns):
    script = Script(chat, *turns)
    reply = chat.answer(results, sampler=script)
    assert not script.tokens[0]
    return reply


@pytest.mark.parametrize("family", FAMILIES)
def test_a_reply_ends_at_its_calls_and_goes_on_with_their_results(family):
    chat = start([Declared(SCHEMA)], family=family, record=True)
    reply = send(chat, "How is it?", ASKS)
    assert (reply.finished, reply.tool_calls, reply.messages) == (True, ASKS["tool_calls"], [ASKS])
    reply = answer(chat, ["Paris: fine", "Rome: fine"], says("Fine."))
    assert (reply.content, reply.messages) == ("Fine.", [says("Fine.")])
    assert chat.messages == [{"role": "user", "content": "How is it?"}, ASKS, *told("Paris", "Rome"), says("Fine.")]
    ids = list(chat.session.recording.ids[0])
    assert ids == chat.template.render(chat.messages)[: len(ids)]
    assert torch.allclose(whole_logits(chat, ids), chat.session.state.logits[0], atol=1e-4)
    kinds = [step.kind for step in chat.session.trajectories[0].steps]
    assert kinds.count(StepKind.INPUT) == 1
    assert StepKind.OBSERVATION in kinds


@pytest.mark.parametrize("family", FAMILIES)
def test_the_caller_gives_what_a_tool_of_ours_would_have_given(family):
    """The same conversation with the function called in the loop feeds the same tokens."""

    def look(city: str) -> str:
        """The weather of a city.

        Args:
            city: its name.
        """
        return weather(city)

    look.__name__ = "weather"
    turns = [ASKS, says("Fine.", reasoning_content="So."), says("Bye.")]
    ours = start([look], family=family, record=True)
    schema = next(iter(ours.session.protocol.template.schemas)) if ours.session else ours.template.schemas[0]
    theirs = start([Declared(schema)], family=family, record=True)
    send(ours, "How is it?", *turns[:2])
    send(theirs, "How is it?", turns[0])
    answer(theirs, ["Paris: fine", "Rome: fine"], turns[1])
    for chat in (ours, theirs):
        send(chat, "Thank you.", turns[2])
    assert ours.messages == theirs.messages
    assert list(ours.session.recording.ids[0]) == list(theirs.session.recording.ids[0])
    assert ours.session.recording.writers[0] == theirs.session.recording.writers[0]


@pytest.mark.parametrize("family", FAMILIES)
def test_a_history_that_ends_with_calls_goes_on_with_their_results(family):
    thinks = says("", *ASKS["tool_calls"], reasoning_content="Where?")
    history = [{"role": "user", "content": "How is it?"}, thinks]
    chat = start([Declared(SCHEMA)], family=family, messages=history, record=True)
    with pytest.raises(MessageError, match="answer"):
        chat.send("Well?")
    answer(chat, ["Paris: fine", "Rome: fine"], says("Fine."))
    send(chat, "Thank you.", says("Bye."))
    ids = list(chat.session.recording.ids[0])
    assert ids == chat.template.render(chat.messages)[: len(ids)]


def test_what_cannot_be_answered_changes_nothing():
    chat = start([Declared(SCHEMA)])
    with pytest.raises(MessageError, match="no calls wait"):
        chat.answer([])
    send(chat, "How is it?", ASKS)
    before = list(chat.messages)
    for results in (["one"], "ab", ["one", "two", "three"], ["one", 2], iter(["one", "two"]), {"a": 1, "b": 2}):
        with pytest.raises(MessageError):
            chat.answer(results)
    with pytest.raises(MessageError, match=r"answer\(\)"):
        chat.send("Well?")
    assert chat.messages == before
    assert answer(chat, ["a", "b"], says("Fine.")).content == "Fine."
    with pytest.raises(MessageError, match="no calls wait"):
        chat.answer(["again"])


def test_a_turn_that_cannot_be_read_is_what_the_model_said():
    chat = start([Declared(SCHEMA)])
    written = chat.tokenizer.encode('<tool_call>{"name": </tool_call>', add_special_tokens=False)
    reply = send(chat, "How is it?", [*written, chat.template.end])
    assert (reply.tool_calls, reply.finished) == ([], True)
    assert reply.content == '<tool_call>{"name": </tool_call>'


def test_a_saved_chat_waits_for_the_same_results(tmp_path):
    chat = start([Declared(SCHEMA)])
    send(chat, "How is it?", ASKS)
    chat.save(tmp_path / "chat.safetensors")
    loaded = Chat.load(tmp_path / "chat.safetensors", chat.model, chat.tokenizer, tools=[Declared(SCHEMA)])
    forked = chat.fork()
    for each in (chat, loaded, forked):
        answer(each, ["Paris: fine", "Rome: fine"], says("Fine."))
    states = [each.session.state.logits for each in (chat, loaded, forked)]
    assert torch.equal(states[0], states[1])
    assert torch.equal(states[0], states[2])


def test_a_result_without_tokens_is_refused_and_nothing_is_changed():
    chat = start([Declared(SCHEMA)])
    send(chat, "How is it?", ASKS)
    length = chat.session.rows[0].length
    with pytest.raises(UnspellableTextError):
        chat.answer(["Paris: fine", "\ud800"])
    assert chat.session.rows[0].length == length
    assert chat.messages[-1] == ASKS
    assert answer(chat, ["a", "b"], says("Fine.")).error is None


def test_a_saved_chat_whose_calls_wait_is_not_loaded_with_tools_that_run(tmp_path):
    chat = start([Declared(SCHEMA)])
    send(chat, "How is it?", ASKS)
    chat.save(tmp_path / "chat.safetensors")
    with pytest.raises(SnapshotError, match="all `Declared`"):
        Chat.load(tmp_path / "chat.safetensors", chat.model, chat.tokenizer, tools=[Function(weather, SCHEMA)])


def test_calls_are_left_to_the_caller_also_where_nothing_is_offered():
    chat = start(leaves_calls=True)
    reply = send(chat, "How is it?", ASKS)
    assert (reply.tool_calls, reply.finished) == (ASKS["tool_calls"], True)
    assert answer(chat, ["Paris: fine", "Rome: fine"], says("Fine.")).content == "Fine."


def test_declared_tools_are_refused_where_nobody_could_answer():
    with pytest.raises(InvalidSchemaError, match="parameters"):
        Declared({"name": "weather", "description": "None.", "parameters": {"type": "string"}})
    with pytest.raises(InvalidSchemaError, match="needs a schema"):
        Declared({"description": "of no name"})

    def clock() -> str:
        """The time."""
        return "noon"

    with pytest.raises(UnknownToolError, match="declare all or none"):
        start([Declared(SCHEMA), clock])
    tokenizer = family_tokenizer("toolssm", split=False)
    tokenizer.chat_template = None
    with pytest.raises(ChatTemplateError, match="tokens of their own"):
        Session.start(tiny_model(tokenizer), [[1]], tools=[Declared(SCHEMA)], tokenizer=tokenizer)
