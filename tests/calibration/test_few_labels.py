"""Calibrators of prompted models with few labels: optima against scipy, and no worse than what they start from."""

import functools

import numpy as np
import pytest
from scipy import optimize, special

from lm.calibration.calibrators import CALIBRATORS, Fitted, fit, rare_classes
from lm.calibration.outcomes import outcomes

N, C = 16, 3
NAMES = ("shift_temperature_bias", "shift_structured_vector")
BIAS = np.array([2.5, 0.0, -1.5])


def sample(seed, items, scale=1.4):
    """Logits of a prompt that prefers some labels, too sure by `scale`."""
    random = np.random.default_rng(seed)
    true = random.normal(scale=1.5, size=(items, C))
    labels = (true + random.gumbel(size=true.shape)).argmax(axis=1)
    return (scale * true + BIAS).astype(np.float32), labels


LOGITS, LABELS = sample(1, N)
UNLABELLED = sample(2, 64)[0]
LATER, LATER_LABELS = sample(3, 2000)


def nll(logits, labels=LATER_LABELS):
    return float(outcomes(labels, logits=logits).nll_N.mean())


@functools.cache
def fitted(name, unlabelled=True):
    return fit(name, LOGITS, LABELS, unlabelled=UNLABELLED if unlabelled else None)


def test_temperature_and_bias_are_the_optimum_of_the_penalized_loss():
    log_p = special.log_softmax(np.concatenate([LOGITS, UNLABELLED]).astype(np.float64), axis=1)
    prior = log_p.mean(axis=0)

    def objective(theta):
        mapped = np.exp(theta[0]) * (log_p[:N] - prior) + theta[1:]
        loss = (special.logsumexp(mapped, axis=1) - mapped[np.arange(N), LABELS]).mean()
        return loss + (theta**2).sum() / N

    best = optimize.minimize(objective, np.zeros(1 + C), method="BFGS", options={"gtol": 1e-8}).x
    expected = special.softmax(np.exp(best[0]) * (special.log_softmax(LATER, axis=1) - prior) + best[1:], axis=1)
    found = fitted("shift_temperature_bias")
    np.testing.assert_allclose(special.softmax(found.apply(LATER), axis=1), expected, atol=2e-3)
    np.testing.assert_allclose(np.log(found.parameters["scale"]), best[0], atol=2e-3)


@pytest.mark.parametrize("name", NAMES)
def test_few_labels_improve_on_the_shift_and_on_none(name):
    found, without = fitted(name), fitted(name, unlabelled=False)
    shifted = fit("shift", LOGITS, unlabelled=UNLABELLED)
    np.testing.assert_allclose(found.parameters["log_prior"], shifted.parameters["log_prior"], atol=1e-6)
    assert not np.allclose(found.parameters["log_prior"], without.parameters["log_prior"], atol=0.05)
    assert found.nll_before == pytest.approx(nll(shifted.apply(LOGITS), LABELS), rel=1e-5)
    assert found.nll_after == pytest.approx(nll(found.apply(LOGITS), LABELS), rel=1e-5)
    assert found.nll_after < found.nll_before
    assert (found.accepted, found.converged, found.at_bound) == (True, True, False)
    assert nll(found.apply(LATER)) < nll(LATER) - 0.5


def test_labels_that_happen_to_be_the_preferred_ones_do_not_bring_the_preference_back():
    """The raw loss of these items is the lowest; that of the shift is what the fit lowers."""
    preferred = LABELS == 0
    logits, labels = np.tile(LOGITS[preferred][:4], (4, 1)), np.zeros(N, int)
    found = fit("shift_temperature_bias", logits, labels, unlabelled=UNLABELLED)
    assert nll(logits, labels) < found.nll_after < found.nll_before
    assert found.accepted
    # A class never seen keeps its place: the bias is the mean of the others'.
    np.testing.assert_allclose(found.parameters["bias"], 0, atol=1e-5)
    assert nll(found.apply(LATER)) < nll(LATER) - 0.3


def test_one_item_is_enough_for_a_bias_of_its_own():
    labels = LABELS.copy()
    labels[LABELS == 2] = 0
    labels[0] = 2
    bias = fit("shift_temperature_bias", LOGITS, labels, unlabelled=UNLABELLED).parameters["bias"]
    assert abs(bias[2] - bias[:2].mean()) > 0.05
    assert rare_classes("shift_temperature_bias", labels, C).size == 0
    assert rare_classes("shift_structured_vector", labels, C).tolist() == [1, 2]


def test_a_ridge_of_1_over_n_fades():
    penalty = CALIBRATORS["shift_temperature_bias"].fit.keywords["how"]["penalty"]
    weights = {"log_scale": np.float32(0.5), "bias": np.float32([1, -1, 2])}
    for items in (4, 400):
        assert float(penalty(weights, items, 1.0)) == pytest.approx(6.25 / items)


@pytest.mark.parametrize("name", NAMES)
def test_files_and_absent_options(name, tmp_path):
    fitted(name).save(tmp_path / "calibrator.json")
    loaded = Fitted.load(tmp_path / "calibrator.json")
    later = LATER[:9].copy()
    later[::2, 1] = -np.inf
    found = np.asarray(loaded.apply(later))
    np.testing.assert_array_equal(found, fitted(name).apply(later))
    np.testing.assert_array_equal(np.isneginf(found), np.isneginf(later))
    marked = np.where(np.isneginf(later), np.float32(-1e9), later)
    expected = special.softmax(found.astype(np.float64), axis=1)
    np.testing.assert_allclose(special.softmax(loaded.apply(marked), axis=1), expected, atol=1e-5)
