"""Prediction sets hold what they promise."""

import numpy as np
import pytest
from scipy import special

from lm.calibration import conformal
from lm.calibration.conformal import (
    METHODS,
    JudgedSets,
    fit_sets,
    fit_several,
    judge_sets,
    report_by_group,
    report_sets,
)
from lm.calibration.logits import FactoredLogits

C = 12


def sample(items: int, rng: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
    """Over-confident logits: the labels are drawn at twice their temperature."""
    logits_NC = 4 * rng.normal(size=(items, C))
    cumulative_NC = special.softmax(logits_NC / 2, axis=1).cumsum(axis=1)
    return logits_NC, (cumulative_NC < rng.uniform(size=(items, 1))).sum(axis=1).clip(0, C - 1)


@pytest.mark.parametrize("method", METHODS)
def test_coverage_over_many_fits(method):
    """Its mean over fits is the promise, and hardly more; one fit of 200 items alone scatters by 2 points.

    Where nothing is random, many sets would be empty, and the class that each gets instead is often right.
    """
    rng = np.random.default_rng(0)
    found = []
    for seed in range(60):
        rule = fit_sets(*sample(200, rng), 0.9, method, seed=seed)
        logits_NC, labels_N = sample(500, rng)
        found.append(report_sets(rule.sets(logits_NC, seed + 1000), labels_N).coverage)
    mean, error = np.mean(found), np.std(found, ddof=1) / np.sqrt(len(found))
    assert mean >= 0.9 - 3 * error
    assert (mean > 0.9 + 1 / 201 + 3 * error) == (method == "naive_aps")


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
    with pytest.raises(ValueError, match="lac, aps, naive_aps, raps"):
        fit_sets(logits_NC, labels_N, 0.5, "top")


def coarse(items: int, rng: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
    """Logits with ties, classes that are impossible, and items whose likeliest class has all the probability."""
    logits_NC, labels_N = sample(items, rng)
    logits_NC = np.round(logits_NC / 2)
    logits_NC[:, 3] = -np.inf
    logits_NC[::7, 5] = 1000
    return logits_NC, np.where(labels_N == 3, 4, labels_N)


@pytest.mark.parametrize("groups", [None, np.arange(C) % 3])
def test_judged_sets_are_those_of_the_whole_matrix(monkeypatch, groups):
    """In chunks of a few items, for every method; the label's place among ties too."""
    rng = np.random.default_rng(4)
    fit, (logits_NC, labels_N) = coarse(200, rng), coarse(101, rng)
    monkeypatch.setattr(conformal, "_CHUNK_NUMBERS", 5 * C)
    rules = fit_several(*fit, 0.8, METHODS, [groups] * len(METHODS))
    for rule, judged in zip(rules, judge_sets(rules, logits_NC, labels_N, seed=7), strict=True):
        sets_NC = rule.sets(logits_NC, seed=7)
        np.testing.assert_array_equal(judged.hit_N, sets_NC[np.arange(101), labels_N], rule.method)
        np.testing.assert_array_equal(judged.size_N, sets_NC.sum(axis=1), rule.method)
        assert sets_NC[np.arange(101), logits_NC.argmax(axis=1)][judged.was_empty_N].all()
    assert rules[0].threshold == pytest.approx(fit_sets(*fit, 0.8, groups=groups).threshold)


def test_the_threshold_is_a_quantile_of_the_scores_of_labels():
    """By hand, from the definitions in float64."""
    logits_NC, labels_N = sample(50, np.random.default_rng(5))
    probabilities_NC = special.softmax(logits_NC.astype(np.float32).astype(np.float64), axis=1)
    own_N = probabilities_NC[np.arange(50), labels_N]
    above_NC = probabilities_NC > own_N[:, None]
    mass_N, rank_N = (above_NC * probabilities_NC).sum(axis=1), 1 + above_NC.sum(axis=1)
    kept_N = 1 - np.random.default_rng(1).uniform(size=50)
    scores = {
        "lac": 1 - own_N,
        "aps": mass_N + kept_N * own_N,
        "naive_aps": mass_N + own_N,
        "raps": mass_N + kept_N * own_N + 0.05 * np.maximum(rank_N - 2, 0),
    }
    for method, scores_N in scores.items():
        threshold = fit_sets(logits_NC, labels_N, 0.9, method, penalty=0.05, free=2).threshold
        assert threshold == pytest.approx(np.sort(scores_N)[45], abs=1e-12)  # ceil(51 * 0.9) = 46


def test_factors_give_the_sets_of_their_product():
    rng = np.random.default_rng(6)
    factors = FactoredLogits(rng.normal(size=(60, 4)).astype(np.float32), rng.normal(size=(C, 4)).astype(np.float32))
    labels_N = rng.integers(C, size=60)
    product = factors.hidden_ND @ factors.output_CD.T
    rule = fit_sets(factors, labels_N, 0.8, "aps")
    assert rule.threshold == pytest.approx(fit_sets(product, labels_N, 0.8, "aps").threshold, abs=1e-6)
    assert rule.judge(factors, labels_N).size_N.mean() == pytest.approx(rule.sets(product).sum(axis=1).mean(), abs=0.05)


def test_thresholds_for_groups_cover_each_group():
    """One threshold covers too little of the classes that the model neglects; one for each group mends that."""
    rng = np.random.default_rng(7)

    def biased(items: int) -> tuple[np.ndarray, np.ndarray]:
        logits_NC, labels_N = sample(items, rng)
        return logits_NC - 4 * (np.arange(C) < 4), labels_N

    is_neglected_C = np.arange(C) < 4
    fit, (logits_NC, labels_N) = biased(4000), biased(4000)
    found = {}
    for groups in (None, is_neglected_C):
        judged = fit_sets(*fit, 0.9, groups=groups).judge(logits_NC, labels_N)
        found[groups is None] = report_by_group(judged, is_neglected_C[labels_N])
    assert found[True]["True"].high < 0.8
    for report in found[False].values():
        assert report.low - 0.01 < 0.9 < report.high + 0.01


def test_a_class_without_enough_labels_is_in_every_set():
    rng = np.random.default_rng(8)
    logits_NC, labels_N = sample(300, rng)
    kept_N = labels_N != 2
    rule = fit_sets(logits_NC[kept_N], labels_N[kept_N], 0.9, groups=range(C))
    assert rule.sets(logits_NC)[:, 2].all()
    assert np.flatnonzero(np.isinf(rule.threshold)).tolist() == [2]


def test_intervals_are_wider_over_clusters_and_reports_agree():
    """Items of a cluster are equal, so that there are as many independent ones as clusters."""
    rng = np.random.default_rng(9)
    logits_NC, labels_N = (np.repeat(each, 20, axis=0) for each in sample(40, rng))
    clusters_N = np.repeat([f"document {number}" for number in range(40)], 20)
    rule = fit_sets(*sample(300, rng), 0.8)
    judged, alone = rule.judge(logits_NC, labels_N), report_sets(rule.sets(logits_NC), labels_N)
    report = report_sets(judged, labels_N, clusters_N)
    assert (report.coverage, report.mean_size) == (alone.coverage, alone.mean_size)
    assert report.high - report.low > 3 * (alone.high - alone.low)
    assert report.size_interval.standard_error > 3 * alone.size_interval.standard_error
    assert report.median_size == np.median(judged.size_N)
    with pytest.raises(ValueError, match="clusters must have shape"):
        report_sets(judged, labels_N, [1, 2])


def test_reports_by_group_partition_the_items():
    judged = JudgedSets(np.array([True, False, True, True]), np.array([1, 2, 3, 4]), np.zeros(4, bool))
    found = report_by_group(judged, ["b", "a", "b", "a"])
    assert {name: (one.coverage, one.mean_size, one.items) for name, one in found.items()} == {
        "a": (0.5, 3.0, 2),
        "b": (1.0, 2.0, 2),
    }
