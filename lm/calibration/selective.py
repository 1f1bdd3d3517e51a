"""Selective prediction: a confidence threshold with a guaranteed error rate.

Axes: N items.
"""

import dataclasses
import math

import numpy as np
from scipy import stats

from lm.calibration.inputs import ArrayLike, checked_confidence, checked_correct, checked_share


@dataclasses.dataclass(frozen=True)
class Threshold:
    """A confidence threshold.

    Attributes:
      confidence: answer where the confidence is at least this; infinite if nothing can be guaranteed.
      coverage: share answered of the items it was chosen on.
      error_rate: their error rate.
      error_bound: upper bound of the true error rate at the requested assurance.
    """

    confidence: float
    coverage: float
    error_rate: float
    error_bound: float


def threshold_for_risk(confidence: ArrayLike, correct: ArrayLike, risk: float, *, assurance: float = 0.95) -> Threshold:
    """The lowest threshold at which the error rate is at most `risk`, with a guarantee for finite samples.

    Twenty thresholds, which answer 5%, 10%, ... 100% of the items, are tested with the exact (Clopper-Pearson) bound of
    their error rate, each at a twentieth of the allowed error probability, so that all bounds hold jointly (Learn then
    Test with Bonferroni correction; Angelopoulos et al. 2021, section 3).

    Args:
      confidence: of items not used to fit a calibrator, independent and distributed like future items; [N].
      correct: 0 or 1, [N], such as `predictions == labels`; fractions of ties count as wrong.
      risk: the maximum error rate, in (0, 1).
      assurance: the probability, over the sampling of these items, that the true error rate stays below it.

    Returns:
      The threshold. `confidence` is infinite and `coverage` 0 if there are too few items or too many errors.

    Raises:
      InputError: if an argument is not as described.
    """
    checked_share(risk, "risk")
    checked_share(assurance, "assurance")
    confidence_N = checked_confidence(confidence).astype(np.float64)
    wrong_N = checked_correct(correct, len(confidence_N)) < 1
    sorted_N = np.sort(confidence_N)[::-1]
    tests = 20
    chosen = Threshold(math.inf, 0.0, math.nan, math.nan)
    for answered in np.unique(np.ceil(np.arange(1, tests + 1) / tests * sorted_N.size).astype(int)):
        threshold = sorted_N[answered - 1]
        is_answered_N = confidence_N >= threshold  # including ties
        items, errors = int(is_answered_N.sum()), int(wrong_N[is_answered_N].sum())
        bound = clopper_pearson_upper(errors, items, 1 - (1 - assurance) / tests)
        if bound <= risk:
            chosen = Threshold(float(threshold), items / sorted_N.size, errors / items, bound)
    return chosen


def clopper_pearson_upper(errors: int, items: int, assurance: float) -> float:
    """Exact one-sided upper bound of the error probability (Clopper & Pearson 1934)."""
    return 1.0 if errors >= items else float(stats.beta.ppf(assurance, errors + 1, items - errors))
