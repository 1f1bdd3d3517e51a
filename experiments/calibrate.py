"""Measures a model's calibration, fits calibrators, and tests whether they help.

python -m experiments.calibrate --config=configs/calibrate_quickstart.py --workdir=runs/quickstart

reads runs/quickstart/predictions/validation.npz and writes runs/quickstart/calibration/: the report (report.html), the
table (table.csv, comparison.json), figures, and each fitted calibrator as JSON. Predictions of any model work:

python -m experiments.calibrate --config=configs/calibrate.py --config.predictions=FILE.npz --workdir=runs/mine

where FILE.npz holds `logits` [items, classes], `labels` [items], and `clusters` [items] if items share documents or
prompts. For a fine-tuned run, calibrators are fitted on its validation rows and evaluated on its test rows. Several
runs at once end with a summary table:

python -m experiments.calibrate --config=configs/calibrate.py --workdir=runs/sst2 --workdir=runs/trec
"""

import contextlib
import csv
import dataclasses
import io
import os
from collections.abc import Iterator
from pathlib import Path

from absl import flags
from rich.table import Table

from lm.calibration.calibrators import CALIBRATORS
from lm.calibration.comparison import compare
from lm.calibration.predictions import Predictions, split
from lm.calibration.report.diagrams import save_pictures
from lm.calibration.report.page import report_html
from lm.calibration.report.wording import format_interval, format_p, format_value, verdict
from lm.calibration.results import Comparison, Entry, Settings, to_json
from lm.command_line import define_config_file, run
from lm.configuration import check_seed
from lm.console import Console
from lm.errors import UserError
from lm.files import json_value, write_atomically, write_json
from lm.runs.tensorboard import add_products
from lm.runs.work_directory import WorkDirectory


@dataclasses.dataclass(frozen=True)
class CalibrateConfig:
    """A calibration experiment.

    Attributes:
      predictions: npz file. Empty: predictions/test.npz of the work directory, with validation.npz for fitting, or
        validation.npz alone. A single file is split at random, by whole clusters, into items for fitting and items
        for testing.
      fit_predictions: npz file with separate items for fitting; `predictions` are then all for testing.
      fit_fraction: share of clusters (of items, if there are no clusters) used for fitting.
      calibrators: names; see `lm.calibration.calibrators`.
      settings: bins, resamples, level of intervals, seed.
      title: of the report; empty: the name of the predictions.
    """

    predictions: str = ""
    fit_predictions: str = ""
    fit_fraction: float = 0.5
    calibrators: tuple[str, ...] = ("temperature", "temperature_bias", "vector", "structured_matrix", "isotonic")
    settings: Settings = Settings()
    title: str = ""

    def __post_init__(self):
        if not 0 < self.fit_fraction < 1:
            raise UserError(f"config.fit_fraction must be between 0 and 1, got {self.fit_fraction}")
        for name in self.calibrators:
            if name not in CALIBRATORS:
                raise UserError(f"config.calibrators: unknown {name!r}; known are {', '.join(CALIBRATORS)}")
        settings = self.settings
        check_seed("config.settings.seed", settings.seed)
        if settings.bins < 1 or settings.resamples < 20 or not 0 < settings.level < 1:
            raise UserError("config.settings: bins must be at least 1, resamples at least 20, level between 0 and 1")


def define_flags(values: flags.FlagValues) -> None:
    """Defines the command line."""
    define_config_file(values, CalibrateConfig)
    flags.DEFINE_multi_string(
        "workdir", None, "Work directory of a run, or a new one; may be repeated.", flag_values=values
    )


def main(values: flags.FlagValues) -> None:
    """Runs the experiment in each work directory."""
    if not values.workdir:
        raise UserError("--workdir is missing: name the directory of a run, or a new one for the results")
    config = values.config
    if config.predictions and len(values.workdir) > 1:
        raise UserError("config.predictions is for a single run: pass one --workdir, or leave config.predictions empty")
    console = Console(stderr=True)
    comparisons = {name: calibrate(config, WorkDirectory(Path(name)), console) for name in values.workdir}
    if len(comparisons) > 1 and config.calibrators:
        console.print(summary_table(comparisons, config.calibrators[0]))


def calibrate(config: CalibrateConfig, directory: WorkDirectory, console: Console) -> Comparison:
    """Runs the experiment in a work directory and returns the comparison.

    Raises:
      UserError: if the config or the predictions are invalid; nothing is written then.
    """
    path, fit_path = predictions_of(config, directory)
    if not config.predictions and not path.is_file():
        raise UserError(
            f"{path} does not exist: to write it, run a decoder's pretraining again with "
            "--config.predictions.tokens=20000, or experiments.evaluate with --config.split=validation on a fine-tuned "
            "classifier; or name another file with --config.predictions=FILE.npz"
        )
    test = Predictions.load(path)
    if fit_path is not None:
        fit = Predictions.load(fit_path)
    else:
        fit, test = split(test, config.fit_fraction, config.settings.seed)
    with console.status("calibrating") as status, naming_file(path):
        comparison, fitted = compare(
            fit,
            test,
            config.calibrators,
            config.settings,
            title=config.title or f"{directory.path.name}: {path.stem}",
            source=path.name,
            progress=lambda name: status.update(f"calibrating: {name}"),
        )
        status.update("drawing figures")
        for name, calibrator in fitted.items():
            origin = {"checkpoint": fit.checkpoint, "model": fit.model}
            dataclasses.replace(calibrator, **origin).save(directory.calibration / f"{name}.json")
        pictures = save_pictures(comparison, directory.calibration)
        if directory.tensorboard.exists():
            add_products(directory, 0, {f"calibration/{path.stem}": path for path in pictures})
        write_json(directory.calibration / "comparison.json", to_json(comparison))
        write_atomically(directory.calibration / "table.csv", as_csv(comparison))
        write_atomically(directory.calibration / "report.html", report_html(comparison))
    console.print(as_table(comparison))
    for method in comparison.methods:
        if method.message:
            console.print(f"(!) {method.label}: {method.message}")
    said = verdict(comparison)
    for sentence in (said.before, said.after, *said.notes):
        console.print(sentence)
    console.print(f"report: {directory.calibration / 'report.html'}")
    return comparison


def predictions_of(config: CalibrateConfig, directory: WorkDirectory) -> tuple[Path, Path | None]:
    """The file to test on, and the file to fit on if it is a separate one."""
    fit = Path(config.fit_predictions) if config.fit_predictions else None
    if config.predictions:
        return Path(config.predictions), fit
    test, validation = directory.predictions / "test.npz", directory.predictions / "validation.npz"
    if test.is_file() and validation.is_file():
        return test, fit or validation
    return validation, fit


@contextlib.contextmanager
def naming_file(path: Path) -> Iterator[None]:
    """Turns a ValueError about the arrays into a UserError that names their file."""
    try:
        yield
    except ValueError as error:
        raise UserError(f"{path}: {error}") from error


def as_table(comparison: Comparison) -> Table:
    """The table for the console; everything else is in the report."""
    table = Table(title=comparison.title)
    columns = ("", "ECE %", "interval", "floor", "p of change", "NLL", "p of change", "accuracy %")
    for number, column in enumerate(columns):
        table.add_column(column, justify="right" if number else "left")
    for method in comparison.methods:
        ece, nll = method.entry("ece"), method.entry("nll")
        table.add_row(
            f"{method.label} {method.summary}{' (!)' if method.message else ''}",
            format_value(ece.value, "percent"),
            format_interval(ece.value, ece.interval, "percent"),
            format_value(ece.floor.mean, "percent"),
            _p_of_change(ece),
            format_value(nll.value, "nats"),
            _p_of_change(nll),
            format_value(method.entry("accuracy").value, "percent"),
        )
    return table


def _p_of_change(entry: Entry) -> str:
    return format_p(entry.difference.p) if entry.difference else ""


def summary_table(comparisons: dict[str, Comparison], calibrator: str) -> Table:
    """All runs before and after one calibrator, named by their paths relative to the common parent."""
    common = os.path.commonpath([os.path.abspath(name) for name in comparisons])
    table = Table(title=f"before and after: {calibrator}")
    columns = ("run", "items", "ECE %", "floor", "after", "p of change", "NLL", "after", "p of change")
    for number, column in enumerate(columns):
        table.add_column(column, justify="right" if number else "left")
    for name, comparison in comparisons.items():
        before, after = comparison.uncalibrated, comparison.method(calibrator)
        ece_before, ece_after = before.entry("ece"), after.entry("ece")
        nll_before, nll_after = before.entry("nll"), after.entry("nll")
        table.add_row(
            os.path.relpath(name, common),
            f"{comparison.items.test:,}",
            _with_interval(ece_before),
            format_value(ece_before.floor.mean, "percent"),
            _with_interval(ece_after),
            _p_of_change(ece_after),
            format_value(nll_before.value, "nats"),
            format_value(nll_after.value, "nats"),
            _p_of_change(nll_after),
        )
    return table


def _with_interval(entry: Entry) -> str:
    return f"{format_value(entry.value, 'percent')}\n({format_interval(entry.value, entry.interval, 'percent')})"


def as_csv(comparison: Comparison) -> str:
    """One line per method and metric."""
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    floor = ("floor_mean", "floor_high", "p_calibrated")
    change = ("value", "low", "high", "p")
    writer.writerow(
        ["calibrator", "metric", "value", "low", "high", *floor, *(f"difference_{name}" for name in change)]
    )
    for method in comparison.methods:
        for name, entry in method.entries.items():
            writer.writerow([method.name, name, *json_value(_numbers(entry))])
    return text.getvalue()


def _numbers(entry: Entry) -> list[float | None]:
    interval, floor, difference = entry.interval, entry.floor, entry.difference
    return [
        entry.value,
        *((interval.low, interval.high) if interval else (None, None)),
        *((floor.mean, floor.high, floor.p) if floor else (None, None, None)),
        *((difference.value, difference.low, difference.high, difference.p) if difference else (None,) * 4),
    ]


if __name__ == "__main__":
    run(main, define_flags, __doc__.strip())
