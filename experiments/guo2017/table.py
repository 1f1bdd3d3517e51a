"""The table of `experiments.guo2017`: every calibrator on the predictions of every seed, next to the paper's results.

Axes: N items, R resamples.
"""

import csv
import dataclasses
import io
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np

from lm.calibration.binning import Binning, bin_totals
from lm.calibration.calibrators import CALIBRATORS, fit
from lm.calibration.errors import ece
from lm.calibration.noise_floor import null_totals
from lm.calibration.outcomes import outcomes
from lm.calibration.predictions import Predictions
from lm.errors import UserError
from lm.statistics.seeds import seed_summary

# The paper's columns.
COLUMNS = ("uncalibrated", "histogram", "isotonic", "BBQ", "temperature", "vector", "matrix")
# Our columns: label and the paper's column. The paper does not say which kind of histogram binning it used.
METHODS = {
    "none": ("Uncalibrated", "uncalibrated"),
    "histogram_equal_mass": ("Hist., equal mass", "histogram"),
    "histogram": ("Hist., equal width", "histogram"),
    "isotonic": ("Isotonic", "isotonic"),
    "bayesian_binning": ("BBQ", "BBQ"),
    "temperature": ("Temperature", "temperature"),
    "vector": ("Vector", "vector"),
    "matrix": ("Matrix", "matrix"),
}
BINNING = Binning(15)
RESAMPLES = 200


@dataclasses.dataclass(frozen=True)
class RowConfig:
    """One data set: a row of the table.

    Attributes:
      title: name in the table.
      network: the paper's network.
      fit_items: number of training texts held out to fit calibrators; 0 if the data set has a validation part.
      epochs: epochs of training.
      batch_norm: whether the network uses batch normalization.
      published_ece: the paper's, in percent, in the order of `COLUMNS`.
      published_error: the paper's error rates in percent, likewise.
    """

    title: str
    network: str
    fit_items: int
    epochs: int
    batch_norm: bool
    published_ece: tuple[float, ...]
    published_error: tuple[float, ...]

    def __post_init__(self):
        for name in ("published_ece", "published_error"):
            if len(getattr(self, name)) != len(COLUMNS):
                raise UserError(f"{name} of {self.title} needs {len(COLUMNS)} numbers: {', '.join(COLUMNS)}")
        if self.epochs < 1 or self.fit_items < 0:
            raise UserError(f"{self.title} needs epochs of at least 1 and fit_items of at least 0")


@dataclasses.dataclass(frozen=True)
class Measured:
    """One method on one seed, as fractions.

    Attributes:
      ece: expected calibration error.
      floor: the mean ECE of a calibrated network with the same confidences.
      error: the error rate.
    """

    ece: float
    floor: float
    error: float


@dataclasses.dataclass(frozen=True)
class Cell:
    """One method on one data set, in percent: means over seeds, their standard errors, and the published numbers.

    Attributes:
      name: of the method, a key of `METHODS`.
      label: column heading.
      ece: expected calibration error.
      ece_stderr: None with one seed.
      floor: the mean ECE of a calibrated network with the same confidences.
      floor_stderr: None with one seed.
      error: the error rate.
      error_stderr: None with one seed.
      published_ece: as published.
      published_error: as published.
    """

    name: str
    label: str
    ece: float
    ece_stderr: float | None
    floor: float
    floor_stderr: float | None
    error: float
    error_stderr: float | None
    published_ece: float
    published_error: float


@dataclasses.dataclass(frozen=True)
class Row:
    """One data set, as stored in `table.json`.

    Attributes:
      data_set: name in the config.
      title: name in the table.
      published_network: the paper's network.
      seeds: number of networks trained.
      bins: of the ECE.
      unit: of all numbers.
      methods: in the order of `METHODS`.
    """

    data_set: str
    title: str
    published_network: str
    seeds: int
    bins: int
    unit: str
    methods: tuple[Cell, ...]


def make_row(name: str, config: RowConfig, files: Sequence[tuple[Path, Path]]) -> Row:
    """Measures every method on every seed.

    Args:
      name: of the data set.
      config: of the row.
      files: for each seed, the predictions to fit on and those to measure on.
    """
    found = [measure(Predictions.load(fit_file), Predictions.load(test_file)) for fit_file, test_file in files]
    cells = tuple(_make_cell(method, config, [seed[method] for seed in found]) for method in METHODS)
    return Row(name, config.title, config.network, len(files), BINNING.bins, "percent", cells)


def _make_cell(method: str, config: RowConfig, seeds: Sequence[Measured]) -> Cell:
    label, column = METHODS[method]
    place = COLUMNS.index(column)
    ece, floor, error = (_mean_and_error([getattr(seed, name) for seed in seeds]) for name in ("ece", "floor", "error"))
    return Cell(method, label, *ece, *floor, *error, config.published_ece[place], config.published_error[place])


def _mean_and_error(shares: Sequence[float]) -> tuple[float, float | None]:
    """In percent; one seed has no standard error."""
    summary = seed_summary([100 * share for share in shares])
    return summary.mean, summary.standard_error if summary.seeds > 1 else None


def measure(fit_part: Predictions, test_part: Predictions) -> Mapping[str, Measured]:
    """Fits each method of `METHODS` on one part and measures it on the other.

    A calibrator is applied even if it increases the loss of the items it was fitted on, as histogram binning may: the
    paper has no acceptance rule.
    """
    found = {}
    for method in METHODS:
        logits_NC = test_part.logits
        if method != "none":
            fitted = fit(method, fit_part.logits, fit_part.labels_N)
            logits_NC = CALIBRATORS[method].apply(fitted.parameters, logits_NC)
        result = outcomes(test_part.labels_N, logits=logits_NC)
        # A fresh generator, so that no method's floor depends on the other methods.
        rng = np.random.default_rng(0)
        drawn = null_totals(result.confidence_N, result.correct_N, BINNING, resamples=RESAMPLES, rng=rng)
        found[method] = Measured(
            ece=float(ece(bin_totals(result.confidence_N, result.correct_N, BINNING))),
            floor=float(ece(drawn).mean()),
            error=float(1 - np.mean(result.correct_N)),
        )
    return found


def as_csv(rows: Sequence[Row]) -> str:
    """One line per data set and method, all in percent."""
    stream = io.StringIO()
    writer = csv.writer(stream, lineterminator="\n")
    writer.writerow(["data_set", "seeds", *(field.name for field in dataclasses.fields(Cell))])
    writer.writerows([row.data_set, row.seeds, *dataclasses.astuple(cell)] for row in rows for cell in row.methods)
    return stream.getvalue()


def as_markdown(rows: Sequence[Row]) -> str:
    """Two tables, ECE and error rate: the paper's numbers above ours."""
    return (
        f"ECE in percent, {BINNING.bins} bins of equal width\n\n"
        + _table(rows, {"paper": "published_ece", "ours": "ece", "noise floor": "floor"})
        + "\nError rate in percent\n\n"
        + _table(rows, {"paper": "published_error", "ours": "error"})
        + f"\nOurs: mean over {rows[0].seeds} seeds ± its standard error. Noise floor: the mean ECE of a calibrated "
        "network with the same confidences.\n"
    )


def _table(rows: Sequence[Row], lines: dict[str, str]) -> str:
    cells = [["data", "", *(label for label, _ in METHODS.values())]]
    for row in rows:
        for name, key in lines.items():
            label = f"{name}: {row.published_network}" if name == "paper" else name
            title = row.title if name == "paper" else ""
            cells.append([title, label, *(_number(cell, key, with_error=name == "ours") for cell in row.methods)])
    widths = [max(map(len, column)) for column in zip(*cells, strict=True)]
    cells.insert(1, ["-" * width for width in widths])
    lines_of_text = (" | ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)) for row in cells)
    return "".join(f"| {line} |\n" for line in lines_of_text)


def _number(cell: Cell, key: str, with_error: bool) -> str:
    stderr = getattr(cell, f"{key}_stderr") if with_error else None
    return f"{getattr(cell, key):.2f}" + ("" if stderr is None else f" ± {stderr:.2f}")
