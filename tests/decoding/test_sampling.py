"""The sampling distribution against its definition, one token at a time."""

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from absl.testing import parameterized

from lm.decoding.sampling import SamplingConfig, sampling_log_probs
from lm.errors import UserError

V = 12
LOGITS = np.random.default_rng(0).normal(scale=2.0, size=(6, V)).astype(np.float32)


def softmax(logits):
    unnormalized = np.exp(logits - logits.max())
    return unnormalized / unnormalized.sum()


def definition(logits_V, temperature=1.0, top_k=0, top_p=1.0):
    """The probabilities of one distribution: temperature, then the k likeliest, then the nucleus of what is left."""
    probabilities = softmax(np.asarray(logits_V, np.float64) / temperature)
    order = np.argsort(-probabilities)
    if top_k:
        probabilities[order[top_k:]] = 0
        probabilities /= probabilities.sum()
    kept, mass = [], 0.0
    for token in order:
        if mass < top_p and probabilities[token] > 0:
            kept.append(token)
            mass += probabilities[token]
    nucleus = np.zeros(V)
    nucleus[kept] = probabilities[kept] / mass
    return nucleus


compiled = jax.jit(sampling_log_probs, static_argnums=1)


class SamplingTest(chex.TestCase):
    @chex.variants(with_jit=True, without_jit=True)
    @parameterized.parameters(
        {"temperature": 0.5},
        {"temperature": 2.0, "top_k": 3},
        {"top_k": V + 1},
        {"top_p": 0.6},
        {"temperature": 1.7, "top_k": 5, "top_p": 0.7},
    )
    def test_equals_the_definition(self, **values):
        log_probs = self.variant(sampling_log_probs, static_argnums=1)(LOGITS, SamplingConfig(**values))
        expected = np.stack([definition(logits, **values) for logits in LOGITS])
        np.testing.assert_allclose(np.exp(log_probs), expected, rtol=1e-4, atol=1e-7)
        np.testing.assert_array_equal(np.isneginf(log_probs), expected == 0)


@pytest.mark.parametrize("top_p", [1e-6, 0.3, 0.9, 0.999])
def test_the_nucleus_is_the_smallest_set_of_that_mass(top_p):
    kept = np.isfinite(compiled(LOGITS, SamplingConfig(top_p=top_p)))
    for logits, kept_V in zip(LOGITS, kept, strict=True):
        probabilities = softmax(logits.astype(np.float64))
        inside = np.sort(probabilities[kept_V])
        assert inside.sum() >= top_p
        assert inside[1:].sum() < top_p
        assert kept_V.all() or inside[0] > probabilities[~kept_V].max()


def test_greedy_is_certain_and_takes_the_first_of_equals():
    logits = jnp.array([[0.0, 3.0, 3.0, 1.0], [5.0, 1.0, 2.0, 3.0]])
    expected = [[-np.inf, 0, -np.inf, -np.inf], [0, -np.inf, -np.inf, -np.inf]]
    for rest in ({}, {"top_k": 3, "top_p": 0.5}):
        np.testing.assert_array_equal(compiled(logits, SamplingConfig(temperature=0.0, **rest)), expected)


def test_ties_with_the_last_one_allowed_are_allowed():
    logits = jnp.array([[2.0, 1.0, 1.0, 0.0]])
    for values in ({"top_k": 2}, {"top_p": 0.7}):
        np.testing.assert_array_equal(np.isfinite(compiled(logits, SamplingConfig(**values))), [[1, 1, 1, 0]])


@pytest.mark.parametrize("values", [{"temperature": 3.0}, {"top_k": 9}, {"top_p": 0.99}, {"temperature": 0.0}])
def test_what_was_ruled_out_stays_out(values):
    logits = np.where(np.arange(V) < 4, LOGITS, -np.inf)
    log_probs = np.asarray(compiled(logits, SamplingConfig(**values)))
    assert np.isneginf(log_probs[:, 4:]).all()
    np.testing.assert_allclose(np.exp(log_probs).sum(axis=-1), 1, rtol=1e-5)


@pytest.mark.parametrize(
    ("values", "words"),
    [
        ({"temperature": -0.5}, "temperature must not be negative, got -0.5"),
        ({"top_k": -1}, "top_k must not be negative, got -1"),
        ({"top_p": 0.0}, "top_p must be in (0, 1], got 0.0"),
        ({"top_p": 1.5}, "top_p must be in (0, 1], got 1.5"),
        ({"max_new_tokens": 0}, "max_new_tokens"),
        ({"samples": 0}, "samples"),
    ],
)
def test_bad_values_are_named(values, words):
    with pytest.raises(UserError) as caught:
        SamplingConfig(**values)
    assert words in str(caught.value)
