"""Means with standard errors: merging loses nothing, and the errors are honest for clustered data."""

import dataclasses
import math

import numpy as np

from lm.statistics.weighted_mean import WeightedMean


def ragged_clusters(seed=0, clusters=40):
    random = np.random.default_rng(seed)
    weight_B = random.integers(0, 9, clusters).astype(float)
    return weight_B * random.normal(2.0, 1.0, clusters), weight_B


def assert_close(one, two):
    np.testing.assert_allclose(dataclasses.astuple(one), dataclasses.astuple(two), rtol=1e-12)


def test_merged_parts_equal_the_whole():
    total_B, weight_B = ragged_clusters()
    whole = WeightedMean.from_clusters(total_B, weight_B)
    merged = WeightedMean()
    for part in np.split(np.arange(40), [1, 1, 17, 30]):
        merged += WeightedMean.from_clusters(total_B[part], weight_B[part])
    assert_close(merged, whole)
    np.testing.assert_allclose(whole.mean, total_B.sum() / weight_B.sum(), rtol=1e-12)
    assert whole.clusters == np.count_nonzero(weight_B) < 40


def test_unit_clusters_give_the_familiar_standard_error():
    values = np.random.default_rng(0).normal(5.0, 2.0, 30)
    for weight in (1.0, 7.0):
        mean = WeightedMean.from_clusters(weight * values, np.full(30, weight))
        np.testing.assert_allclose(mean.mean, values.mean(), rtol=1e-12)
        np.testing.assert_allclose(mean.standard_error, values.std(ddof=1) / math.sqrt(30), rtol=1e-9)


def test_clusters_without_weight_do_not_count():
    total_B, weight_B = ragged_clusters()
    padded = WeightedMean.from_clusters(np.append(total_B, [0, 0]), np.append(weight_B, [0, 0]))
    assert_close(padded, WeightedMean.from_clusters(total_B, weight_B))


def test_float32_sums_of_many_batches_lose_nothing():
    mean = WeightedMean()
    for _ in range(1000):
        mean += WeightedMean.from_clusters(np.full(8, 300.1, np.float32), np.full(8, 100, np.float32))
    np.testing.assert_allclose(mean.total, 8000 * float(np.float32(300.1)), rtol=1e-12)
    assert mean.standard_error < 1e-6


def test_too_little_data_is_not_a_number():
    assert math.isnan(WeightedMean().mean)
    assert math.isnan(WeightedMean().standard_error)
    one = WeightedMean.from_clusters([6.0, 0.0], [3.0, 0.0])
    assert one.mean == 2.0
    assert math.isnan(one.standard_error)
    assert not math.isnan((one + one).standard_error)


def test_intervals_cover_the_truth_for_clustered_data():
    """95% intervals must hold the truth 95% of the time; taking tokens as independent, they hold it far less often."""
    random, trials, clusters = np.random.default_rng(0), 1000, 60
    covered = covered_naively = 0
    for _ in range(trials):
        size_B = random.integers(5, 40, clusters)
        cluster_B = random.normal(0.0, 1.0, clusters)
        total_B = size_B * cluster_B + np.sqrt(size_B) * random.normal(0.0, 1.0, clusters)
        mean = WeightedMean.from_clusters(total_B, size_B)
        covered += abs(mean.mean) < 1.96 * mean.standard_error
        covered_naively += abs(mean.mean) < 1.96 * math.sqrt(2 / size_B.sum())
    # Six standard errors of the share are 0.04.
    assert 0.91 < covered / trials < 0.98
    assert covered_naively / trials < 0.7
