"""Temperature: against a float64 search on easy and hard logits, in chunks, of factors, and under vmap."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy import optimize, special

from lm.calibration import logits as chunking
from lm.calibration.logits import FactoredLogits
from lm.calibration.temperature import fit_temperature

N, C = 600, 10


def labelled(seed=0, items=N, classes=C, temperature=1.0, scale=2.0):
    """Logits whose labels are drawn from softmax(logits / temperature)."""
    rng = np.random.default_rng(seed)
    logits = rng.normal(scale=scale, size=(items, classes))
    labels = (logits + rng.gumbel(size=logits.shape)).argmax(axis=1)
    return (logits * temperature).astype(np.float32), labels.astype(np.int32)


def mean_nll(logits, labels, log_temperature):
    scaled = np.asarray(logits, np.float64) / np.exp(log_temperature)
    return (special.logsumexp(scaled, axis=1) - scaled[np.arange(len(labels)), labels]).mean()


def reference(logits, labels):
    """The best temperature in float64, by scipy's bounded search between e^-12 and e^16."""
    found = optimize.minimize_scalar(
        lambda log_t: mean_nll(logits, labels, log_t), bounds=(-12, 16), method="bounded", options={"xatol": 1e-9}
    )
    return np.exp(found.x)


def masked():
    logits, labels = labelled(seed=3, temperature=2.3)
    logits[np.arange(N), (labels + 1) % C] = -np.inf
    return logits, labels


CASES = {
    "mild": labelled(temperature=1.8),
    "T = 20": labelled(temperature=20.0),
    "T = 0.2": labelled(temperature=0.2),
    "logits x 1e-3": labelled(temperature=1e-3),
    "logits x 1e4": labelled(temperature=1e4),
    "a class at -inf": masked(),
    "far from zero": (labelled(temperature=1.8)[0] + 300, labelled(temperature=1.8)[1]),
    "1,000 classes, T = 50": labelled(seed=1, items=300, classes=1000, temperature=50.0, scale=3.0),
}


@pytest.mark.parametrize("case", CASES)
def test_temperature_is_that_of_a_float64_search(case):
    logits, labels = CASES[case]
    found = fit_temperature(logits, labels)
    assert float(found.temperature) == pytest.approx(reference(logits, labels), rel=1e-3)
    assert bool(found.converged)
    assert not bool(found.at_bound)


def padded(value, share, classes=4):
    """Multiple choice, with a value for options that some questions lack; the label is never one of them."""
    logits, labels = labelled(seed=4, classes=classes, temperature=1.8)
    absent = np.random.default_rng(5).random((N, classes)) < share
    absent[np.arange(N), labels] = False
    return np.where(absent, np.float32(value), logits), labels


FLOAT32_MIN = np.finfo(np.float32).min


@pytest.mark.parametrize("value", [-65504.0, -1e9, -1e30, FLOAT32_MIN, -np.inf])
@pytest.mark.parametrize("share", [0.001, 0.3, 0.9])
def test_absent_options_do_not_move_the_temperature(value, share):
    logits, labels = padded(value, share)
    found = fit_temperature(logits, labels)
    assert float(found.temperature) == pytest.approx(reference(padded(-np.inf, share)[0], labels), rel=1e-3)
    assert bool(found.converged)
    assert not bool(found.at_bound)


def test_one_outlier_among_3000_logits_does_not_move_the_temperature():
    logits, labels = labelled(seed=6, items=300, temperature=1.86)
    expected = reference(logits, labels)
    logits[17, (labels[17] + 1) % C] = -1e9
    assert float(fit_temperature(logits, labels).temperature) == pytest.approx(expected, rel=1e-3)


def test_an_optimum_far_from_the_scale_of_the_logits_is_found():
    """Two kinds of questions, of which one has logits a billion times larger."""
    logits, labels = labelled(seed=8, temperature=1.5)
    logits[::2] *= np.float32(1e9)
    found = fit_temperature(logits, labels)
    best = optimize.minimize_scalar(
        lambda log_t: mean_nll(logits, labels, log_t), bounds=(-5, 40), method="bounded"
    ).fun
    assert mean_nll(logits, labels, np.log(float(found.temperature))) <= best + 1e-4
    assert bool(found.converged)
    assert not bool(found.at_bound)


def test_weights_count_items_as_often():
    logits, labels = CASES["mild"]
    weights = np.random.default_rng(0).integers(0, 4, size=N)
    index = np.repeat(np.arange(N), weights)
    expected = reference(logits[index], labels[index])
    assert expected != pytest.approx(reference(logits, labels), rel=1e-3)
    for scale in (1.0, 1e-3):
        found = fit_temperature(logits, labels, np.float32(weights * scale))
        assert float(found.temperature) == pytest.approx(expected, rel=1e-3)


@pytest.mark.parametrize("scale", [1e-3, 1.0, 1e4])
def test_separable_labels_have_no_lowest_temperature(scale):
    logits, _ = CASES["mild"]
    labels = logits.argmax(axis=1)
    found = fit_temperature(logits * np.float32(scale), labels)
    assert bool(found.at_bound)
    assert bool(found.converged)
    assert 0 < float(found.temperature) < 1e-3 * scale
    assert np.isfinite(logits * np.float32(scale) / found.temperature).all()


def test_labels_that_confidence_speaks_against_have_no_highest_temperature():
    logits, _ = CASES["mild"]
    for labels in (logits.argmin(axis=1), np.argsort(logits, axis=1)[:, 3]):
        found = fit_temperature(logits, labels)
        assert bool(found.at_bound)
        assert float(found.temperature) > 1e5


def test_random_labels_give_a_high_temperature_or_a_bound():
    """Chance decides on which side of no relation a sample lies."""
    logits, _ = CASES["mild"]
    bounds = set()
    for seed in range(8):
        labels = np.random.default_rng(seed).integers(C, size=N)
        found = fit_temperature(logits, labels)
        bounds.add(bool(found.at_bound))
        assert float(found.temperature) > 20
        if not bool(found.at_bound):
            assert float(found.temperature) == pytest.approx(reference(logits, labels), rel=5e-3)
    assert bounds == {True, False}


def test_logits_that_say_nothing_are_at_a_bound():
    found = fit_temperature(np.zeros((N, C), np.float32), np.zeros(N, np.int32))
    assert bool(found.at_bound)
    assert np.isfinite(np.zeros(1, np.float32) / found.temperature).all()


def test_a_label_at_minus_infinity_is_not_converged():
    logits, labels = masked()
    assert not bool(fit_temperature(logits, (labels + 1) % C).converged)


def test_never_worse_than_no_scaling():
    for logits, labels in CASES.values():
        log_temperature = np.log(float(fit_temperature(logits, labels).temperature))
        assert mean_nll(logits, labels, log_temperature) <= mean_nll(logits, labels, 0.0) + 1e-9


def test_problems_map_over_a_leading_axis():
    names = ["mild", "T = 20", "logits x 1e-3", "a class at -inf"]
    logits = np.stack([CASES[name][0] for name in names] + [CASES["mild"][0]])
    labels = np.stack([CASES[name][1] for name in names] + [CASES["mild"][0].argmax(axis=1)])
    found = jax.jit(jax.vmap(fit_temperature))(logits, labels)
    for i, name in enumerate(names):
        assert float(found.temperature[i]) == pytest.approx(float(fit_temperature(*CASES[name]).temperature), rel=1e-4)
    assert found.at_bound.tolist() == [False] * 4 + [True]


@pytest.mark.parametrize(
    "items_per_chunk", [*(pytest.param(items, marks=pytest.mark.slow) for items in (7, N - 1)), 64]
)
def test_chunks_and_factors_change_nothing(items_per_chunk, monkeypatch):
    rng = np.random.default_rng(0)
    hidden, output = rng.normal(size=(N, 4)).astype(np.float32), rng.normal(size=(C, 4)).astype(np.float32)
    logits = hidden @ output.T
    labels = (logits / 2 + rng.gumbel(size=logits.shape)).argmax(axis=1)
    expected = reference(logits, labels)
    monkeypatch.setattr(chunking, "CHUNK_NUMBERS", items_per_chunk * C)
    fit_temperature.clear_cache()
    for given in (logits, FactoredLogits(hidden, output)):
        assert float(fit_temperature(given, labels).temperature) == pytest.approx(expected, rel=1e-4)


def test_16_bit_logits_are_computed_with_in_float32():
    logits, labels = CASES["mild"]
    rounded = jnp.asarray(logits, jnp.bfloat16)
    expected = reference(np.asarray(rounded, np.float32), labels)
    assert float(fit_temperature(rounded, labels).temperature) == pytest.approx(expected, rel=1e-3)
