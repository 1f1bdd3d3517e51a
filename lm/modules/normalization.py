"""Normalization.

Axes: ... any leading axes, D model width.
"""

import flax.linen as nn
import jax.numpy as jnp
from jax import Array

from lm.modules.config import ModelConfig
from lm.modules.explicit_gradients import along_last, layer_norm, with_gradients


class Normalization(nn.Module):
    """The configured normalization of the last axis: LayerNorm (Ba et al. 2016) or RMSNorm (Zhang & Sennrich 2019).

    Means and variances are taken in float32 whatever the compute dtype.
    """

    config: ModelConfig

    @nn.compact
    def __call__(self, stream_BTD: Array) -> Array:
        """Returns [..., D] in the compute dtype."""
        config = self.config
        width = stream_BTD.shape[-1]
        offset = 1 if config.normalization == "rms_norm_offset" else 0
        scale_D = self.param("scale", nn.initializers.constant(1 - offset), (width,), config.storage_dtype)
        if config.normalization in ("rms_norm", "rms_norm_offset"):
            wide = stream_BTD.astype(jnp.float32)
            mean_square = jnp.square(wide).mean(axis=-1, keepdims=True)
            normalized = wide / jnp.sqrt(mean_square + config.normalization_epsilon)
            factor = along_last(scale_D, wide.ndim)
            return (normalized * (offset + factor if offset else factor)).astype(config.compute_dtype)
        normalize = with_gradients(layer_norm, config.gradients)
        outputs_BTD = normalize(stream_BTD, scale_D, config.normalization_epsilon).astype(config.compute_dtype)
        if config.bias:
            bias_D = self.param("bias", nn.initializers.zeros, (width,), config.storage_dtype)
            outputs_BTD += along_last(bias_D, outputs_BTD.ndim).astype(config.compute_dtype)
        return outputs_BTD
