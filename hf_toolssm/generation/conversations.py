"""Replies to conversations that come whole every time, as servers and harnesses send them."""

import json
from collections import OrderedDict
from collections.abc import Mapping, Sequence
from threading import Lock
from typing import Any, NamedTuple, cast

from transformers import PreTrainedTokenizerBase

from hf_toolssm.errors import MessageError
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
    conversation, and only what stands behind that reply is fed. A conversation that no kept one begins is read anew;
    replies are the same either way.

    Args:
        model, tokenizer: see `Chat.start`.
        keep: how many conversations are kept, the last that were used.
        chat_template_kwargs: for the template, for example `enable_thinking=False`.
    """

    def __init__(
        self, model: Any, tokenizer: PreTrainedTokenizerBase, *, keep: int = 64, **chat_template_kwargs: Any
    ) -> None:
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
            messages: all of the conversation, which ends with a user's message or the results of the last calls.
            tools: what is offered, as the schemas of `Declared`.
            max_new_tokens: of the turn.
            temperature: 0 is greedy.
            seed: of the sampling of a conversation that is read from its beginning; None is another one each time.
            sampler: chooses tokens in place of the temperature.

        Raises:
            MessageError: these are no such messages.
            InvalidSchemaError, UnknownToolError, UnspellableTextError: see `Chat.start` and `Chat.send`.
        """
        checked = check_messages(messages)
        if not checked or checked[-1]["role"] not in ("user", "tool"):
            raise MessageError("what is replied to ends with a user's message, or with the results of calls")
        own = [at + 1 for at, message in enumerate(checked) if message["role"] == "assistant"]
        turn = own[-1] if own else 0  # what stands behind the model's last turn is new
        by_tools = all(message["role"] == "tool" for message in checked[turn:])
        known = turn if by_tools else len(checked) - 1
        with self._replying:
            chat = self._chat(checked[:known], tools, temperature, seed)
            kept = 0 if chat.session is None else chat.session.rows[0].length
            if by_tools:
                results = [message["content"] for message in checked[turn:]]
                reply = chat.answer(results, max_new_tokens=max_new_tokens, sampler=sampler)
            else:
                reply = chat.send(checked[-1]["content"], max_new_tokens=max_new_tokens, sampler=sampler)
            if reply.finished:
                self._kept[_key(chat.messages, tools, temperature)] = chat
            while len(self._kept) > self._keep:
                self._kept.popitem(last=False)
        assert chat.session is not None
        row = cast(ChatRow, chat.session.rows[0])
        written = len(row.answer) + 1 if reply.finished else len(row.turn)
        return Turn(_message(reply), reply.finished, kept, row.length - kept - written, written)

    def _chat(
        self, messages: list[dict[str, Any]], tools: Sequence[Mapping[str, Any]], temperature: float, seed: int | None
    ) -> Chat:
        """A chat in which these messages were said."""
        key = _key(messages, tools, temperature)
        if key in self._kept:
            self._kept.move_to_end(key)
            return self._kept[key].fork()
        self._started += 1
        return Chat.start(
            self._model,
            self._tokenizer,
            tools=[Declared(tool) for tool in tools],
            messages=messages,
            temperature=temperature,
            seed=self._started if seed is None else seed,
            **self._options,
        )


def _message(reply: Reply) -> dict[str, Any]:
    """What the model said last."""
    if reply.finished:
        return reply.messages[-1]
    thought = {"reasoning_content": reply.reasoning_content} if reply.reasoning_content else {}
    return {"role": "assistant", "content": reply.content, **thought}


def _key(messages: Sequence[Mapping[str, Any]], tools: Sequence[Mapping[str, Any]], temperature: float) -> str:
    """What tells conversations apart: what was said, without the ids and thoughts that few send back as they were."""
    said = [
        (message["role"], message["content"], [call["function"] for call in message.get("tool_calls", ())])
        for message in messages
    ]
    return json.dumps([temperature, [*tools], said], sort_keys=True)
