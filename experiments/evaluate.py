"""Measures a trained model on rows: metrics with 95% intervals, and human-readable predictions.

python -m experiments.evaluate --workdir=runs/sst2
python -m experiments.evaluate --workdir=runs/sst2 --config.split=validation --config.calibrator=temperature
python -m experiments.evaluate --workdir=runs/sst2 --config.source=jsonl:other.jsonl --config.name=other

writes predictions/SPLIT.jsonl (one row per line), SPLIT.metrics.json, and for a classifier SPLIT.npz, which
experiments.calibrate reads, and a plot of the confusion matrix. A pretraining run is evaluated on its validation text.
"""

import dataclasses
import math
from pathlib import Path

from absl import flags
from rich.table import Table

from lm.command_line import define_config, run
from lm.configuration import from_config_dict, to_config_dict
from lm.console import Console
from lm.data.rows import Row, Splits, read_examples, read_source
from lm.data.store import build_corpus
from lm.errors import UserError
from lm.inference.load import load
from lm.inference.model_in_use import ModelInUse
from lm.inference.task_model import TaskModel
from lm.runs.config import FinetuneConfig
from lm.runs.results import Evaluation, Figure, write_results
from lm.runs.state import TrainState
from lm.runs.work_directory import WorkDirectory
from lm.statistics.intervals import Interval
from lm.tasks.registry import columns_of
from lm.training.evaluation import make_validation
from lm.training.partitioning import one_device_partitioner


@dataclasses.dataclass(frozen=True)
class EvaluateConfig:
    """An evaluation.

    Attributes:
      split: "test" or "validation", of the run's own data.
      source: other rows, such as "jsonl:other.jsonl"; empty: those of `split`.
      columns: what `source` calls the task's columns, as in "text=review". Empty: as in the run's own data.
      name: prefix of the files written for `source`.
      batch_size: rows per batch; 0: the run's.
      resamples: for the intervals.
      calibrator: name of a calibrator in the run's calibration/, or path of one, applied to the probabilities.
    """

    split: str = "test"
    source: str = ""
    columns: tuple[str, ...] = ()
    name: str = "other"
    batch_size: int = 0
    resamples: int = 1000
    calibrator: str = ""

    def __post_init__(self):
        if self.split not in ("test", "validation"):
            raise UserError(f"config.split must be test or validation, got {self.split!r}")
        if not self.name or Path(self.name).name != self.name:
            raise UserError(f"config.name must be a prefix of a file name, without folders; got {self.name!r}")
        if self.batch_size < 0 or self.resamples < 20:
            raise UserError("config.batch_size must not be negative, and config.resamples at least 20")


def define_flags(values: flags.FlagValues) -> None:
    """Defines the command line."""
    define_config(values, to_config_dict(EvaluateConfig()))
    flags.DEFINE_string("workdir", None, "Directory of a run.", flag_values=values)
    flags.DEFINE_string("checkpoint", "best", "Which checkpoint: best, last or a step.", flag_values=values)


def main(values: flags.FlagValues) -> None:
    """Evaluates and prints."""
    if not values.workdir:
        raise UserError("--workdir is missing: name the directory of a run")
    config = from_config_dict(EvaluateConfig, values.config)
    show(evaluate(config, WorkDirectory(Path(values.workdir)), values.checkpoint), Console())


def evaluate(
    config: EvaluateConfig, directory: WorkDirectory, checkpoint: str = "best", splits: Splits | None = None
) -> Evaluation:
    """Evaluates a run, writes the results into its work directory, and returns them.

    Args:
      config: of the evaluation.
      directory: of the run.
      checkpoint: "best", "last" or a step.
      splits: the rows of the run's own data, if already read; None: read them.

    Raises:
      UserError: if the run or the rows cannot be read, or the rows do not match the task.
    """
    model = load(directory.path, checkpoint, config.calibrator or None)
    if not isinstance(model, TaskModel):
        return _evaluate_pretrained(model)
    measured = model.measure(rows_to_evaluate(config, model.config, splits), config.batch_size)
    name = config.name if config.source else config.split
    name += f".{Path(config.calibrator).name.removesuffix('.json')}" if config.calibrator else ""
    about = measured.cut, measured.notes
    return write_results(measured.results, directory, name, config.resamples, model.step, *about)


def rows_to_evaluate(config: EvaluateConfig, run_config: FinetuneConfig, splits: Splits | None = None) -> list[Row]:
    """The rows to evaluate a run on.

    Raises:
      UserError: if they cannot be read, or the run has none.
    """
    data, columns = run_config.data, columns_of(run_config.task)
    if config.source:
        data = dataclasses.replace(data, columns=config.columns or data.columns)
        return read_source(config.source, "config.source", data, *columns)
    if config.split == "test" and not data.test:
        raise UserError("this run has no test rows: use --config.split=validation, or name rows with --config.source")
    splits = splits or read_examples(data, *columns)
    return splits.test if config.split == "test" else splits.validation


def _evaluate_pretrained(model: ModelInUse) -> Evaluation:
    """The metrics of a full pass over the validation text, with intervals of 1.96 standard errors."""
    config, task, partitioner = model.config, model.task, one_device_partitioner()
    corpus = build_corpus(config.data, config.tokenizer, model.tokenizer)
    rows = config.training.evaluation_batch_size or config.training.batch_size
    batches = task.validation_batches(corpus, rows)
    num_bytes = corpus.validation.num_bytes if task.counts_bytes else None
    found = make_validation(task, batches, num_bytes, partitioner)(TrainState.of_params(model.params))
    metrics = {}
    for name, value in found.items():
        name = name.removeprefix("validation/")
        if "/" in name or name.endswith("_stderr"):
            continue
        error = found.get(f"validation/{name}_stderr")
        metrics[name] = Figure(
            value, None if error is None else Interval(value - 1.96 * error, value + 1.96 * error, error)
        )
    return Evaluation("validation", model.step, len(batches) * rows, metrics)


def show(found: Evaluation, console: Console) -> None:
    """Prints a table of the metrics."""
    table = Table(title=f"{found.split}: {found.rows:,} rows, checkpoint {found.checkpoint}")
    for column in ("", "value", "95% interval"):
        table.add_column(column, justify="left" if not column else "right")
    for name, figure in found.metrics.items():
        table.add_row(name, _number(figure.value), _interval(figure.interval))
    console.print(table)
    for name, signature in found.signatures.items():
        console.print(f"{name}: {signature}")
    if found.cut:
        console.print(f"truncated, because they are too long for the model: {found.cut:,} rows")
    for note in found.notes:
        console.print(f"(!) {note}")


def _number(value: float) -> str:
    return "-" if math.isnan(value) else f"{value:.4f}"


def _interval(interval: Interval | None) -> str:
    if interval is None or math.isnan(interval.low):
        return ""
    return f"{interval.low:.4f} to {interval.high:.4f}"


if __name__ == "__main__":
    run(main, define_flags, __doc__.strip())
