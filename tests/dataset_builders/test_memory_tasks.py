"""Tasks whose problems are sessions of many turns: what a user says, and what is right then."""

import inspect
import json
import math
import random
import re

import pytest

from dataset_builders.algorithms.memory_task import NONE, TESTED
from dataset_builders.algorithms.memory_texts import command, is_of_tests, number, patchwork, scrap, signs, word
from dataset_builders.catalog import load_task
from hf_toolssm.errors import InvalidProblemError
from hf_toolssm.protocol.trajectory import StepKind

NAMES = ("associative_recall", "last_write", "phonebook")
SETS = [(name, kind) for name in NAMES for kind in (TESTED, *load_task(name).adversarial)]
_QUOTED = re.compile(r'"(?:[^"\\]|\\.)*"')


def problems(name, kind, count=20, length=30):
    rng, task = random.Random(f"{name}/{kind}"), load_task(name)
    if kind is None:
        return [task.sample_training(rng, 16) for _ in range(count)]
    if kind == TESTED:
        return [task.sample_test(rng, length) for _ in range(count)]
    return [task.sample_adversarial(kind, rng, length, index) for index in range(count)]


def read(text):
    """What a user wants, told by the quoted texts and the last sign alone, as a model has to tell it."""
    found = [json.loads(each) for each in _QUOTED.findall(text)]
    if len(found) == 2:
        return "put", found
    return ("get" if text.endswith("?") else "delete"), found


def taken(turn, part):
    """What a turn takes into the key or the value: what the call before showed."""
    pairs = zip(turn, turn[1:])
    return "".join(shown.text for shown, call in pairs if call.name == f"take_{part}")


@pytest.mark.parametrize("variant", ["store", "state"])
@pytest.mark.parametrize(("name", "kind"), [*SETS, *((name, None) for name in NAMES)])
def test_every_answer_is_what_was_said_last_and_the_call_of_a_turn_says_what_the_turn_says(name, kind, variant):
    for problem in problems(name, kind):
        values = {}
        for turn in load_task(name).solve(problem, variant).turns():
            wanted, texts = read(turn[0].text)
            acts = [step.name for step in turn if step.kind is StepKind.CALL and step.name in ("put", "get", "delete")]
            assert acts == ([wanted] if variant == "store" else [])
            if variant == "store":
                assert [taken(turn, "key"), taken(turn, "value")] == [*texts, ""][:2]
            outputs = "".join(step.text for step in turn if step.kind is StepKind.OUTPUT)
            assert outputs == (values.get(texts[0], NONE) if wanted == "get" else "")
            if wanted == "put":
                values[texts[0]] = texts[1]
            elif wanted == "delete":
                values.pop(texts[0], None)


@pytest.mark.parametrize("name", NAMES)
def test_keys_values_and_wordings_of_tests_never_occur_in_training(name):
    def said(kind):
        texts = [text for problem in problems(name, kind, 60) for _, text, _ in load_task(name).session(problem)]
        wordings = {part for text in texts for part in _QUOTED.split(text) if part.strip(" .?")}
        return wordings, {text for sentence in texts for text in _QUOTED.findall(sentence)}

    trained, tested = said(None), [said(kind) for kind in (TESTED, *load_task(name).adversarial)]
    for wordings, texts in tested:
        assert not trained[0] & wordings
        assert not trained[1] & texts
        assert all(is_of_tests(part.strip()) for part in wordings)
    assert not any(is_of_tests(part.strip()) for part in trained[0])


@pytest.mark.parametrize("name", NAMES)
def test_a_session_has_as_many_writes_and_queries_as_its_problem_says(name):
    for kind in (None, TESTED, *load_task(name).adversarial):
        for problem in problems(name, kind):
            wanted = [read(text)[0] for _, text, _ in load_task(name).session(problem)]
            pairs, queries = map(int, re.findall(r"(\d+) (?:pairs|queries)", problem))
            assert (len(wanted) - wanted.count("get"), wanted.count("get")) == (pairs, queries)
            assert wanted[0] == "put"
            assert wanted[-1] == "get"


def test_near_equal_keys_differ_in_one_letter_from_another():
    for name in NAMES:
        for problem in problems(name, "near_equal", 5):
            keys = {turn.key for turn, *_ in load_task(name).session(problem)}
            near = [key for key in keys if any(differ_by_one(key, other) for other in keys)]
            assert len(near) > 0.5 * len(keys)


def differ_by_one(one, other):
    return len(one) == len(other) and sum(a != b for a, b in zip(one, other)) == 1


def test_a_number_or_a_patchwork_is_of_the_tests_as_a_whole():
    rng = random.Random(0)
    for make in (word, number, signs, patchwork, command, scrap):
        for of_tests in (False, True):
            assert {is_of_tests(make(rng, of_tests)) for _ in range(300)} == {of_tests}


@pytest.mark.parametrize(("kind", "wanted"), [("overwritten", "put"), ("deleted", "delete")])
def test_a_query_of_these_sets_follows_such_a_write(kind, wanted):
    answers, same = [], []
    for problem in problems("last_write", kind, 5):
        last = None
        for turn, _, right in load_task("last_write").session(problem):
            if turn.asks:
                answers.append(right)
                same.append(turn.key == last.key)
                assert kind == "deleted" or same[-1]
            else:
                last = turn
        turns = [read(text)[0] for _, text, _ in load_task("last_write").session(problem)]
        before = [was for was, now in zip(turns, turns[1:]) if now == "get" and was != "get"]
        # The first turn of all has nothing to change, and where fewer than two keys have a value none is deleted.
        assert before.count(wanted) >= (0.4 * len(before) if kind == "deleted" else len(before) - 2)
    if kind == "deleted":  # saying "none" to everything is mostly wrong
        assert 0.15 < answers.count(NONE) / len(answers) < 0.5
        assert 0.3 < sum(same) / len(same) < 0.9


@pytest.mark.parametrize("problem", ["", "3 pairs", "0 pairs, 1 queries; seed 1", "3 pairs, 2 queries, rare; seed 1"])
def test_what_is_no_problem_is_refused(problem):
    with pytest.raises(InvalidProblemError, match="16 pairs, 8 queries; seed 7"):
        load_task("last_write").solve(problem, "store")


@pytest.mark.parametrize("name", [*NAMES, "short_recall"])
def test_the_worked_example_is_what_its_problem_gives(name):
    task = load_task(name)
    problem, variant = re.search(
        r"Worked example, `(.*?)`, variant (\w+)", inspect.getmodule(type(task)).__doc__
    ).groups()
    written = []
    for turn in task.solve(problem, variant).turns():
        calls = []
        for step in turn:
            if step.kind is StepKind.CALL and (not calls or calls[-1][0] != step.name):
                calls.append([step.name, ""])
            elif step.kind is StepKind.OBSERVATION:
                calls[-1][1] += step.text
        answer = "".join(step.text for step in turn if step.kind is StepKind.OUTPUT)
        lines = [f"    call    {name:<12}{shown}".rstrip() for name, shown in calls]
        written += [f"    user    {turn[0].text}", *lines[:-1], *[f"    answer  {answer}"] * bool(answer), *lines[-1:]]
    assert "\n\n" + "\n".join(written) + "\n\n" in inspect.getmodule(type(task)).__doc__


@pytest.mark.parametrize("variant", ["either", "store", "state"])
def test_short_pairs_are_answered_either_way_and_what_is_copied_is_what_the_turn_says(variant):
    task, rng, ways = load_task("short_recall"), random.Random(7), {"state": 0, "store": 0}
    for problem in [task.sample_training(rng, 8) for _ in range(30)]:
        values = {}
        for turn in task.solve(problem, variant).turns():
            *key, last = turn[0].text
            key = "".join(key)
            outputs = "".join(step.text for step in turn if step.kind is StepKind.OUTPUT)
            calls = [step.name for step in turn if step.kind is StepKind.CALL]
            if last == "?":
                assert outputs == values[key]
                ways["store" if "get" in calls else "state"] += 1
            else:
                assert not outputs
                values[key] = last
            if "get" in calls or "put" in calls:
                assert [taken(turn, "key"), taken(turn, "value")] == [key, "" if last == "?" else last]
            assert calls[-1:] == ["done"] * (variant != "state")
    assert {way for way, count in ways.items() if count} == ({"state", "store"} if variant == "either" else {variant})


def test_more_short_pairs_than_there_are_keys_are_refused():
    task, rng = load_task("short_recall"), random.Random(9)
    for kind, most in ((None, 14_101), (TESTED, 3_475)):
        with pytest.raises(InvalidProblemError, match=f"there are {most:,} keys"):
            task.solve(task.problem(rng, most + 1, 1, kind), "state")


def test_every_short_pair_may_be_asked_for_and_the_latest_most_often():
    task, rng, counts = load_task("short_recall"), random.Random(10), [0] * 8
    keys = [turn.key for turn, *_ in task.session(task.problem(rng, 8, 4_000))]
    for key in keys[8:]:
        counts[7 - keys.index(key)] += 1
    expected = [math.log(1 + 1 / n, 9) for n in range(1, 9)]
    assert [count / 4_000 for count in counts] == pytest.approx(expected, abs=0.03)


def test_short_keys_of_tests_never_occur_in_training():
    task, rng = load_task("short_recall"), random.Random(8)
    for kind in (None, TESTED):
        problem = task.problem(rng, 40, 5, kind)
        assert {is_of_tests(turn.key) for turn, *_ in task.session(problem)} == {kind is not None}
