"""The comparison: its results are those of the metrics, its JSON is complete, and parts cannot overlap."""

import dataclasses
import functools
import json

import numpy as np
import pytest

from lm.calibration import errors, scores
from lm.calibration.binning import Binning, bin_totals, equal_mass
from lm.calibration.calibrators import fit
from lm.calibration.comparison import compare
from lm.calibration.logits import FactoredLogits
from lm.calibration.outcomes import outcomes
from lm.calibration.predictions import Predictions, split
from lm.calibration.results import Items, Settings, to_json
from lm.errors import UserError
from lm.statistics.comparisons import Difference

N, C = 400, 3
SETTINGS = Settings(bins=12, resamples=120, seed=5)
NAMES = ("temperature", "histogram", "scaling_binning")


@functools.cache
def parts(clusters=False, over_confidence=3.0):
    """Logits that are too large, or calibrated."""
    rng = np.random.default_rng(1)
    logits = rng.normal(scale=1.5, size=(N, C))
    labels = (logits + rng.gumbel(size=logits.shape)).argmax(axis=1)
    logits = (logits * over_confidence).astype(np.float32)
    whole = Predictions(logits, labels, np.arange(N), np.arange(N) // 8 if clusters else None)
    return split(whole, 0.5, seed=0)


@functools.cache
def compared(clusters=False, over_confidence=3.0, names=NAMES):
    return compare(*parts(clusters, over_confidence), names, SETTINGS, title="a title", source="predictions.npz")


BINNED = {"ece", "ece_equal_mass", "smooth_ece", "ks", "mce", "rms", "rms_debiased", "classwise_ece", "signed_gap"}
UNBINNED = {"nll", "brier", "accuracy", "confidence", "entropy", "auroc", "aurc"}


@pytest.mark.parametrize("clusters", [False, True])
def test_every_method_has_guarantees_on_the_test_items(clusters):
    """Halves of 200 independent items; 25 clusters are too few to choose from."""
    for method in compared(clusters)[0].methods:
        assert (method.guarantees is None) == clusters
        if not clusters:
            assert (method.guarantees.chosen_on, method.guarantees.judged_on) == (100, 100)
            assert len(method.guarantees.sets) == len(SETTINGS.risks) == 3


@pytest.mark.parametrize("clusters", [False, True])
def test_every_method_has_every_metric(clusters):
    comparison, fitted = compared(clusters)
    assert list(fitted) == list(NAMES)
    fit_part, test_part = parts(clusters)
    assert comparison.items == Items(
        fit=len(fit_part),
        test=len(test_part),
        fit_clusters=len(set(fit_part.clusters_N)) if clusters else None,
        test_clusters=len(set(test_part.clusters_N)) if clusters else None,
        classes=C,
    )
    assert comparison.settings == SETTINGS
    assert (comparison.title, comparison.source) == ("a title", "predictions.npz")
    columns = [metric.name for metric in comparison.metrics]
    assert set(columns) == BINNED | UNBINNED
    assert [method.name for method in comparison.methods] == ["none", *NAMES]
    for method in comparison.methods:
        assert list(method.entries) == columns
        assert {name for name, entry in method.entries.items() if entry.floor} == BINNED
        for name, entry in method.entries.items():
            assert entry.interval.low <= entry.interval.high
            assert (entry.difference is None) == (method.name == "none"), name
            if entry.difference:
                assert 0 <= entry.difference.p <= 1
            if entry.floor:
                assert 0 <= entry.floor.p <= 1
                assert 0 <= entry.floor.mean <= entry.floor.high
    assert comparison.method("temperature").summary.startswith("T = ")


def test_a_comparison_is_searched_by_name():
    comparison, _ = compared(False)
    assert comparison.method("none") is comparison.uncalibrated
    assert comparison.metric("nll").label == "NLL"
    with pytest.raises(KeyError):
        comparison.method("bias")
    nothing = dataclasses.replace(comparison.uncalibrated, entries={}).entry("ece")
    assert np.isnan(nothing.value)
    assert nothing.interval is nothing.floor is nothing.difference is None


def test_json_holds_every_number_under_its_name():
    comparison, _ = compared(True)
    held = to_json(comparison)
    assert json.loads(json.dumps(held, allow_nan=False)) == held
    assert list(held) == ["title", "source", "items", "settings", "metrics", "methods", "notes"]
    known = {"bins": 12, "resamples": 120, "level": 0.95, "seed": 5}
    assert held["settings"] == {**known, "coverage": 0.9, "risks": [0.05, 0.1, 0.2]}
    ece = held["metrics"][0]
    described = ["label", "long", "unit", "better", "definition", "formula", "source", "specification"]
    assert list(ece) == ["name", *described]
    assert (ece["specification"]["bins"], ece["specification"]["scheme"]) == (12, "equal_width")
    method, found = held["methods"][1], comparison.method("temperature")
    facts = ["name", "label", "summary", "converged", "at_bound", "accepted", "message"]
    assert list(method) == [*facts, "metrics", "bins", "risk_coverage", "guarantees"]
    assert [method[name] for name in facts] == [getattr(found, name) for name in facts]
    entry = found.entry("ece")
    assert method["metrics"]["ece"] == {
        "value": entry.value,
        "low": entry.interval.low,
        "high": entry.interval.high,
        "floor_mean": entry.floor.mean,
        "floor_high": entry.floor.high,
        "p_calibrated": entry.floor.p,
        "difference": dataclasses.asdict(entry.difference),
    }
    assert set(method["metrics"]["nll"]) == {"value", "low", "high", "difference"}
    assert set(held["methods"][0]["metrics"]["nll"]) == {"value", "low", "high"}
    assert method["bins"] == [dataclasses.asdict(one) for one in found.bins]
    assert method["risk_coverage"] == [list(point) for point in found.risk_coverage]


def test_values_are_those_of_the_metrics():
    comparison, fitted = compared(False)
    _, test_part = parts()
    for method in comparison.methods:
        name = method.name
        logits = test_part.logits if name == "none" else fitted[name].apply(test_part.logits)
        found = outcomes(test_part.labels_N, logits=logits)
        confidence, correct = found.confidence_N, found.correct_N
        ranking = scores.Ranking.of(confidence)
        expected = {
            "ece": errors.expected_calibration_error(test_part.labels_N, logits=logits, bins=12),
            "mce": errors.mce(bin_totals(confidence, correct, Binning(12))),
            "ece_equal_mass": errors.ece(bin_totals(confidence, correct, equal_mass(confidence, 12))),
            "classwise_ece": errors.classwise_ece(test_part.labels_N, logits=logits, bins=12),
            "smooth_ece": errors.smooth_ece(confidence, correct),
            "ks": errors.cumulative_error(confidence, correct).maximum,
            "signed_gap": confidence.astype(float).mean() - correct.mean(),
            "nll": found.nll_N.mean(),
            "brier": found.brier_N.mean(),
            "accuracy": correct.mean(),
            "confidence": confidence.mean(),
            "entropy": found.entropy_N.mean(),
            "auroc": scores.auroc(ranking, correct),
            "aurc": scores.aurc(ranking, correct),
        }
        for metric, value in expected.items():
            assert method.entry(metric).value == pytest.approx(float(value), abs=2e-6), (name, metric)
            if name != "none":
                before = comparison.uncalibrated.entry(metric).value
                change = method.entry(metric).difference.value
                assert change == pytest.approx(float(value) - before, abs=4e-6)


def test_bins_and_risk_coverage_are_those_of_the_items():
    comparison, _ = compared(False)
    for method in comparison.methods:
        rows = method.bins
        count = sum(row.count for row in rows)
        assert count == len(parts()[1])
        for row in rows:
            assert row.count > 0
            assert row.low <= row.confidence <= row.high
            assert 0 <= row.accuracy_low <= row.accuracy <= row.accuracy_high <= 1
            assert 0 <= row.band_low <= row.band_high <= 1
        ece = sum(row.count / count * abs(row.accuracy - row.confidence) for row in rows)
        assert ece == pytest.approx(method.entry("ece").value, abs=1e-9)
        curve = np.array(method.risk_coverage)
        assert len(curve) <= 200
        assert (np.diff(curve[:, 0]) > 0).all()
        assert curve[-1].tolist() == pytest.approx([1, 1 - method.entry("accuracy").value])


@pytest.mark.parametrize("clusters", [False, True])
def test_overconfidence_is_detected_and_corrected(clusters):
    comparison, _ = compared(clusters)
    before, after = comparison.uncalibrated, comparison.method("temperature")
    assert before.entry("ece").floor.p < 0.02
    assert before.entry("ece").interval.low > 0.05
    assert before.entry("signed_gap").interval.low > 0.05
    for name in ("ece", "ece_equal_mass", "smooth_ece", "ks", "rms", "nll"):
        assert after.entry(name).difference.high < 0, name
        assert after.entry(name).difference.p < 0.1, name
    assert after.entry("ece").floor.p > 0.05
    assert after.entry("ece").interval.low == 0
    assert 2 < float(after.summary.removeprefix("T = ")) < 4


def test_temperature_changes_neither_accuracy_nor_the_order_of_methods():
    before, after = (compared(False)[0].method(name).entry("accuracy") for name in ("none", "temperature"))
    assert after.value == before.value
    assert after.difference == Difference(0, 0, 0, 1)


def test_the_same_seed_gives_the_same_numbers():
    again, _ = compare(*parts(), ("temperature",), SETTINGS, title="a title", source="predictions.npz")
    assert again.methods == compared(False)[0].methods[:2]  # independent of the other methods
    other, _ = compare(*parts(), (), dataclasses.replace(SETTINGS, seed=6))
    one, another = again.uncalibrated, other.uncalibrated
    assert one.entry("ece").value == another.entry("ece").value
    assert one.entry("ece").interval.high != another.entry("ece").interval.high
    assert one.entry("nll") == another.entry("nll")  # not resampled


def test_a_method_that_is_not_accepted_changes_nothing():
    comparison, fitted = compared(over_confidence=1.0)
    name = next(name for name in NAMES if not fitted[name].accepted)
    method, before = comparison.method(name), comparison.uncalibrated
    assert not method.accepted
    assert method.message.startswith("not used")
    for metric, entry in method.entries.items():
        assert entry.value == before.entry(metric).value
        assert entry.difference == Difference(0, 0, 0, 1), metric
    assert before.entry("ece").floor.p > 0.05


def test_a_fit_at_its_bound_has_a_message():
    fit_part, test_part = parts()
    separable = dataclasses.replace(fit_part, labels_N=fit_part.logits.argmax(axis=1))
    comparison, _ = compare(separable, test_part, ("temperature",), SETTINGS)
    method = comparison.method("temperature")
    assert method.at_bound
    assert method.message


def test_clusters_widen_intervals():
    """Four copies of each item carry no more information than one."""
    fit_part, test_part = parts()
    index = np.repeat(np.arange(len(test_part)), 4)
    copied = Predictions(
        test_part.logits[index], test_part.labels_N[index], 10_000 + np.arange(index.size), 1000 + index
    )
    in_clusters = dataclasses.replace(fit_part, clusters_N=fit_part.ids_N)
    with_clusters = compare(in_clusters, copied, (), SETTINGS)[0].uncalibrated
    without = compare(fit_part, dataclasses.replace(copied, clusters_N=None), (), SETTINGS)[0].uncalibrated
    once = compared(False)[0].uncalibrated
    for name in ("nll", "accuracy", "ece", "signed_gap", "ks", "auroc", "classwise_ece"):
        intervals = [method.entry(name).interval for method in (with_clusters, without, once)]
        widths = [interval.high - interval.low for interval in intervals]
        assert widths[0] == pytest.approx(widths[2], rel=0.35), name
        assert widths[1] < 0.75 * widths[0], name


def test_resampled_cumulative_errors_group_equal_confidences():
    """Correct and wrong answers of equal confidence cancel, in any order."""
    logits = np.tile(np.log(np.float32([0.6, 0.4])), (200, 1))
    labels = (np.arange(200) >= 100).astype(int)  # half are right, and come first
    test_part = Predictions(logits, labels, np.arange(200))
    fit_part = Predictions(logits, labels, 200 + np.arange(200))
    entry = compare(fit_part, test_part, (), SETTINGS)[0].uncalibrated.entry("ks")
    assert entry.value == pytest.approx(0.1, abs=1e-6)
    assert entry.interval.low < 0.08
    assert 0.14 < entry.interval.high < 0.2


def test_the_floor_of_cumulative_errors_does_not_depend_on_a_grid():
    """Confidences within a single grid cell still have a maximum cumulative sum."""
    rng = np.random.default_rng(0)
    confidence = rng.uniform(0.9002, 0.9006, size=200)
    logits = np.log(np.stack([confidence, 1 - confidence], axis=1)).astype(np.float32)
    labels = (rng.random(200) > confidence).astype(int)
    two = [Predictions(logits, labels, start + np.arange(200)) for start in (0, 200)]
    entry = compare(*two, (), Settings(resamples=20))[0].uncalibrated.entry("ks")
    steps = (rng.random((4000, 200)) < np.sort(confidence)) - np.sort(confidence)
    largest = np.abs(np.cumsum(steps, axis=1)).max(axis=1) / 200
    assert entry.floor.mean == pytest.approx(largest.mean(), rel=0.06)
    assert entry.floor.high == pytest.approx(np.quantile(largest, 0.95), rel=0.06)
    assert entry.floor.p == pytest.approx((largest >= entry.value).mean(), abs=0.06)


def test_factored_logits_give_the_results_of_their_product():
    rng = np.random.default_rng(0)
    hidden, output = rng.normal(size=(N, 4)).astype(np.float32), 2 * rng.normal(size=(C, 4)).astype(np.float32)
    labels = rng.integers(C, size=N)
    given = [
        split(Predictions(logits, labels, np.arange(N)), 0.5, 0)
        for logits in (FactoredLogits(hidden, output), hidden @ output.T)
    ]
    found, expected = (compare(*both, ("temperature",), SETTINGS)[0] for both in given)
    for one, other in zip(found.methods, expected.methods, strict=True):
        for name, entry in one.entries.items():
            assert entry.value == pytest.approx(other.entry(name).value, abs=1e-4), name


def test_undefined_metrics_are_null_in_json():
    logits = np.abs(np.random.default_rng(0).normal(size=(60, 2))).astype(np.float32) * np.float32([1, -1])
    two = [Predictions(logits, np.zeros(60, int), start + np.arange(60)) for start in (0, 60)]
    comparison, _ = compare(*two, ("temperature",), SETTINGS)
    held = to_json(comparison)
    json.dumps(held, allow_nan=False)
    entry = held["methods"][1]["metrics"]["auroc"]
    assert (entry["value"], entry["low"], entry["high"], entry["difference"]["value"]) == (None,) * 4
    assert comparison.method("temperature").entry("accuracy").value == 1


def test_overlapping_parts_and_unknown_calibrators_are_errors():
    fit_part, test_part = parts()
    with pytest.raises(UserError, match="share 200 ids"):
        compare(test_part, test_part, ("temperature",), SETTINGS)
    with pytest.raises(UserError, match="share 1 ids"):
        compare(fit_part, dataclasses.replace(test_part, ids_N=np.append(test_part.ids_N[1:], fit_part.ids_N[0])), ())
    with pytest.raises(ValueError, match="unknown calibrator"):
        compare(fit_part, test_part, ("temprature",), Settings(resamples=5))


def test_progress_is_reported_for_each_method():
    names = []
    compare(*parts(), ("temperature",), Settings(resamples=5), progress=names.append)
    assert names == ["none", "temperature"]


def test_calibrators_see_only_the_fit_part():
    _, fitted = compared(False)
    fit_part, _ = parts()
    alone = fit("temperature", fit_part.logits, fit_part.labels_N)
    assert fitted["temperature"].parameters == alone.parameters
