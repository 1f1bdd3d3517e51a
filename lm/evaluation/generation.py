"""Metrics of generated texts against references: BLEU, chrF, ROUGE and exact match.

Axes: N texts, K sufficient statistics.
"""

import itertools
from collections.abc import Sequence

import numpy as np
from sacrebleu.metrics import BLEU, CHRF

from lm.errors import UserError
from lm.statistics.metrics import SHARE, Metric, mean_metric

_ROUGE = ("rouge1", "rouge2", "rougeL")


def generation_metrics(hypotheses: Sequence[str], references: Sequence[str | Sequence[str]]) -> dict[str, Metric]:
    """Text metrics, the first two in [0, 100] by convention, the others in [0, 1].

    Args:
      hypotheses: what was generated.
      references: the reference of each text, or a list of references.

    Returns:
      `bleu`: of the corpus, cased, 13a tokens (Papineni et al. 2002; Post 2018).
      `chrf`: F2 of character n-grams up to 6, of the corpus (Popović 2015).
      `rouge1`, `rouge2`, `rougeL`: mean F1 of stemmed words, word pairs and the longest common subsequence (Lin 2004);
        the best of several references. It only handles the letters a to z, so it suits English only.
      `exact_match`: the share that equals a reference, ignoring leading and trailing white space.

    Raises:
      UserError: without texts, if the numbers differ, or if a text has no reference.
    """
    references = _reference_lists(references)
    if len(hypotheses) != len(references):
        raise UserError(f"need references for each text, got {len(references)} for {len(hypotheses)} texts")
    if not references:
        raise UserError("no generated texts to evaluate: give at least one")
    pairs = list(zip(hypotheses, references, strict=True))
    return {
        "bleu": _corpus_metric(BLEU(), hypotheses, references),
        "chrf": _corpus_metric(CHRF(), hypotheses, references),
        **_rouge(pairs),
        "exact_match": _mean([text.strip() in {each.strip() for each in gold} for text, gold in pairs]),
    }


def signatures(references: Sequence[str | Sequence[str]]) -> dict[str, str]:
    """sacreBLEU's signatures of `bleu` and `chrf`, which specify how they were computed (Post 2018)."""
    counts = {len(gold) for gold in _reference_lists(references)}
    scorers = {"bleu": BLEU(), "chrf": CHRF()}
    for scorer in scorers.values():
        scorer.num_refs = min(counts) if len(counts) == 1 else -1  # -1: it varies
    return {name: str(scorer.get_signature()) for name, scorer in scorers.items()}


def _reference_lists(references: Sequence[str | Sequence[str]]) -> list[list[str]]:
    lists = [[gold] if isinstance(gold, str) else list(gold) for gold in references]
    if not all(lists):
        number = next(number for number, gold in enumerate(lists, start=1) if not gold)
        raise UserError(f"text {number} has no reference: give at least one")
    return lists


def _corpus_metric(scorer: BLEU | CHRF, hypotheses: Sequence[str], references: list[list[str]]) -> Metric:
    # sacreBLEU's paired bootstrap uses these two methods too; chrF's statistics have no public interface.
    streams = list(itertools.zip_longest(*references))  # None: this text has fewer references
    statistics_NK = np.array(scorer._extract_corpus_statistics(hypotheses, streams), np.float64)

    def of_sums(sums: np.ndarray) -> np.ndarray:
        rows = sums.reshape(-1, sums.shape[-1]).tolist()
        return np.array([scorer._compute_score_from_stats(row).score for row in rows]).reshape(sums.shape[:-1])

    return Metric(statistics_NK, of_sums, better="higher", limits=(0.0, 100.0))


def _rouge(pairs: list[tuple[str, list[str]]]) -> dict[str, Metric]:
    from rouge_score import rouge_scorer, tokenizers  # takes seconds

    scorer = rouge_scorer.RougeScorer(_ROUGE, tokenizer=tokenizers.DefaultTokenizer(use_stemmer=True))
    scores = [scorer.score_multi(gold, text) for text, gold in pairs]
    return {name: _mean([score[name].fmeasure for score in scores]) for name in _ROUGE}


def _mean(values_N: Sequence[float]) -> Metric:
    return mean_metric(values_N, better="higher", limits=SHARE)
