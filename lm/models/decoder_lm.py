"""The decoder-only language model (GPT-2: Radford et al. 2019; Llama: Touvron et al. 2023).

Axes: B batch, T query positions, S key positions, V vocabulary, D model width.
"""

import chex
import flax.linen as nn
import jax
import jax.numpy as jnp
from jax import Array

from lm.modules.config import ModelConfig
from lm.modules.embeddings import Embedder, Output
from lm.modules.output_layer import OutputLayer
from lm.modules.stack import Caches, Stack
from lm.modules.visibility import Visibility, segment_mask


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
        self.embedder = Embedder(self.config, self.mesh)
        self.output_layer = Output(self.config)
        nn.share_scope(self, self.embedder)
        nn.share_scope(self, self.output_layer)
        self.decoder = Stack(self.config, causal=True, mesh=self.mesh)

    def __call__(self, tokens_BT: Array, segments_BT: Array | None = None, positions_BT: Array | None = None) -> Array:
        """Returns the logits of the token after each, [B, T, V], in float32. Arguments as in `hidden`."""
        return self.logits(self.hidden(tokens_BT, segments_BT, positions_BT))

    def hidden(
        self,
        tokens_BT: Array,
        segments_BT: Array | None = None,
        positions_BT: Array | None = None,
        types_BT: Array | None = None,
        prefix_BT: Array | None = None,
    ) -> Array:
        """The last hidden states, from which `logits` follow one position at a time.

        Args:
          tokens_BT: ids below V.
          segments_BT: a token sees only tokens of its own segment; 0 is padding. None: the row is one segment.
          positions_BT: each token's place in its segment. None: 0 to T - 1.
          types_BT: the kind of text of each token, where the config has `segment_types`.
          prefix_BT: True for the tokens of their segment's prefix, which see each other in both directions (prefix LM,
            Raffel et al. 2020, section 3.2.1). None: there is no prefix.

        Returns:
          [B, T, D] in the compute dtype.
        """
        chex.assert_rank(tokens_BT, 2)
        chex.assert_equal_shape([array for array in (tokens_BT, segments_BT, prefix_BT) if array is not None])
        visibility = Visibility.within(segments_BT, segments_BT, causal=True)
        if prefix_BT is not None:
            mask_BTS = None if segments_BT is None else segment_mask(segments_BT, segments_BT)
            visibility = Visibility(prefix_mask(prefix_BT, mask_BTS))
        hidden_BTD, _ = self.decoder(self.embedder(tokens_BT, positions_BT, types_BT), positions_BT, visibility)
        return hidden_BTD

    def hidden_with_cache(self, tokens_BT: Array, positions_BT: Array, caches: Caches) -> tuple[Array, Caches]:
        """As `hidden`, for tokens that continue what the caches hold.

        Args:
          tokens_BT: ids below V.
          positions_BT: each token's position in its sequence, which is also its slot in the cache.
          caches: from `empty_caches` or from an earlier call.

        Returns:
          [B, T, D] in the compute dtype, and the caches with these tokens in them. A token sees the slots up to its
          own, so the content of later slots does not matter.
        """
        chex.assert_equal_shape([tokens_BT, positions_BT])
        visibility = Visibility(caches.visible_slots(positions_BT))
        return self.decoder(self.embedder(tokens_BT, positions_BT), positions_BT, visibility, caches)

    def logits(self, hidden_BTD: Array) -> Array:
        """Returns the logits at each hidden state, [..., V], in float32."""
        states_BTD, layer = self.before_logits(hidden_BTD)
        return layer(states_BTD)

    def before_logits(self, hidden_BTD: Array) -> tuple[Array, OutputLayer]:
        """The states, [..., D], and the layer that turns them into logits."""
        return hidden_BTD, self.output_layer(self.embedder.embedding())

    def pool(self, hidden_BTD: Array, segments_BT: Array | None = None) -> Array:
        """Returns the hidden state of each row's last token that is not padding (segment 0), [B, D].

        Only this token has seen the whole row. For a row of padding it is the last token's.
        """
        if segments_BT is None:
            return hidden_BTD[:, -1]
        length = segments_BT.shape[1]
        last_B = length - 1 - jnp.argmax(segments_BT[:, ::-1] > 0, axis=1)
        return jnp.take_along_axis(hidden_BTD, last_B[:, None, None], axis=1)[:, 0]


def prefix_mask(prefix_BT: Array, mask_BTS: Array | None = None) -> Array:
    """The mask, [B, T, S], by which tokens see earlier tokens, and prefix tokens also see their whole prefix.

    Whatever an existing mask hides stays hidden.
    """
    length = prefix_BT.shape[1]
    causal_TS = jnp.tril(jnp.ones((length, length), bool))
    seen_BTS = causal_TS[None] | (prefix_BT[:, :, None] & prefix_BT[:, None, :])
    return seen_BTS if mask_BTS is None else seen_BTS & mask_BTS
