"""Noise floors, intervals and paired comparisons: on many simulated data sets, and against explicit copies."""

import numpy as np
import pytest
from scipy import stats

from lm.calibration import significance
from lm.calibration.binning import Binning, BinTotals
from lm.calibration.errors import BINNED_ERRORS, ece
from lm.calibration.significance import (
    Floor,
    Resampler,
    bias_corrected_interval,
    bin_features,
    error_interval,
    floor_of,
    mean_interval,
    null_totals,
    paired_difference,
    paired_mean_difference,
    totals_of_sums,
    wilson_interval,
)

BINS = Binning(10)
RANDOM = np.random.default_rng(0)


def totals_of(confidence_N, correct_N, weights=None):
    """Totals by numpy, with explicit copies where there are weights."""
    if weights is not None:
        confidence_N, correct_N = np.repeat(confidence_N, weights), np.repeat(correct_N, weights)
    bin_N = np.clip(np.ceil(np.float32(confidence_N) * np.float32(10)) - 1, 0, 9).astype(int)
    return BinTotals(*(np.bincount(bin_N, w, 10).astype(float) for w in (None, correct_N, confidence_N)))


# --- the floor ---


def test_null_totals_have_the_moments_of_calibrated_answers():
    confidence = RANDOM.uniform(0.3, 1, size=500)
    null = null_totals(confidence, None, BINS, resamples=4000, rng=np.random.default_rng(1))
    observed = totals_of(confidence, confidence)
    np.testing.assert_array_equal(null.count, np.tile(observed.count, (4000, 1)))
    np.testing.assert_allclose(null.confidence, np.tile(observed.confidence, (4000, 1)))
    variance = totals_of(confidence, confidence * (1 - confidence)).correct
    np.testing.assert_allclose(null.correct.mean(axis=0), observed.confidence, atol=5 * np.sqrt(variance.max() / 4000))
    np.testing.assert_allclose(null.correct.var(axis=0), variance, rtol=0.15)
    assert (null.correct == np.round(null.correct)).all()


def test_null_totals_of_clusters_flip_whole_clusters():
    clusters = np.array([0, 0, 1, 1, 1])
    confidence, correct = np.array([0.55, 0.95, 0.55, 0.95, 0.92]), np.array([1, 0, 1, 1, 0])
    null = null_totals(confidence, correct, BINS, resamples=200, rng=np.random.default_rng(1), clusters_N=clusters)
    gaps = (null.correct - null.confidence)[:, [5, 9]]
    first, second = np.array([0.45, -0.95]), np.array([0.45, 0.05 - 0.92])
    possible = [sign * first + other * second for sign in (-1, 1) for other in (-1, 1)]
    nearest = np.abs(gaps[:, None] - np.array(possible)).sum(axis=2).min(axis=1)
    np.testing.assert_allclose(nearest, 0, atol=1e-12)
    assert len(np.unique(np.round(gaps, 6), axis=0)) == 4


def test_a_floor_counts_what_is_at_least_as_large():
    found = floor_of(-0.3, np.array([0.1, -0.2, 0.3, 0.5, -0.4]))
    assert (found.mean, found.p) == pytest.approx((0.3, 4 / 6))
    assert found.high == pytest.approx(0.48)
    assert floor_of(9.0, np.zeros(99)).p == 0.01  # never 0
    assert floor_of(0.1 + 0.2, np.full(9, 0.3)).p == 1  # rounding is no difference


def rejections(data_sets, draw, *, clusters_N=None, resamples=199, names=("ece", "mce", "rms", "signed_gap")):
    """How often the test rejects calibration at the 5% level."""
    rejected = dict.fromkeys(names, 0)
    rng = np.random.default_rng(3)
    for _ in range(data_sets):
        confidence, correct = draw(rng)
        null = null_totals(confidence, correct, BINS, resamples=resamples, rng=rng, clusters_N=clusters_N)
        totals = totals_of(confidence, correct)
        for name in names:
            error = BINNED_ERRORS[name]
            rejected[name] += floor_of(float(error(totals)), error(null)).p <= 0.05
    return {name: count / data_sets for name, count in rejected.items()}


def calibrated(rng, items=150):
    confidence = rng.uniform(0.5, 1, size=items)
    return confidence, (rng.random(items) < confidence).astype(np.float64)


def test_the_test_of_calibration_rejects_calibrated_models_in_a_twentieth_of_cases():
    for name, share in rejections(1000, calibrated).items():
        assert 0.03 <= share <= 0.07, name


GROUPS, EACH = 40, 5
CLUSTERS = np.repeat(np.arange(GROUPS), EACH)


def calibrated_in_clusters(rng):
    """Answers of a cluster agree: one uniform number decides all of them, and their confidences are alike."""
    confidence = np.clip(np.repeat(rng.beta(5, 2, size=GROUPS), EACH) + rng.normal(0, 0.03, GROUPS * EACH), 0, 1)
    return confidence, (np.repeat(rng.random(GROUPS), EACH) < confidence).astype(np.float64)


def test_with_clusters_the_size_holds_and_without_them_it_would_not():
    with_clusters = rejections(1000, calibrated_in_clusters, clusters_N=CLUSTERS)
    without = rejections(300, calibrated_in_clusters)
    for name in with_clusters:
        assert with_clusters[name] <= 0.075, name
        assert without[name] > 0.15, name


def test_the_test_does_not_reject_more_where_some_bins_hold_a_single_item():
    """There the largest gap takes few values, so the test may only reject less."""

    def skewed(rng):
        confidence = rng.beta(5, 2, size=150)
        return confidence, (rng.random(150) < confidence).astype(np.float64)

    assert max(rejections(500, skewed).values()) <= 0.075


def test_over_confident_models_are_rejected():
    def over_confident(rng):
        confidence, _ = calibrated(rng, 300)
        return confidence, (rng.random(300) < confidence - 0.12).astype(np.float64)

    assert rejections(100, over_confident, names=("ece",))["ece"] > 0.8


# --- intervals ---


def coverage(draw, truth, data_sets=150, items=200):
    covered = 0
    for seed in range(data_sets):
        rng = np.random.default_rng(seed)
        confidence, correct = draw(rng, items)
        observed = float(ece(totals_of(confidence, correct)))
        floor = floor_of(observed, ece(null_totals(confidence, correct, BINS, resamples=200, rng=rng)))
        resampler = Resampler(items, resamples=200, seed=seed)
        resampled = ece(totals_of_sums(resampler.sums(bin_features(confidence, correct, BINS))))
        interval = error_interval(observed, resampled, floor)
        assert 0 <= interval.low <= interval.high
        covered += interval.low - 1e-12 <= truth <= interval.high
    return covered / data_sets


def test_intervals_cover_the_error_of_a_calibrated_model():
    assert coverage(calibrated, 0.0) >= 0.93


def test_intervals_cover_the_error_of_a_model_that_is_over_confident_by_a_constant():
    def draw(rng, items):
        confidence = rng.uniform(0.5, 1, size=items)
        return confidence, (rng.random(items) < confidence - 0.15).astype(np.float64)

    assert coverage(draw, 0.15) >= 0.85


def test_bias_is_taken_off_once_and_not_added_again():
    """The resamples lie as far above the observed value as that lies above the truth."""
    resampled = np.random.default_rng(0).normal(0.3, 0.01, size=4000)
    interval = bias_corrected_interval(0.2, resampled)
    assert (interval.low + interval.high) / 2 == pytest.approx(0.1, abs=2e-3)
    assert interval.high - interval.low == pytest.approx(2 * 1.96 * 0.01, rel=0.06)
    assert interval.standard_error == pytest.approx(0.01, rel=0.05)


def test_without_numbers_there_is_no_interval():
    for observed, resampled in ((np.nan, np.arange(9.0)), (0.2, np.full(9, np.nan)), (0.2, np.array([0.2, np.nan]))):
        assert np.isnan(bias_corrected_interval(observed, resampled).low)
    some = np.array([0.1, np.nan, 0.2, 0.3])  # such as AUROCs of resamples that were all right
    assert bias_corrected_interval(0.2, some) == bias_corrected_interval(0.2, some[[0, 2, 3]])


def test_an_error_that_the_test_does_not_find_may_be_0():
    resampled = np.linspace(0.1, 0.14, 99)
    assert error_interval(0.1, resampled, Floor(0.05, 0.09, 0.3)).low == 0
    assert error_interval(0.1, resampled, Floor(0.05, 0.09, 0.01)).low == pytest.approx(0.2 - 0.139, abs=1e-3)
    # And an error far beyond its floor is not said to be next to nothing.
    assert error_interval(0.1, resampled + 0.2, Floor(0.02, 0.09, 0.001)).high == pytest.approx(0.08)


# --- resampling ---

N = 37
CONFIDENCE = np.random.default_rng(5).uniform(0.2, 1, size=N)
CORRECT = np.round(np.random.default_rng(6).uniform(size=N))
OF_CLUSTER = np.sort(np.random.default_rng(7).integers(9, size=N))
OF_CLUSTER = np.unique(OF_CLUSTER, return_inverse=True)[1]


@pytest.mark.parametrize("clusters", [None, OF_CLUSTER])
def test_resampled_sums_equal_those_of_copies(clusters, monkeypatch):
    monkeypatch.setattr(significance, "_CHUNK_NUMBERS", 7 * N)  # several chunks of resamples
    resampler = Resampler(N, resamples=20, seed=3, clusters_N=clusters)
    counts = np.concatenate(list(resampler.counts())).astype(int)
    groups = N if clusters is None else clusters.max() + 1
    assert counts.shape == (20, groups)
    assert (counts.sum(axis=1) == groups).all()
    of_items = counts if clusters is None else counts[:, clusters]
    found = totals_of_sums(resampler.sums(bin_features(CONFIDENCE, CORRECT, BINS)))
    expected = [totals_of(CONFIDENCE, CORRECT, row) for row in of_items]
    for name in BinTotals._fields:
        rows = np.stack([getattr(totals, name) for totals in expected])
        np.testing.assert_allclose(getattr(found, name), rows, atol=1e-4, err_msg=name)
    np.testing.assert_array_equal(resampler.evaluate(lambda weights: weights.sum(axis=1)), of_items.sum(axis=1))


def test_the_seed_makes_the_draws_and_the_chunks_do_not(monkeypatch):
    one, again, other = (Resampler(N, resamples=20, seed=seed) for seed in (3, 3, 4))
    drawn = np.concatenate(list(one.counts()))
    monkeypatch.setattr(significance, "_CHUNK_NUMBERS", 7 * N)
    np.testing.assert_array_equal(np.concatenate(list(again.counts())), drawn)
    np.testing.assert_array_equal(np.concatenate(list(one.counts())), drawn)
    assert (np.concatenate(list(other.counts())) != drawn).any()


def test_large_means_cost_resampled_sums_no_precision():
    features = 1e6 + np.random.default_rng(0).normal(size=(N, 1))
    resampler = Resampler(N, resamples=50, seed=0)
    counts = np.concatenate(list(resampler.counts())).astype(np.float64)
    np.testing.assert_allclose(resampler.sums(features), counts @ features, rtol=1e-12)


# --- comparisons ---


def test_nothing_differs_from_itself():
    resampled = np.random.default_rng(0).normal(size=99)
    found = paired_difference(0.3, 0.3, resampled, resampled)
    assert (found.value, found.low, found.high, found.p) == (0, 0, 0, 1)
    for clusters in (None, OF_CLUSTER):
        means = paired_mean_difference(CONFIDENCE, CONFIDENCE, clusters)
        assert (means.value, means.low, means.high, means.p) == (0, 0, 0, 1)


def test_a_constant_change_is_certain():
    found = paired_mean_difference(CORRECT, CORRECT + 0.5)
    assert (found.value, found.low, found.high, found.p) == (0.5, 0.5, 0.5, 0)


def test_paired_differences_have_the_sign_of_the_change_and_mirror():
    rng = np.random.default_rng(0)
    before, noise = rng.normal(size=999), rng.normal(scale=0.1, size=999)
    found = paired_difference(0.0, 0.5, before, before + 0.5 + noise)
    assert (found.value, found.p) == (0.5, 1 / 1000)
    assert 0.25 < found.low < 0.5 < found.high < 0.75
    mirrored = paired_difference(0.5, 0.0, before + 0.5 + noise, before)
    assert (mirrored.value, mirrored.low, mirrored.high) == pytest.approx((-0.5, -found.high, -found.low))
    assert mirrored.p == found.p
    assert np.isnan(paired_difference(np.nan, 0.5, before, before).p)


def test_paired_p_values_are_uniform_where_nothing_differs():
    """The change of a mean, over samples of pairs that differ by chance alone."""
    rng = np.random.default_rng(0)
    p = []
    for seed in range(400):
        change = rng.exponential(size=60) - 1
        sums = Resampler(60, resamples=99, seed=seed).sums(change[:, None])[:, 0] / 60
        p.append(paired_difference(0.0, change.mean(), np.zeros(99), sums).p)
    assert 0.02 < np.mean(np.array(p) <= 0.05) < 0.11
    assert 0.4 < np.mean(np.array(p) <= 0.5) < 0.6


def test_intervals_of_means_are_those_of_students_t():
    found = mean_interval(CONFIDENCE)
    expected = stats.t.interval(0.95, N - 1, CONFIDENCE.mean(), stats.sem(CONFIDENCE))
    assert (found.low, found.high) == pytest.approx(expected)
    change = CORRECT - CONFIDENCE
    assert paired_mean_difference(CONFIDENCE, CORRECT).p == pytest.approx(stats.ttest_1samp(change, 0).pvalue)
    np.testing.assert_allclose(mean_interval(CONFIDENCE, np.arange(N)).low, found.low)  # clusters of one


def test_copies_in_a_cluster_are_no_evidence():
    copied, clusters = np.repeat(CONFIDENCE, 9), np.repeat(np.arange(N), 9)
    one, nine = mean_interval(CONFIDENCE), mean_interval(copied, clusters)
    assert (nine.low, nine.high, nine.standard_error) == pytest.approx((one.low, one.high, one.standard_error))
    p = paired_mean_difference(np.repeat(CORRECT, 9), copied, clusters).p
    assert p == pytest.approx(paired_mean_difference(CORRECT, CONFIDENCE).p)


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
