"""The call format of a checkpoint's own chat template: messages as tokens, and the model's turns back as messages.

    <|im_start|>user ... <|im_end|> <|im_start|>assistant ... <tool_call>{"name": ...}</tool_call> <|im_end|> ...

What the template writes itself may be live tokens. Nothing that a user, a tool, an argument or a description says ever
is: the template sees all of it as shadows (`protocol.shadow_text`), and it is encoded without any added token.
"""

from collections.abc import Mapping, Sequence
from os.path import commonprefix
from typing import Any

from jinja2 import TemplateError
from transformers import PreTrainedTokenizerBase

from hf_toolssm.errors import ChatTemplateError, HistoryRewrittenError, MalformedCallError, MessageError
from hf_toolssm.protocol.chat_messages import check_messages
from hf_toolssm.protocol.markers import Markers
from hf_toolssm.protocol.python_calls import read_python_calls
from hf_toolssm.protocol.response_templates import response_template_for, with_python_calls_as_text
from hf_toolssm.protocol.shadow_text import (
    map_strings,
    shadow,
    shadow_message,
    shadow_schema,
    strings_of,
    unshadow,
    unshadow_whole,
)
from hf_toolssm.protocol.trajectory import Writer
from hf_toolssm.tools.tool import ToolFacts

Message = Mapping[str, Any]

_USER = {"role": "user", "content": "Hello"}
"""In place of all that was said before, where only what follows is looked at: no template reads that far back."""


class ChatTemplate:
    """Renders messages by a tokenizer's chat template, and reads the model's turns.

    Args:
        tokenizer: has a chat template; its `response_template` says how the model's turns are read or, where it has
            none, that of the family whose markers the template writes (see `protocol.response_templates`).
        tools: whose calls are offered.
        options: for the template, for example `enable_thinking=False`.

    Attributes:
        markers: the tokens that the template may write.
        end: the token that ends a turn of the model.
        ends: all that do; one that calls may end otherwise.
        schemas: what the template is given as `tools`.
        beginning: what begins a turn of the model.
        rewrites: whether a turn is written otherwise once a user's message follows, as without its thoughts.

    Raises:
        ChatTemplateError: there is no template, it cannot say what has to be said (calls of tools, the end of a turn),
            or what it writes is not read back.
        UnspellableTextError: the tokenizer does not write it.
    """

    def __init__(self, tokenizer: PreTrainedTokenizerBase, tools: Sequence[ToolFacts] = (), **options: Any) -> None:
        if not tokenizer.chat_template:
            raise ChatTemplateError(
                "the tokenizer has no chat template: take the checkpoint's own tokenizer, or give this one ours, by "
                "hf_toolssm.add_chat_tokens(tokenizer)"
            )
        self.tokenizer = tokenizer
        self.schemas: list[dict[str, Any]] = [
            {"type": "function", "function": dict(s)} for each in tools for s in each.schemas.values()
        ]
        self._options = options
        self._shadowed = [shadow_schema(each) for each in self.schemas] or None
        self.markers = Markers(tokenizer)
        for name, option in options.items():
            if self.markers.find("\n".join(strings_of(option))):
                raise ChatTemplateError(f"the option {name}={option!r} holds a token of the tokenizer's: leave it out")
        source = tokenizer.get_chat_template(tools=self.schemas or None)
        self.response_template = tokenizer.response_template or response_template_for(source)
        self._asks = self._probed([_USER], prompting=True)
        said = shadow(_USER["content"])
        begun = max(self._shared(self._probed([_USER]), self._asks), self._asks.rindex(said) + len(said))
        self.beginning = unshadow(self._asks[begun:])
        answer = {"role": "assistant", "content": "It is."}
        self.end = self._end_of(answer)
        calling = [self._check_calls()] if self.schemas else []
        self.ends = frozenset([self.end, *map(self._end_of, calling)])
        for message in (answer, *calling):
            self._check_read(message)
        self.rewrites = any(map(self._is_rewritten, ({}, {"reasoning_content": "I think."})))

    # What is said, as tokens.

    def render(self, messages: Sequence[Message], add_generation_prompt: bool = False) -> list[int]:
        """The whole rendering, of which only the template's own markers are live.

        Args:
            messages: see `check_messages`.
            add_generation_prompt: whether what begins the model's next turn stands behind it.

        Raises:
            MessageError: they are no messages, or the template refuses them.
            UnspellableTextError: the tokenizer has no tokens for a part of a text.
        """
        return self.markers.encode(self._text(check_messages(messages), add_generation_prompt), is_first=True)

    def prompt(self, messages: Sequence[Message]) -> tuple[list[int], list[int]]:
        """The rendering of all that is said before the model's turn, in two parts: up to its last marker, and what
        begins the turn. Where a template takes thoughts away that are past, a session goes back to the place between
        them (see `rewritten`)."""
        return self._in_two(check_messages(messages))

    def follow_up(
        self, message: Message, following: Sequence[Message], turns: Sequence[Message] = ()
    ) -> tuple[list[int], list[int]]:
        """What is fed behind the end of the model's turn, in two parts: what others say, and what begins its next.

        Args:
            message: the model's.
            following: results of its calls, or a user's message.
            turns: what the model and the tools said before it since the user's last message.

        Raises:
            HistoryRewrittenError: with what follows, the template writes one of these otherwise.
            MessageError, UnspellableTextError: see `render`.
        """
        said = [_USER, *turns, message]
        return self._in_two([*said, *check_messages(following, message)], self._known(said))

    def rewritten(self, turns: Sequence[Message], message: Message) -> tuple[list[int], list[int]]:
        """All behind the last marker of the user's message before, as the template writes it now, in two parts.

        Args:
            turns: the model's and the tools' messages since the user's last.
            message: the user's new one.

        Raises:
            HistoryRewrittenError: the template writes even what stands before them otherwise.
        """
        return self._in_two([_USER, *check_messages([*turns, message])], self._known([_USER]))

    def turn(self, message: Message) -> list[int]:
        """What the model writes of a message of its own, the token that ends it included."""
        return self.markers.encode(self._turn_text(*check_messages([message]))[1])

    def written(self, messages: Sequence[Message], begin: int = 0) -> tuple[list[int], bytearray]:
        """The rendering as generation feeds it, and the `Writer` of every token.

        The tokens are those of `render`, but that none reaches over the beginning of a model's turn; what the template
        writes behind the last turn's end is left out.

        Args:
            messages: a conversation.
            begin: the message that generation begins with. Those before it are history, which the template writes as
                it does now, and none of it is the model's.

        Raises:
            HistoryRewrittenError: the template writes a turn otherwise once a user's message follows: ask for each
                user's turn with what stands before it as history.
            MessageError, UnspellableTextError: see `render`.
        """
        ids: list[int] = []
        writers = bytearray()
        checked = check_messages(messages)
        model, others = None, checked[:begin]
        for message in [*checked[begin:], None]:
            if message is not None and message["role"] != "assistant":
                others.append(message)
                continue
            prompting = message is not None
            if others or prompting:
                text = self._behind(model, others, prompting) if model else self._text(others, prompting)
                begun, turn = self._turn_text(message) if message is not None else (0, "")
                by_tool = bool(others) and all(other["role"] == "tool" for other in others)
                said = self.markers.encode(text[: len(text) - begun], is_first=model is None)
                written = self.markers.encode(turn)
                ids += said + written
                writers += bytes([Writer.TOOL if by_tool else Writer.USER]) * len(said)
                writers += bytes([Writer.MODEL]) * len(written)
            model, others = message, []
        return ids, writers

    # The model's turns, as messages.

    def parse(self, turn: Sequence[int], begun: Sequence[int] = ()) -> dict[str, Any]:
        """The message that a turn of the model is.

        Args:
            turn: the tokens that the model wrote, with or without the one that ends it.
            begun: those before them that begin the turn, back to the end of the turn before; more does no harm.

        Raises:
            MalformedCallError: a call in it cannot be read.
        """
        if self.response_template is None:
            return {"role": "assistant", "content": self.text(turn)}
        ended = turn if turn and turn[-1] in self.ends else [*turn, self.end]
        text, before = self.markers.spell(ended), self.markers.spell(begun)
        template, types = self._reading()
        try:
            read = self.tokenizer.parse_response(text, template, prefix=before, tools=types)
            if isinstance(read.get("tool_calls"), str):
                read["tool_calls"] = read_python_calls(read["tool_calls"])
            message = {"content": ""} | {name: value for name, value in read.items() if value} | {"role": "assistant"}
            end = self.markers.names[ended[-1]]  # which thoughts that nothing closes run on to
            return check_messages([map_strings(message, lambda said: unshadow_whole(said.removesuffix(end)))])[0]
        except (ValueError, TypeError, KeyError, RecursionError) as error:  # of a call, whatever a parser says of it
            raise MalformedCallError(f"the turn cannot be read: {unshadow(str(error))}") from error

    def reader(self, begun: Sequence[int]) -> Any:
        """transformers' parser of a turn that is being written, in pieces; see `parse`."""
        template, types = self._reading()
        return self.tokenizer.get_response_parser(template, prefix=self.markers.spell(begun), tools=types)

    def text(self, turn: Sequence[int]) -> str:
        """A turn as it stands, markers included but for the one that ends it."""
        return unshadow(self.markers.spell(turn[:-1] if turn and turn[-1] in self.ends else turn))

    def _reading(self) -> tuple[dict[str, Any], list[dict[str, Any]] | None]:
        """The response template that turns are read by and, where calls do not say it, the types of their arguments.

        Where calls are JSON they do; transformers would read other types into their texts.
        """
        assert self.response_template is not None
        template = with_python_calls_as_text(self.response_template)
        if template["fields"].get("tool_calls", {}).get("content") != "xml-inline":
            return template, None
        return template, [
            {
                "name": self.markers.unmistakable(each["function"]["name"]),
                "parameters": {
                    "properties": {
                        self.markers.unmistakable(name): schema
                        for name, schema in each["function"]["parameters"].get("properties", {}).items()
                    }
                },
            }
            for each in self.schemas
        ]

    # The template.

    def _text(self, messages: Sequence[Message], prompting: bool = False) -> str:
        """What the template writes of checked messages, in which whatever somebody said is shadows."""
        try:
            return self.tokenizer.apply_chat_template(
                [shadow_message(message) for message in messages],
                tools=self._shadowed,
                add_generation_prompt=prompting,
                tokenize=False,
                **self._options,
            )
        except (TemplateError, TypeError, ValueError, RecursionError) as error:
            raise MessageError(f"the chat template refuses the messages: {error}") from error

    def _in_two(self, messages: Sequence[Message], before: str = "") -> tuple[list[int], list[int]]:
        """What the template writes behind what was written before: up to the last marker, and to the model's turn."""
        said, asked = (_rest(self._text(messages, prompting), before) for prompting in (False, True))
        at = self._shared(said, asked)
        encode = self.markers.encode
        return encode(said[:at], is_first=not before), encode(asked[at:], is_first=not before and at == 0)

    def _behind(self, message: Message, following: Sequence[Message], prompting: bool) -> str:
        """What stands behind the end of the model's turn."""
        said = [_USER, message]
        return _rest(self._text([*said, *following], prompting), self._known(said))

    def _known(self, messages: Sequence[Message]) -> str:
        """What the template writes of messages up to its last marker."""
        text = self._text(messages)
        return text[: self.markers.last(text)]

    def _turn_text(self, message: Message) -> tuple[int, str]:
        """A turn of the model, and how much of what begins one by the template it takes the place of.

        That is nothing, unless the template begins a turn (by `<think>`) in a way in which it never writes this one.
        """
        whole = self._text([_USER, message])
        end = self.markers.last(whole)
        if whole.startswith(self._asks):
            return 0, whole[len(self._asks) : end]
        both = commonprefix([whole, self._asks])
        # A line's end is a place too, because the tokenizer may spell `<think>` in pieces.
        same = max(both.rfind("\n") + 1, self.markers.last(both))
        return len(self._asks) - same, whole[same:end]

    def _probed(self, messages: Sequence[Message], prompting: bool = False) -> str:
        """The same as `_text` for messages that every template has to write, as they are."""
        try:
            text = self._text(messages, prompting)
        except MessageError as error:
            raise ChatTemplateError(f"{error}; a chat begins with a user and an assistant") from error
        plain = self.tokenizer.apply_chat_template(
            [*messages], tools=self.schemas or None, add_generation_prompt=prompting, tokenize=False, **self._options
        )
        if not all(shadow(message["content"]) in text for message in messages):
            raise ChatTemplateError("the chat template leaves out contents that are texts: take one that writes them")
        if unshadow(text) != plain:
            raise ChatTemplateError("the chat template changes the letters of what is said, so no marker is certain")
        return text

    def _end_of(self, message: Message) -> int:
        text = self._probed([_USER, message])
        said = shadow(message["content"])
        behind = [token for token, start, _ in self.markers.find(text) if start >= text.rindex(said) + len(said)]
        if not behind:
            raise ChatTemplateError(
                "the chat template ends the assistant's turn by no token of its own, so nothing says when the turn is "
                "over: take one that writes an end token behind it"
            )
        return behind[-1]

    def _check_calls(self) -> Message:
        """A message that calls, which the template can write.

        Raises:
            ChatTemplateError: it cannot, or nothing says how it is read.
        """
        call = {"type": "function", "function": {"name": "look_up", "arguments": {"subject": "rivers"}}}
        message = {"role": "assistant", "content": "I see.", "tool_calls": [call]}
        result = {"role": "tool", "name": "look_up", "content": "the longest"}
        try:
            text = self._text([_USER, message, result])
            is_said = all(shadow(said) in text for said in ("look_up", "subject", "rivers", "the longest"))
        except MessageError:
            is_said = False
        if not is_said:
            raise ChatTemplateError(
                "the chat template does not write the calls of tools or their results: leave the tools out, or take a "
                "tokenizer whose template does, such as ours (hf_toolssm.add_chat_tokens)"
            )
        if self.response_template is None:
            raise ChatTemplateError(
                "nothing says how the calls of this chat template are read: set tokenizer.response_template"
            )
        try:
            self.follow_up(message, [result])
        except HistoryRewrittenError as error:
            raise ChatTemplateError(
                "the chat template writes a turn that calls otherwise once results follow, so it cannot stay as the "
                "model wrote it: take a template that does not, such as the variant for training that trl has of it"
            ) from error
        return message

    def _check_read(self, message: Message) -> None:
        """Finds out whether what the template writes of a turn is read back.

        Raises:
            ChatTemplateError: it is not.
        """
        less, turn = self._turn_text(message)
        begun = self.beginning[: max(0, len(self.beginning) - less)]
        try:
            read = self.parse(self.markers.encode(turn), self.markers.encode(begun))
        except MalformedCallError as error:
            read = {"error": str(error)}
        if read != message:
            wrong = f"the model's turn {unshadow(turn)!r} would be read as {read}"
            raise ChatTemplateError(f"{wrong}: set the tokenizer.response_template that belongs to its template")

    def _is_rewritten(self, more: Message) -> bool:
        try:
            self._behind({"role": "assistant", "content": "It is.", **more}, [_USER], prompting=True)
        except HistoryRewrittenError:
            return True
        return False

    def _shared(self, said: str, asked: str) -> int:
        """How much two texts begin with alike, up to the last marker."""
        at = self.markers.last(said)
        return at if asked.startswith(said[:at]) else self.markers.last(commonprefix([said, asked]))


def _rest(text: str, before: str) -> str:
    """What a template writes behind what it wrote before."""
    if not text.startswith(before):
        raise HistoryRewrittenError("the template writes what was said before in another way once more is said")
    return text[len(before) :]
