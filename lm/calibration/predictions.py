"""Predictions as a file: the input of calibration, from any model.

Axes: N items, C classes, D hidden width.
"""

import dataclasses
import zipfile
import zlib
from pathlib import Path
from typing import Any

import numpy as np
from scipy import special

from lm.calibration.logits import FactoredLogits, Logits, take, whole
from lm.calibration.outcomes import Outcomes, outcomes
from lm.errors import UserError
from lm.files import written_atomically

# Names of two classes that say whether a given answer is right, for models that choose from no fixed set of classes.
JUDGEMENTS = ("wrong", "right")

_SCORES = ("logits", "log_probs", "probabilities")


@dataclasses.dataclass(frozen=True)
class Predictions:
    """Logits and labels of items, and their clusters.

    As an npz file: `logits` [N, C] (or `log_probs`, or `probabilities`: by name, never guessed from the values; or, for
    a large vocabulary, the factors `hidden` [N, D] and `output` [C, D] with the logits as product), `labels` [N], and
    optionally `ids` [N], `clusters` [N] (the document, prompt or seed that makes items dependent) and `class_names`
    [C].

    Two classes named "wrong" and "right" are no choice between them: they judge an answer that was given, such as the
    span that answers a question. Its confidence is the probability of "right", however low.

    Attributes:
      logits: [N, C] float32, or factors.
      labels_N: the true classes.
      ids_N: unique ids; the item numbers if the file has none.
      clusters_N: the cluster of each item, or None if items are independent.
      class_names: of the C classes, or None.
    """

    logits: np.ndarray | FactoredLogits
    labels_N: np.ndarray
    ids_N: np.ndarray
    clusters_N: np.ndarray | None = None
    class_names: tuple[str, ...] | None = None

    def __post_init__(self):
        items, classes = self.logits.shape
        for name, values in (("labels", self.labels_N), ("ids", self.ids_N), ("clusters", self.clusters_N)):
            if values is not None and values.shape != (items,):
                raise ValueError(
                    f"`{name}` must have shape ({items},) like the items of the logits, not {values.shape}"
                )
        if not np.issubdtype(self.labels_N.dtype, np.integer):
            raise ValueError(f"`labels` must be integers, not {self.labels_N.dtype}")
        outside = np.flatnonzero((self.labels_N < 0) | (self.labels_N >= classes))
        if outside.size:
            item = outside[0]
            raise ValueError(f"label {self.labels_N[item]} of item {item} is not one of the classes 0 to {classes - 1}")
        if self.class_names is not None and len(self.class_names) != classes:
            raise ValueError(f"`class_names` has {len(self.class_names)} names for {classes} classes")
        if np.unique(self.ids_N).size != items:
            raise ValueError("`ids` must be unique, but some are equal")

    def __len__(self) -> int:
        return len(self.labels_N)

    def outcomes(self, logits: Logits | None = None) -> Outcomes:
        """Outcomes of the items.

        Args:
          logits: of the same items, such as calibrated ones; None: their own.
        """
        logits = self.logits if logits is None else logits
        found = outcomes(self.labels_N, logits=logits)
        if self.class_names != JUDGEMENTS:
            return found
        right_N = special.softmax(np.asarray(whole(logits)), axis=1)[:, 1]
        return found._replace(confidence_N=right_N, correct_N=self.labels_N.astype(np.float32))

    def select(self, index_N: np.ndarray) -> "Predictions":
        """A subset of the items, by mask or by index."""
        clusters_N = None if self.clusters_N is None else self.clusters_N[index_N]
        return dataclasses.replace(
            self,
            logits=_on_host(take(self.logits, index_N)),
            labels_N=self.labels_N[index_N],
            ids_N=self.ids_N[index_N],
            clusters_N=clusters_N,
        )

    def save(self, path: Path) -> None:
        """Writes an npz file, atomically."""
        arrays: dict[str, Any] = {"labels": self.labels_N.astype(np.int32), "ids": self.ids_N}
        if isinstance(self.logits, FactoredLogits):
            arrays |= {"hidden": np.asarray(self.logits.hidden_ND), "output": np.asarray(self.logits.output_CD)}
        else:
            arrays["logits"] = np.asarray(self.logits, np.float32)
        if self.clusters_N is not None:
            arrays["clusters"] = self.clusters_N
        if self.class_names is not None:
            arrays["class_names"] = np.array(self.class_names)
        path.parent.mkdir(parents=True, exist_ok=True)
        with written_atomically(path) as temporary:
            np.savez(temporary, **arrays)

    @classmethod
    def load(cls, path: Path) -> "Predictions":
        """Reads an npz file.

        Raises:
          UserError: if it is missing or not an npz file, holds pickled objects, lacks an array, or arrays do not match.
        """
        if not path.is_file():
            raise UserError(f"{path}: no such predictions file")
        try:
            with np.load(path, allow_pickle=False) as file:
                arrays = {name: np.asarray(file[name]) for name in file.files}
        except (ValueError, TypeError, OSError, EOFError, zipfile.BadZipFile, zlib.error) as error:
            raise UserError(f"{path} is not an npz file of plain arrays: {error}") from error
        try:
            return cls._from_arrays(arrays)
        except ValueError as error:
            raise UserError(f"{path}: {error}") from error

    @classmethod
    def _from_arrays(cls, arrays: dict[str, np.ndarray]) -> "Predictions":
        if "labels" not in arrays:
            raise ValueError(f"the array `labels` is missing; found {', '.join(arrays) or 'none'}")
        labels_N = arrays["labels"]
        names = arrays.get("class_names")
        return cls(
            logits=_logits_of(arrays),
            labels_N=labels_N,
            ids_N=arrays.get("ids", np.arange(labels_N.size)),
            clusters_N=arrays.get("clusters"),
            class_names=None if names is None else tuple(str(name) for name in names.ravel()),
        )


def _on_host(logits: Logits) -> np.ndarray | FactoredLogits:
    return logits if isinstance(logits, FactoredLogits) else np.asarray(logits)


def _logits_of(arrays: dict[str, np.ndarray]) -> np.ndarray | FactoredLogits:
    given = [name for name in (*_SCORES, "hidden") if name in arrays]
    if len(given) != 1:
        raise ValueError(
            f"exactly one of {', '.join(_SCORES)} and hidden (with output) is required; found "
            f"{', '.join(given) or 'none'}"
        )
    values = arrays[given[0]]
    if values.ndim != 2 or values.shape[0] < 1 or not np.issubdtype(values.dtype, np.floating):
        raise ValueError(f"`{given[0]}` must be floating-point [items, classes], not {values.dtype} {values.shape}")
    if given[0] == "hidden":
        if "output" not in arrays or arrays["output"].ndim != 2 or arrays["output"].shape[1] != values.shape[1]:
            raise ValueError("`hidden` [items, width] needs `output` [classes, width] as well")
        factors = FactoredLogits(_as_float32(values), _as_float32(arrays["output"]))
        for name, factor in zip(("hidden", "output"), factors, strict=True):
            if not np.isfinite(factor).all():
                raise ValueError(f"`{name}` has NaN or infinity")
        if factors.shape[1] < 2:
            raise ValueError(f"`output` must have at least 2 classes, not {factors.shape[1]}")
        return factors
    values = _as_float32(values)
    if values.shape[1] < 2:
        raise ValueError(
            f"`{given[0]}` must have at least 2 classes, not {values.shape[1]}; give a column for each of two classes"
        )
    wrong = np.flatnonzero(np.isnan(values).any(axis=1) | ~np.isfinite(values.max(axis=1)))
    if wrong.size:
        raise ValueError(f"`{given[0]}` of item {wrong[0]} has NaN, +inf or no finite value ({wrong.size} in all)")
    if given[0] == "logits":
        return values
    if given[0] == "probabilities" and values.min() < 0:
        item = np.flatnonzero(values.min(axis=1) < 0)[0]
        raise ValueError(
            f"`probabilities` of item {item} are negative; if these are unnormalized scores, call the array `logits`"
        )
    with np.errstate(over="ignore"):
        totals_N = (np.exp(values) if given[0] == "log_probs" else values).sum(axis=1)
    wrong = np.flatnonzero(~(np.abs(totals_N - 1) <= 1e-3))
    if wrong.size:
        raise ValueError(
            f"`{given[0]}` of item {wrong[0]} sum to {totals_N[wrong[0]]:.4g}, not to 1 ({wrong.size} in all); if "
            "these are unnormalized scores, call the array `logits`"
        )
    with np.errstate(divide="ignore"):
        return values if given[0] == "log_probs" else np.log(values)


def _as_float32(values: np.ndarray) -> np.ndarray:
    with np.errstate(over="ignore"):  # to infinity, which is checked later
        return values.astype(np.float32)


def split(predictions: Predictions, fit_fraction: float, seed: int) -> tuple[Predictions, Predictions]:
    """Splits at random into items for fitting and for testing; clusters stay whole.

    Raises:
      UserError: if there are too few clusters (or items) for both parts.
    """
    unit_N = predictions.ids_N if predictions.clusters_N is None else predictions.clusters_N
    units, unit_number_N = np.unique(unit_N, return_inverse=True)
    if units.size < 2:
        raise UserError(
            "the predictions have only one item or cluster; splitting them for fitting and testing needs at least two"
        )
    number = min(max(round(fit_fraction * units.size), 1), units.size - 1)
    for_fit = np.random.default_rng(seed).permutation(units.size) < number
    return predictions.select(for_fit[unit_number_N]), predictions.select(~for_fit[unit_number_N])


def check_disjoint(fit: Predictions, test: Predictions) -> None:
    """Checks that no item or cluster is used both for fitting and for testing.

    Raises:
      UserError: if the parts share an id or a cluster, or differ in the number of classes.
    """
    if fit.logits.shape[1] != test.logits.shape[1]:
        raise UserError(
            f"the fit predictions have {fit.logits.shape[1]} classes, the test predictions {test.logits.shape[1]}"
        )
    if (fit.clusters_N is None) != (test.clusters_N is None):
        raise UserError("either both fit and test predictions need `clusters`, or neither")
    pairs = (("ids", fit.ids_N, test.ids_N), ("clusters", fit.clusters_N, test.clusters_N))
    for name, ours, others in pairs:
        shared = np.array([]) if ours is None or others is None else np.intersect1d(ours, others)
        if shared.size:
            raise UserError(
                f"fit and test share {shared.size} {name}, such as {shared[0]}: a calibrator must not be evaluated on "
                "items it was fitted to"
            )
