"""Calibrators of a single probability, applied one-vs-rest to each class and normalized.

Each maps a class's predicted probability p to the frequency of the class at p. With two classes only the second is
fitted. A label never seen at some p would get probability 0 and an infinite loss, so the result is mixed with
1 / (n + 1) of the uniform distribution, where n is the number of items of the fit. Classes that the items hardly have
keep their probabilities.

Axes: N items, C classes, K fitted classes (C, or 1 of 2), F features, M bins.
"""

from collections.abc import Callable
from typing import Any, TypeVar

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array
from scipy import optimize, special

from lm.calibration.binning import equal_mass
from lm.types import AnyArray

Parameters = dict[str, Any]
ArrayT = TypeVar("ArrayT", Array, np.ndarray)


@jax.jit
def log_odds(logits_NC: Array) -> Array:
    """log p - log(1 - p) of each class, [N, C], exact for p close to 1, which float32 would round to 1."""
    log_probs_NC = jax.nn.log_softmax(logits_NC.astype(jnp.float32), axis=-1)
    highest_N1 = log_probs_NC.max(axis=-1, keepdims=True)
    is_top_NC = jnp.arange(logits_NC.shape[-1])[None] == log_probs_NC.argmax(axis=-1)[:, None]
    others_N1 = jax.nn.logsumexp(jnp.where(is_top_NC, -jnp.inf, log_probs_NC), axis=-1, keepdims=True)
    rest_NC = jnp.where(is_top_NC, others_N1, jnp.log1p(-jnp.exp(jnp.where(is_top_NC, -1.0, log_probs_NC))))
    odds_NC = jnp.where(is_top_NC, highest_N1, log_probs_NC) - rest_NC
    return jnp.clip(odds_NC, -80.0, 80.0)


def _fitted_classes(values_NC: ArrayT) -> ArrayT:
    return values_NC[:, 1:] if values_NC.shape[1] == 2 else values_NC


def _is_class(labels_N: AnyArray, classes: int) -> np.ndarray:
    return _fitted_classes(np.asarray(labels_N)[:, None] == np.arange(classes))


def _kept(is_rare_C: np.ndarray) -> np.ndarray:
    """Which of the K classes keep their probabilities: with two classes, both if one is rare."""
    return np.array([is_rare_C.any()]) if is_rare_C.size == 2 else np.asarray(is_rare_C)


def mixed_log_probs(parameters: Parameters, probabilities_NK: Array, logits_NC: Array) -> Array:
    """Log-probabilities, [N, C], from the calibrated probability of each class; rows of zeros become uniform."""
    classes = logits_NC.shape[1]
    probabilities_NC = jnp.asarray(probabilities_NK, jnp.float32)
    if "kept" in parameters:
        before_NK = _fitted_classes(jax.nn.softmax(logits_NC.astype(jnp.float32), axis=-1))
        probabilities_NC = jnp.where(jnp.asarray(parameters["kept"], bool)[None], before_NK, probabilities_NC)
    if classes == 2:
        probabilities_NC = jnp.concatenate([1 - probabilities_NC, probabilities_NC], axis=1)
    total_N1 = probabilities_NC.sum(axis=-1, keepdims=True)
    probabilities_NC = jnp.where(total_N1 > 0, probabilities_NC / jnp.where(total_N1 > 0, total_N1, 1), 1 / classes)
    share = 1 / (parameters["items"] + 1)
    return jnp.log((1 - share) * probabilities_NC + share / classes)


# --- logistic: Platt and beta ---


@jax.jit
def _fit_logistic(features_NF: Array, targets_N: Array, weights_N: Array, used_F: Array) -> tuple[Array, Array, Array]:
    """Weights of a logistic regression by damped Newton steps: (weights [F], mean loss, converged)."""

    def loss(weights_F: Array) -> Array:
        score_N = jnp.matmul(features_NF, weights_F * used_F, precision="highest")
        return (weights_N * (jax.nn.softplus(score_N) - targets_N * score_N)).mean()

    def body(state: tuple) -> tuple:
        weights_F, _, steps, value = state
        gradient_F, hessian_FF = jax.grad(loss)(weights_F), jax.hessian(loss)(weights_F)
        # Damping keeps parameters finite that the data do not determine, such as those of separable labels.
        hessian_FF = hessian_FF + jnp.diag(jnp.where(used_F > 0, 1e-7 + 1e-6 * jnp.diag(hessian_FF), 1.0))
        step_F = jnp.linalg.solve(hessian_FF, gradient_F)
        sizes = 0.5 ** jnp.arange(12)
        values = jax.vmap(lambda size: loss(weights_F - size * step_F))(sizes)
        best = jnp.argmin(jnp.where(jnp.isfinite(values), values, jnp.inf))
        better = values[best] < value
        weights_F = jnp.where(better, weights_F - sizes[best] * step_F, weights_F)
        return weights_F, better & (jnp.abs(gradient_F).max() > 1e-6), steps + 1, jnp.minimum(values[best], value)

    zeros_F = jnp.zeros(features_NF.shape[1])
    state = (zeros_F, jnp.bool_(True), 0, loss(zeros_F))
    weights_F, going_on, _, value = jax.lax.while_loop(lambda s: s[1] & (s[2] < 100), body, state)
    return weights_F * used_F, value, ~going_on


def _fit_logistics(
    logits_NC: Array,
    labels_N: AnyArray,
    weights_N: np.ndarray,
    is_rare_C: np.ndarray,
    fit_class: Callable[[Array, Array, Array], tuple[Array, Array]],
) -> Parameters:
    """Fits each class's weights, from its log-odds, whether items are of the class, and the items' weights."""
    odds_NK, is_class_NK = _fitted_classes(log_odds(logits_NC)), _is_class(labels_N, logits_NC.shape[1])
    weights = jnp.asarray(weights_N, jnp.float32)
    weights_KF, converged_K = jax.lax.map(
        lambda args: fit_class(args[0], args[1], weights), (odds_NK.T, jnp.asarray(is_class_NK.T))
    )
    kept_K = _kept(is_rare_C)
    converged = bool((np.asarray(converged_K) | kept_K).all())
    return {"weights": weights_KF, "items": len(labels_N), "kept": kept_K, "converged": converged}


def fit_platt(logits_NC: Array, labels_N: AnyArray, weights_N: np.ndarray, is_rare_C: np.ndarray) -> Parameters:
    """sigmoid(a s + b) of the log-odds s, fitted to targets a little inside 0 and 1 (Platt 1999, section 2.2)."""

    def fit_class(odds_N: Array, is_class_N: Array, weights_N: Array) -> tuple[Array, Array]:
        positives = (weights_N * is_class_N).sum()
        high, low = (positives + 1) / (positives + 2), 1 / (weights_N.sum() - positives + 2)
        features = jnp.stack([odds_N, jnp.ones_like(odds_N)], axis=1)
        targets_N = jnp.where(is_class_N, high, low)
        weights_F, _, converged = _fit_logistic(features, targets_N, weights_N, jnp.ones(2))
        return weights_F, converged

    return _fit_logistics(logits_NC, labels_N, weights_N, is_rare_C, fit_class)


def apply_platt(parameters: Parameters, logits_NC: Array) -> Array:
    """Calibrated log-probabilities, [N, C]."""
    weights_1KF = jnp.asarray(parameters["weights"])[None]
    scores_NK = _fitted_classes(log_odds(logits_NC)) * weights_1KF[..., 0] + weights_1KF[..., 1]
    return mixed_log_probs(parameters, jax.nn.sigmoid(scores_NK), logits_NC)


def _beta_features(odds_N: Array) -> Array:
    return jnp.stack([jax.nn.log_sigmoid(odds_N), -jax.nn.log_sigmoid(-odds_N), jnp.ones_like(odds_N)], axis=-1)


def fit_beta(logits_NC: Array, labels_N: AnyArray, weights_N: np.ndarray, is_rare_C: np.ndarray) -> Parameters:
    """sigmoid(a log p - b log(1 - p) + c) with a, b >= 0 (Kull et al. 2017)."""
    # A negative exponent would make the map decreasing; it is set to 0, as the authors do.
    alternatives = jnp.array([[1.0, 1, 1], [1, 0, 1], [0, 1, 1], [0, 0, 1]])

    def fit_class(odds_N: Array, is_class_N: Array, weights_N: Array) -> tuple[Array, Array]:
        features, targets_N = _beta_features(odds_N), is_class_N.astype(jnp.float32)
        weights, losses, converged = jax.lax.map(
            lambda used_F: _fit_logistic(features, targets_N, weights_N, used_F), alternatives
        )
        allowed = (weights[:, :2] >= 0).all(axis=1)
        best = jnp.argmin(jnp.where(allowed, losses, jnp.inf))
        return weights[best], converged[best]

    return _fit_logistics(logits_NC, labels_N, weights_N, is_rare_C, fit_class)


def apply_beta(parameters: Parameters, logits_NC: Array) -> Array:
    """Calibrated log-probabilities, [N, C]."""
    features_NKF = _beta_features(_fitted_classes(log_odds(logits_NC)))
    scores_NK = (features_NKF * jnp.asarray(parameters["weights"])[None]).sum(axis=-1)
    return mixed_log_probs(parameters, jax.nn.sigmoid(scores_NK), logits_NC)


# --- nonparametric: isotonic, histogram, Bayesian binning, scaling-binning ---


# From probabilities, whether items are of the class, and the items' weights, [N] each, to edges and values.
FitCurve = Callable[[np.ndarray, np.ndarray, np.ndarray], tuple[np.ndarray, np.ndarray]]


def _fit_curves(
    logits_NC: Array, labels_N: AnyArray, weights_N: np.ndarray, is_rare_C: np.ndarray | None, fit_curve: FitCurve
) -> Parameters:
    probabilities_NK = _fitted_classes(np.asarray(jax.nn.softmax(logits_NC, axis=-1)))
    is_class_NK = _is_class(labels_N, logits_NC.shape[1])
    weights_N = np.asarray(weights_N, np.float64)
    curves = [fit_curve(p, y, weights_N) for p, y in zip(probabilities_NK.T, is_class_NK.T, strict=True)]
    found: Parameters = {
        "edges": [x.astype(np.float32) for x, _ in curves],
        "values": [y.astype(np.float32) for _, y in curves],
        "items": len(labels_N),
    }
    return found if is_rare_C is None else {**found, "kept": _kept(is_rare_C)}


def _apply_curves(parameters: Parameters, logits_NC: Array, read: Callable[[Array, Array, Array], Array]) -> Array:
    probabilities_NK = _fitted_classes(jax.nn.softmax(logits_NC.astype(jnp.float32), axis=-1))
    columns = [
        read(p, jnp.asarray(edges), jnp.asarray(values))
        for p, edges, values in zip(probabilities_NK.T, parameters["edges"], parameters["values"], strict=True)
    ]
    return mixed_log_probs(parameters, jnp.stack(columns, axis=1), logits_NC)


def _step_function(p_N: Array, inner_edges: Array, values: Array) -> Array:
    return values[jnp.searchsorted(inner_edges, p_N, side="left")]


def fit_isotonic(logits_NC: Array, labels_N: AnyArray, weights_N: np.ndarray, is_rare_C: np.ndarray) -> Parameters:
    """Isotonic regression by pooling adjacent violators (Zadrozny & Elkan 2002)."""

    def fit_curve(p_N: np.ndarray, y_N: np.ndarray, weights_N: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        counted = weights_N > 0
        points, place_N = np.unique(p_N[counted], return_inverse=True)
        count = np.bincount(place_N, weights_N[counted])
        shares = np.bincount(place_N, (weights_N * y_N)[counted]) / count
        fitted = optimize.isotonic_regression(shares, weights=count).x
        # Inner points of a constant stretch are redundant.
        bends = np.append(True, fitted[1:] != fitted[:-1])
        keep = bends | np.append(bends[1:], True)
        return points[keep], fitted[keep]

    return _fit_curves(logits_NC, labels_N, weights_N, is_rare_C, fit_curve)


def apply_isotonic(parameters: Parameters, logits_NC: Array) -> Array:
    """Calibrated log-probabilities, [N, C]; linear between the points of the fit, constant beyond them."""
    return _apply_curves(parameters, logits_NC, jnp.interp)


def fit_histogram(
    logits_NC: Array, labels_N: AnyArray, weights_N: np.ndarray, is_rare_C: np.ndarray, bins: int = 15
) -> Parameters:
    """The frequency of the class in each equal-width bin, or the bin's centre if empty (Zadrozny & Elkan 2001)."""

    def fit_curve(p_N: np.ndarray, y_N: np.ndarray, weights_N: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        edges = (np.arange(1, bins) / bins).astype(np.float32)  # as `apply_steps` compares with them
        return edges, _shares(p_N, y_N, weights_N, edges, (np.arange(bins) + 0.5) / bins)

    return _fit_curves(logits_NC, labels_N, weights_N, is_rare_C, fit_curve)


def fit_histogram_equal_mass(
    logits_NC: Array, labels_N: AnyArray, weights_N: np.ndarray, is_rare_C: np.ndarray, bins: int = 15
) -> Parameters:
    """The frequency of the class in each equal-mass bin (Zadrozny & Elkan 2001)."""

    def fit_curve(p_N: np.ndarray, y_N: np.ndarray, weights_N: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        edges = equal_mass(p_N, bins).all_edges()[1:-1].astype(np.float32)
        return edges, _shares(p_N, y_N, weights_N, edges, (np.append(0, edges) + np.append(edges, 1)) / 2)

    return _fit_curves(logits_NC, labels_N, weights_N, is_rare_C, fit_curve)


def _shares(
    p_N: np.ndarray, y_N: np.ndarray, weights_N: np.ndarray, inner_edges: np.ndarray, if_empty: np.ndarray
) -> np.ndarray:
    bin_N = np.searchsorted(inner_edges, p_N, side="left")
    count = np.bincount(bin_N, weights_N, if_empty.size)
    shares = np.bincount(bin_N, weights_N * y_N, if_empty.size) / np.where(count > 0, count, 1)
    return np.where(count > 0, shares, if_empty)


def fit_bayesian_binning(
    logits_NC: Array, labels_N: AnyArray, weights_N: np.ndarray, is_rare_C: np.ndarray
) -> Parameters:
    """Bayesian binning into quantiles (BBQ): equal-mass histograms of many sizes, averaged by their likelihood.

    Numbers of bins from n^(1/3) / 10 to 10 n^(1/3), with a Beta prior of total strength 2 centred on each bin (Naeini
    et al. 2015). Takes no weights: the likelihood of a number of bins depends on how many items there are.
    """

    def fit_curve(p_N: np.ndarray, y_N: np.ndarray, _: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        root = p_N.size ** (1 / 3)
        sizes = range(max(1, int(root / 10)), max(2, min(int(10 * root), p_N.size // 2)) + 1)
        models = [_binned_model(p_N, y_N, size) for size in sizes]
        scores = np.array([score for _, _, score in models])
        weights = special.softmax(scores)
        all_edges = np.unique(np.concatenate([edges for edges, _, _ in models]))
        # One step function with the steps of all models.
        upper = np.append(all_edges, 1.0)
        values = sum(
            weight * means[np.searchsorted(edges, upper, side="left")]
            for weight, (edges, means, _) in zip(weights, models, strict=True)
            if weight > 1e-6
        )
        return all_edges, values / weights[weights > 1e-6].sum()

    return _fit_curves(logits_NC, labels_N, weights_N, is_rare_C, fit_curve)


def _binned_model(p_N: np.ndarray, y_N: np.ndarray, bins: int) -> tuple[np.ndarray, np.ndarray, float]:
    """An equal-mass histogram: inner edges, posterior means, log marginal likelihood."""
    edges = equal_mass(p_N, bins).all_edges()
    bin_N = np.searchsorted(edges[1:-1], p_N, side="left")
    number = edges.size - 1
    count, ones = np.bincount(bin_N, None, number), np.bincount(bin_N, y_N, number)
    strength = 2 / number
    centre = np.clip((edges[:-1] + edges[1:]) / 2, 0.005, 0.995)
    alpha, beta = strength * centre, strength * (1 - centre)
    score = (special.betaln(ones + alpha, count - ones + beta) - special.betaln(alpha, beta)).sum()
    return edges[1:-1], (ones + alpha) / (count + strength), float(score)


def apply_steps(parameters: Parameters, logits_NC: Array) -> Array:
    """Calibrated log-probabilities, [N, C], of step-function calibrators."""
    return _apply_curves(parameters, logits_NC, _step_function)


def fit_scaling_binning(logits_NC: Array, labels_N: AnyArray, weights_N: np.ndarray, bins: int = 15) -> Parameters:
    """The mean scaled probability of each equal-mass bin (Kumar et al. 2019, section 4).

    `logits_NC` are those after temperature scaling. Bins output mean probabilities rather than label frequencies, which
    adds little variance, and take finitely many values, so that their calibration error can be measured.
    """

    def fit_curve(p_N: np.ndarray, _: np.ndarray, weights_N: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        edges = equal_mass(p_N, bins).all_edges()
        return edges[1:-1], _shares(p_N, p_N, weights_N, edges[1:-1], (edges[:-1] + edges[1:]) / 2)

    return _fit_curves(logits_NC, labels_N, weights_N, None, fit_curve)
