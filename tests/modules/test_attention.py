"""Attention: equal to its definition, for every mask and grouping."""

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from absl.testing import parameterized

from lm.modules.attention import MultiHeadAttention, attend
from lm.modules.config import ModelConfig

SEGMENTS = np.array([[1, 1, 1, 2, 2, 3], [1, 2, 2, 2, 2, 2]])
SAME_SEGMENT = SEGMENTS[:, :, None] == SEGMENTS[:, None, :]


def naive_attention(q_BTNH, k_BSKH, v_BSKH, mask_BTS):
    """The definition in float64, one query of one head at a time."""
    q_BTNH, k_BSKH, v_BSKH = (np.asarray(array, np.float64) for array in (q_BTNH, k_BSKH, v_BSKH))
    group = q_BTNH.shape[2] // k_BSKH.shape[2]
    mixed = np.zeros(q_BTNH.shape)
    for b, t, n in np.ndindex(q_BTNH.shape[:3]):
        keys, values = k_BSKH[b, :, n // group], v_BSKH[b, :, n // group]
        scores = keys @ q_BTNH[b, t, n] / np.sqrt(q_BTNH.shape[3])
        unnormalized = np.where(mask_BTS[b, t], np.exp(scores - scores.max()), 0)
        mixed[b, t, n] = unnormalized @ values / unnormalized.sum()
    return mixed


def random_inputs(heads, kv_heads, scale=1.0, width=4):
    random = np.random.default_rng(0)
    shapes = [(2, 6, n, width) for n in (heads, kv_heads, kv_heads)]
    return [jnp.asarray(scale * random.normal(size=shape), jnp.float32) for shape in shapes]


class AttendTest(chex.TestCase):
    @chex.variants(with_jit=True, without_jit=True)
    @parameterized.parameters(
        ("explicit", 4, 2, True, True),
        ("explicit", 4, 2, False, False),
        ("explicit", 3, 3, False, True),
        ("explicit", 3, 1, True, False),
        ("xla", 4, 2, True, True),
    )
    def test_equals_the_definition(self, implementation, heads, kv_heads, causal, segments):
        q, k, v = random_inputs(heads, kv_heads)
        mask = SAME_SEGMENT if segments else np.ones_like(SAME_SEGMENT)
        given = jnp.asarray(mask) if segments else None
        mixed = self.variant(lambda *arrays: attend(*arrays, causal=causal, implementation=implementation))(
            q, k, v, given
        )
        chex.assert_shape(mixed, (2, 6, heads, 4))
        seen = mask & np.tri(6, dtype=bool) if causal else mask
        np.testing.assert_allclose(mixed, naive_attention(q, k, v, seen), rtol=1e-5, atol=1e-6)


def gradients(implementation, dtype, arrays):
    """Of a sum that weighs every output differently, with respect to queries, keys and values."""
    weights = jnp.asarray(np.random.default_rng(1).normal(size=arrays[0].shape), jnp.float32)

    def total(*arrays):
        arrays = [array.astype(dtype) for array in arrays]
        mixed = attend(*arrays, jnp.asarray(SAME_SEGMENT), causal=True, implementation=implementation)
        return (weights * mixed.astype(jnp.float32)).sum()

    return jax.jit(jax.grad(total, argnums=(0, 1, 2)))(*arrays)


def test_gradients_do_not_depend_on_the_implementation():
    arrays = random_inputs(4, 2)
    exact = gradients("xla", "float32", arrays)
    chex.assert_trees_all_close(gradients("explicit", "float32", arrays), exact, rtol=1e-4, atol=1e-5)
    assert all(np.abs(leaf).max() > 0.1 for leaf in exact)


def test_16_bit_gradients_stay_near_the_exact_ones():
    arrays = [array.astype(jnp.bfloat16).astype(jnp.float32) for array in random_inputs(4, 2, width=8)]
    exact = gradients("xla", "float32", arrays)
    chex.assert_trees_all_close(gradients("explicit", "bfloat16", arrays), exact, atol=0.03)


@pytest.mark.parametrize("implementation", ["explicit", "xla"])
def test_scores_and_softmax_are_float32_for_16_bit_inputs(implementation):
    q, k, v = (array.astype(jnp.bfloat16) for array in random_inputs(2, 2, scale=4.0, width=8))
    mixed = jax.jit(lambda *arrays: attend(*arrays, None, causal=False, implementation=implementation))(q, k, v)
    assert mixed.dtype == jnp.bfloat16
    expected = naive_attention(q, k, v, np.ones_like(SAME_SEGMENT))
    # Scores reach 40, where the nearest bfloat16 is up to 0.125 away: a weight would be off by an eighth.
    np.testing.assert_allclose(mixed.astype(jnp.float32), expected, rtol=0.01, atol=0.03)


@pytest.mark.parametrize("implementation", ["explicit", "xla"])
def test_kv_heads_that_do_not_divide_heads_are_an_error(implementation):
    q, k, v = random_inputs(4, 3)
    with pytest.raises(ValueError, match="3 key-value heads do not divide 4 query heads"):
        attend(q, k, v, None, causal=True, implementation=implementation)


def test_without_positions_attention_does_not_know_the_order():
    layer = MultiHeadAttention(ModelConfig(width=8, heads=4, kv_heads=2, bias=True), causal=False)
    random = np.random.default_rng(0)
    inputs = random.normal(size=(2, 6, 8)).astype(np.float32)
    shapes = jax.eval_shape(layer.init, jax.random.key(0), inputs)
    variables = jax.tree.map(lambda leaf: random.normal(size=leaf.shape), shapes)
    apply = jax.jit(lambda inputs: layer.apply(variables, inputs)[0])
    order = np.array([3, 0, 5, 1, 4, 2])
    chex.assert_trees_all_close(apply(inputs)[:, order], apply(inputs[:, order]), atol=1e-4)
