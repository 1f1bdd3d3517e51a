"""Entropy rates, their growth, and the look-ahead correction.

Axes: B documents, T positions, N predictions, V symbols.
"""

import numpy as np
import pytest
from scipy.special import logsumexp

from lm.errors import UserError
from lm.evaluation.entropy_rate import drift, fit_look_ahead, growth_exponent, look_ahead_log_probs

# A chain of three symbols, its stationary distribution and its entropy rate, by hand: the rows' entropies are log 2, 0
# and 1.5 log 2.
CHAIN_VV = np.array([[0.5, 0.5, 0.0], [0.0, 0.0, 1.0], [0.25, 0.25, 0.5]])
STATIONARY_V = np.array([1, 1, 2]) / 4
ENTROPY_RATE = np.log(2)


def texts(chain_VV: np.ndarray, documents: int, length: int, seed: int) -> np.ndarray:
    """Texts of the chain from its stationary distribution, [B, T + 1]."""
    generator = np.random.default_rng(seed)
    tokens_BT = np.empty((documents, length + 1), int)
    tokens_BT[:, 0] = generator.choice(3, documents, p=STATIONARY_V)
    cumulative_VV = chain_VV.cumsum(axis=1)
    for t in range(length):
        tokens_BT[:, t + 1] = (generator.random((documents, 1)) > cumulative_VV[tokens_BT[:, t]]).sum(axis=1)
    return tokens_BT


def measured(model_VV: np.ndarray, seed: int = 0):
    """The drift of a chain as a model of texts from `CHAIN_VV`."""
    true_BT, own_BT = texts(CHAIN_VV, 60, 200, seed), texts(model_VV, 60, 200, seed + 1)
    with np.errstate(divide="ignore", invalid="ignore"):
        log_VV = np.log(model_VV)
        entropy_V = -np.nansum(model_VV * log_VV, axis=1)
    loss_BT = -log_VV[true_BT[:, :-1], true_BT[:, 1:]]
    return drift(loss_BT, entropy_V[true_BT[:, :-1]], entropy_V[own_BT[:, :-1]])


def test_the_true_chain_has_its_analytic_rate_and_no_gap():
    np.testing.assert_allclose(STATIONARY_V @ CHAIN_VV, STATIONARY_V)
    found = measured(CHAIN_VV)
    for estimate in (found.loss, found.true_text, found.entropy_rate):
        assert estimate.low < ENTROPY_RATE < estimate.high
        assert estimate.high - estimate.low < 0.05
    assert found.gap.low < 0 < found.gap.high
    assert found.gap.p > 0.05
    assert found.exponent.low < 0 < found.exponent.high
    assert found.excess_exponent.low < 0 < found.excess_exponent.high


def test_intervals_of_the_gap_cover_0_as_often_as_they_say():
    covered = [found.gap.low < 0 < found.gap.high for found in (measured(CHAIN_VV, seed) for seed in range(0, 80, 2))]
    assert 0.85 < np.mean(covered) <= 1.0


def test_a_model_that_is_too_random_has_a_gap():
    found = measured(0.8 * CHAIN_VV + 0.2 / 3)
    assert found.gap.low > 0
    assert found.gap.p < 0.001
    assert found.gap.value == pytest.approx(found.entropy_rate.value - found.loss.value)
    assert found.shift.value == pytest.approx(found.entropy_rate.value - found.true_text.value)


def test_exponent_of_a_power_law():
    generator = np.random.default_rng(0)
    t_T = np.arange(1, 201)
    noise_BT = generator.gamma(4.0, 0.25, size=(50, 200))
    found = growth_exponent(2.0 * t_T**0.3 * noise_BT)
    assert found.low < 0.3 < found.high
    assert found.high - found.low < 0.1
    assert growth_exponent(np.tile(5.0 * t_T**-0.2, (3, 1))).value == pytest.approx(-0.2)
    compared = growth_exponent(np.tile(2.0 * t_T**0.3, (3, 1)), np.tile(4.0 * t_T**0.1, (3, 1)))
    assert compared.value == pytest.approx(0.2)
    with pytest.raises(UserError, match="at least two tokens"):
        growth_exponent(np.ones((3, 1)))


def test_intervals_of_the_exponent_cover_it_as_often_as_they_say():
    generator = np.random.default_rng(0)
    t_T = np.arange(1, 51)
    of_documents_R = generator.gamma(4.0, 0.25, size=(200, 20, 1)) * generator.gamma(4.0, 0.25, size=(200, 20, 50))
    found = [growth_exponent(t_T**0.1 * noise_BT) for noise_BT in of_documents_R]
    assert 0.9 < np.mean([each.low < 0.1 < each.high for each in found]) < 0.99


def items(count: int = 3000, seed: int = 0):
    """Log-probabilities, entropies and labels, which a correction with alpha = 0.7 would predict."""
    generator = np.random.default_rng(seed)
    logits_NV, entropies_NV = generator.normal(size=(count, 5)), generator.gamma(2.0, size=(count, 5))
    log_probs_NV = logits_NV - logsumexp(logits_NV, axis=1, keepdims=True)
    true_NV = np.exp(look_ahead_log_probs(log_probs_NV, entropies_NV, 0.7))
    labels_N = (generator.random((count, 1)) > true_NV.cumsum(axis=1)).sum(axis=1)
    return log_probs_NV, entropies_NV, labels_N


def loss(log_probs_NV, labels_N):
    return -np.take_along_axis(log_probs_NV, labels_N[:, None], axis=1).mean()


def test_alpha_0_changes_nothing():
    log_probs_NV, entropies_NV, _ = items(20)
    np.testing.assert_allclose(look_ahead_log_probs(log_probs_NV, entropies_NV, 0.0), log_probs_NV, atol=1e-12)


def test_correction_equals_normalized_products():
    log_probs_NV, entropies_NV, _ = items(20)
    products_NV = np.exp(log_probs_NV) * np.exp(-1.3 * entropies_NV)
    found_NV = np.exp(look_ahead_log_probs(log_probs_NV, entropies_NV, 1.3))
    np.testing.assert_allclose(found_NV, products_NV / products_NV.sum(axis=1, keepdims=True), rtol=1e-12)


def test_fit_finds_alpha_and_the_lowest_loss():
    log_probs_NV, entropies_NV, labels_N = items()
    found = fit_look_ahead(log_probs_NV, entropies_NV, labels_N)
    assert abs(found.alpha - 0.7) < 3 * found.standard_error < 0.15
    assert not found.at_bound
    lowest = loss(look_ahead_log_probs(log_probs_NV, entropies_NV, found.alpha), labels_N)
    assert lowest < loss(log_probs_NV, labels_N)
    for alpha in (found.alpha - 0.02, found.alpha + 0.02):
        assert loss(look_ahead_log_probs(log_probs_NV, entropies_NV, alpha), labels_N) > lowest


def test_at_the_optimum_the_expected_entropy_is_that_after_the_true_tokens():
    log_probs_NV, entropies_NV, labels_N = items(200)
    found = fit_look_ahead(log_probs_NV, entropies_NV, labels_N)
    p_NV = np.exp(look_ahead_log_probs(log_probs_NV, entropies_NV, found.alpha))
    after_true = np.take_along_axis(entropies_NV, labels_N[:, None], axis=1).mean()
    assert (p_NV * entropies_NV).sum(axis=1).mean() == pytest.approx(after_true, abs=1e-5)


def test_repeated_items_in_a_cluster_leave_the_standard_error():
    log_probs_NV, entropies_NV, labels_N = items(300)
    twice = [np.concatenate([array, array]) for array in (log_probs_NV, entropies_NV, labels_N)]
    one, other = fit_look_ahead(*items(300)), fit_look_ahead(*twice, np.tile(np.arange(300), 2))
    assert other.standard_error == pytest.approx(one.standard_error, rel=1e-4)


def test_no_optimum_is_said():
    log_probs_NV, entropies_NV, _ = items(50)
    found = fit_look_ahead(log_probs_NV, entropies_NV, entropies_NV.argmin(axis=1))
    assert found.at_bound
    assert found.alpha > 0
