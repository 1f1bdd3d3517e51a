"""The encoder-only language model (BERT: Devlin et al. 2019).

Axes: B batch, T positions, V vocabulary, D model width.
"""

import chex
import flax.linen as nn
import jax
import jax.numpy as jnp
from jax import Array

from lm.modules.config import ModelConfig
from lm.modules.embeddings import Embedder, Output
from lm.modules.feed_forward import activation
from lm.modules.linear import Linear
from lm.modules.normalization import Normalization
from lm.modules.output_layer import OutputLayer
from lm.modules.stack import Stack
from lm.modules.visibility import Visibility


class PredictionHead(nn.Module):
    """Predicts masked tokens: a dense layer, an activation, LayerNorm, the token embedding, and a bias."""

    config: ModelConfig

    @nn.compact
    def __call__(self, hidden_BTD: Array, embedding_VD: Array) -> tuple[Array, OutputLayer]:
        """Returns the states before the last layer, [..., D], and this layer."""
        config = self.config
        hidden_BTD = activation(config)(Linear(config, config.size_of_embedding, name="dense")(hidden_BTD))
        hidden_BTD = Normalization(config, name="norm")(hidden_BTD)
        bias_V = self.param("bias", nn.initializers.zeros, (config.size_of_vocabulary,), config.storage_dtype)
        layer = Output(config, name="logits")(embedding_VD)
        return hidden_BTD, layer.replace(bias_V=bias_V if layer.bias_V is None else bias_V + layer.bias_V)


class EncoderLM(nn.Module):
    """Encodes a text in both directions.

    A pure function of (parameters, inputs): `model.apply({"params": params}, tokens_BT)`. Dropout is on when
    `rngs={"dropout": key}` is passed. Initialized through a method, it has only the parameters that this method needs:
    `model.init(key, tokens_BT, method=EncoderLM.hidden)` makes neither prediction head nor pooler.

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
        nn.share_scope(self, self.embedder)
        self.encoder = Stack(config, causal=False, mesh=self.mesh)
        self.prediction_head = PredictionHead(config)
        self.pooler = Linear(config, config.width)
        self.next_sentence_head = Linear(config, 2)

    def __call__(
        self,
        tokens_BT: Array,
        segments_BT: Array | None = None,
        positions_BT: Array | None = None,
        types_BT: Array | None = None,
    ) -> Array:
        """Returns the logits of every token, [B, T, V], in float32. Arguments as in `hidden`."""
        return self.logits(self.hidden(tokens_BT, segments_BT, positions_BT, types_BT))

    def hidden(
        self,
        tokens_BT: Array,
        segments_BT: Array | None = None,
        positions_BT: Array | None = None,
        types_BT: Array | None = None,
    ) -> Array:
        """The last hidden states.

        Args:
          tokens_BT: ids below V.
          segments_BT: a token sees only tokens of its own segment; 0 is padding. None: the row is one segment.
          positions_BT: each token's place in its segment. None: 0 to T - 1.
          types_BT: the kind of text of each token, below `segment_types`. None: 0.

        Returns:
          [B, T, D] in the compute dtype.
        """
        chex.assert_rank(tokens_BT, 2)
        chex.assert_equal_shape([array for array in (tokens_BT, segments_BT, types_BT) if array is not None])
        visibility = Visibility.within(segments_BT, segments_BT)
        hidden_BTD, _ = self.encoder(self.embedder(tokens_BT, positions_BT, types_BT), positions_BT, visibility)
        return hidden_BTD

    def logits(self, hidden_BTD: Array) -> Array:
        """Returns the logits of the token at each hidden state, [..., V], in float32.

        Given only the states at masked positions, [B, K, D], it computes only these.
        """
        states_BTD, layer = self.before_logits(hidden_BTD)
        return layer(states_BTD)

    def before_logits(self, hidden_BTD: Array) -> tuple[Array, OutputLayer]:
        """The states after the prediction head, [..., D], and the layer that turns them into logits."""
        return self.prediction_head(hidden_BTD, self.embedder.embedding())

    def pool(self, hidden_BTD: Array, segments_BT: Array | None = None) -> Array:
        """Returns a vector for each row, [B, D]: tanh of a linear map of its first token's hidden state.

        `segments_BT` is not used here; models that read left to right need it.
        """
        del segments_BT
        return jnp.tanh(self.pooler(hidden_BTD[:, 0]))

    def next_sentence(self, pooled_BD: Array) -> Array:
        """Returns the logits, [B, 2] in float32, of whether the second text follows the first (0) or not (1)."""
        return self.next_sentence_head(pooled_BD).astype(jnp.float32)
