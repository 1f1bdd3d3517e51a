"""Feed-forward layers.

Axes: B batch, T positions, D model width, F feed-forward width.
"""

import functools
from collections.abc import Callable

import flax.linen as nn
import jax
from jax import Array

from lm.modules.config import ModelConfig
from lm.modules.explicit_gradients import gelu_tanh
from lm.modules.linear import Linear

ACTIVATIONS: dict[str, Callable[[Array], Array]] = {
    "gelu": functools.partial(jax.nn.gelu, approximate=False),
    "gelu_tanh": gelu_tanh,
    "relu": jax.nn.relu,
}
# What the gate goes through. T5 1.1 has GELU in its tanh form there.
GATES: dict[str, Callable[[Array], Array]] = {"swiglu": jax.nn.silu, "gated_gelu": gelu_tanh}


class FeedForward(nn.Module):
    """A position-wise feed-forward layer: plain (Vaswani et al. 2017), or gated with a third matrix (Shazeer 2020)."""

    config: ModelConfig

    @nn.compact
    def __call__(self, inputs_BTD: Array) -> Array:
        """Returns [B, T, D], to be added to the residual stream."""
        config = self.config
        hidden_BTF = Linear(config, config.size_of_feed_forward, name="up")(inputs_BTD)
        if config.activation in GATES:
            gate_BTF = Linear(config, config.size_of_feed_forward, name="gate")(inputs_BTD)
            hidden_BTF = GATES[config.activation](gate_BTF) * hidden_BTF
        else:
            hidden_BTF = ACTIVATIONS[config.activation](hidden_BTF)
        return Linear(config, config.width, to_residual=True, name="down")(hidden_BTF)
