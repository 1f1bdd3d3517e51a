"""The Transformer stack that all models here share: encoders, decoders, and decoders that attend to an encoder.

Axes: B batch, T query positions, S key positions, D model width, L layers.
"""

import dataclasses
from collections.abc import Callable

import flax.linen as nn
import flax.struct
import jax
import jax.numpy as jnp
from jax import Array

from lm.modules.attention import CrossAttention, KeyValues, MultiHeadAttention, Visibility
from lm.modules.config import ModelConfig
from lm.modules.dropout import Dropout
from lm.modules.feed_forward import FeedForward
from lm.modules.normalization import Normalization
from lm.modules.relative_positions import RelativePositionBias


@flax.struct.dataclass
class Memory:
    """What cross-attention reads.

    Attributes:
      states_BSD: the encoder's last hidden states; None if a cache holds their keys and values.
      mask_BTS: True where decoder token t may see encoder token s; None: everywhere.
    """

    states_BSD: Array | None
    mask_BTS: Array | None = None


@flax.struct.dataclass
class BlockCache:
    """The cache of one block while decoding.

    Attributes:
      tokens: keys and values of the tokens so far.
      memory: keys and values of the encoder's states; None without cross-attention.
    """

    tokens: KeyValues
    memory: KeyValues | None = None

    def with_length(self, length: int) -> "BlockCache":
        """With room for more tokens."""
        return dataclasses.replace(self, tokens=self.tokens.with_length(length))


@flax.struct.dataclass
class Caches:
    """The cache of a stack while decoding. Each row of the batch is independent of the others.

    Attributes:
      blocks: a tuple of one cache per layer, whose arrays have the leading axis B; with `scan_layers`, one cache whose
        arrays have the leading axes L and B.
      memory_mask_BS: True where the encoder's state is not padding; None: everywhere.
    """

    blocks: tuple[BlockCache, ...] | BlockCache
    memory_mask_BS: Array | None = None

    @property
    def length(self) -> int:
        """Maximum number of tokens."""
        first = self.blocks[0] if isinstance(self.blocks, tuple) else self.blocks
        return first.tokens.keys_BSKH.shape[-3]

    def visible_slots(self, positions_BT: Array) -> Array:
        """The mask, [B, T, S], by which tokens see the slots up to their own position."""
        return jnp.arange(self.length)[None, None, :] <= positions_BT[:, :, None]

    def take_rows(self, rows_B: Array) -> "Caches":
        """The caches of these rows of the batch, in this order; a row may come more than once (beam search)."""
        axis = 0 if isinstance(self.blocks, tuple) else 1
        blocks = jax.tree.map(lambda array: jnp.take(array, rows_B, axis=axis), self.blocks)
        return Caches(blocks, jax.tree.map(lambda array: jnp.take(array, rows_B, axis=0), self.memory_mask_BS))

    def with_length(self, length: int) -> "Caches":
        """The caches with empty room after the slots, up to this length."""
        if isinstance(self.blocks, tuple):
            return dataclasses.replace(self, blocks=tuple(block.with_length(length) for block in self.blocks))
        return dataclasses.replace(self, blocks=self.blocks.with_length(length))


class Block(nn.Module):
    """Self-attention, optional cross-attention, then feed-forward, each added to its input stream.

    Normalization comes before each sub-layer (Radford et al. 2019) or after each sum (Vaswani et al. 2017).
    """

    config: ModelConfig
    cross_attention: bool = False

    def setup(self):
        """Makes the parts."""
        config = self.config
        self.attention_norm, self.attention = Normalization(config), MultiHeadAttention(config)
        if self.cross_attention:
            self.memory_attention_norm, self.memory_attention = Normalization(config), CrossAttention(config)
        self.feed_forward_norm, self.feed_forward = Normalization(config), FeedForward(config)
        self.dropout = Dropout(config)

    def __call__(
        self,
        stream_BTD: Array,
        positions_BT: Array | None,
        visibility: Visibility,
        cache: BlockCache | None,
        memory: Memory | None,
    ) -> tuple[Array, BlockCache | None]:
        """Returns the stream after this block, [B, T, D], and the block's cache."""

        def attend_to_tokens(inputs_BTD: Array) -> Array:
            nonlocal cache
            tokens = None if cache is None else cache.tokens
            mixed_BTD, tokens = self.attention(inputs_BTD, positions_BT, visibility, tokens)
            cache = None if cache is None else dataclasses.replace(cache, tokens=tokens)
            return mixed_BTD

        def attend_to_memory(inputs_BTD: Array) -> Array:
            assert memory is not None, "cross-attention needs a memory"
            key_values = self.memory_attention.key_values(memory.states_BSD) if cache is None else cache.memory
            return self.memory_attention(inputs_BTD, key_values, memory.mask_BTS)

        stream_BTD = self._add(attend_to_tokens, self.attention_norm, stream_BTD)
        if self.cross_attention:
            stream_BTD = self._add(attend_to_memory, self.memory_attention_norm, stream_BTD)
        return self._add(self.feed_forward, self.feed_forward_norm, stream_BTD), cache

    def memory_key_values(self, memory_BSD: Array) -> tuple[Array, KeyValues]:
        """The memory unchanged, for the next block, and this block's keys and values for it."""
        return memory_BSD, self.memory_attention.key_values(memory_BSD)

    def _add(self, branch: Callable[[Array], Array], norm: Normalization, stream_BTD: Array) -> Array:
        if self.config.normalization_place == "before":
            return stream_BTD + self.dropout(branch(norm(stream_BTD)))
        return norm(stream_BTD + self.dropout(branch(stream_BTD)))


class Stack(nn.Module):
    """L blocks, and a final normalization if blocks normalize before: unrolled or scanned, optionally rematerialized.

    Attributes:
      config: its shape.
      causal: whether tokens see only earlier tokens, which determines the range of relative distances.
      cross_attention: whether each block also attends to a memory.
    """

    config: ModelConfig
    causal: bool
    cross_attention: bool = False

    def setup(self):
        """Makes the parts."""
        config = self.config
        block = rematerialized(Block, config)
        if config.scan_layers:
            self.layers = _scanned(block, config)(config, self.cross_attention)
        else:
            self.layer = [block(config, self.cross_attention) for _ in range(config.layers)]
        if config.positions == "relative":
            self.relative_positions = RelativePositionBias(config, bidirectional=not self.causal)
        if config.normalization_place == "before":
            self.final_norm = Normalization(config)

    def __call__(
        self,
        stream_BTD: Array,
        positions_BT: Array | None,
        visibility: Visibility,
        caches: Caches | None = None,
        memory: Memory | None = None,
    ) -> tuple[Array, Caches | None]:
        """Applies the blocks.

        Args:
          stream_BTD: embedded tokens.
          positions_BT: of each token, for rotary positions and for the caches; None: 0 to T - 1. Relative positions
            are counted along the row instead, which is the same for tokens that see each other.
          visibility: which tokens a token sees. With caches the mask is over slots and must include causality.
          caches: of earlier tokens.
          memory: what cross-attention reads.

        Returns:
          The stream after the last block, [B, T, D], normalized, and the caches.
        """
        if self.config.positions == "relative":
            length = stream_BTD.shape[1]
            counted_BT = jnp.arange(length)[None] if caches is None else positions_BT
            keys_S = jnp.arange(length if caches is None else caches.length)
            visibility = dataclasses.replace(visibility, bias_BNTS=self.relative_positions(counted_BT, keys_S))
        blocks = None if caches is None else caches.blocks
        if self.config.scan_layers:
            stream_BTD, blocks = self.layers(stream_BTD, positions_BT, visibility, blocks, memory)
        else:
            after = []
            before = blocks if isinstance(blocks, tuple) else (None,) * self.config.layers
            for block, cache in zip(self.layer, before, strict=True):
                stream_BTD, cache = block(stream_BTD, positions_BT, visibility, cache, memory)
                after.append(cache)
            blocks = tuple(after)
        if self.config.normalization_place == "before":
            stream_BTD = self.final_norm(stream_BTD)
        return stream_BTD, None if caches is None else dataclasses.replace(caches, blocks=blocks)

    def start(self, memory_BSD: Array, memory_mask_BS: Array | None, length: int) -> Caches:
        """Caches with room for `length` tokens, with this memory's keys and values."""
        blocks = empty_caches(self.config, memory_BSD.shape[0], length).blocks
        if not isinstance(blocks, tuple):
            _, of_layers = self.layers.memory_key_values(memory_BSD)
            return Caches(dataclasses.replace(blocks, memory=of_layers), memory_mask_BS)
        key_values = [block.memory_key_values(memory_BSD)[1] for block in self.layer]
        filled = zip(blocks, key_values, strict=True)
        return Caches(tuple(dataclasses.replace(block, memory=each) for block, each in filled), memory_mask_BS)


def rematerialized(block: type[nn.Module], config: ModelConfig) -> type[nn.Module]:
    """The block, recomputing in its backward pass as much of the forward pass as the config says."""
    if config.rematerialize == "none":
        return block
    policies = {"dots": jax.checkpoint_policies.dots_with_no_batch_dims_saveable, "full": None}
    # Outside a loop XLA would merge the two equal computations, which undoes the saving.
    return nn.remat(block, policy=policies[config.rematerialize], prevent_cse=not config.scan_layers)


def _scanned(block: type[nn.Module], config: ModelConfig) -> type[nn.Module]:
    """One block that loops over the parameters of all layers."""
    loop = {
        "variable_axes": {"params": 0},
        "split_rngs": {"params": True, "dropout": True},
        "length": config.layers,
    }
    over_caches = {"in_axes": (nn.broadcast, nn.broadcast, 0, nn.broadcast)}
    return nn.scan(block, methods={"__call__": loop | over_caches, "memory_key_values": loop})


def empty_caches(config: ModelConfig, batch: int, length: int) -> Caches:
    """Caches with room for `length` tokens in every layer, without a memory."""
    blocks = tuple(BlockCache(KeyValues.empty(config, batch, length)) for _ in range(config.layers))
    if config.scan_layers:
        return Caches(jax.tree.map(lambda *layers: jnp.stack(layers), *blocks))
    return Caches(blocks)
