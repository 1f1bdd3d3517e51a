"""Proper scores, and how well confidence ranks correct above wrong answers.

Axes: N items, C classes, M bins.
"""

import dataclasses

import numpy as np
from scipy.special import digamma

from lm.calibration.inputs import (
    ArrayLike,
    InputError,
    checked_correct,
    checked_count,
    checked_labels,
    checked_numbers,
    checked_probabilities,
    checked_share,
    checked_weights,
)


@dataclasses.dataclass(frozen=True)
class BrierDecomposition:
    """The parts of the Brier score; `brier = reliability - resolution + uncertainty + within_bins` exactly.

    Attributes:
      brier: mean squared distance of probabilities and indicators, 0 to 2 (the sum over classes).
      reliability: squared gap between mean probability and frequency per bin; 0 if calibrated.
      resolution: squared distance of the bins' frequencies from the overall frequency; higher is better.
      uncertainty: variance of the labels.
      within_bins: contribution of different probabilities within a bin: their variance minus twice their covariance
        with the outcome. It is often forgotten (Stephenson et al. 2008).
    """

    brier: float
    reliability: float
    resolution: float
    uncertainty: float
    within_bins: float


def brier_decomposition(
    labels: ArrayLike, probabilities: ArrayLike, bins: int = 15, *, normalize: bool = False
) -> BrierDecomposition:
    """Murphy's (1973) decomposition over equal-width bins of each class's probability, summed over classes.

    Args:
      labels: the true classes, [N].
      probabilities: [N, C]; [N] or [N, 1] for class 1 of two.
      bins: number of bins.
      normalize: divide each row of the probabilities by its sum.

    Raises:
      InputError: if an array is not as described.
    """
    probabilities_NC = checked_probabilities(probabilities, normalize)
    labels_N = np.asarray(checked_labels(labels, probabilities_NC.shape))
    bins = checked_count(bins, "bins")
    items, classes = probabilities_NC.shape
    parts = np.zeros(5)
    for c in range(classes):
        p, y = probabilities_NC[:, c], (labels_N == c).astype(np.float64)
        bin_N = np.clip(np.ceil(p.astype(np.float32) * np.float32(bins)) - 1, 0, bins - 1).astype(int)
        count = np.bincount(bin_N, None, bins)
        safe = np.maximum(count, 1)
        mean_p, mean_y = np.bincount(bin_N, p, bins) / safe, np.bincount(bin_N, y, bins) / safe
        variance = ((p - mean_p[bin_N]) ** 2).mean()
        covariance = ((p - mean_p[bin_N]) * (y - mean_y[bin_N])).mean()
        share, base = count / items, y.mean()
        parts += (
            ((p - y) ** 2).mean(),
            (share * (mean_p - mean_y) ** 2).sum(),
            (share * (mean_y - base) ** 2).sum(),
            base * (1 - base),
            variance - 2 * covariance,
        )
    return BrierDecomposition(*parts.tolist())


@dataclasses.dataclass(frozen=True)
class Ranking:
    """Items by decreasing confidence, with ties grouped; computed once, used for many weightings.

    Attributes:
      order_N: items in this order.
      starts_G: where each group of equal confidences starts.
    """

    order_N: np.ndarray
    starts_G: np.ndarray

    @classmethod
    def of(cls, confidence: ArrayLike) -> "Ranking":
        """Sorts confidences, [N]: probabilities, or any other numbers that are higher where the model is surer."""
        confidence_N = checked_numbers(confidence, "confidence")
        order_N = np.argsort(-confidence_N, kind="stable")
        sorted_N = confidence_N[order_N]
        starts_G = np.flatnonzero(np.append(True, sorted_N[1:] != sorted_N[:-1]))
        return cls(order_N, starts_G)

    def group_sums(self, values: np.ndarray) -> np.ndarray:
        """Sums of [..., N] over each group, [..., G]."""
        ordered = values[..., self.order_N]
        if self.starts_G.size == self.order_N.size:
            return ordered
        return np.add.reduceat(ordered, self.starts_G, axis=-1)

    def right_and_wrong(self, correct_N: np.ndarray, weight: np.ndarray | None = None) -> tuple[np.ndarray, np.ndarray]:
        """How much of each group is right and how much is wrong, [..., G] each.

        Args:
          correct_N: in [0, 1].
          weight: how often each item counts, [..., N]; None: once.
        """
        correct_N = checked_correct(correct_N, self.order_N.size)
        weight = np.ones_like(correct_N) if weight is None else np.asarray(weight)
        if weight.shape[-1:] != correct_N.shape or not (weight >= 0).all():
            raise InputError(
                f"weights must be {correct_N.size} numbers that are not negative, one for each item, not of shape "
                f"{weight.shape}"
            )
        right = self.group_sums(weight * correct_N)
        return right, self.group_sums(weight) - right


def auroc(ranking: Ranking, correct_N: np.ndarray, weight: np.ndarray | None = None) -> np.ndarray:
    """P(a correct answer has higher confidence than a wrong one), ties as one half; NaN if all are correct or wrong.

    Args:
      ranking: of the confidences.
      correct_N: in [0, 1].
      weight: weight of each item, [..., N]; None: 1.

    Returns:
      [...].
    """
    return auroc_of_groups(*ranking.right_and_wrong(correct_N, weight))


def auroc_of_groups(right: np.ndarray, wrong: np.ndarray) -> np.ndarray:
    """`auroc` from what is right and wrong in each group of equal confidence, in falling order, [..., G]."""
    wrong_up_to = np.cumsum(wrong, axis=-1)
    all_wrong = wrong_up_to[..., -1]
    pairs = right.sum(axis=-1) * all_wrong
    concordant = (right * (all_wrong[..., None] - wrong_up_to + 0.5 * wrong)).sum(axis=-1)
    return np.where(pairs > 0, concordant / np.where(pairs > 0, pairs, 1), np.nan)


def aurc(ranking: Ranking, correct_N: np.ndarray, weight: np.ndarray | None = None) -> np.ndarray:
    """Area under the risk-coverage curve: the error rate among the k most confident, averaged over k = 1 to N.

    Ties share their errors evenly, so the order of items does not matter (otherwise the same hundred items can give
    0.12 or 0.45). Arguments and result as for `auroc`; with weights the average is over groups of equal confidence,
    each with its weight, a whole number.
    """
    if weight is not None and np.any(np.asarray(weight) % 1):
        raise InputError("weights count items here, so they must be whole numbers")
    return aurc_of_groups(*ranking.right_and_wrong(correct_N, weight))


def aurc_of_groups(right: np.ndarray, wrong: np.ndarray) -> np.ndarray:
    """`aurc` from what is right and wrong in each group of equal confidence, in falling order, [..., G]."""
    size = right + wrong
    after, errors_after = np.cumsum(size, axis=-1), np.cumsum(wrong, axis=-1)
    # Within a group the risk at k = before + j is (errors_before + j * rate) / k; its sum over j contains harmonic
    # numbers. Weights are integers, so a table has them all.
    rate = wrong / np.where(size > 0, size, 1)
    table = digamma(np.arange(1, np.rint(after[..., -1].max()) + 2))
    harmonic_after = table[np.rint(after).astype(np.int32)]
    harmonic_before = np.concatenate([np.full_like(after[..., :1], table[0]), harmonic_after[..., :-1]], axis=-1)
    errors_without_rate = errors_after - wrong - rate * (after - size)
    area = wrong + errors_without_rate * (harmonic_after - harmonic_before)
    return area.sum(axis=-1) / after[..., -1]


def risk_coverage(
    ranking: Ranking, correct_N: np.ndarray, weights_N: np.ndarray | None = None
) -> tuple[np.ndarray, np.ndarray]:
    """The curve at the end of each group: (coverage, error rate among the covered items), [G] each."""
    weights_N = checked_weights(weights_N, ranking.order_N.size)
    right, wrong = ranking.right_and_wrong(correct_N, weights_N)
    counted = right + wrong > 0
    right, wrong = right[counted], wrong[counted]
    covered = np.cumsum(right + wrong)
    return covered / covered[-1], np.cumsum(wrong) / covered


def accuracy_at_coverage(ranking: Ranking, correct_N: np.ndarray, coverage: float) -> float:
    """Accuracy of the `coverage` share of most confident items; ties are shared evenly."""
    if coverage != 1:
        checked_share(coverage, "coverage")
    right, wrong = ranking.right_and_wrong(correct_N)
    wanted = coverage * len(correct_N)
    size = right + wrong
    taken = np.clip(wanted - (np.cumsum(size) - size), 0, size)
    return float((taken * right / size).sum() / wanted)
