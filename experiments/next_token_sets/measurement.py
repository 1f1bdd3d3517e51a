"""One split of the documents: a temperature, thresholds, and what the sets of the test tokens are like.

Axes: N tokens, V vocabulary, G groups of tokens by frequency.
"""

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np

from experiments.next_token_sets.documents import TokenStates
from lm.calibration.calibrators import fit
from lm.calibration.conformal import (
    ConformalSets,
    JudgedSets,
    SetReport,
    fit_several,
    judge_sets,
    report_by_group,
    report_sets,
)
from lm.calibration.logits import FactoredLogits
from lm.errors import UserError
from lm.evaluation.token_reliability import frequency_buckets

# By name in the results: the method, and whether each group of tokens has a threshold of its own.
RULES = {
    "lac": ("lac", False),
    "aps": ("aps", False),
    "naive_aps": ("naive_aps", False),
    "raps": ("raps", False),
    "lac_by_frequency": ("lac", True),
}
FEWEST_DOCUMENTS = 10


@dataclasses.dataclass(frozen=True)
class SetsConfig:
    """Splits of the documents, and sets.

    Attributes:
      splits: how many random splits are measured, with seeds from 0.
      fit_share: share of the documents for the temperature and for the frequencies of tokens.
      test_share: share of the documents for testing; the rest is for the thresholds.
      temperature_tokens: at most so many tokens for the temperature.
      coverage: the target probability.
      penalty: of RAPS.
      free: of RAPS.
      groups: number of groups by frequency.
    """

    splits: int = 3
    fit_share: float = 0.2
    test_share: float = 0.4
    temperature_tokens: int = 2000
    coverage: float = 0.9
    penalty: float = 0.01
    free: int = 5
    groups: int = 10

    def __post_init__(self):
        if self.splits < 1 or self.groups < 1 or self.temperature_tokens < 1 or self.free < 0 or self.penalty < 0:
            raise UserError(
                "config.sets: splits, groups and temperature_tokens must be at least 1, free and penalty not negative"
            )
        if not 0 < self.coverage < 1:
            raise UserError(f"config.sets.coverage must be between 0 and 1, got {self.coverage}")
        if min(self.fit_share, self.test_share, 1 - self.fit_share - self.test_share) < 0.01:
            raise UserError("config.sets: fit_share, test_share and what they leave must each be at least 0.01")


class Split(NamedTuple):
    """Numbers of documents.

    Attributes:
      fit: for the temperature and the frequencies.
      calibration: for the thresholds.
      test: for the results.
    """

    fit: np.ndarray
    calibration: np.ndarray
    test: np.ndarray


def split_documents(documents: int, config: SetsConfig, seed: int) -> Split:
    """A random split of so many documents.

    Raises:
      UserError: if there are too few.
    """
    if documents < FEWEST_DOCUMENTS:
        raise UserError(
            f"there are {documents} documents that are long enough, and {FEWEST_DOCUMENTS} are the least: use more "
            "text, a smaller config.windows.context, or a larger config.data.validation_fraction"
        )
    order = np.random.default_rng(seed).permutation(documents)
    test, fit_ = (max(1, round(share * documents)) for share in (config.test_share, config.fit_share))
    return Split(order[test : test + fit_], order[test + fit_ :], order[:test])


def measure(
    states: TokenStates, output_VD: np.ndarray, documents: Sequence[np.ndarray], config: SetsConfig, seed: int
) -> dict[str, Any]:
    """The results of one split, in JSON's types.

    Args:
      states: of all documents.
      output_VD: the output matrix, whose product with hidden states are logits.
      documents: all of their token ids, for frequencies.
      config: of sets.
      seed: of the split.
    """
    split = split_documents(len(documents), config, seed)
    text = np.concatenate([documents[number] for number in split.fit])
    group_V = frequency_buckets(text, len(output_VD), config.groups)
    fit_, calibration, test = (_of_documents(states, numbers, output_VD) for numbers in split)
    chosen = np.random.default_rng(seed).permutation(len(fit_.labels_N))[: config.temperature_tokens]
    temperature = fit("temperature", FactoredLogits(fit_.logits.hidden_ND[chosen], output_VD), fit_.labels_N[chosen])
    rows = []
    for name, apply in (("none", lambda logits: logits), ("temperature", temperature.apply)):
        rules = _rules(apply(calibration.logits), calibration.labels_N, group_V, config, seed)
        judged = judge_sets(list(rules.values()), apply(test.logits), test.labels_N, seed=2 * seed)
        rows += [
            {"probabilities": name, "sets": key, **_result(rules[key], found, test, group_V)}
            for key, found in zip(rules, judged, strict=True)
        ]
    return {
        "seed": seed,
        "temperature": temperature.summary,
        "documents": {name: len(numbers) for name, numbers in split._asdict().items()},
        "tokens": {"fit": len(chosen), "calibration": len(calibration.labels_N), "test": len(test.labels_N)},
        "rows": rows,
    }


class _Tokens(NamedTuple):
    logits: FactoredLogits
    labels_N: np.ndarray
    documents_N: np.ndarray


def _of_documents(states: TokenStates, numbers: np.ndarray, output_VD: np.ndarray) -> _Tokens:
    of_N = np.isin(states.documents_N, numbers)
    return _Tokens(FactoredLogits(states.hidden_ND[of_N], output_VD), states.labels_N[of_N], states.documents_N[of_N])


def _rules(
    logits: Any, labels_N: np.ndarray, group_V: np.ndarray, config: SetsConfig, seed: int
) -> Mapping[str, ConformalSets]:
    methods = [method for method, _ in RULES.values()]
    groups = [group_V if by_group else None for _, by_group in RULES.values()]
    options: dict[str, Any] = {"penalty": config.penalty, "free": config.free, "seed": 2 * seed + 1}
    return dict(zip(RULES, fit_several(logits, labels_N, config.coverage, methods, groups, **options), strict=True))


def _result(rule: ConformalSets, judged: JudgedSets, test: _Tokens, group_V: np.ndarray) -> dict[str, Any]:
    by_group = report_by_group(judged, group_V[test.labels_N], test.documents_N)
    return {
        "threshold": None if isinstance(rule.threshold, np.ndarray) else rule.threshold,
        **_figures(report_sets(judged, test.labels_N, test.documents_N)),
        "was_empty": float(judged.was_empty_N.mean()),
        "by_frequency": {str(int(group) + 1): _figures(report) for group, report in by_group.items()},
    }


def _figures(report: SetReport) -> dict[str, float]:
    return {
        "coverage": report.coverage,
        "coverage_low": report.low,
        "coverage_high": report.high,
        "mean_size": report.mean_size,
        "mean_size_low": report.size_interval.low,
        "mean_size_high": report.size_interval.high,
        "median_size": report.median_size,
        "tokens": report.items,
    }
