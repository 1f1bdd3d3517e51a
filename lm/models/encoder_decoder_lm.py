"""The encoder-decoder (the Transformer: Vaswani et al. 2017; T5: Raffel et al. 2020).

Axes: B batch, S input positions, T output positions, V vocabulary, D model width.
"""

import dataclasses

import chex
import flax.linen as nn
import jax
import jax.numpy as jnp
from jax import Array

from lm.modules.config import ModelConfig
from lm.modules.embeddings import Embedder, Output
from lm.modules.output_layer import OutputLayer
from lm.modules.stack import Caches, Memory, Stack
from lm.modules.visibility import Visibility


class EncoderDecoderLM(nn.Module):
    """Predicts each output token from the previous ones and from an input.

    A pure function of (parameters, inputs): `model.apply({"params": params}, inputs_BS, tokens_BT)`. Dropout is on when
    `rngs={"dropout": key}` is passed. Both sides share the token embedding and, unless the config separates them, the
    position table and the embedding norm.

    Attributes:
      config: its shape.
      mesh: of devices, with axes `data`, `fsdp` and `tensor`, or None for one device.
    """

    config: ModelConfig
    mesh: jax.sharding.Mesh | None = None

    def setup(self):
        """Makes the parts."""
        config = self.config
        self.embedder = Embedder(config, self.mesh)
        self.output_layer = Output(config)
        nn.share_scope(self, self.embedder)
        nn.share_scope(self, self.output_layer)
        self.encoder = Stack(config, causal=False, mesh=self.mesh)
        decoder_config = dataclasses.replace(config, layers=config.decoder_layers or config.layers)
        self.decoder = Stack(decoder_config, causal=True, cross_attention=True, mesh=self.mesh)

    def __call__(
        self,
        inputs_BS: Array,
        tokens_BT: Array,
        input_segments_BS: Array | None = None,
        segments_BT: Array | None = None,
        input_positions_BS: Array | None = None,
        positions_BT: Array | None = None,
    ) -> Array:
        """Returns the logits of the token after each of `tokens_BT`, [B, T, V], in float32.

        Arguments as in `encode` and `decode`.
        """
        memory_BSD = self.encode(inputs_BS, input_segments_BS, input_positions_BS)
        return self.logits(self.decode(memory_BSD, input_segments_BS, tokens_BT, segments_BT, positions_BT))

    def encode(
        self, inputs_BS: Array, input_segments_BS: Array | None = None, input_positions_BS: Array | None = None
    ) -> Array:
        """The encoder's last hidden states.

        Args:
          inputs_BS: ids below V.
          input_segments_BS: a token sees only tokens of its own segment; 0 is padding. None: the row is one segment.
          input_positions_BS: each token's place in its segment. None: 0 to S - 1.

        Returns:
          [B, S, D] in the compute dtype.
        """
        chex.assert_rank(inputs_BS, 2)
        if input_segments_BS is not None:
            chex.assert_equal_shape([inputs_BS, input_segments_BS])
        visibility = Visibility.within(input_segments_BS, input_segments_BS)
        stream_BSD = self.embedder(inputs_BS, input_positions_BS)
        return self.encoder(stream_BSD, input_positions_BS, visibility)[0]

    def decode(
        self,
        memory_BSD: Array,
        input_segments_BS: Array | None,
        tokens_BT: Array,
        segments_BT: Array | None = None,
        positions_BT: Array | None = None,
    ) -> Array:
        """The decoder's last hidden states.

        Args:
          memory_BSD: from `encode`.
          input_segments_BS: those given to `encode`.
          tokens_BT: ids below V; each token sees itself and earlier tokens.
          segments_BT: a token sees only tokens of its own segment, in the output and in the input; 0 is padding. None:
            the row is one segment and sees the whole input except padding.
          positions_BT: each token's place in its segment. None: 0 to T - 1.

        Returns:
          [B, T, D] in the compute dtype.
        """
        chex.assert_rank([memory_BSD, tokens_BT], [3, 2])
        visibility = Visibility.within(segments_BT, segments_BT, causal=True)
        memory = Memory(memory_BSD, _visible_memory(input_segments_BS, segments_BT, tokens_BT))
        stream_BTD = self.embedder(tokens_BT, positions_BT, of_decoder=True)
        return self.decoder(stream_BTD, positions_BT, visibility, memory=memory)[0]

    def start_decoding(self, memory_BSD: Array, input_segments_BS: Array | None, length: int) -> Caches:
        """Caches for `decode_with_cache`, with room for `length` tokens and the memory's keys and values computed.

        Rows are independent of each other; `Caches.take_rows` selects among them.
        """
        mask_BS = None if input_segments_BS is None else input_segments_BS > 0
        return self.decoder.start(memory_BSD, mask_BS, length)

    def decode_with_cache(self, tokens_BT: Array, positions_BT: Array, caches: Caches) -> tuple[Array, Caches]:
        """As `decode`, for tokens that continue what the caches hold.

        Args:
          tokens_BT: ids below V.
          positions_BT: each token's position in its sequence, which is also its slot in the cache.
          caches: from `start_decoding` or from an earlier call.

        Returns:
          [B, T, D] in the compute dtype, and the caches with these tokens in them. A token sees the slots up to its
          own, so the content of later slots does not matter.
        """
        chex.assert_equal_shape([tokens_BT, positions_BT])
        memory_mask_BTS = None
        if caches.memory_mask_BS is not None:
            batch, inputs = caches.memory_mask_BS.shape
            memory_mask_BTS = jnp.broadcast_to(caches.memory_mask_BS[:, None], (batch, tokens_BT.shape[1], inputs))
        visibility = Visibility(caches.visible_slots(positions_BT))
        stream_BTD = self.embedder(tokens_BT, positions_BT, of_decoder=True)
        return self.decoder(stream_BTD, positions_BT, visibility, caches, Memory(None, Visibility(memory_mask_BTS)))

    def logits(self, hidden_BTD: Array) -> Array:
        """Returns the logits at each hidden state, [..., V], in float32."""
        states_BTD, layer = self.before_logits(hidden_BTD)
        return layer(states_BTD)

    def before_logits(self, hidden_BTD: Array) -> tuple[Array, OutputLayer]:
        """The states, [..., D], and the layer that turns them into logits."""
        return hidden_BTD, self.output_layer(self.embedder.embedding())


def _visible_memory(input_segments_BS: Array | None, segments_BT: Array | None, tokens_BT: Array) -> Visibility:
    """Where the decoder may attend: to its own segment; if its row is one segment, to all but padding."""
    if input_segments_BS is None or segments_BT is not None:
        return Visibility.within(segments_BT, input_segments_BS)
    return Visibility.within(jnp.ones_like(tokens_BT), (input_segments_BS > 0).astype(tokens_BT.dtype))
