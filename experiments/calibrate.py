"""Measures a model's calibration, fits calibrators, and tests whether they help.

python -m experiments.calibrate --config=configs/calibrate_quickstart.py --workdir=runs/quickstart

reads runs/quickstart/predictions/validation.npz and writes runs/quickstart/calibration/: the report (report.html), the
table (table.csv, comparison.json), figures, and each fitted calibrator as JSON. Predictions of any model work:

python -m experiments.calibrate --config=configs/calibrate.py --config.predictions=FILE.npz --workdir=runs/mine

where FILE.npz holds `logits` [items, classes], `labels` [items], and `clusters` [items] if items share documents or
prompts. For a fine-tuned run, calibrators are fitted on its validation rows and evaluated on its test rows. Several
runs at once end with a summary table:

python -m experiments.calibrate --config=configs/calibrate.py --workdir=runs/sst2 --workdir=runs/trec

To measure without fitting anything, on all items: --config.calibrators="()"
"""

import contextlib
import csv
import dataclasses
import io
import os
import re
import shlex
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path

import jax
import numpy as np
from absl import flags
from rich.box import SIMPLE_HEAD
from rich.table import Table

from lm.calibration.calibrators import CALIBRATORS
from lm.calibration.comparison import compare
from lm.calibration.inputs import InputError
from lm.calibration.predictions import Predictions, split
from lm.calibration.report.diagrams import save_pictures
from lm.calibration.report.page import report_html
from lm.calibration.report.wording import format_interval, format_p, format_value, guaranteed, suggested, verdict
from lm.calibration.results import Comparison, Entry, Settings, to_json
from lm.command_line import define_config_file, run
from lm.configuration import check_seed
from lm.console import Console, printable
from lm.errors import UserError
from lm.files import check_writable, json_value, write_atomically, write_json
from lm.runs.config import PretrainConfig
from lm.runs.data_record import check_inside
from lm.runs.tensorboard import add_products
from lm.runs.work_directory import WorkDirectory, names_of_runs


@dataclasses.dataclass(frozen=True)
class CalibrateConfig:
    """A calibration experiment.

    Attributes:
      predictions: file (npz, npy, csv, tsv, json, jsonl or parquet). Empty: predictions/test.npz of the work directory,
        with validation.npz for fitting, or
        validation.npz alone. A single file is split at random, by whole clusters, into items for fitting and items
        for testing.
      fit_predictions: file with separate items for fitting; `predictions` are then all for testing.
      normalize: divide each row of probabilities by its sum, where they are rounded, percentages or counts.
      fit_fraction: share of clusters (of items, if there are no clusters) used for fitting.
      calibrators: names; see `lm.calibration.calibrators`. None, (): measure only, on all items of `predictions`.
      settings: bins, resamples, level of intervals, seed, coverage of sets, and risks to answer with.
      title: of the report; empty: the name of the predictions.
    """

    predictions: str = ""
    fit_predictions: str = ""
    normalize: bool = False
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
        if len(set(self.calibrators)) < len(self.calibrators):
            raise UserError("config.calibrators names one of them twice")
        if self.fit_predictions and not self.calibrators:
            raise UserError("config.fit_predictions is for fitting, but config.calibrators is empty: clear one of them")
        settings = self.settings
        check_seed("config.settings.seed", settings.seed)
        if not (0 < settings.coverage < 1 and all(0 < risk < 1 for risk in settings.risks)):
            raise UserError("config.settings: coverage, and each of risks, must be between 0 and 1")
        if not (1 <= settings.bins <= 10_000 and 20 <= settings.resamples <= 1_000_000 and 0 < settings.level < 1):
            raise UserError(
                "config.settings: bins must be from 1 to 10,000, resamples from 20 to 1,000,000, level between 0 and 1"
            )


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
    comparisons = {}
    for number, name in enumerate(values.workdir, start=1):
        if len(values.workdir) > 1:
            console.print(f"{name} ({number} of {len(values.workdir)})")
        comparisons[name] = calibrate(config, WorkDirectory(Path(name)), console)
        show(comparisons[name], Console())
        directory = WorkDirectory(Path(name))
        console.print(f"report: {directory.calibration / 'report.html'}")
        if command := next_command(directory, suggested(comparisons[name])):
            console.print(command, soft_wrap=True)
    if len(comparisons) > 1 and config.calibrators:
        Console().print(summary_table(comparisons, config.calibrators[0]))


def next_command(directory: WorkDirectory, calibrator: str) -> str:
    """A command that uses a calibrator with the run's model; empty without a calibrator or a run."""
    if not calibrator or not (directory.config.exists() or directory.prompt.exists()):
        return ""
    writes = directory.config.exists() and isinstance(directory.load_config(), PretrainConfig)
    job, given = ("generate", "--prompt=TEXT") if writes else ("predict", "--config.source=FILE")
    workdir = shlex.quote(str(directory.path))
    return f"next: python -m experiments.{job} --workdir={workdir} --calibrator={calibrator} {given}"


def calibrate(config: CalibrateConfig, directory: WorkDirectory, console: Console) -> Comparison:
    """Runs the experiment in a work directory and returns the comparison.

    Raises:
      UserError: if the config or the predictions are invalid, or the directory cannot be written. Nothing is written
        then: files are written only after everything has been computed, all of them or none.
    """
    path, fit_path = predictions_of(config, directory)
    if not config.predictions and not path.is_file():
        raise UserError(
            f"{path} does not exist: to write it, run a decoder's pretraining again with "
            "--config.predictions.tokens=20000, or experiments.evaluate with --config.split=validation on a fine-tuned "
            "classifier; or name another file with --config.predictions=FILE.npz"
        )
    if directory.config.exists():
        for folder in (directory.calibration, directory.tensorboard):
            check_inside(directory, directory.load_config(), folder)
    check_writable(directory.calibration, f"--workdir={directory.path}")
    fit, test = read_parts(config, path, fit_path)
    for part in (fit, test):
        if part is not None and part.unused:
            names = printable(", ".join(part.unused[:20]), keep="") + (" and others" if part.unused[20:] else "")
            console.print(f"not used of {path if part is test else fit_path or path}: {names}")
    doing = "calibrating" if config.calibrators else "measuring"
    with console.progress(doing, len(config.calibrators) + 1) as advance, naming_file(path):
        comparison, fitted = compare(
            fit,
            test,
            config.calibrators,
            config.settings,
            title=config.title or ": ".join(dict.fromkeys((directory.path.absolute().name, path.stem))),
            source=path.name,
            progress=lambda name: advance(int(name != "none"), name),
        )
        advance(1, "drawing figures")
        with written_together(directory.calibration) as folder:
            pictures = [each.name for each in save_pictures(comparison, folder)]
            for name, calibrator in fitted.items():
                calibrator.save(folder / f"{name}.json")
            write_json(folder / "comparison.json", to_json(comparison) | {"suggested": suggested(comparison)})
            write_atomically(folder / "table.csv", as_csv(comparison))
            write_atomically(folder / "report.html", report_html(comparison))
    if directory.tensorboard.exists():
        tags = {f"calibration/{Path(name).stem}": directory.calibration / name for name in pictures}
        add_products(directory, 0, tags)
    return comparison


def read_parts(config: CalibrateConfig, path: Path, fit_path: Path | None) -> tuple[Predictions | None, Predictions]:
    """The items to fit to, None without calibrators, and those to measure on.

    Raises:
      UserError: if they cannot be read or split.
    """
    test = Predictions.load(path, normalize=config.normalize)
    if not config.calibrators:
        return None, test
    if fit_path is not None:
        fit = Predictions.load(fit_path, normalize=config.normalize)
        if fit.ids_N is None and fit.logits.shape == test.logits.shape and same_items(fit, test):
            raise UserError(
                f"{fit_path} holds the same items as {path}: a calibrator must not be evaluated on items it was fitted "
                "to; leave config.fit_predictions empty to split them"
            )
        return fit, test
    if test.ids_N is None:
        test = dataclasses.replace(test, ids_N=np.arange(len(test)))  # parts of one file share no item
    with naming_file(path):
        return split(test, config.fit_fraction, config.settings.seed)


def same_items(one: Predictions, other: Predictions) -> bool:
    """Whether two parts without ids have the same logits and labels."""
    ours, others = (jax.tree.leaves((part.logits, part.labels_N)) for part in (one, other))
    return len(ours) == len(others) and all(map(np.array_equal, ours, others))


@contextlib.contextmanager
def written_together(folder: Path) -> Iterator[Path]:
    """Yields a temporary folder whose files are moved to `folder` when all are written; none is if anything fails.

    Raises:
      UserError: if they cannot be written.
    """
    made = [each for each in (folder.parent, *folder.parent.parents) if not each.exists()]
    temporary = None
    try:
        folder.parent.mkdir(parents=True, exist_ok=True)
        temporary = Path(tempfile.mkdtemp(prefix=f".{folder.name}-", dir=folder.parent))
        yield temporary
        folder.mkdir(exist_ok=True)
        for file in sorted(temporary.iterdir()):
            file.replace(folder / file.name)
    except OSError as error:
        raise UserError(f"{folder} cannot be written: {error.strerror or error}") from error
    finally:
        if temporary is not None:
            shutil.rmtree(temporary, ignore_errors=True)
        for each in made:
            with contextlib.suppress(OSError):  # what was written stays
                each.rmdir()


def show(comparison: Comparison, console: Console) -> None:
    """Prints the table, warnings and conclusions."""
    console.print(as_table(comparison))
    for method in comparison.methods:
        if method.message:
            console.print(f"(!) {method.label}: {method.message}")
    for note in comparison.notes:
        console.print(f"(!) {note}")
    said = verdict(comparison)
    for sentence in (said.before, said.after, *said.notes, *guaranteed(said.best or comparison.uncalibrated)):
        console.print(sentence)


def predictions_of(config: CalibrateConfig, directory: WorkDirectory) -> tuple[Path, Path | None]:
    """The file to test on, and the file to fit on if it is a separate one.

    Raises:
      UserError: if the file to test on is lost.
    """
    fit = Path(os.path.expanduser(config.fit_predictions)) if config.fit_predictions else None
    if config.predictions:
        return Path(os.path.expanduser(config.predictions)), fit
    test, validation = directory.predictions / "test.npz", directory.predictions / "validation.npz"
    if test.is_file() and (validation.is_file() or not config.calibrators):
        return test, fit or validation
    if validation.is_file() and test.with_suffix(".metrics.json").exists():
        raise UserError(
            f"{test} is missing, although the run was evaluated on its test rows: run experiments.evaluate again, or "
            f"name {validation} with --config.predictions to split the validation rows"
        )
    return validation, fit


@contextlib.contextmanager
def naming_file(path: Path) -> Iterator[None]:
    """Makes errors about the arrays name their file."""
    try:
        yield
    except InputError as error:
        raise UserError(f"{path}: {error}") from error


def as_table(comparison: Comparison) -> Table:
    """The table for the console, narrow enough for 80 columns; everything else is in the report."""
    table = Table(title=comparison.title, box=SIMPLE_HEAD, padding=(0, 1, 0, 0))
    columns = ("", "ECE %", "interval", "floor", "change", "NLL", "change", "acc. %")
    for number, column in enumerate(columns):
        table.add_column(column, justify="right" if number else "left", overflow="fold", no_wrap=number > 0)
    for method in comparison.methods:
        ece, nll = method.entry("ece"), method.entry("nll")
        table.add_row(
            f"{method.label}{' (!)' if method.message else ''}\n{method.summary}".rstrip(),
            format_value(ece.value, "percent"),
            format_interval(ece.value, ece.interval, "percent").replace(" to ", "–"),
            "" if ece.floor is None else format_value(ece.floor.mean, "percent"),
            _p_of_change(ece),
            format_value(nll.value, "nats"),
            _p_of_change(nll),
            format_value(method.entry("accuracy").value, "percent"),
        )
    return table


def _p_of_change(entry: Entry) -> str:
    """Without spaces, which a narrow table would break at."""
    return re.sub(r"\s", "", format_p(entry.difference.p)) if entry.difference else ""


def summary_table(comparisons: dict[str, Comparison], calibrator: str) -> Table:
    """All runs before and after one calibrator."""
    names = names_of_runs(list(comparisons))
    table = Table(title=f"before and after: {calibrator}", box=SIMPLE_HEAD, padding=(0, 1, 0, 0))
    columns = ("run", "items", "ECE %", "floor", "after", "change", "NLL", "after", "change")
    for number, column in enumerate(columns):
        table.add_column(column, justify="right" if number else "left", overflow="fold")
    for name, comparison in zip(names, comparisons.values(), strict=True):
        before = comparison.uncalibrated
        after = {method.name: method for method in comparison.methods}.get(calibrator)
        if after is None:
            table.add_row(name, f"{comparison.items.test:,}", _with_interval(before.entry("ece")), "", "not fitted")
            continue
        ece_before, ece_after = before.entry("ece"), after.entry("ece")
        nll_before, nll_after = before.entry("nll"), after.entry("nll")
        table.add_row(
            name,
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
    interval = format_interval(entry.value, entry.interval, "percent").replace(" to ", "–")
    return f"{format_value(entry.value, 'percent')}\n{interval}".rstrip()


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
