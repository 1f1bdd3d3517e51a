"""The classification loss, with options that affect calibration: smoothing, focal loss, class weights, mixup.

Axes: "..." the items, C classes.
"""

import dataclasses
import math
from collections import Counter
from collections.abc import Iterable, Sequence

import jax
import jax.numpy as jnp
from jax import Array

from lm.errors import UserError
from lm.tasks.supervised import TaskConfig


@dataclasses.dataclass(frozen=True)
class ClassificationLoss:
    """A loss for each item.

    Attributes:
      label_smoothing: as in `TaskConfig`.
      focal_gamma: as in `TaskConfig`.
      weights_C: of the classes, or None for equal weights.
    """

    label_smoothing: float = 0.0
    focal_gamma: float = 0.0
    weights_C: tuple[float, ...] | None = None

    @classmethod
    def from_config(cls, config: TaskConfig, classes: Sequence[str], labels: Iterable[str]) -> "ClassificationLoss":
        """The loss that a config describes, for these classes and training labels."""
        return cls(config.label_smoothing, config.focal_gamma, class_weights(config.class_weights, classes, labels))

    def __call__(self, logits: Array, target: Array) -> Array:
        """The loss of each item, [...].

        Args:
          logits: [..., C], float32.
          target: probabilities of the classes, [..., C]; one-hot for a known class.
        """
        log_probs = jax.nn.log_softmax(logits, axis=-1)
        target = (1 - self.label_smoothing) * target + self.label_smoothing / logits.shape[-1]
        weights = target
        if self.weights_C is not None:
            of_class = jnp.asarray(self.weights_C, jnp.float32)
            weights = weights * of_class.reshape((1,) * (logits.ndim - 1) + (-1,))
        if self.focal_gamma:
            # -expm1 keeps 1 - p exact for p near 1; the floor keeps the gradient of a power below 1 finite there.
            weights = weights * jnp.maximum(-jnp.expm1(log_probs), 1e-6) ** self.focal_gamma
        return -(weights * log_probs).sum(axis=-1)


def class_weights(description: str, classes: Sequence[str], labels: Iterable[str]) -> tuple[float, ...] | None:
    """Weights of the classes, or None for equal weights.

    "balanced" gives class c the weight N / (C n_c), where C classes occur, so that the items' mean weight is 1. Without
    labels, as for a model in use, weights are equal.

    Raises:
      UserError: unless the description is "none", "balanced" or one positive number per class.
    """
    if description == "none":
        return None
    if description == "balanced":
        counts = Counter(labels)
        if not counts:
            return None
        total = sum(counts.values())
        return tuple(total / (len(counts) * max(counts[name], 1)) for name in classes)
    try:
        weights = tuple(float(number) for number in description.split(","))
    except ValueError:
        weights = ()
    if len(weights) != len(classes) or not all(0 < weight < math.inf for weight in weights):
        raise UserError(
            f"config.task.class_weights must be none, balanced or {len(classes)} positive numbers for "
            f"{', '.join(classes)}; got {description!r}"
        )
    return weights
