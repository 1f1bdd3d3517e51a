"""Agreement with other libraries, each under its own conventions, and where they are known to differ.

Runs with whichever of them are installed: torchmetrics, netcal, uncertainty-calibration, relplot, scikit-learn,
betacal, probmetrics. All binned errors agree where no confidence lies on an edge; what happens on edges is why a
number needs its specification.
"""

import numpy as np
import pytest
from scipy import special

from lm.calibration.binning import Binning, bin_totals, equal_mass
from lm.calibration.calibrators import fit
from lm.calibration.errors import BINNED_ERRORS, calibration_error, ece, expected_calibration_error, smooth_ece
from lm.calibration.outcomes import outcomes
from lm.calibration.scores import Ranking, auroc, brier_decomposition

N, C = 500, 5
RANDOM = np.random.default_rng(0)
LOGITS = RANDOM.normal(scale=3.0, size=(N, C)).astype(np.float32)
LABELS = (LOGITS / 2 + RANDOM.gumbel(size=LOGITS.shape)).argmax(axis=1)
PROBABILITIES = special.softmax(LOGITS.astype(np.float64), axis=1)
FOUND = outcomes(LABELS, logits=LOGITS)
CONFIDENCE, CORRECT = FOUND.confidence_N.astype(np.float64), FOUND.correct_N

# Two classes, for calibrators of one probability.
MARGIN = RANDOM.normal(scale=3.0, size=N).astype(np.float32)
TWO_LOGITS = np.stack([np.zeros_like(MARGIN), MARGIN], axis=1)
TWO_LABELS = (RANDOM.random(N) < special.expit(MARGIN / 2 + 0.3)).astype(int)
TWO_P = special.expit(MARGIN.astype(np.float64))
MESH = np.linspace(-8, 8, 101)

FIFTHS, FIFTHS_CORRECT = np.array([0.2, 0.4, 0.6, 0.8, 1.0]), np.array([1, 0, 1, 0, 1])


def ours(name, bins=15, confidence=CONFIDENCE, correct=CORRECT):
    totals = bin_totals(np.float32(confidence), np.float32(correct), Binning(bins))
    return float(BINNED_ERRORS[name](totals))


def calibrated(name, margin):
    """The second class's probability after a fit on the two-class items, without what a fit mixes in."""
    fitted = fit(name, TWO_LOGITS, TWO_LABELS)
    assert fitted.accepted
    margin = np.float32(margin)
    mixed = np.exp(np.asarray(fitted.apply(np.stack([np.zeros_like(margin), margin], axis=1)), np.float64))[:, 1]
    return (mixed * (N + 1) - 0.5) / N


# --- torchmetrics ---


@pytest.fixture(scope="module")
def torch():
    return pytest.importorskip("torch")


@pytest.fixture(scope="module")
def torchmetrics():
    return pytest.importorskip("torchmetrics.functional.classification")


@pytest.mark.parametrize(("name", "norm"), [("ece", "l1"), ("rms", "l2"), ("mce", "max")])
@pytest.mark.parametrize("bins", [10, 15])
def test_torchmetrics(name, norm, bins, torch, torchmetrics):
    expected = torchmetrics.multiclass_calibration_error(
        torch.tensor(PROBABILITIES), torch.tensor(LABELS), num_classes=C, n_bins=bins, norm=norm
    )
    assert ours(name, bins) == pytest.approx(float(expected), abs=1e-6)
    assert float(calibration_error(LABELS, logits=LOGITS, kind=name, bins=bins)) == pytest.approx(
        float(expected), abs=1e-6
    )


def test_torchmetrics_gives_confidences_of_exactly_1_a_bin_of_their_own(torch, torchmetrics):
    confidence, correct = torch.tensor([0.95, 1.0]), torch.tensor([1, 0])
    theirs = float(torchmetrics.binary_calibration_error(confidence, correct, n_bins=10))
    assert theirs == pytest.approx(0.525)
    assert ours("ece", 10, confidence, correct) == pytest.approx(0.475)


def test_torchmetrics_calls_many_float16_items_perfectly_calibrated(torch, torchmetrics):
    confidence = np.random.default_rng(0).random(70_000).astype(np.float16)
    correct = np.random.default_rng(1).random(70_000) < confidence.astype(float) ** 2
    theirs = torchmetrics.binary_calibration_error(torch.tensor(confidence), torch.tensor(correct).int(), n_bins=15)
    assert float(theirs) == 0
    assert ours("ece", 15, confidence, correct) == pytest.approx(1 / 6, abs=0.01)


# --- netcal ---


@pytest.fixture(scope="module")
def netcal():
    pytest.importorskip("netcal.scaling")
    return pytest.importorskip("netcal")


@pytest.mark.parametrize(("name", "theirs"), [("ece", "ECE"), ("mce", "MCE")])
def test_netcal(name, theirs, netcal):
    metrics = pytest.importorskip("netcal.metrics")
    assert ours(name) == pytest.approx(getattr(metrics, theirs)(15).measure(PROBABILITIES, LABELS), abs=1e-6)


def test_netcal_puts_confidences_on_an_edge_in_the_bin_above():
    metrics = pytest.importorskip("netcal.metrics")
    assert metrics.ECE(5).measure(FIFTHS, FIFTHS_CORRECT) == pytest.approx(0.32)
    assert ours("ece", 5, FIFTHS, FIFTHS_CORRECT) == pytest.approx(0.48)


def test_netcal_scales_by_1_whatever_the_float32_data(netcal):
    inverse = {}
    for dtype in (np.float32, np.float64):
        scaling = netcal.scaling.TemperatureScaling()
        scaling.fit(PROBABILITIES.astype(dtype), LABELS)
        inverse[dtype] = scaling.temperature[0]  # which multiplies logits
    found = float(fit("temperature", LOGITS, LABELS).parameters["temperature"])
    assert inverse[np.float32] == 1
    assert 1 / found == pytest.approx(inverse[np.float64], rel=1e-4)
    assert found > 1.5


# --- uncertainty-calibration ---


@pytest.fixture(scope="module")
def uncertainty_calibration():
    pytest.importorskip("calibration.utils")  # without it `calibration` would be this folder
    return pytest.importorskip("calibration")


@pytest.mark.parametrize("bins", [10, 15])
def test_uncertainty_calibration(bins, uncertainty_calibration):
    expected = uncertainty_calibration.get_ece(PROBABILITIES, LABELS, num_bins=bins)
    assert ours("ece", bins) == pytest.approx(expected, abs=1e-6)


def test_uncertainty_calibration_has_the_same_edges(uncertainty_calibration):
    expected = uncertainty_calibration.get_ece(FIFTHS, FIFTHS_CORRECT, num_bins=5)
    assert ours("ece", 5, FIFTHS, FIFTHS_CORRECT) == pytest.approx(expected, abs=1e-6) == 0.48


@pytest.mark.parametrize("binning", [Binning(15), equal_mass(CONFIDENCE, 12)])
def test_debiased_error_of_uncertainty_calibration_in_the_same_bins(binning, uncertainty_calibration):
    from calibration import utils

    confidence = CONFIDENCE.astype(np.float32).astype(np.float64)
    edges = binning.all_edges()[1:]
    data = utils.bin(list(zip(confidence, CORRECT.astype(np.float64), strict=True)), edges.tolist())
    totals = bin_totals(CONFIDENCE, CORRECT, binning)
    assert float(BINNED_ERRORS["rms_debiased"](totals)) == pytest.approx(utils.unbiased_l2_ce(data), abs=1e-6)
    assert float(ece(totals)) == pytest.approx(utils.plugin_ce(data, power=1), abs=1e-6)


# --- relplot ---


def test_relplot():
    relplot = pytest.importorskip("relplot")
    assert ours("ece") == pytest.approx(relplot.metrics.binnedECE(CONFIDENCE, CORRECT, nbins=15), abs=1e-6)
    assert relplot.metrics.binnedECE(np.array([0.95, 1.0]), np.array([1, 0]), nbins=10) == pytest.approx(0.525)


@pytest.mark.parametrize("over_confidence", [0.0, 0.02, 0.2])
def test_smooth_error_of_relplot(over_confidence):
    """Within what its mesh of 200 points rounds; by that its bisection of the width may end a step apart, too."""
    relplot = pytest.importorskip("relplot")
    confidence = RANDOM.uniform(0.3, 1, size=2000)
    correct = (RANDOM.random(2000) < confidence - over_confidence).astype(np.float64)
    assert smooth_ece(confidence, correct) == pytest.approx(relplot.smECE(confidence, correct), abs=5e-4)


# --- scikit-learn ---


@pytest.fixture(scope="module")
def sklearn():
    for module in ("calibration", "isotonic", "metrics"):
        pytest.importorskip(f"sklearn.{module}")
    return pytest.importorskip("sklearn")


def test_scores_of_scikit_learn(sklearn):
    metrics = sklearn.metrics
    assert FOUND.nll_N.mean() == pytest.approx(metrics.log_loss(LABELS, PROBABILITIES), abs=1e-6)
    assert auroc(Ranking.of(CONFIDENCE), CORRECT) == pytest.approx(metrics.roc_auc_score(CORRECT, CONFIDENCE), abs=1e-6)
    votes = np.round(CONFIDENCE * 10) / 10  # with many ties
    assert auroc(Ranking.of(votes), CORRECT) == pytest.approx(metrics.roc_auc_score(CORRECT, votes), abs=1e-12)
    weights = RANDOM.poisson(1.0, size=N).astype(np.float64)
    expected = metrics.roc_auc_score(CORRECT, votes, sample_weight=weights)
    assert auroc(Ranking.of(votes), CORRECT, weights) == pytest.approx(expected, abs=1e-12)


def test_brier_score_of_scikit_learn_is_half_of_ours_for_two_classes(sklearn):
    half = sklearn.metrics.brier_score_loss(TWO_LABELS, TWO_P)
    assert outcomes(TWO_LABELS, logits=TWO_LOGITS).brier_N.mean() == pytest.approx(2 * half, abs=1e-6)
    both = np.stack([1 - TWO_P, TWO_P], axis=1)
    assert brier_decomposition(TWO_LABELS, both).brier == pytest.approx(2 * half, abs=1e-12)


@pytest.mark.parametrize(("confidence", "correct", "bins"), [(CONFIDENCE, CORRECT, 15), (FIFTHS, FIFTHS_CORRECT, 5)])
def test_calibration_curve_of_scikit_learn(confidence, correct, bins, sklearn):
    accuracy, mean = sklearn.calibration.calibration_curve(correct, confidence, n_bins=bins, strategy="uniform")
    totals = bin_totals(np.float32(confidence), np.float32(correct), Binning(bins))
    held = totals.count > 0
    np.testing.assert_allclose((totals.correct / np.maximum(totals.count, 1))[held], accuracy, atol=1e-6)
    np.testing.assert_allclose((totals.confidence / np.maximum(totals.count, 1))[held], mean, atol=1e-6)


def test_isotonic_regression_of_scikit_learn(sklearn):
    p = np.asarray(special.softmax(TWO_LOGITS, axis=1)[:, 1], np.float64)
    reference = sklearn.isotonic.IsotonicRegression(out_of_bounds="clip").fit(p, TWO_LABELS)
    np.testing.assert_allclose(calibrated("isotonic", MARGIN), reference.predict(p), atol=1e-5)
    between = reference.predict(special.softmax(np.float32(np.stack([0 * MESH, MESH], axis=1)), axis=1)[:, 1])
    np.testing.assert_allclose(calibrated("isotonic", MESH), between, atol=1e-3)  # steep between neighbours


# --- betacal, probmetrics ---


def test_betacal():
    """Within what the tolerance of its regression leaves open."""
    betacal = pytest.importorskip("betacal")
    reference = betacal.BetaCalibration("abm").fit(TWO_P.reshape(-1, 1), TWO_LABELS)
    expected = reference.predict(special.expit(MESH).reshape(-1, 1))
    np.testing.assert_allclose(calibrated("beta", MESH), expected, atol=5e-4)


def test_probmetrics(torch):
    metrics = pytest.importorskip("probmetrics.metrics")
    expected = metrics.Metric.from_name("ece-15").compute_from_labels_logits(
        torch.tensor(LABELS), torch.tensor(LOGITS.astype(np.float64))
    )
    assert float(expected_calibration_error(LABELS, logits=LOGITS)) == pytest.approx(float(expected), abs=1e-6)


def test_temperature_of_probmetrics():
    calibrators = pytest.importorskip("probmetrics.calibrators")
    reference = calibrators.TemperatureScalingCalibrator().fit(PROBABILITIES, LABELS)
    found = float(fit("temperature", LOGITS, LABELS).parameters["temperature"])
    assert 1 / found == pytest.approx(reference.invtemp_, rel=1e-4)
