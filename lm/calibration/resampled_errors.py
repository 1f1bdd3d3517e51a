"""Errors and scores on resampled items, and with items swapped between two models: for intervals and paired tests.

Most errors are functions of sums over items, so resampling them costs a matrix product; those that depend on the order
of confidences use a weight per item.

Axes: N items, C classes, F features, M bins, R resamples, S swaps. A leading "..." stands for any axes.
"""

from collections.abc import Callable
from typing import NamedTuple

import numpy as np
from scipy import sparse

from lm.calibration import errors, scores
from lm.calibration.binning import Binning, BinTotals
from lm.calibration.noise_floor import bin_features, totals_of_sums
from lm.statistics.resampling import Resampler

# Errors that are functions of bins, with the scheme of the bins.
BINNED: dict[str, tuple[Callable[[BinTotals], np.ndarray], str]] = {"ece_equal_mass": (errors.ece, "equal_mass")}
BINNED |= {name: (function, "equal_width") for name, function in errors.BINNED_ERRORS.items()}


class Sums(NamedTuple):
    """Errors that are functions of sums over items.

    Attributes:
      features_NF: what is summed.
      of_sums: from sums [..., F] to each error by name, [...].
      ece: the name of the one among them that `ece_interval` is for; None: there is none. Sums are its totals then.
    """

    features_NF: sparse.csr_array
    of_sums: Callable[[np.ndarray], dict[str, np.ndarray]]
    ece: str | None = None


class Resampled(NamedTuple):
    """One model's errors on resamples.

    Attributes:
      errors: values by name, [R].
      ece_totals: by name, of the errors that `ece_interval` is for: totals of the items, [M], and of resamples, [R, M].
    """

    errors: dict[str, np.ndarray]
    ece_totals: dict[str, tuple[BinTotals, BinTotals]]


class Resamplable(NamedTuple):
    """One model's items.

    Attributes:
      sums: errors that are functions of sums; the same ones, in the same order, for every model that is compared.
      confidence_N: in [0, 1].
      correct_N: in [0, 1].
      weights_N: how much each item counts; None: once. "aurc" is NaN with weights.
    """

    sums: tuple[Sums, ...]
    confidence_N: np.ndarray
    correct_N: np.ndarray
    weights_N: np.ndarray | None = None

    def resampled(self, resampler: Resampler) -> Resampled:
        """The errors on the resamples."""
        found = Resampled({}, {})
        for features_NF, of_sums, ece in self.sums:
            sums_RF = resampler.sums(features_NF)
            found.errors.update(of_sums(sums_RF))
            if ece is not None:
                found.ece_totals[ece] = totals_of_sums(features_NF.sum(axis=0)), totals_of_sums(sums_RF)
        by_order = _by_order(self.confidence_N, self.correct_N, self.weights_N)
        found.errors.update(zip(_BY_ORDER, resampler.evaluate(by_order).T, strict=True))
        return found

    def swapped_differences(self, before: "Resamplable", resampler: Resampler) -> dict[str, np.ndarray]:
        """Differences of each error to another model over swaps of items, [S]; the first is the observed one."""
        found: dict[str, np.ndarray] = {}
        for (before_NF, of_sums, _), (after_NF, _, _) in zip(before.sums, self.sums, strict=True):
            before_S, after_S = map(of_sums, resampler.swapped_sums(before_NF, after_NF))
            found |= {name: after_S[name] - before_S[name] for name in after_S}
        by_order = _by_order(
            np.concatenate([before.confidence_N, self.confidence_N]),
            np.concatenate([before.correct_N, self.correct_N]),
            None if self.weights_N is None else np.tile(self.weights_N, 2),
        )

        def difference(is_swapped_sN: np.ndarray) -> np.ndarray:
            of_before = np.concatenate([1 - is_swapped_sN, is_swapped_sN], axis=1)
            return by_order(1 - of_before) - by_order(of_before)

        return found | dict(zip(_BY_ORDER, resampler.evaluate_swapped(difference).T, strict=True))


def binned_sums(
    confidence_N: np.ndarray,
    correct_N: np.ndarray,
    scheme: str,
    binning: Binning,
    bins: int,
    weights_N: np.ndarray | None = None,
) -> Sums:
    """The errors in `BINNED` of one scheme; `bins` as in `bin_features`.

    Items keep their bins when swapped, although recomputed equal-mass edges would move slightly.
    """

    def of_sums(sums: np.ndarray) -> dict[str, np.ndarray]:
        totals = totals_of_sums(sums)
        return {name: function(totals) for name, (function, of_scheme) in BINNED.items() if of_scheme == scheme}

    ece = {"equal_width": "ece", "equal_mass": "ece_equal_mass"}[scheme]
    return Sums(bin_features(confidence_N, correct_N, binning, bins, weights_N), of_sums, ece)


def smooth_sums(confidence_N: np.ndarray, correct_N: np.ndarray, weights_N: np.ndarray | None = None) -> Sums:
    """`smooth_ece`, from sums of residuals over the cells of its grid, and the number of items."""
    cells, items = errors.GridCells.of(confidence_N), len(confidence_N)
    residual_N = np.asarray(correct_N, np.float64) - confidence_N
    right_N = residual_N * cells.right_share_N
    values_N3 = np.stack([residual_N - right_N, right_N, np.ones(items)], axis=1)
    column_N3 = np.stack([cells.left_N, cells.right_N, np.full(items, errors.GRID)], axis=1)
    return Sums(
        _csr(_weighted(values_N3, weights_N), column_N3, errors.GRID + 1),
        lambda sums: {"smooth_ece": errors.smooth_ece_of_residuals(sums[..., :-1] / sums[..., -1:])},
    )


def classwise_sums(
    labels_N: np.ndarray, probabilities_NC: np.ndarray, bins: int, weights_N: np.ndarray | None = None
) -> Sums:
    """`classwise_ece`, from sums of residuals over each class's bins, and the number of items."""
    items, classes = probabilities_NC.shape
    is_class_NC = labels_N[:, None] == np.arange(classes)
    cell_NC = np.asarray(Binning(bins).index(probabilities_NC)) + bins * np.arange(classes)
    values = np.concatenate([is_class_NC - probabilities_NC, np.ones((items, 1))], axis=1)
    columns = np.concatenate([cell_NC, np.full((items, 1), classes * bins)], axis=1)

    def of_sums(sums: np.ndarray) -> dict[str, np.ndarray]:
        return {"classwise_ece": np.abs(sums[..., :-1]).sum(axis=-1) / (classes * sums[..., -1])}

    return Sums(_csr(_weighted(values, weights_N), columns, classes * bins + 1), of_sums)


_BY_ORDER = ("ks", "auroc", "aurc")


def _by_order(
    confidence_N: np.ndarray, correct_N: np.ndarray, weights_N: np.ndarray | None = None
) -> Callable[[np.ndarray], np.ndarray]:
    """The function from items' weights [r, N] to the errors that depend on the order of confidences, [r, 3]."""
    ranking = scores.Ranking.of(confidence_N)
    confidence_G = np.asarray(confidence_N, np.float64)[ranking.order_N][ranking.starts_G]

    def errors_of(weights_rN: np.ndarray) -> np.ndarray:
        weights_rN = weights_rN if weights_N is None else weights_rN * weights_N
        right_rG, wrong_rG = ranking.right_and_wrong(correct_N, weights_rN)
        residual_rG = right_rG - confidence_G * (right_rG + wrong_rG)
        rising_rG = np.cumsum(residual_rG[:, ::-1], axis=1)
        ks_r = np.abs(rising_rG).max(axis=1) / weights_rN.sum(axis=1)
        auroc_r = scores.auroc_of_groups(right_rG, wrong_rG)
        aurc_r = np.full_like(auroc_r, np.nan) if weights_N is not None else scores.aurc_of_groups(right_rG, wrong_rG)
        return np.stack([ks_r, auroc_r, aurc_r], axis=1)

    return errors_of


def _weighted(values_NK: np.ndarray, weights_N: np.ndarray | None) -> np.ndarray:
    return values_NK if weights_N is None else values_NK * weights_N[:, None]


def _csr(values_NK: np.ndarray, columns_NK: np.ndarray, width: int) -> sparse.csr_array:
    """A row of K entries for each item; entries of one column add up."""
    items, entries = values_NK.shape
    return sparse.csr_array(
        (values_NK.ravel().astype(np.float64), columns_NK.ravel(), entries * np.arange(items + 1)), shape=(items, width)
    )
