"""Keys and values in a file of SQLite: what was put is on the disk before that is said, whatever ends the process.

Nothing in the file is ever changed. Every put is a row of its own, numbered through, on a branch:

| | the main branch, 0 | any other |
|---|---|---|
| whose | of all that begin with the file, in any process: they see each other's puts | of one session |
| a copy of a session | sees what there was, and writes on a new branch that goes out from there | the same |
| a session that is restored | goes on if nothing is newer than it, else as a copy | the same |

So a fork costs nothing until it writes, and a rollback is exact. SQLite lets one process write at a time; another
waits for `PATIENCE`, and so does a reader never.
"""

import os
import sqlite3
import threading
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from heapq import merge
from itertools import groupby, islice, takewhile
from typing import Any

from hf_toolssm.errors import StoreError
from hf_toolssm.tools.words import TOKENIZER

PATIENCE = 20.0
"""Seconds for which a put waits while others write; less than a call of the tool may take."""

MAIN = 0
"""The branch of all that begin with the file."""

_IDENTITY = 0x48465456  # in the file's head, by which it is told from other databases
_SCHEMA = f"""
BEGIN IMMEDIATE;
CREATE TABLE store (id TEXT NOT NULL);
INSERT INTO store VALUES (lower(hex(randomblob(16))));
CREATE TABLE branches (branch INTEGER PRIMARY KEY, parent INTEGER, number INTEGER NOT NULL);
CREATE TABLE pairs (number INTEGER PRIMARY KEY, branch INTEGER NOT NULL, key TEXT NOT NULL, value TEXT);
CREATE INDEX by_key ON pairs (branch, key);
CREATE INDEX by_branch ON pairs (branch);
CREATE VIRTUAL TABLE words USING fts5 (
    key, value, content = 'pairs', content_rowid = 'number', tokenize = '{TOKENIZER}'
);
PRAGMA application_id = {_IDENTITY};
COMMIT;
"""

_NEWEST = "SELECT number, value FROM pairs WHERE branch = ? AND key = ? AND number <= ? ORDER BY number DESC LIMIT 1"
_LARGEST = 2**63 - 1


class StoreFile:
    """A file with a connection to it, which threads take turns with.

    Args:
        path: of the file, which is made where there is none.

    Raises:
        StoreError: it cannot be opened, or is no store.
    """

    def __init__(self, path: str | os.PathLike[str]) -> None:
        self._path, self._lock = os.path.abspath(path), threading.Lock()
        with self._named("opened"):
            self._database = sqlite3.connect(
                self._path, timeout=PATIENCE, isolation_level=None, check_same_thread=False
            )
            self._database.execute("PRAGMA synchronous = FULL")
            if not self._one("PRAGMA application_id")[0]:
                self._make()
            if self._one("PRAGMA application_id")[0] != _IDENTITY:
                raise StoreError(f"{self._path} is a database, but no store: name another file")
            self.id = self._one("SELECT id FROM store")[0]
            self._inode = os.stat(self._path).st_ino

    def _make(self) -> None:
        """Makes the tables, if no other process has meanwhile."""
        if self._one("SELECT count(*) FROM sqlite_schema")[0]:
            return
        self._one("PRAGMA journal_mode = WAL")
        try:
            self._database.executescript(_SCHEMA)
        except sqlite3.OperationalError as error:
            if "already exists" not in str(error):
                raise
        finally:
            self._leave()

    def pairs(self, fresh: bool) -> "FilePairs":
        """Those of the main branch, or none, on a new one."""
        return FilePairs(self, None, 0) if fresh else FilePairs(self, MAIN, None)

    def restored(self, state: Mapping[str, Any]) -> "FilePairs":
        """Those that had that state.

        Raises:
            StoreError: they were of another file, or in memory.
        """
        if state.get("store") != self.id:
            raise StoreError(f"the saved store is not of {self._path}: give the tool the file that it was of")
        with self.reading() as database:
            goes_on = state["is_main"] and state["number"] == newest_of(database, MAIN)
        return FilePairs(self, state["branch"], None if goes_on else state["number"])

    @contextmanager
    def reading(self) -> Iterator[sqlite3.Connection]:
        """The connection, on one state of the file."""
        with self._lock, self._named("read"):
            self._database.execute("BEGIN")
            try:
                yield self._database
            finally:
                self._leave()

    @contextmanager
    def writing(self) -> Iterator[sqlite3.Connection]:
        """The connection, in a transaction that is on the disk at the end, or has never been."""
        with self._lock, self._named("written"):
            if os.stat(self._path).st_ino != self._inode:
                raise StoreError(
                    f"{self._path} is another file than it was, so nothing was stored: make the tool anew"
                )
            self._database.execute("BEGIN IMMEDIATE")
            try:
                yield self._database
                self._database.execute("COMMIT")
            finally:
                self._leave()

    def _leave(self) -> None:
        """Ends a transaction that is not committed, and that an error has not ended already."""
        if self._database.in_transaction:
            self._database.execute("ROLLBACK")

    def _one(self, query: str) -> Any:
        return self._database.execute(query).fetchone()

    @contextmanager
    def _named(self, done: str) -> Iterator[None]:
        try:
            yield
        except (sqlite3.Error, OSError) as error:
            raise StoreError(
                f"{self._path} cannot be {done}: {error}" + ("; nothing was stored" if done == "written" else "")
            ) from error


def newest_of(database: sqlite3.Connection, branch: int) -> int:
    """The number of a branch's newest put, 0 where it has none."""
    return database.execute("SELECT max(number) FROM pairs WHERE branch = ?", (branch,)).fetchone()[0] or 0


class FilePairs:
    """Keys and values; see `Pairs`.

    Args:
        branch: where they are written; None is a new one.
        number: the last of that branch that they have; None is whatever the main branch has.
    """

    def __init__(self, file: StoreFile, branch: int | None, number: int | None) -> None:
        self._file, self._branch, self._number = file, branch, number

    def get(self, key: str) -> str | None:
        with self._file.reading() as database:
            return self._newest(database, key)[1]

    def put(self, key: str, value: str | None) -> bool:
        with self._file.writing() as database:
            had = self._newest(database, key)[1] is not None
            if value is None and not had:
                return False
            branch = self._own_branch(database)
            written = (branch, key, value)
            number = database.execute("INSERT INTO pairs (branch, key, value) VALUES (?, ?, ?)", written).lastrowid
            if value is not None:
                database.execute("INSERT INTO words (rowid, key, value) VALUES (?, ?, ?)", (number, key, value))
        self._branch, self._number = branch, None if self._number is None else number
        return had

    def keys(self, prefix: str, after: str, most: int) -> list[str]:
        query = "SELECT DISTINCT key FROM pairs WHERE branch = ? AND key >= ? AND number <= ? ORDER BY key"
        with self._file.reading() as database:
            begin = max(prefix, after)
            parts = [database.execute(query, (branch, begin, last)) for branch, last in self._views(database)]
            sorted_keys = (key for key, _ in groupby(key for (key,) in merge(*parts)))
            wanted = (key for key in takewhile(lambda key: key.startswith(prefix), sorted_keys) if key > after)
            return list(islice((key for key in wanted if self._newest(database, key)[1] is not None), most))

    def search(self, phrases: list[tuple[str, ...]], most: int) -> list[tuple[str, str]]:
        query = """
            SELECT number, branch, pairs.key, pairs.value FROM words JOIN pairs ON number = words.rowid
            WHERE words MATCH ? ORDER BY words.rowid
        """
        quoted = " ".join(f'"{" ".join(phrase)}"' for phrase in phrases)
        with self._file.reading() as database:
            views = dict(self._views(database))
            found = (
                (key, value)
                for number, branch, key, value in database.execute(query, (quoted,))
                if number <= views.get(branch, -1) and self._newest(database, key)[0] == number
            )
            return list(islice(found, most))

    def clone(self) -> "FilePairs":
        with self._file.reading() as database:
            return FilePairs(self._file, self._branch, self._last(database))

    def state(self) -> Mapping[str, Any]:
        with self._file.reading() as database:
            last = self._last(database)
        return {"store": self._file.id, "branch": self._branch, "number": last, "is_main": self._number is None}

    def _last(self, database: sqlite3.Connection) -> int:
        return newest_of(database, MAIN) if self._number is None else self._number

    def _newest(self, database: sqlite3.Connection, key: str) -> tuple[int, str | None]:
        """The number and the value of what was put last under a key; the value is None where there is none."""
        for branch, last in self._views(database):
            row = database.execute(_NEWEST, (branch, key, last)).fetchone()
            if row is not None:
                return row
        return 0, None

    def _views(self, database: sqlite3.Connection) -> list[tuple[int, int]]:
        """The branch and those that it goes out from, the newest first, each with its last number that counts."""
        views, branch, last = [], self._branch, _LARGEST if self._number is None else self._number
        while branch is not None:
            views.append((branch, last))
            found = database.execute("SELECT parent, number FROM branches WHERE branch = ?", (branch,)).fetchone()
            branch, last = found or (None, 0)
        return views

    def _own_branch(self, database: sqlite3.Connection) -> int:
        """The branch to write on: this one, unless others have or will; else a new one that goes out from here."""
        if self._number is None:
            return MAIN
        if self._branch and newest_of(database, self._branch) <= self._number:
            return self._branch
        made = "INSERT INTO branches (parent, number) VALUES (?, ?)"
        return database.execute(made, (self._branch, self._number)).lastrowid or 0
