"""The string-matching learner is exact once it has seen every pair of state and symbol, and not before."""

import pytest

from dataset_builders.catalog import load_task
from dataset_builders.problem_sets import TEST, TRAINING, ProblemSet, ReferenceTrajectories
from dataset_builders.task import task_tool
from hf_toolssm.evaluation.string_matching import StringMatchingLearner, evaluate_string_matching


def measured(name, k, trained, length=60, variant="tape"):
    tool = task_tool(load_task(name), variant)
    references = ReferenceTrajectories(ProblemSet(load_task(name), TEST, length, (("test", 5),), variant), "test")
    return evaluate_string_matching(
        StringMatchingLearner(k).fit(trained), tool, f"length_{length}", length, references
    )


def rows(name, count, variant="tape"):
    return ReferenceTrajectories(ProblemSet(load_task(name), TRAINING, 8, (("train", count),), variant), "train")


@pytest.mark.parametrize("name", ["palindrome", "binary_addition", "copy"])
def test_five_tokens_and_every_pair_are_enough_at_any_length(name):
    found = measured(name, 5, rows(name, 300))
    assert found.answer_accuracy == found.trajectory_accuracy == 1.0
    assert found.mode == "free-running"


def test_fewer_tokens_than_k_are_not_enough():
    assert measured("palindrome", 3, rows("palindrome", 300)).trajectory_accuracy == 0.0


def test_a_pair_that_was_never_seen_is_guessed_wrong():
    task = load_task("binary_increment")
    found = measured("binary_increment", 5, [task.solve("1010", "tape")])  # the carry has met no 1
    assert found.trajectory_accuracy < 1.0
    assert found.first_error is not None


def test_it_learns_the_pointer_memory_as_well():
    trained = ReferenceTrajectories(
        ProblemSet(load_task("addition"), TRAINING, 5, (("train", 3_000),), "local"), "train"
    )
    assert measured("addition", 7, trained, 100, "local").trajectory_accuracy == 1.0


def test_a_learner_that_has_seen_nothing_says_so():
    with pytest.raises(ValueError, match="call fit first"):
        StringMatchingLearner(5).choose(["a"])
    with pytest.raises(ValueError, match="at least 1"):
        StringMatchingLearner(0)
