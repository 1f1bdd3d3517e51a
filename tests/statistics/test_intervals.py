"""Intervals against their textbook forms."""

import numpy as np
import pytest
from scipy import stats

from lm.statistics.intervals import (
    _most_likely_sizes,
    absolute_sum_interval,
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


# --- sums of absolute values ---


def drawn(gap_M, spread, resamples=20_000):
    return gap_M + spread * np.random.default_rng(0).normal(size=(resamples, len(gap_M)))


def test_far_from_0_the_interval_of_a_sum_of_absolute_values_is_that_of_a_sum():
    gap_M = np.array([3.0, -2.0, 4.0])
    interval = absolute_sum_interval(gap_M, drawn(gap_M, 0.1))
    reach = 1.96 * 0.1 * np.sqrt(3)
    np.testing.assert_allclose([interval.low, interval.high], [9 - reach, 9 + reach], atol=0.01)
    assert interval.standard_error == pytest.approx(0.1 * np.sqrt(3), rel=0.05)


def test_gaps_that_chance_explains_may_all_be_0():
    spread, gap_M = 0.1, 0.1 * np.sqrt(2 / np.pi) * np.array([1.0, -1] * 8)  # as large as errors are on average
    interval = absolute_sum_interval(gap_M, drawn(gap_M, spread))
    assert interval.low == 0
    # True gaps of one standard error make the estimates only 1.5 times as large as none do, two sigma of their sum.
    assert 1.4 < interval.high < 1.8
    assert absolute_sum_interval(2 * gap_M, drawn(2 * gap_M, spread)).low > 0


def test_without_spread_there_is_no_interval_of_a_sum_of_absolute_values():
    gap_M = np.array([0.1, 0.2])
    for resampled in (np.tile(gap_M, (9, 1)), np.full((9, 2), np.nan), gap_M[None] + 1):
        assert np.isnan(absolute_sum_interval(gap_M, resampled).low)


@pytest.mark.parametrize("total", [0.0, 0.3, 1.5, 4.0])
def test_the_most_likely_sizes_have_the_sum_and_no_closer_ones_do(total):
    random = np.random.default_rng(0)
    size_M, spread_M = random.uniform(size=6), random.uniform(0.1, 1, size=6)
    sizes_M = _most_likely_sizes(size_M, spread_M, total)
    assert sizes_M.min() >= 0
    assert sizes_M.sum() == pytest.approx(total)

    def distance(sizes_M):
        return ((sizes_M - size_M) ** 2 / spread_M).sum(axis=-1)

    others_K6 = random.dirichlet(np.full(6, 0.5), size=2000) * total
    nearby_K6 = sizes_M + 1e-3 * (others_K6 - sizes_M)
    assert distance(sizes_M) <= min(distance(others_K6).min(), distance(nearby_K6).min()) + 1e-9
