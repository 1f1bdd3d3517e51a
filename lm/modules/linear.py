"""Linear maps, initialized as in GPT-2.

Axes: B batch, T positions, D model width, L layers.
"""

import math

import flax.linen as nn
from jax import Array

from lm.modules.config import ModelConfig


class Linear(nn.Module):
    """A linear map of the last axis, `kernel` [in, out] and optionally `bias` [out].

    Attributes:
      config: the dtypes, whether there is a bias, and the scale of the initial weights.
      features: size of the last axis after the map.
      to_residual: whether the result is added to the residual stream. The stream of L layers sums 2 L such maps, so
        their initial weights are divided by sqrt(2 L) (Radford et al. 2019, section 2.3).
      use_bias: whether there is a bias. None: as the config says.
    """

    config: ModelConfig
    features: int
    to_residual: bool = False
    use_bias: bool | None = None

    @nn.compact
    def __call__(self, inputs_BTD: Array) -> Array:
        """Returns [B, T, features]."""
        config = self.config
        scale = config.initializer_range / (math.sqrt(2 * config.layers) if self.to_residual else 1)
        dense = nn.Dense(
            self.features,
            use_bias=config.bias if self.use_bias is None else self.use_bias,
            dtype=config.compute_dtype,
            param_dtype=config.storage_dtype,
            kernel_init=nn.initializers.normal(scale),
        )
        nn.share_scope(self, dense)
        # As one matrix: with two leading axes XLA on CPU transposes the inputs again for the weight gradient.
        outputs = dense(inputs_BTD.reshape(-1, inputs_BTD.shape[-1]))
        return outputs.reshape(*inputs_BTD.shape[:-1], self.features)
