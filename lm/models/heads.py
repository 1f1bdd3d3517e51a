"""Bodies with heads: text classifiers, token classifiers and span extractors.

Parameters are `body`, named as in the body alone so that pretrained ones load by path, and `head`, a linear map.
Dropout is on when `rngs={"dropout": key}` is passed.

Axes: B texts, T positions, D width of the body's states, P width of its pooled vectors, C classes.
"""

import flax.linen as nn
import jax
import jax.numpy as jnp
from jax import Array

from lm.models.build import make_body
from lm.modules.config import ModelConfig
from lm.modules.dropout import Dropout

_IMPOSSIBLE = -1e30  # vanishes in a softmax, and unlike -inf leaves sums and gradients finite


class SequenceClassifier(nn.Module):
    """Classifies texts by the body's pooled vector.

    Attributes:
      config: of the body.
      classes: C.
      mesh: of devices, or None for one device.
      compares: for a recurrent body and pairs of texts: encode each text separately; the head gets both vectors, their
        absolute difference and their product (Conneau et al. 2017, section 3.1). Other bodies compare texts by
        attention.
    """

    config: ModelConfig
    classes: int
    mesh: jax.sharding.Mesh | None = None
    compares: bool = False

    def setup(self):
        """Makes the parts."""
        self.body = make_body(self.config, self.mesh)
        self.dropout = Dropout(self.config)
        self.head = _head(self.config, self.classes)

    def __call__(
        self,
        tokens_BT: Array,
        segments_BT: Array | None = None,
        types_BT: Array | None = None,
        mix_B: Array | None = None,
        partner_B: Array | None = None,
    ) -> Array:
        """Scores classes.

        Args:
          tokens_BT: ids below V.
          segments_BT: 0 is padding. None: no padding.
          types_BT: the text of a pair that each token belongs to; used if the body has type embeddings.
          mix_B: for mixup, the weight in [0, 1] of each text's own vector, the rest being its partner's (Verma et al.
            2019, manifold mixup; for sentences: Guo et al. 2019). None: no mixup.
          partner_B: for mixup, the row of each text's partner.

        Returns:
          Logits [B, C] in float32.
        """
        if self.compares:
            if segments_BT is None or types_BT is None:
                raise ValueError("comparing two texts needs their segments and types")
            pooled_BP = self._compared(tokens_BT, segments_BT, types_BT)
        else:
            pooled_BP = self.body.pool(_hidden(self.body, tokens_BT, segments_BT, types_BT), segments_BT)
        if mix_B is not None:
            share_B1 = mix_B[:, None].astype(pooled_BP.dtype)
            pooled_BP = share_B1 * pooled_BP + (1 - share_B1) * pooled_BP[partner_B]
        return self.head(self.dropout(pooled_BP).astype(jnp.float32))

    def _compared(self, tokens_BT: Array, segments_BT: Array, types_BT: Array) -> Array:
        # As segments of their own, neither text sees the other.
        hidden_BTD = _hidden(self.body, tokens_BT, segments_BT * (1 + types_BT), types_BT)
        first_BD, second_BD = (self.body.pool(hidden_BTD, segments_BT * (types_BT == kind)) for kind in (0, 1))
        return jnp.concatenate([first_BD, second_BD, jnp.abs(first_BD - second_BD), first_BD * second_BD], axis=-1)


class TokenClassifier(nn.Module):
    """Classifies each token by the body's hidden state.

    Attributes:
      config: of the body.
      classes: C.
      mesh: of devices, or None for one device.
    """

    config: ModelConfig
    classes: int
    mesh: jax.sharding.Mesh | None = None

    def setup(self):
        """Makes the parts."""
        self.body = make_body(self.config, self.mesh)
        self.dropout = Dropout(self.config)
        self.head = _head(self.config, self.classes)

    def __call__(self, tokens_BT: Array, segments_BT: Array | None = None, types_BT: Array | None = None) -> Array:
        """Returns logits [B, T, C] in float32. Arguments as in `SequenceClassifier`."""
        hidden_BTD = _hidden(self.body, tokens_BT, segments_BT, types_BT)
        return self.head(self.dropout(hidden_BTD).astype(jnp.float32))


class SpanExtractor(nn.Module):
    """Scores each token as the start and as the end of an answer (Devlin et al. 2019, section 4.2).

    Attributes:
      config: of the body.
      mesh: of devices, or None for one device.
    """

    config: ModelConfig
    mesh: jax.sharding.Mesh | None = None

    def setup(self):
        """Makes the parts."""
        self.body = make_body(self.config, self.mesh)
        self.head = _head(self.config, 2)

    def __call__(
        self,
        tokens_BT: Array,
        segments_BT: Array | None = None,
        types_BT: Array | None = None,
        mask_BT: Array | None = None,
    ) -> tuple[Array, Array]:
        """Scores tokens.

        Args:
          tokens_BT: ids below V.
          segments_BT: 0 is padding. None: no padding.
          types_BT: as in `SequenceClassifier`.
          mask_BT: true where an answer may start or end. None: anywhere.

        Returns:
          Logits of the start and of the end, each [B, T] in float32; -1e30 at padding and where the mask is false.
        """
        hidden_BTD = _hidden(self.body, tokens_BT, segments_BT, types_BT)
        logits_BT2 = self.head(hidden_BTD.astype(jnp.float32))
        possible_BT = jnp.ones(tokens_BT.shape, bool) if segments_BT is None else segments_BT > 0
        if mask_BT is not None:
            possible_BT = possible_BT & (mask_BT > 0)
        logits_BT2 = jnp.where(possible_BT[:, :, None], logits_BT2, _IMPOSSIBLE)
        return logits_BT2[:, :, 0], logits_BT2[:, :, 1]


def _hidden(body: nn.Module, tokens_BT: Array, segments_BT: Array | None, types_BT: Array | None) -> Array:
    return body.hidden(tokens_BT, segments_BT, types_BT=types_BT if body.config.segment_types else None)


def _head(config: ModelConfig, features: int) -> nn.Dense:
    initializer = nn.initializers.normal(config.initializer_range)
    return nn.Dense(features, dtype=jnp.float32, param_dtype=config.storage_dtype, kernel_init=initializer)
