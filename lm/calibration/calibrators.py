"""Calibrators by name: maps from logits to better calibrated logits, fitted on held-out items.

    fitted = fit("temperature", logits_NC, labels_N)
    calibrated_NC = fitted.apply(other_logits_NC)

Each entry is a pair of functions, `fit(logits, labels) -> parameters` and `apply(parameters, logits) -> logits`.
One-vs-rest calibrators return log-probabilities, which are logits too.

Axes: N items, C classes.
"""

import dataclasses
import functools
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array

from lm.calibration import affine, one_vs_rest
from lm.calibration.logits import Logits, map_chunks, rows, take, whole
from lm.calibration.outcomes import outcomes
from lm.calibration.temperature import fit_temperature
from lm.errors import UserError
from lm.files import write_atomically
from lm.types import AnyArray

Parameters = dict[str, Any]


@dataclasses.dataclass(frozen=True)
class Calibrator:
    """A calibration method.

    Attributes:
      label: name in tables.
      fit: from logits [N, C] (arrays or factors) and labels [N] to parameters: arrays, numbers, lists of arrays. The
        optional entries `converged` and `at_bound` describe how the fit ended.
      apply: from parameters and logits to logits.
      summary: one line about the parameters.
    """

    label: str
    fit: Callable[[Logits, AnyArray], Parameters]
    apply: Callable[[Parameters, Logits], Logits]
    summary: Callable[[Parameters], str] = lambda parameters: ""


# --- temperature and its ensemble ---


def _fit_temperature(logits: Logits, labels_N: AnyArray) -> Parameters:
    found = fit_temperature(logits, labels_N)
    return {
        "temperature": np.float32(found.temperature),
        "converged": bool(found.converged),
        "at_bound": bool(found.at_bound),
    }


def _apply_temperature(parameters: Parameters, logits: Logits) -> Logits:
    return affine.apply_affine(1 / jnp.float32(parameters["temperature"]), jnp.float32(0), logits)


def _fit_ensemble(logits: Logits, labels_N: AnyArray) -> Parameters:
    """Weights of softmax(z / T), softmax(z) and the uniform distribution (Zhang et al. 2020, section 4.1), by EM."""
    parameters = _fit_temperature(logits, labels_N)
    likelihood_N3 = _ensemble_likelihoods(logits, labels_N, parameters["temperature"])

    def step(_: int, weights_3: Array) -> Array:
        parts_N3 = likelihood_N3 * weights_3[None]
        return (parts_N3 / parts_N3.sum(axis=1, keepdims=True)).mean(axis=0)

    weights_3 = jax.lax.fori_loop(0, 500, step, jnp.full(3, 1 / 3))
    return {**parameters, "weights": np.asarray(weights_3)}


@jax.jit
def _ensemble_likelihoods(logits: Logits, labels_N: AnyArray, temperature: Array) -> Array:
    def of_chunk(logits_NC: Array, labels_N: Array) -> Array:
        scaled = [
            jnp.take_along_axis(jax.nn.softmax(logits_NC / t, axis=-1), labels_N[:, None], axis=-1)[:, 0]
            for t in (temperature, 1.0)
        ]
        return jnp.stack([*scaled, jnp.full_like(scaled[0], 1 / logits_NC.shape[1])], axis=1)

    return map_chunks(of_chunk, logits, labels_N)


def _apply_ensemble(parameters: Parameters, logits: Logits) -> Array:
    logits_NC, weights_3 = whole(logits), jnp.asarray(parameters["weights"])
    scaled = [jax.nn.softmax(logits_NC / t, axis=-1) for t in (parameters["temperature"], 1.0)]
    return jnp.log(weights_3[0] * scaled[0] + weights_3[1] * scaled[1] + weights_3[2] / logits_NC.shape[1])


# --- affine maps ---


def _fit_affine(logits: Logits, labels_N: AnyArray, **how: Any) -> Parameters:
    found = affine.fit_affine(logits, labels_N, **how)
    return {
        "scale": np.asarray(found.scale),
        "bias": np.asarray(found.bias),
        "converged": bool(found.converged),
        "at_bound": bool(found.at_bound) and how.get("start") != "identity",
    }


def _apply_affine(parameters: Parameters, logits: Logits) -> Logits:
    return affine.apply_affine(parameters["scale"], parameters["bias"], logits)


def _structured(weights: affine.Weights, items: int, strength: Array) -> Array:
    """Shrinks to temperature scaling, more so with more parameters per item (Berta et al. 2025, with rho = tau = 1)."""
    classes = weights["bias"].shape[0]
    total = strength * classes / items * (jnp.square(weights["bias"]).sum() + jnp.square(weights["diagonal"]).sum())
    if "off_diagonal" in weights:
        off_diagonal = affine.without_diagonal(weights["off_diagonal"])
        total += strength * classes * (classes - 1) / items * jnp.square(off_diagonal).sum()
    return total


def _off_diagonal_and_intercept(weights: affine.Weights, items: int, strength: Array) -> Array:
    """ODIR (Kull et al. 2019, section 4): mean squares of the off-diagonal entries and of the biases."""
    classes = weights["bias"].shape[0]
    off_diagonal = jnp.square(affine.without_diagonal(weights["off_diagonal"])).sum() / (classes * (classes - 1))
    return strength * (off_diagonal + jnp.square(weights["bias"]).mean())


def _ridge(weights: affine.Weights, items: int, strength: Array) -> Array:
    """The squared distance from temperature scaling."""
    squares = (affine.without_diagonal(weights["off_diagonal"]), weights["diagonal"], weights["bias"])
    return strength * sum(jnp.square(part).sum() for part in squares)


_STRENGTHS = (1e-4, 1e-3, 1e-2, 1e-1, 1.0, 10.0)
_MATRIX = ("diagonal", "off_diagonal", "bias")


def _fit_penalized(logits: Logits, labels_N: AnyArray, *, penalty: Callable) -> Parameters:
    """A matrix with a penalty whose strength is chosen on every fifth item, held out from the fit."""
    number = np.arange(len(labels_N))
    held_out, host_labels_N = number % 5 == 4, np.asarray(labels_N)

    def held_out_nll(strength: float) -> float:
        parameters = _fit_affine(
            take(logits, ~held_out), host_labels_N[~held_out], free=_MATRIX, penalty=penalty, strength=strength
        )
        return _mean_nll(_apply_affine(parameters, take(logits, held_out)), host_labels_N[held_out])

    strength = min(_STRENGTHS, key=held_out_nll)
    fitted = _fit_affine(logits, labels_N, free=_MATRIX, penalty=penalty, strength=strength)
    return {**fitted, "strength": strength}


def _fit_scaling_binning(logits: Logits, labels_N: AnyArray) -> Parameters:
    parameters = _fit_temperature(logits, labels_N)
    return {**one_vs_rest.fit_scaling_binning(whole(_apply_temperature(parameters, logits)), labels_N), **parameters}


def _apply_scaling_binning(parameters: Parameters, logits: Logits) -> Array:
    return one_vs_rest.apply_steps(parameters, whole(_apply_temperature(parameters, logits)))


def _on_arrays(function: Callable[[Array, AnyArray], Parameters]) -> Callable[[Logits, AnyArray], Parameters]:
    return lambda logits, labels_N: function(whole(logits), labels_N)


def _applied_to_arrays(function: Callable[[Parameters, Array], Array]) -> Callable[[Parameters, Logits], Array]:
    return lambda parameters, logits: function(parameters, whole(logits))


def _temperature_summary(parameters: Parameters) -> str:
    return f"T = {float(parameters['temperature']):.4g}"


def _ensemble_summary(parameters: Parameters) -> str:
    shares = ", ".join(f"{float(weight):.2f}" for weight in parameters["weights"])
    return f"{_temperature_summary(parameters)}; shares of scaled, unscaled, uniform: {shares}"


def _strength_summary(parameters: Parameters) -> str:
    return f"strength {parameters['strength']:g}"


def _affine(label: str, **how: Any) -> Calibrator:
    return Calibrator(label, functools.partial(_fit_affine, **how), _apply_affine)


def _by_class(label: str, fit: Callable, apply: Callable) -> Calibrator:
    return Calibrator(label, _on_arrays(fit), _applied_to_arrays(apply))


CALIBRATORS: dict[str, Calibrator] = {
    "temperature": Calibrator("Temperature", _fit_temperature, _apply_temperature, _temperature_summary),
    "bias": _affine("Bias only", free=("bias",), start="identity"),
    "temperature_bias": _affine("Temperature with bias", free=("log_scale", "bias")),
    "vector": _affine("Vector", free=("diagonal", "bias")),
    "matrix": _affine("Matrix", free=_MATRIX),
    "matrix_odir": Calibrator(
        "Matrix, ODIR",
        functools.partial(_fit_penalized, penalty=_off_diagonal_and_intercept),
        _apply_affine,
        _strength_summary,
    ),
    "matrix_ridge": Calibrator(
        "Matrix, ridge", functools.partial(_fit_penalized, penalty=_ridge), _apply_affine, _strength_summary
    ),
    "structured_vector": _affine("Structured vector", free=("diagonal", "bias"), penalty=_structured),
    "structured_matrix": _affine("Structured matrix", free=_MATRIX, penalty=_structured),
    "platt": _by_class("Platt", one_vs_rest.fit_platt, one_vs_rest.apply_platt),
    "beta": _by_class("Beta", one_vs_rest.fit_beta, one_vs_rest.apply_beta),
    "isotonic": _by_class("Isotonic", one_vs_rest.fit_isotonic, one_vs_rest.apply_isotonic),
    "histogram": _by_class("Histogram binning", one_vs_rest.fit_histogram, one_vs_rest.apply_steps),
    "histogram_equal_mass": _by_class(
        "Histogram, equal mass", one_vs_rest.fit_histogram_equal_mass, one_vs_rest.apply_steps
    ),
    "bayesian_binning": _by_class("BBQ", one_vs_rest.fit_bayesian_binning, one_vs_rest.apply_steps),
    "scaling_binning": Calibrator(
        "Scaling-binning", _fit_scaling_binning, _apply_scaling_binning, _temperature_summary
    ),
    "ensemble_temperature": Calibrator("Ensemble temperature", _fit_ensemble, _apply_ensemble, _ensemble_summary),
}


@dataclasses.dataclass(frozen=True, eq=False)
class Fitted:
    """A fitted calibrator.

    Attributes:
      name: key in `CALIBRATORS`.
      parameters: result of `fit`.
      classes: C.
      items: number of items fitted on.
      nll_before: their mean negative log-likelihood before calibration, in nats.
      nll_after: the same after calibration.
      converged: whether the fit converged.
      at_bound: whether a parameter hit its search bound, so that the data do not determine its value.
      checkpoint: step of the run's checkpoint that made the predictions fitted to, or None.
      model: digest of that checkpoint's parameters, or None.
    """

    name: str
    parameters: Parameters
    classes: int
    items: int
    nll_before: float
    nll_after: float
    converged: bool
    at_bound: bool
    checkpoint: int | None = None
    model: str | None = None

    @property
    def accepted(self) -> bool:
        """Whether the calibrator is used: not if it increases the loss that it was fitted to minimize."""
        return self.nll_after <= self.nll_before or np.isinf(self.nll_before)

    def apply(self, logits: Logits) -> Logits:
        """Calibrated logits; the same logits if the fit was not accepted.

        Raises:
          ValueError: if the number of classes differs from the fit's.
        """
        if logits.shape[1] != self.classes:
            raise ValueError(f"calibrator {self.name} was fitted to {self.classes} classes, not {logits.shape[1]}")
        return CALIBRATORS[self.name].apply(self.parameters, logits) if self.accepted else logits

    @property
    def summary(self) -> str:
        """One line about the parameters."""
        return CALIBRATORS[self.name].summary(self.parameters)

    def save(self, path: Path) -> None:
        """Writes JSON."""
        record = {**dataclasses.asdict(self), "parameters": jax.tree.map(_to_json, self.parameters)}
        path.parent.mkdir(parents=True, exist_ok=True)
        write_atomically(path, json.dumps(record) + "\n")

    @classmethod
    def load(cls, path: Path) -> "Fitted":
        """Reads what `save` wrote.

        Raises:
          UserError: if the file is missing or is not a calibrator.
        """
        if not path.is_file():
            raise UserError(f"{path}: no such calibrator; fit one with python -m experiments.calibrate")
        try:
            record = json.loads(path.read_text())
            record["parameters"] = {name: _from_json(value) for name, value in record["parameters"].items()}
            fitted = cls(**record)
            _check(fitted)
        except (ValueError, TypeError, KeyError, AttributeError, IndexError) as error:
            reason = str(error).splitlines()[0] if str(error) else type(error).__name__
            raise UserError(f"{path} is not a calibrator that experiments.calibrate wrote: {reason}") from error
        return fitted


def _check(fitted: Fitted) -> None:
    """Raises for records that no fit produces; also applies the calibrator to a row of zeros."""
    if not isinstance(fitted.name, str) or fitted.name not in CALIBRATORS:
        raise ValueError(f"unknown calibrator {fitted.name!r}; known are {', '.join(CALIBRATORS)}")
    numbers = (fitted.classes, fitted.items, fitted.nll_before, fitted.nll_after)
    if any(isinstance(x, bool) or not isinstance(x, (int, float)) for x in numbers):
        raise ValueError("classes, items, nll_before and nll_after must be numbers")
    if type(fitted.checkpoint) not in (int, type(None)) or not isinstance(fitted.model, str | None):
        raise ValueError("checkpoint must be a whole number and model a text, or null")
    calibrated = CALIBRATORS[fitted.name].apply(fitted.parameters, jnp.zeros((1, fitted.classes), jnp.float32))
    if calibrated.shape != (1, fitted.classes):
        raise ValueError(f"its parameters do not match {fitted.classes} classes")
    outcomes(np.zeros(1, np.int32), logits=calibrated)


def _to_json(value: Any) -> Any:
    return np.asarray(value).tolist() if isinstance(value, (np.ndarray, np.generic, Array)) else value


def _from_json(value: Any) -> Any:
    if isinstance(value, list):
        ragged = any(isinstance(row, list) for row in value) and len({np.shape(row) for row in value}) > 1
        return [np.asarray(row, np.float32) for row in value] if ragged else np.asarray(value, np.float32)
    return value


def fit(name: str, logits: Logits, labels_N: AnyArray) -> Fitted:
    """Fits a calibrator.

    Args:
      name: key in `CALIBRATORS`.
      logits: [N, C], or factors.
      labels_N: the true classes.

    Raises:
      ValueError: for an unknown name, as `outcomes` does, or if a label's own logit is -inf, since calibrators keep
        such classes at probability 0.
    """
    if name not in CALIBRATORS:
        raise ValueError(f"unknown calibrator {name!r}; known are {', '.join(CALIBRATORS)}")
    before_N = outcomes(labels_N, logits=logits).nll_N
    ruled_out = [item for item in np.flatnonzero(np.isinf(before_N)).tolist() if _is_ruled_out(logits, labels_N, item)]
    if ruled_out:
        raise ValueError(f"the label of item {ruled_out[0]} ({len(ruled_out)} in all) has logit -inf")
    labels_N = jnp.asarray(labels_N, jnp.int32)
    parameters = CALIBRATORS[name].fit(logits, labels_N)
    items, classes = logits.shape
    return Fitted(
        name=name,
        parameters=parameters,
        classes=classes,
        items=items,
        nll_before=float(np.mean(before_N, dtype=np.float64)),
        nll_after=_mean_nll(CALIBRATORS[name].apply(parameters, logits), labels_N),
        converged=bool(parameters.get("converged", True)),
        at_bound=bool(parameters.get("at_bound", False)),
    )


def _is_ruled_out(logits: Logits, labels_N: AnyArray, item: int) -> bool:
    return bool(rows(logits, item, 1)[0, labels_N[item]] == -jnp.inf)


def _mean_nll(logits: Logits, labels_N: AnyArray) -> float:
    return float(np.mean(outcomes(labels_N, logits=logits).nll_N, dtype=np.float64))
