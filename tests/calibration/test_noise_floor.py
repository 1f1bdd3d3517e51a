"""Noise floors and intervals of errors: on many simulated data sets, and against explicit copies."""

import numpy as np
import pytest

from lm.calibration.binning import Binning, BinTotals
from lm.calibration.errors import BINNED_ERRORS, signed_gap
from lm.calibration.noise_floor import (
    Floor,
    bin_features,
    ece_interval,
    error_interval,
    floor_of,
    null_totals,
    observed_totals,
    totals_of_sums,
)
from lm.statistics.resampling import Resampler

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
    assert floor_of(0.1 + 0.2, np.full(9, 0.3)).p == 1  # up to rounding


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


@pytest.mark.slow
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


@pytest.mark.slow
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
        resampler = Resampler(items, resamples=200, seed=seed)
        resampled = totals_of_sums(resampler.sums(bin_features(confidence, correct, BINS)))
        interval = ece_interval(totals_of(confidence, correct), resampled)
        assert 0 <= interval.low <= interval.high <= 1
        covered += interval.low - 1e-12 <= truth <= interval.high
    return covered / data_sets


def test_intervals_cover_the_error_of_a_calibrated_model():
    assert coverage(calibrated, 0.0) >= 0.93


def test_intervals_cover_the_error_of_a_model_that_is_over_confident_by_a_constant():
    def draw(rng, items):
        confidence = rng.uniform(0.5, 1, size=items)
        return confidence, (rng.random(items) < confidence - 0.15).astype(np.float64)

    assert 0.9 <= coverage(draw, 0.15) <= 0.99


@pytest.mark.slow
@pytest.mark.parametrize("items", [300, 1500])
def test_intervals_cover_an_error_that_changes_its_sign_between_bins(items):
    """Where gaps near 0 lie beside large ones, mirrored quantiles of the bootstrap cover 83 to 87%."""
    gap_M = 0.08 * np.sin(np.arange(BINS.bins))

    def draw(rng, items):
        bin_N = rng.integers(BINS.bins // 2, BINS.bins, size=items)
        confidence = (bin_N + 0.5) / BINS.bins
        return confidence, (rng.random(items) < confidence - gap_M[bin_N]).astype(np.float64)

    truth = np.abs(gap_M[BINS.bins // 2 :]).mean()
    assert 0.93 <= coverage(draw, truth, data_sets=600, items=items) <= 0.98


def test_an_error_that_the_test_does_not_find_may_be_0():
    resampled = np.linspace(0.1, 0.14, 99)
    assert error_interval(0.1, resampled, Floor(0.05, 0.09, 0.3)).low == 0
    assert error_interval(0.1, resampled, Floor(0.05, 0.09, 0.01)).low == pytest.approx(0.2 - 0.139, abs=1e-3)
    # And an error far beyond its floor is not said to be next to nothing.
    assert error_interval(0.1, resampled + 0.2, Floor(0.02, 0.09, 0.001)).high == pytest.approx(0.08)
    assert np.isnan(error_interval(0.1, np.full(9, np.nan), Floor(0.05, 0.09, 0.3)).high)


# --- features ---


def test_sums_of_features_are_totals():
    rng = np.random.default_rng(5)
    confidence, correct, weights = rng.uniform(size=37), rng.uniform(size=37), rng.integers(3, size=37)
    for bins in (10, 12):  # 12: two that stay empty
        found = totals_of_sums(weights @ bin_features(confidence, correct, BINS, bins))
        for values, expected in zip(found, totals_of(confidence, correct, weights), strict=True):
            np.testing.assert_allclose(values, np.pad(expected, (0, bins - 10)), atol=1e-12)


def test_three_clusters_that_err_alike_are_drawn_a_quarter_of_the_time():
    """Draws equal to the observation, or to its negative, tie with it despite rounding of confidences."""
    rng = np.random.default_rng(0)
    confidence = np.repeat(rng.uniform(0.1, 0.9, size=3), 5).astype(np.float32)
    correct, clusters = np.ones(15), np.repeat(np.arange(3), 5)
    null = null_totals(confidence, correct, BINS, resamples=4000, rng=rng, clusters_N=clusters)
    found = floor_of(float(signed_gap(observed_totals(confidence, correct, BINS))), signed_gap(null))
    assert found.p == pytest.approx(1 / 4, abs=0.03)
