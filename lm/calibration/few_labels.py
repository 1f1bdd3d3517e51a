"""Calibrators of prompted models that need few labels: what the prompt prefers is known without any, and comes first.

Each subtracts the mean log-probability of items without their labels, as `shift` does, then fits an affine map that a
penalty holds near that: with few labels it stays there, with many it goes where they say. A shift alone leaves the
model underconfident, because it moves items towards even odds; the temperature after it corrects this.

Such a fit is accepted if it does not raise the loss that the shift leaves. A few labels that happen to be those that
the prompt prefers are no reason to keep the preference.

Axes: N items, C classes.
"""

import functools
from typing import Any

import jax.numpy as jnp
import numpy as np
from jax import Array

from lm.calibration import affine, label_priors
from lm.calibration.affine_calibrators import apply_map, fit_map
from lm.calibration.calibrator import Calibrator, FitItems
from lm.calibration.logits import Logits
from lm.calibration.parameters import Parameters, Spec


def near_the_shift(weights: affine.Weights, items: int, strength: Array) -> Array:
    """A ridge of 1/N on the logarithm of the scale and on the biases: a standard normal prior, up to a factor of 2."""
    return strength / items * (jnp.square(weights["log_scale"]) + jnp.square(weights["bias"]).sum())


def after_shift(label: str, spec: Spec, *, every_class: bool, **how: Any) -> Calibrator:
    """A calibrator of shifted logits.

    Args:
      label: name in tables.
      spec: of the affine map.
      every_class: whether one item of a class is enough for parameters of its own, because the penalty holds them.
      how: free parts, start and penalty, as `affine.fit_affine` takes them.
    """
    fit_items = functools.partial(_fit_after_shift, every_class=every_class, how=how)
    return Calibrator(
        label,
        fit_items,
        _apply_after_shift,
        {**label_priors.PRIOR, **spec},
        by_class=not every_class,
        start=label_priors.subtract_prior,
    )


def _fit_after_shift(items: FitItems, *, every_class: bool, how: dict[str, Any]) -> Parameters:
    shift = {"log_prior": label_priors.mean_log_probability(items.unlabelled)}
    items = items._replace(logits=label_priors.subtract_prior(shift, items.logits))
    if every_class:
        seen = np.asarray(items.labels_N)[items.weights_N > 0]
        items = items._replace(is_rare_C=np.bincount(seen, minlength=items.is_rare_C.size) == 0)
    return {**shift, **fit_map(items, **how)}


def _apply_after_shift(parameters: Parameters, logits: Logits) -> Logits:
    return apply_map(parameters, label_priors.subtract_prior(parameters, logits))
