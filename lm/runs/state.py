"""The state that a training step updates and a checkpoint stores."""

import flax.struct
import jax.numpy as jnp
import optax
from jax import Array

from lm.types import Params


@flax.struct.dataclass
class TrainState:
    """Everything that a step updates.

    Attributes:
      step: optimizer steps taken.
      params: the model's parameters.
      optimizer_state: optax's.
      averaged_params: their exponential moving average, or None.
    """

    step: Array
    params: Params
    optimizer_state: optax.OptState
    averaged_params: Params | None

    @property
    def evaluation_params(self) -> Params:
        """The averaged parameters if there are any, else the parameters."""
        return self.params if self.averaged_params is None else self.averaged_params

    @classmethod
    def of_params(cls, params: Params) -> "TrainState":
        """A state for evaluation only: it has no optimizer."""
        return cls(jnp.zeros((), jnp.int32), params, (), None)
