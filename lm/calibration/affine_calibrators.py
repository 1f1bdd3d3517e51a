"""Calibrators that map logits z to W z + b: their penalties, and the strength of those that have one to choose.

`lm.calibration.affine` has the maps and their fit.

Axes: N items, C classes.
"""

import functools
from collections.abc import Callable
from typing import Any

import jax.numpy as jnp
import numpy as np
from jax import Array

from lm.calibration import affine
from lm.calibration import parameters as specs
from lm.calibration.calibrator import Calibrator, FitItems
from lm.calibration.inputs import InputError
from lm.calibration.logits import Logits
from lm.calibration.outcomes import mean_nll
from lm.calibration.parameters import Parameters, Spec


def fit_map(items: FitItems, **how: Any) -> Parameters:
    """Parameters of the map that fits best; `how` is passed to `affine.fit_affine`."""
    found = affine.fit_affine(items.logits, items.labels_N, items.weights_N, items.is_rare_C, **how)
    return {
        "scale": np.asarray(found.scale),
        "bias": np.asarray(found.bias),
        "reach": np.float32(found.reach),
        "converged": bool(found.converged),
        "at_bound": bool(found.at_bound) and how.get("start") != "identity",
    }


def apply_map(parameters: Parameters, logits: Logits) -> Logits:
    """The map with these parameters."""
    reach = parameters.get("reach", affine.EVERYTHING)
    return affine.apply_affine(parameters["scale"], parameters["bias"], reach, logits)


def structured(weights: affine.Weights, items: int, strength: Array) -> Array:
    """Shrinks to temperature scaling, more so with more parameters per item (Berta et al. 2025, with rho = tau = 1)."""
    classes = weights["bias"].shape[0]
    total = strength * classes / items * (jnp.square(weights["bias"]).sum() + jnp.square(weights["diagonal"]).sum())
    if "off_diagonal" in weights:
        off_diagonal = affine.without_diagonal(weights["off_diagonal"])
        total += strength * classes * (classes - 1) / items * jnp.square(off_diagonal).sum()
    return total


def off_diagonal_and_intercept(weights: affine.Weights, items: int, strength: Array) -> Array:
    """ODIR (Kull et al. 2019, section 4): mean squares of the off-diagonal entries and of the biases."""
    classes = weights["bias"].shape[0]
    off_diagonal = jnp.square(affine.without_diagonal(weights["off_diagonal"])).sum() / (classes * (classes - 1))
    return strength * (off_diagonal + jnp.square(weights["bias"]).mean())


def ridge(weights: affine.Weights, items: int, strength: Array) -> Array:
    """The squared distance from temperature scaling."""
    squares = (affine.without_diagonal(weights["off_diagonal"]), weights["diagonal"], weights["bias"])
    return strength * sum(jnp.square(part).sum() for part in squares)


_STRENGTHS = (1e-4, 1e-3, 1e-2, 1e-1, 1.0, 10.0)
MATRIX = ("diagonal", "off_diagonal", "bias")


def _fit_penalized(items: FitItems, *, penalty: Callable) -> Parameters:
    """A matrix with a penalty whose strength is chosen on every fifth item, held out from the fit."""
    is_held_out_N = np.arange(len(items.labels_N)) % 5 == 4
    if not items.weights_N[is_held_out_N].any() or not items.weights_N[~is_held_out_N].any():
        raise InputError("its strength is chosen on every fifth item, so it needs at least 5 items")
    kept, held_out = items.take(~is_held_out_N), items.take(is_held_out_N)

    def held_out_nll(strength: float) -> float:
        parameters = fit_map(kept, free=MATRIX, penalty=penalty, strength=strength)
        return mean_nll(apply_map(parameters, held_out.logits), held_out.labels_N, held_out.weights_N)

    strength = min(_STRENGTHS, key=held_out_nll)
    fitted = fit_map(items, free=MATRIX, penalty=penalty, strength=strength)
    return {**fitted, "strength": strength}


def _strength_summary(parameters: Parameters) -> str:
    return f"strength {parameters['strength']:g}"


def affine_calibrator(label: str, spec: Spec, **how: Any) -> Calibrator:
    """A calibrator whose free parts and penalty `how` says, as `affine.fit_affine` takes them."""
    return Calibrator(label, functools.partial(fit_map, **how), apply_map, spec)


def penalized_calibrator(label: str, penalty: Callable) -> Calibrator:
    """A matrix with a penalty whose strength is chosen."""
    fit_matrix = functools.partial(_fit_penalized, penalty=penalty)
    spec = {**specs.MATRIX, "strength": specs.POSITIVE}
    return Calibrator(label, fit_matrix, apply_map, spec, _strength_summary)
