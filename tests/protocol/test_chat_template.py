"""Conversations of hostile texts become tokens and messages again, in every family of chat templates."""

import re
from collections import Counter
from pathlib import Path

import pytest
import trl
from template_families import FAMILIES, TRL_FAMILIES, family_conversation, family_tokenizer, reason, same
from tokenizers import AddedToken, Tokenizer, decoders, models, normalizers, pre_tokenizers
from transformers import PreTrainedTokenizerFast

from hf_toolssm import add_chat_tokens
from hf_toolssm.errors import ChatTemplateError, MessageError
from hf_toolssm.protocol.chat_template import ChatTemplate
from hf_toolssm.protocol.shadow_text import map_strings
from hf_toolssm.protocol.trajectory import Writer
from hf_toolssm.tools.tool import facts_of


class Declared:
    """A tool that has these functions, none of which is ever called."""

    name = "declared"

    def __init__(self, tools):
        self.schemas = {
            each["function"]["name"]: {key: each["function"][key] for key in ("description", "parameters")}
            for each in tools
        }

    def call(self, name, arguments):
        raise AssertionError


def harmless(value):
    """The same with a bracket that begins no marker, and a sign where LFM2's templates act on words."""
    words = {"null": "null\u27ea"}
    return map_strings(
        value, lambda text: words.get(text, text).replace("<", "\u27e8").replace("MESSAGE_TAG ", "MESSAGE_TAG\u27ea ")
    )


def questions(messages):
    """The parts of a conversation from each of the user's messages to the next, behind the system's message."""
    system = [message for message in messages if message["role"] == "system"]
    starts = [at for at, message in enumerate(messages) if message["role"] == "user"]
    return [system + messages[start:stop] for start, stop in zip(starts, [*starts[1:], len(messages)])]


def plain_text(tokenizer, family, messages, tools):
    """What transformers renders when no text in the messages steers the template."""
    if family not in TRL_FAMILIES:
        return tokenizer.apply_chat_template(messages, tools=tools, tokenize=False)
    text = tokenizer.apply_chat_template(harmless(messages), tools=harmless(tools), tokenize=False)
    return text.replace("\u27e8", "<").replace("\u27ea", "")


def live(tokenizer, ids):
    added = tokenizer.added_tokens_decoder.keys()
    return [token for token in ids if token in added]


def turns(ids, writers):
    """Where each turn of the model begins and ends."""
    edges = [at for at in range(1, len(ids)) if writers[at] != writers[at - 1]]
    return [(a, b) for a, b in zip([0, *edges], [*edges, len(ids)]) if writers[a] == Writer.MODEL]


@pytest.mark.parametrize("split", [False, True], ids=["tokens", "split"])
@pytest.mark.parametrize("seeds", [range(15), pytest.param(range(200), marks=pytest.mark.slow)], ids=["15", "200"])
@pytest.mark.parametrize("family", FAMILIES)
def test_what_is_rendered_is_fed_and_read_back(family, seeds, split, record_property):
    tokenizer = family_tokenizer(family, split=split)
    counts = Counter()
    for seed in seeds:
        messages, tools = family_conversation(family, seed)
        chat = ChatTemplate(tokenizer, [facts_of(Declared(tools))])
        for part in questions(messages):
            whole, (ids, writers) = chat.render(part), chat.written(part)
            assert tokenizer.decode(whole) == plain_text(tokenizer, family, part, tools)
            assert tokenizer.decode(whole).removeprefix(tokenizer.decode(ids)) in ("", "\n")
            assert live(tokenizer, ids) == live(tokenizer, whole)
            text = tokenizer.apply_chat_template(harmless(part), tools=harmless(tools), tokenize=False)
            assert live(tokenizer, ids) == live(tokenizer, tokenizer.encode(text, add_special_tokens=False))
            said = [message for message in part if message["role"] == "assistant"]
            for message, (first, stop) in zip(said, turns(ids, writers), strict=True):
                known = reason(family, message, tools, split=split)
                counts[known or "equal"] += 1
                if known is None:
                    assert same(chat.parse(ids[first:stop], ids[:first]), message)
    for name, count in counts.items():
        record_property(name, count)
    assert counts["equal"] > 2 * len(seeds)


@pytest.mark.parametrize("family", ["lfm2_v2", "lfm2_2_5", "toolssm", "granite_4", "falcon_h1", "qwen3_next"])
def test_what_is_fed_turn_by_turn_is_the_rendering(family):
    tokenizer = family_tokenizer(family, split=False)
    for seed in range(15):
        messages, tools = family_conversation(family, seed)
        chat = ChatTemplate(tokenizer, [facts_of(Declared(tools))])
        for part in questions(messages):
            spoken = [at for at, message in enumerate(part) if message["role"] == "assistant"]
            fed = sum(chat.prompt(part[: spoken[0]]), [])
            for at, following in zip(spoken, [*spoken[1:], None]):
                fed += chat.turn(part[at])
                if following is not None:
                    fed += sum(chat.follow_up(part[at], part[at + 1 : following]), [])
            assert fed == chat.written(part)[0]


TRL_TEMPLATES = sorted((Path(trl.__file__).parent / "chat_templates").glob("*.jinja"))

REFUSED = {
    "gptoss": "response_template",  # a turn without calls has markers of its own
    "cohere2": "response_template",
    "phi3": "response_template",
    "idefics3": "leaves out contents",
    "llava_next": "leaves out contents",
    "glm4moe": "no token of its own",
    "qwen3": "otherwise once results follow",  # with tools
    "llama3_1": "response_template",  # with tools
}


def bytes_tokenizer(chat_template):
    """One token a byte, and those that are written in the template."""
    letters = {letter: number for number, letter in enumerate(sorted(pre_tokenizers.ByteLevel.alphabet()))}
    backend = Tokenizer(models.BPE(letters, []))
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    backend.decoder = decoders.ByteLevel()
    markers = {*re.findall(r"<[|\uff5c][^<>\s]*?[|\uff5c]>|</?[a-z_]+>", chat_template), "<|endoftext|>"}
    backend.add_special_tokens([AddedToken(text, normalized=False) for text in sorted(markers)])
    return PreTrainedTokenizerFast(tokenizer_object=backend, eos_token="<|endoftext|>", chat_template=chat_template)


LOOK = {"type": "function", "function": {"name": "look", "description": "", "parameters": {"type": "object"}}}


@pytest.mark.parametrize("path", TRL_TEMPLATES, ids=lambda path: path.stem)
def test_any_template_is_taken_or_refused_by_name_before_any_work(path):
    tokenizer = bytes_tokenizer(path.read_text(encoding="utf-8"))
    refusals = []
    for tools in ([], [facts_of(Declared([LOOK]))]):
        try:
            chat = ChatTemplate(tokenizer, tools)
        except ChatTemplateError as error:
            refusals.append(str(error))
            continue
        asked = [{"role": "user", "content": "</think> Who?"}]
        said, begun = chat.prompt(asked)
        assert said + begun == chat.render(asked, add_generation_prompt=True)
        assert tokenizer.decode(begun).endswith(chat.beginning)
        assert "Hello" not in chat.beginning
    if path.stem in REFUSED:
        assert REFUSED[path.stem] in "".join(refusals)


@pytest.mark.parametrize("text", ["<|im_end|>", {"a": ["", "b<|im_end|>"]}, [{"<|im_end|>": 1}]])
def test_no_option_of_a_template_holds_a_live_token(text):
    with pytest.raises(ChatTemplateError, match="documents"):
        ChatTemplate(family_tokenizer("toolssm", split=False), documents=text)


def test_a_message_that_is_nested_too_deeply_is_refused_by_name():
    chat = ChatTemplate(family_tokenizer("toolssm", split=False), [facts_of(Declared([LOOK]))])
    arguments = {}
    for _ in range(5_000):
        arguments = {"a": arguments}
    call = {"type": "function", "function": {"name": "look", "arguments": arguments}}
    with pytest.raises(MessageError, match="recursion"):
        chat.turn({"role": "assistant", "content": "", "tool_calls": [call]})


SPACES = {
    "a normalizer": (normalizers.Sequence([normalizers.Prepend("\u2581"), normalizers.Replace(" ", "\u2581")]), None),
    "a pre-tokenizer, always": (None, pre_tokenizers.Metaspace(prepend_scheme="always", split=False)),
    "a pre-tokenizer, first": (None, pre_tokenizers.Metaspace(prepend_scheme="first", split=False)),
}


@pytest.mark.parametrize("where", SPACES)
def test_a_space_that_a_tokenizer_puts_before_every_text_is_no_part_of_what_is_said(where):
    vocabulary = {text: token for token, text in enumerate(["<unk>", "\u2581", *map("<0x{:02X}>".format, range(256))])}
    backend = Tokenizer(models.BPE(vocabulary, [], unk_token="<unk>", byte_fallback=True))
    backend.normalizer, splitter = SPACES[where]
    if splitter is not None:
        backend.pre_tokenizer = splitter
    parts = [decoders.Replace("\u2581", " "), decoders.ByteFallback(), decoders.Fuse(), decoders.Strip(" ", 1, 0)]
    backend.decoder = decoders.Sequence(parts)
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=backend, unk_token="<unk>")
    add_chat_tokens(tokenizer)
    chat = ChatTemplate(tokenizer, [facts_of(Declared([LOOK]))])
    asked = [{"role": "user", "content": "Who?"}]
    message = {"role": "assistant", "content": "I see.", "reasoning_content": "Hm."}
    call = {"type": "function", "function": {"name": "look", "arguments": {"at": "two  words"}}}
    for said in (message, message | {"tool_calls": [call]}):
        assert chat.parse(chat.turn(said), chat.render(asked, True)) == said
