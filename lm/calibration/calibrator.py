"""What a calibrator is, and the items that it is fitted to.

Axes: N items, C classes.
"""

import dataclasses
from collections.abc import Callable
from typing import NamedTuple

import numpy as np
from jax import Array

from lm.calibration.logits import Logits, take
from lm.calibration.parameters import Parameters, Spec

FEWEST = 5  # items of a class, for parameters of its own


class FitItems(NamedTuple):
    """Items to fit to.

    Attributes:
      logits: [N, C], or factors.
      labels_N: the true classes.
      weights_N: how much each counts, with mean 1.
      is_rare_C: classes with fewer than `FEWEST` items: too few for parameters of their own.
    """

    logits: Logits
    labels_N: Array
    weights_N: np.ndarray
    is_rare_C: np.ndarray

    def take(self, index_N: np.ndarray) -> "FitItems":
        """Some of them, with the same rare classes."""
        weights_N = self.weights_N[index_N]
        logits, labels_N = take(self.logits, index_N), self.labels_N[index_N]
        return FitItems(logits, labels_N, weights_N / weights_N.mean(), self.is_rare_C)


def _always_sound(parameters: Parameters) -> None:
    """Nothing to check beyond each parameter by itself."""


@dataclasses.dataclass(frozen=True)
class Calibrator:
    """A calibration method.

    Attributes:
      label: name in tables.
      fit: from items to parameters: arrays, numbers, lists of arrays. The optional entries `converged` and `at_bound`
        describe how the fit ended.
      apply: from parameters and logits to logits.
      spec: what each parameter may be.
      summary: one line about the parameters.
      by_class: whether classes have parameters of their own.
      takes_zeros: whether it can be fitted to labels with probability 0.
      takes_weights: whether items can count differently.
      check: raises ValueError for parameters that do not go together.
    """

    label: str
    fit: Callable[[FitItems], Parameters]
    apply: Callable[[Parameters, Logits], Logits]
    spec: Spec
    summary: Callable[[Parameters], str] = lambda parameters: ""
    by_class: bool = True
    takes_zeros: bool = False
    takes_weights: bool = True
    check: Callable[[Parameters], None] = _always_sound
