"""A model trained on a task with rows."""

import dataclasses
import functools
from collections.abc import Sequence
from typing import Any, NamedTuple

from lm.calibration.predictions import Predictions
from lm.console import QUIET, Console
from lm.data.config import ExamplesConfig
from lm.data.rows import clean_row
from lm.errors import UserError
from lm.inference.examples import make_prediction_step, with_calibrator
from lm.inference.model_in_use import ModelInUse, Step, as_list
from lm.runs.config import FinetuneConfig
from lm.tasks.registry import columns_of
from lm.tasks.supervised import Columns, Encoded, Example, Results, Row


class Measured(NamedTuple):
    """A task's results for rows with answers, and what `Encoded` says of these rows."""

    results: Results
    cut: int
    notes: tuple[str, ...] = ()


class Predicted(NamedTuple):
    """Predictions for rows, each with a `to_json`, and how many rows were truncated."""

    predictions: list[Any]
    cut: int


class TaskModel(ModelInUse):
    """Its task is a `SupervisedTask`."""

    @property
    def data(self) -> ExamplesConfig:
        """How the rows of the run were read."""
        return self._finetuning.data

    @property
    def columns(self) -> Columns:
        """The columns of rows."""
        task = self._finetuning.task
        needed, possible = columns_of(task)
        return Columns(needed, tuple(name for name in possible if name != "pair" or task.pair))

    @property
    def _finetuning(self) -> FinetuneConfig:
        assert isinstance(self.config, FinetuneConfig)  # as it was trained on rows
        return self.config

    @property
    def rows_per_batch(self) -> int:
        """How many rows go through the model at once."""
        return self.config.training.evaluation_batch_size or self.config.training.batch_size

    def predict_rows(self, rows: Sequence[Row], truncate: bool | None = None) -> Predicted:
        """Predictions for rows, which need no labels, tags, answers or targets.

        Args:
          rows: as `lm.data.rows` reads them, cleaned.
          truncate: truncate texts that are too long for the model; None: as in training.

        Raises:
          UserError: for rows that don't fit the task.
        """
        self._refuse("predict")

    def measure(self, rows: Sequence[Row], batch_size: int = 0, console: Console = QUIET) -> Measured:
        """The task's results for rows with answers, from calibrated probabilities if there is a calibrator.

        Args:
          rows: as `lm.data.rows` reads them, cleaned.
          batch_size: examples per batch; 0: the run's.
          console: for progress.

        Raises:
          UserError: for rows that don't fit the task.
        """
        encoded = self.task.encode(rows)
        results = self._results(rows, encoded.examples, self._predicted(encoded, batch_size, console))
        return Measured(results, encoded.cut, encoded.notes)

    def _results(self, rows: Sequence[Row], examples: Sequence[Example], outputs: Sequence[dict[str, Any]]) -> Results:
        if self.calibrator is not None:
            outputs = with_calibrator(outputs, self.calibrator)
        results = self.task.results(rows, examples, outputs)
        if results.predictions is None:
            return results
        return dataclasses.replace(results, predictions=self._signed(results.predictions))

    def _signed(self, predictions: Predictions) -> Predictions:
        # What is fitted to calibrated probabilities does not suit the model alone.
        calibrated = "" if self.calibrator is None else f"+{self.calibrator.name}"
        return dataclasses.replace(predictions, checkpoint=self.step, model=self.digest + calibrated)

    def _predicted(self, encoded: Encoded, batch_size: int = 0, console: Console = QUIET) -> list[dict[str, Any]]:
        axes, padding = self.task.axes, self.task.padding
        return self.outputs(self._predict, encoded.examples, axes, padding, batch_size, console)

    @functools.cached_property
    def _predict(self) -> Step:
        return self._compiled(make_prediction_step(self.task))

    def _encoded(self, rows: Sequence[Row], truncate: bool | None) -> Encoded:
        """The rows' examples, with `config.task.truncate` as configured or overridden."""
        return self._task(truncate).encode(rows)

    def _task(self, truncate: bool | None) -> Any:
        """The task, with `config.task.truncate` as configured or overridden."""
        task = self.task
        if truncate is None:
            return task
        if hasattr(task, "truncate"):
            return dataclasses.replace(task, truncate=truncate)
        return dataclasses.replace(task, config=dataclasses.replace(task.config, truncate=truncate))

    def _rows(self, kind: str, **columns: Sequence[Any]) -> list[Row]:
        """Rows without answers, cleaned like the run's own."""
        values = [as_list(column, name) for name, column in columns.items()]
        if len({len(column) for column in values}) > 1:
            lengths = " and ".join(f"{len(column)} {name}" for name, column in zip(columns, values, strict=True))
            raise UserError(f"there are {lengths}: give equally many")
        rows = [dict(zip(columns, row, strict=True)) for row in zip(*values, strict=True)]
        for name in columns:
            for number, row in enumerate(rows, 1):
                if name != "words" and not isinstance(row[name], str):
                    raise UserError(f"{kind} {number} must be text, got {type(row[name]).__name__}")
        cleaning = self.data.cleaning
        return [clean_row({**row, "place": f"{kind} {number}"}, cleaning) for number, row in enumerate(rows, 1)]
