"""Intervals against their textbook forms."""

import numpy as np
import pytest
from scipy import stats

from lm.statistics.intervals import (
    bias_corrected_interval,
    mean_interval,
    ratio_interval,
    share_interval,
    wilson_interval,
)
from lm.statistics.weighted_mean import WeightedMean

N = 37
VALUES = np.random.default_rng(5).uniform(0.2, 1, size=N)


def ends(interval):
    return interval.low, interval.high


def test_bias_is_taken_off_once_and_not_added_again():
    """The resamples lie as far above the observed value as that lies above the truth."""
    resampled = np.random.default_rng(0).normal(0.3, 0.01, size=4000)
    interval = bias_corrected_interval(0.2, resampled)
    assert (interval.low + interval.high) / 2 == pytest.approx(0.1, abs=2e-3)
    assert interval.high - interval.low == pytest.approx(2 * 1.96 * 0.01, rel=0.06)
    assert interval.standard_error == pytest.approx(0.01, rel=0.05)


def test_without_values_there_is_no_interval():
    for observed, resampled in ((np.nan, np.arange(9.0)), (0.2, np.full(9, np.nan)), (0.2, np.array([0.2, np.nan]))):
        assert np.isnan(bias_corrected_interval(observed, resampled).low)
    some = np.array([0.1, np.nan, 0.2, 0.3])  # such as AUROCs of resamples that were all right
    assert bias_corrected_interval(0.2, some) == bias_corrected_interval(0.2, some[[0, 2, 3]])


def test_intervals_of_means_are_those_of_students_t():
    expected = stats.t.interval(0.95, N - 1, VALUES.mean(), stats.sem(VALUES))
    assert ends(mean_interval(VALUES)) == pytest.approx(expected)
    assert ends(mean_interval(VALUES, 3 * np.arange(N))) == pytest.approx(expected)  # clusters of one
    half = stats.t.interval(0.5, N - 1, VALUES.mean(), stats.sem(VALUES))
    assert ends(mean_interval(VALUES, level=0.5)) == pytest.approx(half)


def test_the_standard_error_is_that_of_weighted_means():
    rng = np.random.default_rng(0)
    total_G, weight_G = rng.normal(size=12), rng.integers(1, 9, size=12)
    expected = WeightedMean.from_clusters(total_G, weight_G).standard_error
    assert ratio_interval(total_G, weight_G).standard_error == pytest.approx(expected)
    far = ratio_interval(total_G + 1e7 * weight_G, weight_G)  # a large mean costs no digits
    assert far.standard_error == pytest.approx(expected, rel=1e-6)


def test_clusters_without_weight_do_not_count():
    assert ratio_interval([1.0, 2.0, 0.0], [1, 1, 0]) == ratio_interval([1.0, 2.0], [1, 1])


def test_copies_in_a_cluster_are_not_evidence():
    copied, clusters = np.repeat(VALUES, 9), np.repeat(np.arange(N), 9)
    one, nine = mean_interval(VALUES), mean_interval(copied, clusters)
    assert (*ends(nine), nine.standard_error) == pytest.approx((*ends(one), one.standard_error))


@pytest.mark.parametrize(("values", "clusters"), [([0.1, np.inf], None), ([0.1], None), ([0.1, 0.2], np.array([0, 0]))])
def test_means_without_an_error_have_no_interval(values, clusters):
    assert np.isnan(mean_interval(np.array(values), clusters).low)


def test_wilson_intervals_hold_the_share_and_stay_within_0_and_1():
    low, high = wilson_interval(np.array([0.0, 5, 10]), np.array([10.0, 10, 10]))
    expected = [stats.binomtest(k, 10).proportion_ci(method="wilson") for k in (0, 5, 10)]
    np.testing.assert_allclose(low, [interval.low for interval in expected], atol=1e-12)
    np.testing.assert_allclose(high, [interval.high for interval in expected], atol=1e-12)
    for n in (3.0, 7.0, 61.0):
        low, high = wilson_interval(np.array([0, n]), n)
        assert (low[0], high[1]) == (0, 1)


def test_an_accuracy_of_0_or_100_percent_is_not_certain():
    assert ends(share_interval(np.ones(30))) == pytest.approx(wilson_interval(30.0, 30.0))
    assert ends(share_interval(np.zeros(30))) == pytest.approx(wilson_interval(0.0, 30.0))
    assert ends(share_interval(np.ones(30), np.arange(30) // 10)) == pytest.approx(wilson_interval(3.0, 3.0))
    right = np.arange(30) < 20
    assert ends(share_interval(right)) == ends(mean_interval(right))
    assert np.isnan(share_interval(np.ones(30), np.zeros(30)).low)  # one cluster
