"""Plots of an evaluation.

Axes: C classes (rows the true ones, columns the predicted ones).
"""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import PercentFormatter

from lm.console import printable
from lm.errors import UserError
from lm.files import written_atomically
from lm.fonts import style

_INK, _MUTED, _LINES = "#1f2328", "#68707a", "#d3d8de"
_STYLE: dict[Any, Any] = {
    "font.size": 9,
    "text.color": _INK,
    "text.parse_math": False,  # names in the data are never parsed as math
    "axes.titlesize": 10,
    "axes.labelcolor": _INK,
    "xtick.color": _INK,
    "ytick.color": _INK,
    "svg.fonttype": "none",
    "svg.hashsalt": "evaluation",
}
_SUFFIXES = (".png", ".svg")
_FEW = 4  # up to this many classes, cells are large
_DARK = 0.67  # above this share white text is easier to read than dark text
_MOST_WRITTEN = 30  # with more classes, cells are too small for text and show only their shade


def save_confusion_picture(confusion_CC: np.ndarray, class_names: Sequence[str], path: Path) -> None:
    """Plots how often each true class (row) was predicted as each class (column): counts and row shares.

    Shades of one blue, which colour-blind readers can distinguish too.

    Args:
      confusion_CC: counts.
      class_names: of the C classes; long ones are shortened.
      path: the file to write, .png or .svg. Its directory is created if necessary.

    Raises:
      UserError: for another suffix.
      ValueError: if the matrix is not square with a row for each name.
    """
    path = Path(path)
    if path.suffix.lower() not in _SUFFIXES:
        raise UserError(f"{path}: the file name of a plot must end with {' or '.join(_SUFFIXES)}")
    with style(_STYLE):
        figure = _draw(np.asarray(confusion_CC), class_names)
        path.parent.mkdir(parents=True, exist_ok=True)
        metadata = {"Date": None} if path.suffix.lower() == ".svg" else None  # the same plot, the same bytes
        with written_atomically(path) as temporary:
            figure.savefig(temporary, dpi=150, facecolor="white", metadata=metadata)


def _draw(confusion_CC: np.ndarray, class_names: Sequence[str]) -> Figure:
    classes = len(class_names)
    if confusion_CC.shape != (classes, classes):
        raise ValueError(f"confusion matrix of shape {confusion_CC.shape} for {classes} class names")
    share_CC = confusion_CC / np.maximum(confusion_CC.sum(axis=1, keepdims=True), 1)
    names = [_shortened(name) for name in class_names]
    longest = max(map(len, names), default=0)
    cell = 0.9 if classes <= _FEW else np.clip(14 / classes, 0.25, 0.62)  # inches
    side = max(cell * classes + 0.9 + 0.075 * longest, 3.4)  # room for the names and for the title
    figure = Figure(figsize=(side, side), layout="constrained")
    axes = figure.subplots()
    image = axes.imshow(share_CC, cmap="Blues", vmin=0, vmax=1)
    _name_classes(axes, names, tilted=longest * 0.085 > cell)
    if classes <= _MOST_WRITTEN:
        _write_cells(axes, confusion_CC, share_CC)
        figure.suptitle("Count, and share of the true class", color=_MUTED, fontsize=10)
    else:
        figure.colorbar(image, label="Share of the true class", format=PercentFormatter(1), shrink=0.5)
    return figure


def _name_classes(axes: Axes, names: Sequence[str], tilted: bool) -> None:
    rotation: dict[str, Any] = {"rotation": 45, "ha": "right", "rotation_mode": "anchor"} if tilted else {}
    axes.set_xticks(range(len(names)), names, **rotation)
    axes.set_yticks(range(len(names)), names)
    axes.set(xlabel="Predicted class", ylabel="True class")
    axes.set_xticks(np.arange(len(names) + 1) - 0.5, minor=True)
    axes.set_yticks(np.arange(len(names) + 1) - 0.5, minor=True)
    axes.grid(which="minor", color=_LINES, linewidth=0.4)
    axes.tick_params(which="both", length=0)
    axes.spines[:].set_visible(False)


def _write_cells(axes: Axes, confusion_CC: np.ndarray, share_CC: np.ndarray) -> None:
    few = len(confusion_CC) <= _FEW
    for (row, column), count in np.ndenumerate(confusion_CC):
        share = float(share_CC[row, column])
        text = f"{count:,}\n{_percent(share, 1 if few else 0)}" if count else "0"
        colour = "white" if share > _DARK else _INK if count else _MUTED
        axes.text(column, row, text, ha="center", va="center", color=colour, fontsize=9 if few else 7.5)


def _percent(share: float, decimals: int) -> str:
    """Rounded, but to 0% or 100% only if exact."""
    least = 10.0**-decimals
    if 0 < 100 * share < least:
        return f"<{least:g}%"
    if 100 - least < 100 * share < 100:
        return f">{100 - least:g}%"
    return f"{100 * share:.{decimals}f}%"


def _shortened(name: str, most: int = 28) -> str:
    name = printable(" ".join(str(name).split()), keep="")  # in an SVG, control characters are errors
    return name if len(name) <= most else name[: most - 1] + "…"
