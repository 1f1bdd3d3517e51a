"""Label efficiency: what each method makes of few labels, or of items without any.

Axes: N items, S data sets.
"""

import dataclasses
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.figure import Figure
from matplotlib.ticker import PercentFormatter

from experiments.protocol.cells import BINNING, SCORES, UNCALIBRATED, Cells
from experiments.protocol.settings import ProtocolConfig, Setting
from experiments.protocol.tables import LABELS, as_csv, save_picture
from lm.calibration.binning import bin_totals
from lm.calibration.calibrators import CALIBRATORS, fit
from lm.calibration.errors import ece
from lm.calibration.inputs import InputError
from lm.calibration.noise_floor import null_totals
from lm.calibration.outcomes import outcomes
from lm.calibration.predictions import Predictions
from lm.files import write_atomically
from lm.statistics.comparisons import paired_mean_difference

COUNTS = (4, 8, 16, 64, 256)
WITHOUT_LABELS = ("contextual", "domain_context", "batch_probabilities", "shift")
WITH_LABELS = (
    "temperature",
    "temperature_bias",
    "vector",
    "structured_vector",
    "shift_temperature_bias",
    "shift_structured_vector",
)
_PRIORS = ("contextual", "domain_context")  # which need no items at all


@dataclasses.dataclass(frozen=True)
class Point:
    """A method with a number of items, in one setting, on the test items; means over draws of the items.

    Attributes:
      setting: how the model was prompted.
      method: the calibrator.
      items: that it was fitted to, with labels if it sees them.
      accuracy: the share that is right.
      ece: with 15 equal-width bins.
      floor: its mean if the confidences were calibrated.
      nll: in nats.
    """

    setting: Setting
    method: str
    items: int
    accuracy: float
    ece: float
    floor: float
    nll: float


def points(config: ProtocolConfig, cells: Cells, advance: Callable[[], None] = lambda: None) -> list[Point]:
    """Every method with every number of items, in the settings without shots and with the main number of them.

    Args:
      config: of the experiment.
      cells: of its settings.
      advance: called after each setting.
    """
    found = []
    for setting in main_settings(config, cells):
        fit_part, test_part = cells.scored(setting, SCORES[0])
        found.append(_point(setting, UNCALIBRATED, 0, [test_part]))
        for method, items in _wanted(len(fit_part)):
            draws = 1 if items in (0, len(fit_part)) else config.draws
            applied = [_applied(method, items, fit_part, test_part, seed) for seed in range(draws)]
            found.append(_point(setting, method, items, [part for part in applied if part is not None]))
        advance()
    return [point for point in found if point is not None]


def main_settings(config: ProtocolConfig, cells: Cells) -> list[Setting]:
    """Text answers without shots, and with all draws of the main number of shots in their first order."""
    return [
        setting
        for setting in cells.runs
        if setting.form == "text" and setting.shots in (0, config.main_shots) and not setting.order
    ]


def _wanted(most: int) -> Iterator[tuple[str, int]]:
    for method in (*WITHOUT_LABELS, *WITH_LABELS):
        if method in _PRIORS:
            yield method, 0
        else:
            yield from ((method, items) for items in sorted({min(count, most) for count in COUNTS}))


def _applied(method: str, items: int, fit_part: Predictions, test_part: Predictions, seed: int) -> Predictions | None:
    """The test items after a method that was fitted to some items; those that see labels may use the others without."""
    order_N = np.random.default_rng(seed).permutation(len(fit_part))
    chosen_N, others_N = np.split(order_N, [items or len(order_N)])
    chosen, logits_NC = fit_part.select(np.sort(chosen_N)), np.asarray(fit_part.logits)
    how: dict[str, Any] = {"priors": fit_part.priors}
    if CALIBRATORS[method].sees_labels:
        how["labels"] = chosen.labels_N
        if others_N.size:
            how["unlabelled"] = logits_NC[others_N]
    try:
        fitted = fit(method, chosen.logits, **how)
    except InputError:
        return None
    return dataclasses.replace(test_part, logits=np.asarray(fitted.apply(test_part.logits)))


def _point(setting: Setting, method: str, items: int, parts: Sequence[Predictions]) -> Point | None:
    if not parts:
        return None
    rows = [_figures(part) for part in parts]
    return Point(setting, method, items, *(float(mean) for mean in np.mean(rows, axis=0)))


def _figures(part: Predictions) -> tuple[float, float, float, float]:
    """Accuracy, ECE, its floor and NLL."""
    found = outcomes(part.labels_N, logits=part.logits)
    confidence_N, correct_N = (np.asarray(each, np.float64) for each in (found.confidence_N, found.correct_N))
    null = null_totals(confidence_N, correct_N, BINNING, resamples=100, rng=np.random.default_rng(0))
    error = ece(bin_totals(confidence_N, correct_N, BINNING))
    return float(correct_N.mean()), float(error), float(ece(null).mean()), float(np.mean(found.nll_N))


@dataclasses.dataclass(frozen=True)
class Line:
    """A method with a number of items, over all settings: data sets count the same.

    Attributes:
      method: the calibrator.
      items: that it was fitted to.
      accuracy: the share that is right.
      ece: mean.
      floor: mean.
      nll: mean, in nats.
      better: settings in which its NLL is below that of the model as it is.
      settings: how many there are.
      change: mean NLL minus that of `shift` with as many items as there are, in nats.
      low: lower end of its 95% interval (Student's t over data sets).
      high: upper end.
    """

    method: str
    items: int
    accuracy: float
    ece: float
    floor: float
    nll: float
    better: int
    settings: int
    change: float
    low: float
    high: float


def lines(found: Sequence[Point]) -> list[Line]:
    """A line for each method and number of items."""
    by_key: dict[tuple[str, int], dict[Setting, Point]] = {}
    for point in found:
        by_key.setdefault((point.method, point.items), {})[point.setting] = point
    raw = by_key[UNCALIBRATED, 0]
    most = max((items for method, items in by_key if method == "shift"), default=0)
    shift = by_key.get(("shift", most), raw)
    return [_line(method, items, of_setting, raw, shift) for (method, items), of_setting in by_key.items()]


def _line(
    method: str,
    items: int,
    found: Mapping[Setting, Point],
    raw: Mapping[Setting, Point],
    shift: Mapping[Setting, Point],
) -> Line:
    sets_N = np.unique([setting.data_set for setting in found], return_inverse=True)[1]

    def of_sets(points: Mapping[Setting, Point], field: str) -> np.ndarray:
        values_N = np.array([getattr(points[setting], field) for setting in found])
        return np.bincount(sets_N, values_N) / np.bincount(sets_N)

    change = paired_mean_difference(of_sets(shift, "nll"), of_sets(found, "nll"))
    return Line(
        method,
        items,
        *(float(of_sets(found, field).mean()) for field in ("accuracy", "ece", "floor", "nll")),
        sum(point.nll < raw[setting].nll for setting, point in found.items()),
        len(found),
        change.value,
        change.low,
        change.high,
    )


def markdown(found: Sequence[Point]) -> str:
    """The table over all settings, and the loss by data set."""
    rows = lines(found)
    head = (
        "| method | items | labels | accuracy | ECE (floor) | NLL | lower NLL than raw | NLL - that of shift |\n"
        "|---|---|---|---|---|---|---|---|\n"
    )

    def labels(row: Line) -> str:
        known = CALIBRATORS.get(row.method)
        return f"{row.items}" if known is not None and known.sees_labels else "0"

    table = "\n".join(
        f"| {LABELS[row.method]} | {row.items} | {labels(row)} | {row.accuracy:.1%} | {row.ece:.1%} ({row.floor:.1%}) "
        f"| {row.nll:.3f} | {row.better} of {row.settings} | {row.change:+.3f} ({row.low:+.3f} to {row.high:+.3f}) |"
        for row in rows
    )
    return f"## Label efficiency\n\n{head}{table}\n\n## By data set\n\n{_by_data_set(found)}\n"


def _by_data_set(found: Sequence[Point]) -> str:
    """NLL, and in how many settings it is below that of the model as it is."""
    sets = list(dict.fromkeys(point.setting.data_set for point in found))
    raw = {point.setting: point.nll for point in found if point.method == UNCALIBRATED}
    rows = []
    for key in dict.fromkeys((point.method, point.items) for point in found):
        cells = []
        for name in sets:
            of_set = [p for p in found if (p.method, p.items) == key and p.setting.data_set == name]
            better = sum(point.nll < raw[point.setting] for point in of_set)
            mean = np.mean([point.nll for point in of_set]) if of_set else np.nan
            cells.append(f"{mean:.3f} ({better} of {len(of_set)})")
        rows.append(f"| {LABELS[key[0]]} | {key[1]} | {' | '.join(cells)} |")
    head = f"| method | items | {' | '.join(sets)} |\n|{'---|' * (len(sets) + 2)}\n"
    return head + "\n".join(rows)


def picture(found: Sequence[Point]) -> Figure:
    """Accuracy, ECE and NLL against the number of items: solid with labels, dashed without, dotted for none."""
    figure = Figure(figsize=(10, 3.6), layout="constrained")
    panels = figure.subplots(1, 3)
    rows = lines(found)
    for number, method in enumerate((UNCALIBRATED, *WITHOUT_LABELS, *WITH_LABELS)):
        of_method = sorted((row for row in rows if row.method == method), key=lambda row: row.items)
        sees_labels = method in WITH_LABELS
        for panel, field in zip(panels, ("accuracy", "ece", "nll"), strict=True):
            values, label = [getattr(row, field) for row in of_method], LABELS[method]
            if len(values) == 1:  # needs no items
                panel.axhline(values[0], color=f"C{number % 10}", linestyle=":", label=label)
            else:
                style = "-" if sees_labels else "--"
                items = [row.items for row in of_method]
                panel.plot(
                    items, values, style, color=f"C{number % 10}", marker="o", markersize=3, label=LABELS[method]
                )
    for panel, title in zip(panels, ("Accuracy", "ECE", "NLL, nats"), strict=True):
        panel.set_xscale("log", base=2)
        panel.set_xticks(COUNTS, [str(count) for count in COUNTS])
        panel.set_title(title, loc="left")
        panel.set_xlabel("items")
        panel.spines[["top", "right"]].set_visible(False)
    for panel in panels[:2]:
        panel.yaxis.set_major_formatter(PercentFormatter(1))
    # A fit to four labels may be far off; what matters is the range of the others.
    shown = [row.nll for row in rows if row.method in (UNCALIBRATED, *WITHOUT_LABELS)]
    panels[2].set_ylim(top=1.1 * max(shown), bottom=0.9 * min(row.nll for row in rows))
    figure.legend(*panels[0].get_legend_handles_labels(), loc="outside lower center", ncols=4, frameon=False)
    return figure


def write_label_efficiency(found: Sequence[Point], directory: Path) -> str:
    """Writes label_efficiency.md, .csv and .png; returns the first."""
    text = markdown(found)
    write_atomically(directory / "label_efficiency.md", text)
    write_atomically(directory / "label_efficiency.csv", as_csv([_record(point) for point in found]))
    save_picture(picture(found), directory / "label_efficiency.png")
    return text


def _record(point: Point) -> dict[str, Any]:
    record = dataclasses.asdict(point)
    return {**record.pop("setting"), **record}
