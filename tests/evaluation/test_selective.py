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


def binomial_at_most(k, n, p):
    return sum(math.comb(n, at) * p**at * (1 - p) ** (n - at) for at in range(k + 1))


@pytest.mark.parametrize(("count", "alpha"), [(20, 0.1), (200, 0.05), (50, 0.5)])
def test_p_values_are_the_smaller_of_the_bounds_of_hoeffding_and_bentkus(count, alpha):
    for wrong in range(int(count * alpha)):
        risk = wrong / count
        bentkus = math.e * binomial_at_most(wrong, count, alpha)
        tilt = risk * math.log(risk / alpha) if risk else 0
        hoeffding = math.exp(-count * (tilt + (1 - risk) * math.log((1 - risk) / (1 - alpha))))
        assert p_value(risk, count, alpha) == pytest.approx(min(1, bentkus, hoeffding))
    assert p_value(alpha, count, alpha) == p_value(1, count, alpha) == 1


def test_a_risk_just_above_the_bound_is_rejected_no_more_often_than_delta():
    """The p-value of a true hypothesis lies below delta in at most delta of the draws."""
    rng, alpha, delta = np.random.default_rng(0), 0.1, 0.2
    means = rng.binomial(60, alpha, 4_000) / 60
    assert np.mean([p_value(float(mean), 60, alpha) <= delta for mean in means]) <= delta


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


def test_a_promise_covers_the_loads_that_calibrated_it_alone():
    sessions = [
        Questions(load, np.ones(4), np.ones(4, bool), np.ones(4, bool)) for load in (8, 16, 64) for _ in range(60)
    ]
    promise = calibrate(sessions, THRESHOLDS, 0.05, 0.1)
    assert promise == Promise(0.0, 0.05, 0.1, 180, (8, 64))
    assert [promise.covers(load) for load in (4, 8, 32, 64, 128)] == [False, True, True, True, False]


@pytest.mark.parametrize(
    ("alpha", "delta", "count"), [(0, 0.1, 1), (0.1, 1, 1), (0.1, 0.1, 0), (float("nan"), 0.1, 1)]
)
def test_what_is_no_promise_is_refused(alpha, delta, count):
    with pytest.raises(ValueError, match="between 0 and 1"):
        calibrate(drawn(np.random.default_rng(4), count), THRESHOLDS, alpha, delta)
