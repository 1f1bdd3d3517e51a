"""The table: a line for each model and correction, from the measured arrays.

Axes: B documents, T positions, C chosen positions, D prompts for the corrected model.
"""

import csv
import dataclasses
import io
import math
from collections import defaultdict
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from lm.evaluation.entropy_rate import Drift, Estimate, drift, scaling_exponent
from lm.statistics.comparisons import Difference, paired_mean_difference
from lm.statistics.seeds import seed_summary

CORRECTIONS = {"none": "none", "temperature": "temperature", "look_ahead": "look-ahead"}


@dataclasses.dataclass(frozen=True)
class Row:
    """A model with a correction.

    Attributes:
      model: its name.
      parameters: their number.
      correction: a key of `CORRECTIONS`.
      parameter: the temperature, or alpha in 1/nats; 1 for none.
      loss_change: the change of the loss by the correction, on the same predictions; zero for none.
      drift: the entropy rate and the loss.
    """

    model: str
    parameters: int
    correction: str
    parameter: float
    loss_change: Difference
    drift: Drift


def make_rows(name: str, found: Mapping[str, np.ndarray]) -> list[Row]:
    """The rows of a model, from what `experiments.entropy_rate.measuring.measure` returns."""
    parameters = {"none": 1.0, "temperature": float(found["temperature"])}
    if "alpha" in found:
        parameters["look_ahead"] = float(found["alpha"])
    size = int(found["parameters"])
    return [Row(name, size, key, value, *_measured(key, found)) for key, value in parameters.items()]


def _measured(correction: str, found: Mapping[str, np.ndarray]) -> tuple[Difference, Drift]:
    if correction == "look_ahead":
        return _after_look_ahead(found)
    loss_BT, true_BT, own_BT = (found[f"{correction}/{part}"] for part in ("loss", "true_text", "own"))
    return paired_mean_difference(_by_document(found["none/loss"]), _by_document(loss_BT)), drift(
        loss_BT, true_BT, own_BT
    )


def _after_look_ahead(found: Mapping[str, np.ndarray]) -> tuple[Difference, Drift]:
    """Its predictions are known at some positions: their mean change is added to the uncorrected ones at all."""
    before = {part: found[f"none/{part}"] for part in ("loss", "true_text")}
    change_B = {
        part: _by_document(found[f"look_ahead/{part}"] - before_BT[:, found["positions"]])
        for part, before_BT in before.items()
    }
    loss_BT, true_BT = (before_BT + change_B[part][:, None] for part, before_BT in before.items())
    change = paired_mean_difference(np.zeros_like(change_B["loss"]), change_B["loss"])
    return change, drift(loss_BT, true_BT, found["look_ahead/own"])


def _by_document(values_BT: np.ndarray) -> np.ndarray:
    return values_BT.mean(axis=1, dtype=np.float64)


def as_json(rows: Sequence[Row]) -> list[dict[str, Any]]:
    """All numbers, in nats."""
    return [dataclasses.asdict(row) for row in rows]


def as_csv(rows: Sequence[Row]) -> str:
    """A line for each row, with all numbers in nats; intervals are at 95%."""
    records = [_flat(dataclasses.asdict(row)) for row in rows]
    stream = io.StringIO()
    writer = csv.DictWriter(stream, list(records[0]), lineterminator="\n")
    writer.writeheader()
    writer.writerows(records)
    return stream.getvalue()


def _flat(values: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    flat: dict[str, Any] = {}
    for name, value in values.items():
        flat |= _flat(value, f"{prefix}{name}_") if isinstance(value, Mapping) else {f"{prefix}{name}": value}
    return flat


def as_markdown(rows: Sequence[Row]) -> str:
    """The table, the means over seeds, and how the gap depends on the number of parameters."""
    parts = [_table(_cells(rows)) + "\nIn nats a token; ± half of a 95% interval over documents.\n"]
    if seeds := _seed_cells(rows):
        parts.append(_table(seeds) + "\nMean over seeds ± its standard error, in nats a token.\n")
    parts += _scaling_lines(rows)
    return "\n".join(parts)


def _cells(rows: Sequence[Row]) -> list[list[str]]:
    head = ["model", "parameters", "correction", "value", "loss change", "loss", "entropy on true text"]
    cells = [[*head, "entropy rate", "gap", "shift", "exponent", "excess exponent"]]
    cells += [
        [
            row.model,
            f"{row.parameters:,}",
            CORRECTIONS[row.correction],
            f"{row.parameter:.3f}",
            "" if row.correction == "none" else shown(row.loss_change, "+.4f"),
            *(shown(getattr(row.drift, part)) for part in ("loss", "true_text", "entropy_rate")),
            *(shown(getattr(row.drift, part), "+.3f") for part in ("gap", "shift")),
            *(shown(getattr(row.drift, part), "+.3f") for part in ("exponent", "excess_exponent")),
        ]
        for row in rows
    ]
    return cells


def _seed_cells(rows: Sequence[Row]) -> list[list[str]]:
    """A line for each correction of models that differ only in their seed; empty without such models."""
    groups = defaultdict(list)
    for row in rows:
        groups[row.model.rpartition("_seed")[0], row.correction].append(row.drift)
    cells = [["models", "seeds", "correction", "loss", "entropy rate", "gap", "shift", "exponent", "excess exponent"]]
    for (name, correction), drifts in groups.items():
        if name and len(drifts) > 1:
            means = [
                seed_summary([getattr(each, part).value for each in drifts])
                for part in ("loss", "entropy_rate", "gap", "shift", "exponent", "excess_exponent")
            ]
            numbers = [f"{mean.mean:.3f} ± {mean.standard_error:.3f}" for mean in means]
            cells.append([name, str(len(drifts)), CORRECTIONS[correction], *numbers])
    return cells if len(cells) > 1 else []


def _scaling_lines(rows: Sequence[Row]) -> list[str]:
    """The exponent of the gap in the number of parameters, of each corpus of the ladder with enough models."""
    groups = defaultdict(list)
    for row in rows:
        if row.correction == "none" and "_seed" in row.model:
            groups[row.model.rpartition("_")[0].rpartition("_")[0]].append(row)
    lines = []
    for corpus, models in groups.items():
        gaps_N = np.array([row.drift.gap.value for row in models])
        found = scaling_exponent(np.array([row.parameters for row in models]), gaps_N)
        if not math.isnan(found.value):
            lines.append(f"{corpus}: the gap scales with parameters to the power {shown(found, '+.3f')}\n")
    return lines


def _table(cells: list[list[str]]) -> str:
    widths = [max(map(len, column)) for column in zip(*cells, strict=True)]
    cells.insert(1, ["-" * width for width in widths])
    lines = (" | ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)) for row in cells)
    return "".join(f"| {line} |\n" for line in lines)


def shown(estimate: Estimate | Difference, form: str = ".3f") -> str:
    """A value and the half-width of its interval, with equally many decimals."""
    half = (estimate.high - estimate.low) / 2
    return f"{estimate.value:{form}} ± {half:{form.removeprefix('+')}}"
