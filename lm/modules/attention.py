"""Attention.

Axes: B batch, T query positions, S key positions, N query heads, K key-value heads, H head width, D model width.
"""

import functools
import math
from collections.abc import Callable
from typing import Literal, cast

import chex
import flax.linen as nn
import flax.struct
import jax
import jax.numpy as jnp
from jax import Array
from jax.sharding import Mesh

from lm.modules.config import ModelConfig
from lm.modules.explicit_gradients import attend_bnth, with_gradients
from lm.modules.linear import Linear
from lm.modules.normalization import Normalization
from lm.modules.rotary import layer_frequencies, rotate
from lm.modules.splash import splash_attention
from lm.modules.visibility import Visibility


@flax.struct.dataclass
class KeyValues:
    """Keys and values to attend to: of the tokens so far (slot s holds position s), or of a memory.

    Heads come before slots, so that a step of decoding reads each head's slots in one piece.

    Attributes:
      keys_BKSH: keys, rotated if positions are rotary.
      values_BKSH: values.
    """

    keys_BKSH: Array
    values_BKSH: Array

    @classmethod
    def empty(cls, config: ModelConfig, batch: int, length: int) -> "KeyValues":
        """Room for `length` positions of `batch` sequences."""
        zeros = jnp.zeros((batch, config.num_kv_heads, length, config.size_per_head), config.compute_dtype)
        return cls(zeros, zeros)

    def write(self, keys_BTKH: Array, values_BTKH: Array, positions_BT: Array) -> "KeyValues":
        """A copy with the given keys and values written at their positions."""
        rows_B1 = jnp.arange(positions_BT.shape[0])[:, None]
        return KeyValues(
            self.keys_BKSH.at[rows_B1, :, positions_BT].set(keys_BTKH),
            self.values_BKSH.at[rows_B1, :, positions_BT].set(values_BTKH),
        )

    def with_length(self, length: int) -> "KeyValues":
        """A copy with empty room after the slots, up to this length."""
        return jax.tree.map(lambda array: _padded(array, -2, length), self)

    @property
    def by_slot(self) -> tuple[Array, Array]:
        """Keys and values as `attend` takes them, each [B, S, K, H]."""
        return jnp.swapaxes(self.keys_BKSH, 1, 2), jnp.swapaxes(self.values_BKSH, 1, 2)


def _padded(array: Array, axis: int, length: int) -> Array:
    widths = [(0, 0)] * array.ndim
    widths[axis] = (0, length - array.shape[axis])
    return jnp.pad(array, widths)


@flax.struct.dataclass
class AttentionDropout:
    """Dropout of attention probabilities (Srivastava et al. 2014).

    Attributes:
      key: of the random numbers.
      rate: the share that is dropped, in (0, 1).
    """

    key: Array
    rate: float = flax.struct.field(pytree_node=False)


def attend(
    q_BTNH: Array,
    k_BSKH: Array,
    v_BSKH: Array,
    visibility: Visibility,
    *,
    implementation: str,
    gradients: str = "explicit",
    scale: float | None = None,
    softcap: float | None = None,
    dropout: AttentionDropout | None = None,
    mesh: Mesh | None = None,
) -> Array:
    """Scaled dot-product attention with grouped key-value heads (Vaswani et al. 2017; Ainslie et al. 2023).

    Args:
      q_BTNH: queries. K must divide N.
      k_BSKH: keys.
      v_BSKH: values.
      visibility: what a query may see. A query that may see nothing gets the mean of all values: meaningless, but
        finite.
      implementation: "explicit", "xla", "cudnn" or "splash". `lm.modules.attention_choice` says what each cannot do.
      gradients: for implementation "explicit": "explicit" or "derived", as in `ModelConfig.gradients`.
      scale: the factor of the scores. None: 1 / sqrt(H).
      softcap: for implementations "explicit" and "splash": scores become `softcap * tanh(score / softcap)`. None: they
        stay.
      dropout: for implementation "explicit": of the probabilities. None: they stay.
      mesh: for implementation "splash": of devices, or None for one.

    Returns:
      Values mixed for each query, [B, T, N, H], in the dtype of `v_BSKH`. Scores are summed, and their softmax taken,
      in float32.

    Raises:
      ValueError: if K does not divide N.
    """
    if q_BTNH.shape[2] % k_BSKH.shape[2]:
        raise ValueError(f"{k_BSKH.shape[2]} key-value heads do not divide {q_BTNH.shape[2]} query heads")
    if implementation == "splash":
        return splash_attention(q_BTNH, k_BSKH, v_BSKH, visibility, scale=scale, softcap=softcap, mesh=mesh)
    # After a stack has done it for its layers this changes nothing.
    visibility = visibility.as_masks(q_BTNH.shape[1], k_BSKH.shape[1], keep_window=implementation == "cudnn")
    visibility = visibility.of_layer(True)
    if implementation == "explicit":
        attend_heads = with_gradients(attend_bnth, gradients)
        return _attend_explicitly(q_BTNH, k_BSKH, v_BSKH, visibility, attend_heads, scale, softcap, dropout)
    # cuDNN takes a mask only with its query axis written out and one head axis: [B, 1, T, S].
    mask_B1TS = None if visibility.mask_BTS is None else visibility.mask_BTS[:, None, :, :]
    bias_BNTS = visibility.bias_BNTS
    if bias_BNTS is not None and implementation == "cudnn":
        bias_BNTS = bias_BNTS.astype(q_BTNH.dtype)  # cuDNN accepts no other dtype
    return jax.nn.dot_product_attention(
        q_BTNH,
        k_BSKH,
        v_BSKH,
        bias=bias_BNTS,
        mask=mask_B1TS,
        is_causal=visibility.causal,
        local_window_size=None if visibility.window is None else (visibility.window, 0),
        scale=scale,
        implementation=cast(Literal["xla", "cudnn"], implementation),
    )


def _attend_explicitly(
    q_BTNH: Array,
    k_BSKH: Array,
    v_BSKH: Array,
    visibility: Visibility,
    attend_heads: Callable[..., Array],
    scale: float | None,
    softcap: float | None,
    dropout: AttentionDropout | None,
) -> Array:
    batch, length, heads, head_width = q_BTNH.shape
    keys, kv_heads = k_BSKH.shape[1:3]
    mask_BTS, bias_BNTS = visibility.mask_BTS, visibility.bias_BNTS
    mask_BTS = jnp.ones((1, length, keys), bool) if mask_BTS is None else mask_BTS
    if visibility.causal:
        mask_BTS = mask_BTS & jnp.tril(jnp.ones((length, keys), bool))[None]
    # Query heads that share a key-value head become one head with correspondingly more positions.
    group = heads // kv_heads
    q_BKRH = q_BTNH.reshape(batch, length, kv_heads, group, head_width).transpose(0, 2, 3, 1, 4)
    q_BKRH = q_BKRH.reshape(batch, kv_heads, group * length, head_width)
    # Low enough to vanish in the softmax; adding it is cheaper than a select.
    hidden_B1RS = jnp.tile(jnp.where(mask_BTS, 0.0, -1e30), (1, group, 1))[:, None]
    bias_BKRS = None if bias_BNTS is None else bias_BNTS.reshape(-1, kv_heads, group * length, keys)
    k_BKSH, v_BKSH = k_BSKH.transpose(0, 2, 1, 3), v_BSKH.transpose(0, 2, 1, 3)
    if dropout is not None:
        kept_BKRS = jax.random.bernoulli(dropout.key, 1 - dropout.rate, (batch, kv_heads, group * length, keys))
        mixed_BKRH = attend_heads(
            q_BKRH, k_BKSH, v_BKSH, hidden_B1RS, bias_BKRS, scale, softcap, kept_BKRS, dropout.rate
        )
    else:
        if length == 1:
            attend_heads = _attend_from_one_place
        mixed_BKRH = attend_heads(q_BKRH, k_BKSH, v_BKSH, hidden_B1RS, bias_BKRS, scale, softcap)
    mixed_BKGTH = mixed_BKRH.reshape(batch, kv_heads, group, length, head_width)
    return mixed_BKGTH.transpose(0, 3, 1, 2, 4).reshape(batch, length, heads, head_width)


def _attend_from_one_place(
    q_BKRH: Array,
    k_BKSH: Array,
    v_BKSH: Array,
    mask_bias: Array,
    trained_bias: Array | None,
    scale: float | None,
    softcap: float | None,
) -> Array:
    """As `attend_bnth`, as products and sums of elements, which read the keys of a few queries faster on CPU."""
    scale = scale or 1 / math.sqrt(q_BKRH.shape[-1])
    q_BKR1H, k_BK1SH = q_BKRH[:, :, :, None].astype(jnp.float32), k_BKSH[:, :, None].astype(jnp.float32)
    scores_BKRS = (q_BKR1H * k_BK1SH).sum(axis=-1) * scale
    if softcap is not None:
        scores_BKRS = softcap * jnp.tanh(scores_BKRS / softcap)
    scores_BKRS += mask_bias if trained_bias is None else mask_bias + trained_bias
    probabilities_BKRS = jax.nn.softmax(scores_BKRS, axis=-1)
    mixed_BKRH = (probabilities_BKRS[..., None] * v_BKSH[:, :, None].astype(jnp.float32)).sum(axis=-2)
    return mixed_BKRH.astype(v_BKSH.dtype)


class _Attending(nn.Module):
    """What attention layers share.

    Attributes:
      config: its shape.
      mesh: of devices, with axes `data`, `fsdp` and `tensor`, or None for one device.
    """

    config: ModelConfig
    mesh: Mesh | None = None

    def _attend(self, q_BTNH: Array, k_BSKH: Array, v_BSKH: Array, visibility: Visibility) -> Array:
        """`attend` by the config's settings."""
        config, rate = self.config, self.config.attention_dropout
        drops = rate > 0 and self.has_rng("dropout")
        return attend(
            q_BTNH,
            k_BSKH,
            v_BSKH,
            visibility,
            implementation=visibility.implementation,
            gradients=config.gradients,
            scale=config.attention_scale,
            softcap=config.attention_softcap,
            dropout=AttentionDropout(self.make_rng("dropout"), rate) if drops else None,
            mesh=self.mesh,
        )


class MultiHeadAttention(_Attending):
    """Self-attention, with rotary positions, grouped key-value heads and normalized queries and keys if configured."""

    @nn.compact
    def __call__(
        self,
        inputs_BTD: Array,
        positions_BT: Array | None,
        visibility: Visibility,
        cache: KeyValues | None = None,
        local: bool | Array = False,
    ) -> tuple[Array, KeyValues | None]:
        """Attends over the positions.

        Args:
          inputs_BTD: the source of queries, keys and values.
          positions_BT: for rotary embedding and for the cache; None: 0 to T - 1.
          visibility: what a query may see. With a cache, S is the cache's length and the mask must include causality.
          cache: keys and values of earlier tokens, or None to attend within the inputs only.
          local: whether this layer sees only a window; an array where layers are scanned.

        Returns:
          [B, T, D] to be added to the residual stream, and the cache with these tokens written into it.
        """
        config = self.config
        batch, length, _ = inputs_BTD.shape

        kv_heads, head_width = config.num_kv_heads, config.size_per_head
        group = config.heads // kv_heads
        # One product for all three: wide matrices run faster. Columns are grouped by key-value head (its query heads,
        # its key, its value), so that a mesh that splits key-value heads splits this matrix without moving data.
        features = kv_heads * (group + 2) * head_width
        projected_BTF = Linear(config, features, use_bias=config.has_attention_bias, name="query_key_value")(inputs_BTD)
        projected_BTKGH = projected_BTF.reshape(batch, length, kv_heads, group + 2, head_width)
        # The gradient of a split is one concatenation; that of three slices would be a sum of three padded arrays.
        q_BTKGH, k_BTK1H, v_BTK1H = jax.lax.split(projected_BTKGH, (group, 1, 1), axis=3)
        q_BTNH = q_BTKGH.reshape(batch, length, config.heads, head_width)
        k_BSKH, v_BSKH = k_BTK1H.squeeze(3), v_BTK1H.squeeze(3)
        if config.query_key_norm != "none":
            q_BTNH = self._normalized(q_BTNH, "query_norm")
            k_BSKH = self._normalized(k_BSKH, "key_norm")
        if config.positions == "rotary":
            rotary_positions = jnp.arange(length)[None, :] if positions_BT is None else positions_BT
            frequencies_R = layer_frequencies(config, local)
            q_BTNH = rotate(q_BTNH, rotary_positions, frequencies_R)
            k_BSKH = rotate(k_BSKH, rotary_positions, frequencies_R)
        if cache is not None:
            chex.assert_shape(visibility.mask_BTS, (batch, length, cache.keys_BKSH.shape[2]))
            assert positions_BT is not None, "a cache needs the positions of its tokens"
            cache = cache.write(k_BSKH, v_BSKH, positions_BT)
            k_BSKH, v_BSKH = cache.by_slot
        mixed_BTNH = self._attend_locally(q_BTNH, k_BSKH, v_BSKH, visibility, local)
        mixed_BTE = mixed_BTNH.reshape(batch, length, config.heads * head_width)
        return Linear(config, config.width, to_residual=True, name="output")(mixed_BTE), cache

    def _attend_locally(
        self, q_BTNH: Array, k_BSKH: Array, v_BSKH: Array, visibility: Visibility, local: bool | Array
    ) -> Array:
        if isinstance(local, bool) or visibility.window is None:
            return self._attend(q_BTNH, k_BSKH, v_BSKH, visibility.of_layer(local))
        # A kernel's window is not data: scanned layers of both kinds have a kernel for each.
        near, far = (functools.partial(self._attend, visibility=visibility.of_layer(kind)) for kind in (True, False))
        return jax.lax.cond(local, near, far, q_BTNH, k_BSKH, v_BSKH)

    def _normalized(self, heads_BTNH: Array, name: str) -> Array:
        """Queries or keys, normalized by head or over all of them, with a scale for each number."""
        norm = Normalization(self.config, name=name)
        if self.config.query_key_norm == "head":
            return norm(heads_BTNH)
        return norm(heads_BTNH.reshape(*heads_BTNH.shape[:2], -1)).reshape(heads_BTNH.shape)


class CrossAttention(_Attending):
    """Attention from one sequence to another, the memory, without positions (Vaswani et al. 2017, section 3.2.3)."""

    def setup(self):
        """Makes the maps."""
        config = self.config
        bias = config.has_attention_bias
        self.query = Linear(config, config.heads * config.size_per_head, use_bias=bias)
        self.key_value = Linear(config, config.num_kv_heads * 2 * config.size_per_head, use_bias=bias)
        self.output = Linear(config, config.width, to_residual=True)

    def key_values(self, memory_BSD: Array) -> KeyValues:
        """The memory's keys and values, computed once for all queries."""
        batch, length, _ = memory_BSD.shape
        projected_BSF = self.key_value(memory_BSD)
        # Grouped by key-value head, for the reason given in `MultiHeadAttention`.
        shape = (batch, length, self.config.num_kv_heads, 2, self.config.size_per_head)
        k_BSK1H, v_BSK1H = jax.lax.split(projected_BSF.reshape(shape), (1, 1), axis=3)
        return KeyValues(jnp.swapaxes(k_BSK1H.squeeze(3), 1, 2), jnp.swapaxes(v_BSK1H.squeeze(3), 1, 2))

    def __call__(self, inputs_BTD: Array, memory: KeyValues, visibility: Visibility) -> Array:
        """Returns [B, T, D], to be added to the residual stream, attending to what is visible of `memory`."""
        config = self.config
        batch, length, _ = inputs_BTD.shape
        q_BTNH = self.query(inputs_BTD).reshape(batch, length, config.heads, config.size_per_head)
        mixed_BTNH = self._attend(q_BTNH, *memory.by_slot, visibility)
        return self.output(mixed_BTNH.reshape(batch, length, -1))
