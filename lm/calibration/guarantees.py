"""Sets and answers with a guarantee: one half of held-out items chooses the thresholds, the other half judges them.

No calibrator may have been fitted to these items. The guarantees need independent items, so one item of each cluster
chooses; all items of the other clusters judge.

Axes: N items, C classes.
"""

import dataclasses
import math
from collections.abc import Mapping

import numpy as np

from lm.calibration.conformal import SetReport, fit_several, judge_sets, report_by_group, report_sets
from lm.calibration.inputs import InputError
from lm.calibration.logits import Logits, take
from lm.calibration.predictions import JUDGEMENTS, Predictions
from lm.calibration.selective import threshold_for_risk
from lm.statistics.intervals import NO_INTERVAL, Interval, share_interval

METHODS = ("lac", "aps", "raps")

_FEWEST = 60  # independent items: half of them choose, and 0.9 needs hundreds to be of use
_MOST_NUMBERS = 2**24  # logits of more numbers are of tokens, which experiments.next_token_sets is for
_MOST_CLASSES = 50  # with more, coverage of each is a table that nobody reads


@dataclasses.dataclass(frozen=True)
class SetResult:
    """Sets of one method.

    Attributes:
      method: of `lm.calibration.conformal`.
      whole: of all judging items.
      by_class: of those of each class, by its name; empty with many classes.
    """

    method: str
    whole: SetReport
    by_class: Mapping[str, SetReport]


@dataclasses.dataclass(frozen=True)
class Answering:
    """Answering only where the confidence is high enough.

    Attributes:
      risk: the largest error rate that is allowed.
      confidence: the threshold; infinite if nothing can be guaranteed.
      answered: share of the judging items that are answered.
      error_rate: of those; NaN if there are none.
      interval: of the error rate, at 95%.
    """

    risk: float
    confidence: float
    answered: float
    error_rate: float
    interval: Interval


@dataclasses.dataclass(frozen=True)
class Guarantees:
    """What was promised, and what the judging items show.

    Attributes:
      coverage: the target probability of sets.
      assurance: with which an error rate stays below its risk.
      chosen_on: number of items that chose.
      judged_on: number of items that judged.
      sets: one for each method; empty if the items are not choices between a few classes.
      answering: one for each risk.
    """

    coverage: float
    assurance: float
    chosen_on: int
    judged_on: int
    sets: tuple[SetResult, ...]
    answering: tuple[Answering, ...]


def measure_guarantees(
    part: Predictions,
    logits: Logits,
    coverage: float = 0.9,
    risks: tuple[float, ...] = (0.05, 0.1, 0.2),
    assurance: float = 0.95,
    seed: int = 0,
) -> Guarantees | None:
    """Chooses thresholds on a random half of the items, or of their clusters, and judges them on the rest.

    Args:
      part: items that no calibrator was fitted to.
      logits: theirs, calibrated or not.
      coverage: target probability of sets.
      risks: largest error rates of the answers.
      assurance: with which they hold.
      seed: for the halves.

    Returns:
      None if the items have weights, for which nothing is guaranteed, or if they are too few to halve.
    """
    if part.weights_N is not None:
        return None
    choose_N, judge_N = _halves(part, seed)
    if np.count_nonzero(choose_N) < _FEWEST // 2:
        return None
    found = part.outcomes(logits)
    confidence_N, correct_N = np.asarray(found.confidence_N), np.asarray(found.correct_N)
    clusters_N = None if part.clusters_N is None else part.clusters_N[judge_N]
    answering = []
    for risk in risks:
        threshold = threshold_for_risk(confidence_N[choose_N], correct_N[choose_N], risk, assurance=assurance)
        is_answered_N = confidence_N[judge_N] >= threshold.confidence
        wrong_N = 1 - correct_N[judge_N][is_answered_N]
        answering.append(
            Answering(
                risk=risk,
                confidence=threshold.confidence,
                answered=float(is_answered_N.mean()),
                error_rate=float(wrong_N.mean()) if wrong_N.size else math.nan,
                interval=share_interval(wrong_N, None if clusters_N is None else clusters_N[is_answered_N])
                if wrong_N.size
                else NO_INTERVAL,
            )
        )
    return Guarantees(
        coverage=coverage,
        assurance=assurance,
        chosen_on=int(choose_N.sum()),
        judged_on=int(judge_N.sum()),
        sets=_sets(part, logits, coverage, choose_N, judge_N, seed),
        answering=tuple(answering),
    )


def _halves(part: Predictions, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """Masks of the items that choose, one of each cluster of a half, and of those that judge."""
    units_N = np.arange(len(part)) if part.clusters_N is None else np.unique(part.clusters_N, return_inverse=True)[1]
    rng = np.random.default_rng(seed)
    is_first_half_N = (rng.permutation(units_N.max() + 1) < (units_N.max() + 1) // 2)[units_N]
    order_N = rng.permutation(len(part))
    _, first_M = np.unique(units_N[order_N], return_index=True)
    choose_N = np.zeros(len(part), bool)
    choose_N[order_N[first_M]] = True
    return choose_N & is_first_half_N, ~is_first_half_N


def _sets(
    part: Predictions, logits: Logits, coverage: float, choose_N: np.ndarray, judge_N: np.ndarray, seed: int
) -> tuple[SetResult, ...]:
    items, classes = logits.shape
    if part.class_names == JUDGEMENTS or items * classes > _MOST_NUMBERS:
        return ()
    try:
        rules = fit_several(take(logits, choose_N), part.labels_N[choose_N], coverage, METHODS, seed=2 * seed + 1)
    except InputError:  # too few for this coverage
        return ()
    labels_N = part.labels_N[judge_N]
    clusters_N = None if part.clusters_N is None else part.clusters_N[judge_N]
    names = part.class_names or tuple(map(str, range(classes)))
    found = []
    for rule, judged in zip(rules, judge_sets(rules, take(logits, judge_N), labels_N, seed=2 * seed), strict=True):
        by_class = {} if classes > _MOST_CLASSES else report_by_group(judged, labels_N, clusters_N)
        found.append(
            SetResult(
                rule.method,
                report_sets(judged, labels_N, clusters_N),
                {names[int(label)]: report for label, report in by_class.items()},
            )
        )
    return tuple(found)
