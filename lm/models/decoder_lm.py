"""The decoder-only language model (GPT-2: Radford et al. 2019; Llama: Touvron et al. 2023).

Axes: B batch, T query positions, S key positions, V vocabulary, D model width.
"""

import chex
import flax.linen as nn
import jax
import jax.numpy as jnp
from jax import Array

from lm.modules.config import ModelConfig
from lm.modules.decoder import Caches, Decoder
from lm.modules.dropout import Dropout
from lm.modules.embeddings import PositionEmbedding, TokenEmbedding, output_logits


class DecoderLM(nn.Module):
    """Predicts each token from those before it.

    A pure function of (parameters, inputs): `model.apply({"params": params}, tokens_BT)`. Dropout is on when
    `rngs={"dropout": key}` is passed.

    Attributes:
      config: its shape.
      mesh: of devices, with axes `data`, `fsdp` and `tensor`, or None for one device.
    """

    config: ModelConfig
    mesh: jax.sharding.Mesh | None = None

    def setup(self):
        """Makes the parts."""
        config = self.config
        self.token_embedding = TokenEmbedding(config, self.mesh)
        if config.positions != "rotary":
            self.position_embedding = PositionEmbedding(config)
        self.embedding_dropout = Dropout(config)
        self.decoder = Decoder(config)
        if not config.tie_embeddings:
            initializer = nn.initializers.normal(config.initializer_range)
            self.output = self.param("output", initializer, (config.vocab_size, config.width), config.storage_dtype)

    def __call__(self, tokens_BT: Array, segments_BT: Array | None = None, positions_BT: Array | None = None) -> Array:
        """Returns the logits of the token after each, [B, T, V], in float32. Arguments as in `hidden`."""
        return self.logits(self.hidden(tokens_BT, segments_BT, positions_BT))

    def hidden(self, tokens_BT: Array, segments_BT: Array | None = None, positions_BT: Array | None = None) -> Array:
        """The last hidden states, from which `logits` follow one position at a time.

        Args:
          tokens_BT: ids below V.
          segments_BT: a token sees only tokens of its own segment. None: the row is one segment.
          positions_BT: each token's place in its segment. None: 0 to T - 1.

        Returns:
          [B, T, D] in the compute dtype.
        """
        chex.assert_rank(tokens_BT, 2)
        mask_BTS = None
        if segments_BT is not None:
            chex.assert_equal_shape([tokens_BT, segments_BT])
            mask_BTS = segments_BT[:, :, None] == segments_BT[:, None, :]
        hidden_BTD, _ = self.decoder(self._embed(tokens_BT, positions_BT), positions_BT, mask_BTS, None)
        return hidden_BTD

    def hidden_with_cache(self, tokens_BT: Array, positions_BT: Array, caches: Caches) -> tuple[Array, Caches]:
        """As `hidden`, for tokens that continue what the caches hold.

        Args:
          tokens_BT: ids below V.
          positions_BT: where in its sequence each token stands; also its slot in the cache.
          caches: from `empty_caches` or from an earlier call.

        Returns:
          [B, T, D] in the compute dtype, and the caches with these tokens in them. A token sees the slots up to its
          own, so what a slot further on holds does not matter.
        """
        chex.assert_equal_shape([tokens_BT, positions_BT])
        first = caches[0] if isinstance(caches, tuple) else caches
        slots = jnp.arange(first.keys_BSKH.shape[-3])
        mask_BTS = slots[None, None, :] <= positions_BT[:, :, None]
        return self.decoder(self._embed(tokens_BT, positions_BT), positions_BT, mask_BTS, caches)

    def logits(self, hidden_BTD: Array) -> Array:
        """Returns the logits at each hidden state, [..., V], in float32."""
        if self.config.tie_embeddings:
            return self.token_embedding.logits(hidden_BTD)
        return output_logits(hidden_BTD, self.output.astype(self.config.compute_dtype))

    def _embed(self, tokens_BT: Array, positions_BT: Array | None) -> Array:
        stream_BTD = self.token_embedding(tokens_BT)
        if self.config.positions != "rotary":
            length = tokens_BT.shape[1]
            positions = self.position_embedding(positions_BT, length)
            stream_BTD = stream_BTD + jnp.broadcast_to(positions, stream_BTD.shape)
        return self.embedding_dropout(stream_BTD)
