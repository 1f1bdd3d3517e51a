"""The table of confidences: calibration, ranking, length, and selective answering with a guaranteed risk.

Axes: N rows.
"""

import csv
import dataclasses
import io
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from lm.calibration.comparison import compare
from lm.calibration.inputs import InputError
from lm.calibration.predictions import Predictions
from lm.calibration.report.diagrams import risk_coverage
from lm.calibration.report.wording import format_interval, format_value
from lm.calibration.results import Comparison, Entry, Method, Settings
from lm.calibration.selective import Threshold, threshold_for_risk
from lm.console import Advance
from lm.files import json_value, written_atomically
from lm.prompting.answer_confidence import KINDS
from lm.statistics.correlation import Correlation, spearman
from lm.statistics.intervals import Interval, share_interval

_UNITS = {"ece": "percent", "nll": "nats", "brier": "number", "auroc": "number", "aurc": "percent"}


@dataclasses.dataclass(frozen=True)
class Selected:
    """Test rows whose confidence reaches a threshold that was chosen on the validation rows.

    Attributes:
      threshold: as chosen.
      coverage: share of test rows that are answered.
      error_rate: among them; NaN if there are none.
      interval: of the error rate.
    """

    threshold: Threshold
    coverage: float
    error_rate: float
    interval: Interval


@dataclasses.dataclass(frozen=True)
class Line:
    """One kind of confidence.

    Attributes:
      kind: a key of `KINDS`.
      rows: test rows that have it.
      before: measured on them.
      after: likewise, after the calibrator; None if it could not be fitted.
      length: rank correlation with the number of tokens of the answer: of "all" rows, and of those that are "right" and
        "wrong".
      selected: by the guaranteed threshold.
    """

    kind: str
    rows: int
    before: Method
    after: Method | None
    length: Mapping[str, Correlation]
    selected: Selected


@dataclasses.dataclass(frozen=True)
class Table:
    """All kinds of confidence on the same rows.

    Attributes:
      lines: in the order of `KINDS`.
      accuracy: the share of right answers among the test rows.
      interval: of it.
      calibrator: that `Line.after` is after.
      risk: that thresholds guarantee.
      assurance: the probability that they do.
      comparison: of all kinds, uncalibrated, for figures.
      notes: what limits the table.
    """

    lines: tuple[Line, ...]
    accuracy: float
    interval: Interval
    calibrator: str
    risk: float
    assurance: float
    comparison: Comparison
    notes: tuple[str, ...]


def make_table(
    predictions: Mapping[str, Mapping[str, Predictions]],
    lengths: Mapping[str, int],
    calibrator: str,
    risk: float,
    assurance: float,
    settings: Settings,
    notes: Sequence[str] = (),
    advance: Advance = lambda steps=1, detail="": None,
) -> Table:
    """Measures every kind of confidence on the test rows.

    Args:
      predictions: by kind, then "validation" and "test": judgements of answers.
      lengths: the number of tokens of the answer to each test row, by its id.
      calibrator: fitted to the validation rows.
      risk: to guarantee.
      assurance: of the guarantee.
      settings: bins, resamples, level, seed.
      notes: what is known to limit the table.
      advance: counts kinds.
    """
    lines, comparisons, found_notes = [], [], list(notes)
    for kind, parts in predictions.items():
        advance(0, kind)
        comparison = _compared(parts, calibrator, settings)
        found_notes += [note for note in comparison.notes if note not in found_notes]
        comparisons.append(comparison)
        lines.append(_line(kind, parts, comparison, lengths, risk, assurance, settings))
        advance(1)
    most = max(predictions.values(), key=lambda parts: len(parts["test"]))["test"]
    methods = tuple(
        dataclasses.replace(each.uncalibrated, name=line.kind, label=KINDS[line.kind].label)
        for line, each in zip(lines, comparisons, strict=True)
    )
    return Table(
        tuple(lines),
        float(most.labels_N.mean()),
        share_interval(most.labels_N, _numbers(most), settings.level),
        calibrator,
        risk,
        assurance,
        dataclasses.replace(comparisons[0], methods=methods),
        tuple(found_notes),
    )


def _compared(parts: Mapping[str, Predictions], calibrator: str, settings: Settings) -> Comparison:
    try:
        return compare(parts["validation"], parts["test"], (calibrator,), settings)[0]
    except InputError:  # as where all validation answers are right
        return compare(None, parts["test"], (), settings)[0]


def _line(
    kind: str,
    parts: Mapping[str, Predictions],
    comparison: Comparison,
    lengths: Mapping[str, int],
    risk: float,
    assurance: float,
    settings: Settings,
) -> Line:
    test = parts["test"]
    assert test.ids_N is not None
    length_N = np.array([lengths[str(each)] for each in test.ids_N])
    confidence_N, right_N = _confidence(test), test.labels_N == 1
    members = {"all": np.ones(len(test), bool), "right": right_N, "wrong": ~right_N}
    clusters_N = _numbers(test)
    correlations = {
        name: spearman(
            confidence_N[member_N],
            length_N[member_N],
            None if clusters_N is None else clusters_N[member_N],
            settings.resamples,
            settings.seed,
            settings.level,
        )
        for name, member_N in members.items()
    }
    after = comparison.methods[1] if len(comparison.methods) > 1 else None
    selected = select(parts["validation"], test, risk, assurance, settings)
    return Line(kind, len(test), comparison.uncalibrated, after, correlations, selected)


def select(chosen_on: Predictions, test: Predictions, risk: float, assurance: float, settings: Settings) -> Selected:
    """A threshold from some rows, and the others that it answers.

    The guarantee needs independent rows, so one of each cluster, drawn at random, chooses the threshold.
    """
    independent = chosen_on.select(one_of_each_cluster(chosen_on, settings.seed))
    threshold = threshold_for_risk(_confidence(independent), independent.labels_N, risk, assurance=assurance)
    answered_N = _confidence(test) >= threshold.confidence
    wrong_N = 1 - test.labels_N[answered_N]
    clusters_N = _numbers(test)
    if not wrong_N.size:
        return Selected(threshold, 0.0, math.nan, Interval(math.nan, math.nan, math.nan))
    interval = share_interval(wrong_N, None if clusters_N is None else clusters_N[answered_N], settings.level)
    return Selected(threshold, float(answered_N.mean()), float(wrong_N.mean()), interval)


def one_of_each_cluster(predictions: Predictions, seed: int) -> np.ndarray:
    """Indices of items, one of each cluster, drawn at random; all items where they have no clusters."""
    order_N = np.random.default_rng(seed).permutation(len(predictions))
    if predictions.clusters_N is None:
        return np.sort(order_N)
    _, first = np.unique(predictions.clusters_N[order_N], return_index=True)
    return np.sort(order_N[first])


def _confidence(predictions: Predictions) -> np.ndarray:
    return np.asarray(predictions.outcomes().confidence_N)


def _numbers(predictions: Predictions) -> np.ndarray | None:
    clusters_N = predictions.clusters_N
    return None if clusters_N is None else np.unique(clusters_N, return_inverse=True)[1]


def save_picture(table: Table, path: Path) -> None:
    """Draws the error rate of the surest answers against their share, for each kind."""
    with written_atomically(path) as temporary:
        risk_coverage(table.comparison).savefig(temporary, dpi=200, facecolor="white")


def as_json(table: Table) -> dict[str, Any]:
    """Everything, unrounded; null where a number is not defined."""
    return json_value(
        {
            "accuracy": table.accuracy,
            "interval": dataclasses.asdict(table.interval),
            "calibrator": table.calibrator,
            "risk": table.risk,
            "assurance": table.assurance,
            "settings": dataclasses.asdict(table.comparison.settings),
            "kinds": [_line_json(line) for line in table.lines],
            "notes": table.notes,
        }
    )


def _line_json(line: Line) -> dict[str, Any]:
    methods = {"before": line.before, "after": line.after}
    return {
        "kind": line.kind,
        "rows": line.rows,
        **{
            name: {metric: dataclasses.asdict(entry) for metric, entry in method.entries.items()}
            for name, method in methods.items()
            if method is not None
        },
        "length": {name: dataclasses.asdict(found) for name, found in line.length.items()},
        "selected": dataclasses.asdict(line.selected),
    }


_COLUMNS = (
    *("kind", "rows", "ece", "ece_low", "ece_high", "ece_floor", "ece_p", "nll", "brier"),
    *("auroc", "auroc_low", "auroc_high", "aurc", "after_ece", "after_ece_floor", "after_nll", "after_nll_p"),
    *(f"length_{of}{end}" for of in ("all", "right", "wrong") for end in ("", "_low", "_high")),
    *("threshold", "coverage", "error_rate", "error_low", "error_high"),
)


def as_csv(table: Table) -> str:
    """One line per kind; fractions are not in percent."""
    stream = io.StringIO()
    writer = csv.writer(stream, lineterminator="\n")
    writer.writerow(_COLUMNS)
    for line in table.lines:
        ece, auroc = line.before.entry("ece"), line.before.entry("auroc")
        after_ece, after_nll = (_after(line, name) for name in ("ece", "nll"))
        selected = line.selected
        writer.writerow(
            [
                *(line.kind, line.rows, ece.value, *_ends(ece.interval), _floor(ece), ece.floor.p if ece.floor else ""),
                *(line.before.entry(name).value for name in ("nll", "brier")),
                *(auroc.value, *_ends(auroc.interval), line.before.entry("aurc").value),
                *(after_ece.value, _floor(after_ece), after_nll.value),
                after_nll.difference.p if after_nll.difference else "",
                *(end for found in line.length.values() for end in (found.value, *_ends(found.interval))),
                *(selected.threshold.confidence, selected.coverage, selected.error_rate, *_ends(selected.interval)),
            ]
        )
    return stream.getvalue()


def _after(line: Line, metric: str) -> Entry:
    return Entry() if line.after is None else line.after.entry(metric)


def _ends(interval: Interval | None) -> tuple[float, float]:
    return (math.nan, math.nan) if interval is None else (interval.low, interval.high)


def _floor(entry: Entry) -> float:
    return entry.floor.mean if entry.floor else math.nan


def as_markdown(table: Table) -> str:
    """Two tables: how good each confidence is, and what it depends on and allows."""
    level = f"{table.comparison.settings.level:.0%}"
    items = table.comparison.items
    clusters = f" in {items.test_clusters:,} clusters" if items.test_clusters else ""
    accuracy = _with_interval(Entry(table.accuracy, table.interval), "percent")
    text = [
        f"{items.test:,} test rows{clusters}, accuracy {accuracy}%; brackets: {level} intervals.\n",
        _markdown(
            (
                "confidence",
                "ECE % (floor)",
                "NLL",
                "Brier",
                "AUROC",
                "AURC %",
                f"{table.calibrator}: ECE % (floor)",
                "NLL",
            ),
            [_quality(line) for line in table.lines],
        ),
        f"\nCorrelation with the length of the answer, and answers with a risk of at most {table.risk:.0%} "
        f"(assurance {table.assurance:.0%}):\n",
        _markdown(
            ("confidence", "all answers", "right ones", "wrong ones", "threshold", "answered %", "errors among them %"),
            [_dependence(line) for line in table.lines],
        ),
        *(f"\nNote: {note}." for note in table.notes),
    ]
    return "\n".join(text) + "\n"


def _markdown(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    lines = [head, ["---"] * len(head), *rows]
    return "\n".join(f"| {' | '.join(cells)} |" for cells in lines)


def _quality(line: Line) -> list[str]:
    before = {name: _with_interval(line.before.entry(name), unit) for name, unit in _UNITS.items()}
    floors = [f"({format_value(_floor(each), 'percent')})" for each in (line.before.entry("ece"), _after(line, "ece"))]
    return [
        KINDS[line.kind].label,
        f"{before['ece']} {floors[0]}",
        *(before[name] for name in ("nll", "brier", "auroc", "aurc")),
        f"{_with_interval(_after(line, 'ece'), 'percent')} {floors[1]}",
        _with_interval(_after(line, "nll"), "nats"),
    ]


def _dependence(line: Line) -> list[str]:
    correlations = [_with_interval(Entry(found.value, found.interval), "number") for found in line.length.values()]
    selected = line.selected
    return [
        KINDS[line.kind].label,
        *correlations,
        "none" if math.isinf(selected.threshold.confidence) else f"{selected.threshold.confidence:.3g}",
        format_value(selected.coverage, "percent"),
        _with_interval(Entry(selected.error_rate, selected.interval), "percent"),
    ]


def _with_interval(entry: Entry, unit: str) -> str:
    interval = format_interval(entry.value, entry.interval, unit)
    return format_value(entry.value, unit) + (f" [{interval}]" if interval else "")
