"""The words of a text as SQLite's tokenizer unicode61 has them, by SQLite itself."""

import sqlite3
import threading
from collections.abc import Sequence
from functools import cache

from hf_toolssm.errors import StoreError

TOKENIZER = "unicode61 remove_diacritics 2"

_LOCK = threading.Lock()


def words_of(texts: Sequence[str]) -> list[tuple[str, ...]]:
    """Of every text its words, in order.

    Raises:
        StoreError: this Python's SQLite has no full-text search.
    """
    found: list[list[str]] = [[] for _ in texts]
    with _LOCK:
        database = _tokenizing()
        try:
            database.executemany("INSERT INTO texts (rowid, text) VALUES (?, ?)", enumerate(texts, start=1))
            for at, word in database.execute("SELECT doc, term FROM words ORDER BY doc, offset"):
                found[at - 1].append(word)
        finally:
            database.rollback()
    return [tuple(words) for words in found]


@cache
def _tokenizing() -> sqlite3.Connection:
    database = sqlite3.connect(":memory:", check_same_thread=False)
    try:
        database.execute(f"CREATE VIRTUAL TABLE texts USING fts5 (text, tokenize = '{TOKENIZER}')")
        database.execute("CREATE VIRTUAL TABLE words USING fts5vocab (texts, instance)")
    except sqlite3.OperationalError as error:
        raise StoreError(f"this Python's SQLite has no full-text search ({error}): take one that has FTS5") from error
    return database
