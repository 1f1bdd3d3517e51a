"""The metrics are scikit-learn's, over all items and over each resample."""

import numpy as np
import pytest
from sklearn import metrics as sklearn_metrics

from lm.errors import UserError
from lm.evaluation.classification import classification_metrics, confusion_matrix

NAMES = ("negative", "neutral", "positive", "unused")


def answers(items=200, seed=0, classes=3):
    """Labels and predictions that are better than chance, with one class of four never occurring."""
    random = np.random.default_rng(seed)
    labels_N = random.choice(classes, items, p=[0.6, 0.3, 0.1])
    return labels_N, np.where(random.random(items) < 0.6, labels_N, random.integers(classes, size=items))


def by_sklearn(labels_N, predicted_N):
    expected = {
        "accuracy": sklearn_metrics.accuracy_score(labels_N, predicted_N),
        "f1_micro": sklearn_metrics.f1_score(labels_N, predicted_N, average="micro"),
        "matthews": sklearn_metrics.matthews_corrcoef(labels_N, predicted_N),
    }
    for score in ("f1", "precision", "recall"):
        function = getattr(sklearn_metrics, f"{score}_score")
        expected[f"{score}_macro"] = function(labels_N, predicted_N, average="macro", zero_division=0)
        each = function(labels_N, predicted_N, average=None, labels=range(4), zero_division=0)
        expected.update({f"{score}/{name}": value for name, value in zip(NAMES, each, strict=True)})
    return expected


@pytest.mark.filterwarnings("ignore:A single label")
@pytest.mark.parametrize(
    ("labels_N", "predicted_N"),
    [answers(), ([0, 0, 1], [0, 0, 0]), ([1, 1], [1, 1]), ([0, 1], [1, 0]), ([0, 1, 2, 3], [3, 3, 3, 3])],
    ids=["random", "never predicted", "one class", "all wrong", "one prediction"],
)
def test_metrics_equal_scikit_learn(labels_N, predicted_N):
    found = classification_metrics(labels_N, predicted_N, NAMES)
    expected = by_sklearn(labels_N, predicted_N)
    assert set(found) == set(expected)
    assert next(iter(found)) == "accuracy"
    for name, value in expected.items():
        np.testing.assert_allclose(found[name].value, value, rtol=1e-12, atol=1e-12, err_msg=name)


def test_a_resample_equals_scikit_learn_on_the_resampled_items():
    """Few items, so that classes drop out of some resamples."""
    labels_N, predicted_N = answers(items=8)
    found = classification_metrics(labels_N, predicted_N, NAMES)
    random = np.random.default_rng(2)
    for resample in range(10):
        index_N = random.integers(8, size=8)
        for name, value in by_sklearn(labels_N[index_N], predicted_N[index_N]).items():
            np.testing.assert_allclose(found[name].resampled(10, seed=2)[resample], value, atol=1e-12, err_msg=name)


def test_clusters_are_the_items():
    labels_N, predicted_N = answers()
    clusters_N = np.arange(200) // 20
    alone, clustered = (classification_metrics(labels_N, predicted_N, NAMES, each) for each in (None, clusters_N))
    for name, metric in alone.items():
        assert clustered[name].value == pytest.approx(metric.value)
        assert clustered[name].interval(200) == metric.interval(200, clusters_N=clusters_N)


def test_confusion_has_the_truth_in_rows():
    np.testing.assert_array_equal(confusion_matrix([0, 0, 2], [1, 1, 0], 3), [[0, 2, 0], [0, 0, 0], [1, 0, 0]])
    labels_N, predicted_N = answers()
    expected = sklearn_metrics.confusion_matrix(labels_N, predicted_N, labels=range(4))
    np.testing.assert_array_equal(confusion_matrix(labels_N, predicted_N, 4), expected)


def test_wrong_input_is_named():
    with pytest.raises(UserError, match=r"\(2,\) and \(3,\)"):
        classification_metrics([0, 1, 1], [0, 1], NAMES)
    with pytest.raises(UserError, match="prediction 4 of item 1 "):
        confusion_matrix([0, 1], [0, 4], 4)
    with pytest.raises(UserError, match="label -1 of item 0 "):
        confusion_matrix([-1, 1], [0, 4], 4)
