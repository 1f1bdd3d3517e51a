"""Intervals hold the truth as often as they say, and resampled sums are those of resampled items."""

import math

import numpy as np
import pytest

from lm.errors import UserError
from lm.evaluation.bootstrap import (
    Metric,
    divide,
    intervals,
    mean_metric,
    paired_difference,
    seed_summary,
    sum_by_cluster,
)


def values(items=400, seed=0, mean=0.0):
    return np.random.default_rng(seed).normal(mean, 1.0, items)


def ratio_metric(items=300, seed=0):
    random = np.random.default_rng(seed)
    weight_N = random.integers(1, 9, items)
    return mean_metric(random.normal(2.0, 1.0, items), weight_N)


def test_a_mean_has_the_familiar_standard_error_and_interval():
    value_N = values()
    metric = mean_metric(value_N)
    error = value_N.std(ddof=1) / math.sqrt(400)
    np.testing.assert_allclose(metric.value, value_N.mean())
    np.testing.assert_allclose(metric.standard_error, error, rtol=1e-9)
    interval = metric.interval(resamples=4000)
    np.testing.assert_allclose(
        [interval.low, interval.high], metric.value + np.array([-1.96, 1.96]) * error, atol=0.008
    )
    narrow = metric.interval(resamples=4000, level=0.5)
    np.testing.assert_allclose(narrow.high - narrow.low, 2 * 0.674 * error, rtol=0.08)


def test_weights_weigh():
    assert mean_metric([1.0, 4.0], [2, 1]).value == 2.0
    assert mean_metric([1.0, 4.0], [False, True]).value == 4.0


def test_both_standard_errors_of_a_ratio_agree():
    metric = ratio_metric()
    np.testing.assert_allclose(metric.resampled(4000).std(), metric.standard_error, rtol=0.06)


def test_a_resample_is_the_metric_of_items_drawn_again(monkeypatch):
    """With one item per resample's chunk and with many: counts times statistics is what copying items would give."""
    metric = ratio_metric(items=30)
    random = np.random.default_rng(5)
    drawn = [random.integers(30, size=30) for _ in range(20)]
    expected = [Metric(metric.statistics_NK[index_N], metric.of_sums).value for index_N in drawn]
    np.testing.assert_allclose(metric.resampled(20, seed=5), expected, rtol=1e-12)
    monkeypatch.setattr("lm.evaluation.bootstrap._CHUNK_NUMBERS", 7 * 30)
    np.testing.assert_allclose(metric.resampled(20, seed=5), expected, rtol=1e-12)


def test_intervals_hold_the_truth():
    trials, held = 300, 0
    for seed in range(trials):
        interval = mean_metric(values(60, seed, mean=3.0)).interval(300, seed)
        held += interval.low <= 3.0 <= interval.high
    assert 0.90 < held / trials < 0.98


def test_clusters_are_resampled_whole():
    """Ten copies of each item, given as clusters, are worth one item; taken as independent, they pretend to be ten."""
    value_N = values(50)
    copies, cluster = np.repeat(value_N, 10), np.repeat(np.arange(50) * 7 - 3, 10)  # any numbers will do
    alone, copied = mean_metric(value_N), mean_metric(copies)
    one, many, pretended = alone.interval(), copied.interval(clusters_N=cluster), copied.interval()
    np.testing.assert_allclose([many.low, many.high], [one.low, one.high])
    assert pretended.high - pretended.low < 0.5 * (one.high - one.low)
    np.testing.assert_allclose(copied.in_clusters(cluster).standard_error, alone.standard_error)
    assert copied.in_clusters(cluster).value == pytest.approx(copied.value)


def test_sums_by_cluster_follow_the_numbers():
    np.testing.assert_array_equal(
        sum_by_cluster(np.array([[1, 10], [2, 20], [4, 40]]), np.array([9, 3, 9])), [[2, 20], [5, 50]]
    )
    with pytest.raises(ValueError, match="3 items"):
        sum_by_cluster(np.ones((3, 2)), np.zeros(4, int))


def test_metrics_resampled_together_equal_each_alone():
    shared = ratio_metric()
    metrics = {
        "mean": shared,
        "half": Metric(shared.statistics_NK, lambda sums: sums[..., 0] / 2),
        "z": mean_metric([1, 2]),
    }
    together = intervals(metrics, resamples=50, seed=3, level=0.8)
    assert together == {name: metric.interval(50, 3, 0.8) for name, metric in metrics.items()}


def test_draws_depend_on_the_seed_alone():
    metric = ratio_metric()
    assert metric.interval(seed=1) == metric.interval(seed=1) != metric.interval(seed=2)


def test_too_little_is_not_a_number():
    for metric in (mean_metric([1.0]), mean_metric([]), mean_metric([1.0, 2.0], [0, 0])):
        assert math.isnan(metric.standard_error)
        assert math.isnan(metric.interval().low)
    assert math.isnan(mean_metric([1.0, 2.0], [1, 0]).standard_error)
    assert mean_metric([1.0, 2.0], [1, 0]).interval().low == 1.0  # resamples without any weight don't count
    nothing = paired_difference(mean_metric([1.0]), mean_metric([2.0]))
    assert nothing.value == 1.0
    assert math.isnan(nothing.p)


def test_paired_differences_are_other_minus_one_on_the_same_draws():
    value_N = values()
    one, shifted = mean_metric(value_N), mean_metric(value_N + 0.01)
    difference = paired_difference(one, shifted)
    np.testing.assert_allclose([difference.value, difference.low, difference.high], 0.01)
    assert difference.p == pytest.approx(1 / 1001)
    same = paired_difference(one, one)
    assert (same.value, same.low, same.high, same.p) == (0, 0, 0, 1)
    with pytest.raises(UserError, match=r"400.*399"):
        paired_difference(one, mean_metric(value_N[1:]))


def test_paired_p_values_agree_with_the_normal_test():
    one_N, other_N = values(seed=0), values(seed=1)
    change_N = other_N + 0.1 - one_N
    difference = paired_difference(mean_metric(one_N), mean_metric(other_N + 0.1), resamples=4000)
    z = abs(change_N.mean()) / (change_N.std(ddof=1) / math.sqrt(400))
    assert difference.p == pytest.approx(math.erfc(z / math.sqrt(2)), abs=0.03)
    np.testing.assert_allclose(difference.value, change_N.mean())


def test_paired_comparisons_with_clusters_see_fewer_items():
    one_N, other_N = values(30, 0), values(30, 1) + 0.3
    cluster = np.repeat(np.arange(30), 20)
    one, other = (mean_metric(np.repeat(each_N, 20)) for each_N in (one_N, other_N))
    clustered, alone = (
        paired_difference(one, other, clusters_N=cluster),
        paired_difference(mean_metric(one_N), mean_metric(other_N)),
    )
    assert clustered.p == alone.p
    assert paired_difference(one, other).p < clustered.p


def test_seed_summary():
    summary = seed_summary([1.0, 2.0, 3.0, 6.0])
    assert (summary.mean, summary.seeds) == (3.0, 4)
    np.testing.assert_allclose(summary.spread, math.sqrt(14 / 3))
    np.testing.assert_allclose(summary.standard_error, math.sqrt(14 / 12))
    assert math.isnan(seed_summary([5.0]).spread)
    with pytest.raises(UserError, match="at least one"):
        seed_summary([])


def test_division_by_zero_gives_what_is_asked():
    np.testing.assert_array_equal(divide(np.array([1.0, 2.0]), np.array([0.0, 4.0]), -1.0), [-1, 0.5])
