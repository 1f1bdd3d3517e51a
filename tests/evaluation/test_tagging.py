"""Entities are counted as seqeval counts them."""

import warnings

import numpy as np
import pytest
from seqeval.metrics import classification_report, f1_score, precision_score, recall_score

from lm.errors import UserError
from lm.evaluation.tagging import entity_metrics

TAGS = ("O", "B-PER", "I-PER", "B-LOC", "I-LOC")


def sentences(number=60, seed=0):
    """Random tags, ill-formed ones among them, and predictions that agree with three in four."""
    random = np.random.default_rng(seed)
    gold = [random.choice(TAGS, size=length, p=[0.4, 0.15, 0.2, 0.15, 0.1]) for length in random.integers(1, 9, number)]
    guessed = [np.where(random.random(len(tags)) < 0.75, tags, random.choice(TAGS, len(tags))) for tags in gold]
    return [tags.tolist() for tags in gold], [tags.tolist() for tags in guessed]


def test_metrics_equal_seqeval():
    gold, predicted = sentences()
    found = entity_metrics(gold, predicted)
    report = classification_report(gold, predicted, output_dict=True)
    for kind in ("PER", "LOC"):
        for name, theirs in (("f1", "f1-score"), ("precision", "precision"), ("recall", "recall")):
            np.testing.assert_allclose(found[f"{name}/{kind}"].value, report[kind][theirs], rtol=1e-12)
    for name, function in (("f1", f1_score), ("precision", precision_score), ("recall", recall_score)):
        np.testing.assert_allclose(found[name].value, function(gold, predicted), rtol=1e-12)
    assert list(found)[:4] == ["f1", "precision", "recall", "token_accuracy"]


def test_a_resample_is_of_whole_sentences():
    gold, predicted = sentences(12)
    resampled_R = entity_metrics(gold, predicted)["f1"].resampled(5, seed=4)
    random = np.random.default_rng(4)
    for value in resampled_R:
        index = random.integers(12, size=12)
        np.testing.assert_allclose(value, f1_score([gold[i] for i in index], [predicted[i] for i in index]), rtol=1e-12)


def test_borders_and_types_must_both_be_right():
    gold = [["B-PER", "I-PER", "O", "B-LOC"], ["O", "B-LOC"]]
    predicted = [["B-PER", "O", "O", "B-PER"], ["O", "B-LOC"]]
    found = {name: metric.value for name, metric in entity_metrics(gold, predicted).items()}
    assert found["precision"] == found["recall"] == pytest.approx(1 / 3)
    assert found["token_accuracy"] == pytest.approx(4 / 6)
    assert (found["f1/PER"], found["precision/LOC"], found["recall/LOC"]) == (0, 1, 0.5)


def test_nothing_to_find_gives_zero_without_a_warning():
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        found = entity_metrics([["O", "O"], []], [["O", "O"], []])
        assert (found["f1"].value, found["token_accuracy"].value) == (0, 1)
        assert set(found) == {"f1", "precision", "recall", "token_accuracy"}


def test_wrong_input_is_named():
    with pytest.raises(UserError, match="1 for 2 sentences"):
        entity_metrics([["O"], ["O"]], [["O"]])
    with pytest.raises(UserError, match="1 for 2 in sentence 2"):
        entity_metrics([["O"], ["O", "O"]], [["O"], ["O"]])
