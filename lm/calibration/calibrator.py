"""What a calibrator is, and the items that it is fitted to.

Axes: N items, C classes.
"""

import dataclasses
from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np
from jax import Array

from lm.calibration.logits import Logits, take
from lm.calibration.parameters import Parameters, Spec
from lm.calibration.priors import Priors

FEWEST = 5  # items of a class, for parameters of its own


class UnlabelledItems(NamedTuple):
    """Items to fit to without labels: all that a calibrator sees which needs none.

    Attributes:
      logits: [N, C], or factors.
      weights_N: how much each counts.
      priors: log-probabilities of the labels for other inputs, as `lm.calibration.priors` has them.
    """

    logits: Logits
    weights_N: np.ndarray
    priors: Priors


class FitItems(NamedTuple):
    """Items to fit to.

    Attributes:
      logits: [N, C], or factors.
      labels_N: the true classes.
      weights_N: how much each counts, with mean 1.
      is_rare_C: classes with fewer than `FEWEST` items: too few for parameters of their own.
      unlabelled: the same items without their labels, and others whose labels nobody knows.
    """

    logits: Logits
    labels_N: Array
    weights_N: np.ndarray
    is_rare_C: np.ndarray
    unlabelled: UnlabelledItems

    def take(self, index_N: np.ndarray) -> "FitItems":
        """Some of them, with the same rare classes."""
        weights_N = self.weights_N[index_N]
        logits, labels_N = take(self.logits, index_N), self.labels_N[index_N]
        return FitItems(logits, labels_N, weights_N / weights_N.mean(), self.is_rare_C, self.unlabelled)


def _always_sound(parameters: Parameters) -> None:
    """Nothing to check beyond each parameter by itself."""


@dataclasses.dataclass(frozen=True)
class Calibrator:
    """A calibration method.

    Attributes:
      label: name in tables.
      fit: from `FitItems`, or `UnlabelledItems` if it sees no labels, to parameters: arrays, numbers, lists of arrays.
        The optional entries `converged` and `at_bound` describe how the fit ended.
      apply: from parameters and logits to logits.
      spec: what each parameter may be.
      summary: one line about the parameters.
      by_class: whether classes have parameters of their own, which rare ones lack.
      takes_zeros: whether it can be fitted to labels with probability 0.
      takes_weights: whether items can count differently.
      sees_labels: whether it is fitted to labels, and to minimize their loss.
      start: from parameters and logits to what the fit to labels starts from, if that is not the logits themselves.
      check: raises ValueError for parameters that do not go together.
    """

    label: str
    fit: Callable[[Any], Parameters]
    apply: Callable[[Parameters, Logits], Logits]
    spec: Spec
    summary: Callable[[Parameters], str] = lambda parameters: ""
    by_class: bool = True
    takes_zeros: bool = False
    takes_weights: bool = True
    sees_labels: bool = True
    start: Callable[[Parameters, Logits], Logits] | None = None
    check: Callable[[Parameters], None] = _always_sound
