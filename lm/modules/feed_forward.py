"""Feed-forward layers.

Axes: B batch, T positions, D model width, F feed-forward width.
"""

import flax.linen as nn
import jax
from jax import Array

from lm.modules.config import ModelConfig
from lm.modules.explicit_gradients import gelu_tanh
from lm.modules.linear import Linear


class FeedForward(nn.Module):
    """A position-wise feed-forward layer: GELU (Hendrycks & Gimpel 2016) or SwiGLU (Shazeer 2020)."""

    config: ModelConfig

    @nn.compact
    def __call__(self, inputs_BTD: Array) -> Array:
        """Returns [B, T, D], to be added to the residual stream."""
        config = self.config
        hidden_BTF = Linear(config, config.size_of_feed_forward, name="up")(inputs_BTD)
        if config.activation == "swiglu":
            gate_BTF = Linear(config, config.size_of_feed_forward, name="gate")(inputs_BTD)
            hidden_BTF = jax.nn.silu(gate_BTF) * hidden_BTF
        elif config.activation == "gelu_tanh":
            hidden_BTF = gelu_tanh(hidden_BTF)
        else:
            hidden_BTF = jax.nn.gelu(hidden_BTF, approximate=False)
        return Linear(config, config.width, to_residual=True, name="down")(hidden_BTF)
