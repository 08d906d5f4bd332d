"""Locality is the smallest k for which the last k tokens determine the next."""

import pytest

from hf_toolssm.protocol.locality import locality, open_contexts
from hf_toolssm.protocol.trajectory import StepKind, Trajectory, canonical, step


def of_texts(problem, *texts, observed=()):
    """A trajectory of thoughts, with observations at the given places."""
    kinds = [StepKind.OBSERVATION if at in observed else StepKind.THOUGHT for at in range(len(texts))]
    steps = [step(kind, (text,)) for kind, text in zip(kinds, texts)]
    return Trajectory(canonical([step(StepKind.INPUT, tuple(problem)), *steps]))


def test_the_end_of_a_run_of_equal_tokens_needs_the_whole_run():
    # a a a then the end: only the count tells, so the whole context is needed
    assert locality([of_texts("x", "a", "a")]).k == 2


def test_the_last_token_suffices():
    assert locality([of_texts("x", "a", "b", "c")]).k == 1


def test_two_tokens_are_needed_to_tell_the_b_after_a_from_the_b_after_c():
    found = locality([of_texts("x", "a", "b", "d"), of_texts("x", "a", "b", "d"), of_texts("y", "c", "b", "e")])
    assert found.k == 2
    assert found.continuations == ("d", "e")


def test_an_observation_need_not_be_determined():
    assert locality([of_texts("x", "a", "0", observed=[1]), of_texts("x", "a", "1", observed=[1])]).k == 1


def test_equal_contexts_that_go_on_differently_have_no_k():
    assert locality([of_texts("x", "a"), of_texts("x", "b")]).k is None


def test_contexts_that_differ_only_in_their_beginning_have_a_k():
    assert locality([of_texts("x", "b", "c"), of_texts("xx", "b", "d")]).k == 3


def test_no_trajectory_is_an_error():
    with pytest.raises(ValueError, match="at least one"):
        locality([])


def test_the_local_algorithm_keeps_its_k_at_any_length_and_the_papers_does_not(addition):
    def k(variant, *problems):
        return locality([addition.solve(problem, variant) for problem in problems]).k

    short, long = ("123+987=", "5+86=", "999+1=", "40+60="), ("9" * 80 + "+1=", "12" * 40 + "+" + "89" * 40 + "=")
    assert k("local", *short, *long) <= 8
    assert k("two_pointers", *long) > 2 * 80
    assert k("two_pointers", *short) < k("two_pointers", *long)


def test_the_contexts_that_need_more_are_shown_with_what_follows():
    trajectories = [of_texts("x", "a", "b", "d"), of_texts("x", "a", "b", "d"), of_texts("y", "c", "b", "e")]
    (context,) = open_contexts(trajectories, 1)
    assert (context.tokens, context.continuations) == (("b",), {"d": 2, "e": 1})
    assert open_contexts(trajectories, 2) == []
