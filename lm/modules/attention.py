"""Attention.

Axes: B batch, T query positions, S key positions, N query heads, K key-value heads, H head width, D model width.
"""

import chex
import flax.linen as nn
import flax.struct
import jax
import jax.numpy as jnp
from jax import Array

from lm.modules.config import ModelConfig
from lm.modules.embeddings import rotate
from lm.modules.explicit_gradients import attend_bnth
from lm.modules.linear import Linear


@flax.struct.dataclass
class KeyValueCache:
    """Keys and values of the tokens that a layer has seen. Slot s holds position s.

    Attributes:
      keys_BSKH: rotated keys.
      values_BSKH: values.
    """

    keys_BSKH: Array
    values_BSKH: Array

    @classmethod
    def empty(cls, config: ModelConfig, batch: int, length: int) -> "KeyValueCache":
        """A cache for `length` positions of `batch` sequences."""
        zeros = jnp.zeros((batch, length, config.num_kv_heads, config.size_per_head), config.compute_dtype)
        return cls(zeros, zeros)

    def write(self, keys_BTKH: Array, values_BTKH: Array, positions_BT: Array) -> "KeyValueCache":
        """The cache with these keys and values at their positions."""
        rows_B1 = jnp.arange(positions_BT.shape[0])[:, None]
        return KeyValueCache(
            self.keys_BSKH.at[rows_B1, positions_BT].set(keys_BTKH),
            self.values_BSKH.at[rows_B1, positions_BT].set(values_BTKH),
        )


def attend(
    q_BTNH: Array, k_BSKH: Array, v_BSKH: Array, mask_BTS: Array | None, *, causal: bool, implementation: str
) -> Array:
    """Scaled dot-product attention with grouped key-value heads (Vaswani et al. 2017; Ainslie et al. 2023).

    Args:
      q_BTNH: queries. K must divide N.
      k_BSKH: keys.
      v_BSKH: values.
      mask_BTS: True where query t may see key s; every query must see at least one key. None: it sees all.
      causal: whether query t sees keys up to t alone, besides what the mask says.
      implementation: "explicit", "xla" or "cudnn".

    Returns:
      Values mixed for each query, [B, T, N, H], in the dtype of `v_BSKH`. Scores are summed, and their softmax taken,
      in float32.

    Raises:
      ValueError: if K does not divide N.
    """
    if q_BTNH.shape[2] % k_BSKH.shape[2]:
        raise ValueError(f"{k_BSKH.shape[2]} key-value heads do not divide {q_BTNH.shape[2]} query heads")
    if implementation == "explicit":
        return _attend_explicitly(q_BTNH, k_BSKH, v_BSKH, mask_BTS, causal)
    # cuDNN takes a mask only with its query axis written out and one head axis: [B, 1, T, S].
    mask_B1TS = None if mask_BTS is None else mask_BTS[:, None, :, :]
    return jax.nn.dot_product_attention(
        q_BTNH, k_BSKH, v_BSKH, mask=mask_B1TS, is_causal=causal, implementation=implementation
    )


def _attend_explicitly(q_BTNH: Array, k_BSKH: Array, v_BSKH: Array, mask_BTS: Array | None, causal: bool) -> Array:
    batch, length, heads, head_width = q_BTNH.shape
    keys, kv_heads = k_BSKH.shape[1:3]
    mask_BTS = jnp.ones((1, length, keys), bool) if mask_BTS is None else mask_BTS
    if causal:
        mask_BTS = mask_BTS & jnp.tril(jnp.ones((length, keys), bool))[None]
    # Query heads that share a key-value head become one head with so many times the positions.
    group = heads // kv_heads
    q_BKRH = q_BTNH.reshape(batch, length, kv_heads, group, head_width).transpose(0, 2, 3, 1, 4)
    q_BKRH = q_BKRH.reshape(batch, kv_heads, group * length, head_width)
    # Low enough to vanish in the softmax, and adding it is cheaper than choosing.
    bias_B1RS = jnp.tile(jnp.where(mask_BTS, 0.0, -1e30), (1, group, 1))[:, None]
    mixed_BKRH = attend_bnth(q_BKRH, k_BSKH.transpose(0, 2, 1, 3), v_BSKH.transpose(0, 2, 1, 3), bias_B1RS)
    mixed_BKGTH = mixed_BKRH.reshape(batch, kv_heads, group, length, head_width)
    return mixed_BKGTH.transpose(0, 3, 1, 2, 4).reshape(batch, length, heads, head_width)


class MultiHeadAttention(nn.Module):
    """Self-attention with rotary positions and grouped key-value heads where the config asks for them."""

    config: ModelConfig
    causal: bool = True

    @nn.compact
    def __call__(
        self,
        inputs_BTD: Array,
        positions_BT: Array | None = None,
        mask_BTS: Array | None = None,
        cache: KeyValueCache | None = None,
    ) -> tuple[Array, KeyValueCache | None]:
        """Mixes positions.

        Args:
          inputs_BTD: normalized residual stream.
          positions_BT: for rotary embedding and for the cache; None: 0 to T - 1.
          mask_BTS: where a query may look. With a cache S is the cache's length and the mask must carry causality.
          cache: what earlier tokens left, or None to attend within the inputs alone.

        Returns:
          [B, T, D] to be added to the residual stream, and the cache with these tokens written into it.
        """
        config = self.config
        batch, length, _ = inputs_BTD.shape

        kv_heads, head_width = config.num_kv_heads, config.size_per_head
        group = config.heads // kv_heads
        # One product for all three: wide ones run faster. For each key-value head come its query heads, its key and its
        # value, so that a mesh which splits key-value heads splits this matrix without moving anything.
        features = kv_heads * (group + 2) * head_width
        projected_BTF = Linear(config, features, name="query_key_value")(inputs_BTD)
        projected_BTKGH = projected_BTF.reshape(batch, length, kv_heads, group + 2, head_width)
        # Split, whose gradient is one concatenation; that of three slices would be a sum of three padded arrays.
        q_BTKGH, k_BTK1H, v_BTK1H = jax.lax.split(projected_BTKGH, (group, 1, 1), axis=3)
        q_BTNH = q_BTKGH.reshape(batch, length, config.heads, head_width)
        k_BSKH, v_BSKH = k_BTK1H.squeeze(3), v_BTK1H.squeeze(3)
        if config.positions == "rotary":
            rotary_positions = jnp.arange(length)[None, :] if positions_BT is None else positions_BT
            q_BTNH = rotate(q_BTNH, rotary_positions, config.rotary_base)
            k_BSKH = rotate(k_BSKH, rotary_positions, config.rotary_base)
        if cache is not None:
            chex.assert_shape(mask_BTS, (batch, length, cache.keys_BSKH.shape[1]))
            cache = cache.write(k_BSKH, v_BSKH, positions_BT)
            k_BSKH, v_BSKH = cache.keys_BSKH, cache.values_BSKH
        causal = self.causal and cache is None
        mixed_BTNH = attend(q_BTNH, k_BSKH, v_BSKH, mask_BTS, causal=causal, implementation=config.attention)
        mixed_BTE = mixed_BTNH.reshape(batch, length, config.heads * head_width)
        return Linear(config, config.width, to_residual=True, name="output")(mixed_BTE), cache
