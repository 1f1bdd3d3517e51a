"""What tasks with examples have in common: rows in, arrays through a model, results out.

A row is what a file holds for one example, by column: texts, labels, words, tags, answers. A task turns rows into
examples, examples travel in batches (`lm.data.example_batches`), and what the model predicts for them becomes results:
figures that know their uncertainty, records that a person can read, and predictions for `experiments.calibrate`.
"""

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any, Protocol

import numpy as np
from jax import Array

from lm.calibration.predictions import Predictions
from lm.evaluation.bootstrap import Metric

Row = Mapping[str, Any]
Example = dict[str, np.ndarray]
Batch = dict[str, Array]
Params = Any


@dataclasses.dataclass(frozen=True)
class Results:
    """What a task makes of predictions for some rows.

    Attributes:
      metrics: by name, the most important first.
      records: one for each row, as JSON can hold it: the row, the answer, and how sure the model was of it.
      predictions: for calibration; None where a task's answers are no choice among classes.
      confusion_CC: how often class i (row) was taken for class j (column), and None where there are no classes.
      class_names: of the C classes.
    """

    metrics: dict[str, Metric]
    records: list[dict[str, Any]]
    predictions: Predictions | None = None
    confusion_CC: np.ndarray | None = None
    class_names: tuple[str, ...] = ()


class SupervisedTask(Protocol):
    """A task with examples.

    Attributes:
      axes: for each array of an example, the name of the axis that padding lengthens, such as {"tokens": "T"}; arrays
        that share an axis are padded to the same length. Arrays that aren't named here are scalars.
      padding: what to pad each array with; 0 where nothing is said.
    """

    axes: Mapping[str, str]
    padding: Mapping[str, int]

    def encode(self, rows: Sequence[Row]) -> list[Example]:
        """An example for each row (or several: a long text's windows, which `index` tells apart).

        Raises:
          UserError: for rows that don't fit the task, by their place in the file.
        """

    def init(self, key: Array) -> Params:
        """Random parameters."""

    def loss(self, params: Params, batch: Batch, dropout_key: Array | None) -> tuple[Array, dict[str, Array]]:
        """The objective's weighted sum, and weighted sums to report, `weight` among them.

        `batch["row_weights"]` [B] is 0 for rows that only fill the batch.
        """

    def predict(self, params: Params, batch: Batch) -> dict[str, Array]:
        """What `results` needs of the model: arrays that lead with B. Compiled by the caller."""

    def results(self, rows: Sequence[Row], examples: Sequence[Example], outputs: Sequence[dict[str, Any]]) -> Results:
        """Makes results of predictions.

        Args:
          rows: as given to `encode`.
          examples: as `encode` returned them.
          outputs: for each example its part of what `predict` returned, NumPy arrays without the batch axis; padded
            axes as long as the batch was.
        """
