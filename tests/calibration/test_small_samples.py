"""What few clusters, accuracies of 0 and 100%, and weights do to the numbers of a comparison."""

import dataclasses
import functools

import numpy as np
import pytest

from lm.calibration.comparison import compare
from lm.calibration.predictions import Predictions
from lm.calibration.report.wording import verdict
from lm.calibration.results import Settings
from lm.statistics.intervals import wilson_interval

RANDOM = np.random.default_rng(4)
N, C = 40, 3
SETTINGS = Settings(resamples=60)


def drawn(items: int) -> tuple[np.ndarray, np.ndarray]:
    """Logits that are three times too large, and labels."""
    logits = RANDOM.normal(scale=1.5, size=(items, C))
    labels = (logits + RANDOM.gumbel(size=logits.shape)).argmax(axis=1)
    return (3 * logits).astype(np.float32), labels


FIT = Predictions(*drawn(400), np.array([f"fit {i}" for i in range(400)]))
LOGITS, LABELS = drawn(N)


def compared(logits, labels, clusters=None, weights=None):
    fit = FIT if clusters is None else dataclasses.replace(FIT, clusters_N=-1 - np.arange(400))
    test = Predictions(logits, labels, np.arange(len(labels)), clusters, weights_N=weights)
    return compare(fit, test, ["temperature"], SETTINGS)[0]


@functools.cache
def of_clusters(number: int):
    """The same items in each cluster, so that all clusters change alike."""
    copies = np.tile(np.arange(N), number)
    return compared(LOGITS[copies], LABELS[copies], np.repeat(np.arange(number), N))


def test_three_clusters_that_change_alike_give_a_quarter():
    """Two of the eight ways to swap them give as large a difference, whatever float32 rounds."""
    entries = of_clusters(3).method("temperature").entries
    for name in (
        "ece",
        "ece_equal_mass",
        "smooth_ece",
        "ks",
        "mce",
        "rms",
        "classwise_ece",
        "nll",
        "brier",
        "confidence",
    ):
        assert entries[name].difference.value != 0
        assert entries[name].difference.p == 0.25, name
    assert entries["accuracy"].difference.p == 1


def test_one_cluster_gives_neither_intervals_nor_p():
    found = of_clusters(1)
    for method in found.methods:
        for name, entry in method.entries.items():
            assert np.isfinite(entry.value), name
            assert entry.interval is None or np.isnan([entry.interval.low, entry.interval.high]).all(), name
            assert entry.floor is None or np.isnan(entry.floor.p), name
            if entry.difference is not None:
                assert np.isnan([entry.difference.p, entry.difference.low, entry.difference.high]).all(), name


@pytest.mark.parametrize("right", [True, False])
def test_an_accuracy_of_0_or_100_percent_is_not_certain(right):
    logits = np.tile(np.float32([[2, 0, -1]]), (150, 1)) + RANDOM.normal(scale=0.1, size=(150, 3)).astype(np.float32)
    accuracy = compared(logits, np.full(150, 0 if right else 2)).uncalibrated.entry("accuracy")
    assert accuracy.value == right
    assert (accuracy.interval.low, accuracy.interval.high) == pytest.approx(wilson_interval(150.0 * right, 150))
    assert accuracy.interval.high - accuracy.interval.low == pytest.approx(0.02497, abs=1e-4)


def test_weights_are_copies_in_every_metric():
    weights = RANDOM.integers(1, 4, size=N)
    copies = np.repeat(np.arange(N), weights)
    weighted = compared(LOGITS, LABELS, np.arange(N), weights)
    copied = compared(LOGITS[copies], LABELS[copies], copies)
    assert {"rms_debiased", "aurc"}.isdisjoint(weighted.uncalibrated.entries)
    for one, other in zip(weighted.methods, copied.methods, strict=True):
        for name, entry in one.entries.items():
            expected = other.entries[name]
            # Edges of equal mass are those of the items.
            if name == "ece_equal_mass":
                continue
            assert entry.value == pytest.approx(expected.value, abs=1e-5), name
            assert entry.interval.low == pytest.approx(expected.interval.low, abs=1e-4), name
            assert entry.interval.high == pytest.approx(expected.interval.high, abs=1e-4), name
            if entry.floor:
                assert entry.floor.p == pytest.approx(expected.floor.p), name
            if entry.difference:
                assert entry.difference.p == pytest.approx(expected.difference.p, abs=1e-6), name
    assert sum(one.count for one in weighted.uncalibrated.bins) == N


def test_being_sure_and_right_on_every_item_is_no_proof_of_it():
    labels = np.arange(150) % 2
    comparison, _ = compare(None, Predictions(200 * np.eye(2)[labels], labels), (), Settings(resamples=50))
    entries = comparison.uncalibrated.entries
    assert entries["ece"].value == entries["smooth_ece"].value == entries["aurc"].value == 0
    assert np.isnan([entries["ece"].interval.high, entries["smooth_ece"].interval.high]).all()
    assert entries["aurc"].interval.high == pytest.approx(wilson_interval(0, 150)[1])


def test_a_perfect_ranking_has_an_interval_and_none_leaves_its_limits():
    confidence = np.linspace(0.6, 0.99, 60)
    for wrong in (np.arange(60) < 5, np.isin(np.arange(60), (0, 1, 2, 8))):
        logits = np.log(np.stack([1 - confidence, confidence], axis=1))
        comparison, _ = compare(None, Predictions(logits, np.where(wrong, 0, 1)), (), Settings(resamples=200))
        entry = comparison.uncalibrated.entries["auroc"]
        assert 0 < entry.interval.low < entry.value <= entry.interval.high <= 1
        assert entry.interval.low < entry.interval.high


def test_items_of_weight_0_are_left_out_and_told():
    rng = np.random.default_rng(0)
    logits, labels = rng.normal(size=(60, 3)), rng.integers(3, size=60)
    weighted = Predictions(logits, labels, weights_N=np.arange(60) < 40)
    comparison, _ = compare(None, weighted, (), Settings(resamples=50))
    assert comparison.items.test == 40
    assert comparison.notes == ("20 of 60 items have weight 0 and are left out",)


def test_one_cluster_is_not_compared_with_chance():
    logits, labels = np.random.default_rng(0).normal(size=(60, 3)), np.arange(60) % 3
    comparison, _ = compare(None, Predictions(logits, labels, clusters_N=np.zeros(60)), (), Settings(resamples=50))
    assert "a single cluster of items cannot compare with chance" in verdict(comparison).before
