"""Paired tests: exact where they can be, of the right size where nothing differs, and certain of nothing."""

import itertools
import math

import numpy as np
import pytest
from scipy import stats

from lm.calibration import errors
from lm.calibration.noise_floor import totals_of_sums
from lm.errors import UserError
from lm.evaluation.classification import classification_metrics
from lm.statistics.comparisons import Difference, paired_difference, paired_mean_difference, swap_p_value
from lm.statistics.metrics import Metric, mean_metric

N = 37
ONE = np.random.default_rng(5).uniform(0.2, 1, size=N)
OTHER = np.random.default_rng(6).uniform(0.2, 1, size=N)
CLUSTERS = 10 * np.random.default_rng(7).integers(20, size=N) - 3  # any numbers will do


def ends(difference: Difference) -> tuple[float, float]:
    return difference.low, difference.high


def squared(values_N) -> Metric:
    """A figure that is not a mean."""
    metric = mean_metric(values_N)
    return Metric(metric.statistics_NK, lambda sums: metric.of_sums(sums) ** 2)


def ece(confidence_N, correct_N, bins=10) -> Metric:
    of_bin_NM = np.eye(bins)[np.minimum((confidence_N * bins).astype(int), bins - 1)]
    columns = [of_bin_NM * each_N[:, None] for each_N in (np.ones_like(confidence_N), correct_N, confidence_N)]
    return Metric(np.concatenate(columns, axis=1), lambda sums: errors.ece(totals_of_sums(sums)), "lower")


# --- means ---


def test_means_are_compared_by_students_t():
    found = paired_mean_difference(ONE, OTHER)
    expected = stats.ttest_rel(OTHER, ONE)
    assert found.value == pytest.approx(OTHER.mean() - ONE.mean())
    assert found.p == pytest.approx(expected.pvalue)
    assert ends(found) == pytest.approx(tuple(expected.confidence_interval()))
    assert paired_difference(mean_metric(ONE), mean_metric(OTHER)) == found


def test_copies_in_a_cluster_are_not_evidence():
    copied = [np.repeat(each, 9) for each in (ONE, OTHER)]
    clusters = np.repeat(np.arange(N), 9)
    assert paired_mean_difference(*copied, clusters).p == pytest.approx(paired_mean_difference(ONE, OTHER).p)
    assert paired_mean_difference(*copied).p < paired_mean_difference(ONE, OTHER).p
    swapped = [
        paired_difference(*map(squared, each), clusters_N=of) for each, of in ((copied, clusters), ((ONE, OTHER), None))
    ]
    assert swapped[0].p == swapped[1].p


def test_equal_changes_are_not_certain():
    """Of the 2^G ways to swap G clusters, two give as much as G changes of the same size."""
    assert paired_mean_difference(np.zeros(3), np.full(3, 0.1)).p == 0.25
    assert paired_mean_difference(ONE, ONE + 0.1).p == 2.0 ** (1 - N)
    of_three = paired_mean_difference(ONE, ONE + 0.1, np.arange(N) // 13)
    assert of_three.p == 0.25
    assert math.isnan(of_three.low)
    assert 0 < paired_mean_difference(np.zeros(5000), np.ones(5000)).p < 1e-300


# --- everything else ---


def test_few_clusters_give_the_exact_p_value():
    clusters = np.arange(N) % 7
    found = paired_difference(squared(ONE), squared(OTHER), clusters_N=clusters)
    distances = []
    for way in itertools.product([False, True], repeat=7):
        swapped = np.array(way)[clusters]
        one, other = np.where(swapped, OTHER, ONE), np.where(swapped, ONE, OTHER)
        distances.append(abs(other.mean() ** 2 - one.mean() ** 2))
    assert found.p == pytest.approx(np.mean(np.array(distances) >= distances[0] - 1e-12))
    assert 0.05 < found.p < 1


def test_many_clusters_give_nearly_the_p_value_of_students_t():
    found = paired_difference(squared(ONE), squared(OTHER), resamples=4000)
    assert found.p == pytest.approx(paired_mean_difference(ONE, OTHER).p, abs=0.03)
    assert found.low < found.value < found.high


def test_three_clusters_that_changed_alike_give_a_quarter():
    """Ties are ties, whatever the rounding: of four ways to swap, the observed one is the farthest."""
    for seed in range(20):
        one_N = np.random.default_rng(seed).uniform(size=30)
        found = paired_difference(squared(one_N), squared(one_N + 0.1), clusters_N=np.arange(30) // 10)
        assert found.p == 0.25
    correct_N = np.ones(30)
    found = paired_difference(
        ece(np.full(30, 0.31), correct_N), ece(np.full(30, 0.77), correct_N), clusters_N=np.arange(30) // 10
    )
    assert found.p == 0.25


def test_p_is_never_0_and_counts_ties():
    assert swap_p_value(np.array([3.0, 1, -3, 2])) == 0.5
    assert swap_p_value(np.append(0.1 + 0.2, np.full(9, -0.3))) == 1  # rounding is not a difference
    assert swap_p_value(np.append(1.0, np.zeros(999))) == 0.001
    assert swap_p_value(np.array([1.0, np.nan, 0, 0])) == pytest.approx(1 / 3)
    assert math.isnan(swap_p_value(np.array([np.nan, 1.0])))


@pytest.mark.parametrize("kind", [mean_metric, squared])
def test_nothing_differs_from_itself(kind):
    for clusters in (None, CLUSTERS, np.arange(N) % 3):
        found = paired_difference(kind(ONE), kind(ONE), clusters_N=clusters)
        assert (found.value, found.low, found.high, found.p) == (0, 0, 0, 1)


@pytest.mark.parametrize("kind", [mean_metric, squared])
def test_differences_mirror(kind):
    found, mirrored = paired_difference(kind(ONE), kind(OTHER)), paired_difference(kind(OTHER), kind(ONE))
    assert (mirrored.value, *ends(mirrored)) == pytest.approx((-found.value, -found.high, -found.low))
    assert mirrored.p == pytest.approx(found.p)


@pytest.mark.parametrize("kind", [mean_metric, squared])
def test_fewer_than_two_clusters_give_neither_interval_nor_p(kind):
    for one, other, clusters in ((ONE, OTHER, np.zeros(N)), (ONE[:1], OTHER[:1], None), (ONE, OTHER * np.nan, None)):
        found = paired_difference(kind(one), kind(other), clusters_N=clusters)
        assert np.isnan([found.low, found.high, found.p]).all()
    assert paired_difference(kind(np.ones(1)), kind(np.zeros(1))).value == -1


def test_items_must_be_the_same():
    with pytest.raises(UserError, match=r"37.*36"):
        paired_difference(mean_metric(ONE), mean_metric(ONE[1:]))


# --- size ---


def mean_pair(rng, clusters_N, shared_N, own):
    return [mean_metric(np.exp(0.8 * (shared_N + each_N))) for each_N in own]


def ece_pair(rng, clusters_N, shared_N, own):
    right_N = (rng.random(clusters_N.size) < 1 / (1 + np.exp(-1 - np.abs(shared_N)))).astype(float)
    return [ece(1 / (1 + np.exp(-np.abs(shared_N + each_N))), right_N) for each_N in own]


def f1_pair(rng, clusters_N, shared_N, own):
    labels_N = (shared_N + rng.normal(size=clusters_N.size) > 0).astype(int)
    predicted = [(shared_N + each_N > 0.3).astype(int) for each_N in own]
    return [classification_metrics(labels_N, each_N, ("no", "yes"))["f1_macro"] for each_N in predicted]


@pytest.mark.parametrize("groups", [8, *(pytest.param(many, marks=pytest.mark.slow) for many in (12, 30, 100))])
@pytest.mark.parametrize("pair", [mean_pair, ece_pair, f1_pair])
def test_where_nothing_differs_a_twentieth_is_rejected(pair, groups):
    """Two systems that are as good, whose items share much within clusters of 8 to 24."""
    rng, rejected = np.random.default_rng(groups), []
    for seed in range(400):
        clusters_N = np.repeat(np.arange(groups), rng.integers(8, 25, size=groups))
        shared_N = rng.normal(0, 0.5, groups)[clusters_N] + rng.normal(size=clusters_N.size)
        own = [rng.normal(0, 0.5, groups)[clusters_N] + rng.normal(0, 0.5, clusters_N.size) for _ in range(2)]
        one, other = pair(rng, clusters_N, shared_N, own)
        rejected.append(paired_difference(one, other, 99, seed, clusters_N=clusters_N).p <= 0.05)
    assert 0.03 <= np.mean(rejected) <= 0.07
