"""Prototypical calibration of prompted models (Han et al. 2023, ICLR): clusters of predictions instead of a threshold.

The log-probabilities of items without labels are taken for a mixture of Gaussians, one for each label. Which belongs to
which label is the assignment with the highest sum of mean log-probabilities; an item's label then has the
probability that its Gaussian made the item.

Axes: N items, C classes and as many Gaussians, D log-probabilities, which are C too, S starts.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array
from scipy import optimize

from lm.calibration.calibrator import UnlabelledItems
from lm.calibration.inputs import InputError
from lm.calibration.label_priors import possible
from lm.calibration.logits import Logits, whole
from lm.calibration.parameters import FLAG, Numbers, Parameters, Spec

_LOWEST = -30.0  # nats; a label that is less probable is no less of a sign
_LEAST_VARIANCE = 1e-3  # square nats: float32 and any later item stay within reach of a Gaussian
_LEAST_WEIGHT = 1e-6  # of a Gaussian, in items
_STARTS = 10
_MOST_STEPS = 300
_PRECISION = 1e-5  # nats an item

PROTOTYPES: Spec = {
    "log_shares": Numbers(("C",), low=-100.0, high=1e-3),
    "means": Numbers(("C", "C"), low=1.001 * _LOWEST, high=1e-3),
    "roots": Numbers(("C", "C", "C"), low=-100.0, high=100.0),
    "converged": FLAG,
}


class Mixture(NamedTuple):
    """Gaussians with shares.

    Attributes:
      log_shares_C: the logarithm of each one's share.
      means_CD: their means.
      roots_CDD: upper triangular R with R R^T the inverse of the covariance.
    """

    log_shares_C: Array
    means_CD: Array
    roots_CDD: Array


def fit_prototypes(items: UnlabelledItems) -> Parameters:
    """Fits the mixture by EM from ten seeded starts, to the items that have every label to choose.

    Returns:
      `log_shares` [C], `means` [C, C] and `roots` [C, C, C] of the labels' Gaussians, as `Mixture` has them.

    Raises:
      InputError: if there are fewer items than labels.
    """
    logits_NC = whole(items.logits)
    is_used_N = np.asarray(possible(logits_NC)).all(axis=1) & (items.weights_N > 0)
    log_p_ND, weights_N = log_probabilities(logits_NC)[is_used_N], jnp.asarray(items.weights_N[is_used_N], jnp.float32)
    number, classes = log_p_ND.shape
    if number < classes:
        raise InputError(
            f"of items that have every label to choose it needs as many as there are labels, {classes}, but there are "
            f"{number}: give more"
        )
    rng = np.random.default_rng(0)
    starts_SC = np.stack([rng.choice(number, classes, replace=False) for _ in range(_STARTS)])
    mixtures, likelihoods_S, is_converged_S = _fit_from_starts(log_p_ND, weights_N, log_p_ND[starts_SC])
    best = int(jnp.argmax(likelihoods_S))
    gaussians, labels = optimize.linear_sum_assignment(np.asarray(mixtures.means_CD[best]), maximize=True)
    shares, means, roots = (np.asarray(each[best])[gaussians[np.argsort(labels)]] for each in mixtures)
    return {"log_shares": shares, "means": means, "roots": roots, "converged": bool(is_converged_S[best])}


def apply_prototypes(parameters: Parameters, logits: Logits) -> Array:
    """Log-density of each label's Gaussian with its share, [N, C]; what an item rules out stays so."""
    logits_NC = whole(logits)
    mixture = Mixture(*(jnp.asarray(parameters[name]) for name in ("log_shares", "means", "roots")))
    return jnp.where(possible(logits_NC), _log_densities(mixture, log_probabilities(logits_NC)), -jnp.inf)


def check_roots(parameters: Parameters) -> None:
    """Raises ValueError if they are no roots: those are triangular, with a positive diagonal."""
    roots_CDD = parameters["roots"]
    if (np.tril(roots_CDD, -1) != 0).any() or (np.diagonal(roots_CDD, axis1=1, axis2=2) < 1e-3).any():
        raise ValueError("roots must be upper triangular, with a positive diagonal")


def log_probabilities(logits_NC: Array) -> Array:
    """Normalized over the labels, none lower than the lowest that counts."""
    return jnp.maximum(jax.nn.log_softmax(logits_NC, axis=-1), _LOWEST)


@jax.jit
def _fit_from_starts(log_p_ND: Array, weights_N: Array, starts_SCD: Array) -> tuple[Mixture, Array, Array]:
    """The mixture from each start, the mean log-likelihood of the items under it, and whether it converged."""

    def step(mixture: Mixture) -> tuple[Mixture, Array]:
        log_densities_NC = _log_densities(mixture, log_p_ND)
        likelihood = (weights_N * jax.nn.logsumexp(log_densities_NC, axis=1)).sum() / weights_N.sum()
        return _maximized(log_p_ND, weights_N[:, None] * jax.nn.softmax(log_densities_NC, axis=1)), likelihood

    def goes_on(state: tuple) -> Array:
        *_, gain, steps = state
        return (steps < 2) | ((gain > _PRECISION) & (steps < _MOST_STEPS))

    def body(state: tuple) -> tuple:
        mixture, before, _, steps = state
        mixture, likelihood = step(mixture)
        return mixture, likelihood, likelihood - before, steps + 1

    def fit_from(start_CD: Array) -> tuple[Mixture, Array, Array]:
        evenly_NC = jnp.broadcast_to(weights_N[:, None] / len(start_CD), (len(weights_N), len(start_CD)))
        mixture = _maximized(log_p_ND, evenly_NC)._replace(means_CD=start_CD)  # with the spread of all items
        state = (mixture, jnp.float32(-jnp.inf), jnp.float32(jnp.inf), 0)
        mixture, likelihood, gain, _ = jax.lax.while_loop(goes_on, body, state)
        return mixture, likelihood, gain <= _PRECISION

    return jax.lax.map(fit_from, starts_SCD)


def _maximized(log_p_ND: Array, counts_NC: Array) -> Mixture:
    """The mixture of highest likelihood where Gaussian c made the part `counts_NC` of item n."""
    total_C = counts_NC.sum(axis=0) + _LEAST_WEIGHT
    means_CD = jnp.einsum("nc,nd->cd", counts_NC, log_p_ND, precision="highest") / total_C[:, None]
    away_NCD = log_p_ND[:, None] - means_CD[None]
    squares_CDD = jnp.einsum("nc,ncd,nce->cde", counts_NC, away_NCD, away_NCD, precision="highest")
    one_DD = jnp.eye(log_p_ND.shape[1])
    covariances_CDD = squares_CDD / total_C[:, None, None] + _LEAST_VARIANCE * one_DD[None]
    inverses_CDD = jax.vmap(lambda lower_DD: jax.scipy.linalg.solve_triangular(lower_DD, one_DD, lower=True))(
        jnp.linalg.cholesky(covariances_CDD)
    )
    return Mixture(jnp.log(total_C / total_C.sum()), means_CD, jnp.triu(inverses_CDD.mT))


def _log_densities(mixture: Mixture, log_p_ND: Array) -> Array:
    """Of items under each Gaussian, with its share, [N, C]; less what all have."""
    away_NCD = log_p_ND[:, None] - mixture.means_CD[None]
    whitened_NCD = jnp.einsum("ncd,cde->nce", away_NCD, mixture.roots_CDD, precision="highest")
    volume_C = jnp.log(jnp.diagonal(mixture.roots_CDD, axis1=1, axis2=2)).sum(axis=1)
    return (mixture.log_shares_C + volume_C)[None] - jnp.square(whitened_NCD).sum(axis=-1) / 2
