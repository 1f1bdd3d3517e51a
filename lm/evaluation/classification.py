"""Classification metrics, and the confusion matrix.

Axes: N items, C classes, K sums.
"""

import functools
import math
from collections.abc import Callable, Sequence

import numpy as np

from lm.errors import UserError
from lm.statistics.metrics import SHARE, Metric, Ratio, divide
from lm.statistics.resampling import sum_by_cluster

# Scores by name, as functions of counts [...]: matched, predicted, true.
SCORES: dict[str, Callable[[np.ndarray, np.ndarray, np.ndarray], np.ndarray]] = {
    "precision": lambda matched, predicted, true: divide(matched, predicted, 0.0),
    "recall": lambda matched, predicted, true: divide(matched, true, 0.0),
    "f1": lambda matched, predicted, true: divide(2 * matched, predicted + true, 0.0),
}


def classification_metrics(
    labels_N: np.ndarray, predicted_N: np.ndarray, class_names: Sequence[str], clusters_N: np.ndarray | None = None
) -> dict[str, Metric]:
    """Metrics in [0, 1], Matthews correlation in [-1, 1], as scikit-learn defines them with `zero_division=0`.

    Macro averages are over the classes that occur, as labels or as predictions.

    Args:
      labels_N: true classes, 0 to C - 1.
      predicted_N: predicted classes.
      class_names: of the C classes.
      clusters_N: a number for each item; items that share it are resampled together.

    Returns:
      `accuracy`, `f1_macro`, `precision_macro`, `recall_macro`, `f1_micro`, `matthews` (Gorodkin 2004), and
      `precision/NAME`, `recall/NAME`, `f1/NAME` of each class.

    Raises:
      UserError: if labels and predictions differ in number, or are not valid classes.
    """
    classes = len(class_names)
    labels_N, predicted_N = _checked(labels_N, predicted_N, classes)
    is_label_NC, is_predicted_NC = (np.arange(classes) == each_N[:, None] for each_N in (labels_N, predicted_N))
    statistics_NK = np.concatenate([is_label_NC & is_predicted_NC, is_predicted_NC, is_label_NC], axis=1)
    if clusters_N is not None:
        statistics_NK = sum_by_cluster(statistics_NK, clusters_N)
    metric = functools.partial(Metric, statistics_NK, better="higher", limits=SHARE)
    metrics = {
        "accuracy": metric(Ratio(range(classes), range(2 * classes, 3 * classes))),
        **{f"{name}_macro": metric(functools.partial(_macro, name)) for name in ("f1", "precision", "recall")},
        "f1_micro": metric(_micro_f1),
        "matthews": metric(_matthews, limits=(-1.0, 1.0)),
    }
    for index, class_name in enumerate(class_names):
        for name in SCORES:
            metrics[f"{name}/{class_name}"] = metric(functools.partial(_of_class, name, index))
    return metrics


def confusion_matrix(labels_N: np.ndarray, predicted_N: np.ndarray, classes: int) -> np.ndarray:
    """How often class i (row) was predicted as class j (column), [C, C].

    Raises:
      UserError: if labels and predictions differ in number, or are not valid classes.
    """
    labels_N, predicted_N = _checked(labels_N, predicted_N, classes)
    return np.bincount(labels_N * classes + predicted_N, minlength=classes**2).reshape(classes, classes)


def _checked(labels_N: np.ndarray, predicted_N: np.ndarray, classes: int) -> tuple[np.ndarray, np.ndarray]:
    labels_N, predicted_N = np.asarray(labels_N), np.asarray(predicted_N)
    if labels_N.ndim != 1 or labels_N.shape != predicted_N.shape:
        raise UserError(f"need one prediction for each label, got shapes {predicted_N.shape} and {labels_N.shape}")
    for what, each_N in (("label", labels_N), ("prediction", predicted_N)):
        outside_N = (each_N < 0) | (each_N >= classes)
        if outside_N.any():
            item = int(outside_N.argmax())
            raise UserError(
                f"{what} {each_N[item]} of item {item} is not one of the {classes} classes (0 to {classes - 1})"
            )
    return labels_N.astype(np.int64), predicted_N.astype(np.int64)


def _counts(sums: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """How many items of each class are matched, predicted and true, [..., C] each."""
    matched, predicted, true = np.split(sums, 3, axis=-1)
    return matched, predicted, true


def _micro_f1(sums: np.ndarray) -> np.ndarray:
    return SCORES["f1"](*(count.sum(axis=-1) for count in _counts(sums)))


def _macro(name: str, sums: np.ndarray) -> np.ndarray:
    matched, predicted, true = _counts(sums)
    occurs = predicted + true > 0
    return divide(SCORES[name](matched, predicted, true).sum(axis=-1), occurs.sum(axis=-1), math.nan)


def _of_class(name: str, index: int, sums: np.ndarray) -> np.ndarray:
    return SCORES[name](*(count[..., index] for count in _counts(sums)))


def _matthews(sums: np.ndarray) -> np.ndarray:
    matched, predicted, true = _counts(sums)
    items = true.sum(axis=-1)
    covariance = matched.sum(axis=-1) * items - (predicted * true).sum(axis=-1)
    predicted_variance, true_variance = (items**2 - (count**2).sum(axis=-1) for count in (predicted, true))
    return divide(covariance, np.sqrt(predicted_variance) * np.sqrt(true_variance), 0.0)
