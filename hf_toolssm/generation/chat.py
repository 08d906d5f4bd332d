"""A conversation as a value: a user's messages, the model's, and the tools that it calls meanwhile.

    chat = Chat.start(model, tokenizer, tools=[get_weather])
    reply = chat.send("What is the weather in Paris?")
    what_if = chat.fork()

Every token is fed once. What the model sampled stays as it is, and only what is said next is rendered and fed.
"""

import random
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, cast

from transformers import PreTrainedTokenizerBase

from hf_toolssm.cache.model_state import ModelState
from hf_toolssm.errors import (
    HistoryRewrittenError,
    MessageError,
    SnapshotError,
    UnforkableToolError,
    UnsupportedGenerationError,
)
from hf_toolssm.generation.chat_reply import Before, Reply, reply_of
from hf_toolssm.generation.chat_row import ChatProtocol, ChatRow, result_messages
from hf_toolssm.generation.chat_stream import Heard, Piece, Speech
from hf_toolssm.generation.events import EventSink
from hf_toolssm.generation.protocols import make_chat_protocol
from hf_toolssm.generation.recording import RecordingFile
from hf_toolssm.generation.sampler import Sampler
from hf_toolssm.generation.session import Session, limit_of
from hf_toolssm.generation.snapshot import Value, state_from_tensors
from hf_toolssm.protocol.chat_messages import check_messages
from hf_toolssm.protocol.given_tools import GivenTool

MAX_NEW_TOKENS = 16_384
"""Of a reply, where neither the caller nor the model's `generation_config` says another number."""

SLICE = 8
"""Tokens that the model writes between two looks of a stream."""


class Chat(Value):
    """One conversation. Use `Chat.start`.

    Memory grows with what is said, as text; of the tokens only the model's state is kept.

    Attributes:
        messages: all that was said, in the form of `protocol.chat_messages`.
        session: its one row; None before the first message.
        template: how messages are written and read.
    """

    def __init__(
        self,
        model: Any,
        tokenizer: PreTrainedTokenizerBase,
        protocol: ChatProtocol,
        started: Mapping[str, Any],
        messages: Sequence[Mapping[str, Any]],
        leaves_calls: bool,
    ) -> None:
        self.model = model
        self.tokenizer = tokenizer
        self.messages = check_messages(messages)
        self.session: Session | None = None
        self.template = protocol.template
        self._leaves_calls = protocol.leaves_calls or leaves_calls
        self._started = started  # what a session is started with
        self._user = 0  # behind the last user's message
        self._state: ModelState | None = None  # where that message ends; only where the template rewrites
        self._before: Before | UnforkableToolError | None = None
        self._forks = 0  # that were made of this one

    @classmethod
    def start(
        cls,
        model: Any,
        tokenizer: PreTrainedTokenizerBase,
        *,
        tools: Sequence[GivenTool] = (),
        messages: Sequence[Mapping[str, Any]] = (),
        temperature: float = 0.0,
        seed: int | str = 0,
        record: bool | str | Path = False,
        leaves_calls: bool = False,
        **chat_template_kwargs: Any,
    ) -> "Chat":
        """A conversation in which nothing was said by the user yet.

        Args:
            model: any causal language model with a cache.
            tokenizer: with a chat template; `hf_toolssm.add_chat_tokens` gives ours to one that has none.
            tools: Python functions, `Function`, `Mcp`, tools; none runs that is not given here. Or all `Declared`: a
                reply then ends at the model's calls, and `answer` goes on.
            messages: what stands before, such as `{"role": "system", "content": "..."}`, or an earlier conversation.
            temperature: 0 is greedy.
            seed: of the sampling.
            record: see `Session.start`.
            leaves_calls: a reply ends at the model's calls also where no tools are offered.
            chat_template_kwargs: for the template, for example `enable_thinking=False`.

        Raises:
            ChatTemplateError: the template cannot say what has to be said, or the model's calls have tokens of their
                own.
            MessageError: `messages` are none.
            UndescribedToolError, InvalidSchemaError, UnknownToolError: a tool is none, or says too little of itself.
            UnspellableTextError: the tokenizer does not write whatever a user may say.
        """
        settings: dict[str, Any] = {"temperature": temperature, "seed": seed, "record": record}
        settings |= {"tools": tools, "tokenizer": tokenizer, "chat_template_kwargs": chat_template_kwargs}
        protocol = make_chat_protocol(model, tokenizer, tools, chat_template_kwargs)
        return cls(model, tokenizer, protocol, settings, messages, leaves_calls)

    def send(
        self,
        content: str,
        *,
        max_new_tokens: int | None = None,
        sampler: Sampler | None = None,
        sink: EventSink | None = None,
    ) -> Reply:
        """Says something and lets the model reply, its calls carried out meanwhile.

        Args:
            content: the user's message.
            max_new_tokens: of the reply, results of calls included.
            sampler: chooses tokens in place of the temperature.
            sink: hears of every token of the reply.

        Raises:
            MessageError: the content is no text, or calls wait for their results.
            UnspellableTextError: it holds what the tokenizer cannot write. Nothing is changed then.
            UnsupportedGenerationError: `max_new_tokens` is no whole number.
        """
        tokens, limit = self._tokens, self._limit(max_new_tokens)
        self._say(content)
        return self._run(limit, tokens, sampler, sink)

    def answer(
        self,
        results: Sequence[str],
        *,
        max_new_tokens: int | None = None,
        sampler: Sampler | None = None,
        sink: EventSink | None = None,
    ) -> Reply:
        """Gives the model the results of the calls that its last turn ended with, and lets it go on.

        Args:
            results: of every call, in order; of one that failed a text that says so.
            max_new_tokens, sampler, sink: see `send`.

        Raises:
            MessageError: no calls wait, or there are more or fewer than results, or one is no text.
            UnspellableTextError: a result has no tokens. Nothing is changed then.
        """
        said = result_messages(self._waiting(), results, self.tokenizer)
        tokens, limit = self._tokens, self._limit(max_new_tokens)
        if self.session is None:
            self._user = max((at for at, m in enumerate(self.messages, 1) if m["role"] == "user"), default=0)
            self.session, begun = self._begun([*self.messages, *said])
            self.session.append([begun])
            self.messages += said
        else:
            self.session.append([[]])  # refuses where it could not go on
            self._row.go_on(self.messages[-1], said)
            self._take()
        return self._run(limit, tokens, sampler, sink)

    def resume(
        self, *, max_new_tokens: int | None = None, sampler: Sampler | None = None, sink: EventSink | None = None
    ) -> Reply:
        """Goes on with a reply that was cut off, for as many more tokens; see `send`."""
        if self.session is None:
            raise UnsupportedGenerationError("nothing was said that could be gone on with: use send")
        return self._run(self._limit(max_new_tokens), self._tokens, sampler, sink)

    def stream(
        self, content: str, *, max_new_tokens: int | None = None, sampler: Sampler | None = None
    ) -> Iterator[Piece]:
        """`send` in pieces, as they come; nothing is said before the first is asked for.

        A loop that is left early leaves a reply that was cut off.

        Yields:
            Text of the model's, its calls, and their results.
        """
        limit = self._limit(max_new_tokens)
        self._say(content)
        assert self.session is not None
        left, told = limit + len(self._row.pending), len(self.messages)
        heard, speech = Heard(), Speech(self.template, self._row.protocol.ends)
        while left > 0 and not self._row.finished:
            size = min(SLICE + len(self._row.pending), left)  # what is to be read is read at once
            left -= self.session.run(size, sampler=sampler, sink=heard)
            self._take()
            waiting = self.messages[told:]
            yield from speech.pieces(heard.tokens(), waiting)
            told = len(self.messages) - len(waiting)

    def clone(self) -> "Chat":
        """The same conversation, independent of this one; both go on alike.

        Raises:
            UnforkableToolError: a tool says that it is not to be copied.
        """
        other = object.__new__(Chat)
        vars(other).update(vars(self))
        other.session = None if self.session is None else self.session.clone()
        other.messages = list(self.messages)
        other._before = None  # whose session is this one's
        return other

    def fork(self) -> "Chat":
        """A clone that samples by randomness of its own."""
        fork = self.clone()
        self._forks += 1
        if fork.session is None:
            fork._started = {**self._started, "seed": f"{self._started['seed']}/{self._forks}"}
        else:
            fork.session.randoms = [random.Random(f"{each.random()}/{self._forks}") for each in fork.session.randoms]
        return fork

    def rollback(self) -> None:
        """Takes the last message and all that was said to it back, the tools' doings included.

        Raises:
            UnforkableToolError: a tool says that it is not to be copied.
            SnapshotError: there is nothing to go back to: one message is remembered, and none over a file.
        """
        if isinstance(self._before, UnforkableToolError):
            raise UnforkableToolError(f"nothing can be taken back: {self._before}") from self._before
        if self._before is None:
            raise SnapshotError(
                "only the last message can be taken back, once, and none where a file records: keep a fork() for more"
            )
        if self._before.session is None and self.session is not None:
            self._row.clone()  # says by name which tool's doings cannot be taken back
        self.session, said, self._user, self._state = self._before
        del self.messages[said:]
        self._before = None

    def save(self, path: str | Path) -> None:
        """Writes the conversation into one file, whole or not at all.

        Raises:
            SnapshotError: nothing was said yet, or the file cannot be written.
            UnforkableToolError: a tool says that it is not to be saved.
        """
        if self.session is None:
            raise SnapshotError("nothing was said yet that could be saved")
        facts = {"messages": self.messages, "user": self._user, "leaves_calls": self._leaves_calls}
        tensors = {} if self._state is None else self._state.to_tensors()
        self.session.save(path, {"chat": facts, **{f"state.{name}": tensor for name, tensor in tensors.items()}})

    @classmethod
    def load(
        cls,
        path: str | Path,
        model: Any,
        tokenizer: PreTrainedTokenizerBase,
        *,
        tools: Sequence[GivenTool] = (),
        record: str | Path | None = None,
        **chat_template_kwargs: Any,
    ) -> "Chat":
        """The conversation that `save` wrote.

        Args:
            path: of the file.
            model, tokenizer, tools, chat_template_kwargs: those that it was started with.
            record: see `Session.load`.

        Raises:
            SnapshotError, StateMismatchError, RecordingError: see `Session.load`; or the file holds no chat.
        """
        settings: dict[str, Any] = {"tools": tools, "tokenizer": tokenizer}
        settings["chat_template_kwargs"] = chat_template_kwargs
        protocol = make_chat_protocol(model, tokenizer, tools, chat_template_kwargs)
        session = Session.load(path, model, record=record, **settings)
        facts = session.beside.get("chat")
        if facts is None:
            raise SnapshotError(f"{path} holds a session and no chat: use Session.load")
        settings |= {"temperature": session.temperature}
        leaves_calls = facts["leaves_calls"]
        if protocol.tools and protocol.leaves_calls != leaves_calls:
            raise SnapshotError(
                f"{path} holds a chat of tools that are all `Declared`, or that are not: give the same"
            )
        chat = cls(model, tokenizer, protocol, settings, facts["messages"], leaves_calls)
        cast(ChatProtocol, session.protocol).leaves_calls = leaves_calls
        chat.session, chat._user = session, facts["user"]
        state = {n.removeprefix("state."): t for n, t in session.beside.items() if n.startswith("state.")}
        chat._state = state_from_tensors(session.runner, state) if state else None
        session.beside = {}
        return chat

    @property
    def _row(self) -> ChatRow:
        return cast(ChatRow, cast(Session, self.session).rows[0])

    def _waiting(self) -> list[dict[str, Any]]:
        """The calls whose results the caller owes.

        Raises:
            MessageError: there are none.
        """
        calls = self.messages[-1].get("tool_calls", []) if self.messages and self._leaves_calls else []
        if not calls:
            raise MessageError("no calls wait for results: they do where a reply of declared tools ends with some")
        return calls

    def _begun(self, messages: list[dict[str, Any]]) -> tuple[Session, list[int]]:
        """A session that has read messages, and what begins the model's turn."""
        said, begun = self.template.prompt(messages)
        session = Session.start(self.model, [said], **self._started)
        cast(ChatProtocol, session.protocol).leaves_calls = self._leaves_calls
        return session, begun

    def _say(self, content: str) -> None:
        """Feeds what a user says."""
        (message,) = check_messages([{"role": "user", "content": content}])
        if self._leaves_calls and self.messages and "tool_calls" in self.messages[-1]:
            raise MessageError("the model's calls wait for their results: give them by answer()")
        if self.session is None:
            before: Any = Before(None, len(self.messages), 0, None)
            self.session, begun = self._begun([*self.messages, message])
            self._state = self.session.state if self.template.rewrites else None
        else:
            try:
                clone = self.session.clone()
                before = Before(clone, len(self.messages), self._user, self._state)
            except UnforkableToolError as error:
                before = error
            begun = self._follow(message)
        self.session.append([begun])
        self.messages.append(message)
        self._user = len(self.messages)
        self._before = None if isinstance(self.session.recording, RecordingFile) else before

    def _follow(self, message: dict[str, Any]) -> list[int]:
        """Feeds what a user says behind a reply, and returns what begins the model's turn."""
        assert self.session is not None
        self.session.wait()
        self._take()
        template, row = self.template, self._row
        is_cut = not row.finished
        cut = [row.protocol.read_turn(row.turn, row.begun)[0]] if is_cut else []
        turns = self.messages[self._user :] + cut
        try:
            said, begun = template.follow_up(turns[-1], [message], turns[:-1])
        except HistoryRewrittenError:
            said, begun, state = self._rewritten([*self.messages, *cut], message)
            self.session.rewind(state, [said])
        else:
            self.session.append([[*([template.end] if is_cut else []), *said]])
        if is_cut:
            self.messages += cut
            row.messages.clear()
        if template.rewrites:
            self.session.run(len(row.pending))
            self._state = self.session.state
        return begun

    def _rewritten(
        self, messages: list[dict[str, Any]], message: dict[str, Any]
    ) -> tuple[Any, Any, ModelState | None]:
        """What is to be fed in place of what the model remembers, and what it remembers before."""
        if self._state is not None:
            try:
                return *self.template.rewritten(messages[self._user :], message), self._state
            except HistoryRewrittenError:
                pass
        return *self.template.prompt([*messages, message]), None

    def _limit(self, max_new_tokens: int | None) -> int:
        if max_new_tokens is None:
            max_new_tokens = self.model.generation_config.max_new_tokens or MAX_NEW_TOKENS
        return limit_of(max_new_tokens)

    @property
    def _tokens(self) -> int:  # fed so far, but for the first prompt
        return 0 if self.session is None else self.session.tokens

    def _run(self, limit: int, tokens: int, sampler: Sampler | None, sink: EventSink | None) -> Reply:
        """Lets the model reply; `tokens` were fed before."""
        assert self.session is not None
        start = len(self.messages)
        try:
            self.session.run(limit + len(self._row.pending), sampler=sampler, sink=sink)  # which the user has said
        finally:
            self._take()
        return reply_of(self._row, self.messages[start:], self.session.tokens - tokens)

    def _take(self) -> None:
        """Takes the messages of the row."""
        self.messages += self._row.messages
        self._row.messages = []
