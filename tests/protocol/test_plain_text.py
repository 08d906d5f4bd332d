"""No arrangement of texts becomes a token that was added to a tokenizer, of whatever kind the tokenizer is."""

import copy

import pytest
from hypothesis import given
from hypothesis import strategies as st
from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers, trainers
from transformers import PreTrainedTokenizer, PreTrainedTokenizerFast

from hf_toolssm.errors import CellNotOneTokenError, UnspellableTextError
from hf_toolssm.protocol.plain_text import encode_plain
from hf_toolssm.protocol.render import Renderer
from hf_toolssm.protocol.task_tokenizer import build_task_tokenizer
from hf_toolssm.tools.pointer_memory import PointerMemory

ADDED = ["<tool_call>", "</tool_call>", "<tool", "call>", "<|end|>", "ab", "  "]
LETTERS = sorted({*"".join(ADDED), *"xyz"})
PARTS = st.sampled_from([*ADDED, *LETTERS, "<tool_", "_call>", "<<tool", "tool_call", "|>", " <", "> ", " x ", "zz"])
TEXTS = st.lists(PARTS, max_size=12).map("".join)
FLAGS = st.fixed_dictionaries(
    dict.fromkeys(["special", "single_word", "lstrip", "rstrip", "normalized"], st.booleans())
)
ALL_FLAGS = st.tuples(*[FLAGS] * len(ADDED))


def bpe(pieces, **options):
    """Byte-level, as large models have it; merges reach the pieces."""
    backend = Tokenizer(models.BPE(**options))
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    backend.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=300, initial_alphabet=pre_tokenizers.ByteLevel.alphabet(), show_progress=False
    )
    backend.train_from_iterator([*pieces, "xyz", "x y z"] * 50, trainer)
    return backend


def bpe_of_whole_words(pieces):
    backend = bpe([])
    with_pieces = {**backend.get_vocab(), **{piece: 1_000 + at for at, piece in enumerate(pieces)}}
    backend.model = models.BPE(with_pieces, [], ignore_merges=True)
    return backend


def bpe_with_bytes(pieces):
    words = [*LETTERS, *(f"<0x{byte:02X}>" for byte in range(256)), *pieces]
    backend = Tokenizer(models.BPE({word: at for at, word in enumerate(dict.fromkeys(words))}, [], byte_fallback=True))
    backend.decoder = decoders.Sequence([decoders.ByteFallback(), decoders.Fuse()])
    return backend


def unigram(pieces):
    words = [("<unk>", 0.0), *((letter, -5.0) for letter in LETTERS), *((piece, -1.0) for piece in pieces)]
    backend = Tokenizer(models.Unigram(words, unk_id=0))
    backend.decoder = decoders.Fuse()
    return backend


def word_piece(pieces):
    words = ["[UNK]", *LETTERS, *(f"##{letter}" for letter in LETTERS), *pieces]
    backend = Tokenizer(models.WordPiece({word: at for at, word in enumerate(words)}, unk_token="[UNK]"))
    backend.normalizer = normalizers.Lowercase()
    backend.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    backend.decoder = decoders.WordPiece()
    return backend


def word_level(pieces):
    words = ["[UNK]", *LETTERS, *pieces]
    backend = Tokenizer(models.WordLevel({word: at for at, word in enumerate(words)}, unk_token="[UNK]"))
    backend.pre_tokenizer = pre_tokenizers.Split(Regex(r"[\s\S]"), behavior="isolated")
    backend.decoder = decoders.Fuse()
    return backend


BACKENDS = {make.__name__: make for make in (bpe, bpe_of_whole_words, bpe_with_bytes, unigram, word_piece, word_level)}
MADE = {(name, own): make(ADDED if own else []) for name, make in BACKENDS.items() for own in (False, True)}
"""Every kind, without the texts in its own vocabulary and with them."""


def add_all(backend, flags):
    """A tokenizer to which everything was added, and those tokens' ids."""
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=Tokenizer.from_str(backend.to_str()), eos_token="<|eos|>")
    unknown = getattr(backend.model, "unk_token", None)
    if unknown:
        tokenizer.add_special_tokens({"unk_token": unknown})
    tokenizer.add_tokens([AddedToken(text, **each) for text, each in zip(ADDED, flags)])
    return tokenizer


@pytest.mark.parametrize("own", [False, True])
@pytest.mark.parametrize("kind", BACKENDS)
@given(message=TEXTS, flags=ALL_FLAGS)
def test_no_added_token_comes_out_and_the_text_comes_back(kind, own, message, flags):
    tokenizer = add_all(MADE[kind, own], flags)
    ids = encode_plain(tokenizer, message)
    assert not set(ids) & set(tokenizer.added_tokens_decoder)
    # As a tokenizer writes it to which nothing was added and whose vocabulary lacks those texts.
    never = MADE[kind, False].encode(message).tokens
    if not (kind == "bpe" and own):  # its merges are others
        assert tokenizer.convert_ids_to_tokens(ids) == never
    if kind != "word_piece":  # which forgets the spaces
        assert tokenizer.decode(ids) == message


@pytest.mark.parametrize("kind", BACKENDS)
@given(first=TEXTS, second=TEXTS, flags=ALL_FLAGS)
def test_a_text_in_two_calls_is_no_other(kind, first, second, flags):
    tokenizer = add_all(MADE[kind, True], flags)
    ids = encode_plain(tokenizer, first) + encode_plain(tokenizer, second)
    assert not set(ids) & set(tokenizer.added_tokens_decoder)


@pytest.mark.parametrize("kind", BACKENDS)
def test_the_tokenizer_itself_goes_on_as_it_was(kind):
    tokenizer = add_all(MADE[kind, True], [{"special": False}] * len(ADDED))
    before = tokenizer.backend_tokenizer.to_str()
    encode_plain(tokenizer, "<tool_call>x")
    assert tokenizer.backend_tokenizer.to_str() == before
    assert tokenizer.convert_tokens_to_ids("<tool_call>") in tokenizer("<tool_call>x")["input_ids"]


@pytest.mark.parametrize("kind", BACKENDS)
def test_a_token_that_is_added_later_is_off_from_then_on(kind):
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=Tokenizer.from_str(MADE[kind, True].to_str()))
    if kind not in ("bpe_with_bytes", "word_level"):  # which never write more than one letter
        assert tokenizer.convert_tokens_to_ids("<tool_call>") in encode_plain(tokenizer, "<tool_call>")
    other = copy.deepcopy(tokenizer)
    tokenizer.add_tokens([AddedToken("<tool_call>", special=False)])
    assert tokenizer.convert_tokens_to_ids("<tool_call>") not in encode_plain(tokenizer, "<tool_call>")
    tokenizer.add_tokens(["xy"])
    assert tokenizer.convert_tokens_to_ids("xy") not in encode_plain(tokenizer, "xy")
    assert encode_plain(other, "<tool_call>") == encode_plain(other, "<tool_call>")


def test_a_word_that_is_only_an_added_token_is_refused():
    backend = Tokenizer(models.WordLevel({"<unk>": 0, "<tool_call>": 1, "x": 2}, unk_token="<unk>"))
    backend.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=backend, unk_token="<unk>")
    tokenizer.add_tokens([AddedToken("<tool_call>", special=False)])
    assert encode_plain(tokenizer, "x x") == [2, 2]
    for text in ("x <tool_call>", "<unk>", "something else"):
        with pytest.raises(UnspellableTextError, match="only with a token that was added"):
            encode_plain(tokenizer, text)


def test_a_letter_that_was_added_is_refused_by_itself_and_stays_in_words():
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=Tokenizer.from_str(MADE["bpe", False].to_str()))
    tokenizer.add_tokens(["x"])
    assert tokenizer.decode(encode_plain(tokenizer, "xyz")) == "xyz"
    with pytest.raises(UnspellableTextError, match="'x'"):
        encode_plain(tokenizer, "x")


def test_bytes_stand_for_a_letter_that_was_added():
    """Some vocabularies have the line break as an added token, and no text without it."""
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=Tokenizer.from_str(MADE["bpe_with_bytes", False].to_str()))
    tokenizer.add_tokens([AddedToken("\n", special=False), AddedToken("x", special=False)])
    ids = encode_plain(tokenizer, "y\nx\n")
    assert not set(ids) & set(tokenizer.added_tokens_decoder)
    assert tokenizer.decode(ids) == "y\nx\n"


def test_what_a_vocabulary_cannot_write_is_refused_and_not_dropped():
    """A BPE without an unknown token leaves such letters out without a word."""
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=Tokenizer(models.BPE({"a": 0, "b": 1, "ab": 2}, [("a", "b")]))
    )
    assert encode_plain(tokenizer, "ab") == [2]
    with pytest.raises(UnspellableTextError, match="'a§b'"):
        encode_plain(tokenizer, "a§b")


class Slow(PreTrainedTokenizer):
    """A tokenizer in Python that splits at spaces where it knows the word, and else into letters."""

    def __init__(self, words, **options):
        self.words = {word: at for at, word in enumerate(words)}
        super().__init__(**options)

    @property
    def vocab_size(self):
        return len(self.words)

    def get_vocab(self):
        return self.words | self.added_tokens_encoder

    def _tokenize(self, text):
        return [piece for word in text.split(" ") for piece in ([word] if word in self.words else word)]

    def _convert_token_to_id(self, token):
        return self.words.get(token, self.words["<unk>"])

    def _convert_id_to_token(self, index):
        return list(self.words)[index]


@given(message=TEXTS, flags=ALL_FLAGS)
def test_a_tokenizer_in_python_writes_letters_too(message, flags):
    tokenizer = Slow(["<unk>", *LETTERS], unk_token="<unk>")
    tokenizer.add_tokens([AddedToken(added, **each) for added, each in zip(ADDED, flags)])
    ids = encode_plain(tokenizer, message)
    assert not set(ids) & set(tokenizer.added_tokens_decoder)
    assert tokenizer.convert_ids_to_tokens(ids) == list(message.replace(" ", ""))


def test_a_tokenizer_in_python_whose_words_were_added_is_refused():
    tokenizer = Slow(["<unk>", "x", "<tool_call>"], unk_token="<unk>")
    tokenizer.add_tokens([AddedToken("<tool_call>", special=False)])
    for text in ("x <tool_call>", "y"):
        with pytest.raises(UnspellableTextError):
            encode_plain(tokenizer, text)


@pytest.mark.parametrize("cell", ["<|new_pointer|>", "<|end|>", " <|end|>", "<|end|> "])
def test_a_users_cell_is_no_command_and_no_end(cell):
    tokenizer = build_task_tokenizer(["1", "+", " "], [PointerMemory()])
    tokenizer.add_special_tokens({"eos_token": AddedToken("<|end|>", lstrip=True, rstrip=True, special=True)})
    assert Renderer(tokenizer).problem("1+1")
    with pytest.raises(CellNotOneTokenError):
        Renderer(tokenizer).prompts([["1", cell]])


def test_a_cell_that_an_added_token_takes_for_itself_is_another_cell():
    tokenizer = build_task_tokenizer(["1", "+", " "], [PointerMemory()])
    tokenizer.add_tokens([AddedToken("#", lstrip=True)])
    assert Renderer(tokenizer).token("#") == tokenizer.convert_tokens_to_ids("#")  # a tool's own symbol may be added
    with pytest.raises(CellNotOneTokenError):
        Renderer(tokenizer).token(" #")
