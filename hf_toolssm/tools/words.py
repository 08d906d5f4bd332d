"""The words of a text as SQLite's tokenizer unicode61 has them.

That tokenizer goes character by character, and what it makes of each SQLite is asked once.
"""

import sqlite3
from functools import lru_cache

from hf_toolssm.errors import StoreError

TOKENIZER = "unicode61 remove_diacritics 2"

LONGEST_WORD = 32_768
"""Bytes, behind which a word is cut."""


def words_of(text: str) -> tuple[str, ...]:
    """The words of a text, in order.

    Raises:
        StoreError: this Python's SQLite has no full-text search.
    """
    found = "".join(map(_folded, text)).split(" ")
    words = (word.replace(_MARK, "") for word in found)
    return tuple(word.encode()[:LONGEST_WORD].decode("utf-8", "ignore") for word in words if word)


_MARK = "\0"
"""In the place of a mark, such as an accent, which is a part of the word before it and of no other."""


@lru_cache(maxsize=100_000)
def _folded(character: str) -> str:
    """What stands for a character in a word; a space where it is in none."""
    with sqlite3.connect(":memory:") as database:
        try:
            database.execute(f"CREATE VIRTUAL TABLE texts USING fts5 (text, tokenize = '{TOKENIZER}')")
            database.execute("CREATE VIRTUAL TABLE words USING fts5vocab (texts, instance)")
        except sqlite3.OperationalError as error:
            raise StoreError(f"this Python's SQLite has no full-text search ({error}): take one that has") from error
        database.execute("INSERT INTO texts VALUES (?)", (f"x{character}x",))
        words = [word for (word,) in database.execute("SELECT term FROM words ORDER BY offset")]
    database.close()
    return " " if len(words) != 1 else words[0][1:-1] or _MARK
