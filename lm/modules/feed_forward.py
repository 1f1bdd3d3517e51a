"""Feed-forward layers.

Axes: B batch, T positions, D model width, F feed-forward width.
"""

import functools
from collections.abc import Callable

import flax.linen as nn
import jax
from jax import Array

from lm.modules.config import ModelConfig
from lm.modules.explicit_gradients import gelu_tanh, with_gradients
from lm.modules.linear import Linear

GATED = ("swiglu", "gated_gelu", "gated_gelu_exact")
_FUNCTIONS: dict[str, Callable[[Array], Array]] = {
    "gelu": functools.partial(jax.nn.gelu, approximate=False),
    "gelu_tanh": gelu_tanh,
    "relu": jax.nn.relu,
    "silu": jax.nn.silu,
    # The activations of gates. T5 1.1 uses the tanh form of GELU.
    "swiglu": jax.nn.silu,
    "gated_gelu": gelu_tanh,
    "gated_gelu_exact": functools.partial(jax.nn.gelu, approximate=False),
}


def activation(config: ModelConfig) -> Callable[[Array], Array]:
    """The configured elementwise function; for gated layers, that of the gate."""
    return with_gradients(_FUNCTIONS[config.activation], config.gradients)


class FeedForward(nn.Module):
    """A position-wise feed-forward layer: plain (Vaswani et al. 2017), or gated with a third matrix (Shazeer 2020)."""

    config: ModelConfig

    @nn.compact
    def __call__(self, inputs_BTD: Array) -> Array:
        """Returns [B, T, D], to be added to the residual stream."""
        config = self.config
        hidden_BTF = Linear(config, config.size_of_feed_forward, name="up")(inputs_BTD)
        if config.activation in GATED:
            gate_BTF = Linear(config, config.size_of_feed_forward, name="gate")(inputs_BTD)
            hidden_BTF = activation(config)(gate_BTF) * hidden_BTF
        else:
            hidden_BTF = activation(config)(hidden_BTF)
        return Linear(config, config.width, to_residual=True, name="down")(hidden_BTF)
