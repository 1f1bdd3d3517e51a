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
from jax.sharding import Mesh

from lm.modules.attention import CrossAttention, KeyValues, MultiHeadAttention
from lm.modules.attention_choice import AttentionCall, Target, choose_attention
from lm.modules.config import ModelConfig
from lm.modules.dropout import Dropout
from lm.modules.feed_forward import FeedForward
from lm.modules.normalization import Normalization
from lm.modules.relative_positions import RelativePositionBias
from lm.modules.visibility import Visibility


@flax.struct.dataclass
class Memory:
    """What cross-attention reads.

    Attributes:
      states_BSD: the encoder's last hidden states; None if a cache holds their keys and values.
      visibility: which of the encoder's tokens a decoder's token sees.
    """

    states_BSD: Array | None
    visibility: Visibility = Visibility()


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
        return first.tokens.keys_BKSH.shape[-2]

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


@flax.struct.dataclass
class LayerKind:
    """In which ways a layer differs from others: bools, or arrays where layers are scanned.

    Attributes:
      local: whether it sees only a window.
      bare: whether nothing is normalized before its attention.
    """

    local: bool | Array = False
    bare: bool | Array = False

    @classmethod
    def of(cls, config: ModelConfig, layer: int) -> "LayerKind":
        """The kind of a layer, counted from 0."""
        local = config.attention_window is not None and layer not in config.global_layers
        return cls(local, bare=layer == 0 and not config.first_norm)

    @classmethod
    def of_all(cls, config: ModelConfig) -> "LayerKind | None":
        """The kinds of all layers as arrays [L], to scan over; None if the config makes no difference."""
        if config.attention_window is None and config.first_norm:
            return None
        return jax.tree.map(lambda *layers: jnp.asarray(layers), *(cls.of(config, i) for i in range(config.layers)))


class Block(nn.Module):
    """Self-attention, optional cross-attention, then feed-forward, each added to its input stream.

    Normalization comes before each sub-layer (Radford et al. 2019), after each sum (Vaswani et al. 2017), on each
    branch (OLMo Team 2024), or before and on it (Gemma Team 2024).

    Attributes:
      config: its shape.
      cross_attention: whether it also attends to a memory.
      kind: which kind of layer it is, unless each call tells it, in a scan. A scanned layer has the same parameters as
        the others, used or not.
      mesh: of devices, with axes `data`, `fsdp` and `tensor`, or None for one device.
    """

    config: ModelConfig
    cross_attention: bool = False
    kind: LayerKind = LayerKind()
    mesh: Mesh | None = None

    def setup(self):
        """Makes the parts."""
        config = self.config
        self.attention = MultiHeadAttention(config, self.mesh)
        self.feed_forward_norm, self.feed_forward = Normalization(config), FeedForward(config)
        if not self.kind.bare:
            self.attention_norm = Normalization(config)
        if self.cross_attention:
            self.memory_attention_norm = Normalization(config)
            self.memory_attention = CrossAttention(config, self.mesh)
        if config.normalization_place == "both":
            self.attention_output_norm, self.feed_forward_output_norm = Normalization(config), Normalization(config)
            if self.cross_attention:
                self.memory_attention_output_norm = Normalization(config)
        self.dropout = Dropout(config)

    def __call__(
        self,
        stream_BTD: Array,
        positions_BT: Array | None,
        visibility: Visibility,
        cache: BlockCache | None,
        memory: Memory | None,
        scanned: LayerKind | None = None,
    ) -> tuple[Array, BlockCache | None]:
        """Returns the stream after this block, [B, T, D], and the block's cache."""
        kind = self.kind if scanned is None else scanned

        def attend_to_tokens(inputs_BTD: Array) -> Array:
            nonlocal cache
            tokens = None if cache is None else cache.tokens
            mixed_BTD, tokens = self.attention(inputs_BTD, positions_BT, visibility, tokens, kind.local)
            cache = None if cache is None else dataclasses.replace(cache, tokens=tokens)
            return mixed_BTD

        def attend_to_memory(inputs_BTD: Array) -> Array:
            assert memory is not None, "cross-attention needs a memory"
            key_values = self.memory_attention.key_values(memory.states_BSD) if cache is None else cache.memory
            return self.memory_attention(inputs_BTD, key_values, memory.visibility)

        def normalize_first(inputs_BTD: Array) -> Array:
            if isinstance(kind.bare, bool):
                return inputs_BTD if kind.bare else self.attention_norm(inputs_BTD)
            return jnp.where(kind.bare, inputs_BTD, self.attention_norm(inputs_BTD))

        if self.config.parallel_residual:
            attended_BTD = self.dropout(attend_to_tokens(normalize_first(stream_BTD)))
            fed_BTD = self.dropout(self.feed_forward(self.feed_forward_norm(stream_BTD)))
            return stream_BTD + attended_BTD + fed_BTD, cache
        stream_BTD = self._add(attend_to_tokens, normalize_first, "attention", stream_BTD)
        if self.cross_attention:
            stream_BTD = self._add(attend_to_memory, self.memory_attention_norm, "memory_attention", stream_BTD)
        return self._add(self.feed_forward, self.feed_forward_norm, "feed_forward", stream_BTD), cache

    def memory_key_values(self, memory_BSD: Array) -> tuple[Array, KeyValues]:
        """The memory unchanged, for the next block, and this block's keys and values for it."""
        return memory_BSD, self.memory_attention.key_values(memory_BSD)

    def _add(
        self, branch: Callable[[Array], Array], norm: Callable[[Array], Array], name: str, stream_BTD: Array
    ) -> Array:
        place = self.config.normalization_place
        if place == "before":
            return stream_BTD + self.dropout(branch(norm(stream_BTD)))
        if place == "after":
            return norm(stream_BTD + self.dropout(branch(stream_BTD)))
        if place == "branch":
            return stream_BTD + self.dropout(norm(branch(stream_BTD)))
        output_norm = getattr(self, f"{name}_output_norm")
        return stream_BTD + self.dropout(output_norm(branch(norm(stream_BTD))))


class Stack(nn.Module):
    """L blocks, and a final normalization unless blocks normalize sums: unrolled or scanned, optionally rematerialized.

    Attributes:
      config: its shape.
      causal: whether tokens see only earlier tokens, which determines the range of relative distances.
      cross_attention: whether each block also attends to a memory.
      mesh: of devices, with axes `data`, `fsdp` and `tensor`, or None for one device.
    """

    config: ModelConfig
    causal: bool
    cross_attention: bool = False
    mesh: Mesh | None = None

    def setup(self):
        """Makes the parts."""
        config = self.config
        block = rematerialized(Block, config)
        if config.scan_layers:
            self.layers = _scanned(block, config)(config, self.cross_attention, mesh=self.mesh)
        else:
            kinds = [LayerKind.of(config, layer) for layer in range(config.layers)]
            self.layer = [block(config, self.cross_attention, kind, self.mesh) for kind in kinds]
        if config.positions == "relative":
            self.relative_positions = RelativePositionBias(config, bidirectional=not self.causal)
        if config.normalization_place != "after":
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
            and windows are counted along the row instead, which is the same for tokens that see each other.
          visibility: which tokens a token sees. With caches the mask is over slots and must include causality.
          caches: of earlier tokens.
          memory: what cross-attention reads.

        Returns:
          The stream after the last block, [B, T, D], normalized, and the caches.
        """
        rows, length, _ = stream_BTD.shape
        call = AttentionCall(length, length if caches is None else caches.length, rows, cached=caches is not None)
        visibility = self._prepared(self._with_distances(visibility, length, positions_BT, caches), call)
        if memory is not None:
            # With caches, which hold the memory's keys, their number makes no difference.
            keys = 0 if memory.states_BSD is None else memory.states_BSD.shape[1]
            visible = self._prepared(memory.visibility, dataclasses.replace(call, keys=keys))
            memory = dataclasses.replace(memory, visibility=visible)
        blocks = None if caches is None else caches.blocks
        if self.config.scan_layers:
            kinds = LayerKind.of_all(self.config)
            stream_BTD, blocks = self.layers(stream_BTD, positions_BT, visibility, blocks, memory, kinds)
        else:
            after = []
            before = blocks if isinstance(blocks, tuple) else (None,) * self.config.layers
            for block, cache in zip(self.layer, before, strict=True):
                stream_BTD, cache = block(stream_BTD, positions_BT, visibility, cache, memory)
                after.append(cache)
            blocks = tuple(after)
        if self.config.normalization_place != "after":
            stream_BTD = self.final_norm(stream_BTD)
        return stream_BTD, None if caches is None else dataclasses.replace(caches, blocks=blocks)

    def _with_distances(
        self, visibility: Visibility, length: int, positions_BT: Array | None, caches: Caches | None
    ) -> Visibility:
        """With what depends on the distance between tokens: relative positions and windows."""
        config = self.config
        if config.positions != "relative" and config.attention_window is None:
            return visibility
        counted_BT, keys_S = jnp.arange(length)[None], jnp.arange(length)
        if caches is not None:
            assert positions_BT is not None, "caches need the positions of their tokens"
            counted_BT, keys_S = positions_BT, jnp.arange(caches.length)
        if config.positions == "relative":
            visibility = dataclasses.replace(visibility, bias_BNTS=self.relative_positions(counted_BT, keys_S))
        if config.attention_window is None:
            return visibility
        farthest = config.attention_window - 1 if self.causal else config.attention_window // 2
        if caches is None:
            return dataclasses.replace(visibility, window=farthest)
        distances_BTS = jnp.abs(counted_BT[:, :, None] - keys_S[None, None, :])
        return dataclasses.replace(visibility, near_BTS=distances_BTS <= farthest)

    def _prepared(self, visibility: Visibility, call: AttentionCall) -> Visibility:
        """With an implementation for the call, and in the form that this one takes."""
        call = dataclasses.replace(
            call,
            segmented=visibility.segments is not None,
            masked=visibility.mask_BTS is not None,
            biased=visibility.bias_BNTS is not None,
            drops=self.config.attention_dropout > 0 and self.has_rng("dropout"),
        )
        if self.is_initializing():
            implementation = "explicit"  # every host has it, and parameters do not depend on it
        else:
            implementation = choose_attention(self.config, Target.of(self.mesh), call).implementation
        visibility = dataclasses.replace(visibility, implementation=implementation)
        if implementation == "splash":
            return visibility
        # Scanned layers cannot differ in it.
        keep_window = implementation == "cudnn" and not self.config.scan_layers
        return visibility.as_masks(call.queries, call.keys, keep_window)

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
    inputs = {"in_axes": (nn.broadcast, nn.broadcast, 0, nn.broadcast, 0)}  # after the stream
    return nn.scan(block, methods={"__call__": loop | inputs, "memory_key_values": loop})


def empty_caches(config: ModelConfig, batch: int, length: int) -> Caches:
    """Caches with room for `length` tokens in every layer, without a memory."""
    blocks = tuple(BlockCache(KeyValues.empty(config, batch, length)) for _ in range(config.layers))
    if config.scan_layers:
        return Caches(jax.tree.map(lambda *layers: jnp.stack(layers), *blocks))
    return Caches(blocks)
