"""Prediction sets hold what they promise."""

import numpy as np
import pytest
from scipy import special

from lm.calibration.conformal import METHODS, fit_sets, report_sets

C = 12


def sample(items: int, rng: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
    """Over-confident logits: the labels are drawn at twice their temperature."""
    logits_NC = 4 * rng.normal(size=(items, C))
    cumulative_NC = special.softmax(logits_NC / 2, axis=1).cumsum(axis=1)
    return logits_NC, (cumulative_NC < rng.uniform(size=(items, 1))).sum(axis=1).clip(0, C - 1)


@pytest.mark.parametrize("method", METHODS)
def test_coverage_over_many_fits(method):
    """Its mean over fits is the promise, and hardly more; one fit of 200 items alone scatters by 2 points."""
    rng = np.random.default_rng(0)
    found = []
    for seed in range(60):
        rule = fit_sets(*sample(200, rng), 0.9, method, seed=seed)
        logits_NC, labels_N = sample(500, rng)
        found.append(report_sets(rule.sets(logits_NC, seed + 1000), labels_N).coverage)
    mean, error = np.mean(found), np.std(found, ddof=1) / np.sqrt(len(found))
    assert 0.9 - 3 * error <= mean <= 0.9 + 1 / 201 + 3 * error


def test_more_coverage_needs_larger_sets():
    rng = np.random.default_rng(1)
    fit, (logits_NC, labels_N) = sample(500, rng), sample(500, rng)
    for method in METHODS:
        sizes = [report_sets(fit_sets(*fit, c, method).sets(logits_NC), labels_N).mean_size for c in (0.7, 0.9, 0.97)]
        assert sizes == sorted(sizes), method


def test_lac_is_a_threshold_on_the_probability():
    logits_NC = np.log(np.array([[0.7, 0.2, 0.1], [0.4, 0.35, 0.25], [0.34, 0.33, 0.33]]))
    rule = fit_sets(np.repeat(logits_NC, 10, axis=0), np.repeat([0, 1, 0], 10), 0.5)
    assert rule.threshold == pytest.approx(1 - 0.35)
    np.testing.assert_array_equal(rule.sets(logits_NC), [[1, 0, 0], [1, 1, 0], [1, 0, 0]])


def test_aps_takes_classes_from_the_likeliest_on():
    rng = np.random.default_rng(2)
    rule = fit_sets(*sample(300, rng), 0.9, "aps")
    logits_NC, _ = sample(100, rng)
    sets_NC = rule.sets(logits_NC)
    ordered = np.take_along_axis(sets_NC, np.argsort(-logits_NC, axis=1), axis=1)
    assert (np.diff(ordered.astype(int), axis=1) <= 0).all()
    assert ordered[:, 0].all(), "a set is empty"


def test_raps_cuts_tails():
    rng = np.random.default_rng(3)
    fit, (logits_NC, labels_N) = sample(500, rng), sample(500, rng)
    aps, raps = (fit_sets(*fit, 0.97, method, penalty=0.2, free=2).sets(logits_NC) for method in ("aps", "raps"))
    assert raps.sum(axis=1).max() < aps.sum(axis=1).max()
    assert report_sets(raps, labels_N).coverage > 0.93


def test_bad_arguments():
    logits_NC, labels_N = sample(8, np.random.default_rng(0))
    with pytest.raises(ValueError, match="at least 9 items, not 8"):
        fit_sets(logits_NC, labels_N, 0.9)
    with pytest.raises(ValueError, match="lac, aps, raps"):
        fit_sets(logits_NC, labels_N, 0.5, "top")
