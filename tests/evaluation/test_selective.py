"""Scores that tell right answers from wrong ones, and thresholds that keep a promise."""

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from hf_toolssm.evaluation.selective import Promise, Questions, auroc, calibrate, p_value

SCORED = st.lists(st.tuples(st.integers(0, 5), st.booleans()), min_size=1, max_size=40)


@given(SCORED)
def test_auroc_is_the_share_of_pairs_that_a_score_orders_rightly(scored):
    right = [score for score, is_right in scored if is_right]
    wrong = [score for score, is_right in scored if not is_right]
    found = auroc(*zip(*scored))
    if not right or not wrong:
        assert found is None
    else:
        wins = sum((r > w) + 0.5 * (r == w) for r in right for w in wrong)
        assert found == pytest.approx(wins / (len(right) * len(wrong)))


@pytest.mark.parametrize("scores", [[1.0], [1.0, float("nan")], [1.0, float("inf")]])
def test_a_score_that_is_none_is_refused(scores):
    with pytest.raises(ValueError, match="a finite number for each"):
        auroc(scores, [True, False])


@pytest.mark.parametrize("spread", [0.5, 0.05])
def test_a_risk_just_above_the_bound_is_rejected_no_more_often_than_delta(spread):
    """A true hypothesis has a p-value below delta in at most delta of the draws, and a small risk a small one."""
    rng, alpha, delta, draws = np.random.default_rng(0), 0.1, 0.2, 1_500
    around = rng.beta(alpha / spread, (1 - alpha) / spread, (draws, 60))  # losses with a mean of alpha
    assert around.mean() == pytest.approx(alpha, abs=0.01)
    rejected = np.mean([p_value(losses.tolist(), alpha, delta) <= delta for losses in around])
    assert rejected <= delta + 2 * math.sqrt(delta * (1 - delta) / draws)
    assert p_value([0.0] * 60, alpha, delta) < 0.01
    assert p_value([alpha + 0.01] * 60, alpha, delta) == 1


def test_of_losses_that_differ_little_the_p_value_is_far_below_that_of_coins():
    coins, means = [1.0, *[0.0] * 19] * 5, [0.05] * 100
    assert sum(coins) == pytest.approx(sum(means))
    assert p_value(means, 0.1, 0.1) < 1e-2 < p_value(coins, 0.1, 0.1)


def drawn(rng, count, questions=10, tool=1.0):
    """Sessions whose state is right as often as its score says."""
    sessions = []
    for _ in range(count):
        scores = rng.random(questions)
        sessions.append(Questions(8, scores, rng.random(questions) < scores, rng.random(questions) < tool))
    return sessions


THRESHOLDS = [at / 50 for at in range(51)]


def test_a_promise_is_broken_no_more_often_than_it_says():
    rng, alpha, delta, broken = np.random.default_rng(1), 0.1, 0.1, 0
    for _ in range(200):
        promise = calibrate(drawn(rng, 100), THRESHOLDS, alpha, delta)
        lowest = min(promise.threshold, 1)
        # Of the scores above it, which are uniform, 1 - score are wrong.
        broken += (1 - lowest) ** 2 / 2 > alpha
    assert broken <= 200 * delta + 2 * math.sqrt(200 * delta * (1 - delta))


def test_a_lower_error_asks_more_and_more_confidence_too():
    sessions = drawn(np.random.default_rng(2), 300)

    def threshold(alpha, delta):
        return calibrate(sessions, THRESHOLDS, alpha, delta).threshold

    assert threshold(0.02, 0.1) >= threshold(0.1, 0.1) >= threshold(0.3, 0.1)
    assert threshold(0.1, 0.001) >= threshold(0.1, 0.2)


def test_nothing_is_promised_where_the_tool_itself_is_wrong_too_often_or_sessions_are_too_few():
    rng = np.random.default_rng(3)
    assert calibrate(drawn(rng, 300, tool=0.5), THRESHOLDS, 0.1, 0.1) is None
    assert calibrate(drawn(rng, 5), THRESHOLDS, 0.05, 0.1) is None


def test_a_promise_covers_the_mixture_of_loads_that_calibrated_it_alone():
    sessions = [
        Questions(load, np.ones(4), np.ones(4, bool), np.ones(4, bool)) for load in (8, 16, 64) for _ in range(60)
    ]
    promise = calibrate(sessions, THRESHOLDS, 0.05, 0.1)
    third = pytest.approx(1 / 3)
    assert promise == Promise(0.0, 0.05, 0.1, 180, ((8, third), (16, third), (64, third)))
    assert promise.covers([8, 16, 64] * 5)
    assert not any(map(promise.covers, ([8], [16], [32], [8, 16], [8, 16, 32], [8, 16, 64, 64, 64, 64], [])))


def test_sessions_and_thresholds_that_are_none_are_refused():
    right = np.ones(2, bool)
    for scores in (np.ones(3), np.array([1, np.nan]), np.array([])):
        with pytest.raises(ValueError, match="a finite score and two verdicts"):
            Questions(8, scores, right, right)
    with pytest.raises(ValueError, match="no number"):
        calibrate([Questions(8, np.ones(2), right, right)], [float("nan")], 0.1, 0.1)


@pytest.mark.parametrize(
    ("alpha", "delta", "count"), [(0, 0.1, 1), (0.1, 1, 1), (0.1, 0.1, 0), (float("nan"), 0.1, 1)]
)
def test_what_is_no_promise_is_refused(alpha, delta, count):
    with pytest.raises(ValueError, match="between 0 and 1"):
        calibrate(drawn(np.random.default_rng(4), count), THRESHOLDS, alpha, delta)
