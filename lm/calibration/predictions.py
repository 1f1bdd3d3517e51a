"""Predictions as a file: the input of calibration, from any model.

Axes: N items, C classes, D hidden width, K inputs of a prior, M items without labels.
"""

import dataclasses
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import jax
import numpy as np
from scipy import special

from lm.calibration.inputs import (
    InputError,
    checked_labels,
    checked_logits,
    checked_names,
    checked_weights,
    repeated_name,
)
from lm.calibration.logits import FactoredLogits, Logits, take, whole
from lm.calibration.outcomes import Outcomes, outcomes
from lm.calibration.prediction_files import SCORES, read_arrays
from lm.calibration.priors import PRIORS, array_of, checked_priors, checked_scores
from lm.errors import UserError
from lm.files import written_atomically

# Names of two classes that say whether a given answer is right, for models that choose from no fixed set of classes.
JUDGEMENTS = ("wrong", "right")

_LOWEST_LOG = -50.0  # of the probability that a judged answer is wrong

# One value each; a model of the user's own may leave them out.
_ORIGIN = {"checkpoint": np.integer, "model": np.str_}
_ARRAYS = (*SCORES, "hidden", "output", "labels", "ids", "clusters", "class_names", "weights", *_ORIGIN)
_BESIDES = ("unlabelled", *map(array_of, PRIORS))  # of other inputs than the items


@dataclasses.dataclass(frozen=True)
class Predictions:
    """Logits and labels of items, and their clusters.

    As an npz file: `logits` [N, C] (or `log_probs`, or `probabilities`: by name, never guessed from the values; or, for
    a large vocabulary, the factors `hidden` [N, D] and `output` [C, D] with the logits as product), `labels` [N]
    (numbers, or names of classes), and optionally `ids` [N], `clusters` [N] (the document, prompt or seed that makes
    items dependent), `weights` [N] and `class_names` [C]. Scores [N] or [N, 1] are those of class 1 of two.
    Predictions of a run also say which model made them: `checkpoint`, its step, and `model`, a digest of its
    parameters. `lm.calibration.prediction_files` says how the same is written as csv, json and others.

    Those of a prompted model may also hold, in npz files only, the log-probabilities of the labels for other inputs in
    the same prompt: `prior_content_free`, `prior_domain` and `prior_premise` [K, C] for the inputs that
    `lm.calibration.priors.PRIORS` names, and `unlabelled` [M, C] for items whose labels nobody knows. Calibrators that
    need no labels are fitted to them.

    Two classes named "wrong" and "right" are no choice between them: they judge an answer that was given, such as the
    span that answers a question. Its confidence is the probability of "right", however low.

    Attributes:
      logits: [N, C] float32, or factors.
      labels_N: the true classes.
      ids_N: unique ids, or None if the items have none.
      clusters_N: the cluster of each item, or None if items are independent.
      class_names: of the C classes, or None.
      checkpoint: step of the run's checkpoint that made them, or None.
      model: digest of that checkpoint's parameters, or None.
      weights_N: how much each item counts, or None if all count the same.
      unused: what a file held besides, by name.
      priors: log-probabilities of the labels for the inputs of each prior, [K, C], by its name.
      unlabelled_MC: log-probabilities of the labels for items without labels, or None.
    """

    logits: np.ndarray | FactoredLogits
    labels_N: np.ndarray
    ids_N: np.ndarray | None = None
    clusters_N: np.ndarray | None = None
    class_names: tuple[str, ...] | None = None
    checkpoint: int | None = None
    model: str | None = None
    weights_N: np.ndarray | None = None
    unused: tuple[str, ...] = ()
    priors: Mapping[str, np.ndarray] = dataclasses.field(default_factory=dict)
    unlabelled_MC: np.ndarray | None = None

    def __post_init__(self):
        logits = _on_host(checked_logits(logits=self.logits))
        items, classes = logits.shape
        checked = {
            "logits": logits,
            "labels_N": np.asarray(checked_labels(self.labels_N, (items, classes))),
            "ids_N": checked_names(self.ids_N, items, "ids"),
            "clusters_N": checked_names(self.clusters_N, items, "clusters"),
            "weights_N": checked_weights(self.weights_N, items),
            "priors": checked_priors(self.priors, classes),
        }
        if self.unlabelled_MC is not None:
            checked["unlabelled_MC"] = checked_scores(self.unlabelled_MC, classes, "unlabelled")
        for name, value in checked.items():
            object.__setattr__(self, name, value)
        if self.class_names is not None:
            object.__setattr__(self, "class_names", tuple(str(name) for name in self.class_names))
        if self.class_names is not None and len(self.class_names) != classes:
            raise InputError(f"class_names has {len(self.class_names)} names for {classes} classes")
        if self.ids_N is not None and np.unique(self.ids_N).size != items:
            raise InputError("ids must be unique, but some are equal")

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
        """A subset of the items, by mask or by index; what is of other inputs stays."""
        chosen = {
            name: values[index_N]
            for name in ("labels_N", "ids_N", "clusters_N", "weights_N")
            if (values := getattr(self, name)) is not None
        }
        return dataclasses.replace(self, logits=_on_host(take(self.logits, index_N)), **chosen)

    def save(self, path: str | Path) -> None:
        """Writes an npz file, atomically.

        Raises:
          UserError: if the name of the file does not end in .npz.
        """
        path = Path(path)
        if path.suffix != ".npz":
            raise UserError(f"{path}: predictions are written to files that end in .npz")
        arrays: dict[str, Any] = {"labels": self.labels_N.astype(np.int32)}
        if isinstance(self.logits, FactoredLogits):
            arrays |= {"hidden": np.asarray(self.logits.hidden_ND), "output": np.asarray(self.logits.output_CD)}
        else:
            arrays["logits"] = np.asarray(self.logits, np.float32)
        for name in ("ids", "clusters", "weights"):
            if (values := getattr(self, f"{name}_N")) is not None:
                arrays[name] = values
        arrays |= {array_of(name): values for name, values in self.priors.items()}
        if self.unlabelled_MC is not None:
            arrays["unlabelled"] = self.unlabelled_MC
        if self.class_names is not None:
            arrays["class_names"] = np.array(self.class_names)
        arrays |= {name: np.array(of) for name in _ORIGIN if (of := getattr(self, name)) is not None}
        path.parent.mkdir(parents=True, exist_ok=True)
        with written_atomically(path) as temporary:
            np.savez(temporary, **arrays)

    @classmethod
    def load(cls, path: str | Path, *, normalize: bool = False) -> "Predictions":
        """Reads a file, by its suffix: npz, npy, csv, tsv, json, jsonl or parquet.

        Args:
          path: of the file.
          normalize: divide each row of probabilities by its sum, where they are rounded, percentages or counts.

        Raises:
          UserError: if it is missing or of another kind, holds pickled objects, lacks an array, or arrays do not match.
        """
        path = Path(path)
        arrays, unused = read_arrays(path, _ARRAYS, _BESIDES)
        try:
            return cls._from_arrays(arrays, normalize, tuple(unused))
        except ValueError as error:
            besides = f" (besides: {', '.join(unused)[:80]})" if unused else ""
            raise UserError(f"{path}: {error}{besides}") from error

    @classmethod
    def _from_arrays(cls, arrays: dict[str, np.ndarray], normalize: bool, unused: tuple[str, ...]) -> "Predictions":
        if "labels" not in arrays:
            raise InputError(f"the array `labels` is missing; found {', '.join(arrays) or 'none'}")
        names = arrays.get("class_names")
        class_names = None if names is None else tuple(str(name) for name in names.ravel())
        return cls(
            logits=_logits_of(arrays, normalize),
            labels_N=_numbered(arrays["labels"], class_names),
            ids_N=arrays.get("ids"),
            clusters_N=arrays.get("clusters"),
            class_names=class_names,
            weights_N=arrays.get("weights"),
            unused=unused,
            priors={name: arrays[array_of(name)] for name in PRIORS if array_of(name) in arrays},
            unlabelled_MC=arrays.get("unlabelled"),
            **{name: _one_value(arrays[name], name) for name in _ORIGIN if name in arrays},
        )


def judgements(
    log_right_N: np.ndarray,
    right_N: np.ndarray,
    ids_N: np.ndarray | None = None,
    clusters_N: np.ndarray | None = None,
) -> Predictions:
    """Predictions that judge answers which were given.

    Args:
      log_right_N: the log-probability that each is right, in nats.
      right_N: whether it is.
      ids_N: as in `Predictions`.
      clusters_N: as in `Predictions`.
    """
    log_right_N = np.minimum(np.asarray(log_right_N, np.float64), 0.0)  # rounding may bring it above
    with np.errstate(divide="ignore"):
        log_wrong_N = np.maximum(np.log(-np.expm1(log_right_N)), _LOWEST_LOG)  # exact near 0 and 1, and finite
    logits_N2 = np.stack([log_wrong_N, log_right_N], axis=1).astype(np.float32)
    return Predictions(logits_N2, np.asarray(right_N).astype(np.int32), ids_N, clusters_N, JUDGEMENTS)


def _one_value(array: np.ndarray, name: str) -> Any:
    if array.size != 1 or not np.issubdtype(array.dtype, _ORIGIN[name]):
        raise InputError(f"{name} must be one value, not {array.dtype} {array.shape}: leave it out")
    return array.item()


def _on_host(logits: Logits) -> np.ndarray | FactoredLogits:
    if isinstance(logits, FactoredLogits):
        return FactoredLogits(np.asarray(logits.hidden_ND, np.float32), np.asarray(logits.output_CD, np.float32))
    return np.asarray(logits, np.float32)


def _logits_of(arrays: dict[str, np.ndarray], normalize: bool) -> Any:
    if "hidden" not in arrays:
        return checked_logits(**{name: arrays.get(name) for name in SCORES}, normalize=normalize)
    if "output" not in arrays or any(name in arrays for name in SCORES):
        found = ", ".join(name for name in (*SCORES, "hidden", "output") if name in arrays)
        raise InputError(f"hidden needs output and no other scores, but the file has {found}")
    return FactoredLogits(arrays["hidden"], arrays["output"])


def _numbered(labels_N: np.ndarray, class_names: tuple[str, ...] | None) -> np.ndarray:
    """Labels as numbers of classes, where they are names."""
    if labels_N.dtype.kind != "U":
        return labels_N
    texts = labels_N.ravel().tolist()
    if class_names is None:
        raise InputError(
            f"labels are text, such as {''.join(texts[:1])!r}: name the classes in class_names, or in columns such as "
            "probability_cat"
        )
    numbers = {name: number for number, name in enumerate(class_names)}
    if repeated := repeated_name(class_names):
        raise InputError(f"class_names has {repeated!r} twice, so labels cannot be names: give the numbers of classes")
    unknown = [item for item, name in enumerate(texts) if name not in numbers]
    if unknown:
        raise InputError(
            f"label {texts[unknown[0]]!r} of item {unknown[0]} ({len(unknown)} in all) is not one of the classes "
            f"{', '.join(class_names)[:80]}"
        )
    return np.array([numbers[name] for name in texts], np.int32).reshape(labels_N.shape)


def split(predictions: Predictions, fit_fraction: float, seed: int) -> tuple[Predictions, Predictions]:
    """Splits at random into items for fitting and for testing; clusters stay whole.

    Raises:
      UserError: if there are too few clusters (or items) for both parts.
    """
    unit_N = predictions.ids_N if predictions.clusters_N is None else predictions.clusters_N
    unit_N = np.arange(len(predictions)) if unit_N is None else unit_N
    units, unit_number_N = np.unique(unit_N, return_inverse=True)
    if units.size < 2:
        raise UserError(
            "the predictions have only one item or cluster; splitting them for fitting and testing needs at least two"
        )
    number = min(max(round(fit_fraction * units.size), 1), units.size - 1)
    for_fit = np.random.default_rng(seed).permutation(units.size) < number
    return predictions.select(for_fit[unit_number_N]), predictions.select(~for_fit[unit_number_N])


def _have_equal_arrays(one: Predictions, other: Predictions) -> bool:
    pairs = zip(
        jax.tree.leaves((one.logits, one.labels_N)), jax.tree.leaves((other.logits, other.labels_N)), strict=False
    )
    return all(np.array_equal(ours, others) for ours, others in pairs)


def check_disjoint(fit: Predictions, test: Predictions) -> str:
    """Checks that no item or cluster is used both for fitting and for testing.

    Returns:
      What could not be checked, as a sentence; empty if all could.

    Raises:
      UserError: if the parts share an id or a cluster, differ in their classes, or come from two checkpoints.
    """
    if fit.logits.shape[1] != test.logits.shape[1]:
        raise UserError(
            f"the fit predictions have {fit.logits.shape[1]} classes, the test predictions {test.logits.shape[1]}"
        )
    if None not in (fit.class_names, test.class_names) and fit.class_names != test.class_names:
        raise UserError("fit and test predictions have other class_names, or another order: use the same for both")
    if None not in (fit.model, test.model) and fit.model != test.model:
        raise UserError(
            f"the fit predictions are of checkpoint {fit.checkpoint}, the test predictions of checkpoint "
            f"{test.checkpoint}, which is another model: write both again with the same one"
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
    if fit.ids_N is None or test.ids_N is None:
        if _have_equal_arrays(fit, test):
            raise UserError(f"fit and test hold the same {len(fit)} items: fit on some and test on others")
        return "the predictions have no ids, so it cannot be checked that no item is used for both fitting and testing"
    return ""
