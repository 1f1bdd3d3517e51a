"""Calibration errors: known values, plain loops, brute force, and simulation."""

import itertools
import math

import jax
import numpy as np
import pytest
from scipy import special

from lm.calibration import errors
from lm.calibration.binning import Binning, BinTotals, bin_totals, equal_mass
from lm.calibration.errors import (
    BINNED_ERRORS,
    GRID,
    GridCells,
    calibration_error,
    class_bin_totals,
    classwise_ece,
    cumulative_error,
    expected_calibration_error,
    smooth_ece,
    smooth_ece_of_residuals,
)
from lm.calibration.logits import FactoredLogits

RANDOM = np.random.default_rng(0)
N = 400
CONFIDENCE = np.maximum(RANDOM.beta(4, 1.5, size=N), 0.1).astype(np.float32)
CORRECT = (RANDOM.random(N) < CONFIDENCE**2).astype(np.float32)


def binned(name, confidence, correct, bins):
    totals = bin_totals(np.asarray(confidence, np.float32), np.asarray(correct, np.float32), Binning(bins))
    return float(BINNED_ERRORS[name](totals))


@pytest.mark.parametrize(
    ("confidence", "correct", "bins", "name", "expected"),
    [
        ([0.25, 0.25, 0.55, 0.75, 0.75], [0, 0, 1, 1, 1], 2, "ece", 0.29),
        ([0.25, 0.25, 0.55, 0.75, 0.75], [0, 0, 1, 1, 1], 2, "rms", 0.2918),
        ([0.25, 0.25, 0.55, 0.75, 0.75], [0, 0, 1, 1, 1], 2, "mce", 0.3167),
        ([0.25, 0.25, 0.55, 0.75, 0.75], [0, 0, 1, 1, 1], 2, "signed_gap", 0.51 - 0.6),
        ([0.2, 0.4, 0.6, 0.8, 1.0], [1, 0, 1, 0, 1], 5, "ece", 0.48),
        ([0.95, 1.0], [1, 0], 10, "ece", 0.475),
        ([0.7] * 10, [0, 1] * 5, 15, "ece", 0.2),
        ([0.7] * 10, [0, 1] * 5, 1, "mce", 0.2),
        ([0, 0, 1, 1], [0, 1, 1, 0], 10, "ece", 0.5),
        ([0, 0, 1, 1], [0, 1, 1, 0], 10, "signed_gap", 0.0),
        ([0, 1], [0, 1], 10, "mce", 0.0),
    ],
)
def test_known_values(confidence, correct, bins, name, expected):
    assert binned(name, confidence, correct, bins) == pytest.approx(expected, abs=5e-5)


def by_loop(name, confidence, correct, edges):
    """A binned error one bin at a time, in float64, from its formula."""
    total = 0.0
    for low, high in itertools.pairwise(edges):
        is_in = (confidence > np.float32(low)) & (confidence <= np.float32(high)) | (low == 0) & (confidence == 0)
        n = is_in.sum()
        if n == 0:
            continue
        c, y = confidence[is_in].astype(np.float64).mean(), correct[is_in].astype(np.float64).mean()
        match name:
            case "ece":
                total += n / len(confidence) * abs(y - c)
            case "signed_gap":
                total += n / len(confidence) * (c - y)
            case "mce":
                total = max(total, abs(y - c))
            case "rms":
                total += n / len(confidence) * (y - c) ** 2
            case "rms_debiased":
                total += n / len(confidence) * ((y - c) ** 2 - y * (1 - y) / (n - 1)) if n > 1 else 0
    return math.sqrt(max(total, 0)) if name.startswith("rms") else total


@pytest.mark.parametrize("name", BINNED_ERRORS)
def test_binned_errors_equal_a_loop(name):
    for binning in (Binning(15), Binning(1), Binning(50), equal_mass(CONFIDENCE, 15)):
        totals = bin_totals(CONFIDENCE, CORRECT, binning)
        expected = by_loop(name, CONFIDENCE, CORRECT, binning.all_edges())
        assert BINNED_ERRORS[name](totals) == pytest.approx(expected, abs=1e-7)


def test_many_totals_are_one_call():
    each = [bin_totals(CONFIDENCE[part], CORRECT[part], Binning(15)) for part in np.split(np.arange(N), 4)]
    stacked = BinTotals(*np.stack(each, axis=1))
    for function in BINNED_ERRORS.values():
        np.testing.assert_array_equal(function(stacked), [function(totals) for totals in each])


def test_debiasing_takes_off_what_chance_adds():
    """Over many calibrated samples the squares average to 0, bins of one item included."""
    confidence = RANDOM.uniform(size=(4000, 60))
    correct = RANDOM.random(confidence.shape) < confidence
    cell = np.ceil(confidence * 10).astype(int) - 1 + 10 * np.arange(4000)[:, None]
    sums = [np.bincount(cell.ravel(), w, 40_000).reshape(4000, 10) for w in (None, correct.ravel(), confidence.ravel())]
    gaps = (sums[1] - sums[2]) / np.maximum(sums[0], 1)
    accuracy = sums[1] / np.maximum(sums[0], 1)
    chance = np.where(sums[0] > 1, accuracy * (1 - accuracy) / np.maximum(sums[0] - 1, 1), gaps**2)
    mean_square = (sums[0] / 60 * (gaps**2 - chance)).sum(axis=1).mean()
    assert abs(mean_square) < 3e-4  # a tenth of what it is without
    found = errors.rms_debiased(BinTotals(*sums)) ** 2
    np.testing.assert_allclose(found, np.maximum((sums[0] / 60 * (gaps**2 - chance)).sum(axis=1), 0), atol=1e-12)


# --- smooth ---


def smooth_by_sum(confidence, correct):
    """smECE from its definition: sums over items of the Gaussian and its reflections, integrated on a fine mesh."""
    points = (np.arange(2000) + 0.5) / 2000
    residual = (np.asarray(correct, np.float64) - confidence) / len(confidence)

    def at(sigma):
        smoothed = np.zeros_like(points)
        for image in range(-6, 7):  # reflections of the walls at 0 and 1
            for centre in (confidence + 2 * image, -confidence + 2 * image):
                reached = np.abs(centre - 0.5) < 0.5 + 10 * sigma
                z = (points[:, None] - centre[None, reached]) / sigma
                smoothed += np.exp(-0.5 * z**2) @ residual[reached] / (sigma * math.sqrt(2 * math.pi))
        return np.abs(smoothed).mean()

    low, high = 0.0, 1.0
    for _ in range(10):
        middle = (low + high) / 2
        if middle >= 1e-3 and at(middle) > middle:
            low = middle
        else:
            high = middle
    return at(high)


@pytest.mark.parametrize("case", ["skewed", "at the ends", "one value", "calibrated"])
def test_smooth_ece_equals_brute_force(case):
    n = 80
    c = {
        "skewed": CONFIDENCE[:n].astype(np.float64),
        "at the ends": RANDOM.choice([0.0, 1.0, 0.997, 0.004], size=n),
        "one value": np.full(n, 0.7),
        "calibrated": RANDOM.uniform(size=n),
    }[case]
    y = CORRECT[:n] if case == "skewed" else (RANDOM.random(n) < c).astype(np.float64)
    if case == "one value":
        y = np.arange(n) % 2
    assert smooth_ece(c, y) == pytest.approx(smooth_by_sum(c, y), abs=2e-5)


def test_smooth_ece_is_0_without_residuals_and_the_same_for_mirrored_ones():
    assert smooth_ece(np.array([0.0, 1.0, 0.3]), np.array([0.0, 1.0, 0.3])) == 0
    assert smooth_ece(1 - CONFIDENCE, 1 - CORRECT) == pytest.approx(smooth_ece(CONFIDENCE, CORRECT), abs=1e-6)


def test_smoothing_keeps_the_sum_and_works_on_many_at_once():
    cells = GridCells.of(np.array([0.0, 1.0, 0.5, 1e-5, 1 - 1e-5]))
    values = np.array([1.0, 2, 4, 8, 16])
    shared = cells.share(values)
    assert shared.shape == (GRID,)
    assert shared.sum() == pytest.approx(31)
    assert (shared[0], shared[-1], shared[511], shared[512]) == pytest.approx((9, 18, 2, 2))
    stacked = RANDOM.normal(scale=1e-3, size=(2, 3, GRID))
    found = smooth_ece_of_residuals(stacked)
    assert found.shape == (2, 3)
    assert found[1, 2] == pytest.approx(smooth_ece_of_residuals(stacked[1, 2]))


# --- cumulative ---


def test_cumulative_errors_equal_a_loop_over_thresholds():
    confidence = np.round(CONFIDENCE.astype(np.float64), 2)  # with ties
    sums = [(CORRECT[confidence <= t] - confidence[confidence <= t]).sum() / N for t in np.unique(confidence)]
    found = cumulative_error(confidence, CORRECT)
    assert found.maximum == pytest.approx(np.abs(sums).max())
    assert found.range == pytest.approx(max(*sums, 0) - min(*sums, 0))
    order = RANDOM.permutation(N)
    shuffled = cumulative_error(confidence[order], CORRECT[order])
    assert (shuffled.maximum, shuffled.range) == pytest.approx((found.maximum, found.range))


def test_cumulative_errors_of_certain_answers():
    right = cumulative_error(np.array([1.0, 0.0, 1.0]), np.array([1, 0, 1]))
    assert (right.maximum, right.range, right.maximum_p, right.range_p) == (0, 0, 1, 1)
    wrong = cumulative_error(np.array([1.0, 0.0]), np.array([0, 1]))
    assert (wrong.maximum, wrong.range, wrong.maximum_p, wrong.range_p) == (0.5, 0.5, 0, 0)


def test_p_values_of_cumulative_errors_are_those_of_simulation():
    """4,000 walks of 2,000 items of a calibrated model; the p-value of each walk's quantile is the quantile's level."""
    confidence = np.sort(RANDOM.uniform(0.3, 1, size=2000))
    steps = (RANDOM.random((4000, 2000)) < confidence).astype(np.float32) - confidence.astype(np.float32)
    walks = np.cumsum(steps, axis=1) / 2000
    maxima = np.abs(walks).max(axis=1)
    ranges = np.maximum(walks.max(axis=1), 0) - np.minimum(walks.min(axis=1), 0)
    deviation = math.sqrt((confidence * (1 - confidence)).sum()) / 2000
    for level in (0.01, 0.05, 0.2, 0.5, 0.8):
        # A discrete walk's extremes lie a little below those of Brownian motion, so p is a little high.
        for found, observed in ((errors._maximum_p, maxima), (errors._range_p, ranges)):
            p = found(np.quantile(observed, 1 - level) / deviation)
            assert level - 3 * math.sqrt(level / 4000) < p < level + 3 * math.sqrt(level / 4000) + 0.04
    floor = cumulative_error(confidence, (RANDOM.random(2000) < confidence)).floor
    assert floor.mean == pytest.approx(maxima.mean(), rel=0.04)
    assert floor.high == pytest.approx(np.quantile(maxima, 0.95), rel=0.04)


@pytest.mark.parametrize("p_of", [errors._maximum_p, errors._range_p])
def test_p_values_fall_from_1_to_0_without_a_jump(p_of):
    p = np.array([p_of(x) for x in np.linspace(0, 12, 4001)])
    assert (p[0], p[-1] < 1e-15) == (1, True)
    assert (np.diff(p) <= 1e-9).all()
    assert np.abs(np.diff(p)).max() < 5e-3
    tail = np.array([p_of(x) for x in np.linspace(2, 6, 2001)])
    assert (np.diff(np.log(tail)) > -0.02).all(), "a jump where p is small"


def test_known_quantiles_of_brownian_motion():
    assert errors._maximum_p(2.2414) == pytest.approx(0.05, abs=1e-5)
    assert errors._maximum_p(1.96) == pytest.approx(2 * 0.05 - 4 * special.ndtr(-3 * 1.96), abs=2e-5)
    assert errors._range_p(2.4977) == pytest.approx(0.05, abs=1e-4)


# --- from labels and logits ---

LOGITS = RANDOM.normal(scale=2.0, size=(60, 4)).astype(np.float32)
LABELS = RANDOM.integers(4, size=60)


def test_estimates_carry_their_specification():
    found = calibration_error(LABELS, logits=LOGITS, kind="rms", scheme="equal_mass", bins=6)
    probabilities = special.softmax(LOGITS.astype(np.float64), axis=-1)
    confidence = probabilities.max(axis=1).astype(np.float32)
    edges = equal_mass(confidence, 6).all_edges()
    right = probabilities.argmax(axis=1) == LABELS
    assert float(found) == pytest.approx(by_loop("rms", confidence, right, edges), abs=1e-6)
    assert found.specification == {
        "error": "rms",
        "confidence": "probability of the predicted class",
        "bins": 6,
        "scheme": "equal_mass",
        "edges": "(a, b], 0 in the first",
    }
    ece = expected_calibration_error(LABELS, logits=LOGITS)
    assert ece.value == calibration_error(LABELS, logits=LOGITS).value
    assert (ece.specification["bins"], ece.specification["scheme"]) == (15, "equal_width")
    log_probs = special.log_softmax(LOGITS.astype(np.float64), axis=-1).astype(np.float32)
    assert float(expected_calibration_error(LABELS, log_probs=log_probs)) == pytest.approx(ece.value, abs=1e-6)


def test_every_error_takes_factors():
    hidden, output = RANDOM.normal(size=(60, 3)).astype(np.float32), RANDOM.normal(size=(4, 3)).astype(np.float32)
    for function in (expected_calibration_error, classwise_ece):
        found = function(LABELS, logits=FactoredLogits(hidden, output))
        assert float(found) == pytest.approx(float(function(LABELS, logits=hidden @ output.T)), abs=1e-6)


@pytest.mark.parametrize("given", [{"kind": "ECE"}, {"scheme": "quantile"}, {"bins": 0}])
def test_unknown_kinds_are_errors(given):
    with pytest.raises(ValueError):
        calibration_error(LABELS, logits=LOGITS, **given)


def test_classwise_error_equals_a_loop_over_classes():
    probabilities = np.asarray(jax.nn.softmax(LOGITS, axis=-1))
    expected = [by_loop("ece", probabilities[:, c], c == LABELS, np.linspace(0, 1, 9)) for c in range(4)]
    found = classwise_ece(LABELS, logits=LOGITS, bins=8)
    assert float(found) == pytest.approx(np.mean(expected), abs=1e-6)
    totals = class_bin_totals(LABELS, probabilities, 8)
    assert totals.count.sum(axis=1).tolist() == [60] * 4
    assert totals.correct.sum(axis=1).tolist() == np.bincount(LABELS, minlength=4).tolist()
