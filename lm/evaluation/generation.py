"""Metrics of generated texts against references: BLEU, chrF, ROUGE and exact match.

BLEU and ROUGE compare words, and what a word is depends on the language: sacreBLEU's tokenizers say it.

Axes: N texts, K sufficient statistics.
"""

import functools
import itertools
from collections.abc import Sequence

import numpy as np
from sacrebleu.metrics import BLEU, CHRF

from lm.errors import UserError
from lm.statistics.metrics import SHARE, Metric, mean_metric
from lm.writing_systems import CHINESE, KANA, SPACELESS, count_systems, system_of

# sacreBLEU's tokenizers, each with the systems without spaces whose text it splits into words or characters.
TOKENIZERS: dict[str, tuple[str, ...]] = {
    "13a": (),
    "intl": (),
    "none": (),
    "zh": CHINESE,
    "ja-mecab": (*CHINESE, *KANA),
    "ko-mecab": CHINESE,
    "char": SPACELESS,
    "flores101": SPACELESS,
    "flores200": SPACELESS,
}

_PACKAGES = {"ja-mecab": "'sacrebleu[ja]'", "ko-mecab": "'sacrebleu[ko]'"}
_ROUGE = ("rouge1", "rouge2", "rougeL")


def generation_metrics(
    hypotheses: Sequence[str], references: Sequence[str | Sequence[str]], tokenizer: str = "13a"
) -> dict[str, Metric]:
    """Text metrics, the first two in [0, 100] by convention, the others in [0, 1].

    Args:
      hypotheses: what was generated.
      references: the reference of each text, or a list of references.
      tokenizer: one of `TOKENIZERS`, for BLEU and ROUGE.

    Returns:
      `bleu`: of the corpus, cased, on these tokens (Papineni et al. 2002; Post 2018).
      `chrf`: F2 of character n-grams up to 6, of the corpus (Popović 2015).
      `rouge1`, `rouge2`, `rougeL`: mean F1 of words, word pairs and the longest common subsequence (Lin 2004); the best
        of several references. With "13a" the words are those of the original: English stems of the letters a to z.
        Otherwise they are the tokenizer's, in lower case, without punctuation.
      `exact_match`: the share that equals a reference, ignoring leading and trailing white space.

    Raises:
      UserError: without texts, if the numbers differ, if a text has no reference, or if the tokenizer needs a package
        that is not installed.
    """
    references = _reference_lists(references)
    if len(hypotheses) != len(references):
        raise UserError(f"need references for each text, got {len(references)} for {len(hypotheses)} texts")
    if not references:
        raise UserError("no generated texts to evaluate: give at least one")
    pairs = list(zip(hypotheses, references, strict=True))
    return {
        "bleu": _corpus_metric(bleu_scorer(tokenizer), hypotheses, references),
        "chrf": _corpus_metric(CHRF(), hypotheses, references),
        **_rouge(pairs, tokenizer),
        "exact_match": _mean([text.strip() in {each.strip() for each in gold} for text, gold in pairs]),
    }


def tokenization_notes(references: Sequence[str], tokenizer: str) -> tuple[str, ...]:
    """A line if BLEU or ROUGE cannot split most of the text into words, else nothing.

    Args:
      references: texts in the language to generate.
      tokenizer: one of `TOKENIZERS`.
    """
    systems = count_systems(references)
    letters, setting = systems.total(), f"config.task.metric_tokenizer={tokenizer}"
    unsplit = {name: systems[name] for name in SPACELESS if name in systems and name not in TOKENIZERS[tokenizer]}
    if sum(unsplit.values()) > letters / 2:
        return (
            f"{setting} finds no words in these texts, which are mostly {_listed(unsplit)}, so BLEU and ROUGE mean "
            "little: set zh for Chinese, ja-mecab for Japanese, char or flores200 for any language",
        )
    if tokenizer == "13a" and systems["LATIN"] < letters / 2:
        others = {name: count for name, count in systems.items() if name != "LATIN"}
        return (
            f"{setting} computes ROUGE from the letters a to z alone, and these texts are mostly {_listed(others)}: "
            "set intl for languages with spaces between words, ko-mecab for Korean, zh for Chinese, ja-mecab for "
            "Japanese, char or flores200 for any language",
        )
    words = [word for text in references for word in text.split() if any(map(str.isalpha, word))]
    broken = sum(any(system_of(each) and not each.isascii() for each in word) for word in words)
    if tokenizer == "13a" and broken > len(words) / 4:
        return (
            f"{setting} computes ROUGE from the letters a to z alone, and {broken / len(words):.0%} of these texts' "
            "words have others: set intl, or char or flores200",
        )
    return ()


def _listed(systems: dict[str, int]) -> str:
    names = sorted(systems, key=systems.__getitem__, reverse=True)[:2]
    return " and ".join(name if name == "CJK" else name.capitalize() for name in names)


@functools.cache
def bleu_scorer(tokenizer: str) -> BLEU:
    """sacreBLEU's BLEU with one of its tokenizers.

    Raises:
      UserError: if the tokenizer needs a package that is not installed, or a file that cannot be fetched.
    """
    try:
        return BLEU(tokenize=tokenizer)
    except (ImportError, RuntimeError, OSError) as error:
        package = _PACKAGES.get(tokenizer, "sentencepiece")
        reason = " ".join(str(error).split())
        raise UserError(
            f"config.task.metric_tokenizer={tokenizer} is not available ({reason:.200}): "
            f"pip install {package}, or choose char"
        ) from error


def signatures(references: Sequence[str | Sequence[str]], tokenizer: str = "13a") -> dict[str, str]:
    """sacreBLEU's signatures of `bleu` and `chrf`, which specify how they were computed (Post 2018)."""
    counts = {len(gold) for gold in _reference_lists(references)}
    scorers = {"bleu": BLEU(tokenize=tokenizer), "chrf": CHRF()}
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


class _Words:
    """The words of a tokenizer of sacreBLEU, in the form that ROUGE takes."""

    def __init__(self, tokenizer: str):
        self._split = bleu_scorer(tokenizer).tokenizer

    def tokenize(self, text: str) -> list[str]:
        return [
            word
            for word in self._split(text.lower()).split()
            if any(each.isalnum() or system_of(each) for each in word)
        ]


def _rouge(pairs: list[tuple[str, list[str]]], tokenizer: str) -> dict[str, Metric]:
    from rouge_score import rouge_scorer, tokenizers  # takes seconds

    words = tokenizers.DefaultTokenizer(use_stemmer=True) if tokenizer == "13a" else _Words(tokenizer)
    scorer = rouge_scorer.RougeScorer(_ROUGE, tokenizer=words)
    scores = [scorer.score_multi(gold, text) for text, gold in pairs]
    return {name: _mean([score[name].fmeasure for score in scores]) for name in _ROUGE}


def _mean(values_N: Sequence[float]) -> Metric:
    return mean_metric(values_N, better="higher", limits=SHARE)
