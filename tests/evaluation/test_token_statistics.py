"""Token statistics, against float64."""

import dataclasses
import math

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from absl.testing import parameterized

from lm.evaluation.token_statistics import token_statistics

B, T, V = 4, 6, 101
RANDOM = np.random.default_rng(0)
LOGITS = RANDOM.normal(scale=3.0, size=(B, T, V)).astype(np.float32)
TARGETS = RANDOM.integers(V, size=(B, T)).astype(np.int32)
LOGITS[0, :, :], TARGETS[0] = np.round(LOGITS[0]), LOGITS[0].round().argmax(axis=-1)
FIELDS = ("nll", "correct", "confidence", "entropy", "predicted", "log_normalizer", "mean_logit")


def definition(logits, targets):
    """Every statistic of one token at a time, in float64."""
    rows = {name: np.zeros(targets.shape) for name in FIELDS}
    for place in np.ndindex(targets.shape):
        row, target = np.asarray(logits[place], np.float64), targets[place]
        probabilities = np.exp(row - row.max()) / np.exp(row - row.max()).sum()
        possible = probabilities[probabilities > 0]
        log_normalizer = row.max() + math.log(np.exp(row - row.max()).sum())
        rows["nll"][place] = log_normalizer - row[target]
        rows["correct"][place] = (row[target] == row.max()) / np.count_nonzero(row == row.max())
        rows["confidence"][place] = probabilities.max()
        rows["entropy"][place] = -(possible * np.log(possible)).sum()
        rows["predicted"][place] = int(np.flatnonzero(row == row.max()).mean())
        rows["log_normalizer"][place] = log_normalizer
        rows["mean_logit"][place] = row.mean()
    return rows


def assert_statistics(statistics, expected, rtol=1e-5, atol=1e-5):
    assert [field.name for field in dataclasses.fields(statistics)] == list(FIELDS)
    for name in FIELDS:
        np.testing.assert_allclose(getattr(statistics, name), expected[name], rtol=rtol, atol=atol, err_msg=name)


class TokenStatisticsTest(chex.TestCase):
    @chex.variants(with_jit=True, without_jit=True)
    def test_equal_their_definition(self):
        statistics = self.variant(token_statistics)(LOGITS, TARGETS)
        chex.assert_shape(jax.tree.leaves(statistics), (B, T))
        chex.assert_type(jax.tree.leaves(statistics.replace(predicted=None)), jnp.float32)
        assert_statistics(statistics, definition(LOGITS, TARGETS))
        shared = np.asarray(statistics.correct[0])
        assert ((shared > 0) & (shared < 1)).any(), "the data has no tie"

    @chex.variants(with_jit=True, without_jit=True)
    @parameterized.parameters("bfloat16", "float16")
    def test_16_bit_logits_are_computed_with_in_float32(self, dtype):
        logits = LOGITS.astype(jnp.dtype(dtype))
        statistics = self.variant(token_statistics)(logits, TARGETS)
        chex.assert_type(jax.tree.leaves(statistics.replace(predicted=None)), jnp.float32)
        assert_statistics(statistics, definition(logits.astype(np.float32), TARGETS))


compiled = jax.jit(token_statistics)


def test_ties_share_the_credit():
    logits = jnp.array([[1.0, 1.0, 0.0, 1.0], [0.0, 0.0, 0.0, 0.0], [0.0, 2.0, 1.0, 0.0]])
    shares = [compiled(logits, jnp.full(3, target, jnp.int32)).correct for target in range(4)]
    np.testing.assert_allclose(np.sum(shares, axis=0), 1, rtol=1e-6)
    np.testing.assert_allclose(shares[0], [1 / 3, 1 / 4, 0], rtol=1e-6)


def test_adding_a_constant_changes_nothing_but_the_level():
    logits = np.round(LOGITS * 64) / 64  # so that adding 100 is exact
    here, there = compiled(logits, TARGETS), compiled(logits + 100, TARGETS)
    for name in ("nll", "correct", "confidence", "entropy"):
        np.testing.assert_allclose(getattr(there, name), getattr(here, name), rtol=1e-4, atol=5e-5, err_msg=name)
    for name in ("log_normalizer", "mean_logit"):
        np.testing.assert_allclose(getattr(there, name), getattr(here, name) + 100, rtol=1e-5, err_msg=name)


def test_differences_stay_exact_far_from_zero():
    logits = np.round(LOGITS * 64) / 64
    here, there = compiled(logits, TARGETS), compiled(logits + 4096, TARGETS)
    for name in ("nll", "entropy"):
        np.testing.assert_allclose(getattr(there, name), getattr(here, name), rtol=1e-4, atol=1e-5, err_msg=name)


def test_entropy_and_nll_are_never_negative():
    statistics = compiled(LOGITS * 30, LOGITS.argmax(axis=-1).astype(np.int32))
    assert np.min(statistics.entropy) >= 0
    assert np.min(statistics.nll) >= 0


def test_excluded_tokens_leave_finite_numbers():
    logits, targets = LOGITS.copy(), np.zeros_like(TARGETS)
    logits[..., V // 2 :] = -np.inf
    logits[0, 0, 1:] = -np.inf
    statistics = compiled(logits, targets)
    expected = definition(logits, targets)
    for name in ("nll", "correct", "confidence", "entropy", "log_normalizer"):
        assert np.isfinite(getattr(statistics, name)).all(), name
        np.testing.assert_allclose(getattr(statistics, name), expected[name], rtol=1e-4, atol=1e-5, err_msg=name)
    assert np.isposinf(compiled(logits, np.full_like(TARGETS, V - 1)).nll).all()


@pytest.mark.parametrize("name", [name for name in FIELDS if name not in ("correct", "predicted")])
def test_gradients_are_those_of_the_definition(name):
    logits, targets, direction = LOGITS[1, 0].astype(np.float64), TARGETS[1, 0], RANDOM.normal(size=V)
    gradient = jax.jit(jax.grad(lambda logits: getattr(token_statistics(logits, targets), name)))(LOGITS[1, 0])
    assert np.isfinite(gradient).all()
    step = 1e-6 * direction
    ahead, behind = (definition((logits + sign * step)[None], targets[None])[name][0] for sign in (1, -1))
    np.testing.assert_allclose(np.asarray(gradient) @ direction, (ahead - behind) / 2e-6, rtol=1e-3, atol=1e-4)


def test_a_target_outside_the_vocabulary_is_not_a_number():
    statistics = token_statistics(jnp.zeros((3, 4)), jnp.array([-100, 4, 0]))
    assert np.isnan(statistics.nll[:2]).all()
    assert np.isnan(statistics.correct[:2]).all()
    assert float(statistics.correct[2]) == 0.25
