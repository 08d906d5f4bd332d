"""The words of a text as SQLite's tokenizer unicode61 has them.

That tokenizer goes character by character, and what it makes of each SQLite is asked once.
"""

import sqlite3
from collections.abc import Iterable
from contextlib import closing

from hf_toolssm.errors import StoreError

TOKENIZER = "unicode61 remove_diacritics 2"

LONGEST_WORD = 32_768
"""Bytes, behind which a word is cut, inside of a character if it must be."""

_MARK = "\0"
"""In the place of a mark, such as an accent, which is a part of the word before it and of no other."""

_FOLDED: dict[str, str] = {}
"""What stands for a character in a word; a space where it is in none."""


def words_of(text: str) -> tuple[bytes, ...]:
    """The words of a text, in order, in UTF-8.

    Raises:
        StoreError: this Python's SQLite has no full-text search.
    """
    if unknown := {*text} - _FOLDED.keys():
        _FOLDED.update(_learned(sorted(unknown)))
    found = "".join(map(_FOLDED.__getitem__, text)).replace(_MARK, "").split()
    return tuple(word.encode()[:LONGEST_WORD] for word in found)


def _learned(characters: Iterable[str]) -> dict[str, str]:
    found = {character: list[str]() for character in characters}
    with closing(sqlite3.connect(":memory:")) as database:
        try:
            database.execute(f"CREATE VIRTUAL TABLE texts USING fts5 (text, tokenize = '{TOKENIZER}')")
            database.execute("CREATE VIRTUAL TABLE words USING fts5vocab (texts, instance)")
        except sqlite3.OperationalError as error:
            raise StoreError(f"this Python's SQLite has no full-text search ({error}): take one that has") from error
        asked = ((ord(character) + 1, f"x{character}x") for character in found)
        database.executemany("INSERT INTO texts (rowid, text) VALUES (?, ?)", asked)
        for number, word in database.execute("SELECT doc, term FROM words ORDER BY doc, offset"):
            found[chr(number - 1)].append(word)
    return {c: " " if len(words) != 1 else words[0][1:-1] or _MARK for c, words in found.items()}
