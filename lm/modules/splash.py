"""Splash attention: the fused, block-sparse attention for TPUs that JAX ships, on one device or a mesh.

Axes: B batch, T query positions, S key positions, N query heads, K key-value heads, H head width.
"""

import functools
import math
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jax import Array
from jax.sharding import Mesh
from jax.sharding import PartitionSpec as P

from lm.modules.attention_choice import SPLASH_BLOCK
from lm.modules.visibility import Segments, Visibility

# The kernel keeps a block of scores in fast memory; larger blocks have fewer of them to load. Not tuned on a TPU.
_LARGEST_BLOCK = 512


def splash_attention(
    q_BTNH: Array,
    k_BSKH: Array,
    v_BSKH: Array,
    visibility: Visibility,
    *,
    scale: float | None = None,
    softcap: float | None = None,
    mesh: Mesh | None = None,
    interpret: bool = False,
) -> Array:
    """Attention with grouped key-value heads by a Pallas kernel, which never holds all scores (Dao et al. 2022).

    Args:
      q_BTNH: queries. Like S, T is a multiple of `SPLASH_BLOCK`.
      k_BSKH: keys. K divides N.
      v_BSKH: values.
      visibility: segments, window and causality; no mask or bias. A query that may see nothing gets a finite mixture of
        values, and gradients that are finite but meaningless.
      scale: the factor of the scores. None: 1 / sqrt(H).
      softcap: scores become `softcap * tanh(score / softcap)`. None: they stay.
      mesh: of devices with axes `data`, `fsdp` and `tensor`: the first two divide B, the third divides N and K.
      interpret: whether to run the kernel as plain JAX, slowly, on any device, for tests.

    Returns:
      Values mixed for each query, [B, T, N, H], in the dtype of `q_BTNH`.
    """
    assert all(array is None for array in (visibility.mask_BTS, visibility.near_BTS, visibility.bias_BNTS))

    def of_device(q_BNTH: Array, k_BKSH: Array, v_BKSH: Array, segments: Segments | None) -> Array:
        lengths = (q_BNTH.shape[2], k_BKSH.shape[2])
        kernel = _make_kernel(q_BNTH.shape[1], lengths, visibility, softcap, interpret)
        return jax.vmap(functools.partial(_of_row, kernel))(q_BNTH, k_BKSH, v_BKSH, segments)

    of_devices: Callable[..., Array] = of_device
    if mesh is not None and mesh.size > 1:
        heads, rows = P(("data", "fsdp"), "tensor"), P(("data", "fsdp"))
        # The kernel does not tell over which axes its result varies: over all of them.
        of_devices = jax.shard_map(
            of_device, mesh=mesh, in_specs=(heads, heads, heads, rows), out_specs=heads, check_vma=False
        )
    # The kernel has no factor of its own.
    scale = scale or 1 / math.sqrt(q_BTNH.shape[-1])
    scaled_BTNH = (q_BTNH.astype(jnp.float32) * scale).astype(q_BTNH.dtype)
    q_BNTH, k_BKSH, v_BKSH = (jnp.swapaxes(array, 1, 2) for array in (scaled_BTNH, k_BSKH, v_BSKH))
    return jnp.swapaxes(of_devices(q_BNTH, k_BKSH, v_BKSH, visibility.segments), 1, 2)


def _of_row(kernel: Any, q_NTH: Array, k_KSH: Array, v_KSH: Array, segments: Segments | None) -> Array:
    from jax.experimental.pallas.ops.tpu import splash_attention as splash

    ids = None if segments is None else splash.SegmentIds(segments.queries_BT, segments.keys_BS)
    return kernel(q_NTH, k_KSH, v_KSH, ids)


def _make_kernel(
    heads: int, lengths: tuple[int, int], visibility: Visibility, softcap: float | None, interpret: bool
) -> Any:
    # Imported here because other devices never need it.
    from jax.experimental.pallas.ops.tpu import splash_attention as splash

    mask: splash.Mask
    if visibility.window is None:
        mask = splash.CausalMask(lengths) if visibility.causal else splash.FullMask(lengths)
    else:
        window = (visibility.window, 0 if visibility.causal else visibility.window)
        mask = splash.LocalMask(lengths, window, offset=0)
    queries, keys = (_block(length) for length in lengths)
    blocks = splash.BlockSizes(
        block_q=queries,
        block_kv=keys,
        block_q_dkv=queries,
        block_kv_dkv=keys,
        block_q_dq=queries,
        block_kv_dq=keys,
    )
    return splash.make_splash_mha(
        splash.MultiHeadMask([mask] * heads),
        block_sizes=blocks,
        head_shards=1,
        q_seq_shards=1,
        attn_logits_soft_cap=softcap,
        interpret=interpret,
    )


def _block(length: int) -> int:
    """The largest block that divides a length."""
    return next(size for size in range(_LARGEST_BLOCK, 0, -SPLASH_BLOCK) if length % size == 0)
