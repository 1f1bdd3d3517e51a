"""Dropout that is on exactly when a random key is passed."""

import flax.linen as nn
from jax import Array

from lm.modules.config import ModelConfig


class Dropout(nn.Module):
    """Dropout at the configured rate (Srivastava et al. 2014).

    It drops when the caller passes `rngs={"dropout": key}` and is the identity otherwise, so that no flag has to travel
    through the stack and evaluation cannot forget one.
    """

    config: ModelConfig

    @nn.compact
    def __call__(self, inputs: Array) -> Array:
        """Returns `inputs`, of any shape, with entries dropped and the rest scaled up."""
        return nn.Dropout(self.config.dropout, deterministic=not self.has_rng("dropout"))(inputs)


def dropout_rngs(key: Array | None) -> dict[str, Array]:
    """The `rngs` for `Module.apply`; without a key dropout is off."""
    return {} if key is None else {"dropout": key}
