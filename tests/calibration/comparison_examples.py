"""Comparisons made by hand."""

import dataclasses
import math

from lm.calibration.metrics import Metric
from lm.calibration.noise_floor import Floor
from lm.calibration.results import Bin, Comparison, Entry, Items, Method, Settings
from lm.statistics.comparisons import Difference
from lm.statistics.intervals import Interval

METRICS = {
    "ece": ("ECE", "percent", "lower"),
    "ece_equal_mass": ("ECE, equal mass", "percent", "lower"),
    "smooth_ece": ("Smooth ECE", "percent", "lower"),
    "signed_gap": ("Signed gap", "percent", None),
    "nll": ("NLL", "nats", "lower"),
    "accuracy": ("Accuracy", "percent", "higher"),
    "confidence": ("Confidence", "percent", None),
    "aurc": ("AURC", "number", "lower"),
}


def comparison() -> Comparison:
    """Before, a temperature that helps, histogram binning without intervals, and a matrix that was not accepted."""
    before = _method("none", "Uncalibrated", "", {"ece": 0.0812, "nll": 2.401, "accuracy": 0.7, "confidence": 0.7812})
    temperature = {"ece": 0.0131, "nll": 2.345, "confidence": 0.705}
    matrix = _method("matrix", "Matrix scaling", "rank 512", {"ece": 0.1023, "nll": 2.9, "accuracy": 0.66}, before)
    return Comparison(
        title="quickstart, token level",
        source="predictions.npz",
        items=Items(fit=4000, test=5000, fit_clusters=40, test_clusters=None, classes=512),
        settings=Settings(),
        metrics=tuple(_metric(name, *about) for name, about in METRICS.items()),
        methods=(
            before,
            _method("temperature", "Temperature", "T = 1.53", temperature, before),
            without_uncertainty(
                _method("histogram", "Histogram binning", "15 bins", {"ece": 0.02, "nll": 2.6}, before)
            ),
            dataclasses.replace(
                matrix,
                accepted=False,
                converged=False,
                message="its NLL on the items that it was fitted on is higher than before",
            ),
        ),
    )


def with_method(name: str, **changes) -> Comparison:
    """The comparison with fields of one method replaced."""
    given = comparison()
    methods = (dataclasses.replace(one, **changes) if one.name == name else one for one in given.methods)
    return dataclasses.replace(given, methods=tuple(methods))


def only(*names: str) -> Comparison:
    """The comparison with some of its methods."""
    given = comparison()
    return dataclasses.replace(given, methods=tuple(given.method(name) for name in names))


def changed(name: str, **changes: dict) -> Comparison:
    """The comparison with fields of one method's entries replaced."""
    entries = dict(comparison().method(name).entries)
    for metric, fields in changes.items():
        entries[metric] = dataclasses.replace(entries[metric], **fields)
    return with_method(name, entries=entries)


def difference(value: float, p: float) -> Difference:
    return Difference(value, value - 0.01, value + 0.01, p)


def without_uncertainty(method: Method) -> Method:
    entries = {
        name: dataclasses.replace(
            entry,
            interval=None,
            difference=entry.difference and Difference(entry.difference.value, math.nan, math.nan, math.nan),
        )
        for name, entry in method.entries.items()
    }
    return dataclasses.replace(method, entries=entries)


def _metric(name: str, label: str, unit: str, better: str | None) -> Metric:
    return Metric(
        name=name,
        label=label,
        long=f"{label} in full",
        unit=unit,
        better=better,
        definition=f"What {label} is.",
        formula="Σₘ (nₘ / N) |accₘ − confₘ|",
        source="Guo et al. 2017",
        specification={"bins": 15, "scheme": "equal_width", "edges": "(a, b], 0 in the first"},
    )


def _method(name: str, label: str, summary: str, values: dict, before: Method | None = None) -> Method:
    values = {"accuracy": 0.7, "confidence": 0.73, "aurc": 0.1234, "smooth_ece": values["ece"] * 0.9} | values
    values["ece_equal_mass"] = values["ece"] * 1.02
    values["signed_gap"] = values["confidence"] - values["accuracy"]
    curve = ((k / 100, (1 - values["accuracy"]) * (k / 100) ** (1.1 + values["ece"])) for k in range(1, 101))
    return Method(
        name=name,
        label=label,
        summary=summary,
        entries={metric: _entry(metric, values[metric], before) for metric in METRICS},
        bins=tuple(_bin(number, values["ece"]) for number in range(2, 15)),
        risk_coverage=tuple(curve),
    )


def _entry(metric: str, value: float, before: Method | None) -> Entry:
    floor, change = None, None
    if metric.startswith("ece"):
        floor = Floor(0.012, 0.019, 0.0005 if value > 0.019 else 0.31)
    if before:
        gain = value - before.entry(metric).value
        change = Difference(gain, gain - 0.004, gain + 0.004, 0.0005 if gain else 1.0)
    return Entry(value, Interval(value - 0.01, value + 0.01, 0.005), floor, change)


def _bin(number: int, error: float) -> Bin:
    low, high, count = number / 15, (number + 1) / 15, 40 * (number - 1) ** 2
    confidence = (low + high) / 2
    accuracy = confidence - error * min(1, number / 10)
    wide = 0.9 / count**0.5
    return Bin(
        low=low,
        high=high,
        count=count,
        confidence=confidence,
        accuracy=accuracy,
        accuracy_low=max(0.0, accuracy - wide),
        accuracy_high=min(1.0, accuracy + wide),
        band_low=max(0.0, confidence - 1.2 * wide),
        band_high=min(1.0, confidence + 1.2 * wide),
    )
