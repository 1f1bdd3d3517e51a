"""Figures of a comparison: reliability diagrams, risk-coverage curves, and the ECE of every method.

Each function takes a comparison, or some of its methods, and returns a matplotlib `Figure` without a window. Colours
are from the colour-blind-safe palette of Okabe and Ito (2008); labels are never parsed as mathematics.
"""

import io
import math
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import matplotlib
from matplotlib.axes import Axes
from matplotlib.axis import Axis
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.patches import Patch
from matplotlib.ticker import MaxNLocator

from lm.calibration.report.wording import format_interval, format_level, with_unit
from lm.calibration.results import Comparison, Method
from lm.console import printable
from lm.files import written_atomically

# By role, so that a page can override each in dark mode. No two may be equal.
COLOURS = {
    "ink": "#1f2328",
    "muted": "#68707a",
    "band": "#d3d8de",
    "before": "#d55e00",
    "after": "#0072b2",
    "green": "#009e73",
    "pink": "#cc79a7",
    "orange": "#e69f00",
    "sky": "#56b4e9",
}
_CURVES = ("after", "orange", "green", "pink", "sky", "before")
_DASHES = ("-", (0, (5, 1.5)), (0, (1.5, 1.5)))
_STYLE: dict[Any, Any] = {
    "font.size": 9,
    "text.color": COLOURS["ink"],
    "text.parse_math": False,
    "axes.titlesize": 10,
    "axes.titleweight": "bold",
    "axes.edgecolor": COLOURS["muted"],
    "axes.labelcolor": COLOURS["ink"],
    "axes.linewidth": 0.8,
    "xtick.color": COLOURS["muted"],
    "ytick.color": COLOURS["muted"],
    "xtick.labelcolor": COLOURS["ink"],
    "ytick.labelcolor": COLOURS["ink"],
    "legend.frameon": False,
    "legend.fontsize": 8,
    "svg.fonttype": "none",
    "svg.hashsalt": "calibration",
}
_style = matplotlib.rc_context(_STYLE)
_PERCENT = [0, 0.25, 0.5, 0.75, 1]


class Start(NamedTuple):
    """Where the axes of reliability diagrams begin.

    Attributes:
      confidence: 0.5 for the more probable of two classes, else 0.
      accuracy: 0 unless confidence begins at 0.5 and no interval reaches down to 0.
    """

    confidence: float = 0.0
    accuracy: float = 0.0

    @classmethod
    def of(cls, comparison: Comparison) -> "Start":
        """The same for all methods."""
        bins = [one for method in comparison.methods for one in method.bins]
        if comparison.items.classes != 2 or not bins or any(one.high <= 0.5 for one in bins):
            return cls()
        lowest = min(min(one.accuracy_low, one.band_low) for one in bins)
        return cls(0.5, min(0.5, math.floor(4 * lowest) / 4))


FROM_0 = Start()


@_style
def reliability(methods: Sequence[Method], level: float, start: Start = FROM_0) -> Figure:
    """Reliability diagrams of one or two methods, such as before and after, side by side on the same axes.

    Top: accuracy of each bin against its mean confidence, with Wilson intervals, the diagonal, and boxes that contain
    a calibrated model's accuracy 95% of the time (Bröcker and Smith 2007). Corner: ECE, its interval and its noise
    floor. Bottom: the share of items in each bin.

    Args:
      methods: the methods to draw; the one named "none" gets the colour of "before".
      level: of the intervals.
      start: where the axes begin.
    """
    figure = Figure(figsize=(4.4, 5.7) if len(methods) == 1 else (5, 3.6), layout="constrained")
    axes = figure.subplots(2, len(methods), sharex=True, sharey="row", squeeze=False, height_ratios=(4, 1))
    largest = max((share for method in methods for share in _shares(method)), default=1)
    for column, method in enumerate(methods):
        upper, lower = axes[:, column]
        _draw_accuracy(upper, method, level, start)
        lower.bar(
            [one.low for one in method.bins],
            _shares(method),
            [one.high - one.low for one in method.bins],
            align="edge",
            color=_colour(method),
            linewidth=0.4,  # same colour, or the background shows as a seam between bars
        )
        lower.set(xlabel="Confidence", ylim=(0, 1.08 * largest), yticks=[0, largest])
        lower.set_box_aspect(0.25)
        lower.set_yticklabels(["0", with_unit(largest, "percent", 0)])
        _plain(lower)
    axes[0, 0].set_ylabel("Accuracy")
    axes[1, 0].set_ylabel("Items")
    figure.align_ylabels(axes[:, 0])
    point = Line2D([], [], color=COLOURS["muted"], marker="o", markersize=4, linewidth=1.2)
    figure.legend(
        [point, Patch(color=COLOURS["band"])],
        [f"accuracy, {format_level(level)} interval", "95% range if calibrated"],
        loc="outside lower center",
        ncols=2,
        handlelength=1.6,
        columnspacing=1.2,
    )
    return figure


def _draw_accuracy(axes: Axes, method: Method, level: float, start: Start) -> None:
    bins, colour = method.bins, _colour(method)
    axes.bar(
        [one.low for one in bins],
        [one.band_high - one.band_low for one in bins],
        [one.high - one.low for one in bins],
        [one.band_low for one in bins],
        align="edge",
        color=COLOURS["band"],
        linewidth=0,
    )
    axes.plot([0, 1], [0, 1], color=COLOURS["muted"], linewidth=0.8, linestyle=(0, (4, 3)))
    confidence = [one.confidence for one in bins]
    axes.vlines(
        confidence, [one.accuracy_low for one in bins], [one.accuracy_high for one in bins], colour, linewidth=1.4
    )
    accuracy = [one.accuracy for one in bins]
    axes.plot(confidence, accuracy, color=colour, marker="o", markersize=4, linewidth=0, clip_on=False)
    axes.set_title(_shortened(method.label), loc="left")
    axes.set(xlim=(start.confidence, 1), ylim=(start.accuracy, 1), box_aspect=1)
    for axis, lowest in ((axes.xaxis, start.confidence), (axes.yaxis, start.accuracy)):
        ticks = [tick for tick in _PERCENT if tick >= lowest]
        is_written = [len(ticks) <= 4 or tick in (0, 0.5, 1) for tick in ticks]
        axis.set_ticks(ticks, [f"{100 * tick:g}%" if w else "" for tick, w in zip(ticks, is_written, strict=True)])
    _plain(axes)
    _write_error(axes, method, level, start)


def _write_error(axes: Axes, method: Method, level: float, start: Start) -> None:
    """ECE, its interval and its floor, in the upper left unless the lower right is emptier."""
    entry = method.entry("ece")
    if math.isnan(entry.value):
        return
    lines = [f"ECE {with_unit(entry.value, 'percent')}"]
    interval = format_interval(entry.value, entry.interval, "percent")
    if interval:
        lines.append(f"{format_level(level)}: {interval}")
    if entry.floor:
        lines.append(f"noise floor {with_unit(entry.floor.mean, 'percent')}")

    def x(share: float) -> float:
        return start.confidence + share * (1 - start.confidence)

    def y(share: float) -> float:
        return start.accuracy + share * (1 - start.accuracy)

    # The text is at most two fifths as wide and one fifth as high as the axes.
    above = sum(one.low < x(0.4) and max(one.accuracy_high, one.band_high) > y(0.8) for one in method.bins)
    below = sum(one.high > x(0.6) and min(one.accuracy_low, one.band_low) < y(0.2) for one in method.bins)
    left = above <= below
    axes.text(
        0.03 if left else 0.97,
        0.97 if left else 0.03,
        "\n".join(lines),
        ha="left" if left else "right",
        va="top" if left else "bottom",
        fontsize=8.5,
        linespacing=1.35,
        transform=axes.transAxes,
    )


@_style
def risk_coverage(comparison: Comparison) -> Figure:
    """Risk-coverage curves: the error rate among the most confident items, against their share, for each method.

    Only the order of confidences matters, so a calibrator that preserves it leaves the curve unchanged (Geifman and
    El-Yaniv 2017).
    """
    methods = [method for method in comparison.methods if method.risk_coverage]
    rows = -(-len(methods) // 2)
    figure = Figure(figsize=(4.2, 3.1 + 0.19 * rows), layout="constrained")
    axes = figure.subplots()
    for number, method in enumerate(methods):
        coverage, risk = zip(*method.risk_coverage, strict=True)
        style: dict[str, Any]
        if method.name == "none":
            style = {"color": COLOURS["ink"], "linewidth": 2.2, "zorder": 3, "linestyle": (0, (4, 2))}
        else:
            turn, colour = divmod(number - 1, len(_CURVES))
            style = {"color": COLOURS[_CURVES[colour]], "linestyle": _DASHES[turn % len(_DASHES)], "linewidth": 1.4}
        axes.plot(coverage, risk, label=_shortened(method.label), **style)
    axes.set(xlim=(0, 1), ylim=(0, None), xlabel="Coverage: share of items answered", xticks=_PERCENT)
    axes.set_xticklabels(["0", "25%", "50%", "75%", "100%"])
    axes.set_ylabel("Risk: error rate")
    _in_percent(axes.yaxis)
    _plain(axes)
    if methods:
        figure.legend(loc="outside lower center", ncols=2, columnspacing=1.2, handlelength=2.4)
    return figure


@_style
def forest(comparison: Comparison) -> Figure:
    """The ECE of each method with its interval, and the 95% quantile of its noise floor."""
    methods = [method for method in comparison.methods if not math.isnan(method.entry("ece").value)]
    figure = Figure(figsize=(4.2, 1.2 + 0.27 * len(methods)), layout="constrained")
    axes = figure.subplots()
    for row, method in enumerate(methods):
        entry, colour = method.entry("ece"), _colour(method)
        if entry.interval:
            axes.hlines(row, entry.interval.low, entry.interval.high, colour, linewidth=1.6)
        axes.plot(entry.value, row, color=colour, marker="o", markersize=5, markerfacecolor=_fill(method), linewidth=0)
        if entry.floor:
            axes.plot(entry.floor.high, row, color=COLOURS["ink"], marker="|", markersize=11, markeredgewidth=1.6)
    axes.set_yticks(range(len(methods)), [_shortened(method.label) for method in methods])
    axes.set(ylim=(max(len(methods), 1) - 0.5, -0.5), xlim=(0, None), xlabel="ECE")
    _in_percent(axes.xaxis)
    axes.grid(axis="x", color=COLOURS["band"], linewidth=0.6)
    axes.set_axisbelow(True)
    _plain(axes)
    axes.spines["left"].set_visible(False)
    interval = Line2D([], [], color=COLOURS["muted"], marker="o", markersize=5, linewidth=1.6)
    floor = Line2D([], [], color=COLOURS["ink"], marker="|", markersize=11, markeredgewidth=1.6, linewidth=0)
    handles = {
        f"ECE, {format_level(comparison.settings.level)} interval": interval,
        "noise floor, 95%": floor,
    }
    if not all(method.accepted for method in methods):
        hollow: dict[str, Any] = {"color": COLOURS["muted"], "markerfacecolor": "none", "linewidth": 0}
        handles["not accepted"] = Line2D([], [], marker="o", markersize=5, **hollow)
    figure.legend(
        handles.values(), handles.keys(), loc="outside lower center", ncols=3, columnspacing=1, handlelength=1.4
    )
    return figure


@_style
def save_pictures(comparison: Comparison, directory: Path) -> list[Path]:
    """Writes every figure as PNG: reliability_NAME.png (with the uncalibrated one), risk_coverage.png and ece.png.

    Creates the directory if it does not exist.

    Returns:
      The files written.
    """
    directory = Path(directory)
    directory.mkdir(parents=True, exist_ok=True)
    level, before, start = comparison.settings.level, comparison.uncalibrated, Start.of(comparison)
    figures = {"ece": forest(comparison), "risk_coverage": risk_coverage(comparison)}
    for method in comparison.methods:
        name = "reliability_" + re.sub(r"[^\w-]", "_", method.name)
        figures[name] = reliability([before] if method is before else [before, method], level, start)
    for name, figure in figures.items():
        with written_atomically(directory / f"{name}.png") as temporary:
            figure.savefig(temporary, dpi=200, facecolor="white")
    return [directory / f"{name}.png" for name in figures]


@_style
def inline_svg(figure: Figure, name: str) -> str:
    """A figure as an SVG element for an HTML page, with text as text and colours as var(--role).

    Args:
      figure: drawn in `COLOURS`.
      name: prefix of every id, so that several elements can share a page.
    """
    written = io.StringIO()
    figure.savefig(written, format="svg", transparent=True, metadata={"Date": None})
    svg = written.getvalue()
    svg = svg[svg.index("<svg") :]
    svg = re.sub(r"\s*<metadata>.*?</metadata>|\s*<style.*?</style>|<!--.*?-->", "", svg, flags=re.DOTALL)
    svg = re.sub(r'<svg[^>]*(viewBox="[^"]*")[^>]*>', r"<svg \1>", svg, count=1)
    svg = svg.replace("xlink:href=", "href=")
    referenced = set(re.findall(r'(?:href="|url\()#([^")]+)', svg))
    svg = re.sub(r' id="([^"]*)"', lambda found: f' id="{name}-{found[1]}"' if found[1] in referenced else "", svg)
    svg = re.sub(r'(href="|url\()#', rf"\g<1>#{name}-", svg)
    for role, colour in COLOURS.items():
        svg = svg.replace(colour, f"var(--{role})")
    return svg


def _plain(axes: Axes) -> None:
    axes.spines[["top", "right"]].set_visible(False)
    axes.tick_params(length=3, width=0.8, labelsize=8.5)


def _in_percent(axis: Axis) -> None:
    axis.set_major_locator(MaxNLocator(5, steps=[1, 2, 5, 10]))
    axis.set_major_formatter(lambda share, _: f"{100 * share:.4g}%")


def _shares(method: Method) -> list[float]:
    total = sum(one.count for one in method.bins)
    return [one.count / total for one in method.bins]


def _colour(method: Method) -> str:
    return COLOURS["before" if method.name == "none" else "after"]


def _fill(method: Method) -> str:
    return _colour(method) if method.accepted else "none"


def _shortened(label: str, most: int = 28) -> str:
    label = printable(" ".join(label.split()), keep="")  # in an SVG, control characters are errors
    return label if len(label) <= most else label[: most - 1] + "…"
