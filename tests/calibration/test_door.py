"""Every public function of the calibration library checks what it gets, and weights are copies."""

import jax
import numpy as np
import pytest
from scipy import special

from lm.calibration import binning, conformal, errors, outcomes, scores, selective
from lm.calibration.inputs import InputError
from lm.calibration.noise_floor import null_totals

N, C = 80, 4
RANDOM = np.random.default_rng(3)
LOGITS = RANDOM.normal(scale=2, size=(N, C)).astype(np.float32)
P = special.softmax(LOGITS.astype(np.float64), axis=1)
LABELS = RANDOM.integers(C, size=N)
CONFIDENCE, CORRECT = P.max(axis=1), (P.argmax(axis=1) == LABELS).astype(float)
SETS = conformal.fit_sets(LOGITS, LABELS)

OF_LOGITS = {
    "outcomes": lambda labels, logits: outcomes.outcomes(labels, logits=logits),
    "top_label": lambda labels, logits: outcomes.top_label(labels, logits=logits),
    "calibration_error": lambda labels, logits: errors.calibration_error(labels, logits=logits, resamples=20),
    "expected_calibration_error": lambda labels, logits: errors.expected_calibration_error(labels, logits=logits),
    "classwise_ece": lambda labels, logits: errors.classwise_ece(labels, logits=logits),
    "fit_sets": lambda labels, logits: conformal.fit_sets(logits, labels),
    "sets": lambda labels, logits: conformal.report_sets(SETS.sets(logits), labels),
    "brier_decomposition": lambda labels, logits: scores.brier_decomposition(
        labels, special.softmax(np.asarray(logits, np.float64), axis=-1)
    ),
}
OF_CONFIDENCE = {
    "bin_totals": lambda confidence, correct: binning.bin_totals(confidence, correct, binning.Binning(5)),
    "smooth_ece": errors.smooth_ece,
    "cumulative_error": errors.cumulative_error,
    "threshold_for_risk": lambda confidence, correct: selective.threshold_for_risk(confidence, correct, 0.3),
    "null_totals": lambda confidence, correct: null_totals(
        confidence,
        correct,
        binning.Binning(5),
        resamples=9,
        rng=np.random.default_rng(0),
        clusters_N=np.arange(len(confidence)),
    ),
}


def changed(values, place, value):
    values = np.array(values)
    values[place] = value
    return values


@pytest.mark.parametrize("function", OF_LOGITS.values(), ids=OF_LOGITS)
def test_labels_and_logits_are_checked_everywhere(function):
    function(LABELS.tolist(), LOGITS.tolist())
    for labels, logits in (
        (changed(LABELS, 5, -1), LOGITS),
        (changed(LABELS, 5, -100), LOGITS),
        (changed(LABELS, 5, C), LOGITS),
        (LABELS.astype(float), LOGITS),
        (LABELS[1:], LOGITS),
        (np.eye(C, dtype=int)[LABELS], LOGITS),
        (LABELS, changed(LOGITS, (3, 1), np.nan)),
        (LABELS, changed(LOGITS, (3, 1), np.inf)),
        (LABELS, LOGITS.reshape(N, C, 1, 1)),
        (LABELS[:0], LOGITS[:0]),
    ):
        with pytest.raises(InputError), np.errstate(invalid="ignore"):
            function(labels, logits)


@pytest.mark.parametrize("function", OF_CONFIDENCE.values(), ids=OF_CONFIDENCE)
def test_confidences_and_correctness_are_checked_everywhere(function):
    function(CONFIDENCE.tolist(), CORRECT.tolist())
    for confidence, correct in (
        (100 * CONFIDENCE, CORRECT),
        (changed(CONFIDENCE, 3, np.nan), CORRECT),
        (CONFIDENCE, LABELS + 1),
        (CONFIDENCE, CORRECT[1:]),
        (CONFIDENCE[:0], CORRECT[:0]),
        (P, CORRECT),
    ):
        with pytest.raises(InputError):
            function(confidence, correct)


def test_other_functions_check_too():
    with pytest.raises(InputError, match="percentages"):
        binning.equal_mass(100 * CONFIDENCE)
    with pytest.raises(InputError, match="percentages"):
        binning.near_edges(100 * CONFIDENCE, binning.Binning(5))
    with pytest.raises(InputError, match="correct"):
        scores.auroc(scores.Ranking.of(CONFIDENCE), LABELS + 1)
    with pytest.raises(InputError, match="sets must be bool"):
        conformal.report_sets(LOGITS, LABELS)
    with pytest.raises(InputError, match="give them as logits"):
        scores.brier_decomposition(LABELS, LOGITS)
    with pytest.raises(InputError, match="fitted to 4 classes"):
        SETS.sets(LOGITS[:, :3])
    with pytest.raises(InputError, match="not bools"):
        errors.smooth_ece(CORRECT.astype(bool), CONFIDENCE)  # in the wrong order
    for edges in ((0.2, 0.5, 0.8), (0, np.nan, 1), (0, 0.5, 2), (0, 1), (0, 1, 1)):
        with pytest.raises(InputError, match="edges"):
            binning.Binning(2, edges)


OF_A_NUMBER = {
    "bins": lambda bins: errors.calibration_error(LABELS, logits=LOGITS, bins=bins, resamples=0),
    "bins of equal mass": lambda bins: binning.equal_mass(CONFIDENCE, bins),
    "bins of classwise_ece": lambda bins: errors.classwise_ece(LABELS, logits=LOGITS, bins=bins),
    "bins of brier_decomposition": lambda bins: scores.brier_decomposition(LABELS, P, bins),
    "resamples": lambda number: errors.calibration_error(LABELS, logits=LOGITS, resamples=number or -1),
    "seed": lambda seed: errors.calibration_error(LABELS, logits=LOGITS, resamples=20, seed=seed or -1),
    "seed of fit_sets": lambda seed: conformal.fit_sets(LOGITS, LABELS, method="raps", seed=seed or -1),
    "free": lambda free: conformal.fit_sets(LOGITS, LABELS, method="raps", free=free or -1),
    "penalty": lambda penalty: conformal.fit_sets(LOGITS, LABELS, method="raps", penalty=penalty or -1),
    "level": lambda level: errors.calibration_error(LABELS, logits=LOGITS, level=level),
    "coverage": lambda coverage: conformal.fit_sets(LOGITS, LABELS, coverage),
    "coverage of accuracy_at_coverage": lambda coverage: scores.accuracy_at_coverage(
        scores.Ranking.of(CONFIDENCE), CORRECT, coverage
    ),
    "risk": lambda risk: selective.threshold_for_risk(CONFIDENCE, CORRECT, risk),
}


@pytest.mark.parametrize("function", OF_A_NUMBER.values(), ids=OF_A_NUMBER)
@pytest.mark.parametrize("value", [0, -3, "2", None, np.nan])
def test_single_numbers_are_checked_everywhere(function, value):
    with pytest.raises(InputError):
        function(value)


def test_counts_of_votes_and_rounded_rows_can_be_normalized_everywhere():
    counts = RANDOM.integers(0, 9, size=(N, C)) + np.eye(C, dtype=int)[LABELS]
    shares = counts / counts.sum(axis=1, keepdims=True)
    for function in (errors.calibration_error, errors.expected_calibration_error, errors.classwise_ece):
        found, expected = function(LABELS, probabilities=counts, normalize=True), function(LABELS, probabilities=shares)
        assert float(found) == pytest.approx(float(expected))
    found = scores.brier_decomposition(LABELS, counts, normalize=True)
    assert found.brier == pytest.approx(scores.brier_decomposition(LABELS, shares).brier)
    under_jit = jax.jit(lambda p: outcomes.outcomes(LABELS, probabilities=p, normalize=True))(counts.astype(float))
    np.testing.assert_allclose(under_jit.nll_N, -np.log(shares[np.arange(N), LABELS]), rtol=1e-5)


# --- weights ---


def test_whole_weights_are_copies():
    weights = RANDOM.integers(1, 4, size=N)
    copies = np.repeat(np.arange(N), weights)
    confidence, correct = CONFIDENCE[copies], CORRECT[copies]
    for kind in ("ece", "mce", "rms", "signed_gap"):
        weighted = errors.calibration_error(LABELS, probabilities=P, kind=kind, weights=weights, resamples=0)
        copied = errors.calibration_error(LABELS[copies], probabilities=P[copies], kind=kind, resamples=0)
        assert weighted.value == pytest.approx(copied.value, abs=1e-6)
    assert errors.smooth_ece(CONFIDENCE, CORRECT, weights) == pytest.approx(errors.smooth_ece(confidence, correct))
    one, other = errors.cumulative_error(CONFIDENCE, CORRECT, weights), errors.cumulative_error(confidence, correct)
    assert (one.maximum, one.range) == pytest.approx((other.maximum, other.range))
    assert one.floor.mean > other.floor.mean  # there are no more items than before


def test_clusters_of_copies_are_weights():
    weights = RANDOM.integers(1, 4, size=N)
    copies = np.repeat(np.arange(N), weights)
    weighted = errors.calibration_error(LABELS, probabilities=P, clusters=np.arange(N), weights=weights)
    copied = errors.calibration_error(LABELS[copies], probabilities=P[copies], clusters=copies)
    assert weighted.floor.p == copied.floor.p
    assert weighted.floor.mean == pytest.approx(copied.floor.mean)
    ends = [(each.interval.low, each.interval.high) for each in (weighted, copied)]
    assert ends[0] == pytest.approx(ends[1], abs=1e-6)


def test_the_scale_of_weights_does_not_matter():
    weights = RANDOM.uniform(0.1, 3, size=N)
    one, other = (
        errors.calibration_error(LABELS, probabilities=P, weights=scale * weights, resamples=200) for scale in (1, 64)
    )
    assert one.value == pytest.approx(other.value)
    assert one.floor.mean == pytest.approx(other.floor.mean)
    assert one.interval.high == pytest.approx(other.interval.high)


def test_without_a_meaning_weights_are_refused():
    with pytest.raises(InputError, match="rms_debiased"):
        errors.calibration_error(LABELS, probabilities=P, kind="rms_debiased", weights=np.ones(N))
    with pytest.raises(InputError, match="weights of item 2 is -1"):
        errors.calibration_error(LABELS, probabilities=P, weights=changed(np.ones(N), 2, -1))


def test_weights_of_ranking_metrics_are_counts():
    ranking, weights = scores.Ranking.of(CONFIDENCE), RANDOM.integers(0, 4, size=N)
    copies = np.repeat(np.arange(N), weights)
    copied = scores.Ranking.of(CONFIDENCE[copies])
    for metric in (scores.auroc, scores.aurc):
        assert metric(ranking, CORRECT, weights) == pytest.approx(metric(copied, CORRECT[copies]))
        for wrong in (-weights, weights[1:], changed(weights.astype(float), 2, np.nan)):
            with pytest.raises(InputError, match="weights"):
                metric(ranking, CORRECT, wrong)
    with pytest.raises(InputError, match="whole numbers"):
        scores.aurc(ranking, CORRECT, weights / 2)
    with pytest.raises(InputError, match="all 0"):
        scores.risk_coverage(ranking, CORRECT, 0 * weights)


def test_items_of_weight_0_are_no_items():
    weights = np.where(np.arange(N) < 50, RANDOM.uniform(0.5, 2, size=N), 0)
    found = errors.calibration_error(LABELS, probabilities=P, weights=weights)
    assert found == errors.calibration_error(LABELS[:50], probabilities=P[:50], weights=weights[:50])
    one_counts = errors.calibration_error(LABELS, probabilities=P, weights=weights, clusters=weights > 0)
    assert np.isnan([one_counts.floor.p, one_counts.interval.low, one_counts.interval.high]).all()


# --- an error with its uncertainty ---


def test_an_error_has_an_interval_a_floor_and_p():
    rng = np.random.default_rng(0)
    p = special.softmax(rng.normal(size=(3000, 3)), axis=1)
    labels = (p.cumsum(axis=1) < rng.random((3000, 1))).sum(axis=1).clip(0, 2)
    calibrated = errors.calibration_error(labels, probabilities=p)
    assert calibrated.floor.p > 0.01
    assert calibrated.interval.low == 0
    sharper = p**3 / (p**3).sum(axis=1, keepdims=True)
    found = errors.calibration_error(labels, probabilities=sharper)
    assert found.floor.p < 0.002
    assert found.floor.high < found.interval.low < found.value < found.interval.high


def test_one_cluster_gives_neither_interval_nor_p():
    found = errors.calibration_error(LABELS, probabilities=P, clusters=np.zeros(N))
    assert np.isnan([found.floor.p, found.interval.low, found.interval.high]).all()
    assert found.value > 0
