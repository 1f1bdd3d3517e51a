"""Normalization.

Axes: B batch, T positions, D model width.
"""

import flax.linen as nn

from lm.modules.config import TransformerConfig


def normalization(config: TransformerConfig, name: str | None = None) -> nn.Module:
    """The configured normalization of the last axis: LayerNorm (Ba et al. 2016) or RMSNorm (Zhang & Sennrich 2019).

    Means and variances are taken in float32 whatever the compute dtype.
    """
    shared = {
        "epsilon": config.normalization_epsilon,
        "dtype": config.compute_dtype,
        "param_dtype": config.storage_dtype,
        "name": name,
    }
    if config.normalization == "rms_norm":
        return nn.RMSNorm(**shared)
    # The fast variance, a difference of squares, is off by a third where the mean is a thousand deviations from 0.
    return nn.LayerNorm(use_bias=config.bias, use_fast_variance=False, **shared)
