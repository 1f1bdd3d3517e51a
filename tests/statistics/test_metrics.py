"""Intervals hold the truth as often as they say, and resampled sums are those of resampled items."""

import math

import numpy as np
import pytest

from lm.statistics.metrics import SHARE, Metric, divide, intervals, mean_metric
from lm.statistics.resampling import sum_by_cluster


def values(items=400, seed=0, mean=0.0):
    return np.random.default_rng(seed).normal(mean, 1.0, items)


def squared(metric):
    """A figure of the same sums that is not a mean, so it is resampled."""
    return Metric(metric.statistics_NK, lambda sums: divide(sums[..., 0], sums[..., 1], math.nan) ** 2)


def ratio_metric(items=300, seed=0):
    random = np.random.default_rng(seed)
    weight_N = random.integers(1, 9, items)
    return mean_metric(random.normal(2.0, 1.0, items), weight_N)


def test_weights_weigh():
    assert mean_metric([1.0, 4.0], [2, 1]).value == 2.0
    assert mean_metric([1.0, 4.0], [False, True]).value == 4.0


def test_a_resample_is_the_metric_of_items_drawn_again():
    """Counts times statistics is what copying items would give."""
    metric = squared(ratio_metric(items=30))
    random = np.random.default_rng(5)
    drawn = [random.integers(30, size=30) for _ in range(20)]
    expected = [Metric(metric.statistics_NK[index_N], metric.of_sums).value for index_N in drawn]
    np.testing.assert_allclose(metric.resampled(20, seed=5), expected, rtol=1e-12)


def test_students_t_and_the_bootstrap_agree_on_a_mean_of_many_items():
    metric = ratio_metric()
    resampled = Metric(metric.statistics_NK, lambda sums: metric.of_sums(sums)).interval(4000)
    student = metric.interval()
    np.testing.assert_allclose(resampled.standard_error, student.standard_error, rtol=0.05)
    np.testing.assert_allclose([resampled.low, resampled.high], [student.low, student.high], atol=0.01)


@pytest.mark.parametrize(
    ("make", "truth"),
    [(lambda seed: mean_metric(values(60, seed, mean=3.0)), 3.0), (None, 9.0)],
    ids=["mean", "square"],
)
def test_intervals_hold_the_truth(make, truth):
    make = make or (lambda seed: squared(mean_metric(values(60, seed, mean=3.0))))
    found = [make(seed).interval(300, seed) for seed in range(300)]
    assert 0.90 < np.mean([interval.low <= truth <= interval.high for interval in found]) < 0.98


def test_clusters_are_resampled_whole():
    """Ten copies of each item, given as clusters, are worth one item; taken as independent, they pretend to be ten."""
    value_N = values(50)
    copies, cluster = np.repeat(value_N, 10), np.repeat(np.arange(50) * 7 - 3, 10)  # any numbers will do
    for kind in (lambda metric: metric, squared):
        alone, copied = kind(mean_metric(value_N)), kind(mean_metric(copies))
        one, many, pretended = alone.interval(), copied.interval(clusters_N=cluster), copied.interval()
        np.testing.assert_allclose([many.low, many.high], [one.low, one.high])
        assert pretended.high - pretended.low < 0.5 * (one.high - one.low)
        assert copied.in_clusters(cluster).value == pytest.approx(copied.value)


def test_sums_by_cluster_follow_the_numbers():
    np.testing.assert_array_equal(
        sum_by_cluster(np.array([[1, 10], [2, 20], [4, 40]]), np.array([9, 3, 9])), [[2, 20], [5, 50]]
    )
    with pytest.raises(ValueError, match="3 items"):
        sum_by_cluster(np.ones((3, 2)), np.zeros(4, int))


def test_metrics_resampled_together_equal_each_alone():
    shared = squared(ratio_metric())
    metrics = {
        "square": shared,
        "half": Metric(shared.statistics_NK, lambda sums: sums[..., 0] / 2),
        "z": mean_metric([1, 2]),
    }
    together = intervals(metrics, resamples=50, seed=3, level=0.8)
    assert together == {name: metric.interval(50, 3, 0.8) for name, metric in metrics.items()}


def test_draws_depend_only_on_the_seed():
    metric = squared(ratio_metric())
    assert metric.interval(seed=1) == metric.interval(seed=1) != metric.interval(seed=2)


def test_too_little_is_not_a_number():
    for metric in (mean_metric([1.0]), mean_metric([]), mean_metric([1.0, 2.0], [0, 0]), mean_metric([1.0, 2], [1, 0])):
        assert math.isnan(metric.interval().low)
        assert math.isnan(squared(metric).interval().standard_error) or metric.value == 1.0
    assert math.isnan(squared(mean_metric([1.0])).interval().low)
    assert math.isnan(mean_metric([1.0, 2.0]).interval(clusters_N=np.zeros(2)).low)


def test_a_figure_at_its_limit_is_not_certain():
    """All of 20 right: the interval is Wilson's, for means and resampled figures; of clusters it is wider."""
    perfect = mean_metric(np.ones(20), limits=SHARE)
    for metric in (perfect, Metric(perfect.statistics_NK, lambda sums: perfect.of_sums(sums), limits=SHARE)):
        found = metric.interval()
        assert (found.low, found.high) == pytest.approx((0.8389, 1.0), abs=1e-4)
        assert metric.interval(clusters_N=np.arange(20) // 4).low == pytest.approx(0.5655, abs=1e-4)
    percent = Metric(np.zeros((20, 1)), lambda sums: 0 * sums[..., 0], limits=(0.0, 100.0)).interval()
    assert (percent.low, percent.high) == pytest.approx((0, 16.11), abs=1e-2)


def test_intervals_end_at_the_limits_of_a_figure():
    right_N = np.append(np.ones(19), 0)
    assert mean_metric(right_N).interval().high > 1
    assert mean_metric(right_N, limits=SHARE).interval().high == 1


def test_division_by_zero_gives_what_is_asked():
    np.testing.assert_array_equal(divide(np.array([1.0, 2.0]), np.array([0.0, 4.0]), -1.0), [-1, 0.5])
