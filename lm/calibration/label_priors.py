"""Calibrators of prompted models that need no labels: they divide by a prior over the labels, and renormalize.

    softmax(log p(label | prompt) - log prior(label))

Zhao et al. 2021 (ICML, contextual), Holtzman et al. 2021 (EMNLP, PMI), Fei et al. 2023 (ACL, domain context) and Zhou
et al. 2024 (ICLR, batch) differ in where the prior comes from. All that they are fitted to is `UnlabelledItems`, so
that none can depend on a label.

Some of these papers, or public code, apply a softmax to p / prior or to p - prior instead. Ratios are as large as there
are labels and differences are never more than 1, so even a calibrated model without bias comes out too sure or too
unsure: these links are here to compare with.

A label to which the prior gives no probability would become certain, so it is an error, unless no item has that label
to choose. Labels that nothing is known about keep their place among the others.

Axes: N items, K inputs of a prior, C classes.
"""

import functools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array
from scipy import special

from lm.calibration import affine
from lm.calibration.calibrator import Calibrator, UnlabelledItems
from lm.calibration.inputs import InputError
from lm.calibration.logits import Logits, sum_chunks, whole
from lm.calibration.parameters import Numbers, Parameters, Spec
from lm.calibration.priors import PRIORS, array_of

_LEAST = -70.0  # nats: a prior of less is none
PRIOR: Spec = {"log_prior": Numbers(("C",), low=-2 * affine.RULED_OUT, high=1e-3)}
_PRIOR_TO_DIVIDE_BY: Spec = {"log_prior": Numbers(("C",), low=-87.0, high=1e-3)}  # float32 holds its exponential

Estimate = Callable[[UnlabelledItems], np.ndarray]


# --- priors ---


def prior_of(name: str, items: UnlabelledItems) -> np.ndarray:
    """The logarithm of the mean of the inputs' probabilities, each normalized over the labels, [C].

    Raises:
      InputError: if the items come without this prior, or if it gives a label of theirs no probability.
    """
    if name not in items.priors:
        raise InputError(
            f"the predictions lack the array `{array_of(name)}`, log-probabilities [inputs, classes] of the labels for "
            f"{PRIORS[name]}: experiments.prompt writes it"
        )
    log_p_KC = special.log_softmax(items.priors[name].astype(np.float64), axis=1)
    log_prior_C = special.logsumexp(log_p_KC, axis=0) - np.log(len(log_p_KC))
    is_known_C = np.asarray(_sums(items.logits, items.weights_N)[2]) > 0
    if (empty := np.flatnonzero(is_known_C & (log_prior_C < _LEAST))).size:
        raise InputError(
            f"`{array_of(name)}` gives class {empty[0]} no probability ({empty.size} in all), so that dividing by it "
            "would make the class certain: score every label for these inputs, or use other inputs"
        )
    return _normalized(log_prior_C, is_known_C)


def mean_log_probability(items: UnlabelledItems) -> np.ndarray:
    """The mean over items of log p(label), of those that have the label to choose, [C]."""
    log_p_C, _, count_C = (np.asarray(each, np.float64) for each in _sums(items.logits, items.weights_N))
    return _normalized(log_p_C / np.maximum(count_C, 1e-30), count_C > 0)


def log_mean_probability(items: UnlabelledItems) -> np.ndarray:
    """The logarithm of the mean over items of p(label), of those that have the label to choose, [C]."""
    log_p_C, p_C, count_C = (np.asarray(each, np.float64) for each in _sums(items.logits, items.weights_N))
    count_C = np.maximum(count_C, 1e-30)
    with np.errstate(divide="ignore"):
        log_mean_C = np.log(p_C / count_C)
    # By Jensen's inequality, which holds on where the exponentials are too small for float32.
    return _normalized(np.maximum(log_mean_C, log_p_C / count_C), count_C > 1e-30)


@jax.jit
def _sums(logits: Logits, weights_N: np.ndarray) -> tuple[Array, Array, Array]:
    """Weighted sums over items of log p, of p and of 1, [C] each; an item counts for the labels it has to choose."""

    def of_chunk(logits_NC: Array, counts_N: Array, weights_N: Array) -> tuple[Array, Array, Array]:
        log_p_NC, is_possible_NC = jax.nn.log_softmax(logits_NC, axis=-1), possible(logits_NC)
        counts_NC = jnp.where(is_possible_NC, (counts_N * weights_N)[:, None], 0)
        log_p_NC = jnp.where(is_possible_NC, log_p_NC, 0)
        of_log_p_C, of_p_C = ((counts_NC * each).sum(axis=0) for each in (log_p_NC, jnp.exp(log_p_NC)))
        return of_log_p_C, of_p_C, counts_NC.sum(axis=0)

    return sum_chunks(of_chunk, logits, jnp.asarray(weights_N, jnp.float32))


def possible(logits_NC: Array) -> Array:
    """Which labels an item has to choose: those that are not at -inf or far below its highest."""
    return logits_NC - logits_NC.max(axis=-1, keepdims=True) >= -affine.RULED_OUT


def _normalized(log_prior_C: np.ndarray, is_known_C: np.ndarray) -> np.ndarray:
    """As probabilities that sum to 1, in float32; classes that nothing is known about have the mean of the others'."""
    log_prior_C = np.where(is_known_C, log_prior_C, log_prior_C[is_known_C].mean())
    return special.log_softmax(log_prior_C).astype(np.float32)


# --- links ---


def subtract_prior(parameters: Parameters, logits: Logits) -> Logits:
    """log p - log prior, in the form of `logits`: the link that keeps a calibrated model calibrated."""
    log_prior_C = jnp.asarray(parameters["log_prior"])
    return affine.apply_affine(jnp.float32(1), -log_prior_C, affine.RULED_OUT, logits)


def _softmax_of_ratio(parameters: Parameters, logits: Logits) -> Array:
    return _published(lambda p_NC, prior_1C: p_NC / prior_1C, parameters, logits)


def _softmax_of_difference(parameters: Parameters, logits: Logits) -> Array:
    return _published(lambda p_NC, prior_1C: p_NC - prior_1C, parameters, logits)


def _published(link: Callable[[Array, Array], Array], parameters: Parameters, logits: Logits) -> Array:
    """Probabilities through `link` as logits, [N, C]; what an item rules out stays so."""
    logits_NC, prior_1C = whole(logits), jnp.exp(jnp.asarray(parameters["log_prior"]))[None]
    return jnp.where(possible(logits_NC), link(jax.nn.softmax(logits_NC, axis=-1), prior_1C), -jnp.inf)


# --- calibrators ---


def prior_summary(parameters: Parameters) -> str:
    """The prior, or its range if there are many classes."""
    prior_C = np.exp(parameters["log_prior"])
    if prior_C.size > 4:
        return f"prior from {prior_C.min():.2g} to {prior_C.max():.2g}"
    return "prior " + ", ".join(f"{each:.2g}" for each in prior_C)


def label_free(label: str, estimate: Estimate, apply: Callable = subtract_prior, spec: Spec = PRIOR) -> Calibrator:
    """A calibrator with a prior from items without labels."""

    def fit_items(items: UnlabelledItems) -> Parameters:
        return {"log_prior": estimate(items)}

    return Calibrator(label, fit_items, apply, spec, prior_summary, by_class=False, sees_labels=False)


def with_prior(label: str, name: str, **link: Any) -> Calibrator:
    """A calibrator with one of `PRIORS`."""
    return label_free(label, functools.partial(prior_of, name), **link)


RATIO: dict[str, Any] = {"apply": _softmax_of_ratio, "spec": _PRIOR_TO_DIVIDE_BY}
DIFFERENCE: dict[str, Any] = {"apply": _softmax_of_difference}
