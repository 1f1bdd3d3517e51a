"""The bins of a reliability diagram, with their intervals, and the diagram from arrays.

Axes: N items, C classes, M bins, R resamples.
"""

from typing import TYPE_CHECKING

import numpy as np

from lm.calibration.binning import Binning, BinTotals, bin_totals
from lm.calibration.errors import resampled_error
from lm.calibration.inputs import (
    ArrayLike,
    checked_clusters,
    checked_count,
    checked_logits,
    checked_share,
    checked_weights,
)
from lm.calibration.outcomes import top_label
from lm.calibration.results import Bin, Entry, Method
from lm.statistics.intervals import wilson_interval

if TYPE_CHECKING:
    from matplotlib.axes import Axes


def reliability_bins(
    confidence_N: np.ndarray,
    correct_N: np.ndarray,
    binning: Binning,
    null: BinTotals,
    level: float = 0.95,
    weights_N: np.ndarray | None = None,
) -> tuple[Bin, ...]:
    """The non-empty bins, from low to high confidence.

    Args:
      confidence_N: in [0, 1].
      correct_N: in [0, 1].
      binning: the bins.
      null: totals of calibrated models, [R, M], from `null_totals`.
      level: of the intervals and bands.
      weights_N: how much each item counts; None: once. Intervals are then those of the effective number of items.
    """
    totals = bin_totals(confidence_N, correct_N, binning, weights_N)
    bin_N = np.asarray(binning.index(confidence_N))
    items = np.bincount(bin_N, minlength=binning.bins)
    squares = items if weights_N is None else np.bincount(bin_N, weights_N**2, binning.bins)
    edges, tails = binning.all_edges(), [(1 - level) / 2, (1 + level) / 2]
    band = np.quantile(null.correct / np.where(null.count > 0, null.count, 1), tails, axis=0).clip(0, 1)
    bins = []
    for b in np.flatnonzero(totals.count):
        weight, correct = totals.count[b], totals.correct[b]
        effective = weight**2 / squares[b]
        low, high = wilson_interval(correct / weight * effective, effective, level)
        bins.append(
            Bin(
                low=float(edges[b]),
                high=float(edges[b + 1]),
                count=int(items[b]),
                confidence=float(totals.confidence[b] / weight),
                accuracy=float(correct / weight),
                accuracy_low=float(low),
                accuracy_high=float(high),
                band_low=float(band[0, b]),
                band_high=float(band[1, b]),
            )
        )
    return tuple(bins)


def reliability_diagram(
    labels: ArrayLike,
    *,
    logits: ArrayLike | None = None,
    log_probs: ArrayLike | None = None,
    probabilities: ArrayLike | None = None,
    normalize: bool = False,
    title: str = "",
    bins: int = 15,
    clusters: ArrayLike | None = None,
    weights: ArrayLike | None = None,
    resamples: int = 1000,
    level: float = 0.95,
    seed: int = 0,
) -> "Axes":
    """Accuracy against confidence, with intervals, what chance allows, the ECE and its noise floor.

        axes = reliability_diagram(labels, probabilities=probabilities)
        axes.figure.savefig("reliability.png")

    Arguments are those of `lm.calibration.errors.calibration_error`.

    Returns:
      The axes of the diagram. Below them, `axes.figure.axes[1]` shows how many items have each confidence.

    Raises:
      InputError: as `calibration_error` does.
    """
    from lm.calibration.report.diagrams import reliability  # Matplotlib is slow to import

    resamples, seed = checked_count(resamples, "resamples"), checked_count(seed, "seed", 0)
    checked = checked_logits(logits=logits, log_probs=log_probs, probabilities=probabilities, normalize=normalize)
    confidence_N, correct_N = map(np.asarray, top_label(labels, logits=checked))
    binning, weights_N = Binning(bins), checked_weights(weights, len(confidence_N))
    error = resampled_error(
        confidence_N,
        correct_N,
        binning,
        clusters_N=checked_clusters(clusters, len(confidence_N)),
        weights_N=weights_N,
        resamples=resamples,
        level=checked_share(level, "level"),
        seed=seed,
    )
    method = Method(
        name="none",
        label=title,
        entries={"ece": Entry(error.value, error.interval, error.floor)},
        bins=reliability_bins(confidence_N, correct_N, binning, error.null, level, weights_N),
        risk_coverage=(),
    )
    return reliability([method], level).axes[0]
