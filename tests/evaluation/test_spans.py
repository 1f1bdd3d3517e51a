"""Answers are compared as SQuAD's own script compares them."""

import pytest

from lm.errors import UserError
from lm.evaluation.spans import normalize_answer, span_metrics


def values(predicted, gold):
    return {name: metric.value for name, metric in span_metrics(predicted, gold).items()}


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("The  Cat, a dog & an\tOwl!", "cat dog owl"),
        ("theatre banana", "theatre banana"),
        ("U.S.A.", "usa"),
        ("a-b", "ab"),
        ("The", ""),
        ("Über", "über"),
    ],
)
def test_normalization(text, expected):
    assert normalize_answer(text) == expected
    assert normalize_answer(expected) == expected


def test_the_best_gold_answer_counts():
    found = values(["the Eiffel tower", "in Paris"], [["Tower", "Eiffel Tower."], ["Paris", "in the city of Paris"]])
    assert found["exact_match"] == 0.5
    # in Paris: against "Paris" 2/3, against "in city of Paris" 2 * 2 / (2 + 4).
    assert found["f1"] == pytest.approx((1 + 2 / 3) / 2)


def test_repeated_words_match_once_each():
    assert values(["cat cat cat dog"], [["cat cat owl"]])["f1"] == pytest.approx(2 * 2 / 7)


def test_questions_with_and_without_an_answer_are_reported_separately():
    predicted = ["Paris", "", "", "Rome"]
    gold = [["Paris"], ["Berlin"], [], []]
    assert values(predicted, gold) == {
        "exact_match": 0.5,
        "f1": 0.5,
        "exact_match/has_answer": 0.5,
        "f1/has_answer": 0.5,
        "exact_match/no_answer": 0.5,
        "f1/no_answer": 0.5,
    }
    found = span_metrics(["Paris", "London", ""], [["Paris"], ["Berlin"], [""]])
    assert found["f1/has_answer"].value == 0.5
    assert found["f1/no_answer"].value == 1
    assert len(found["f1/no_answer"].statistics_NK) == 3  # the other questions are resampled too


def test_without_both_kinds_there_is_no_breakdown():
    assert set(values(["a cat"], [["cat"]])) == set(values([""], [[]])) == {"exact_match", "f1"}
    assert values([""], [[]]) == {"exact_match": 1, "f1": 1}


def test_answers_of_which_nothing_is_left_do_not_count():
    assert values(["", "the"], [["The", "Cat"], ["cat"]]) == {"exact_match": 0, "f1": 0}
    assert values([""], [["The"]])["exact_match"] == 1


def test_wrong_input_is_named():
    with pytest.raises(UserError, match="1 for 2 questions"):
        span_metrics(["a"], [["a"], []])


@pytest.mark.parametrize(
    ("predicted", "gold", "exact", "f1"),
    [
        ("北京市", "北京", 0, 2 * 2 / 5),
        ("「北京」。", "北京", 1, 1),
        ("2008年8月", "2008年", 0, 2 * 2 / 6),
        ("東京タワー", "東京", 0, 2 * 2 / 7),
        ("กรุง", "กรุ", 0, 2 * 3 / 7),
        ("القاهرة،", "القاهرة", 1, 1),
        ("в Москве", "Москве", 0, 2 / 3),
        ("“Paris”", "Paris", 0, 0),  # as SQuAD's script, which removes ASCII's punctuation only
    ],
)
def test_answers_without_spaces_are_compared_by_characters(predicted, gold, exact, f1):
    assert values([predicted], [[gold]]) == {"exact_match": exact, "f1": pytest.approx(f1)}
