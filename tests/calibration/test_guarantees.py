"""Sets and answers keep what they promise, on items that did not choose their thresholds."""

import json
import math

import numpy as np
import pytest
from scipy import special

from lm.calibration.guarantees import _halves, measure_guarantees
from lm.calibration.logits import FactoredLogits
from lm.calibration.predictions import JUDGEMENTS, Predictions
from lm.calibration.report.page import report_html
from lm.calibration.report.wording import guaranteed
from lm.calibration.results import to_json
from tests.calibration.comparison_examples import comparison, with_method

C = 4


def sample(items: int, seed: int, **about) -> Predictions:
    """Over-confident logits: labels are drawn at twice their temperature."""
    rng = np.random.default_rng(seed)
    logits_NC = 4 * rng.normal(size=(items, C))
    cumulative_NC = special.softmax(logits_NC / 2, axis=1).cumsum(axis=1)
    labels_N = (cumulative_NC < rng.uniform(size=(items, 1))).sum(axis=1).clip(0, C - 1)
    return Predictions(logits_NC, labels_N, **about)


def test_promises_hold_over_many_samples():
    covered, wrong, answered = [], [], []
    for seed in range(40):
        part = sample(400, seed)
        found = measure_guarantees(part, part.logits, 0.9, (0.3,), seed=seed)
        covered.append([one.whole.coverage for one in found.sets])
        wrong.append(found.answering[0].error_rate)
        answered.append(found.answering[0].answered)
        assert (found.chosen_on, found.judged_on) == (200, 200)
    error = np.std(covered, axis=0, ddof=1) / math.sqrt(40)
    assert (np.abs(np.mean(covered, axis=0) - 0.9) < 3 * error + 0.006).all()
    assert np.mean(np.array(wrong) > 0.3) < 0.1  # 95% assurance, and half of the items are new
    assert np.mean(answered) > 0.5


def test_one_item_of_each_cluster_chooses_and_other_clusters_judge():
    clusters_N = np.random.default_rng(0).integers(50, size=400)
    choose_N, judge_N = _halves(sample(400, 0, clusters_N=clusters_N), seed=3)
    assert np.unique(clusters_N[choose_N]).size == choose_N.sum() == 25
    assert not set(clusters_N[choose_N]) & set(clusters_N[judge_N])
    assert np.isin(clusters_N, clusters_N[choose_N]).sum() + judge_N.sum() == 400


def test_labels_of_the_judging_half_choose_nothing():
    part = sample(300, 1)
    _, judge_N = _halves(part, seed=0)
    other = Predictions(part.logits, np.where(judge_N, (part.labels_N + 1) % C, part.labels_N))
    one, two = (measure_guarantees(each, each.logits) for each in (part, other))
    assert [each.confidence for each in one.answering] == [each.confidence for each in two.answering]
    assert [each.whole.mean_size for each in one.sets] == [each.whole.mean_size for each in two.sets]
    assert one.sets[0].whole.coverage > two.sets[0].whole.coverage


def test_classes_are_named_and_counted():
    part = sample(200, 2, class_names=("a", "b", "c", "d"))
    found = measure_guarantees(part, part.logits).sets[0]
    assert list(found.by_class) == ["a", "b", "c", "d"]
    assert sum(report.items for report in found.by_class.values()) == found.whole.items == 100
    mean = sum(report.items * report.coverage for report in found.by_class.values()) / 100
    assert mean == pytest.approx(found.whole.coverage)


def test_what_cannot_be_promised_is_left_out():
    few, weighted = sample(50, 3), sample(200, 3, weights_N=np.full(200, 2.0))
    assert measure_guarantees(few, few.logits) is None
    assert measure_guarantees(weighted, weighted.logits) is None
    judged = Predictions(sample(200, 4).logits[:, :2], np.arange(200) % 2, class_names=JUDGEMENTS)
    assert measure_guarantees(judged, judged.logits).sets == ()
    many = FactoredLogits(np.ones((100, 2), np.float32), np.ones((200_000, 2), np.float32))
    assert measure_guarantees(Predictions(many, np.arange(100)), many, risks=()).sets == ()
    assert measure_guarantees(sample(200, 5), sample(200, 5).logits, coverage=0.999).sets == ()


def test_the_report_and_the_json_say_it():
    part = sample(300, 7)
    found = with_method("temperature", guarantees=measure_guarantees(part, part.logits, risks=(0.001, 0.3)))
    page = report_html(found)
    assert "With a guarantee" in page
    assert "Least covered class" in page
    first, *others = guaranteed(found.method("temperature"))
    assert first.startswith("Temperature: sets at 90% have")
    assert "0% cannot be promised" in others[0]
    assert "of the items can be answered" in others[1]
    whole = to_json(found)
    assert json.loads(json.dumps(whole, allow_nan=False)) == whole
    written = whole["methods"][1]["guarantees"]
    assert [each["confidence"] is None for each in written["answering"]] == [True, False]
    assert written["sets"][0]["whole"]["items"] == written["judged_on"] == 150
    assert "With a guarantee" not in report_html(comparison())  # which did not measure it
    assert guaranteed(comparison().uncalibrated) == ()
