"""Thresholds with a guaranteed error rate."""

import math

import numpy as np
import pytest

from lm.calibration.selective import clopper_pearson_upper, threshold_for_risk


def test_the_guarantee_holds_over_many_samples():
    """Answers are right with the probability c^2: the true error rate above a threshold is known."""
    rng = np.random.default_rng(0)
    risk, broken, found = 0.3, 0, 0
    for _ in range(400):
        confidence_N = rng.uniform(0, 1, 500)
        threshold = threshold_for_risk(confidence_N, rng.uniform(size=500) < confidence_N**2, risk, assurance=0.9)
        if math.isfinite(threshold.confidence):
            t = threshold.confidence
            true_rate = 1 - (1 - t**3) / 3 / (1 - t)
            broken += true_rate > risk
            found += 1
    assert found > 300
    assert broken / 400 <= 0.1 + 3 * math.sqrt(0.09 / 400)


def test_nothing_is_promised_where_nothing_can_be():
    always_wrong = threshold_for_risk(np.linspace(0, 1, 200), np.zeros(200), 0.1)
    assert (always_wrong.confidence, always_wrong.coverage) == (math.inf, 0)
    too_few = threshold_for_risk(np.linspace(0, 1, 20), np.ones(20), 0.1)
    assert too_few.coverage == 0


def test_all_right_is_answered_throughout():
    threshold = threshold_for_risk(np.linspace(0.1, 1, 200), np.ones(200), 0.1)
    assert threshold.coverage == 1
    assert threshold.confidence == pytest.approx(0.1)
    assert threshold.error_bound == pytest.approx(1 - (0.05 / 20) ** (1 / 200))


def test_equal_confidences_are_answered_together():
    confidence_N = np.repeat([0.9, 0.5], 100)
    correct_N = np.r_[np.ones(100), np.ones(50), np.zeros(50)]
    threshold = threshold_for_risk(confidence_N, correct_N, 0.1)
    assert (threshold.confidence, threshold.coverage, threshold.error_rate) == (0.9, 0.5, 0)


def test_bound_is_the_exact_binomial_one():
    bound = clopper_pearson_upper(3, 50, 0.95)
    below = sum(math.comb(50, k) * bound**k * (1 - bound) ** (50 - k) for k in range(4))
    assert below == pytest.approx(0.05)


def test_bad_arguments():
    with pytest.raises(ValueError, match="between 0 and 1"):
        threshold_for_risk(np.ones(3), np.ones(3), 1.5)
