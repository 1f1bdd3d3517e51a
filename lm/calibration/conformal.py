"""Conformal prediction: sets of classes that contain the true one with a given probability, for any model.

Fitted on items that neither the model nor its calibrator has seen, independent and distributed like future items, the
sets contain the label of a new item with probability at least `coverage`, on average over items.

Axes: N items, C classes.
"""

import dataclasses
import math

import numpy as np
from scipy import special, stats

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
    """

    method: str
    coverage: float
    threshold: float
    penalty: float = 0.01
    free: int = 5

    def sets(self, logits_NC: np.ndarray, seed: int = 0) -> np.ndarray:
        """The classes in each item's set, bool [N, C].

        "aps" and "raps" randomize whether the last class is included (from `seed`); without that they would cover too
        much. No set is empty.
        """
        scores_NC = _scores(np.asarray(logits_NC), self.method, self.penalty, self.free, seed)
        best_N1 = scores_NC.argmin(axis=1)[:, None]
        inside_NC = scores_NC <= self.threshold
        np.put_along_axis(inside_NC, best_N1, True, axis=1)
        return inside_NC


def fit_sets(
    logits_NC: np.ndarray,
    labels_N: np.ndarray,
    coverage: float = 0.9,
    method: str = "lac",
    *,
    penalty: float = 0.01,
    free: int = 5,
    seed: int = 1,
) -> ConformalSets:
    """Finds the threshold: the ceil((N + 1) coverage)-th smallest score of a true class.

    Raises:
      ValueError: for an unknown method, or if N is too small for the coverage (0.9 needs at least 9 items).
    """
    if method not in METHODS:
        raise ValueError(f"method must be one of {', '.join(METHODS)}; got {method!r}")
    if not 0 < coverage < 1:
        raise ValueError(f"coverage must be between 0 and 1, got {coverage}")
    items = len(labels_N)
    rank = math.ceil((items + 1) * coverage)
    if rank > items:
        raise ValueError(
            f"coverage {coverage} needs at least {math.ceil(coverage / (1 - coverage) - 1e-9)} items, not {items}"
        )
    scores_NC = _scores(np.asarray(logits_NC), method, penalty, free, seed)
    of_labels_N = scores_NC[np.arange(items), labels_N]
    return ConformalSets(method, coverage, float(np.sort(of_labels_N)[rank - 1]), penalty, free)


def _scores(logits_NC: np.ndarray, method: str, penalty: float, free: int, seed: int) -> np.ndarray:
    """Nonconformity of each class: low for likely classes."""
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


def report_sets(sets_NC: np.ndarray, labels_N: np.ndarray) -> SetReport:
    """Evaluates sets on items that they were not fitted to."""
    items = len(labels_N)
    hit_N = sets_NC[np.arange(items), labels_N]
    hits, sizes_N = int(hit_N.sum()), sets_NC.sum(axis=1)
    low = 0.0 if hits == 0 else float(stats.beta.ppf(0.025, hits, items - hits + 1))
    high = 1.0 if hits == items else float(stats.beta.ppf(0.975, hits + 1, items - hits))
    by_size = {int(size): float(hit_N[sizes_N == size].mean()) for size in np.unique(sizes_N)}
    return SetReport(hits / items, low, high, float(sizes_N.mean()), by_size)
