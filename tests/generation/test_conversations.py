"""Conversations that come whole every time: only what is new is read, and replies are what a chat would say."""

import json

import pytest
import torch
from scripts import ASKS, FAMILIES, SCHEMA, Script, call, says, tiny_model, told, whole_logits
from template_families import family_tokenizer

from hf_toolssm.errors import MessageError, UnknownToolError, UnsupportedGenerationError
from hf_toolssm.generation.conversations import Conversations


class Scripted(Conversations):
    """Whose model writes given turns, and which counts the tokens that it is fed."""

    def __init__(self, family="toolssm", **options):
        tokenizer = family_tokenizer(family, split=False)
        super().__init__(tiny_model(tokenizer), tokenizer, **options)
        self.fed = 0
        self.continued = 0
        self._model.register_forward_pre_hook(self._count, with_kwargs=True)

    def _count(self, module, arguments, given):
        self.fed += given["input_ids"].numel()

    def _chat(self, *arguments):
        self.chat = super()._chat(*arguments)
        self.continued += self.chat.session is not None
        self.turns_tokens = self.chat.template.turn(self.turn)
        self.script.tokens = [[*self.turns_tokens]]
        self.script.chat = self.chat
        return self.chat

    def says(self, turn, messages, tools=(SCHEMA,), **options):
        self.turn, self.fed, self.script = turn, 0, Script(None)
        return self.reply(messages, tools, sampler=self.script, **options)


USER = {"role": "user", "content": "How is it in Paris and in Rome, and what should I wear there in the evening?"}
THANKS = {"role": "user", "content": "Thank you."}


@pytest.mark.parametrize("family", FAMILIES)
def test_of_a_conversation_that_comes_whole_only_what_is_new_is_read(family):
    conversations = Scripted(family)
    first = conversations.says(ASKS, [USER])
    assert (first.kept, first.read + first.written) == (0, conversations.fed)
    messages = [USER, ASKS, *told("Paris", "Rome")]
    turn = conversations.says(says("Fine."), messages)
    assert (turn.message, turn.finished, turn.kept) == (says("Fine."), True, first.read + first.written)
    assert (turn.read + turn.written, turn.written) == (conversations.fed, len(conversations.turns_tokens))
    conversations.says(says("Bye."), [*messages, says("Fine."), THANKS])
    assert (conversations._started, conversations.continued) == (1, 2)
    ids = conversations.chat.template.render(conversations.chat.messages)
    assert conversations.chat.messages == [*messages, says("Fine."), THANKS, says("Bye.")]
    assert conversations.chat.session.rows[0].length <= len(ids)
    state = conversations.chat.session.state.logits[0]
    fed = ids[: conversations.chat.session.rows[0].length]
    assert torch.allclose(whole_logits(conversations.chat, fed), state, atol=1e-4)


def test_two_may_go_on_from_one_reply_and_what_was_never_said_is_read_anew():
    conversations = Scripted()
    conversations.says(ASKS, [USER])
    for cities in (("Paris", "Rome"), ("Paris", "Oslo")):
        conversations.says(says("Fine."), [USER, ASKS, *told(*cities)])
    assert (conversations._started, conversations.continued) == (1, 2)
    other = says("", call("weather", city="Lima"))
    conversations.says(says("Fine."), [USER, other, *told("Lima")])
    conversations.says(says("Fine."), [USER, says("No."), THANKS, THANKS])
    conversations.says(says("Fine."), [USER, ASKS, *told("Paris", "Rome"), THANKS])
    assert (conversations._started, conversations.continued) == (4, 2)
    assert conversations.chat.messages == [USER, ASKS, *told("Paris", "Rome"), THANKS, says("Fine.")]


def test_a_call_that_comes_back_as_a_server_writes_it_is_the_same_call():
    conversations = Scripted()
    conversations.says(ASKS, [USER])
    written = [
        {
            "id": f"call_{at}",
            "type": "function",
            "function": {**each["function"], "arguments": json.dumps(each["function"]["arguments"])},
        }
        for at, each in enumerate(ASKS["tool_calls"])
    ]
    results = [
        {"role": "tool", "tool_call_id": f"call_{at}", "content": each["content"]}
        for at, each in enumerate(told("Paris", "Rome"))
    ]
    conversations.says(says("Fine."), [USER, {"role": "assistant", "content": None, "tool_calls": written}, *results])
    assert (conversations._started, conversations.continued) == (1, 1)


def test_results_with_ids_may_come_in_any_order_and_others_are_refused():
    conversations = Scripted()
    conversations.says(ASKS, [USER])
    calls = [{**each, "id": name} for each, name in zip(ASKS["tool_calls"], ("a", "b"))]
    paris, rome = ({**each, "tool_call_id": name} for each, name in zip(told("Paris", "Rome"), ("a", "b")))
    asks = {**ASKS, "tool_calls": calls}
    conversations.says(says("Fine."), [USER, asks, rome, paris])
    assert [each["content"] for each in conversations.chat.messages[2:4]] == ["Paris: fine", "Rome: fine"]
    twice = {**ASKS, "tool_calls": [calls[0], {**calls[1], "id": "a"}]}
    with pytest.raises(MessageError):  # two calls of one id, of which either result could be meant
        conversations.says(says("No."), [USER, twice, paris, {**rome, "tool_call_id": "a"}])
    for results in (
        [paris, paris],
        [paris, {**rome, "tool_call_id": "c"}],
        [paris],
        [paris, {**rome, "name": "clock"}],
    ):
        with pytest.raises(MessageError):
            conversations.says(says("No."), [USER, asks, *results])


def test_a_conversation_ends_without_tools_and_a_call_of_nothing_is_the_turn():
    conversations = Scripted()
    conversations.says(ASKS, [USER])
    turn = conversations.says(says("Fine."), [USER, ASKS, *told("Paris", "Rome")], tools=())
    assert turn.message == says("Fine.")
    turn = conversations.says(ASKS, [USER], tools=())
    assert turn.message == ASKS


def test_a_thought_is_part_of_what_is_gone_on_from_and_no_token_is_counted_twice():
    conversations = Scripted("qwen3_5_think")
    thinks = says("Yes.", reasoning_content="A long thought of many tokens, of which the template keeps none.")
    first = conversations.says(thinks, [USER])
    assert first.message == thinks
    turn = conversations.says(says("Bye."), [USER, thinks, THANKS])
    assert conversations.continued == 1
    assert (turn.read + turn.written, turn.kept > 0) == (conversations.fed, True)
    conversations.says(says("Bye."), [USER, says("Yes."), THANKS])
    assert conversations.continued == 1


def test_a_seed_repeats_a_turn_however_the_conversation_was_read():
    tokenizer = family_tokenizer("toolssm", split=False)
    model = tiny_model(tokenizer)
    history = [USER, says("Yes."), THANKS]

    def second_turn(conversations):
        return conversations.reply(history, temperature=1.0, seed=3, max_new_tokens=8).message["content"]

    kept, fresh = Scripted(), Conversations(model, tokenizer)
    kept.says(says("Yes."), [USER], tools=(), temperature=1.0)
    turns = []
    for _ in range(2):
        kept.script = Script(None)
        kept.turn = says("")
        turns.append(second_turn(kept))
    assert kept.continued == 2
    assert turns == [second_turn(fresh)] * 2


def test_what_is_kept_last_stays_and_a_keep_of_nothing_is_refused():
    conversations = Scripted(keep=2)
    for name in ("0", "1", "0", "2"):
        conversations.says(says("Yes."), [{"role": "user", "content": name}])
    conversations.says(says("Yes."), [{"role": "user", "content": "0"}, says("Yes."), THANKS])
    assert conversations.continued == 1
    with pytest.raises(UnsupportedGenerationError, match="keep"):
        Scripted(keep=0)
    with pytest.raises(UnknownToolError, match="list of schemas"):
        conversations.says(says("No."), [USER], tools=5)


def test_only_the_last_conversations_are_kept():
    conversations = Scripted(keep=2)
    users = [{"role": "user", "content": f"Number {at}"} for at in range(3)]
    for user in users:
        conversations.says(says("Yes."), [user])
    for user in (users[2], users[0]):
        conversations.says(says("Yes."), [user, says("Yes."), THANKS])
    assert (conversations._started, conversations.continued) == (4, 1)


def test_what_is_replied_to_is_checked_before_anything_is_read():
    conversations = Scripted()
    for messages in ([], [USER, ASKS], [USER, ASKS, *told("Paris")], [{"role": "system", "content": "Be kind."}]):
        with pytest.raises(MessageError):
            conversations.says(says("No."), messages)
    assert conversations.fed == 0


def test_sampled_replies_differ_and_a_seed_repeats_one():
    tokenizer = family_tokenizer("toolssm", split=False)
    conversations = Conversations(tiny_model(tokenizer), tokenizer)

    def sampled(seed):
        turn = conversations.reply([USER], temperature=1.0, max_new_tokens=8, seed=seed)
        assert (turn.finished, turn.written) == (False, 8)
        return turn.message["content"]

    assert sampled(None) != sampled(None)
    assert sampled(1) == sampled(1) != sampled(2)
