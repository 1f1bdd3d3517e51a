"""Relative positions as attention biases (Raffel et al. 2020, section 2.1; T5).

Axes: B batch, T query positions, S key positions, N query heads, R buckets.
"""

import math

import flax.linen as nn
import jax.numpy as jnp
import numpy as np
from jax import Array

from lm.errors import UserError
from lm.modules.config import ModelConfig


class RelativePositionBias(nn.Module):
    """A learned bias for each head and distance bucket, shared by all layers of a stack.

    Attributes:
      config: the number of heads and buckets.
      bidirectional: whether keys after the query have separate buckets. Otherwise they share that of distance 0.
    """

    config: ModelConfig
    bidirectional: bool

    @nn.compact
    def __call__(self, query_positions_BT: Array, key_positions_S: Array) -> Array:
        """Returns the biases of the attention scores, [B, N, T, S], in float32."""
        config = self.config
        initializer = nn.initializers.normal(config.initializer_range)
        shape = (config.relative_buckets, config.heads)
        table_RN = self.param("embedding", initializer, shape, config.storage_dtype).astype(jnp.float32)
        distances_BTS = key_positions_S[None, None, :] - query_positions_BT[:, :, None]
        buckets_BTS = relative_buckets(
            distances_BTS, self.bidirectional, config.relative_buckets, config.relative_max_distance
        )
        return jnp.moveaxis(jnp.take(table_RN, buckets_BTS, axis=0), -1, 1)


def relative_buckets(distances: Array, bidirectional: bool, buckets: int, max_distance: int) -> Array:
    """The bucket of each distance (key position minus query position): one each for small ones, then logarithmic.

    Args:
      distances: integers of any shape.
      bidirectional: whether the upper half of the buckets is for keys after the query. Otherwise these share bucket 0.
      buckets: R, the number of buckets.
      max_distance: distances from here on share the last bucket of their direction.

    Returns:
      Buckets in [0, R), in the shape of `distances`.

    Raises:
      UserError: if there are too few buckets, or too many for the maximum distance.
    """
    per_direction = buckets // 2 if bidirectional else buckets
    table = jnp.asarray(_bucket_of_distance(per_direction, max_distance))
    backward = jnp.take(table, jnp.clip(-distances, 0, max_distance))
    if not bidirectional:
        return backward
    return jnp.where(distances > 0, per_direction + jnp.take(table, jnp.clip(distances, 0, max_distance)), backward)


def _bucket_of_distance(buckets: int, max_distance: int) -> np.ndarray:
    """Buckets of the distances 0 to `max_distance` in one direction."""
    exact = buckets // 2
    if not 0 < exact < max_distance:
        raise UserError(
            f"relative positions with {buckets} buckets for each direction and distances up to {max_distance} leave "
            "none for small ones or none for large ones: change config.model.relative_buckets or "
            "config.model.relative_max_distance"
        )
    distances = np.arange(max_distance + 1)
    # In float32, like T5, whose rounding decides borderline cases.
    share = np.log(np.maximum(distances, 1).astype(np.float32) / exact) / math.log(max_distance / exact)
    logarithmic = exact + (share * (buckets - exact)).astype(np.int32)
    return np.where(distances < exact, distances, np.minimum(logarithmic, buckets - 1)).astype(np.int32)
