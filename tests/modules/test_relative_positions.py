"""Relative positions: buckets by the published rule, and biases that layers of a stack share."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from lm.errors import UserError
from lm.modules.config import ModelConfig
from lm.modules.relative_positions import RelativePositionBias, relative_buckets


def test_buckets_by_hand():
    """Of 8 buckets and distances up to 16: four are exact, and the others double 4 every half octave."""
    backward = relative_buckets(-np.arange(20), False, 8, 16)
    assert backward.tolist() == [0, 1, 2, 3, 4, 4, 5, 5] + [6] * 4 + [7] * 8
    np.testing.assert_array_equal(relative_buckets(np.arange(20), False, 8, 16), 0)


def test_both_directions_have_buckets_of_their_own():
    distances = np.arange(-300, 301)
    buckets = np.asarray(relative_buckets(distances, True, 32, 128))
    assert set(buckets) == set(range(32)) - {16}, "a key after the query is never at distance 0"
    np.testing.assert_array_equal(buckets[distances > 0], 16 + buckets[distances < 0][::-1])
    assert (np.diff(buckets[distances <= 0]) <= 0).all()
    assert (buckets[distances <= -128] == 15).all()


@pytest.mark.parametrize("bidirectional", [True, False])
@pytest.mark.parametrize(("buckets", "max_distance"), [(32, 128), (8, 10), (64, 1000)])
def test_buckets_are_those_of_t5_in_transformers(bidirectional, buckets, max_distance):
    torch = pytest.importorskip("torch")
    modeling_t5 = pytest.importorskip("transformers.models.t5.modeling_t5")
    distances = np.arange(-1500, 1501)
    expected = modeling_t5.T5Attention._relative_position_bucket(
        torch.from_numpy(distances), bidirectional, buckets, max_distance
    )
    np.testing.assert_array_equal(relative_buckets(distances, bidirectional, buckets, max_distance), expected.numpy())


@pytest.mark.parametrize("bidirectional", [True, False])
def test_bias_is_the_row_of_the_bucket(bidirectional):
    config = ModelConfig(width=8, heads=2, positions="relative", relative_buckets=8, relative_max_distance=16)
    layer = RelativePositionBias(config, bidirectional)
    table = np.random.default_rng(0).normal(size=(8, 2)).astype(np.float32)
    queries, keys = np.array([[0, 5], [20, 3]]), np.arange(7)
    assert jax.eval_shape(layer.init, jax.random.key(0), queries, keys)["params"]["embedding"].shape == (8, 2)
    bias_BNTS = layer.apply({"params": {"embedding": table}}, queries, keys)
    assert bias_BNTS.shape == (2, 2, 2, 7)
    assert bias_BNTS.dtype == jnp.float32
    for b, n, t, s in np.ndindex(bias_BNTS.shape):
        bucket = relative_buckets(np.asarray(keys[s] - queries[b, t]), bidirectional, 8, 16)
        assert bias_BNTS[b, n, t, s] == table[bucket, n]


@pytest.mark.parametrize(("buckets", "max_distance"), [(1, 128), (32, 16)])
def test_impossible_buckets_are_named(buckets, max_distance):
    with pytest.raises(UserError, match=r"config\.model\.relative_buckets"):
        relative_buckets(np.arange(3), False, buckets, max_distance)
