"""Sorting: right, stable, k-local, and linear in the number of keys."""

import random

import pytest
from conftest import remembered, thinking, written
from hypothesis import given
from hypothesis import strategies as st

from dataset_builders.catalog import load_task
from dataset_builders.problem_sets import TRAINING, ProblemSet, ReferenceTrajectories, evaluation_sets
from dataset_builders.task import example_rng
from hf_toolssm.errors import EmptyProblemError, InvalidProblemError
from hf_toolssm.protocol.locality import locality
from hf_toolssm.protocol.trajectory import ANSWER, StepKind

KEYS = st.lists(st.integers(0, 999).map("{:03}".format), min_size=1, max_size=12)


@pytest.fixture(scope="module")
def sorting():
    return load_task("sorting")


def keys_of(text):
    return [key for key in text.strip("=").split(",") if key]


def lists_of(trajectory):
    """The lists that the passes read and write, with the digits as they stand there."""
    memory = [*trajectory.problem, *(cell for kind, cell in written(trajectory) if kind is StepKind.THOUGHT)]
    text = "".join(memory).removesuffix("==" + ANSWER)
    first, rest = text.split("==x")
    by_units, by_tens = rest.split("==y")
    return [keys_of(part) for part in (first, by_units, by_tens, trajectory.answer)]


def passes_are_right(trajectory):
    """Every pass is a stable sort of the list before it by one digit, which moves to the front of its key."""
    lists = lists_of(trajectory)
    return all(
        after == [key[2] + key[:2] for key in sorted(before, key=lambda key: key[2])]
        for before, after in zip(lists, lists[1:])
    )


@given(keys=KEYS)
def test_sorting_sorts(sorting, keys):
    problem = "".join(f"{key}," for key in keys) + "="
    answer = "".join(f"{key}," for key in sorted(keys))
    assert sorting.answer(problem, "local") == answer
    assert sorting.solve(problem, "local").answer == answer


@given(keys=KEYS)
def test_every_pass_is_stable(sorting, keys):
    assert passes_are_right(sorting.solve("".join(f"{key}," for key in keys) + "=", "local"))


def test_two_keys_of_one_pass_in_the_wrong_order_are_found(sorting):
    trajectory = sorting.solve("111,121,011,=", "local")
    assert passes_are_right(trajectory)
    cells = remembered(trajectory)
    thoughts = [at for at, (kind, _) in enumerate(cells) if kind is StepKind.THOUGHT]
    assert passes_are_right(thinking(trajectory, cells))
    for first, second in zip(thoughts[2:6], thoughts[6:10]):  # the first two keys that pass 1 writes
        cells[first], cells[second] = cells[second], cells[first]
    assert not passes_are_right(thinking(trajectory, cells))


def test_k_does_not_grow_beyond_training(sorting):
    training = ProblemSet(load_task("sorting"), TRAINING, 10, (("train", 300),), "local")
    short = ReferenceTrajectories(training, "train")
    long = [
        t for s in evaluation_sets(load_task("sorting"), "local", [100], [100], 2) for t in ReferenceTrajectories(s)
    ]
    assert locality(short).k == locality([*short, *long]).k == 10


def test_training_shows_every_pointer_every_digit_to_copy_and_to_pass_by(sorting):
    def decisions(trajectory):
        texts = [cell for _, cell in written(trajectory)]
        return set(zip(texts, texts[1:], texts[2:]))  # a read, the digit, and what follows

    training = ProblemSet(load_task("sorting"), TRAINING, 10, (("train", 200),), "local")
    shown = set().union(*map(decisions, ReferenceTrajectories(training, "train")))
    for problems in evaluation_sets(load_task("sorting"), "local", [200], [200], 1):
        for trajectory in ReferenceTrajectories(problems):
            assert decisions(trajectory) <= shown


def test_tokens_grow_as_the_number_of_keys_does(sorting):
    def tokens(length):
        return len(written(sorting.solve(sorting.sample_test(random.Random(0), length), "local")))

    assert tokens(1_000) < 220_000
    assert tokens(400) - tokens(200) == tokens(600) - tokens(400)


@given(length=st.integers(2, 40), index=st.integers(0, 1_000))
def test_adversarial_sets_are_what_their_names_say(sorting, length, index):
    def draw(name):
        return keys_of(sorting.sample_adversarial(name, example_rng(name, length, index), length, index))

    assert draw("sorted") == sorted(draw("sorted"))
    assert draw("reversed") == sorted(draw("reversed"), reverse=True)
    assert len(set(draw("equal_keys"))) == 1
    assert len(set(draw("two_keys"))) <= 2
    assert len({key[-1] for key in draw("equal_last_digits")}) == 1


@pytest.mark.parametrize(
    "problem", ["735,020=", "35,020,=", "735,020,", "7350,=", "=", "73a,=", "735, 020,=", "١٢٣,="]
)
def test_what_is_no_sorting_problem_is_named(sorting, problem):
    with pytest.raises(InvalidProblemError, match="735,020,="):
        sorting.solve(problem, "local")


def test_what_the_task_does_not_have_is_named(sorting):
    with pytest.raises(EmptyProblemError, match="at least one cell"):
        sorting.solve("", "local")
    with pytest.raises(InvalidProblemError, match="no variant 'merge'"):
        sorting.solve("735,=", "merge")
    with pytest.raises(InvalidProblemError, match="no adversarial set"):
        sorting.sample_adversarial("easy", random.Random(0), 5, 0)
