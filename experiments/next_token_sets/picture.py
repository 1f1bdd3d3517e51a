"""The picture of `experiments.next_token_sets`: coverage and size by frequency of the next token."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import PercentFormatter

from experiments.next_token_sets.table import LABELS
from lm.files import written_atomically
from lm.fonts import style

# The colours of Okabe & Ito, which colour-blind readers can distinguish.
_COLOURS = {
    "lac": "#0072b2",
    "aps": "#e69f00",
    "naive_aps": "#d55e00",
    "raps": "#009e73",
    "lac_by_frequency": "#cc79a7",
}
_MARKERS = {"lac": "o", "aps": "s", "naive_aps": "D", "raps": "^", "lac_by_frequency": "v"}
_STYLE: dict[Any, Any] = {"font.size": 9, "axes.spines.top": False, "axes.spines.right": False}


def save_picture(found: Mapping[str, Any], path: Path) -> None:
    """Draws coverage (above) and mean size (below) of all sets, raw (left) and after temperature scaling (right).

    Bars are one standard deviation between splits.

    Args:
      found: from `summarize`, with the config.
      path: of the file to write.
    """
    with style(_STYLE):
        figure = Figure(figsize=(9, 5.6), layout="constrained")
        axes = figure.subplots(2, 2, sharex=True, sharey="row")
        for column, (probabilities, title) in enumerate({"none": "Raw", "temperature": "After temperature"}.items()):
            rows = [row for row in found["rows"] if row["probabilities"] == probabilities]
            for row in rows:
                _draw(axes[0, column], row, "coverage")
                _draw(axes[1, column], row, "mean_size")
            axes[0, column].set_title(title)
            axes[0, column].axhline(found["config"]["sets"]["coverage"], color="#68707a", linewidth=0.8)
            axes[1, column].set_xlabel("Frequency of the next token, common to rare")
        axes[0, 0].set_ylabel("Coverage")
        axes[0, 0].yaxis.set_major_formatter(PercentFormatter(1, decimals=0))
        axes[1, 0].set(ylabel="Mean size", yscale="log")
        figure.legend(*axes[0, 0].get_legend_handles_labels(), loc="outside lower center", ncols=3, frameon=False)
        with written_atomically(path) as temporary:
            figure.savefig(temporary, dpi=150, facecolor="white")


def _draw(axes: Axes, row: Mapping[str, Any], name: str) -> None:
    places = [int(group) for group in row["by_frequency"]]
    each, sets = list(row["by_frequency"].values()), row["sets"]
    axes.errorbar(
        places,
        [one[name] for one in each],
        [one[f"{name}_spread"] for one in each],
        label=LABELS[sets],
        color=_COLOURS[sets],
        marker=_MARKERS[sets],
        markersize=4,
        linewidth=1,
    )
    axes.set_xticks(places)
