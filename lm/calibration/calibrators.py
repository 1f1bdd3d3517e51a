"""Calibrators by name: maps from logits to better calibrated logits, fitted on held-out items.

    fitted = fit("temperature", logits, labels)
    calibrated_NC = fitted.apply(other_logits)

Calibrators of prompted models need no labels, or few: `fit("shift", logits)`.

Each entry is a `Calibrator`: a pair of functions, `fit(items) -> parameters` and `apply(parameters, logits) -> logits`,
which says what its parameters may be. One-vs-rest calibrators return log-probabilities, which are logits too.

Axes: N items, C classes.
"""

import dataclasses
import functools
import json
import math
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array

from lm.calibration import affine, label_priors, one_vs_rest
from lm.calibration import parameters as specs
from lm.calibration.affine_calibrators import (
    MATRIX,
    affine_calibrator,
    off_diagonal_and_intercept,
    penalized_calibrator,
    ridge,
    structured,
)
from lm.calibration.calibrator import FEWEST, Calibrator, FitItems, UnlabelledItems
from lm.calibration.few_labels import after_shift, near_the_shift
from lm.calibration.inputs import ArrayLike, InputError, checked_labels, checked_logits, checked_weights
from lm.calibration.label_priors import DIFFERENCE, RATIO, label_free, with_prior
from lm.calibration.logits import FactoredLogits, Logits, map_chunks, rows, whole
from lm.calibration.outcomes import mean_nll, outcomes
from lm.calibration.parameters import Numbers, Parameters, Spec
from lm.calibration.priors import checked_priors, checked_scores
from lm.calibration.prototypes import PROTOTYPES, apply_prototypes, check_roots, fit_prototypes
from lm.calibration.temperature import fit_temperature
from lm.errors import UserError
from lm.files import is_unchanged, read_json, with_digest, write_atomically
from lm.types import AnyArray

_TOLERANCE = 1e-6  # relative, of a loss in float32


# --- temperature and its ensemble ---


def _fit_temperature(items: FitItems) -> Parameters:
    found = fit_temperature(items.logits, items.labels_N, items.weights_N)
    return {
        "temperature": np.float32(found.temperature),
        "converged": bool(found.converged),
        "at_bound": bool(found.at_bound),
    }


def _apply_temperature(parameters: Parameters, logits: Logits) -> Logits:
    return affine.apply_temperature(jnp.float32(parameters["temperature"]), logits)


def _fit_ensemble(items: FitItems) -> Parameters:
    """Weights of softmax(z / T), softmax(z) and the uniform distribution (Zhang et al. 2020, section 4.1), by EM."""
    parameters = _fit_temperature(items)
    likelihood_N3 = _ensemble_likelihoods(items.logits, items.labels_N, parameters["temperature"])
    weights_N1 = jnp.asarray(items.weights_N, jnp.float32)[:, None]

    def step(_: int, shares_3: Array) -> Array:
        parts_N3 = likelihood_N3 * shares_3[None]
        return (weights_N1 * parts_N3 / parts_N3.sum(axis=1, keepdims=True)).mean(axis=0)

    shares_3 = jax.lax.fori_loop(0, 500, step, jnp.full(3, 1 / 3))
    return {**parameters, "weights": np.asarray(shares_3)}


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


def _check_shares(parameters: Parameters) -> None:
    if abs(parameters["weights"].sum() - 1) > 1e-3:
        raise ValueError("weights must sum to 1")


def _fit_scaling_binning(items: FitItems) -> Parameters:
    parameters = _fit_temperature(items)
    scaled_NC = whole(_apply_temperature(parameters, items.logits))
    return {**one_vs_rest.fit_scaling_binning(scaled_NC, items.labels_N, items.weights_N), **parameters}


def _apply_scaling_binning(parameters: Parameters, logits: Logits) -> Array:
    return one_vs_rest.apply_steps(parameters, whole(_apply_temperature(parameters, logits)))


def _temperature_summary(parameters: Parameters) -> str:
    return f"T = {float(parameters['temperature']):.4g}"


def _ensemble_summary(parameters: Parameters) -> str:
    shares = ", ".join(f"{float(weight):.2f}" for weight in parameters["weights"])
    return f"{_temperature_summary(parameters)}; shares of scaled, unscaled, uniform: {shares}"


def _one_vs_rest(label: str, fit_classes: Callable, apply: Callable, spec: Spec, **more: Any) -> Calibrator:
    def fit_items(items: FitItems) -> Parameters:
        return fit_classes(whole(items.logits), items.labels_N, items.weights_N, items.is_rare_C)

    def apply_whole(parameters: Parameters, logits: Logits) -> Array:
        return apply(parameters, whole(logits))

    return Calibrator(label, fit_items, apply_whole, spec, takes_zeros=True, **more)


def _steps(label: str, fit_classes: Callable, **more: Any) -> Calibrator:
    check = functools.partial(specs.check_curves, more_values=1)
    return _one_vs_rest(label, fit_classes, one_vs_rest.apply_steps, specs.CURVES, check=check, **more)


CALIBRATORS: dict[str, Calibrator] = {
    "temperature": Calibrator(
        "Temperature", _fit_temperature, _apply_temperature, specs.TEMPERATURE, _temperature_summary, by_class=False
    ),
    "bias": affine_calibrator("Bias only", specs.ONE_SCALE, free=("bias",), start="identity"),
    "temperature_bias": affine_calibrator("Temperature with bias", specs.ONE_SCALE, free=("log_scale", "bias")),
    "vector": affine_calibrator("Vector", specs.VECTOR, free=("diagonal", "bias")),
    "matrix": affine_calibrator("Matrix", specs.MATRIX, free=MATRIX),
    "matrix_odir": penalized_calibrator("Matrix, ODIR", off_diagonal_and_intercept),
    "matrix_ridge": penalized_calibrator("Matrix, ridge", ridge),
    "structured_vector": affine_calibrator(
        "Structured vector", specs.VECTOR, free=("diagonal", "bias"), penalty=structured
    ),
    "structured_matrix": affine_calibrator("Structured matrix", specs.MATRIX, free=MATRIX, penalty=structured),
    "platt": _one_vs_rest("Platt", one_vs_rest.fit_platt, one_vs_rest.apply_platt, specs.PLATT),
    "beta": _one_vs_rest("Beta", one_vs_rest.fit_beta, one_vs_rest.apply_beta, specs.BETA),
    "isotonic": _one_vs_rest(
        "Isotonic",
        one_vs_rest.fit_isotonic,
        one_vs_rest.apply_isotonic,
        specs.CURVES,
        check=functools.partial(specs.check_curves, more_values=0),
    ),
    "histogram": _steps("Histogram binning", one_vs_rest.fit_histogram),
    "histogram_equal_mass": _steps("Histogram, equal mass", one_vs_rest.fit_histogram_equal_mass),
    "bayesian_binning": _steps("BBQ", one_vs_rest.fit_bayesian_binning, takes_weights=False),
    "scaling_binning": Calibrator(
        "Scaling-binning",
        _fit_scaling_binning,
        _apply_scaling_binning,
        {**specs.CURVES, **specs.TEMPERATURE},
        _temperature_summary,
        by_class=False,
        check=functools.partial(specs.check_curves, more_values=1),
    ),
    "ensemble_temperature": Calibrator(
        "Ensemble temperature",
        _fit_ensemble,
        _apply_ensemble,
        {**specs.TEMPERATURE, "weights": Numbers((3,), 0.0, 1.001)},
        _ensemble_summary,
        by_class=False,
        check=_check_shares,
    ),
    # Of prompted models, without labels: `shift` is what to try first.
    "shift": label_free("Shift", label_priors.mean_log_probability),
    "batch_probabilities": label_free("Batch, mean probability", label_priors.log_mean_probability),
    "contextual": with_prior("Contextual", "content_free"),
    "domain_context": with_prior("Domain context", "domain"),
    "pmi": with_prior("PMI, domain premise", "premise"),
    "prototypical": Calibrator(
        "Prototypical",
        fit_prototypes,
        apply_prototypes,
        PROTOTYPES,
        by_class=False,
        sees_labels=False,
        check=check_roots,
    ),
    # The same as published, through links that miscalibrate.
    "contextual_ratio": with_prior("Contextual, published link softmax(p / prior)", "content_free", **RATIO),
    "contextual_difference": with_prior("Contextual, published link softmax(p - prior)", "content_free", **DIFFERENCE),
    "domain_context_ratio": with_prior("Domain context, published link softmax(p / prior)", "domain", **RATIO),
    "domain_context_difference": with_prior(
        "Domain context, published link softmax(p - prior)", "domain", **DIFFERENCE
    ),
    "batch_difference": label_free(
        "Batch, published link softmax(p - mean p)", label_priors.log_mean_probability, **DIFFERENCE
    ),
    # The same with few labels.
    "shift_temperature_bias": after_shift(
        "Shift, temperature, bias",
        specs.ONE_SCALE,
        every_class=True,
        free=("log_scale", "bias"),
        start="identity",
        penalty=near_the_shift,
    ),
    "shift_structured_vector": after_shift(
        "Shift, structured vector",
        specs.VECTOR,
        every_class=False,
        free=("diagonal", "bias"),
        penalty=structured,
    ),
}


class LabelsRuledOut(InputError):
    """Labels with probability 0, which a calibrator cannot change.

    Attributes:
      items_M: their places.
    """

    def __init__(self, name: str, items_M: np.ndarray):
        """Says why `name` cannot be fitted to them."""
        super().__init__(
            f"the label of item {items_M[0]} ({items_M.size} in all) has logit -inf, probability 0, and {name} keeps "
            f"that at 0: fit {', '.join(TAKE_ZEROS[:2])} or {TAKE_ZEROS[2]} instead"
        )
        self.items_M = items_M


@dataclasses.dataclass(frozen=True, eq=False)
class Fitted:
    """A fitted calibrator.

    Attributes:
      name: key in `CALIBRATORS`.
      parameters: result of `fit`.
      classes: C.
      items: number of items fitted on.
      nll_before: their mean negative log-likelihood before calibration, in nats, or after the shift that a fit to few
        labels starts from; None for one that sees no labels.
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
    nll_before: float | None
    nll_after: float | None
    converged: bool
    at_bound: bool
    checkpoint: int | None = None
    model: str | None = None

    @property
    def accepted(self) -> bool:
        """Whether the calibrator is used: not if it increases the loss that it was fitted to minimize, if any."""
        if self.nll_before is None or self.nll_after is None:
            return True
        return bool(self.nll_after <= self.nll_before * (1 + _TOLERANCE) + _TOLERANCE / 10)

    def apply(self, logits: ArrayLike) -> Logits:
        """Calibrated logits, [N, C]; the same logits if the fit was not accepted.

        Args:
          logits: [N, C], or factors, as `checked_logits` takes them.

        Raises:
          InputError: if they are something else, or the number of classes differs from the fit's.
        """
        checked = checked_logits(logits=logits)
        if checked.shape[1] != self.classes:
            raise InputError(f"calibrator {self.name} was fitted to {self.classes} classes, not {checked.shape[1]}")
        return CALIBRATORS[self.name].apply(self.parameters, checked) if self.accepted else checked

    @property
    def summary(self) -> str:
        """One line about the parameters."""
        return CALIBRATORS[self.name].summary(self.parameters)

    def save(self, path: str | Path) -> None:
        """Writes JSON."""
        path = Path(path)
        record = {**dataclasses.asdict(self), "parameters": jax.tree.map(_to_json, self.parameters)}
        if self.nll_before == math.inf:
            record["nll_before"] = None
        path.parent.mkdir(parents=True, exist_ok=True)
        write_atomically(path, json.dumps(with_digest(record), allow_nan=False) + "\n")

    @classmethod
    def load(cls, path: str | Path) -> "Fitted":
        """Reads what `save` wrote.

        Raises:
          UserError: if the file is missing or is not a calibrator.
        """
        path = Path(path)
        if not path.is_file():
            raise UserError(
                f"{path}: no such calibrator; fit one with python -m experiments.calibrate --config=calibrate"
            )
        record = read_json(path)
        if isinstance(record, dict):
            if "digest" in record and not is_unchanged(record):
                raise UserError(f"{path} was changed since experiments.calibrate wrote it: fit it again")
            if record.get("nll_before", 0) is None and record.get("nll_after") is not None:  # JSON has no infinity
                record["nll_before"] = math.inf
        try:
            return cls._from_json(record)
        except ValueError as error:
            raise UserError(f"{path} is not a calibrator that experiments.calibrate wrote: {error}") from error

    @classmethod
    def _from_json(cls, record: Any) -> "Fitted":
        names = [*(field.name for field in dataclasses.fields(cls)), "digest"]
        if not isinstance(record, dict) or any(name not in names for name in record):
            raise ValueError(f"it must hold {', '.join(names)} and nothing else")
        name = record.get("name")
        if not isinstance(name, str) or name not in CALIBRATORS:
            raise ValueError(f"unknown calibrator {_shortened(name)}; known are {', '.join(CALIBRATORS)}")
        calibrator = CALIBRATORS[name]
        known = {**_FACTS, **(_LOSSES if calibrator.sees_labels else {})}
        facts = specs.read_parameters({key: record[key] for key in record if key in known}, known, classes=0)
        if not calibrator.sees_labels:
            if any(record.get(loss, 0) is not None for loss in _LOSSES):
                raise ValueError(f"{name} sees no labels, so its {' and '.join(_LOSSES)} must be null")
            facts |= dict.fromkeys(_LOSSES)
        parameters = specs.read_parameters(record.get("parameters"), calibrator.spec, facts["classes"])
        calibrator.check(parameters)
        if parameters.get("items", facts["items"]) != facts["items"]:
            raise ValueError(f"items is {facts['items']:,} in one place and {parameters['items']:,} in another")
        origin = {key: record[key] for key in _ORIGIN if key in record}
        if type(origin.get("checkpoint")) not in (int, type(None)) or not isinstance(origin.get("model"), str | None):
            raise ValueError("checkpoint must be a whole number and model a text, or null")
        return cls(name=name, parameters=parameters, **facts, **origin)


_ORIGIN = ("checkpoint", "model")
_FACTS: Spec = {
    "classes": Numbers(low=2, high=2**31 - 1, kind="integer"),
    "items": Numbers(low=1, high=2**53, kind="integer"),
    "converged": Numbers(kind="bool"),
    "at_bound": Numbers(kind="bool"),
}
_LOSSES: Spec = {
    "nll_before": Numbers(low=0.0, high=math.inf, kind="double"),
    "nll_after": Numbers(low=0.0, kind="double"),
}
TAKE_ZEROS = tuple(name for name, calibrator in CALIBRATORS.items() if calibrator.takes_zeros)


def _shortened(value: Any, most: int = 40) -> str:
    text = repr(value) if isinstance(value, str | int | float | None) else type(value).__name__
    return text if len(text) <= most else text[:most] + "…"


def _to_json(value: Any) -> Any:
    return np.asarray(value).tolist() if isinstance(value, (np.ndarray, np.generic, Array)) else value


def fit(
    name: str,
    logits: ArrayLike,
    labels: ArrayLike | None = None,
    weights: ArrayLike | None = None,
    *,
    priors: Mapping[str, ArrayLike] | None = None,
    unlabelled: ArrayLike | None = None,
) -> Fitted:
    """Fits a calibrator.

    Args:
      name: key in `CALIBRATORS`.
      logits: [N, C], or factors, as `checked_logits` takes them.
      labels: the true classes, [N]. A calibrator that needs none never sees them.
      weights: how much each item counts, [N], from 0; None: all the same.
      priors: log-probabilities of the labels for other inputs, [K, C] each, by names of `lm.calibration.priors.PRIORS`.
      unlabelled: log-probabilities of the labels for more items, whose labels nobody knows, [M, C].

    Raises:
      InputError: for an unknown name, for arrays that are something else, for weights that the calibrator cannot use,
        for labels or a prior that it lacks, or if a label has probability 0 and the calibrator keeps it there.
    """
    if name not in CALIBRATORS:
        raise InputError(f"unknown calibrator {name!r}; known are {', '.join(CALIBRATORS)}")
    calibrator = CALIBRATORS[name]
    logits = checked_logits(logits=logits)
    if weights is not None and not calibrator.takes_weights:
        raise InputError(f"{calibrator.label} cannot be fitted with weights: leave them out, or choose another")
    given_N = checked_weights(weights, logits.shape[0])
    weights_N = np.ones(logits.shape[0]) if given_N is None else given_N / given_N.mean()
    everything = _unlabelled_items(logits, weights_N, priors, unlabelled)
    if not calibrator.sees_labels:
        return _fitted(name, logits, calibrator.fit(everything), None, None)
    if labels is None:
        needing_none = [known for known, one in CALIBRATORS.items() if not one.sees_labels]
        raise InputError(f"{name} needs labels; without any, fit {', '.join(needing_none)}")
    return _fit_to_labels(name, logits, checked_labels(labels, logits.shape), weights_N, everything)


def _unlabelled_items(
    logits: Logits, weights_N: np.ndarray, priors: Mapping[str, ArrayLike] | None, unlabelled: ArrayLike | None
) -> UnlabelledItems:
    priors = checked_priors(priors, logits.shape[1])
    if unlabelled is None:
        return UnlabelledItems(logits, weights_N, priors)
    if isinstance(logits, FactoredLogits):
        raise InputError("unlabelled items cannot be added to factors: leave them out, or give logits [N, C]")
    more_MC = checked_scores(unlabelled, logits.shape[1], "unlabelled")
    return UnlabelledItems(
        np.concatenate([np.asarray(logits, np.float32), more_MC]), np.append(weights_N, np.ones(len(more_MC))), priors
    )


def _fit_to_labels(
    name: str, logits: Logits, labels: AnyArray, weights_N: np.ndarray, unlabelled: UnlabelledItems
) -> Fitted:
    calibrator, labels_N = CALIBRATORS[name], jnp.asarray(labels)
    before_N = np.where(weights_N > 0, outcomes(labels_N, logits=logits).nll_N, 0)
    if not calibrator.takes_zeros and (ruled_out := labels_ruled_out(logits, labels_N, before_N)).size:
        raise LabelsRuledOut(name, ruled_out)
    is_rare_C = np.bincount(np.asarray(labels_N)[weights_N > 0], minlength=logits.shape[1]) < FEWEST
    parameters = calibrator.fit(FitItems(logits, labels_N, weights_N, is_rare_C, unlabelled))
    before = float(np.mean(weights_N * before_N, dtype=np.float64))
    if calibrator.start is not None:
        before = mean_nll(calibrator.start(parameters, logits), labels_N, weights_N)
    after = mean_nll(calibrator.apply(parameters, logits), labels_N, weights_N)
    return _fitted(name, logits, parameters, before, after)


def _fitted(name: str, logits: Logits, parameters: Parameters, before: float | None, after: float | None) -> Fitted:
    return Fitted(
        name=name,
        parameters=parameters,
        classes=logits.shape[1],
        items=logits.shape[0],
        nll_before=before,
        nll_after=after,
        converged=bool(parameters.get("converged", True)),
        at_bound=bool(parameters.get("at_bound", False)),
    )


def rare_classes(name: str, labels_N: AnyArray, classes: int, weights_N: AnyArray | None = None) -> np.ndarray:
    """Classes that have too few items for parameters of their own; none for a calibrator that has none."""
    if not CALIBRATORS[name].by_class:
        return np.array([], int)
    counted_N = np.asarray(labels_N) if weights_N is None else np.asarray(labels_N)[np.asarray(weights_N) > 0]
    return np.flatnonzero(np.bincount(counted_N, minlength=classes) < FEWEST)


def labels_ruled_out(logits: Logits, labels_N: AnyArray, nll_N: np.ndarray) -> np.ndarray:
    """Items whose label has logit -inf, a probability of exactly 0."""
    infinite = np.flatnonzero(np.isinf(nll_N))
    is_out = [bool(rows(logits, item, 1)[0, labels_N[item]] == -jnp.inf) for item in infinite.tolist()]
    return infinite[np.array(is_out, bool)]
