"""What a prompted model answers before it has seen an item: scores of the labels for other inputs in the same prompt.

A model prompted to choose a label prefers some label words to others whatever the item says. That preference is
measured on inputs that say nothing about the label, and on items whose labels nobody knows; the calibrators of
`lm.calibration.label_priors` take it out.

Axes: K inputs, M items without labels, C classes.
"""

from collections.abc import Mapping

import numpy as np

from lm.calibration.inputs import ArrayLike, InputError, as_array

# Names of priors, and the inputs that they are measured on. A file of predictions holds them as prior_content_free etc.
PRIORS = {
    "content_free": "inputs without content, such as N/A",
    "domain": "random words of the task's texts",
    "premise": "the premise alone, without an item",
}
Priors = Mapping[str, np.ndarray]


def array_of(prior: str) -> str:
    """The name of a prior's array in a file of predictions."""
    return f"prior_{prior}"


def checked_priors(priors: Mapping[str, ArrayLike] | None, classes: int) -> dict[str, np.ndarray]:
    """Priors by name: log-probabilities of the labels for each input, float32 [K, C].

    Args:
      priors: for some of `PRIORS`; None: for none.
      classes: C.

    Raises:
      InputError: for an unknown name, or if an array is something else.
    """
    priors = priors or {}
    unknown = next((name for name in priors if name not in PRIORS), None)
    if unknown is not None:
        raise InputError(f"unknown prior {unknown!r}; known are {', '.join(PRIORS)}")
    return {name: checked_scores(values, classes, array_of(name)) for name, values in priors.items()}


def checked_scores(values: ArrayLike, classes: int, name: str) -> np.ndarray:
    """Log-probabilities of the labels for inputs that are no labelled items, float32 [K, C]; -inf for impossible ones.

    Raises:
      InputError: if they are something else.
    """
    array = np.asarray(as_array(values, name))
    if array.ndim != 2 or array.shape[1] != classes or not len(array) or array.dtype.kind != "f":
        raise InputError(
            f"{name} must be floating-point log-probabilities [inputs, {classes}], one row for each input, not "
            f"{array.dtype} {array.shape}"
        )
    with np.errstate(over="ignore"):  # to infinity, which is refused
        array = array.astype(np.float32)
    wrong = np.flatnonzero(~np.isfinite(array.max(axis=1)))  # the highest is NaN if one is
    if wrong.size:
        raise InputError(
            f"{name} of input {wrong[0]} has NaN, +inf or no finite value ({wrong.size} in all): drop these inputs"
        )
    return array
