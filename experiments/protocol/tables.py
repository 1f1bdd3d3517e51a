"""The protocol table: every method in every setting, and what the protocol decides, as files.

Axes: N items, F features of bins, R resamples.
"""

import csv
import dataclasses
import io
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.figure import Figure
from matplotlib.ticker import PercentFormatter
from scipy import sparse

from experiments.protocol.cells import AFTER, BINNING, METHODS, PUBLISHED, SCORES, UNCALIBRATED, Cell, Cells, Measured
from experiments.protocol.conclusions import Comparer, Flips, changes_of, flips
from experiments.protocol.settings import ProtocolConfig
from lm.calibration.binning import BinTotals, bin_totals
from lm.calibration.calibrators import CALIBRATORS
from lm.calibration.errors import ece
from lm.calibration.noise_floor import bin_features, ece_interval, floor_of, null_totals, totals_of_sums
from lm.files import write_atomically, write_json, written_atomically
from lm.fonts import style
from lm.statistics.intervals import mean_interval, share_interval
from lm.statistics.resampling import Resampler

UNNORMALIZED = "not_renormalized"
LABELS = {UNCALIBRATED: "Renormalized, uncalibrated", UNNORMALIZED: "Not renormalized"} | {
    name: calibrator.label for name, calibrator in CALIBRATORS.items()
}


@dataclasses.dataclass(frozen=True)
class Row:
    """A method in a setting; figures are of the test items.

    Attributes:
      cell: what was measured.
      method: the calibrator's name, with the link.
      accuracy: the share that is right, with its interval.
      ece: with 15 equal-width bins, and its interval.
      floor: its mean if the confidences were calibrated.
      nll: in nats.
      brier: the Brier score.
      label_mass: probability of all answers together.
    """

    cell: Cell
    method: str
    accuracy: float
    accuracy_low: float
    accuracy_high: float
    ece: float
    ece_low: float
    ece_high: float
    floor: float
    nll: float
    brier: float
    label_mass: float

    @property
    def record(self) -> dict[str, Any]:
        """One value for each column of a file."""
        cell = dataclasses.asdict(self.cell)
        setting = cell.pop("setting")
        del cell["method"], cell["link"]
        return {**setting, "method": self.method, **cell} | {
            field.name: getattr(self, field.name)
            for field in dataclasses.fields(self)
            if field.name not in ("cell", "method")
        }


def all_rows(config: ProtocolConfig, cells: Cells, advance: Callable[[], None] = lambda: None) -> list[Row]:
    """Every method in every setting.

    Args:
      config: of the experiment.
      cells: of its settings.
      advance: called after each setting.
    """
    rows = []
    for setting in cells.runs:
        mass = float(np.mean([min(np.exp(each.log_probs).sum(), 1) for each in cells.answers(setting, "test")]))
        found = {Cell(setting, UNNORMALIZED): cells.unnormalized(setting)}
        wanted = [Cell(setting, method, score, "", after) for method in METHODS for score in SCORES for after in AFTER]
        wanted += [Cell(setting, method, link=link) for link, methods in PUBLISHED.items() for method in methods]
        found |= {cell: items for cell in wanted if (items := cells.measured(cell)) is not None}
        # All cells of a setting share the draws of their items.
        features = [bin_features(items.confidence_N, items.correct_N, BINNING) for items in found.values()]
        resampler = Resampler(features[0].shape[0], resamples=config.resamples, seed=0)
        drawn = np.split(resampler.sums(sparse.hstack(features, format="csr")), len(features), axis=1)
        rows += [
            _row(cell, items, totals_of_sums(sums_RF), mass)
            for (cell, items), sums_RF in zip(found.items(), drawn, strict=True)
        ]
        advance()
    return rows


def _row(cell: Cell, items: Measured, resampled: BinTotals, mass: float) -> Row:
    totals = bin_totals(items.confidence_N, items.correct_N, BINNING)
    error, accuracy = float(ece(totals)), share_interval(items.correct_N)
    rng, resamples = np.random.default_rng(1), len(resampled.count)
    null = null_totals(items.confidence_N, items.correct_N, BINNING, resamples=resamples, rng=rng)
    floor = floor_of(error, ece(null))
    interval = ece_interval(totals, resampled)
    return Row(
        cell,
        PUBLISHED[cell.link][cell.method] if cell.link else cell.method,
        items.accuracy,
        accuracy.low,
        accuracy.high,
        error,
        interval.low,
        interval.high,
        floor.mean,
        items.nll,
        float(items.brier_N.mean()),
        mass,
    )


def all_flips(config: ProtocolConfig, cells: Cells, advance: Callable[[], None] = lambda: None) -> list[Flips]:
    """What each change of the protocol does to the conclusions; `advance` is called after each."""
    comparer = Comparer(cells, config.resamples)
    found = []
    for axis, changes in changes_of(config, list(cells.runs)).items():
        if changes:
            found.append(flips(comparer, axis, changes))
        advance()
    return found


def summary(rows: Sequence[Row], chosen: Callable[[Row], bool]) -> list[dict[str, Any]]:
    """A line for each method: means over data sets, which count the same, and how often its loss is below the raw one.

    Args:
      rows: of the table.
      chosen: which of them to average.
    """
    raw = {row.cell.setting: row for row in rows if row.method == UNCALIBRATED and _is_plain(row.cell)}
    lines: dict[tuple[str, str], list[Row]] = {}
    for row in filter(chosen, rows):
        lines.setdefault((row.method, row.cell.after), []).append(row)
    return [
        {
            "method": method,
            "after": after,
            **{name: _mean_over_sets(found, name) for name in ("accuracy", "ece", "floor", "nll", "brier")},
            "lower_nll": sum(row.nll < raw[row.cell.setting].nll for row in found),
            "settings": len(found),
        }
        for (method, after), found in lines.items()
    ]


def _is_plain(cell: Cell) -> bool:
    return cell.score == SCORES[0] and not cell.after


def _mean_over_sets(rows: Sequence[Row], field: str) -> dict[str, float]:
    """The mean, and its standard error over data sets."""
    by_set: dict[str, list[float]] = {}
    for row in rows:
        by_set.setdefault(row.cell.setting.data_set, []).append(getattr(row, field))
    means = np.array([np.mean(values) for values in by_set.values()])
    return {"mean": float(means.mean()), "standard_error": mean_interval(means).standard_error}


def markdown(config: ProtocolConfig, rows: Sequence[Row], found: Sequence[Flips], notes: Sequence[str]) -> str:
    """The tables, to read."""
    parts = []
    texts = f"text, {config.seeds} draws of {config.main_shots} shots"
    for title, chosen in {
        "0 shots, text": lambda row: row.cell.setting.form == "text" and row.cell.setting.shots == 0,
        texts: lambda row: (
            row.cell.setting.form == "text"
            and row.cell.setting.shots == config.main_shots
            and not row.cell.setting.order
        ),
        "letters": lambda row: row.cell.setting.form == "letters",
    }.items():
        lines = summary(rows, lambda row, chosen=chosen: chosen(row) and row.cell.score == SCORES[0])
        parts.append(f"## {title[0].upper()}{title[1:]}\n\n{_methods_table(lines)}")
    parts.append(f"## Which conclusions the protocol decides\n\n{_flips_table(found)}")
    if notes:
        parts.append("## Left out\n\n" + "\n".join(f"- {note}" for note in notes))
    return "\n\n".join(parts) + "\n"


def _methods_table(lines: Sequence[Mapping[str, Any]]) -> str:
    """A row for each method: by itself, with a temperature after it, and with temperature and bias."""
    after = " | ".join(f"{name}: ECE (floor) | NLL" for name in ("then T", "then T and bias"))
    head = f"| method | accuracy | ECE (floor) | NLL | lower NLL than raw | {after} |\n|{'---|' * 9}\n"
    by_key = {(each["method"], each["after"]): each for each in lines}

    def row(method: str) -> str:
        plain = by_key[method, ""]
        counted = f"{plain['lower_nll']} of {plain['settings']}"
        parts = [LABELS[method], _percent(plain["accuracy"]), *_errors(plain), counted]
        for name in AFTER[1:]:
            parts += _errors(by_key[method, name]) if (method, name) in by_key else ["", ""]
        return f"| {' | '.join(parts)} |"

    return head + "\n".join(row(method) for method, name in by_key if not name)


def _errors(line: Mapping[str, Any]) -> list[str]:
    return [f"{_percent(line['ece'])} ({line['floor']['mean']:.1%})", _nats(line["nll"])]


def _percent(value: Mapping[str, float]) -> str:
    return f"{100 * value['mean']:.1f} ± {100 * value['standard_error']:.1f}%"


def _nats(value: Mapping[str, float]) -> str:
    return f"{value['mean']:.3f} ± {value['standard_error']:.3f}"


def _flips_table(found: Sequence[Flips]) -> str:
    names = "what changes", "conclusions", "flip", "significant before", "of these, flip", "survive"
    head = f"| {' | '.join(names)} | significantly reversed |\n|{'---|' * 7}\n"
    return head + "\n".join(
        f"| {each.axis} | {each.conclusions:,} | {each.flipped:.0%} ({max(each.interval.low, 0):.0%} to "
        f"{min(each.interval.high, 1):.0%}) | {each.significant:.0%} | {each.flipped_significant:.0%} | "
        f"{each.survived:.0%} | {each.reversed:.1%} |"
        for each in found
    )


def picture(found: Sequence[Flips]) -> Figure:
    """The share of conclusions that each change flips, and the share that survives."""
    figure = Figure(figsize=(7.5, 0.34 * len(found) + 1.2), layout="constrained")
    axes = figure.subplots()
    places = np.arange(len(found))[::-1]
    shares = [each.flipped for each in found]
    ends = [[max(each.flipped - each.interval.low, 0), max(each.interval.high - each.flipped, 0)] for each in found]
    axes.errorbar(shares, places, xerr=np.nan_to_num(np.transpose(ends)), fmt="o", color="#0b62ae", label="flip")
    axes.plot([each.survived for each in found], places, "s", color="#b3480f", label="survive paired tests")
    axes.axvline(shares[0], color="#d3d8de", zorder=0)
    axes.set_yticks(places, [each.axis for each in found])
    axes.set_xlim(0, 1)
    axes.xaxis.set_major_formatter(PercentFormatter(1))
    axes.set_xlabel("share of the conclusions that one method is better calibrated than another")
    axes.spines[["top", "right"]].set_visible(False)
    axes.legend(loc="lower right", frameon=False)
    return figure


def write_tables(
    config: ProtocolConfig, rows: Sequence[Row], found: Sequence[Flips], notes: Sequence[str], directory: Path
) -> str:
    """Writes protocol.md, .csv, .json and .png; returns the first."""
    text = markdown(config, rows, found, notes)
    write_atomically(directory / "protocol.md", text)
    write_atomically(directory / "protocol.csv", as_csv([row.record for row in rows]))
    write_json(directory / "protocol.json", {"flips": [dataclasses.asdict(each) for each in found]})
    save_picture(picture(found), directory / "protocol.png")
    return text


def as_csv(records: Sequence[Mapping[str, Any]]) -> str:
    """Records with the same keys as a file with a header."""
    file = io.StringIO()
    writer = csv.DictWriter(file, list(records[0]), lineterminator="\n")
    writer.writeheader()
    writer.writerows(records)
    return file.getvalue()


def save_picture(figure: Figure, path: Path) -> None:
    """Writes a PNG file, atomically."""
    with style({"font.size": 9, "text.parse_math": False}), written_atomically(path) as temporary:
        figure.savefig(temporary, dpi=150, facecolor="white")
