"""BLEU and chrF are sacreBLEU's and ROUGE is rouge-score's, over all texts and over each resample."""

import math
import sys

import numpy as np
import pytest
import sacrebleu
from rouge_score.rouge_scorer import RougeScorer

from lm.errors import UserError
from lm.evaluation.generation import bleu_scorer, generation_metrics, signatures, tokenization_notes

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


CHINESE = ["我喜欢喝绿茶。", "今天天气很好。"], ["我爱喝绿茶。", "今天天气很好。"]


def test_chinese_is_compared_by_characters():
    texts, gold = CHINESE
    found = generation_metrics(texts, gold, "zh")
    expected = sacrebleu.corpus_bleu(texts, [gold], tokenize="zh").score
    assert found["bleu"].value == expected > generation_metrics(texts, gold)["bleu"].value
    # 我 喝 绿 茶 of 6 and 5 characters; punctuation is not a word.
    assert found["rouge1"].value == pytest.approx((2 * 4 / (6 + 5) + 1) / 2)
    assert found["rouge2"].value == pytest.approx((2 * 2 / (5 + 4) + 1) / 2)
    assert "tok:zh" in signatures(gold, "zh")["bleu"]


@pytest.mark.parametrize(
    ("language", "tokenizer", "texts", "f1"),
    [
        ("Thai", "char", ("กขค", "กขง"), 2 / 3),
        ("Thai vowels", "char", ("ดี", "ดู"), 1 / 2),
        ("Hindi", "char", ("की", "का!"), 1 / 2),
        ("Russian", "intl", ("Синяя кошка спит.", "синяя кошка"), 2 * 2 / (3 + 2)),
        ("Arabic", "intl", ("القط نائم", "القط هنا"), 1 / 2),
    ],
)
def test_other_scripts_have_words(language, tokenizer, texts, f1):
    hypothesis, reference = texts
    assert generation_metrics([hypothesis], [reference], tokenizer)["rouge1"].value == pytest.approx(f1)


@pytest.mark.parametrize(
    ("texts", "tokenizer", "said"),
    [
        (CHINESE[1], "13a", "mostly CJK"),
        (CHINESE[1], "intl", "mostly CJK"),
        (["ネコはかわいい"], "zh", "mostly Hiragana and Katakana"),
        (["แมวน่ารัก"], "zh", "mostly Thai"),
        (["القط نائم"], "13a", "mostly Arabic"),
        (["고양이가 잔다"], "13a", "mostly Hangul"),
        (["Tôi có một con mèo đen"], "13a", "83% of these texts' words have others"),
    ],
)
def test_text_without_words_is_named_with_the_setting(texts, tokenizer, said):
    (note,) = tokenization_notes(texts, tokenizer)
    assert note.startswith(f"config.task.metric_tokenizer={tokenizer} ")
    assert said in note


@pytest.mark.parametrize(
    ("texts", "tokenizer"),
    [
        (["A café in 東京, a naïve one, and some cats that sleep there."], "13a"),
        (["Der Hund läuft über die große Wiese und bellt dabei laut vor Freude"], "13a"),
        (["Tôi có một con mèo đen"], "intl"),
        (CHINESE[1], "zh"),
        (["ネコはかわいい"], "ja-mecab"),
        (["แมวน่ารัก"], "char"),
        (["القط نائم"], "intl"),
        (["1 + 1 = 2"], "13a"),
        ([], "13a"),
    ],
)
def test_text_with_words_needs_no_note(texts, tokenizer):
    assert tokenization_notes(texts, tokenizer) == ()


def test_a_tokenizer_that_is_not_installed_is_one_line(monkeypatch):
    bleu_scorer.cache_clear()
    monkeypatch.setitem(sys.modules, "MeCab", None)
    with pytest.raises(
        UserError, match=r"config.task.metric_tokenizer=ja-mecab is not available .*: pip install 'sacrebleu\[ja\]'"
    ):
        generation_metrics(["猫"], ["猫"], "ja-mecab")
