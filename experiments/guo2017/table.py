"""The table of `experiments.guo2017`: every calibrator measured on the predictions of every seed, beside the paper's.

Axes: N items, R resamples.
"""

import csv
import dataclasses
import io
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from lm.calibration.binning import Binning, bin_totals
from lm.calibration.calibrators import CALIBRATORS
from lm.calibration.errors import ece
from lm.calibration.noise_floor import null_totals
from lm.calibration.outcomes import outcomes
from lm.calibration.predictions import Predictions
from lm.errors import UserError
from lm.statistics.seeds import seed_summary

# The paper's columns.
COLUMNS = ("uncalibrated", "histogram", "isotonic", "BBQ", "temperature", "vector", "matrix")
# Our columns: label and the paper's column. Which kind of histogram theirs was they don't say.
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

Row = dict[str, Any]


@dataclasses.dataclass(frozen=True)
class RowConfig:
    """One data set: a row of the table.

    Attributes:
      title: its name in the table.
      network: what theirs was.
      fit_items: how many of the training texts are held out to fit calibrators; 0: the set has a part for that.
      epochs: how long to train.
      batch_norm: whether the network normalizes over batches.
      published_ece: theirs in percent, in the order of `COLUMNS`.
      published_error: their share of wrong classes in percent, likewise.
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


def make_row(name: str, config: RowConfig, files: Sequence[tuple[Path, Path]]) -> Row:
    """Measures.

    Args:
      name: of the data set.
      config: of the row.
      files: the predictions to fit and to measure on, a pair a seed.

    Returns:
      What `table.json` holds of the set: for each method the ECE, the noise floor (what the ECE of a calibrated network
      with these confidences would be, on average) and the share of wrong classes, all in percent, each as the mean over
      seeds and its standard error (null with one seed), beside the paper's.
    """
    found = [measure(Predictions.load(fit_file), Predictions.load(test_file)) for fit_file, test_file in files]
    methods = []
    for method, (label, column) in METHODS.items():
        cell = {"name": method, "label": label}
        for key in ("ece", "floor", "error"):
            summary = seed_summary([100 * seed[method][key] for seed in found])
            cell[key] = summary.mean
            cell[f"{key}_stderr"] = summary.standard_error if summary.seeds > 1 else None
        place = COLUMNS.index(column)
        cell |= {"published_ece": config.published_ece[place], "published_error": config.published_error[place]}
        methods.append(cell)
    about = {"data_set": name, "title": config.title, "published_network": config.network, "seeds": len(files)}
    return {**about, "bins": BINNING.bins, "unit": "percent", "methods": methods}


def measure(fit_part: Predictions, test_part: Predictions) -> dict[str, dict[str, float]]:
    """ECE, noise floor and error, as fractions, of each method fitted on the one part and applied to the other.

    A calibrator is applied even where it raises the likelihood loss of what it was fitted on, as histogram binning may:
    the paper has no such rule.
    """
    found = {}
    for method in METHODS:
        logits_NC = test_part.logits
        if method != "none":
            calibrator = CALIBRATORS[method]
            logits_NC = calibrator.apply(calibrator.fit(fit_part.logits, fit_part.labels_N), logits_NC)
        result = outcomes(test_part.labels_N, logits=logits_NC)
        # A stream for itself, so that no method's floor depends on which others there are.
        rng = np.random.default_rng(0)
        drawn = null_totals(result.confidence_N, result.correct_N, BINNING, resamples=RESAMPLES, rng=rng)
        found[method] = {
            "ece": float(ece(bin_totals(result.confidence_N, result.correct_N, BINNING))),
            "floor": float(ece(drawn).mean()),
            "error": float(1 - np.mean(result.correct_N)),
        }
    return found


def as_csv(rows: Sequence[Row]) -> str:
    """One line for each data set and method, all in percent."""
    stream = io.StringIO()
    cells = [{"data_set": row["data_set"], "seeds": row["seeds"], **cell} for row in rows for cell in row["methods"]]
    writer = csv.DictWriter(stream, cells[0], lineterminator="\n")
    writer.writeheader()
    writer.writerows(cells)
    return stream.getvalue()


def as_markdown(rows: Sequence[Row]) -> str:
    """Two tables, of ECE and of errors: the paper's numbers above ours."""
    return (
        f"ECE in percent, {BINNING.bins} bins of equal width\n\n"
        + _table(rows, "ece", {"paper": "published_ece", "ours": "ece", "noise floor": "floor"})
        + "\nWrong classes in percent\n\n"
        + _table(rows, "error", {"paper": "published_error", "ours": "error"})
        + f"\nOurs: mean over {rows[0]['seeds']} seeds ± its standard error. Noise floor: the mean ECE of a calibrated "
        "network with the same confidences.\n"
    )


def _table(rows: Sequence[Row], kind: str, lines: dict[str, str]) -> str:
    cells = [["data", "", *(label for label, _ in METHODS.values())]]
    for row in rows:
        for name, key in lines.items():
            label = f"{name}: {row['published_network']}" if name == "paper" else name
            title = row["title"] if name == "paper" else ""
            cells.append([title, label, *(_number(cell, key, with_error=name == "ours") for cell in row["methods"])])
    widths = [max(map(len, column)) for column in zip(*cells, strict=True)]
    cells.insert(1, ["-" * width for width in widths])
    lines_of_text = (" | ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)) for row in cells)
    return "".join(f"| {line} |\n" for line in lines_of_text)


def _number(cell: Row, key: str, with_error: bool) -> str:
    stderr = cell.get(f"{key}_stderr") if with_error else None
    return f"{cell[key]:.2f}" + ("" if stderr is None else f" ± {stderr:.2f}")
