"""Conformal prediction: sets of classes that contain the true one with a given probability, for any model.

Fitted on items that neither the model nor its calibrator has seen, independent and distributed like future items, the
sets contain the label of a new item with probability at least `coverage`, on average over items.

Axes: N items, C classes.
"""

import dataclasses
import math

import numpy as np
from scipy import special, stats

from lm.calibration.inputs import (
    ArrayLike,
    InputError,
    as_array,
    checked_count,
    checked_labels,
    checked_logits,
    checked_numbers,
    checked_share,
)
from lm.calibration.logits import whole

METHODS = ("lac", "aps", "raps")


@dataclasses.dataclass(frozen=True)
class ConformalSets:
    """A fitted rule.

    Attributes:
      method: "lac" includes every class above a probability: the smallest sets on average (Sadinle et al. 2019). "aps"
        includes classes from the most likely down, up to a total probability: larger where the model is uncertain
        (Romano et al. 2020). "raps" also penalizes each class beyond the `free`-th, which cuts off long tails
        (Angelopoulos et al. 2021).
      coverage: the target probability.
      threshold: largest score of a class in the set.
      penalty: of "raps", per class beyond `free`.
      free: of "raps", number of classes without penalty.
      classes: C of the items fitted on; None: not checked.
    """

    method: str
    coverage: float
    threshold: float
    penalty: float = 0.01
    free: int = 5
    classes: int | None = None

    def sets(self, logits: ArrayLike, seed: int = 0) -> np.ndarray:
        """The classes in each item's set, bool [N, C], from logits [N, C].

        "aps" and "raps" randomize whether the last class is included (from `seed`); without that they would cover too
        much. No set is empty.
        """
        logits_NC = np.asarray(whole(checked_logits(logits=logits)))
        if self.classes not in (None, logits_NC.shape[1]):
            raise InputError(f"the sets were fitted to {self.classes} classes, not {logits_NC.shape[1]}")
        scores_NC = _scores(logits_NC, self.method, self.penalty, self.free, seed)
        best_N1 = scores_NC.argmin(axis=1)[:, None]
        inside_NC = scores_NC <= self.threshold
        np.put_along_axis(inside_NC, best_N1, True, axis=1)
        return inside_NC


def fit_sets(
    logits: ArrayLike,
    labels: ArrayLike,
    coverage: float = 0.9,
    method: str = "lac",
    *,
    penalty: float = 0.01,
    free: int = 5,
    seed: int = 1,
) -> ConformalSets:
    """Finds the threshold: the ceil((N + 1) coverage)-th smallest score of a true class.

    Raises:
      InputError: for an unknown method, logits and labels that don't fit, or if N is too small for the coverage (0.9
        needs at least 9 items).
    """
    if method not in METHODS:
        raise InputError(f"method must be one of {', '.join(METHODS)}; got {method!r}")
    checked_share(coverage, "coverage")
    free, penalty = checked_count(free, "free", 0), float(checked_numbers([penalty], "penalty")[0])
    if penalty < 0:
        raise InputError(f"penalty must be at least 0, not {penalty}")
    checked = checked_logits(logits=logits)
    labels_N = np.asarray(checked_labels(labels, checked.shape))
    items = len(labels_N)
    rank = math.ceil((items + 1) * coverage - 1e-9)  # 100 * 0.55 is above 55 in floating point
    if rank > items:
        raise InputError(
            f"coverage {coverage} needs at least {math.ceil(coverage / (1 - coverage) - 1e-9)} items, not {items}"
        )
    scores_NC = _scores(np.asarray(whole(checked)), method, penalty, free, seed)
    of_labels_N = scores_NC[np.arange(items), labels_N]
    threshold = float(np.sort(of_labels_N)[rank - 1])
    return ConformalSets(method, coverage, threshold, penalty, free, checked.shape[1])


def _scores(logits_NC: np.ndarray, method: str, penalty: float, free: int, seed: int) -> np.ndarray:
    """Nonconformity of each class: low for likely classes."""
    seed = checked_count(seed, "seed", 0)
    probabilities_NC = special.softmax(logits_NC.astype(np.float64), axis=1)
    if method == "lac":
        return 1 - probabilities_NC
    order_NC = np.argsort(-probabilities_NC, axis=1, kind="stable")
    sorted_NC = np.take_along_axis(probabilities_NC, order_NC, axis=1)
    share_N1 = np.random.default_rng(seed).uniform(size=(len(logits_NC), 1))
    sorted_scores_NC = np.cumsum(sorted_NC, axis=1) - share_N1 * sorted_NC
    if method == "raps":
        sorted_scores_NC += penalty * np.maximum(np.arange(1, logits_NC.shape[1] + 1) - free, 0)
    scores_NC = np.empty_like(sorted_scores_NC)
    np.put_along_axis(scores_NC, order_NC, sorted_scores_NC, axis=1)
    return scores_NC


@dataclasses.dataclass(frozen=True)
class SetReport:
    """Performance of sets on labelled items.

    Attributes:
      coverage: share of sets that contain the label.
      low: lower end of its 95% interval (Clopper & Pearson 1934).
      high: upper end.
      mean_size: mean number of classes in a set.
      coverage_by_size: coverage for each set size that occurs; ideally constant.
    """

    coverage: float
    low: float
    high: float
    mean_size: float
    coverage_by_size: dict[int, float]


def report_sets(sets: ArrayLike, labels: ArrayLike) -> SetReport:
    """Evaluates sets, bool [N, C], on items that they were not fitted to.

    Raises:
      InputError: if the sets are not bools, or the labels don't fit.
    """
    sets_NC = np.asarray(as_array(sets, "sets"))
    if sets_NC.dtype != bool or sets_NC.ndim != 2 or not sets_NC.size:
        raise InputError(f"sets must be bool [items, classes], not {sets_NC.dtype} {sets_NC.shape}")
    labels_N = np.asarray(checked_labels(labels, sets_NC.shape))
    items = len(labels_N)
    hit_N = sets_NC[np.arange(items), labels_N]
    hits, sizes_N = int(hit_N.sum()), sets_NC.sum(axis=1)
    low = 0.0 if hits == 0 else float(stats.beta.ppf(0.025, hits, items - hits + 1))
    high = 1.0 if hits == items else float(stats.beta.ppf(0.975, hits + 1, items - hits))
    by_size = {int(size): float(hit_N[sizes_N == size].mean()) for size in np.unique(sizes_N)}
    return SetReport(hits / items, low, high, float(sizes_N.mean()), by_size)
