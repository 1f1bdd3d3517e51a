"""Measures a trained model on rows: metrics with 95% intervals, and human-readable predictions.

python -m experiments.evaluate --workdir=runs/sst2
python -m experiments.evaluate --workdir=runs/sst2 --config.split=validation --config.calibrator=temperature
python -m experiments.evaluate --workdir=runs/sst2 --config.source=jsonl:other.jsonl --config.name=other

writes predictions/SPLIT.jsonl (one row per line), SPLIT.metrics.json, and for a classifier SPLIT.npz, which
experiments.calibrate reads, and a plot of the confusion matrix. A pretraining run is evaluated on its validation text.
"""

import dataclasses
import math
from collections.abc import Sequence
from pathlib import Path

import jax
from absl import flags
from jax.sharding import Mesh
from rich.table import Table

from lm.command_line import define_config, run
from lm.console import QUIET, Console
from lm.data.corpora import open_corpus
from lm.data.rows import Row, Splits, read_examples, read_source
from lm.errors import UserError
from lm.files import check_writable, is_plain_name
from lm.hosts import define_distributed
from lm.inference.load import load
from lm.inference.model_in_use import ModelInUse
from lm.inference.task_model import TaskModel
from lm.runs.config import FinetuneConfig, PretrainConfig, RunConfig
from lm.runs.data_record import Fingerprint, Fingerprints, changes, check_inside, check_own, recorded_data
from lm.runs.results import Evaluation, Figure, write_results
from lm.runs.state import TrainState
from lm.runs.work_directory import WorkDirectory
from lm.statistics.intervals import Interval
from lm.statistics.units import shown
from lm.tasks.registry import columns_of
from lm.training.evaluation import make_validation
from lm.training.partitioning import MeshPartitioner, mesh_of_all_hosts, one_device_partitioner

_SPLITS = ("test", "validation")


@dataclasses.dataclass(frozen=True)
class EvaluateConfig:
    """An evaluation.

    Attributes:
      split: "test" or "validation", of the run's own data. Empty: "test"; a pretraining run has "validation" alone.
      source: other rows, such as "jsonl:other.jsonl"; empty: those of `split`.
      columns: what `source` calls the task's columns, as in "text=review". Empty: as in the run's own data.
      delimiter: of `source`, as config.data.delimiter. Empty: as in the run's own data; so for the next two.
      quoting: of `source`, as config.data.quoting.
      header: names of the columns of `source`, as config.data.header; "()" if the file has a header, though the run's
        own files have none.
      name: prefix of the files written for `source`; not that of a split.
      batch_size: rows per batch; 0: the run's.
      resamples: for the intervals.
      calibrator: name of a calibrator in the run's calibration/, or path of one, applied to the probabilities.
      trust: read the data that the run's own config names although someone else may have trained the run.
    """

    split: str = ""
    source: str = ""
    columns: tuple[str, ...] = ()
    delimiter: str = ""
    quoting: str = ""
    header: tuple[str, ...] | None = None
    name: str = "other"
    batch_size: int = 0
    resamples: int = 1000
    calibrator: str = ""
    trust: bool = False

    def __post_init__(self):
        if self.split not in ("", *_SPLITS):
            raise UserError(f"config.split must be test or validation, got {self.split!r}")
        if not is_plain_name(self.name):
            raise UserError(f"config.name must be a prefix of a file name, without folders; got {self.name!r}")
        if self.name.partition(".")[0] in _SPLITS:
            raise UserError(
                f"config.name={self.name} is for the run's own rows: choose a name for those of config.source"
            )
        if self.batch_size < 0 or self.resamples < 20:
            raise UserError("config.batch_size must not be negative, and config.resamples at least 20")
        if self.source and self.split:
            raise UserError("config.source and config.split name different rows: leave one out")
        of_source = ("columns", "delimiter", "quoting", "header", "name")
        self._refuse(() if self.source else of_source, "has no effect without config.source: leave it out")

    def check_for_text(self) -> None:
        """Checks that nothing is set that has no effect on a pretraining run.

        Raises:
          UserError: if something is.
        """
        if self.split == "test":
            raise UserError("a pretraining run has no test rows: leave config.split out to measure its validation text")
        self._refuse(
            ("source", "calibrator", "resamples"),
            "has no effect on a pretraining run, which is measured on its validation text: leave it out",
        )

    def _refuse(self, names: Sequence[str], why: str) -> None:
        for field in dataclasses.fields(self):
            if field.name in names and getattr(self, field.name) != field.default:
                raise UserError(f"config.{field.name}={getattr(self, field.name)} {why}")


def define_flags(values: flags.FlagValues) -> None:
    """Defines the command line."""
    define_config(values, EvaluateConfig)
    flags.DEFINE_string("workdir", None, "Directory of a run.", flag_values=values)
    flags.DEFINE_string("checkpoint", "best", "Which checkpoint: best, last or a step.", flag_values=values)
    define_distributed(values)


def main(values: flags.FlagValues) -> None:
    """Evaluates and prints."""
    if not values.workdir:
        raise UserError("--workdir is missing: name the directory of a run")
    directory, console = WorkDirectory(Path(values.workdir)), Console(stderr=True, quiet=jax.process_index() != 0)
    found = evaluate(values.config, directory, values.checkpoint, console=console)
    if found is None:
        return
    show(found, Console())
    if found.unit == "rows":
        console.print(f"everything is in {directory.predictions}")


def evaluate(
    config: EvaluateConfig,
    directory: WorkDirectory,
    checkpoint: str = "best",
    splits: Splits | None = None,
    console: Console = QUIET,
) -> Evaluation | None:
    """Evaluates a run, writes the results into its work directory, and returns them.

    Several hosts share the rows; the first one writes and returns, the others return None.

    Args:
      config: of the evaluation.
      directory: of the run.
      checkpoint: "best", "last" or a step.
      splits: the rows of the run's own data, if already read; None: read them.
      console: for progress.

    Raises:
      UserError: if the run or the rows cannot be read, or the rows do not match the task.
    """
    run_config = directory.load_config()
    if isinstance(run_config, PretrainConfig):
        config.check_for_text()
        if run_config.imported_from:
            raise UserError(
                f"{directory.path} holds a published model, which has no validation text: train it further on a text, "
                f"with experiments.pretrain --config.init_from={directory.path}, and evaluate that run"
            )
        _check_own(config, directory, run_config, ("source", "validation_source"), "add --config.trust=True")
        mesh = mesh_of_all_hosts()
        found = _evaluate_text(config, directory, load(directory.path, checkpoint, mesh=mesh), mesh)
        return found if jax.process_index() == 0 else None
    check_writable(directory.predictions, f"--workdir={directory.path}")
    if not config.source and splits is None:
        way_out = "add --config.trust=True, or name rows with --config.source"
        _check_own(config, directory, run_config, ("train", "validation", "test"), way_out)
    if not config.trust and jax.process_index() == 0:
        check_inside(directory, run_config, directory.predictions, ", or add --config.trust=True")
    model = load(directory.path, checkpoint, config.calibrator or None, mesh=mesh_of_all_hosts())
    assert isinstance(model, TaskModel)  # as it was trained on rows
    rows, notes = rows_to_evaluate(config, directory, run_config, splits)
    measured = model.measure(rows, config.batch_size, console)
    if jax.process_index():
        return None
    name = config.name if config.source else config.split or "test"
    name += f".{Path(config.calibrator).name.removesuffix('.json')}" if config.calibrator else ""
    about = measured.cut, (*notes, *measured.notes)
    return write_results(measured.results, directory, name, config.resamples, model.step, *about)


def rows_to_evaluate(
    config: EvaluateConfig, directory: WorkDirectory, run_config: FinetuneConfig, splits: Splits | None = None
) -> tuple[list[Row], tuple[str, ...]]:
    """The rows to evaluate a run on, and notes about them.

    Raises:
      UserError: if they cannot be read, or the run has none.
    """
    data, columns, split = run_config.data, columns_of(run_config.task), config.split or "test"
    if config.source:
        data = data.of_other_file(config.columns, config.delimiter, config.quoting, config.header)
        return read_source(config.source, "config.source", data, *columns), ()
    if not data.train:
        raise UserError(f"{directory.path} holds a published model, which has no rows: name some with --config.source")
    if split == "test" and not data.test:
        raise UserError("this run has no test rows: use --config.split=validation, or name rows with --config.source")
    splits = splits or read_examples(data, *columns)
    rows = splits.test if split == "test" else splits.validation
    return rows, _changes(directory, {split: Fingerprint.of_rows(rows)})


def _changes(directory: WorkDirectory, found: Fingerprints) -> tuple[str, ...]:
    """Lines about data that differ from those of training, where these are known."""
    recorded = recorded_data(directory)
    return tuple(f"since training, {change}" for change in changes(recorded, found, found if recorded else ()).values())


def _check_own(
    config: EvaluateConfig, directory: WorkDirectory, run_config: RunConfig, reads: Sequence[str], way_out: str
) -> None:
    if not config.trust and jax.process_index() == 0:  # which has the key with which the run is signed
        check_own(directory, run_config, reads, way_out)


def _evaluate_text(
    config: EvaluateConfig, directory: WorkDirectory, model: ModelInUse, mesh: Mesh | None
) -> Evaluation:
    """The metrics of a full pass over the validation text, with intervals of 1.96 standard errors."""
    run_config, task = model.config, model.task
    partitioner = one_device_partitioner() if mesh is None else MeshPartitioner(mesh)
    corpus = open_corpus(run_config.data, run_config.tokenizer, model.tokenizer)
    training = run_config.training
    size = config.batch_size or training.evaluation_batch_size or training.batch_size
    size += -size % partitioner.batch_shards
    batches = task.validation_batches(corpus, size, *partitioner.part_of_batch)
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
    tokens = int(metrics.pop("tokens").value)
    notes = _changes(directory, {"validation": Fingerprint.of_text(corpus.validation)})
    return Evaluation("validation", model.step, tokens, metrics, unit="tokens", notes=notes)


def show(found: Evaluation, console: Console) -> None:
    """Prints a table of the metrics."""
    table = Table(title=f"{found.split}: {found.rows:,} {found.unit}, checkpoint {found.checkpoint}")
    for column in ("", "value", "95% interval"):
        table.add_column(column, justify="left" if not column else "right")
    for name, figure in found.metrics.items():
        table.add_row(name, shown(name, figure.value), _interval(name, figure.interval))
    console.print(table)
    for name, signature in found.signatures.items():
        console.print(f"{name}: {signature}")
    if found.cut:
        console.print(f"truncated, because they are too long for the model: {found.cut:,} rows")
    for note in found.notes:
        console.print(f"(!) {note}")


def _interval(name: str, interval: Interval | None) -> str:
    if interval is None or math.isnan(interval.low):
        return ""
    return f"{shown(name, interval.low)} to {shown(name, interval.high)}"


if __name__ == "__main__":
    run(main, define_flags, __doc__.strip())
