"""Attention: equal to its definition, for every mask and grouping."""

import functools

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from absl.testing import parameterized

from lm.modules.attention import CrossAttention, MultiHeadAttention, attend
from lm.modules.config import ModelConfig
from lm.modules.visibility import Visibility, segment_mask

SEGMENTS = np.array([[1, 1, 1, 2, 2, 3], [1, 2, 2, 2, 2, 2]])
SAME_SEGMENT = SEGMENTS[:, :, None] == SEGMENTS[:, None, :]
BIAS = np.random.default_rng(3).normal(size=(4, 6, 6)).astype(np.float32)


def naive_attention(q_BTNH, k_BSKH, v_BSKH, mask_BTS, bias_NTS=None, scale=None, softcap=None):
    """The definition in float64, one query of one head at a time."""
    bias_NTS = np.zeros((q_BTNH.shape[2], *mask_BTS.shape[1:])) if bias_NTS is None else bias_NTS
    q_BTNH, k_BSKH, v_BSKH = (np.asarray(array, np.float64) for array in (q_BTNH, k_BSKH, v_BSKH))
    group = q_BTNH.shape[2] // k_BSKH.shape[2]
    mixed = np.zeros(q_BTNH.shape)
    for b, t, n in np.ndindex(q_BTNH.shape[:3]):
        keys, values = k_BSKH[b, :, n // group], v_BSKH[b, :, n // group]
        scores = keys @ q_BTNH[b, t, n] * (scale or 1 / np.sqrt(q_BTNH.shape[3]))
        scores = (softcap * np.tanh(scores / softcap) if softcap else scores) + bias_NTS[n, t]
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
        ("explicit", 4, 2, False, False, True),
        ("explicit", 4, 4, True, True, True),
        ("explicit", 3, 3, False, True),
        ("explicit", 3, 1, True, False),
        ("xla", 4, 2, True, True, True),
    )
    def test_equals_the_definition(self, implementation, heads, kv_heads, causal, segments, biased=False):
        q, k, v = random_inputs(heads, kv_heads)
        mask = SAME_SEGMENT if segments else np.ones_like(SAME_SEGMENT)
        given = jnp.asarray(mask) if segments else None
        bias = BIAS if biased else None
        visibility = Visibility(given, causal, None if bias is None else jnp.asarray(bias)[None])
        mixed = self.variant(lambda *arrays: attend(*arrays, implementation=implementation))(q, k, v, visibility)
        chex.assert_shape(mixed, (2, 6, heads, 4))
        seen = mask & np.tri(6, dtype=bool) if causal else mask
        np.testing.assert_allclose(mixed, naive_attention(q, k, v, seen, bias), rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize(("implementation", "softcap"), [("explicit", 0.5), ("explicit", None), ("xla", None)])
def test_scale_and_softcap_equal_the_definition(implementation, softcap):
    arrays, visibility = random_inputs(4, 2), Visibility(SAME_SEGMENT, bias_BNTS=BIAS[None])
    mixed = attend(*arrays, visibility, implementation=implementation, scale=2.0, softcap=softcap)
    expected = naive_attention(*arrays, SAME_SEGMENT, BIAS, 2.0, softcap)
    np.testing.assert_allclose(mixed, expected, rtol=1e-4, atol=1e-5)


def gradients(implementation, dtype, arrays, **how):
    """Of a sum that weighs every output differently, with respect to queries, keys, values and, if given, bias."""
    weights = jnp.asarray(np.random.default_rng(1).normal(size=arrays[0].shape), jnp.float32)

    def total(q, k, v, bias=None):
        q, k, v = (array.astype(dtype) for array in (q, k, v))
        mixed = attend(q, k, v, Visibility(SAME_SEGMENT, True, bias), implementation=implementation, **how)
        return (weights * mixed.astype(jnp.float32)).sum()

    return jax.jit(jax.grad(total, argnums=tuple(range(len(arrays)))))(*arrays)


@pytest.mark.parametrize("bias_batch", [None, 1, 2])
def test_gradients_do_not_depend_on_the_implementation(bias_batch):
    arrays = random_inputs(4, 2)
    if bias_batch:
        arrays.append(jnp.asarray(BIAS[None] + np.arange(bias_batch)[:, None, None, None], jnp.float32))
    exact = gradients("xla", "float32", arrays)
    chex.assert_trees_all_close(gradients("explicit", "float32", arrays), exact, rtol=1e-4, atol=1e-5)
    assert all(np.abs(leaf).max() > 0.1 for leaf in exact)


@pytest.mark.parametrize("softcap", [None, 0.5])
def test_gradients_through_a_scale_and_a_softcap_equal_the_derived_ones(softcap):
    arrays = [*random_inputs(4, 2), jnp.asarray(BIAS[None])]
    capped = functools.partial(gradients, "explicit", "float32", arrays, scale=2.0, softcap=softcap)
    exact = capped(gradients="derived")
    chex.assert_trees_all_close(capped(gradients="explicit"), exact, rtol=1e-4, atol=1e-5)
    assert all(np.abs(leaf).max() > 0.1 for leaf in exact)


def test_16_bit_gradients_stay_near_the_exact_ones():
    arrays = [array.astype(jnp.bfloat16).astype(jnp.float32) for array in random_inputs(4, 2, width=8)]
    exact = gradients("xla", "float32", arrays)
    chex.assert_trees_all_close(gradients("explicit", "bfloat16", arrays), exact, atol=0.03)


@pytest.mark.parametrize("implementation", ["explicit", "xla"])
def test_scores_and_softmax_are_float32_for_16_bit_inputs(implementation):
    q, k, v = (array.astype(jnp.bfloat16) for array in random_inputs(2, 2, scale=4.0, width=8))
    mixed = jax.jit(lambda *arrays: attend(*arrays, Visibility(), implementation=implementation))(q, k, v)
    assert mixed.dtype == jnp.bfloat16
    expected = naive_attention(q, k, v, np.ones_like(SAME_SEGMENT))
    # Scores reach 40, where the nearest bfloat16 is up to 0.125 away: a weight would be off by an eighth.
    np.testing.assert_allclose(mixed.astype(jnp.float32), expected, rtol=0.01, atol=0.03)


@pytest.mark.parametrize("implementation", ["explicit", "xla"])
def test_a_query_that_may_see_nothing_is_finite_and_so_are_gradients(implementation):
    arrays = random_inputs(4, 2, scale=10.0)
    mask = SAME_SEGMENT.copy()
    mask[0, 2] = False

    def total(arrays):
        mixed = attend(*arrays, Visibility(mask), implementation=implementation)
        return mixed[0, 2].sum(), mixed

    gradients, mixed = jax.jit(jax.grad(total, has_aux=True))(arrays)
    chex.assert_tree_all_finite((gradients, mixed))
    np.testing.assert_allclose(mixed[0, 2, 0], arrays[2][0, :, 0].mean(axis=0), rtol=1e-4, atol=1e-5)


def test_cross_attention_equals_the_definition():
    config = ModelConfig(width=8, heads=4, kv_heads=2, head_width=6)
    layer, random = CrossAttention(config), np.random.default_rng(0)
    inputs, memory = random.normal(size=(2, 3, 8)), random.normal(size=(2, 6, 8))
    mask = segment_mask(SEGMENTS[:, :3], SEGMENTS)
    params = {
        name: {"kernel": random.normal(size=shape)}
        for name, shape in {"query": (8, 24), "key_value": (8, 24), "output": (24, 8)}.items()
    }

    @jax.jit
    def apply(inputs, memory):
        key_values = layer.apply({"params": params}, memory, method="key_values")
        return layer.apply({"params": params}, inputs, key_values, Visibility(mask))

    q = (inputs @ params["query"]["kernel"]).reshape(2, 3, 4, 6)
    k, v = np.moveaxis((memory @ params["key_value"]["kernel"]).reshape(2, 6, 2, 2, 6), 3, 0)
    expected = naive_attention(q, k, v, mask).reshape(2, 3, 24) @ params["output"]["kernel"]
    np.testing.assert_allclose(apply(inputs, memory), expected, rtol=1e-3, atol=1e-4)


def test_padding_is_a_segment_of_its_own():
    mask = segment_mask(np.array([[1, 2, 0]]), np.array([[1, 1, 2, 0]]))
    np.testing.assert_array_equal(mask[0], np.array([[1, 1, 0, 0], [0, 0, 1, 0], [0, 0, 0, 1]], bool))


@pytest.mark.parametrize("implementation", ["explicit", "xla"])
def test_kv_heads_that_do_not_divide_heads_are_an_error(implementation):
    q, k, v = random_inputs(4, 3)
    with pytest.raises(ValueError, match="3 key-value heads do not divide 4 query heads"):
        attend(q, k, v, Visibility(), implementation=implementation)


def test_without_positions_attention_does_not_know_the_order():
    layer = MultiHeadAttention(ModelConfig(width=8, heads=4, kv_heads=2, bias=True))
    random = np.random.default_rng(0)
    inputs = random.normal(size=(2, 6, 8)).astype(np.float32)
    shapes = jax.eval_shape(layer.init, jax.random.key(0), inputs, None, Visibility())
    variables = jax.tree.map(lambda leaf: random.normal(size=leaf.shape), shapes)
    apply = jax.jit(lambda inputs: layer.apply(variables, inputs, None, Visibility())[0])
    order = np.array([3, 0, 5, 1, 4, 2])
    chex.assert_trees_all_close(apply(inputs)[:, order], apply(inputs[:, order]), atol=1e-4)
