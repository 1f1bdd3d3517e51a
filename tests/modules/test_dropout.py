"""Dropout is on exactly when randomness is given, and keeps the expectation."""

import functools

import jax
import numpy as np

from lm.modules.config import ModelConfig
from lm.modules.dropout import Dropout

INPUTS = np.random.default_rng(0).uniform(1, 2, size=(100, 100)).astype(np.float32)


@functools.partial(jax.jit, static_argnums=0)
def drop(rate, seed=None):
    rngs = {} if seed is None else {"dropout": jax.random.key(seed)}
    return Dropout(ModelConfig(dropout=rate)).apply({}, INPUTS, rngs=rngs)


def test_is_the_identity_without_randomness_or_at_rate_zero():
    np.testing.assert_array_equal(drop(0.5), INPUTS)
    np.testing.assert_array_equal(drop(0.0, seed=0), INPUTS)


def test_drops_or_scales_up():
    dropped = np.asarray(drop(0.25, seed=0))
    kept = dropped != 0
    np.testing.assert_allclose(dropped, np.where(kept, INPUTS / 0.75, 0), rtol=1e-6)
    # 10,000 draws: six standard errors of the share are 0.026, and of the mean 0.05.
    np.testing.assert_allclose(kept.mean(), 0.75, atol=0.026)
    np.testing.assert_allclose(dropped.mean(), INPUTS.mean(), atol=0.05)


def test_randomness_decides_what_is_dropped():
    first, again, other = (np.asarray(drop(0.5, seed=seed)) for seed in (1, 1, 2))
    np.testing.assert_array_equal(first, again)
    differing = (first == 0) != (other == 0)
    np.testing.assert_allclose(differing.mean(), 0.5, atol=0.03)
