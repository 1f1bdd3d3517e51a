"""BLEU and chrF are sacreBLEU's and ROUGE is rouge-score's, over all texts and over each resample."""

import math

import numpy as np
import pytest
import sacrebleu
from rouge_score.rouge_scorer import RougeScorer

from lm.errors import UserError
from lm.evaluation.generation import generation_metrics, signatures

HYPOTHESES = [
    "A man is riding a horse on the beach.",
    "two dogs play in the Snow",  # case counts
    "The woman, in a red dress, sings loudly!",
    "",
    "Children are running.",
]
REFERENCES = [
    "A man rides a horse along the beach.",
    "Two dogs are playing in the snow.",
    "The woman in a red dress is singing loudly!",
    "Nobody is here.",
    "Children are running.",
]


@pytest.fixture(scope="module")
def found():
    return generation_metrics(HYPOTHESES, REFERENCES)


def test_corpus_metrics_equal_sacrebleu(found):
    assert found["bleu"].value == sacrebleu.corpus_bleu(HYPOTHESES, [REFERENCES]).score > 10
    assert found["chrf"].value == sacrebleu.corpus_chrf(HYPOTHESES, [REFERENCES]).score > 10


def test_a_resample_equals_sacrebleu_on_the_resampled_texts(found):
    random = np.random.default_rng(7)
    for resample in range(5):
        index = random.integers(5, size=5)
        texts, gold = [HYPOTHESES[i] for i in index], [REFERENCES[i] for i in index]
        assert found["bleu"].resampled(5, 7)[resample] == sacrebleu.corpus_bleu(texts, [gold]).score
        assert found["chrf"].resampled(5, 7)[resample] == sacrebleu.corpus_chrf(texts, [gold]).score


def test_rouge_is_the_mean_f1(found):
    scorer = RougeScorer(["rouge1", "rouge2", "rougeL"], use_stemmer=True)
    scores = [scorer.score(gold, text) for text, gold in zip(HYPOTHESES, REFERENCES, strict=True)]
    for name in scores[0]:
        assert found[name].value == pytest.approx(np.mean([score[name].fmeasure for score in scores]))
    assert found["rouge1"].value > found["rouge2"].value > 0


def test_exact_match_ignores_only_outer_white_space(found):
    assert found["exact_match"].value == pytest.approx(1 / 5)
    texts = [" yes\n", "Yes", "y es"]
    assert generation_metrics(texts, ["yes"] * 3)["exact_match"].value == pytest.approx(1 / 3)


def test_several_references_and_different_numbers_of_them():
    gold = [["no match", HYPOTHESES[0]], [HYPOTHESES[1]], [*REFERENCES[2:4], HYPOTHESES[2]]]
    found = generation_metrics(HYPOTHESES[:3], gold)
    assert found["bleu"].value == pytest.approx(100)
    assert found["chrf"].value == pytest.approx(100)
    assert found["rougeL"].value == found["exact_match"].value == 1


def test_signatures_are_those_of_the_scores():
    scorers = {"bleu": sacrebleu.BLEU(), "chrf": sacrebleu.CHRF()}
    for scorer in scorers.values():
        scorer.corpus_score(HYPOTHESES, [REFERENCES, REFERENCES])
    expected = {name: str(scorer.get_signature()) for name, scorer in scorers.items()}
    assert signatures([[gold, gold] for gold in REFERENCES]) == expected
    assert "nrefs:2|case:mixed|eff:no|tok:13a|smooth:exp" in expected["bleu"]
    assert "nrefs:var" in signatures(["one", ["two", "three"]])["bleu"]


def test_intervals_of_every_metric_hold_its_value(found):
    for name, metric in found.items():
        interval = metric.interval(100)
        assert interval.low < metric.value < interval.high, name
        assert math.isfinite(interval.standard_error), name


def test_wrong_input_is_named():
    with pytest.raises(UserError, match="1 for 2 texts"):
        generation_metrics(["a", "b"], ["a"])
    with pytest.raises(UserError, match="text 2 has no reference"):
        generation_metrics(["a", "b"], ["a", []])
    with pytest.raises(UserError, match="at least one"):
        generation_metrics([], [])
