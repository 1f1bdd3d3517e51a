"""The table of `experiments.next_token_sets`: means over splits, with intervals over documents.

Axes: K splits.
"""

import csv
import io
import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

LABELS = {
    "lac": "LAC",
    "aps": "APS",
    "naive_aps": "APS, not randomized",
    "raps": "RAPS",
    "lac_by_frequency": "LAC, a threshold for each group",
}
PROBABILITIES = {"none": "raw", "temperature": "after temperature"}
_MEANS = ("coverage", "mean_size", "median_size", "was_empty", "times_lac")
# Ends of intervals over documents: means over splits, since one split's documents are those that an interval is about.
_ENDS = ("coverage_low", "coverage_high", "mean_size_low", "mean_size_high")
_COLUMNS = ("coverage", "coverage_spread", *_ENDS[:2], "mean_size", "mean_size_spread", *_ENDS[2:])


def summarize(splits: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """The means over splits of every row and every group, in JSON's types.

    Names that end in `_spread` are standard deviations between splits, NaN with one split. `times_lac` is the mean size
    relative to that of LAC with the same probabilities in the same split.
    """
    rows = []
    for place, first in enumerate(splits[0]["rows"]):
        of_splits = [_with_ratio(split["rows"], place) for split in splits]
        groups = [group for group in first["by_frequency"] if all(group in row["by_frequency"] for row in of_splits)]
        rows.append(
            {
                "probabilities": first["probabilities"],
                "sets": first["sets"],
                **_means(of_splits),
                "by_frequency": {group: _means([row["by_frequency"][group] for row in of_splits]) for group in groups},
            }
        )
    numbers = {
        kind: {name: float(np.mean([split[kind][name] for split in splits])) for name in splits[0][kind]}
        for kind in ("documents", "tokens")
    }
    return {**numbers, "temperatures": [split["temperature"] for split in splits], "rows": rows}


def _with_ratio(rows: Sequence[Mapping[str, Any]], place: int) -> dict[str, Any]:
    row = rows[place]
    (lac,) = (each for each in rows if each["sets"] == "lac" and each["probabilities"] == row["probabilities"])
    return {**row, "times_lac": row["mean_size"] / lac["mean_size"]}


def _means(of_splits: Sequence[Mapping[str, Any]]) -> dict[str, float]:
    found = {}
    for name in (*_MEANS, *_ENDS):
        if name in of_splits[0]:
            values_K = np.array([math.nan if row[name] is None else row[name] for row in of_splits])
            found[name] = float(values_K.mean())
            if name in _MEANS:
                found[f"{name}_spread"] = float(values_K.std(ddof=1)) if len(values_K) > 1 else math.nan
    return found


def as_markdown(found: Mapping[str, Any]) -> str:
    """Two tables: every kind of sets, and coverage by frequency."""
    sets, documents, tokens = found["config"]["sets"], found["documents"], found["tokens"]
    lines = [
        f"Sets at {sets['coverage']:.0%}, means over {sets['splits']} splits into {documents['fit']:.0f} documents for "
        f"the temperature, {documents['calibration']:.0f} ({tokens['calibration']:,.0f} tokens) for the thresholds and "
        f"{documents['test']:.0f} ({tokens['test']:,.0f} tokens) for testing. ± is the standard deviation between "
        "splits; intervals (95%) are over the documents of one split, the mean of their ends. Empty: sets without any "
        "token, which get the likeliest one.",
        "",
        "| probabilities | sets | coverage, % | interval | mean size | interval | times LAC | median | empty, % |",
        "|---|---|---|---|---|---|---|---|---|",
        *(_line(row) for row in found["rows"]),
        "",
        f"Coverage, % (mean size), by frequency of the next token: 1 is of the most common tokens, {sets['groups']} of "
        "the rarest; each is about an equal part of the text.",
        "",
    ]
    groups = list(found["rows"][0]["by_frequency"])
    lines += [f"| probabilities | sets | {' | '.join(groups)} |", "|---" * (2 + len(groups)) + "|"]
    for row in found["rows"]:
        cells = [f"{100 * each['coverage']:.0f} ({_size(each['mean_size'])})" for each in row["by_frequency"].values()]
        lines.append(f"| {PROBABILITIES[row['probabilities']]} | {LABELS[row['sets']]} | {' | '.join(cells)} |")
    return "\n".join(lines) + "\n"


def _line(row: Mapping[str, Any]) -> str:
    cells = (
        PROBABILITIES[row["probabilities"]],
        LABELS[row["sets"]],
        f"{100 * row['coverage']:.1f} ± {100 * row['coverage_spread']:.1f}",
        f"{100 * row['coverage_low']:.1f} to {100 * row['coverage_high']:.1f}",
        f"{_size(row['mean_size'])} ± {_size(row['mean_size_spread'])}",
        f"{_size(row['mean_size_low'])} to {_size(row['mean_size_high'])}",
        f"{row['times_lac']:.2f} ± {row['times_lac_spread']:.2f}",
        f"{row['median_size']:.1f}",
        f"{100 * row['was_empty']:.1f}",
    )
    return f"| {' | '.join(cells)} |"


def _size(size: float) -> str:
    return f"{size:.1f}" if size < 100 else f"{size:,.0f}"


def as_csv(found: Mapping[str, Any]) -> str:
    """One line for each kind of sets over all tokens, and for each group by frequency."""
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    others = ("times_lac", "times_lac_spread", "median_size", "was_empty")
    writer.writerow(["probabilities", "sets", "frequency", *_COLUMNS, *others])
    for row in found["rows"]:
        for group, each in {"all": row, **row["by_frequency"]}.items():
            values = [each.get(name) for name in (*_COLUMNS, *others)]
            cells = ["" if value is None or math.isnan(value) else value for value in values]
            writer.writerow([row["probabilities"], row["sets"], group, *cells])
    return text.getvalue()
