"""Results of a sweep: a table, a figure, and the command that trains the best point."""

import csv
import dataclasses
import io
import math
import shlex
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.cm import ScalarMappable
from matplotlib.colors import Normalize
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.ticker import MaxNLocator
from optuna.trial import FrozenTrial, TrialState
from rich.table import Table

from lm.console import printable
from lm.files import written_atomically
from lm.fonts import style
from lm.sweeps.search_space import Parameter, Value, Values, format_value
from lm.sweeps.study import Metrics, Repetition, Study, directory_of, format_mean, mean_and_error

_STATES = {
    TrialState.COMPLETE: "complete",
    TrialState.PRUNED: "pruned",
    TrialState.FAIL: "failed",
    TrialState.RUNNING: "unfinished",
    TrialState.WAITING: "unfinished",
}
_ORDER = ("complete", "pruned", "unfinished", "failed")
_INK, _MUTED, _LINES = "#1f2328", "#68707a", "#d3d8de"
_STYLE: dict[Any, Any] = {
    "font.size": 9,
    "text.color": _INK,
    "text.parse_math": False,  # names are never parsed as mathematics
    "axes.labelcolor": _INK,
    "ytick.color": _INK,
    "svg.fonttype": "none",
    "svg.hashsalt": "sweep",
}
_UNFINISHED = "#e69f00"
_DASHES = (0, (3, 2))
_MOST_LEVELS = 12  # most labels that fit on an axis of choices


@dataclasses.dataclass(frozen=True)
class Row:
    """One trial, as stored in `sweep.json`.

    Attributes:
      trial: its number, from 1.
      state: "complete", "pruned", "unfinished" or "failed".
      values: the point.
      mean: of the metric over the runs, or the last evaluation of a pruned trial; None if there is neither.
      standard_error: of `mean`; None for fewer than two runs.
      evaluations: the metric at each evaluation of the first run, if trials are pruned.
      runs: metrics of each finished run, by the name of its repetition.
      message: why the trial failed; empty otherwise.
      directories: of the runs, relative to the sweep's directory.
    """

    trial: int
    state: str
    values: Values
    mean: float | None
    standard_error: float | None
    evaluations: tuple[float, ...]
    runs: Mapping[str, Metrics]
    message: str
    directories: tuple[str, ...]


def rows_of(study: Study, repetitions: Sequence[Repetition] = ()) -> list[Row]:
    """The trials, best first: complete ones by mean, then pruned ones by last evaluation, unfinished, failed.

    Args:
      study: the study.
      repetitions: the runs of each point, to list their directories.
    """
    sign = 1 if study.search.minimize else -1
    rows = [_row(study, trial, repetitions) for trial in study.trials]

    def rank(row: Row) -> tuple[int, float, int]:
        return _ORDER.index(row.state), math.inf if row.mean is None else sign * row.mean, row.trial

    return sorted(rows, key=rank)


def _row(study: Study, trial: FrozenTrial, repetitions: Sequence[Repetition]) -> Row:
    runs, state = trial.user_attrs.get("runs", {}), _STATES[trial.state]
    mean, error = trial.value if state == "pruned" else None, None
    if runs and state != "failed":
        mean, error = mean_and_error(study, runs)
    return Row(
        trial=trial.number + 1,
        state=state,
        values=trial.params,
        mean=mean,
        standard_error=error,
        evaluations=tuple(trial.intermediate_values[step] for step in sorted(trial.intermediate_values)),
        runs=runs,
        message=trial.user_attrs.get("message", ""),
        directories=tuple(directory_of(trial.params, one) for one in repetitions),
    )


def as_table(rows: Sequence[Row], study: Study) -> Table:
    """For the console."""
    table = Table()
    for name in ("trial", *(parameter.key for parameter in study.search.space)):
        table.add_column(name.replace(".", ".\n"), justify="right", overflow="fold")  # never truncate a name
    table.add_column(study.search.metric, justify="right", no_wrap=True)
    table.add_column("", justify="left")
    for row in rows:
        values = [_short(row.values.get(parameter.key, "")) for parameter in study.search.space]
        mean = "" if row.mean is None else format_mean(row.mean, row.standard_error)
        state = "" if row.state == "complete" else row.state
        style = "bold" if row is rows[0] and not state else None
        table.add_row(str(row.trial), *values, mean, state, style=style)
    return table


def as_csv(rows: Sequence[Row], study: Study) -> str:
    """One line per trial, best first, with unrounded numbers."""
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    keys = [parameter.key for parameter in study.search.space]
    writer.writerow(["trial", *keys, study.search.metric, "standard_error", "runs", "state", "message"])
    for row in rows:
        values = [format_value(row.values[key]) if key in row.values else "" for key in keys]
        found = [row.mean, row.standard_error, len(row.runs), row.state, row.message]
        writer.writerow([row.trial, *values, *found])
    return text.getvalue()


def command(experiment: str, file: str, values: Values) -> str:
    """The command line that trains a point."""
    flags = [f"--config={file}", *(f"--config.{key}={format_value(value)}" for key, value in values.items())]
    return shlex.join(["python", "-m", f"experiments.{experiment}", *flags, "--workdir=runs/best"])


def conclusion(rows: Sequence[Row], study: Study) -> str:
    """A sentence or two on how certain the choice is; empty if no trial is complete."""
    complete = _complete(rows)
    if not complete:
        return ""
    (best, best_mean), metric = complete[0], study.search.metric
    said = f"best of {len(complete)} complete: trial {best.trial}, {metric} "
    said += format_mean(best_mean, best.standard_error)
    if best.standard_error is None:
        said += ", from one run: use config.seeds=(0,1,2) to see how much of it is chance"
    elif near := [row for row, mean in complete[1:] if abs(mean - best_mean) <= best.standard_error]:
        said += f"; {len(near)} more within one standard error"
    if len(complete) > 1:
        said += ". The best of many trials is biased by selection: report its result on held-out data"
    return said


def _complete(rows: Sequence[Row]) -> list[tuple[Row, float]]:
    """The complete trials, each with its mean."""
    return [(row, row.mean) for row in rows if row.state == "complete" and row.mean is not None]


def save_picture(rows: Sequence[Row], study: Study, directory: Path) -> None:
    """Writes sweep.png and sweep.svg: one line per trial, across one axis per parameter and one for the metric.

    Parallel coordinates (Inselberg 1985) in a colour-blind-safe scale (cividis: Nuñez et al. 2018). Better trials are
    darker and end higher; the best one is thick. A trial that did not complete has no final metric: it is dashed and
    ends before that axis.
    """
    with style(_STYLE):
        figure = _draw(rows, study)
        for suffix, options in ((".png", {"dpi": 180}), (".svg", {"metadata": {"Date": None}})):
            with written_atomically(directory / f"sweep{suffix}") as temporary:
                figure.savefig(temporary, facecolor="white", **options)


def _draw(rows: Sequence[Row], study: Study) -> Figure:
    space, search = study.search.space, study.search
    figure = Figure(figsize=(max(5.0, 1.7 * (len(space) + 1)), 4.0), layout="constrained")
    axes = figure.subplots()
    means = [mean for _, mean in _complete(rows)]
    low, high = (min(means), max(means)) if means else (0.0, 1.0)
    if low == high:
        low, high = low - 0.5 * (abs(low) or 1), high + 0.5 * (abs(high) or 1)
    ends = (high, low) if search.minimize else (low, high)  # the better end is at the top
    colours = ScalarMappable(Normalize(low, high), "cividis" if search.minimize else "cividis_r")
    best = rows[0] if rows and rows[0].state == "complete" else None
    rng = np.random.default_rng(0)
    for row in reversed(rows):  # draw the best last, on top
        if row.values:
            _draw_trial(axes, row, space, ends, colours, row is best, rng)
    for position, parameter in enumerate(space):
        _draw_axis(axes, position, parameter.key, _parameter_ticks(parameter))
    ticks = [(_share(value, *ends), f"{value:.4g}") for value in _nice(low, high)]
    _draw_axis(axes, len(space), search.metric, ticks)
    axes.set(xlim=(-0.25, len(space) + 0.35), ylim=(-0.05, 1.05))
    axes.set_axis_off()
    _write_legend(figure, rows)
    return figure


def _draw_trial(
    axes: Axes,
    row: Row,
    space: Sequence[Parameter],
    ends: tuple[float, float],
    colours: ScalarMappable,
    best: bool,
    rng: np.random.Generator,
) -> None:
    # Jitter, or lines through the same choice would hide each other.
    heights = [
        _height(parameter, row.values[parameter.key]) + (rng.uniform(-0.012, 0.012) if parameter.choices else 0)
        for parameter in space
    ]
    if row.state != "complete" or row.mean is None:
        colour = _MUTED if row.state == "pruned" else _UNFINISHED
        axes.plot(range(len(space)), heights, color=colour, linewidth=0.8, linestyle=_DASHES, zorder=1)
        return
    positions, heights = range(len(space) + 1), [*heights, _share(row.mean, *ends)]
    if best:  # a white edge separates it from the lines it crosses
        axes.plot(positions, heights, color="white", linewidth=6, zorder=3, solid_joinstyle="round")
    shade, width = colours.to_rgba(np.array([row.mean]))[0], 4 if best else 1.3
    axes.plot(positions, heights, color=shade, linewidth=width, zorder=4 if best else 2, solid_joinstyle="round")


def _draw_axis(axes: Axes, position: int, name: str, ticks: Sequence[tuple[float, str]]) -> None:
    axes.plot([position, position], [0, 1], color=_MUTED, linewidth=0.9, zorder=5)
    halo = {"boxstyle": "square,pad=0.1", "facecolor": "white", "alpha": 0.75, "linewidth": 0}
    for height, label in ticks:
        axes.plot([position, position + 0.02], [height, height], color=_MUTED, linewidth=0.9, zorder=5)
        axes.text(position + 0.04, height, label, va="center", fontsize=8, bbox=halo, zorder=6)
    # Break dotted names at the dots.
    axes.text(position, 1.06, name.replace(".", ".\n"), ha="center", va="bottom", fontsize=9, fontweight="bold")


def _write_legend(figure: Figure, rows: Sequence[Row]) -> None:
    kinds = {"complete": "best", "pruned": "pruned", "unfinished": "unfinished", "failed": "failed"}
    styles: dict[str, dict[str, Any]] = {
        "complete": {"color": _INK, "linewidth": 4},
        "pruned": {"color": _MUTED, "linewidth": 0.8, "linestyle": _DASHES},
    }
    rest: dict[str, Any] = {"color": _UNFINISHED, "linewidth": 0.8, "linestyle": _DASHES}
    states = {row.state for row in rows}
    handles = {label: Line2D([], [], **styles.get(state, rest)) for state, label in kinds.items() if state in states}
    figure.legend(handles.values(), handles.keys(), loc="outside lower center", ncols=4, frameon=False, fontsize=8)


def _height(parameter: Parameter, value: Value) -> float:
    """Position on its axis, between 0 and 1."""
    if parameter.choices:
        return _share(_choices(parameter).index(value), 0, max(len(parameter.choices) - 1, 1))
    place, low, high = (
        math.log(end) if parameter.log else end for end in (float(value), parameter.low, parameter.high)
    )
    return _share(place, low, high)


def _parameter_ticks(parameter: Parameter) -> list[tuple[float, str]]:
    if parameter.choices:
        choices = _choices(parameter)
        every = -(-len(choices) // _MOST_LEVELS)
        return [(_height(parameter, choice), _short(choice)) for choice in choices[::every]]
    values = _nice(parameter.low, parameter.high, parameter.log, integer=isinstance(parameter.low, int))
    return [(_height(parameter, value), f"{value:.4g}") for value in values]


def _choices(parameter: Parameter) -> list[Value]:
    """Numbers sorted, strings in the given order."""
    numbers = all(type(choice) in (int, float) for choice in parameter.choices)
    return sorted(parameter.choices) if numbers else list(parameter.choices)


def _nice(low: float, high: float, log: bool = False, integer: bool = False) -> list[float]:
    """Round numbers from `low` to `high`; for a logarithmic range of less than a decade, its ends."""
    if not log:
        ticks = MaxNLocator(5, integer=integer).tick_values(low, high)
        return [float(value) for value in ticks if low <= value <= high]
    decades = range(math.ceil(math.log10(low) - 1e-9), math.floor(math.log10(high) + 1e-9) + 1)
    values = [min(max(10.0**decade, low), high) for decade in decades]
    return values if len(values) > 1 else [low, high]


def _share(value: float, low: float, high: float) -> float:
    return (value - low) / (high - low)


def _short(value: Value) -> str:
    text = f"{value:.4g}" if isinstance(value, float) else printable(format_value(value), keep="")
    return text if len(text) <= 24 else text[:23] + "…"
