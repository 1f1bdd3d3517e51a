"""The deep averaging network (Iyyer et al. 2015, Deep Unordered Composition Rivals Syntactic Methods).

A text is the average of its words' embeddings; feed-forward layers turn the average into logits. Batch normalization
between them is an addition of Guo et al. 2017, section 5, who calibrated such networks.

Axes: B texts, T words of a text with padding, D embedding width, H width of a layer, C classes.
"""

import chex
import flax.linen as nn
import jax
import jax.numpy as jnp
from jax import Array


class DeepAveragingNetwork(nn.Module):
    """Classifies a text by the average of its words.

    A pure function of (variables, inputs): `model.apply(variables, words_BT, mask_BT)`. The variables are `params` and,
    with batch normalization, the running `batch_stats`. Training passes `train=True`, `rngs={"dropout": key}` and
    `mutable=["batch_stats"]`, and gets the logits together with the new running statistics.

    Attributes:
      vocab_size: number of words with an embedding.
      classes: C.
      width: D.
      hidden_width: H.
      layers: hidden layers between the average and the classifier; 0 for a linear model of the average.
      word_dropout: probability of dropping each word of a text in training.
      batch_norm: whether each layer is normalized over the batch before its activation.
    """

    vocab_size: int
    classes: int
    width: int = 300
    hidden_width: int = 300
    layers: int = 3
    word_dropout: float = 0.3
    batch_norm: bool = True

    @nn.compact
    def __call__(self, words_BT: Array, mask_BT: Array, train: bool = False) -> Array:
        """Returns the logits, [B, C], in float32.

        Args:
          words_BT: ids below `vocab_size`, in any order.
          mask_BT: True at words, False at padding. The average of a text without words is zero.
          train: whether to drop words and to use batch statistics instead of running ones.
        """
        chex.assert_rank(words_BT, 2)
        chex.assert_equal_shape([words_BT, mask_BT])
        if train and self.word_dropout:
            mask_BT = drop_words(self.make_rng("dropout"), mask_BT, self.word_dropout)
        # Iyyer et al.'s range for vectors that are not pretrained.
        table = nn.Embed(self.vocab_size, self.width, embedding_init=_uniform(0.08), name="embedding")
        weight_BT = mask_BT.astype(jnp.float32)
        total_BD = jnp.einsum("BTD,BT->BD", table(words_BT), weight_BT)
        stream_BH = total_BD / jnp.maximum(weight_BT.sum(axis=1, keepdims=True), 1.0)
        for layer in range(self.layers):
            # Batch normalization would subtract a bias again.
            stream_BH = nn.Dense(self.hidden_width, use_bias=not self.batch_norm, name=f"layer_{layer}")(stream_BH)
            if self.batch_norm:
                stream_BH = nn.BatchNorm(not train, momentum=0.9, name=f"norm_{layer}")(stream_BH)
            stream_BH = nn.relu(stream_BH)
        return nn.Dense(self.classes, name="output")(stream_BH)


def drop_words(key: Array, mask_BT: Array, rate: float) -> Array:
    """Drops each word with probability `rate`; a text that would lose all its words keeps them all."""
    kept_BT = mask_BT & jax.random.bernoulli(key, 1 - rate, mask_BT.shape)
    return jnp.where(kept_BT.any(axis=1, keepdims=True), kept_BT, mask_BT)


def _uniform(bound: float):
    return lambda key, shape, dtype=jnp.float32: jax.random.uniform(key, shape, dtype, -bound, bound)
