"""The picture: entropy by position in a model's own text and in real text, and its loss.

Axes: B documents, T positions, M bins of positions.
"""

import itertools
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from lm.files import written_atomically
from lm.fonts import style
from lm.statistics.intervals import mean_interval

_STYLE: dict[Any, Any] = {"font.size": 8, "axes.spines.top": False, "axes.spines.right": False}
_OWN, _TRUE, _LOSS = "#0072b2", "#d55e00", "#68707a"
_COLUMNS = 4
_BINS = 10


def save_picture(measured: Mapping[str, Mapping[str, np.ndarray]], path: Path) -> None:
    """Draws one panel for each model.

    Args:
      measured: what `experiments.entropy_rate.measuring.measure` returns, by model.
      path: of the file, .png.
    """
    columns = min(len(measured), _COLUMNS)
    rows = -(-len(measured) // columns)
    with style(_STYLE):
        figure = Figure(figsize=(0.4 + 2.4 * columns, 0.6 + 2.0 * rows), layout="constrained")
        panels = list(figure.subplots(rows, columns, squeeze=False, sharex=True).flat)
        for panel, (name, found) in zip(panels, measured.items(), strict=False):
            _draw(panel, name, found)
        for panel in panels[len(measured) :]:
            panel.remove()
        for panel in panels[max(len(measured) - columns, 0) : len(measured)]:  # the lowest of each column
            panel.tick_params(labelbottom=True)
        handles, labels = figure.axes[0].get_legend_handles_labels()
        figure.legend(handles, labels, loc="outside upper center", ncols=3 if columns > 2 else 1, frameon=False)
        figure.supxlabel("Position after the prompt, tokens", fontsize=8)
        figure.supylabel("Nats a token", fontsize=8)
        with written_atomically(path) as temporary:
            figure.savefig(temporary, dpi=150, facecolor="white")


def _draw(panel: Axes, name: str, found: Mapping[str, np.ndarray]) -> None:
    for key, label, colour in (
        ("none/own", "entropy of its own text", _OWN),
        ("none/true_text", "entropy on real text", _TRUE),
    ):
        centres_M, mean_M, low_M, high_M = by_position(found[key])
        panel.plot(centres_M, mean_M, color=colour, label=label, marker=".", markersize=3, linewidth=1)
        panel.fill_between(centres_M, low_M, high_M, color=colour, alpha=0.2, linewidth=0)
    panel.axhline(found["none/loss"].mean(), color=_LOSS, linestyle="--", linewidth=1, label="loss on real text")
    panel.set_title(name.replace("_", " "), fontsize=8)
    panel.set_xscale("log")


def by_position(values_BT: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    """Means over bins of positions, equally wide in their logarithm, with intervals over documents.

    Returns:
      The centres of the bins, counted from 1, the means, and both ends of the 95% intervals, each [M].
    """
    length = values_BT.shape[1]
    edges = np.unique(np.geomspace(1, length + 1, _BINS + 1).round().astype(int))
    lines = []
    for start, end in itertools.pairwise(edges):
        mean_B = values_BT[:, start - 1 : end - 1].mean(axis=1, dtype=np.float64)
        interval = mean_interval(mean_B)
        lines.append((np.sqrt(start * (end - 1)), mean_B.mean(), interval.low, interval.high))
    centres_M, mean_M, low_M, high_M = np.array(lines).T
    return centres_M, mean_M, low_M, high_M
