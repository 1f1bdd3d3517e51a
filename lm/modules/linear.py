"""Linear maps, initialised as GPT-2 initialises them.

Axes: B batch, T positions, D model width, L layers.
"""

import math

import flax.linen as nn

from lm.modules.config import TransformerConfig


def linear(config: TransformerConfig, features: int, *, to_residual: bool = False, name: str | None = None) -> nn.Dense:
    """A linear map of the last axis.

    Args:
      config: gives the dtypes, the bias and the scale of the initial weights.
      features: size of the last axis after the map.
      to_residual: whether the result is added to the residual stream. The stream of L layers sums 2 L such maps, so
        their weights start smaller by sqrt(2 L) (Radford et al. 2019, section 2.3).
      name: of the submodule.
    """
    scale = config.initializer_range / (math.sqrt(2 * config.layers) if to_residual else 1)
    return nn.Dense(
        features,
        use_bias=config.bias,
        dtype=config.compute_dtype,
        param_dtype=config.storage_dtype,
        kernel_init=nn.initializers.normal(scale),
        name=name,
    )
