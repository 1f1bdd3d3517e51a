"""The decoder: a stack of pre-norm residual blocks.

Axes: B batch, T query positions, S key positions, D model width, L layers.
"""

from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
from jax import Array

from lm.modules.attention import KeyValueCache, MultiHeadAttention
from lm.modules.config import ModelConfig
from lm.modules.dropout import Dropout
from lm.modules.feed_forward import FeedForward
from lm.modules.normalization import Normalization

Caches = Any  # a tuple of one KeyValueCache a layer, or with `scan_layers` one whose arrays lead with L


class DecoderBlock(nn.Module):
    """Attention, then feed-forward, each added to the stream it read through a normalization (Radford et al. 2019)."""

    config: ModelConfig

    @nn.compact
    def __call__(
        self,
        stream_BTD: Array,
        positions_BT: Array | None,
        mask_BTS: Array | None,
        cache: KeyValueCache | None,
    ) -> tuple[Array, KeyValueCache | None]:
        """Returns the stream after this block, [B, T, D], and the block's cache."""
        config = self.config
        normalized_BTD = Normalization(config, name="attention_norm")(stream_BTD)
        mixed_BTD, cache = MultiHeadAttention(config, name="attention")(normalized_BTD, positions_BT, mask_BTS, cache)
        stream_BTD = stream_BTD + Dropout(config)(mixed_BTD)
        normalized_BTD = Normalization(config, name="feed_forward_norm")(stream_BTD)
        return stream_BTD + Dropout(config)(FeedForward(config, name="feed_forward")(normalized_BTD)), cache


class Decoder(nn.Module):
    """L blocks and a last normalization, unrolled or scanned, rematerialized or not."""

    config: ModelConfig

    @nn.compact
    def __call__(
        self, stream_BTD: Array, positions_BT: Array | None, mask_BTS: Array | None, caches: Caches | None
    ) -> tuple[Array, Caches | None]:
        """Returns the normalized stream after the last block, [B, T, D], and the caches."""
        config = self.config
        block = rematerialized(DecoderBlock, config)
        if config.scan_layers:
            scanned = nn.scan(
                block,
                variable_axes={"params": 0},
                split_rngs={"params": True, "dropout": True},
                in_axes=(nn.broadcast, nn.broadcast, 0),
                length=config.layers,
            )
            stream_BTD, caches = scanned(config, name="layers")(stream_BTD, positions_BT, mask_BTS, caches)
        else:
            after = []
            for layer in range(config.layers):
                cache = None if caches is None else caches[layer]
                stream_BTD, cache = block(config, name=f"layer_{layer}")(stream_BTD, positions_BT, mask_BTS, cache)
                after.append(cache)
            caches = None if caches is None else tuple(after)
        return Normalization(config, name="final_norm")(stream_BTD), caches


def rematerialized(block: type[nn.Module], config: ModelConfig) -> type[nn.Module]:
    """The block, with as much of its forward pass computed again in the backward pass as the config says."""
    if config.rematerialize == "none":
        return block
    policies = {"dots": jax.checkpoint_policies.dots_with_no_batch_dims_saveable, "full": None}
    # Outside a loop XLA would find both computations equal and do one, which undoes the saving.
    return nn.remat(block, policy=policies[config.rematerialize], prevent_cse=not config.scan_layers)


def empty_caches(config: ModelConfig, batch: int, length: int) -> Caches:
    """Caches of `length` positions for every layer, in the form that `Decoder` takes."""
    caches = tuple(KeyValueCache.empty(config, batch, length) for _ in range(config.layers))
    if config.scan_layers:
        return jax.tree.map(lambda *layers: jnp.stack(layers), *caches)
    return caches
