"""A reply in pieces, while it is written."""

from collections.abc import Iterator, Sequence
from typing import Any, Literal, NamedTuple

from tokenizers.decoders import DecodeStream

from hf_toolssm.generation.events import Event
from hf_toolssm.protocol.chat_template import ChatTemplate
from hf_toolssm.protocol.shadow_text import unshadow
from hf_toolssm.protocol.trajectory import Writer


class Piece(NamedTuple):
    """A part of a reply.

    Attributes:
        kind: what it is of.
        text: of the model; of a call or a result "".
        message: the call, as in `tool_calls`, or the tool's message; else None.
    """

    kind: Literal["content", "reasoning_content", "tool_call", "tool_result"]
    text: str
    message: dict[str, Any] | None = None


class Heard:
    """A sink that keeps what it hears until it is asked."""

    def __init__(self) -> None:
        self._tokens: list[tuple[int, int]] = []

    def take(self, events: Sequence[Event]) -> None:
        for event in events:
            self._tokens += zip(event.tokens, event.writers)

    def tokens(self) -> list[tuple[int, int]]:
        """What came since the last time: tokens, and the `Writer` of each."""
        heard, self._tokens = self._tokens, []
        return heard


class Speech:
    """Makes pieces of the tokens of a reply, as they come; at the end of a turn the message says what was said.

    Args:
        template: of the chat.
        ends: tokens that end a turn.
    """

    def __init__(self, template: ChatTemplate, ends: frozenset[int]) -> None:
        self._template = template
        self._ends = ends
        self._begin()

    def _begin(self) -> None:
        self._begun: list[int] = []
        self._reader: Any = None
        self._texts = DecodeStream(skip_special_tokens=False)
        self._content = ""

    def pieces(self, heard: Sequence[tuple[int, int]], messages: list[dict[str, Any]]) -> Iterator[Piece]:
        """The pieces of what was heard.

        Args:
            heard: see `Heard.tokens`.
            messages: those that came meanwhile, in order; what is told of them is taken away.
        """
        for token, writer in heard:
            if writer != Writer.MODEL:
                while messages and messages[0]["role"] == "tool":
                    yield Piece("tool_result", "", messages.pop(0))
                if token in self._ends:
                    self._begun.clear()
                else:
                    self._begun.append(token)
            elif token in self._ends:
                message = messages.pop(0)
                told = self._content.lstrip("\n")  # some templates begin it on a line of its own
                content = message["content"].lstrip("\n")
                if content.startswith(told):  # the parser may have taken for a marker what is none
                    yield from _piece("content", content[len(told) :])
                yield from (Piece("tool_call", "", call) for call in message.get("tool_calls", []))
                self._begin()
            else:
                for piece in self._written(token):
                    self._content += piece.text if piece.kind == "content" else ""
                    yield piece

    def _written(self, token: int) -> Iterator[Piece]:
        template = self._template
        text = self._texts.step(template.tokenizer.backend_tokenizer, token) or ""
        if token not in template.markers.names:
            text = template.markers.unmistakable(text)
        if template.response_template is None:
            yield from _piece("content", text)
            return
        if self._reader is None:
            self._reader = template.reader(self._begun)
            yield from _texts(self._reader.initial_events)
        try:
            yield from _texts(self._reader.feed(text))
        except ValueError:  # a call that cannot be read, of which the model is told
            self._reader = template.reader(self._begun)


def _piece(kind: Any, text: str) -> Iterator[Piece]:
    if text:
        yield Piece(kind, unshadow(text))


def _texts(events: Sequence[dict[str, Any]]) -> Iterator[Piece]:
    """Of a parser's events those that a person reads at once; calls are told whole."""
    for event in events:
        if event["type"] == "region_chunk" and event["field"] in ("content", "reasoning_content", "thinking"):
            yield from _piece("content" if event["field"] == "content" else "reasoning_content", event["text"])
