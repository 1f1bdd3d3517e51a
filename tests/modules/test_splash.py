"""Splash attention equals explicit attention: its kernel runs interpreted, on one device and on a mesh."""

import functools

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import AxisType

from lm.modules import splash
from lm.modules.attention import attend
from lm.modules.splash import splash_attention
from lm.modules.visibility import Segments, Visibility

B, T, H = 4, 256, 8
# Documents that end inside of blocks, and padding.
SEGMENTS = np.sort(np.random.default_rng(1).integers(1, 4, size=(B, T)), axis=1).astype(np.int32)
SEGMENTS[1, 200:] = 0
WITHIN = Segments(SEGMENTS, SEGMENTS)
CASES = {
    "causal": Visibility(causal=True),
    "both directions": Visibility(),
    "segments": Visibility(segments=WITHIN),
    "window in both directions": Visibility(window=70),
    "everything": Visibility(causal=True, window=40, segments=WITHIN),
}


@pytest.fixture(autouse=True)
def small_blocks(monkeypatch):
    monkeypatch.setattr(splash, "_LARGEST_BLOCK", 128)


def values_and_gradients(function, arrays, visibility, **how):
    """Of a sum that weighs every output differently."""
    weights = jnp.asarray(np.random.default_rng(2).normal(size=arrays[0].shape), jnp.float32)

    def total(*arrays):
        mixed = function(*arrays, visibility, **how)
        return (weights * mixed.astype(jnp.float32)).sum(), mixed

    (_, mixed), gradients = jax.jit(jax.value_and_grad(total, argnums=(0, 1, 2), has_aux=True))(*arrays)
    return mixed, gradients


def inputs(heads=4, kv_heads=2, keys=T):
    random = np.random.default_rng(0)
    shapes = [(B, T, heads, H), (B, keys, kv_heads, H), (B, keys, kv_heads, H)]
    return [jnp.asarray(random.normal(size=shape), jnp.float32) for shape in shapes]


def assert_equal(visibility, arrays, scale=None, softcap=None, **how):
    explicit = functools.partial(attend, implementation="explicit")
    interpreted = functools.partial(splash_attention, interpret=True, **how)
    actual, expected = (
        values_and_gradients(function, arrays, visibility, scale=scale, softcap=softcap)
        for function in (interpreted, explicit)
    )
    chex.assert_trees_all_close(actual, expected, rtol=1e-5, atol=1e-5)
    assert all(np.abs(gradient).max() > 0.1 for gradient in expected[1])


@pytest.mark.slow
@pytest.mark.parametrize("softcap", [None, 0.5])
@pytest.mark.parametrize("case", CASES)
def test_it_equals_explicit_attention_with_its_gradients(case, softcap):
    assert_equal(CASES[case], inputs(), scale=0.6, softcap=softcap)


def test_on_a_mesh_it_equals_explicit_attention_with_its_gradients():
    mesh = jax.make_mesh((2, 2, 2), ("data", "fsdp", "tensor"), (AxisType.Auto,) * 3)
    assert_equal(CASES["everything"], inputs(), softcap=0.5, mesh=mesh)


@pytest.mark.slow
def test_a_memory_of_another_length_equals_explicit_attention():
    keys = np.concatenate([SEGMENTS, SEGMENTS[:, :128]], axis=1)
    assert_equal(Visibility(segments=Segments(SEGMENTS, keys)), inputs(keys=T + 128))
    # Padding may see nothing of a memory without padding. It has no weight, but NaN has even without weight.
    unpadded = Visibility(segments=Segments(SEGMENTS, np.maximum(keys, 1)))
    chex.assert_tree_all_finite(values_and_gradients(splash_attention, inputs(keys=T + 128), unpadded, interpret=True))


def test_blocks_divide_lengths(monkeypatch):
    monkeypatch.setattr(splash, "_LARGEST_BLOCK", 512)
    assert [splash._block(length) for length in (128, 256, 640, 1024, 1152)] == [128, 256, 128, 512, 384]
