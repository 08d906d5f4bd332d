"""The contract that every task keeps; a new file in dataset_builders/tasks/ is tested by being there."""

import random
import sys
from itertools import islice

import pytest
from conftest import CELL_TASKS, COMPARED_TASKS, written
from hypothesis import given
from hypothesis import strategies as st

from dataset_builders.catalog import load_task
from dataset_builders.problem_sets import (
    TEST,
    TRAINING,
    ProblemSet,
    ReferenceTrajectories,
    evaluation_sets,
    problem_at,
)
from dataset_builders.task import example_rng, split_of, task_tool
from hf_toolssm.errors import (
    EmptyProblemError,
    InvalidProblemError,
    TooFewProblemsError,
    UnknownTaskError,
)
from hf_toolssm.evaluation.exactness import exactness
from hf_toolssm.protocol.calls import Call, CallReader, CommandTokens
from hf_toolssm.protocol.locality import locality
from hf_toolssm.protocol.trajectory import StepKind
from hf_toolssm.tools import facts_of

LARGEST_K = 22
FAR = {"hanoi_iterative": 9, "hanoi_recursive": 9}
"""Lengths far above training of tasks whose trajectories grow faster than their problems; 60 of all others."""

VARIANTS = [(name, variant) for name in CELL_TASKS for variant in load_task(name).variants]
COMPARED = [(name, variant) for name in COMPARED_TASKS for variant in load_task(name).variants]
TRAINED = [(name, load_task(name).variants[0]) for name in CELL_TASKS]


def reachable(name, *lengths):
    """Those lengths, or the farthest that a test can solve."""
    return [min(length, FAR.get(name, 60)) for length in lengths]


both = pytest.mark.parametrize(("name", "variant"), VARIANTS)
compared = pytest.mark.parametrize(("name", "variant"), COMPARED)
trained = pytest.mark.parametrize(("name", "variant"), TRAINED)


def some_sets(name, variant):
    """A training set, plain tests and every adversarial set, small."""
    training = ProblemSet(load_task(name), TRAINING, 5, (("train", 60), ("validation", 20)), variant)
    return [
        training,
        *evaluation_sets(load_task(name), variant, reachable(name, 1, 5, 12), reachable(name, 6, 17), 12),
    ]


def problems_of(name, variant):
    return {
        (s.name, split, index): problem_at(s, split, index)
        for s in some_sets(name, variant)
        for split, size in s.sizes
        for index in range(size)
    }


@compared
def test_problems_are_the_same_every_time(name, variant):
    assert problems_of(name, variant) == problems_of(name, variant)


@trained
def test_another_seed_shares_next_to_nothing(name, variant):
    task = load_task(name)

    def drawn(seed):
        sets = ProblemSet(load_task(name), TRAINING, 20, (("train", 200),), variant, seed)
        problems = {problem_at(sets, "train", index) for index in range(200)}
        return {problem for problem in problems if task.length(problem) > 3}  # of the shortest there are few at all

    assert len(drawn(0)) > 100
    assert len(drawn(0) & drawn(1)) <= 2


@compared
def test_splits_are_disjoint(name, variant):
    by_split = {}
    for (_, split, _), problem in problems_of(name, variant).items():
        by_split.setdefault(split, set()).add(problem)
    assert set(by_split) == {"train", "validation", "test"}
    for split, problems in by_split.items():
        for other, others in by_split.items():
            assert split == other or not problems & others
        assert all(split_of(load_task(name), problem) == split for problem in problems)


@compared
def test_the_recorded_answer_is_right_by_another_way_of_solving(name, variant):
    task = load_task(name)
    for problem in problems_of(name, variant).values():
        assert task.solve(problem, variant).answer == task.answer(problem, variant), problem


@compared
def test_the_reference_scores_one_and_a_wrong_answer_less(name, variant):
    sets = evaluation_sets(load_task(name), variant, [3], [], 6)
    answers = [t.answer for t in ReferenceTrajectories(sets[0], "test")]
    assert exactness(answers, answers)["exactness"] == 1.0
    assert exactness(["x" + answers[0], *answers[1:]], answers)["exactness"] == pytest.approx(5 / 6)


@both
def test_replaying_the_commands_gives_back_the_observations(name, variant):
    task = load_task(name)
    for problem in list(problems_of(name, variant).values())[::7]:
        trajectory = task.solve(problem, variant)
        if not task.tools(variant):  # a regime that thinks alone
            assert not any(s.kind in (StepKind.CALL, StepKind.OBSERVATION) for s in trajectory.steps)
            continue
        facts = facts_of(task_tool(task, variant))
        at_work, reader = facts.start(trajectory.problem, str), CallReader(CommandTokens([facts], str))
        pending = []
        for kind, cell in islice(trajectory.cells(), len(trajectory.problem), None):
            if kind is StepKind.OBSERVATION:
                assert pending.pop(0) == cell
                continue
            if kind is StepKind.INPUT:  # a later turn's
                at_work.write(cell)
                continue
            assert not pending
            read = reader.read(cell)
            assert (kind is StepKind.CALL) == bool(read)
            if isinstance(read, Call):
                pending = list(at_work.call(read.name, read.argument))
            elif not read:
                at_work.write(cell)
        assert not pending
        assert reader.open is None


@trained
def test_the_trained_variant_is_local_at_every_length(name, variant):
    task = load_task(name)
    trajectories = [task.solve(problem, variant) for problem in problems_of(name, variant).values()]
    far = reachable(name, 60)
    long = [t for s in evaluation_sets(load_task(name), variant, far, far, 2) for t in ReferenceTrajectories(s)]
    found = locality([*trajectories, *long])
    assert found.k is not None, found
    assert found.k <= LARGEST_K, found


@trained
def test_test_problems_have_the_length_that_their_set_names(name, variant):
    task = load_task(name)
    for problems in evaluation_sets(load_task(name), variant, [1, 4, 30], [4, 30], 8):
        for index in range(8 if problems.length > 1 else 1):
            assert task.length(problem_at(problems, "test", index)) == problems.length, problems.name


@trained
def test_training_problems_are_no_longer_than_the_maximum_and_reach_it(name, variant):
    task = load_task(name)
    sets = ProblemSet(load_task(name), TRAINING, 5, (("train", 300),), variant)
    lengths = {task.length(problem_at(sets, "train", index)) for index in range(300)}
    assert lengths <= {1, 2, 3, 4, 5}
    assert 5 in lengths


def test_an_unknown_task_is_named():
    with pytest.raises(UnknownTaskError, match="addition"):
        load_task("subtraction of cats")


@pytest.mark.parametrize(
    ("kind", "length", "sizes", "variant", "message"),
    [
        ("hard", 5, (("test", 1),), "local", "no problem set 'hard'.*all_carries"),
        (TEST, 5, (("test", 1),), "fast", "no variant 'fast'.*two_pointers"),
        (TEST, 0, (("test", 1),), "local", "lengths and sizes start at 1"),
        (TEST, 5, (("test", 0),), "local", "lengths and sizes start at 1"),
        (TEST, 5, (("train", 1),), "local", "has the splits test"),
        (TRAINING, 5, (("test", 1),), "local", "has the splits train, validation"),
    ],
)
def test_a_problem_set_that_cannot_be_is_named(kind, length, sizes, variant, message):
    with pytest.raises(InvalidProblemError, match=message):
        ProblemSet(load_task("addition"), kind, length, sizes, variant)


NUMBERS = st.integers(0, 10**30).map(str)


@given(first=NUMBERS, second=NUMBERS)
def test_addition_adds(addition, first, second):
    problem, total = f"{first}+{second}=", str(int(first) + int(second))
    for variant in addition.variants:
        expected = total[::-1] if variant == "reversed_answer" else total
        assert addition.solve(problem, variant).answer == expected


def test_every_regime_of_addition_has_the_same_problems(addition):
    def problems(variant):
        sets = some_sets("addition", variant)
        return [problem_at(s, split, index) for s in sets for split, size in s.sizes for index in range(size)]

    assert all(problems(variant) == problems("local") for variant in addition.variants)


def test_a_regime_without_interaction_calls_no_tool_or_one_once(addition):
    def calls(variant):
        kinds = [kind for kind, _ in written(addition.solve("95+17=", variant))]
        return [*map(kinds.count, (StepKind.CALL, StepKind.OBSERVATION))]

    steps = addition.solve("95+17=", "calculator").steps
    assert [(s.name, s.text) for s in steps if s.kind is StepKind.CALL] == [("calculate", "95+17")]

    assert calls("calculator") == [1 + len("95+17") + 1, len("112")]
    assert calls("no_cot") == calls("reversed_answer") == calls("plain_cot") == [0, 0]


def test_plain_cot_thinks_what_the_interactive_regime_is_shown(addition):
    interactive, alone = (written(addition.solve("95+17=", variant)) for variant in ("local", "plain_cot"))
    *thoughts, _, _, _, _ = alone  # the answer marker and 112 come last
    assert len(thoughts) == len(interactive)
    assert {kind for kind, _ in thoughts} == {StepKind.THOUGHT}
    renamed = {(shown, thought) for (_, shown), (_, thought) in zip(interactive, thoughts)}
    assert len(renamed) == len({a for a, _ in renamed}) == len({b for _, b in renamed})


def test_numbers_beyond_pythons_digit_limit_are_added(addition):
    digits = sys.get_int_max_str_digits() + 1_000
    problem = "9" * digits + "+1="
    assert addition.answer(problem, "local") == "1" + "0" * digits
    assert addition.solve(problem, "local").answer == "1" + "0" * digits


@pytest.mark.parametrize("problem", ["12a+5=", "1+2", "1++2=", "-1+2=", "1.5+2=", "01+2=", "1 +2=", "١+٢=", "+="])
def test_what_is_no_addition_problem_is_named(addition, problem):
    with pytest.raises(InvalidProblemError, match="98765\\+4321="):
        addition.solve(problem, "local")


def test_an_empty_problem_is_named(addition):
    for variant in addition.variants:
        with pytest.raises(EmptyProblemError, match="at least one cell"):
            addition.solve("", variant)


def digits_of(problem):
    first, second = problem.rstrip("=").split("+")
    return [int(d) for d in first], [int(d) for d in second]


@given(length=st.integers(1, 40), index=st.integers(0, 1_000))
def test_adversarial_sets_are_what_their_names_say(addition, length, index):
    def draw(name):
        return digits_of(addition.sample_adversarial(name, example_rng(name, length, index), length, index))

    assert all(a + b >= 10 for a, b in zip(*draw("all_carries"), strict=True))
    assert all(a + b <= 9 for a, b in zip(*draw("no_carry"), strict=True))
    for number in draw("zeros_inside"):
        assert number[0] > 0
        assert number[-1] > 0 or length == 1
    assert min(map(len, draw("unequal_lengths"))) <= max(1, length // 10)


def test_nines_plus_one_comes_first_and_never_twice(addition):
    rng = random.Random(0)
    drawn = [addition.sample_adversarial("nines_plus_power_of_ten", rng, 6, index) for index in range(12)]
    assert drawn[0] == "999999+1="
    assert len(set(drawn)) == 12
    assert all(addition.held_out(problem) for problem in drawn)
    with pytest.raises(TooFewProblemsError, match="12 problems"):
        addition.sample_adversarial("nines_plus_power_of_ten", rng, 6, 12)


def test_an_unknown_adversarial_set_is_named(addition):
    with pytest.raises(InvalidProblemError, match="no adversarial set"):
        addition.sample_adversarial("easy", random.Random(0), 5, 0)
