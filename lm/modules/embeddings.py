"""Token and position embeddings.

Axes: B batch, T positions, V vocabulary, D model width, or that of the embeddings where it differs.
"""

import math

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from jax import Array
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from lm.modules.config import ModelConfig
from lm.modules.dropout import Dropout
from lm.modules.linear import Linear
from lm.modules.normalization import Normalization
from lm.modules.output_layer import OutputLayer


class TokenEmbedding(nn.Module):
    """A table of token vectors, which can also serve as the output matrix (Press & Wolf 2017)."""

    config: ModelConfig
    mesh: Mesh | None = None

    def setup(self):
        """Makes the table."""
        config = self.config
        initializer = nn.initializers.normal(config.initializer_range)
        self.embedding = self.param(
            "embedding", initializer, (config.size_of_vocabulary, config.size_of_embedding), config.storage_dtype
        )

    def __call__(self, tokens_BT: Array) -> Array:
        """Returns the vectors of `tokens_BT`, [B, T, D], in the compute dtype."""
        # Otherwise the compiler would split the stream along D, like the table, and gather the batch instead.
        table_VD = constrain(self.embedding, self.mesh, "tensor", None)
        stream_BTD = jnp.take(table_VD, tokens_BT, axis=0).astype(self.config.compute_dtype)
        return constrain(stream_BTD, self.mesh, ("data", "fsdp"), None, None)


def constrain(array: Array, mesh: Mesh | None, *axes: str | tuple[str, ...] | None) -> Array:
    """The array sharded over these mesh axes; unchanged without a mesh."""
    if mesh is None or mesh.size == 1:
        return array
    return jax.lax.with_sharding_constraint(array, NamedSharding(mesh, PartitionSpec(*axes)))


class Embedder(nn.Module):
    """Tokens to the input of a stack: token embeddings, optionally with positions, types and a normalization.

    Its parameters belong to the module that calls `nn.share_scope` on it.
    """

    config: ModelConfig
    mesh: Mesh | None = None

    def setup(self):
        """Makes the parts."""
        config = self.config
        self.token_embedding = TokenEmbedding(config, self.mesh)
        if config.positions in ("learned", "sinusoidal"):
            self.position_embedding = PositionEmbedding(config)
            if config.separate_embeddings:
                self.decoder_position_embedding = PositionEmbedding(config)
        if config.segment_types:
            initializer = nn.initializers.normal(config.initializer_range)
            self.type_embedding = nn.Embed(
                config.segment_types, config.size_of_embedding, config.compute_dtype, config.storage_dtype, initializer
            )
        if config.normalize_embeddings:
            self.embedding_norm = Normalization(config)
            if config.separate_embeddings:
                self.decoder_embedding_norm = Normalization(config)
        self.embedding_dropout = Dropout(config)
        if config.embedding_width is not None:
            self.embedding_projection = Linear(config, config.width, use_bias=True)

    def __call__(
        self,
        tokens_BT: Array,
        positions_BT: Array | None = None,
        types_BT: Array | None = None,
        of_decoder: bool = False,
    ) -> Array:
        """Embeds tokens.

        Args:
          tokens_BT: ids below V.
          positions_BT: each token's place. None: 0 to T - 1.
          types_BT: the segment type of each token, below `segment_types`. None: 0.
          of_decoder: whether the stack is the decoder of an encoder-decoder, which may have embeddings of its own.

        Returns:
          [B, T, D] in the compute dtype.

        Raises:
          ValueError: if there are types but the model has no embedding for them.
        """
        config = self.config
        separate = of_decoder and config.separate_embeddings
        stream_BTD = self.token_embedding(tokens_BT)
        if config.scales_embeddings:
            # Otherwise sines, near 1, would dominate the tokens (Vaswani et al. 2017, section 3.4).
            stream_BTD = stream_BTD * math.sqrt(config.size_of_embedding)
        if config.positions in ("learned", "sinusoidal"):
            position_embedding = self.decoder_position_embedding if separate else self.position_embedding
            positions = position_embedding(positions_BT, tokens_BT.shape[1])
            stream_BTD = stream_BTD + jnp.broadcast_to(positions, stream_BTD.shape)
        if config.segment_types:
            stream_BTD = stream_BTD + self.type_embedding(jnp.zeros_like(tokens_BT) if types_BT is None else types_BT)
        elif types_BT is not None:
            raise ValueError("types need config.model.segment_types, their number")
        if config.normalize_embeddings:
            stream_BTD = (self.decoder_embedding_norm if separate else self.embedding_norm)(stream_BTD)
        stream_BTD = self.embedding_dropout(stream_BTD)
        return stream_BTD if config.embedding_width is None else self.embedding_projection(stream_BTD)

    def embedding(self) -> Array:
        """Returns the token embedding, [V, D], as it is stored."""
        return self.token_embedding.embedding


class Output(nn.Module):
    """The layer from hidden states to logits, from the token embedding or a separate matrix."""

    config: ModelConfig

    @nn.compact
    def __call__(self, embedding_VD: Array) -> OutputLayer:
        """Returns the layer."""
        config = self.config
        if not config.tie_embeddings:
            initializer = nn.initializers.normal(config.initializer_range)
            embedding_VD = self.param(
                "output", initializer, (config.size_of_vocabulary, config.size_of_embedding), config.storage_dtype
            )
        bias_V = None
        if config.output_bias:
            bias_V = self.param(
                "output_bias", nn.initializers.zeros, (config.size_of_vocabulary,), config.storage_dtype
            )
        dtype = jnp.dtype(config.compute_dtype)
        return OutputLayer(embedding_VD, bias_V, dtype, config.logit_scale, config.logit_softcap)


class PositionEmbedding(nn.Module):
    """Vectors added to the token embeddings: learned, or sinusoidal (Vaswani et al. 2017, section 3.5)."""

    config: ModelConfig

    @nn.compact
    def __call__(self, positions_BT: Array | None, length: int) -> Array:
        """Returns [B, T, D] for given positions, or [T, D] for positions 0 to `length` - 1 where none are given."""
        config = self.config
        if config.positions == "learned":
            initializer = nn.initializers.normal(config.initializer_range)
            shape = (config.position_offset + config.max_length, config.size_of_embedding)
            table_TD = self.param("embedding", initializer, shape, config.storage_dtype)[config.position_offset :]
        else:
            table_TD = sinusoidal_table(config.max_length, config.size_of_embedding)
        chosen = table_TD[:length] if positions_BT is None else jnp.take(table_TD, positions_BT, axis=0)
        return chosen.astype(config.compute_dtype)


def sinusoidal_table(length: int, width: int) -> Array:
    """Sines in the first half of D and cosines in the second, with wavelengths from 2 pi to 20,000 pi: [T, D]."""
    frequencies = 10_000.0 ** -(np.arange(0, width, 2) / width)
    angles = np.arange(length)[:, None] * frequencies
    table = np.concatenate([np.sin(angles), np.cos(angles)], axis=-1)[:, :width]
    return jnp.asarray(table, jnp.float32)
