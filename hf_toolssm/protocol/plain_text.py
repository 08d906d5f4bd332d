"""Text that a user or a tool wrote, as tokens: nothing in it is a token that was added to the tokenizer.

What was added has a meaning beside its text, as a call, a turn or an end has. `split_special_tokens=True` of
transformers is not enough: it leaves those added with `special=False` live, and a vocabulary may hold their texts as
pieces of its own.
"""

import copy
import json
import re
from collections.abc import Collection, Sequence
from typing import Any
from weakref import WeakKeyDictionary

from transformers import PreTrainedTokenizerBase

from hf_toolssm.errors import UnspellableTextError

_SURROGATE = re.compile("[\ud800-\udfff]")

_NOTHING = "\U0010ffff"
"""A text that no vocabulary has: a noncharacter of Unicode."""

_models: WeakKeyDictionary[PreTrainedTokenizerBase, tuple[dict[int, str], Any, int]] = WeakKeyDictionary()
"""Of every tokenizer its added tokens, its model without them, and the id that this gives to what it cannot write."""


def encode_plain(tokenizer: PreTrainedTokenizerBase, text: str, goes_on: bool = False) -> list[int]:
    """The tokens of a text, none of them added; they decode to the text as ordinary ones do.

    Args:
        tokenizer: any. Its normalizer and pre-tokenizer act as always.
        text: whatever someone wrote.
        goes_on: whether it stands behind other text, where some tokenizers put no space before it.

    Raises:
        UnspellableTextError: a part of the text has no tokens but an added one, the unknown token included.
    """
    if not text.isascii() and (lone := _SURROGATE.search(text)):
        raise UnspellableTextError(
            f"a text holds {lone[0]!r}, half of a character, which no tokenizer writes: leave it out"
        )
    added = {token: found.content for token, found in tokenizer.added_tokens_decoder.items()}
    if not tokenizer.is_fast:
        # Not `convert_tokens_to_ids`, which looks among the added tokens first.
        pieces = tokenizer.tokenize(text, split_special_tokens=True)
        return [_allowed(tokenizer._convert_token_to_id(piece), piece, added) for piece in pieces]
    model, nothing = _model_without(tokenizer, added)
    backend = tokenizer.backend_tokenizer
    text = text if backend.normalizer is None else backend.normalizer.normalize_str(text)
    splitter = _going_on(backend.pre_tokenizer) if goes_on else backend.pre_tokenizer
    parts = [text] if splitter is None else [part for part, _ in splitter.pre_tokenize_str(text)]
    forbidden = {*added, nothing}
    return [_allowed(token.id, part, forbidden) for part in parts for token in model.tokenize(part)]


def check_spells(tokenizer: PreTrainedTokenizerBase) -> None:
    """Finds out, before any work, whether a tokenizer writes whatever a user or a tool may say.

    Raises:
        UnspellableTextError: it has no tokens for some character, and no bytes to write it with.
    """
    encode_plain(tokenizer, "".join(map(chr, range(256))) + "\u4f60\U0001f642\u0301")


def pattern_of(added: Sequence[Any]) -> re.Pattern[str]:
    """Finds added tokens, the longest first; some take the blanks beside them along."""
    parts = []
    for token in sorted(added, key=lambda each: -len(each.content)):
        part = re.escape(token.content.strip())
        part = rf"(?<!\w){part}(?!\w)" if token.single_word else part
        parts.append((r"\s*" if token.lstrip else "") + part + (r"\s*" if token.rstrip else ""))
    return re.compile("|".join(parts) or "(?!)")


def _going_on(splitter: Any) -> Any:
    """The pre-tokenizer for text that is not the first."""
    state = b"" if splitter is None else splitter.__getstate__()
    if b'"prepend_scheme":"first"' not in state:
        return splitter
    splitter = copy.deepcopy(splitter)
    splitter.__setstate__(state.replace(b'"prepend_scheme":"first"', b'"prepend_scheme":"never"'))
    return splitter


def _allowed(token: int | None, part: str, forbidden: Collection[int]) -> int:
    if token is None or token in forbidden:
        raise UnspellableTextError(
            f"the tokenizer can write {part[:60]!r} only with a token that was added to it or stands for anything "
            "unknown, and text never becomes one of those: write it otherwise, or take a tokenizer with pieces for it"
        )
    return token


def _model_without(tokenizer: PreTrainedTokenizerBase, added: dict[int, str]) -> tuple[Any, int]:
    """The tokenizer's model without the added tokens, made once as long as they stay the same."""
    known = _models.get(tokenizer)
    if known is None or known[0] != added:
        model = tokenizer.backend_tokenizer.model
        state = json.loads(model.__getstate__())
        nothing = (_forget_pieces if state["type"] == "Unigram" else _forget_words)(state, added)
        without = type(model)()
        without.__setstate__(json.dumps(state).encode())
        known = _models[tokenizer] = (added, without, nothing)
    return known[1:]


def _forget_pieces(state: dict[str, Any], added: Collection[int]) -> int:
    """Takes the added tokens out of a Unigram's state, where an id is a place; returns the id of the unknown."""
    vocabulary = state["vocab"]
    for token in added:
        if token < len(vocabulary):
            vocabulary[token][0] = f"{_NOTHING}{token}"
    if state["unk_id"] is None or state["unk_id"] in added:
        state["unk_id"] = len(vocabulary)
        vocabulary.append([_NOTHING, 0.0])
    return state["unk_id"]


def _forget_words(state: dict[str, Any], added: Collection[int]) -> int:
    """The same of a state whose vocabulary says every id: WordLevel, WordPiece, BPE."""
    vocabulary = state["vocab"]
    # A symbol that longer words of a BPE are merged from stays, unless bytes can stand for it.
    stays = 1 if state["type"] == "BPE" and not state["byte_fallback"] else 0
    gone = {word for word, token in vocabulary.items() if token in added and len(word) > stays}
    if state.get("unk_token") in {None, *gone} or state["unk_token"] not in vocabulary:
        state["unk_token"] = _NOTHING
        vocabulary[_NOTHING] = max([*vocabulary.values(), *added], default=0) + 1
    for word in gone:
        del vocabulary[word]
    if "merges" in state:
        prefix = state["continuing_subword_prefix"] or ""
        state["merges"] = [
            [left, right]
            for left, right in state["merges"]
            if not gone & {left, right, left + right.removeprefix(prefix)}
        ]
    return vocabulary[state["unk_token"]]
