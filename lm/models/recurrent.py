"""Recurrent baselines: bidirectional LSTM and GRU over word vectors.

Axes: B batch, T positions, V vocabulary, D width of the word vectors, H state width of one direction.
"""

import chex
import flax.linen as nn
import jax
import jax.numpy as jnp
from jax import Array

from lm.modules.config import ModelConfig
from lm.modules.dropout import Dropout
from lm.modules.embeddings import TokenEmbedding
from lm.modules.recurrent import RecurrentStack


class RecurrentModel(nn.Module):
    """Word vectors and bidirectional LSTM or GRU layers: a body for heads, with the same interface as the others.

    A pure function of (parameters, inputs): `model.apply({"params": params}, tokens_BT)`. Dropout is on when
    `rngs={"dropout": key}` is passed.

    Attributes:
      config: its shape, of which it uses `architecture`, `vocab_size`, `width`, `recurrent_width`, `layers`, `dropout`,
        `initializer_range` (of the word vectors) and the dtypes.
      mesh: of devices, with axes `data`, `fsdp` and `tensor`, or None for one device.
    """

    config: ModelConfig
    mesh: jax.sharding.Mesh | None = None

    def setup(self):
        """Makes the parts."""
        self.token_embedding = TokenEmbedding(self.config, self.mesh)
        self.embedding_dropout = Dropout(self.config)
        self.recurrent = RecurrentStack(self.config)

    def __call__(self, tokens_BT: Array, segments_BT: Array | None = None) -> Array:
        """Returns `hidden`."""
        return self.hidden(tokens_BT, segments_BT)

    def hidden(
        self,
        tokens_BT: Array,
        segments_BT: Array | None = None,
        positions_BT: Array | None = None,
        types_BT: Array | None = None,
    ) -> Array:
        """The states at each token.

        Args:
          tokens_BT: ids below V.
          segments_BT: a token's states depend only on tokens of its own segment; 0 is padding. None: no padding.
          positions_BT: not used: the order of tokens gives the positions.
          types_BT: not used: there are no type embeddings.

        Returns:
          [B, T, 2 H] in the compute dtype.
        """
        del positions_BT, types_BT
        chex.assert_rank(tokens_BT, 2)
        if segments_BT is not None:
            chex.assert_equal_shape([tokens_BT, segments_BT])
        return self.recurrent(self.embedding_dropout(self.token_embedding(tokens_BT)), segments_BT)

    def pool(self, hidden_BTD: Array, segments_BT: Array | None = None) -> Array:
        """One vector per text: the maximum over its tokens' states (Conneau et al. 2017, InferSent), [B, 2 H].

        Args:
          hidden_BTD: from `hidden`.
          segments_BT: 0 is padding. None: no padding. A row of padding alone gets -1 throughout.
        """
        if segments_BT is None:
            return hidden_BTD.max(axis=1)
        # No state is below -1.
        return jnp.where(segments_BT[:, :, None] > 0, hidden_BTD, -1).max(axis=1)
