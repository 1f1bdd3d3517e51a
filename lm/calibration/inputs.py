"""The door of `lm.calibration`: every public function checks and converts its arrays here.

    logits = checked_logits(logits=logits)  # or log_probs=, or probabilities=; [N, C], or factors
    labels_N = checked_labels(labels, logits.shape)
    clusters_N = checked_clusters(clusters, len(labels_N))

    confidence_N = checked_confidence(confidence)
    correct_N = checked_correct(correct, len(confidence_N))

Arrays may come from NumPy, JAX, PyTorch, pandas or lists. Each function returns an array that needs no further checks,
or raises `InputError` with one line that names the argument. Under `jax.jit` only shapes and types can be checked.

Axes: N items, C classes.
"""

import math
from collections import Counter
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from lm.calibration.logits import FactoredLogits, Logits
from lm.errors import UserError
from lm.types import AnyArray

# Whatever holds numbers: an array of any library, a column of a table, a list.
ArrayLike = Any

_ROUNDING = 1e-6  # how far rounding may take a probability out of [0, 1]
_SUM_ROUNDING = 1e-3  # how far from 1 a row of probabilities may sum


class InputError(UserError, ValueError):
    """An array that a function of `lm.calibration` cannot use."""


def checked_logits(
    *,
    logits: ArrayLike | None = None,
    log_probs: ArrayLike | None = None,
    probabilities: ArrayLike | None = None,
    normalize: bool = False,
) -> Logits:
    """Logits from exactly one kind of scores; the kind is never guessed, since logits may happen to lie in [0, 1].

    Args:
      logits: [N, C] in any floating dtype, or `FactoredLogits`; -inf for impossible classes. [N] or [N, 1] are logits
        of class 1 of two; class 0 has 0.
      log_probs: [N, C], normalized. [N] or [N, 1] are log P(class 1) of two.
      probabilities: [N, C], with rows that sum to 1; zeros are allowed. [N] or [N, 1] are P(class 1) of two.
      normalize: divide each row of `probabilities` by its sum, as rounded probabilities, percentages and counts of
        votes need.

    Returns:
      Logits [N, C] of which softmax gives the probabilities, in at most 32 bits; or the factors.

    Raises:
      InputError: if not exactly one is given, its shape is none of these, or an item has NaN, +inf, no possible class,
        or probabilities that don't sum to 1.
    """
    kinds = {"logits": logits, "log_probs": log_probs, "probabilities": probabilities}
    given = [name for name, values in kinds.items() if values is not None]
    if len(given) != 1:
        raise InputError(
            f"give exactly one of logits, log_probs and probabilities, not {' and '.join(given) or 'none'}"
        )
    (name,) = given
    if normalize and name != "probabilities":
        raise InputError(f"normalize=True is for probabilities, not for {name}")
    scores = kinds[name]
    if isinstance(scores, FactoredLogits):
        return _checked_factors(scores)
    values = as_array(scores, name)
    _check_scores_shape(values, name, may_be_counts=normalize)
    if name == "logits":
        return _checked_values(_two_columns(_zeros_like(values), values) if _is_binary(values) else values, name)
    if isinstance(values, jax.core.Tracer):
        if _is_binary(values):
            raise InputError(f"{name} need a column for each class under jax.jit")
        if name == "log_probs":
            return values
        return jnp.log(values / values.sum(axis=1, keepdims=True) if normalize else values)
    on_host = np.asarray(values, np.float64)
    return _checked_log_probs(on_host) if name == "log_probs" else _logarithms(_of_rows(on_host, normalize))


def checked_probabilities(probabilities: ArrayLike, normalize: bool = False) -> np.ndarray:
    """The `probabilities` of `checked_logits` as they are, [N, C] in float64 on the host."""
    values = as_array(probabilities, "probabilities")
    _check_scores_shape(values, "probabilities", may_be_counts=normalize)
    return _of_rows(np.asarray(values, np.float64), normalize)


def checked_labels(labels: ArrayLike, shape: tuple[int, ...], name: str = "labels") -> AnyArray:
    """Labels as int32 [N], each a class from 0 to C - 1.

    Args:
      labels: integers, or bools for two classes.
      shape: (N, C).
      name: of the argument.

    Raises:
      InputError: if they are something else.
    """
    items, classes = shape
    labels_N = as_array(labels, name)
    if labels_N.ndim == 2 and labels_N.shape == (items, classes) and classes > 1:
        raise InputError(
            f"{name} have a column for each class: if they are one-hot, pass {name}.argmax(axis=1); several classes "
            "for an item (multi-label) are not supported, so measure one column at a time, as two classes"
        )
    if labels_N.shape != (items,):
        hint = f": pass {name}.ravel()" if labels_N.size == items else ""
        raise InputError(f"{name} must have shape ({items},) like the items of the scores, not {labels_N.shape}{hint}")
    if labels_N.dtype == bool and classes == 2:
        return labels_N.astype(np.int32)
    if not jnp.issubdtype(labels_N.dtype, jnp.integer):
        raise InputError(f"{name} must be integers, the numbers of the classes, not {labels_N.dtype}")
    if not isinstance(labels_N, jax.core.Tracer):
        _check_classes(np.asarray(labels_N), classes, name)
    return labels_N.astype(np.int32)


def checked_confidence(confidence: ArrayLike, name: str = "confidence") -> np.ndarray:
    """Confidences as floating-point numbers in [0, 1], [N] with N >= 1, on the host; float32 stays float32."""
    confidence_N = _numbers(confidence, name)
    if confidence_N.dtype == bool:
        raise InputError(f"{name} must be numbers in [0, 1], not bools; whether predictions are right is `correct`")
    if confidence_N.dtype.kind != "f":
        confidence_N = confidence_N.astype(np.float64)
    outside_N = ~((confidence_N >= -_ROUNDING) & (confidence_N <= 1 + _ROUNDING))
    _refuse(outside_N, name, confidence_N, _advice_on_range(confidence_N))
    return confidence_N.clip(0, 1)


def checked_numbers(values: ArrayLike, name: str) -> np.ndarray:
    """Finite numbers as float64, [N] with N >= 1, on the host."""
    values_N = _numbers(values, name).astype(np.float64)
    _refuse(~np.isfinite(values_N), name, values_N, "fix these items or drop them")
    return values_N


def checked_correct(correct: ArrayLike, items: int, name: str = "correct") -> np.ndarray:
    """Whether predictions are right, as float64 in [0, 1], [N]: 1, 0, or the share of a tie."""
    correct_N = _numbers(correct, name, items).astype(np.float64)
    advice = "give 1 where the prediction is right and 0 where it is wrong, such as predictions == labels"
    _refuse(~((correct_N >= 0) & (correct_N <= 1)), name, correct_N, advice)
    return correct_N


def checked_weights(weights: ArrayLike | None, items: int, name: str = "weights") -> np.ndarray | None:
    """How much each item counts, as float64 [N]: finite, not negative, not all zero; None if all count the same."""
    if weights is None:
        return None
    weights_N = _numbers(weights, name, items).astype(np.float64)
    wrong_N = ~((weights_N >= 0) & np.isfinite(weights_N))
    _refuse(wrong_N, name, weights_N, "weights must be finite and not negative")
    if not weights_N.any():
        raise InputError(f"{name} are all 0, so no item counts; at least one must be positive")
    with np.errstate(over="ignore", under="ignore"):
        squares = np.square(weights_N).sum()
    if not 0 < squares < math.inf:
        raise InputError(f"{name} are too large or too small to compute with; divide them by their mean")
    return weights_N


def checked_names(names: ArrayLike | None, items: int, name: str) -> np.ndarray | None:
    """Ids or names of clusters, numbers or text, [N]; None if there are none."""
    if names is None:
        return None
    names_N = _on_host(names, name)
    if names_N.shape != (items,):
        raise InputError(f"{name} must have shape ({items},), one for each item, not {names_N.shape}")
    if names_N.dtype.kind in "fc" and not np.isfinite(names_N).all():
        raise InputError(f"{name} of some items are NaN or infinite; give each item a number or a name")
    missing = np.flatnonzero([is_missing(each) for each in names_N]) if names_N.dtype.kind in "OmM" else np.array([])
    if missing.size:
        raise InputError(
            f"{name} of item {missing[0]} is missing ({missing.size} in all): give each item a number or a name"
        )
    return np.array([str(each) for each in names_N]) if names_N.dtype == object else names_N


def checked_clusters(clusters: ArrayLike | None, items: int, name: str = "clusters") -> np.ndarray | None:
    """Numbers of clusters, 0 to G - 1, [N], from numbers or text; None if items are independent."""
    names_N = checked_names(clusters, items, name)
    return None if names_N is None else np.unique(names_N, return_inverse=True)[1]


def checked_share(value: float, name: str) -> float:
    """A number strictly between 0 and 1."""
    if not isinstance(value, int | float | np.number) or not 0 < value < 1:
        raise InputError(f"{name} must be between 0 and 1, not {value!r}")
    return float(value)


def checked_count(value: int, name: str, least: int = 1) -> int:
    """A whole number of at least `least`."""
    if isinstance(value, bool) or not isinstance(value, int | np.integer) or value < least:
        raise InputError(f"{name} must be a whole number of at least {least}, not {value!r}")
    return int(value)


def as_array(values: ArrayLike, name: str) -> AnyArray:
    """An array of real numbers or bools; JAX's own stay where they are.

    Raises:
      InputError: if it holds anything else, such as text, missing values or rows of different lengths.
    """
    array: AnyArray = values if isinstance(values, jax.Array) else _on_host(values, name)
    if array.dtype == object:
        array = _of_objects(np.asarray(array), name)
    if array.dtype.kind in "US":
        raise InputError(f"{name} must hold numbers, not text; np.unique(..., return_inverse=True) numbers classes")
    if array.dtype != bool and not jnp.issubdtype(array.dtype, jnp.number):
        raise InputError(f"{name} must hold numbers, not {array.dtype}")
    if jnp.issubdtype(array.dtype, jnp.complexfloating):
        raise InputError(f"{name} must hold real numbers, not {array.dtype}")
    if isinstance(array, np.ndarray) and (not array.dtype.isnative or array.dtype == np.longdouble):
        array = array.astype(np.float64 if array.dtype.kind == "f" else np.int64)  # JAX has neither
    return array


def _on_host(values: ArrayLike, name: str) -> np.ndarray:
    if np.ma.is_masked(values):
        raise InputError(f"{name}: some values are masked; drop these items first")
    try:
        if hasattr(values, "detach"):  # PyTorch, without importing it
            values = values.detach().cpu()
            values = values.float() if "bfloat16" in str(values.dtype) else values  # NumPy has no such type
        array = np.asarray(values)
        return array.astype(np.float32) if array.dtype == jnp.bfloat16 else array
    except Exception as error:  # whatever the other library raises
        reason = (str(error) or type(error).__name__).splitlines()[0]
        raise InputError(f"{name} cannot be read as an array of numbers: {reason}") from error


def _of_objects(array: np.ndarray, name: str) -> np.ndarray:
    """Numbers in an array of objects, which pandas makes of columns that may have missing values."""
    for place, value in np.ndenumerate(array):
        if not isinstance(value, bool | int | float | np.bool_ | np.number):
            where = f"item {place[0]}" if place else "it"
            what = "a missing value" if is_missing(value) else f"of type {type(value).__name__}"
            raise InputError(f"{name} must hold numbers, but {where} is {what}")
    return np.array(array.tolist())


def repeated_name(names: Sequence[str]) -> str | None:
    """A name that is there more than once; None if there is none."""
    return next((name for name, count in Counter(names).most_common(1) if count > 1), None)


def is_missing(value: Any) -> bool:
    """Whether it is None, NaN, or a missing value of pandas or NumPy."""
    is_nan = isinstance(value, float) and math.isnan(value)
    return value is None or is_nan or (not isinstance(value, str) and str(value) in ("<NA>", "NaT"))


def _numbers(values: ArrayLike, name: str, items: int | None = None) -> np.ndarray:
    """One number for each item, [N], on the host."""
    values_N = _on_host(as_array(values, name), name)
    if values_N.ndim != 1:
        raise InputError(f"{name} must have one number for each item, not shape {values_N.shape}")
    if not values_N.size:
        raise InputError(f"{name} is empty; give at least one item")
    if items is not None and values_N.size != items:
        raise InputError(f"{name} has {values_N.size} items, but there are {items}")
    return values_N


def _refuse(is_wrong_N: np.ndarray, name: str, values_N: np.ndarray, advice: str) -> None:
    """Raises for the first wrong item, if there is one."""
    wrong = np.flatnonzero(is_wrong_N)
    if wrong.size:
        raise InputError(f"{name} of item {wrong[0]} is {values_N[wrong[0]]:.5g} ({wrong.size} in all): {advice}")


def _advice_on_range(values: np.ndarray) -> str:
    """What to do about values that should lie in [0, 1]."""
    if not np.isfinite(values).all():
        return "fix these items or drop them"
    if values.min() >= 0 and 1 < values.max() <= 100 * (1 + _SUM_ROUNDING):
        return "it must lie in [0, 1]; if these are percentages, divide by 100"
    return "it must lie in [0, 1]; if these are unnormalized scores, give them as logits"


# --- labels ---


def _check_classes(labels_N: np.ndarray, classes: int, name: str) -> None:
    if ignored := np.count_nonzero(labels_N == -100):
        raise InputError(
            f"{name}: {ignored} items have -100, which marks ignored items in many libraries: drop these items first"
        )
    wrong = np.flatnonzero((labels_N < 0) | (labels_N >= classes))
    if wrong.size:
        from_one = labels_N.min() == 1 and labels_N.max() == classes
        raise InputError(
            f"{name}: label {labels_N[wrong[0]]} of item {wrong[0]} is not one of the classes 0 to {classes - 1} "
            f"({wrong.size} in all)" + ("; if they count from 1, subtract 1" if from_one else "")
        )


# --- scores ---


def _check_scores_shape(values: AnyArray, name: str, may_be_counts: bool = False) -> None:
    allowed = jnp.number if may_be_counts else jnp.floating
    if values.dtype == bool or not jnp.issubdtype(values.dtype, allowed):
        raise InputError(f"{name} must be floating-point numbers, not {values.dtype} (predicted classes are no scores)")
    if values.ndim > 2:
        raise InputError(
            f"{name} must be [items, classes], not {values.shape}: move the axis of classes to the end and flatten the "
            "others, as in np.moveaxis(x, 1, -1).reshape(-1, classes)"
        )
    if values.ndim < 1 or not values.shape[0] or values.shape[-1] < 1:
        raise InputError(f"{name} must be [items, classes] with at least 1 item and 2 classes, not {values.shape}")


def _is_binary(values: AnyArray) -> bool:
    """Whether there is only the score of class 1 of two: [N] or [N, 1]."""
    return values.ndim == 1 or values.shape[1] == 1


def _zeros_like(values: AnyArray) -> AnyArray:
    return jnp.zeros_like(values) if isinstance(values, jax.Array) else np.zeros_like(values)


def _two_columns(zero: AnyArray, one: AnyArray) -> AnyArray:
    stack = jnp.stack if isinstance(one, jax.Array) else np.stack
    return stack([zero.reshape(-1), one.reshape(-1)], axis=1)


def _checked_values(values: AnyArray, name: str) -> AnyArray:
    """Logits [N, C] in at most 32 bits, none of them NaN or +inf, and one of each item finite."""
    values = _at_most_32_bits(values)
    if isinstance(values, jax.core.Tracer):
        return values
    highest_N = np.asarray(values.max(axis=1), np.float32)  # NaN if one of them is
    wrong = np.flatnonzero(~np.isfinite(highest_N))
    if wrong.size:
        raise InputError(
            f"{name} of item {wrong[0]} has NaN, +inf or no finite value ({wrong.size} in all): fix these items or "
            "drop them"
        )
    return values


def _at_most_32_bits(values: AnyArray) -> AnyArray:
    if values.dtype.itemsize <= 4:
        return values
    with np.errstate(over="ignore"):  # to infinity, which is refused later
        return values.astype(np.float32)


def _checked_factors(factors: FactoredLogits) -> FactoredLogits:
    hidden_ND, output_CD = (
        _at_most_32_bits(as_array(values, name)) for name, values in zip(("hidden", "output"), factors, strict=True)
    )
    for name, values in (("hidden", hidden_ND), ("output", output_CD)):
        if values.ndim != 2 or not jnp.issubdtype(values.dtype, jnp.floating):
            raise InputError(f"{name} must be floating-point [rows, width], not {values.dtype} {values.shape}")
        if not isinstance(values, jax.core.Tracer) and not np.isfinite(values).all():
            raise InputError(f"{name} has NaN or infinity")
    if hidden_ND.shape[1] != output_CD.shape[1]:
        raise InputError(f"hidden {hidden_ND.shape} and output {output_CD.shape} must have the same width")
    if not hidden_ND.shape[0] or output_CD.shape[0] < 2:
        raise InputError(f"factors must have at least 1 item and 2 classes, not {(len(hidden_ND), len(output_CD))}")
    return FactoredLogits(hidden_ND, output_CD)


def _checked_log_probs(values: AnyArray) -> AnyArray:
    if _is_binary(values):
        with np.errstate(divide="ignore", invalid="ignore"):
            values = _two_columns(np.log1p(-np.exp(values)), values)
    values = _checked_values(values, "log_probs")
    with np.errstate(over="ignore"):
        total_N = np.exp(values, dtype=np.float64).sum(axis=1)
    advice = "if these are unnormalized scores, give them as logits"
    _refuse_sums(total_N, "probabilities of log_probs", advice)
    return values


def _of_rows(values: np.ndarray, normalize: bool) -> np.ndarray:
    """Probabilities [N, C]."""
    name = "probabilities"
    if _is_binary(values):
        if normalize:
            raise InputError("normalize=True needs a column for each class; divide percentages of class 1 by 100")
        values = values.reshape(-1)
        outside_N = ~((values >= -_ROUNDING) & (values <= 1 + _ROUNDING))
        _refuse(outside_N, name, values, _advice_on_range(values))
        return np.stack([1 - values, values], axis=1).clip(0, 1)
    lowest_N = values.min(axis=1)
    _refuse(~(lowest_N >= -_ROUNDING), name, lowest_N, _advice_on_range(values))
    total_N = values.sum(axis=1)
    if normalize:
        _refuse(~((total_N > 0) & np.isfinite(total_N)), "the sum of probabilities", total_N, "it must be positive")
        return (values / total_N[:, None]).clip(0, 1)
    _refuse_sums(total_N, name, _advice_on_sums(values, total_N))
    return values.clip(0, 1)


def _logarithms(probabilities_NC: np.ndarray) -> np.ndarray:
    with np.errstate(divide="ignore"):
        return np.log(probabilities_NC).astype(np.float32)


def _advice_on_sums(values: np.ndarray, total_N: np.ndarray) -> str:
    if not np.isfinite(values).all():
        return "fix these items or drop them"
    if np.abs(total_N - 100).max() <= 1:
        return "these are percentages; divide them by 100, or pass normalize=True"
    if np.abs(total_N - 1).max() <= min(0.005 * values.shape[1], 0.1):
        return "they look rounded; pass normalize=True to divide each row by its sum"
    if values.max() <= 1:
        return (
            "if classes are missing, add them; if each class has a yes or no of its own, measure one column at a time; "
            "if they are counts or rounded, pass normalize=True"
        )
    return "if these are unnormalized scores, give them as logits; if they are counts, pass normalize=True"


def _refuse_sums(total_N: np.ndarray, name: str, advice: str) -> None:
    wrong = np.flatnonzero(~(np.abs(total_N - 1) <= _SUM_ROUNDING))
    if wrong.size:
        raise InputError(
            f"{name} of item {wrong[0]} sum to {total_N[wrong[0]]:.4g}, not to 1 ({wrong.size} in all): {advice}"
        )
