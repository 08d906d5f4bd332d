"""The store: two backends that do what a dict does, exact forks and rollbacks, and files that lose nothing."""

import copy
import json
import multiprocessing
import os
import pickle
import random
import shutil
import sqlite3
import subprocess
import sys
import tempfile
import threading
from contextlib import closing
from pathlib import Path

import numpy as np
import pytest
from conftest import import_recipe, run_script
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from hypothesis.stateful import Bundle, RuleBasedStateMachine, initialize, rule

from hf_toolssm.errors import InvalidArgumentsError, StoreError, UnknownCallError, UnknownToolError, UnsafeToolError
from hf_toolssm.tools import facts_of, make_tool
from hf_toolssm.tools.key_value import KeyValue
from hf_toolssm.tools.tool import argument_of
from hf_toolssm.tools.words import TOKENIZER, words_of

LONG = "a" + "ж" * 20_000
KEYS = [
    "a",
    "ab",
    "abc",
    "b",
    "Ab",
    "a b",
    'a"b',
    "é",
    "e\u0301",
    "a\0b",
    "\U0010ffff",
    "put",
    "{}",
    "-",
    "日本 go",
    "%",
    "_",
]
VALUES = [
    "",
    "1",
    "fox",
    "blue fox",
    "fox blue",
    "Blue-Fox",
    "absent",
    "found: x",
    'x" OR "y',
    "more\nmore",
    "ÉTÉ",
    "ß ss",
    LONG,
    LONG[:-1] + "x",
]
WORDS = [
    "a",
    "b",
    "fox",
    "BLUE",
    "blue fox",
    "fox-blue",
    "blue-fox",
    "ete",
    'x" OR "y',
    "NEAR(",
    "e",
    "ss",
    "日本",
    "a*",
    "key:a",
    LONG,
    LONG[:16_390],
    "a\0b",
]

KEY = st.sampled_from(KEYS[:2]) | st.sampled_from(KEYS)  # some often


def of(store, name, **argument):
    return store.call(name, argument)


class Like:
    """What a store is: a dict, whose order is that of the puts."""

    def __init__(self, pairs):
        self.pairs = pairs

    def put(self, key, value):
        had = self.pairs.pop(key, None) is not None
        self.pairs[key] = value
        return "replaced" if had else "stored"

    def delete(self, key):
        return "absent" if self.pairs.pop(key, None) is None else "deleted"

    def get(self, key):
        return f"found: {self.pairs[key]}" if key in self.pairs else "absent"

    def add(self, key, amount):
        total = str(int(self.pairs.pop(key, "0")) + amount)
        self.pairs[key] = total
        return f"found: {total}"

    def list(self, prefix, after=""):
        keys = sorted(key for key in self.pairs if key.startswith(prefix) and key > after)
        return "\n".join(json.dumps(key, ensure_ascii=False) for key in keys)

    def search(self, words):
        phrases = [phrase for phrase in map(words_of, words.split()) if phrase]

        def holds(text, phrase):
            return any(text[at : at + len(phrase)] == phrase for at in range(len(text)))

        def matches(pair):
            return all(any(holds(text, phrase) for text in map(words_of, pair)) for phrase in phrases)

        return "\n".join(json.dumps(pair, ensure_ascii=False) for pair in self.pairs.items() if matches(pair))


class Stores(RuleBasedStateMachine):
    """Sessions of both backends beside a dict each, with forks, and rollbacks to what was saved."""

    sessions, saved = Bundle("sessions"), Bundle("saved")

    @initialize(target=sessions)
    def begin(self):
        self.tools = [KeyValue(), KeyValue(self.path, fresh=True)]
        return [tool.start("") for tool in self.tools], Like({})

    def both(self, session, name, **argument):
        stores, like = session
        expected = getattr(like, name)(**argument)
        for store in stores:
            assert of(store, name, **argument) == expected

    @rule(session=sessions, key=KEY, value=st.sampled_from(VALUES))
    def put(self, session, key, value):
        self.both(session, "put", key=key, value=value)

    @rule(session=sessions, key=KEY)
    def delete(self, session, key):
        self.both(session, "delete", key=key)

    @rule(session=sessions, key=KEY)
    def get(self, session, key):
        self.both(session, "get", key=key)

    @rule(session=sessions, key=KEY, amount=st.integers(-3, 3) | st.just(10**20))
    def add(self, session, key, amount):
        stores, like = session
        if like.pairs.get(key, "0").lstrip("-").isdecimal():
            self.both(session, "add", key=key, amount=amount)
            return
        for store in stores:
            with pytest.raises(InvalidArgumentsError, match="no whole number"):
                of(store, "add", key=key, amount=amount)

    @rule(session=sessions, prefix=KEY | st.just(""), after=KEY | st.just(""))
    def list(self, session, prefix, after):
        self.both(session, "list", prefix=prefix, after=after)

    @rule(session=sessions, words=st.sampled_from(WORDS))
    def search(self, session, words):
        self.both(session, "search", words=words)

    @rule(target=sessions, session=sessions)
    def fork(self, session):
        stores, like = session
        return [store.clone() for store in stores], Like({**like.pairs})

    @rule(target=saved, session=sessions)
    def save(self, session):
        stores, like = session
        return [{**store.state()} for store in stores], {**like.pairs}

    @rule(target=sessions, saved=saved)
    def roll_back(self, saved):
        states, pairs = saved
        return [tool.restore(state) for tool, state in zip(self.tools, states)], Like({**pairs})


class Shared(RuleBasedStateMachine):
    """Sessions on the main branch of one file, copies of them, and restored ones, in two tools on that file.

    A session is [store, dict, version]: of what follows the main branch the dict is the common one; of any other it is
    its own, and it goes on on the main branch if that has still this version at its first put.
    """

    sessions, saved = Bundle("sessions"), Bundle("saved")

    @initialize()
    def make(self):
        self.tools, self.main, self.version = [KeyValue(self.path), KeyValue(self.path)], {}, 0

    @rule(target=sessions, tool=st.sampled_from([0, 1]))
    def begin(self, tool):
        return [self.tools[tool].start(""), self.main, None]

    @rule(session=sessions, key=st.sampled_from("abc"), value=st.sampled_from("123"))
    def put(self, session, key, value):
        store, pairs, version = session
        if version == self.version:
            pairs = session[1] = self.main
        session[2] = None
        assert of(store, "put", key=key, value=value) == ("replaced" if key in pairs else "stored")
        pairs[key] = value
        self.version += pairs is self.main

    @rule(session=sessions)
    def look(self, session):
        assert of(session[0], "list", prefix="") == "\n".join(json.dumps(key) for key in sorted(session[1]))
        assert all(of(session[0], "get", key=key) == f"found: {value}" for key, value in session[1].items())

    @rule(target=sessions, session=sessions)
    def fork(self, session):
        return [session[0].clone(), {**session[1]}, None]

    @rule(target=saved, session=sessions)
    def save(self, session):
        store, pairs, version = session
        return store.state(), {**pairs}, self.version if pairs is self.main else version

    @rule(target=sessions, saved=saved, tool=st.sampled_from([0, 1]))
    def roll_back(self, saved, tool):
        state, pairs, version = saved
        return [self.tools[tool].restore(state), {**pairs}, version]


@pytest.mark.parametrize("way", [copy.deepcopy, lambda store: pickle.loads(pickle.dumps(store))])
def test_a_store_in_memory_is_a_value_also_after_a_search(way):
    store = KeyValue().start("")
    store.call("put", {"key": "a", "value": "blue fox"})
    store.call("search", {"words": "fox"})
    copied = way(store.clone())  # with a frozen layer
    store.call("put", {"key": "a", "value": "mine"})
    copied.call("put", {"key": "b", "value": "red fox"})
    assert copied.call("search", {"words": "fox"}) == '["a", "blue fox"]\n["b", "red fox"]'
    assert store.call("search", {"words": "fox"}) == ""


@pytest.mark.parametrize(("machine", "examples"), [(Stores, 50), (Shared, 50)])
def test_stores_do_what_dicts_do_in_any_order_of_calls_forks_and_rollbacks(machine, examples, tmp_path):
    count = iter(range(10**9))

    class InFolder(machine):
        def __init__(self):
            super().__init__()
            self.path = tmp_path / f"{next(count)}.sqlite"

    InFolder.TestCase.settings = settings(
        max_examples=examples, stateful_step_count=40, deadline=None, suppress_health_check=[*HealthCheck]
    )
    InFolder.TestCase("runTest").runTest()


@given(st.text(max_size=30) | st.sampled_from([LONG, "a" * 32_767 + "ж"]), st.text(max_size=5))
@settings(max_examples=300, deadline=None)
def test_words_are_those_of_sqlite(text, more):
    text += f" {more} e\u0301t\u0301 \u0301x"
    with closing(sqlite3.connect(":memory:")) as database:
        database.execute(f"CREATE VIRTUAL TABLE texts USING fts5 (text, tokenize = '{TOKENIZER}')")
        database.execute("CREATE VIRTUAL TABLE words USING fts5vocab (texts, instance)")
        database.execute("INSERT INTO texts VALUES (?)", (text,))
        database.text_factory = bytes
        terms = database.execute("SELECT term FROM words ORDER BY offset").fetchall()
    assert words_of(text) == tuple(term for (term,) in terms)


@pytest.fixture(params=["memory", "file"])
def tool(request, tmp_path):
    return KeyValue() if request.param == "memory" else KeyValue(tmp_path / "a.sqlite", fresh=True)


def test_a_value_cannot_be_taken_for_what_the_tool_says(tool):
    store = tool.start("")
    assert of(store, "get", key="x") == "absent"
    of(store, "put", key="x", value="absent")
    assert of(store, "get", key="x") == "found: absent"
    of(store, "put", key="more", value='["x", "y"]\nmore')
    assert of(store, "list", prefix="") == '"more"\n"x"'
    assert of(store, "search", words="more") == json.dumps(["more", '["x", "y"]\nmore'])
    assert of(store, "search", words="nothing") == ""


def test_of_many_the_first_are_shown_and_the_next_can_be_asked_for(tmp_path):
    for tool in (KeyValue(most=3), KeyValue(tmp_path / "a.sqlite", most=3)):
        store = tool.start("")
        for number in range(7):
            of(store, "put", key=f"k{number}", value="one word")
        assert of(store, "list", prefix="k") == '"k0"\n"k1"\n"k2"\nmore'
        assert of(store, "list", prefix="k", after="k2") == '"k3"\n"k4"\n"k5"\nmore'
        assert of(store, "list", prefix="k", after="k5") == '"k6"'
        assert of(store, "search", words="word").count("\n") == 3
        assert of(store, "search", words="word").endswith("\nmore")


@pytest.mark.parametrize("words", ["", " ", "-- !", '"', "*"])
def test_a_search_without_a_word_is_refused(tool, words):
    with pytest.raises(InvalidArgumentsError, match="letters and digits"):
        of(tool.start(""), "search", words=words)


def test_what_no_call_can_be_is_refused_and_changes_nothing(tool):
    facts, store = facts_of(tool), tool.start("")
    with pytest.raises(InvalidArgumentsError, match="'value' is a required property"):
        argument_of(facts, "put", '{"key": "a"}')
    with pytest.raises(InvalidArgumentsError, match="key"):
        argument_of(facts, "put", '{"key": "", "value": "1"}')
    with pytest.raises(InvalidArgumentsError, match="half of a character"):
        of(store, "put", key="\ud800", value="1")
    with pytest.raises(UnknownCallError, match="no call"):
        of(store, "drop", key="a")
    assert of(store, "list", prefix="") == ""


def test_a_sum_has_at_most_1000_digits_and_an_amount_is_a_whole_number(tool):
    facts, store = facts_of(tool), tool.start("")
    of(store, "put", key="a", value="9" * 1000)
    with pytest.raises(InvalidArgumentsError, match="1,000 digits"):
        of(store, "add", key="a", amount=1)
    assert of(store, "add", key="a", amount=-(10**1000 - 1)) == "found: 0"
    for amount in (2.0**53, 1e300, -1e23):
        with pytest.raises(InvalidArgumentsError, match="write all digits"):
            of(store, "add", key="a", amount=amount)
    for amount in (2.0, -2, int("9" * 999), int("-" + "9" * 999)):
        of(store, "add", key="a", amount=amount)
    with pytest.raises(InvalidArgumentsError, match="1,000 digits"):
        of(store, "add", key="a", amount=10**4300 - 1)
    assert of(store, "get", key="a") == "found: 0"
    for amount in ("1.5", '"1"', "true", "1e999"):
        with pytest.raises(InvalidArgumentsError):
            argument_of(facts, "add", f'{{"key": "a", "amount": {amount}}}')


def test_a_prefix_keeps_the_calls_of_two_stores_apart():
    facts = facts_of(KeyValue(prefix="notes_"))
    assert [*facts.calls] == [f"notes_{name}" for name in ("put", "get", "delete", "add", "list", "search")]
    store = facts.start("", str)
    assert store.call("notes_put", {"key": "a", "value": "1"}) == "stored"


def test_a_config_names_no_file():
    assert isinstance(make_tool({"name": "key_value", "most": 5}), KeyValue)
    with pytest.raises(UnsafeToolError, match="path"):
        make_tool({"name": "key_value", "path": "notes.sqlite"})
    for options in ({"most": 0}, {"most": 2**63}, {"most": True}, {"prefix": 3}, {"fresh": "no"}):
        with pytest.raises(UnknownToolError, match="key_value"):
            make_tool({"name": "key_value", **options})
    for path in (5, "", "a\0b", b"a", True):
        with pytest.raises(UnknownToolError, match="key_value: path"):
            KeyValue(path)


def test_all_that_begin_with_a_file_share_it_and_a_fork_does_not(tmp_path):
    path = tmp_path / "notes.sqlite"
    first, second = KeyValue(path).start(""), KeyValue(path).start("")
    of(first, "put", key="a", value="1")
    assert of(second, "get", key="a") == "found: 1"
    fork = second.clone()
    of(fork, "put", key="a", value="mine")
    of(first, "put", key="b", value="2")
    assert of(second, "get", key="a") == "found: 1"
    assert of(fork, "get", key="b") == "absent"
    saved = second.state()
    again, old = KeyValue(path).restore(saved), KeyValue(path).restore(saved)
    of(again, "put", key="c", value="3")
    assert of(first, "get", key="c") == "found: 3"
    assert of(old, "get", key="c") == "absent"  # though the file has gone on since
    of(old, "put", key="c", value="other")
    assert of(first, "get", key="c") == "found: 3"
    of(KeyValue(path).restore(fork.state()), "put", key="a", value="fork of a fork")
    assert of(first, "get", key="a") == "found: 1"
    assert of(fork, "get", key="a") == "found: mine"


def test_a_state_is_of_its_own_file_alone(tmp_path):
    one, two = KeyValue(tmp_path / "1.sqlite"), KeyValue(tmp_path / "2.sqlite")
    with pytest.raises(StoreError, match="is not of"):
        two.restore(one.start("").state())
    with pytest.raises(StoreError, match="is not of"):
        two.restore(KeyValue().start("").state())
    with pytest.raises(StoreError, match="a file's"):
        KeyValue().restore(one.start("").state())


def test_what_memory_holds_after_many_forks_is_found_in_few_layers():
    store, rng, like = KeyValue().start(""), random.Random(0), {}
    for step in range(3000):
        key = str(rng.randrange(300))
        of(store, "put", key=key, value=str(step))
        like[key] = str(step)
        if step % 3 == 0:
            store.clone()
    assert len(store.pairs._frozen) < 15
    assert sum(len(layer.puts) for layer in store.pairs._layers()) < 1000
    assert all(of(store, "get", key=key) == f"found: {value}" for key, value in like.items())


def test_memory_forgets_what_was_deleted_and_replaced():
    store = KeyValue().start("")
    for step in range(2000):
        of(store, "put", key=f"k{step}", value="x y z")
        of(store, "put", key="same", value=f"word{step} x")
        if step % 3 == 0:
            assert of(store, "search", words="y z") == json.dumps([f"k{step}", "x y z"])
        of(store, "delete", key=f"k{step}")
        if step % 50 == 0:
            assert of(store, "search", words="x") == json.dumps(["same", f"word{step} x"])
    (layer,) = store.pairs._layers()
    assert len(layer.puts) == 1
    assert sum(map(len, layer._postings.values())) < 50


WRITER = """
import sys
from hf_toolssm.tools.key_value import KeyValue
path, name, count = sys.argv[1], sys.argv[2], int(sys.argv[3])
store = KeyValue(path).start("")
print("ready", flush=True)
for number in range(count):
    store.call("put", {"key": f"{name} {number:07d}", "value": f"value of {number}"})
    print(number, flush=True)
"""


def writer(path, name, count, **options):
    words = [sys.executable, "-c", WRITER, str(path), name, str(count)]
    return subprocess.Popen(
        words, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, encoding="utf-8", **options
    )


def numbers_in(path, name):
    lines = of(KeyValue(path, most=10**9).start(""), "list", prefix=f"{name} ").splitlines()
    return [int(json.loads(line).split()[1]) for line in lines]


def test_what_was_acknowledged_before_a_kill_is_there_and_nothing_else(tmp_path):
    run_script("recipes/store_kills.py", "--folder", tmp_path, "--puts", 400, "--kills", 3)
    path, recipe = tmp_path / "store.sqlite", import_recipe("store_kills")
    assert recipe.check(path, 200, 400) == 400
    for said in (398, 401):
        with pytest.raises(SystemExit, match="acknowledged"):
            recipe.check(path, 0, said)
    with closing(sqlite3.connect(path)) as file:
        file.execute("UPDATE pairs SET value = 'other' WHERE number = 300")
        file.commit()
        with pytest.raises(SystemExit, match="another value"):
            recipe.check(path, 0, 400)
        with pytest.raises(sqlite3.DatabaseError, match="malformed"):
            recipe.check_file(path, 400)
        file.execute("UPDATE pairs SET value = 'value 299' WHERE number = 300")
        file.commit()
        recipe.check_file(path, 400)
        with pytest.raises(SystemExit, match="400 pairs"):
            recipe.check_file(path, 401)


def test_two_processes_write_one_file(tmp_path):
    path = tmp_path / "a.sqlite"
    both = [writer(path, name, 200) for name in ("one", "two")]
    for process in both:
        _, errors = process.communicate()
        assert process.returncode == 0, errors
    assert numbers_in(path, "one") == numbers_in(path, "two") == [*range(200)]


def test_lists_and_searches_that_stop_early_disturb_no_put(tmp_path):
    """A query that is not read to its end would keep what it saw, and let nobody put."""
    path = tmp_path / "a.sqlite"
    tool, other = KeyValue(path, most=2), KeyValue(path).start("")
    store, lister = tool.start(""), tool.start("").clone()
    for number in range(20):
        of(store, "put", key=f"k{number}", value="one word")
    lister, stop, failed = tool.start("").clone(), threading.Event(), []

    def read():
        while not stop.is_set():
            try:
                assert of(lister, "list", prefix="k").endswith("more")
                assert of(lister, "search", words="word").endswith("more")
            except Exception as error:
                failed.append(error)

    reader = threading.Thread(target=read)
    reader.start()
    for number in range(100):
        assert of(store, "put", key="mine", value=str(number)) in ("stored", "replaced")
        assert of(other, "put", key="theirs", value=str(number)) in ("stored", "replaced")
        assert of(store, "get", key="theirs") == f"found: {number}"
    stop.set()
    reader.join()
    assert not failed


def test_a_lock_is_named_and_nothing_is_lost(tmp_path):
    path = tmp_path / "a.sqlite"
    tool = KeyValue(path)
    store = tool.start("")
    of(store, "put", key="a", value="1")
    tool._file._writer.execute("PRAGMA busy_timeout = 50")
    with closing(sqlite3.connect(path, isolation_level=None)) as other:
        other.execute("BEGIN IMMEDIATE")
        with pytest.raises(StoreError, match="locked; nothing was stored"):
            of(store, "put", key="a", value="2")
        assert of(store, "get", key="a") == "found: 1"  # reading waits for nobody
    assert of(store, "put", key="a", value="3") == "replaced"


HARD_TIMES = """
import os, resource, signal, sys
from hf_toolssm.errors import StoreError
from hf_toolssm.tools.key_value import KeyValue
path, how = sys.argv[1:]
signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
if how == "read-only" and os.geteuid() == 0:
    os.setgid(65534); os.setuid(65534)
try:
    store = KeyValue(path).start("")
    print(store.call("get", {"key": "a"}))
    if how == "full":
        size = os.path.getsize(path + "-wal") + 20_000
        resource.setrlimit(resource.RLIMIT_FSIZE, (size, resource.RLIM_INFINITY))
    try:
        print(store.call("put", {"key": "b", "value": "x" * 100_000}))
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (resource.RLIM_INFINITY, resource.RLIM_INFINITY))
except StoreError as error:
    print("StoreError", str(error).rpartition("cannot be ")[2])
print(store.call("get", {"key": "a"}), store.call("get", {"key": "b"}))
if how == "full":
    print(store.call("put", {"key": "c", "value": "3"}))
"""


@pytest.mark.parametrize(
    ("how", "said"),
    [
        ("full", ["found: 1", "StoreError written: disk I/O error; nothing was stored", "found: 1 absent", "stored"]),
        (
            "read-only",
            [
                "found: 1",
                "StoreError written: attempt to write a readonly database; nothing was stored",
                "found: 1 absent",
            ],
        ),
    ],
)
def test_a_file_that_cannot_grow_or_be_written_is_named_and_nothing_is_lost(how, said):
    with tempfile.TemporaryDirectory() as folder:  # where another user may go, as not into pytest's own
        path = Path(folder, "a.sqlite")
        tool = KeyValue(path)
        of(tool.start(""), "put", key="a", value="1")
        if how == "read-only":
            os.chmod(folder, 0o777)
            tool.close()
            path.chmod(0o444)
        process = subprocess.run(
            [sys.executable, "-c", HARD_TIMES, str(path), how], capture_output=True, text=True, encoding="utf-8"
        )
        assert process.stdout.splitlines() == said, process.stderr
        path.chmod(0o644)
        keys = of(KeyValue(path).start(""), "list", prefix="")
        assert keys == ('"a"\n"c"' if how == "full" else '"a"')


def test_what_is_no_store_is_named_and_not_touched(tmp_path):
    text, database, folder = tmp_path / "a.txt", tmp_path / "b.sqlite", tmp_path / "no" / "c.sqlite"
    text.write_text("no database\n" * 100, encoding="utf-8")
    with sqlite3.connect(database) as made:
        made.execute("CREATE TABLE mine (x)")
    for path, match in ((text, "not a database"), (database, "no store"), (folder, "unable to open")):
        before = path.read_bytes() if path.exists() else None
        with pytest.raises(StoreError, match=match):
            KeyValue(path)
        assert before is None or path.read_bytes() == before


def test_a_damaged_file_and_one_that_was_removed_are_named(tmp_path):
    path = tmp_path / "a.sqlite"
    tool = KeyValue(path)
    store = tool.start("")
    for number in range(300):
        of(store, "put", key=f"{number}", value="x" * 200)
    tool._file._writer.execute("PRAGMA wal_checkpoint(TRUNCATE)")
    path.rename(tmp_path / "moved.sqlite")
    with pytest.raises(StoreError, match="nothing was stored"):
        of(store, "put", key="a", value="1")
    KeyValue(path)
    with pytest.raises(StoreError, match="another file"):
        of(store, "put", key="a", value="1")
    damaged = tmp_path / "moved.sqlite"
    content = np.frombuffer(damaged.read_bytes(), np.uint8).copy()
    content[8192:] = 77
    copy = tmp_path / "damaged.sqlite"
    copy.write_bytes(content.tobytes())
    with pytest.raises(StoreError, match="damaged.sqlite cannot be"):
        of(KeyValue(copy).start(""), "list", prefix="")
    assert os.path.getsize(copy) == len(content)


def test_a_state_is_none_of_an_older_copy_of_the_file(tmp_path):
    path, copy = tmp_path / "a.sqlite", tmp_path / "b.sqlite"
    tool = KeyValue(path)
    store = tool.start("")
    of(store, "put", key="a", value="1")
    tool._file._writer.execute("PRAGMA wal_checkpoint(TRUNCATE)")
    shutil.copy(path, copy)
    fork = store.clone()
    of(fork, "put", key="a", value="2")
    backup = KeyValue(copy)
    with pytest.raises(StoreError, match="is not of"):
        backup.restore(fork.state())
    other = backup.start("").clone()
    of(other, "put", key="others", value="3")  # on a branch of the same number
    of(store, "put", key="a", value="4")
    of(backup.start(""), "put", key="a", value="5")  # and a put of the same number
    for state in (fork.state(), store.state()):
        with pytest.raises(StoreError, match="is not of"):
            backup.restore(state)
    for wrong in (
        {},
        {"store": tool._file.id},
        {**store.state(), "mark": None},
        {**store.state(), "number": None, "mark": None},
    ):
        with pytest.raises(StoreError, match="is not of"):
            tool.restore(wrong)


def test_what_is_left_of_a_lost_file_is_not_removed(tmp_path):
    path = tmp_path / "a.sqlite"
    tool = KeyValue(path)
    of(tool.start(""), "put", key="a", value="1")
    log = Path(f"{path}-wal")
    before = log.read_bytes()
    path.rename(tmp_path / "moved.sqlite")
    for content in (None, b""):
        if content is not None:
            path.write_bytes(content)
        with pytest.raises(StoreError, match="gone or empty"):
            KeyValue(path)
        assert log.read_bytes() == before


def test_a_store_without_its_id_is_named(tmp_path):
    path = tmp_path / "a.sqlite"
    KeyValue(path).close()
    with closing(sqlite3.connect(path)) as file:
        file.execute("DELETE FROM store")
        file.commit()
    with pytest.raises(StoreError, match="lost its id"):
        KeyValue(path)


def _forked(store, answers):
    try:
        of(store, "put", key="a", value="2")
    except StoreError as error:
        answers.put(str(error))


def test_a_process_that_was_forked_makes_the_tool_anew(tmp_path):
    store, context = KeyValue(tmp_path / "a.sqlite").start(""), multiprocessing.get_context("fork")
    answers = context.Queue()
    process = context.Process(target=_forked, args=(store, answers))
    process.start()
    assert "another process" in answers.get(timeout=60)
    process.join()


def test_many_begin_one_file_at_once(tmp_path):
    path, barrier, failed = tmp_path / "a.sqlite", threading.Barrier(6), []

    def begin(number):
        barrier.wait()
        try:
            of(KeyValue(path).start(""), "put", key=f"{number}", value="")
        except Exception as error:
            failed.append(error)

    threads = [threading.Thread(target=begin, args=(number,)) for number in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not failed
    assert of(KeyValue(path).start(""), "list", prefix="").count("\n") == 5


def test_a_key_with_ends_of_lines_is_one_line():
    store = KeyValue().start("")
    of(store, "put", key="a\u2028b\x85c\nd\re", value="")
    (line,) = of(store, "list", prefix="").splitlines()
    assert json.loads(line) == "a\u2028b\x85c\nd\re"
