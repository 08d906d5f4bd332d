"""Replies to conversations that come whole every time, as servers and harnesses send them."""

import json
import random
from collections import OrderedDict
from collections.abc import Mapping, Sequence
from threading import Lock
from typing import Any, NamedTuple, cast

from transformers import PreTrainedTokenizerBase

from hf_toolssm.errors import MessageError, UnknownToolError, UnsupportedGenerationError
from hf_toolssm.generation.chat import Chat
from hf_toolssm.generation.chat_reply import Reply
from hf_toolssm.generation.chat_row import ChatRow
from hf_toolssm.generation.sampler import Sampler
from hf_toolssm.protocol.chat_messages import check_messages
from hf_toolssm.tools.function import Declared


class Turn(NamedTuple):
    """A turn of the model.

    Attributes:
        message: the assistant's, as far as it went.
        finished: whether the model ended it; otherwise there was no token left for more.
        kept: tokens of the conversation that were not read again.
        read: tokens that were.
        written: tokens of the turn.
    """

    message: dict[str, Any]
    finished: bool
    kept: int
    read: int
    written: int


class Conversations:
    """One model's replies to any conversations, of which it reads only what it has not read yet.

        conversations = Conversations(model, tokenizer)
        turn = conversations.reply([{"role": "user", "content": "What is the weather in Paris?"}], tools=[schema])

    Behind every reply the model's state is kept. Whoever goes on from it, once or several times, sends all of the
    conversation, the thoughts of the reply included, and only what stands behind that reply is fed. A conversation
    that no kept reply begins is read anew, as the template writes it.

    Args:
        model, tokenizer: see `Chat.start`.
        keep: how many replies are kept, the last that were given or gone on from: each with a state of the model's.
        chat_template_kwargs: for the template, for example `enable_thinking=False`.

    Raises:
        UnsupportedGenerationError: `keep` is less than 1.
    """

    def __init__(
        self, model: Any, tokenizer: PreTrainedTokenizerBase, *, keep: int = 64, **chat_template_kwargs: Any
    ) -> None:
        if keep < 1:
            raise UnsupportedGenerationError(f"keep is at least 1 reply, and not {keep}")
        self._model = model
        self._tokenizer = tokenizer
        self._keep = keep
        self._options = chat_template_kwargs
        self._kept: OrderedDict[str, Chat] = OrderedDict()
        self._replying = Lock()
        self._started = 0

    def reply(
        self,
        messages: Sequence[Mapping[str, Any]],
        tools: Sequence[Mapping[str, Any]] = (),
        *,
        max_new_tokens: int | None = None,
        temperature: float = 0.0,
        seed: int | None = None,
        sampler: Sampler | None = None,
    ) -> Turn:
        """The model's next turn: what it says, or the calls that it wants carried out.

        Args:
            messages: all of the conversation, which ends with a user's message or the results of the last calls: in
                their order or, where all have ids, in any.
            tools: what is offered, as the schemas of `Declared`.
            max_new_tokens: of the turn.
            temperature: 0 is greedy.
            seed: of the sampling of this turn; None is another one each time.
            sampler: chooses tokens in place of the temperature.

        Raises:
            MessageError: these are no such messages, or the template refuses them.
            InvalidSchemaError, UnknownToolError, UnspellableTextError: see `Chat.start` and `Chat.answer`.
        """
        checked = check_messages(messages)
        if isinstance(tools, str | Mapping) or not isinstance(tools, Sequence):
            raise UnknownToolError(f"tools is a list of schemas, and not {tools!r:.80}")
        offered = [Declared(tool) for tool in tools]
        if not checked or checked[-1]["role"] not in ("user", "tool"):
            raise MessageError("what is replied to ends with a user's message, or with the results of calls")
        own = [at + 1 for at, message in enumerate(checked) if message["role"] == "assistant"]
        turn = own[-1] if own else 0  # what stands behind the model's last turn is new
        by_tools = all(message["role"] == "tool" for message in checked[turn:])
        known = checked[: turn if by_tools else -1]
        results = _in_order(checked[turn - 1], checked[turn:]) if by_tools else []
        with self._replying:
            chat = self._chat(known, offered, temperature, None if seed is None else f"{seed}/{len(checked)}")
            is_new = chat.session is None
            if by_tools:
                reply = chat.answer(results, max_new_tokens=max_new_tokens, sampler=sampler)
            else:
                reply = chat.send(checked[-1]["content"], max_new_tokens=max_new_tokens, sampler=sampler)
            if reply.finished:
                key = _key(chat.messages, offered, temperature)
                self._kept[key] = chat.clone()  # without what a roll back would go to
                self._kept.move_to_end(key)
            while len(self._kept) > self._keep:
                self._kept.popitem(last=False)
        if reply.error is not None:
            raise MessageError(f"the model could not go on: {reply.error}")
        assert chat.session is not None
        row = cast(ChatRow, chat.session.rows[0])
        written = len(row.answer) + 1 if reply.finished else len(row.turn)
        fed = row.length if is_new else reply.tokens
        return Turn(_message(reply), reply.finished, row.length - fed, fed - written, written)

    def _chat(
        self, messages: list[dict[str, Any]], tools: Sequence[Declared], temperature: float, seed: str | None
    ) -> Chat:
        """A chat in which these messages were said."""
        key = _key(messages, tools, temperature)
        if key in self._kept:
            self._kept.move_to_end(key)
            chat = self._kept[key].fork()
            if seed is not None and chat.session is not None:
                chat.session.randoms = [random.Random(f"{seed}/0")]  # as a session of this seed begins
            return chat
        self._started += 1
        return Chat.start(
            self._model,
            self._tokenizer,
            tools=tools,
            messages=messages,
            temperature=temperature,
            seed=f"conversation {self._started}" if seed is None else seed,
            leaves_calls=True,
            **self._options,
        )


def _in_order(message: Mapping[str, Any], results: Sequence[Mapping[str, Any]]) -> list[str]:
    """The results of a message's calls, in the order of the calls.

    Raises:
        MessageError: they are not those of its calls.
    """
    calls = message.get("tool_calls", ())
    ids = [call.get("id") for call in calls]
    if None not in ids and all("tool_call_id" in result for result in results):
        by_id = {result["tool_call_id"]: result for result in results}
        if by_id.keys() != {*ids} or not len(by_id) == len(results) == len(ids):
            raise MessageError(f"the results are of the calls {', '.join(by_id)}, and the calls are {', '.join(ids)}")
        results = [by_id[each] for each in ids]
    for call, result in zip(calls, results):
        name = call["function"]["name"]
        if result.get("name", name) != name:
            raise MessageError(f"a result is of {result['name']}, and stands where that of {name} is waited for")
    return [result["content"] for result in results]


def _message(reply: Reply) -> dict[str, Any]:
    """What the model said last."""
    if reply.finished:
        return reply.messages[-1]
    thought = {"reasoning_content": reply.reasoning_content} if reply.reasoning_content else {}
    return {"role": "assistant", "content": reply.content, **thought}


def _key(messages: Sequence[Mapping[str, Any]], tools: Sequence[Declared], temperature: float) -> str:
    """What tells conversations apart: what was said, called and thought, without the ids of calls."""
    said = [
        (
            message["role"],
            message["content"],
            message.get("reasoning_content"),
            [call["function"] for call in message.get("tool_calls", ())],
        )
        for message in messages
    ]
    return json.dumps([temperature, [tool.schemas for tool in tools], said], default=dict)
