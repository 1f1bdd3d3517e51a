"""Rank correlation: SciPy's values, ties, clusters and coverage."""

import math

import numpy as np
import pytest
from scipy import stats

from lm.statistics.correlation import spearman


def test_it_equals_scipys_with_ties():
    random = np.random.default_rng(0)
    one_N, other_N = random.integers(0, 5, 50), random.normal(size=50)
    found = spearman(one_N, other_N, resamples=50)
    assert found.value == pytest.approx(stats.spearmanr(one_N, other_N).statistic)
    assert found.interval.low < found.value < found.interval.high


def test_a_resample_is_the_correlation_of_repeated_items():
    random = np.random.default_rng(1)
    one_N, other_N = random.normal(size=20), random.integers(0, 3, 20)
    doubled = spearman(np.repeat(one_N, 2), np.repeat(other_N, 2), np.repeat(np.arange(20), 2), resamples=100)
    single = spearman(one_N, other_N, resamples=100)
    assert doubled.value == pytest.approx(single.value)
    assert doubled.interval.low == pytest.approx(single.interval.low)


def test_what_has_no_correlation_has_none():
    for one_N, other_N in (([], []), ([1.0], [2.0]), ([1.0, 1.0, 1.0], [1.0, 2.0, 3.0])):
        found = spearman(np.array(one_N), np.array(other_N), resamples=20)
        assert math.isnan(found.value)
        assert math.isnan(found.interval.low)
    with pytest.raises(ValueError, match="same"):
        spearman(np.zeros(2), np.zeros(3))


def test_the_interval_covers_the_true_correlation_in_most_cases():
    random = np.random.default_rng(2)
    inside = 0
    for seed in range(60):
        one_N = random.normal(size=40)
        other_N = random.normal(size=40)
        found = spearman(one_N, other_N, resamples=200, seed=seed)
        inside += found.interval.low <= 0 <= found.interval.high
    assert inside >= 50
