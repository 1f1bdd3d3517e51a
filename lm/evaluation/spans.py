"""Question answering metrics: exact match and the F1 of words, as SQuAD defines them.

Axes: N questions.
"""

import functools
import re
import string
import unicodedata
from collections import Counter
from collections.abc import Sequence

import numpy as np

from lm.errors import UserError
from lm.statistics.metrics import SHARE, Metric, mean_metric
from lm.writing_systems import count_systems, words_and_characters

_ARTICLES = re.compile(r"\b(a|an|the)\b")
_NO_PUNCTUATION = str.maketrans("", "", string.punctuation)


def span_metrics(predicted_texts: Sequence[str], gold_answer_lists: Sequence[Sequence[str]]) -> dict[str, Metric]:
    """Exact match and F1 in [0, 1] (Rajpurkar et al. 2016, and 2018 for questions without an answer).

    Each question is scored by the gold answer that matches the prediction best.

    Args:
      predicted_texts: the answer to each question; empty: no answer.
      gold_answer_lists: the acceptable answers of each question; empty: no answer.

    Returns:
      `exact_match` and `f1`; if there are questions with and without an answer, also `exact_match/has_answer`,
      `f1/has_answer`, `exact_match/no_answer` and `f1/no_answer`.

    Raises:
      UserError: if predictions and questions differ in number.
    """
    if len(predicted_texts) != len(gold_answer_lists):
        raise UserError(
            f"need one answer per question, got {len(predicted_texts)} for {len(gold_answer_lists)} questions"
        )
    pairs = list(zip(predicted_texts, gold_answer_lists, strict=True))
    scores = {
        "exact_match": [max(_is_equal(predicted, answer) for answer in _acceptable(gold)) for predicted, gold in pairs],
        "f1": [max(_word_f1(predicted, answer) for answer in _acceptable(gold)) for predicted, gold in pairs],
    }
    has_answer_N = np.array([any(gold) for gold in gold_answer_lists], bool)
    mean = functools.partial(mean_metric, better="higher", limits=SHARE)
    metrics = {name: mean(score_N) for name, score_N in scores.items()}
    if has_answer_N.any() and not has_answer_N.all():
        for part, member_N in (("has_answer", has_answer_N), ("no_answer", ~has_answer_N)):
            metrics.update({f"{name}/{part}": mean(score_N, member_N) for name, score_N in scores.items()})
    return metrics


def normalize_answer(text: str) -> str:
    """Lower case, without punctuation, English articles and superfluous white space (Rajpurkar et al. 2016).

    From text with letters that are not Latin, punctuation beyond ASCII is removed too (MLQA: Lewis et al. 2020).
    """
    text = text.lower().translate(_NO_PUNCTUATION)
    if count_systems([text]).keys() - {"LATIN"}:
        text = "".join(character for character in text if unicodedata.category(character)[0] != "P")
    return " ".join(_ARTICLES.sub(" ", text).split())


def _acceptable(gold: Sequence[str]) -> list[str]:
    """Answers that are not empty after normalization; if there are none, the empty answer, as for SQuAD 2.0."""
    return [answer for answer in gold if normalize_answer(answer)] or [""]


def _is_equal(predicted: str, answer: str) -> float:
    return float(normalize_answer(predicted) == normalize_answer(answer))


def _word_f1(predicted: str, answer: str) -> float:
    """F1 of the bags of words; with an empty bag it is 1 if both are empty, else 0.

    Characters of Chinese, Japanese, Thai and other text without spaces count as words (as for MLQA).
    """
    predicted_words, answer_words = (words_and_characters(normalize_answer(text)) for text in (predicted, answer))
    if not (predicted_words and answer_words):
        return float(predicted_words == answer_words)
    matched = (Counter(predicted_words) & Counter(answer_words)).total()
    return 2 * matched / (len(predicted_words) + len(answer_words))
