"""Keys and values in a file of SQLite: what was put is on the disk before that is said, whatever ends the process.

Nothing in the file is ever changed. Every put is a row of its own, numbered through, on a branch:

| | the main branch, 0 | any other |
|---|---|---|
| whose | of all that begin with the file, in any process: they see each other's puts | of one session |
| a copy of a session | sees what there was, and puts on a new branch that goes out from there | the first goes on |
| a restored session | sees what there was; if that is still all at its first put, it goes on | the same |

So a fork costs nothing until it puts, and a rollback is exact: a session that is restored after others, or it itself,
have put on the main branch works on a branch of its own from then on, which those that begin anew do not see.

A put waits for those of other sessions and processes; nothing waits longer than `PATIENCE`, and no reader for a put.
"""

import os
import secrets
import sqlite3
import threading
import time
from collections.abc import Callable, Generator, Iterator, Mapping
from contextlib import closing, contextmanager
from functools import partial
from heapq import merge
from itertools import groupby, islice, takewhile
from typing import Any

from hf_toolssm.errors import StoreError
from hf_toolssm.tools.words import TOKENIZER

PATIENCE = 10.0
"""Seconds, for which other sessions and other processes are waited for, each; together less than a call may take."""

MAIN = 0
"""The branch of all that begin with the file."""

_IDENTITY = 0x48465456  # in the file's head, by which it is told from other databases
_TABLES = (
    "CREATE TABLE store (id TEXT NOT NULL)",
    "CREATE TABLE branches (branch INTEGER PRIMARY KEY, parent INTEGER, number INTEGER NOT NULL)",
    "CREATE TABLE pairs ("
    "number INTEGER PRIMARY KEY, branch INTEGER NOT NULL, key TEXT NOT NULL, value TEXT, mark INTEGER NOT NULL)",
    "CREATE INDEX by_key ON pairs (branch, key)",
    "CREATE INDEX by_branch ON pairs (branch)",
    "CREATE VIRTUAL TABLE words USING fts5 ("
    f"branch, key, value, content = 'pairs', content_rowid = 'number', tokenize = '{TOKENIZER}')",
    f"PRAGMA application_id = {_IDENTITY}",
)

_NEWEST = "SELECT number, value FROM pairs WHERE branch = ? AND key = ? AND number <= ? ORDER BY number DESC LIMIT 1"
_LARGEST = 2**63 - 1


class StoreFile:
    """A file with two connections to it, one for reading and one for writing, which threads take turns with.

    Args:
        path: of the file, which is made where there is none.

    Raises:
        StoreError: it cannot be opened, or is no store.
    """

    def __init__(self, path: str | os.PathLike[str]) -> None:
        self.path, self._process = os.path.realpath(path), os.getpid()
        self._reading, self._writing = threading.Lock(), threading.Lock()
        self.parents: dict[int, tuple[int | None, int]] = {}
        self._connections: list[sqlite3.Connection] = []
        try:
            with self._named("opened"):
                self._check_remains()
                self._writer = self._connected()
                self._check_identity(self._writer)
                self._reader = self._connected()
                self._place = self._where()
                found = self._reader.execute("SELECT id FROM store").fetchone()
            if found is None:
                raise StoreError(f"{self.path} cannot be opened: it has lost its id")
        except StoreError:
            self.close()
            raise
        self.id = found[0]

    def close(self) -> None:
        """Ends the connections; no session can read or put any more."""
        for connection in self._connections:
            connection.close()

    def pairs(self, fresh: bool) -> "FilePairs":
        """Those of the main branch, or none, on a new one."""
        return FilePairs(self, None, 0, False) if fresh else FilePairs(self, MAIN, None, False)

    def restored(self, state: Mapping[str, Any]) -> "FilePairs":
        """Those that had that state.

        Raises:
            StoreError: they were of another file, or of an older copy of this one, or in memory.
        """
        branch, number = state.get("branch"), state.get("number", 0)
        with self.reading() as database:
            mark = _mark_of(database, branch, number)
        if state.get("store") != self.id or mark is None or mark != state.get("mark"):
            raise StoreError(f"the saved store is not of {self.path}: give the tool the file that it was of")
        return FilePairs(self, branch, number, state.get("goes_on") is True)

    @contextmanager
    def reading(self) -> Iterator[sqlite3.Connection]:
        """A connection, on one state of the file. Whoever opens a cursor that is not read to its end closes it."""
        with self._turn(self._reading), self._named("read"):
            try:
                self._reader.execute("BEGIN")
                yield self._reader
            finally:
                _leave(self._reader)

    @contextmanager
    def turn(self) -> Iterator[None]:
        """Lets nobody else of this process put."""
        with self._turn(self._writing):
            yield

    @contextmanager
    def writing(self) -> Iterator[sqlite3.Connection]:
        """A connection in one's turn: at its end everything is on the disk, or nothing ever was."""
        with self._named("written"):
            if self._where() != self._place:
                raise StoreError(f"{self.path} is another file than it was: nothing was stored; make the tool anew")
            try:
                self._writer.execute("BEGIN IMMEDIATE")
                yield self._writer
                self._writer.execute("COMMIT")
            finally:
                _leave(self._writer)

    @contextmanager
    def _turn(self, lock: threading.Lock) -> Iterator[None]:
        if os.getpid() != self._process:
            raise StoreError(f"{self.path} was opened by another process: make the tool in this one")
        if not lock.acquire(timeout=PATIENCE):
            raise StoreError(f"{self.path} is in use by other sessions for {PATIENCE:g} s: nothing was stored")
        try:
            yield
        finally:
            lock.release()

    @contextmanager
    def _named(self, done: str) -> Iterator[None]:
        try:
            yield
        except (sqlite3.Error, OSError) as error:
            nothing = "; nothing was stored" if done == "written" else ""
            raise StoreError(f"{self.path} cannot be {done}: {error}{nothing}") from error

    def _connected(self) -> sqlite3.Connection:
        connection = sqlite3.connect(self.path, timeout=PATIENCE, isolation_level=None, check_same_thread=False)
        self._connections.append(connection)
        connection.execute("PRAGMA synchronous = FULL")
        return connection

    def _check_remains(self) -> None:
        """SQLite would make an empty store where only the log of a lost one is left, and remove that."""
        log = f"{self.path}-wal"
        has_log = os.path.exists(log) and os.path.getsize(log)  # asked first: a file that is being made is never empty
        if has_log and not (os.path.exists(self.path) and os.path.getsize(self.path)):
            raise StoreError(f"{self.path} is gone or empty, and {log} is of it: bring it back, or remove the log")

    def _check_identity(self, database: sqlite3.Connection) -> None:
        """Makes a store of an empty file, if no other process has meanwhile.

        Raises:
            StoreError: it is no store, or SQLite can keep no log beside it.
        """
        one = partial(_one, database)
        if one("SELECT count(*) FROM sqlite_master") and one("PRAGMA application_id") != _IDENTITY:
            raise StoreError(f"{self.path} is a database, but no store: name another file")
        if one("PRAGMA journal_mode") != "wal" and (mode := self._with_log(database)) != "wal":
            raise StoreError(f"{self.path} cannot have a log beside it ({mode}): name a file on a local disk")
        if not one("SELECT count(*) FROM sqlite_master"):
            try:
                database.execute("BEGIN IMMEDIATE")
                if not one("SELECT count(*) FROM sqlite_master"):
                    for table in _TABLES:
                        database.execute(table)
                    database.execute("INSERT INTO store VALUES (?)", (secrets.token_hex(16),))
                    database.execute("COMMIT")
            finally:
                _leave(database)

    def _with_log(self, database: sqlite3.Connection) -> str:
        """Lets puts go to a log, beside which others can read; returns the way that the file has now."""
        until = time.monotonic() + PATIENCE
        while True:
            try:
                return _one(database, "PRAGMA journal_mode = WAL")
            except sqlite3.OperationalError as error:  # it does not wait for others by itself
                if (
                    error.sqlite_errorcode not in (sqlite3.SQLITE_BUSY, sqlite3.SQLITE_LOCKED)
                    or time.monotonic() > until
                ):
                    raise
                time.sleep(0.01)

    def _where(self) -> tuple[int, int]:
        found = os.stat(self.path)
        return found.st_dev, found.st_ino


def _one(database: sqlite3.Connection, query: str) -> Any:
    return database.execute(query).fetchone()[0]


def _leave(database: sqlite3.Connection) -> None:
    """Ends a transaction that is not committed, and that an error has not ended already."""
    if database.in_transaction:
        database.execute("ROLLBACK")


def _mark_of(database: sqlite3.Connection, branch: Any, number: Any) -> int | None:
    """What tells a put from that number's in a copy of the file; 0 for nothing put, None if it is not there."""
    if number == 0 and branch in (None, MAIN):
        return 0
    row = database.execute("SELECT mark FROM pairs WHERE number = ? AND branch = ?", (number, branch)).fetchone()
    return row[0] if row else None


def _newest_of(database: sqlite3.Connection, branch: int) -> int:
    """The number of a branch's newest put, 0 where it has none."""
    return database.execute("SELECT max(number) FROM pairs WHERE branch = ?", (branch,)).fetchone()[0] or 0


class FilePairs:
    """Keys and values; see `Pairs`.

    Args:
        branch: where they are; None is a new one, once something is put.
        number: the last of that branch that they have; None is whatever the main branch has.
        goes_on: whether they go on on the main branch if that has nothing newer at the first put.
    """

    def __init__(self, file: StoreFile, branch: int | None, number: int | None, goes_on: bool) -> None:
        self._file, self._at, self._goes_on = file, (branch, number), goes_on

    def get(self, key: str) -> str | None:
        with self._file.reading() as database:
            return _newest(database, self._views(database), key)[1]

    def change(self, key: str, to: Callable[[str | None], str | None]) -> str | None:
        with self._file.turn():
            with self._file.writing() as database:
                had, at = _newest(database, self._views(database), key)[1], self._at
                value = to(had)
                if had is not None or value is not None:
                    at = self._written(database, key, value)
            self._at = at
        return had

    def keys(self, prefix: str, after: str, most: int) -> list[str]:
        with self._file.reading() as database, closing(database.cursor()) as cursor:
            views, begin = self._views(database), max(prefix, after)
            parts = [_keys_from(database, branch, last, begin) for branch, last in views]
            try:
                found = takewhile(lambda key: key.startswith(prefix), (key for key, _ in groupby(merge(*parts))))
                there = (key for key in found if key > after and _newest(cursor, views, key)[1] is not None)
                return list(islice(there, most))
            finally:
                for part in parts:
                    part.close()

    def search(self, words: list[str], most: int) -> list[tuple[str, str]]:
        query = """
            SELECT number, pairs.key, pairs.value FROM words JOIN pairs ON number = words.rowid
            WHERE words MATCH ? ORDER BY words.rowid
        """
        with self._file.reading() as database, closing(database.cursor()) as cursor:
            views = self._views(database)
            if not views:
                return []
            # A NUL would end the query, and stands between words as a space does.
            quoted = " ".join('"' + word.replace("\0", " ").replace('"', '""') + '"' for word in words)
            branches = " OR ".join(f'"{branch}"' for branch, _ in views)
            with closing(database.execute(query, (f"branch : ({branches}) AND {{key value}} : ({quoted})",))) as rows:
                found = ((key, value) for number, key, value in rows if _newest(cursor, views, key)[0] == number)
                return list(islice(found, most))

    def clone(self) -> "FilePairs":
        branch, number = self._at
        with self._file.reading() as database:
            return FilePairs(self._file, branch, _last_of(database, number), False)

    def state(self) -> Mapping[str, Any]:
        branch, number = self._at
        with self._file.reading() as database:
            last = _last_of(database, number)
            mark = _mark_of(database, branch, last)
        goes_on = self._goes_on or number is None
        return {"store": self._file.id, "branch": branch, "number": last, "mark": mark, "goes_on": goes_on}

    def _views(self, database: sqlite3.Connection) -> list[tuple[int, int]]:
        """The branch and those that it goes out from, the newest first, each with its last number that counts."""
        views, (branch, last) = [], self._at
        last = _LARGEST if last is None else last
        while branch is not None:
            views.append((branch, last))
            if branch != MAIN and branch not in self._file.parents:
                query = "SELECT parent, number FROM branches WHERE branch = ?"
                self._file.parents[branch] = database.execute(query, (branch,)).fetchone()  # it never changes
            branch, last = self._file.parents.get(branch, (None, 0))
        return views

    def _written(self, database: sqlite3.Connection, key: str, value: str | None) -> tuple[int, int | None]:
        """Puts on this branch, unless others have put there or will; else on a new one that goes out from here."""
        branch, number = self._at
        may_follow = branch != MAIN or number is None or self._goes_on
        is_newest = branch is not None and (number is None or _newest_of(database, branch) <= number)
        if branch is None or not (may_follow and is_newest):
            made = "INSERT INTO branches (parent, number) VALUES (?, ?)"
            branch = database.execute(made, (branch, number)).lastrowid or 0
        pair = (branch, key, value)
        made = "INSERT INTO pairs (branch, key, value, mark) VALUES (?, ?, ?, ?)"
        put = database.execute(made, (*pair, secrets.randbits(62))).lastrowid
        if value is not None:
            database.execute("INSERT INTO words (rowid, branch, key, value) VALUES (?, ?, ?, ?)", (put, *pair))
        return branch, None if branch == MAIN else put


def _last_of(database: sqlite3.Connection, number: int | None) -> int:
    return _newest_of(database, MAIN) if number is None else number


def _newest(
    database: sqlite3.Connection | sqlite3.Cursor, views: list[tuple[int, int]], key: str
) -> tuple[int, str | None]:
    """The number and the value of what was put last under a key; the value is None where there is none."""
    for branch, last in views:
        row = database.execute(_NEWEST, (branch, key, last)).fetchone()
        if row is not None:
            return row
    return 0, None


def _keys_from(database: sqlite3.Connection, branch: int, last: int, begin: str) -> Generator[str]:
    """The keys of a branch from one on, sorted; some of them more than once, and some deleted since."""
    query = "SELECT DISTINCT key FROM pairs WHERE branch = ? AND key >= ? AND number <= ? ORDER BY key"
    with closing(database.execute(query, (branch, begin, last))) as rows:
        for (key,) in rows:
            yield key
