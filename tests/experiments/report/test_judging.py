"""The engine: intervals cover as they say, and verdicts lie where intervals do."""

import math

import numpy as np
import pytest
import scipy.stats

from experiments.report.claims import Verdict
from experiments.report.judging import (
    Check,
    Claim,
    Interval,
    Metric,
    Statistic,
    by_others,
    of_mean,
    of_median,
    of_statistic,
    together,
    verdict_of,
)

DRAWS = np.random.default_rng(0)


def coverage(interval, sample, truth, times=400):
    """How often intervals of samples hold the truth."""
    found = [interval(sample()) for _ in range(times)]
    return np.mean([one.low <= truth <= one.high for one in found])


def test_an_interval_of_a_mean_is_student_s():
    values = np.array([1.0, 2.0, 4.0])
    low, high = scipy.stats.ttest_1samp(values, 0).confidence_interval(0.95)
    assert of_mean(values) == pytest.approx((low, 7 / 3, high))
    assert of_mean(values[:1]) == (-math.inf, 1.0, math.inf)
    assert of_mean(np.zeros(3)) == (0, 0, 0)


def test_an_interval_of_a_median_has_the_ranks_of_the_sign_test():
    for size, rank in ((6, 1), (8, 1), (9, 2), (10, 2), (20, 6), (48, 17)):
        values = DRAWS.permutation(size).astype(float)
        # Ranks from 1 on, of values from 0 on.
        assert of_median(values) == (rank - 1, (size - 1) / 2, size - rank)
    assert of_median(np.arange(5.0)) == (-math.inf, 2, math.inf)


@pytest.mark.parametrize(
    ("interval", "sample", "truth"),
    [
        (of_mean, lambda: DRAWS.normal(1, 1, 8), 1),
        # A spread as skewed as this one is no matter of signs.
        (of_median, lambda: DRAWS.exponential(size=12), math.log(2)),
    ],
)
def test_intervals_cover_the_truth_as_often_as_they_say(interval, sample, truth):
    assert 0.92 < coverage(interval, sample, truth) <= 1


def test_a_statistic_is_judged_by_seeds_that_are_drawn_again():
    values = DRAWS.normal(size=40)
    found = of_statistic(Statistic(40, lambda seeds: float(values[seeds].mean())))
    # Of a mean, the interval is known.
    assert tuple(found) == pytest.approx(tuple(of_mean(values)), abs=0.06)
    few = of_statistic(Statistic(4, lambda seeds: float(values[seeds].mean())))
    assert (few.low, few.high) == (-math.inf, math.inf)
    again = of_statistic(Statistic(40, lambda seeds: float(values[seeds].mean())))
    assert again == found


@pytest.mark.parametrize(
    ("low", "high", "verdict"),
    [
        (0.1, 0.5, Verdict.REPRODUCED),
        (-0.5, -0.1, Verdict.NOT_REPRODUCED),
        (-0.1, 0.5, Verdict.INCONCLUSIVE),
        # Exactly none is not better.
        (0.0, 0.0, Verdict.NOT_REPRODUCED),
        (0.5, 1.1, Verdict.INCONCLUSIVE),
        (1.1, 1.2, Verdict.NOT_REPRODUCED),
    ],
)
def test_a_verdict_is_where_the_interval_lies(low, high, verdict):
    assert verdict_of(Interval(low, (low + high) / 2, high), 0.0, 1.0) == verdict


def test_all_tests_of_a_claim_have_to_hold():
    yes, no, maybe, open_ = (
        Verdict.REPRODUCED,
        Verdict.NOT_REPRODUCED,
        Verdict.INCONCLUSIVE,
        Verdict.NOT_TESTED,
    )
    assert together([yes, yes]) == yes
    assert together([yes, maybe]) == maybe
    assert together([maybe, no, yes]) == no
    # What was not run of several decides nothing.
    assert together([open_, yes]) == yes and together([open_]) == open_


def test_a_setting_is_chosen_by_the_other_seeds():
    # At the second setting the first seed alone is best.
    values = np.array([[0.3, 0.0], [0.3, 0.9], [0.3, 0.9]])
    assert by_others(values).tolist() == [0.3, 0.3, 0.3]
    chosen_by = np.array([[0.1, 0.2], [0.3, 0.1]])
    assert by_others(chosen_by).tolist() == [0.2, 0.3]
    # What is judged may be of other data than what chooses.
    assert by_others(chosen_by, np.array([[5.0, 6.0], [7.0, 8.0]])).tolist() == [6, 7]
    # Two axes of settings are one.
    grid = DRAWS.normal(size=(5, 3, 4))
    assert by_others(grid).tolist() == by_others(grid.reshape(5, 12)).tolist()


def errors(stored, arm):
    return None if stored[arm] is None else np.array(stored[arm])


ERROR = Metric("test error", errors)
NEAR = [0.101, 0.2, 0.3, 0.399]


@pytest.mark.parametrize(
    ("ours", "low", "verdict"),
    [
        ([0.09, 0.19, 0.29, 0.389], 0.0, "reproduced"),
        (NEAR, 0.0, "inconclusive"),
        ([0.111, 0.21, 0.31, 0.41], 0.0, "not reproduced"),
        # On par: not worse by a point or more.
        (NEAR, -1.0, "reproduced"),
        ([0.12, 0.22, 0.32, 0.421], -1.0, "not reproduced"),
    ],
)
def test_arms_are_compared_seed_by_seed(ours, low, verdict):
    stored = {"ours": ours, "theirs": [0.1, 0.2, 0.3, 0.4]}
    claim = Claim("Ours is better.", (Check(ERROR, "ours", "theirs", low),))
    found = claim.judge(stored)
    assert found.verdict == verdict
    assert found.ours.startswith(f"test error: ours {np.mean(ours):.2%}, theirs 25.00%")
    assert found.ours.endswith("n = 4 paired seeds")


def test_the_sentence_has_difference_and_interval():
    stored = {"ours": [0.08, 0.19], "theirs": [0.1, 0.2]}
    test = Check(ERROR, "ours", "theirs")
    words = "test error: ours 13.50%, theirs 15.00%; ahead by +1.50 points"
    assert test.judge(stored)[1].startswith(f"{words} (95%: -4.85 to 7.85), ")
    assert test.in_words() == "test error lower than theirs's"
    one = {"ours": [0.08], "theirs": [0.1]}
    assert "(no interval), n = 1 paired" in test.judge(one)[1]


def test_more_may_be_better():
    stored = {"ours": [0.9, 0.91, 0.92], "theirs": [0.8, 0.811, 0.82]}
    accuracy = Metric("accuracy", errors, "higher", less_is_better=False)
    assert Check(accuracy, "ours", "theirs").judge(stored)[0] == "reproduced"
    assert Check(ERROR, "ours", "theirs").judge(stored)[0] == "not reproduced"


def test_one_outlier_does_not_decide_what_is_skewed():
    stored = {"ours": [0.1] * 8, "theirs": [0.11] * 7 + [0.9]}
    signs = Metric("test error", errors, skewed=True)
    assert Check(ERROR, "ours", "theirs").judge(stored)[0] == "inconclusive"
    assert Check(signs, "ours", "theirs").judge(stored)[0] == "reproduced"


def test_what_is_not_there_is_not_judged():
    claim = Claim("It is.", (Check(ERROR, "ours", "theirs"),), lambda _: "a GPU")
    assert claim.judge(None)[1:] == (Verdict.NOT_TESTED, "")
    assert claim.judge({})[1:] == (Verdict.NOT_TESTED, "a GPU")
    exact = Metric("rate", lambda stored, arm: 0.95)
    assert Check(exact, "ours", low=0.9).judge({}) == (
        Verdict.REPRODUCED,
        "rate: ours 95.00%, n = 1 seeds",
    )
    missing = {"ours": [0.1], "theirs": None}
    assert Claim("It is.", claim.tests).judge(missing).verdict == "not tested here"
