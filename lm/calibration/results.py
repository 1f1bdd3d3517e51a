"""Results of a comparison of calibrators as dataclasses, and their JSON form (comparison.json).

Numbers that cannot be computed are NaN here and null in JSON.
"""

import dataclasses
import math
from collections.abc import Mapping
from typing import Any

from lm.calibration.guarantees import Guarantees
from lm.calibration.metrics import Metric
from lm.calibration.noise_floor import Floor
from lm.files import json_value
from lm.statistics.comparisons import Difference
from lm.statistics.intervals import Interval


@dataclasses.dataclass(frozen=True)
class Settings:
    """Settings of a comparison.

    Attributes:
      bins: number of bins of binned errors.
      resamples: number of resamples, of the bootstrap and of the noise floor.
      level: coverage of intervals, such as 0.95.
      seed: of all resampling.
      coverage: target probability of conformal sets.
      risks: error rates to answer at most with.
    """

    bins: int = 15
    resamples: int = 1000
    level: float = 0.95
    seed: int = 0
    coverage: float = 0.9
    risks: tuple[float, ...] = (0.05, 0.1, 0.2)


@dataclasses.dataclass(frozen=True)
class Items:
    """Numbers of items that the calibrators were fitted to and measured on.

    Attributes:
      fit: number of items fitted to; 0 if nothing was fitted.
      test: number of items measured on.
      fit_clusters: clusters among the former; None if the items are independent.
      test_clusters: clusters among the latter; None if the items are independent.
      classes: number of classes.
    """

    fit: int
    test: int
    fit_clusters: int | None
    test_clusters: int | None
    classes: int


@dataclasses.dataclass(frozen=True)
class Entry:
    """One metric of one method.

    Attributes:
      value: a fraction where the metric's unit is "percent", else in that unit.
      interval: at the level of the settings; None if it was not computed.
      floor: what a perfectly calibrated model would show; None for metrics without a noise floor.
      difference: this value minus the uncalibrated one on the same items; None for the uncalibrated method itself.
    """

    value: float = math.nan
    interval: Interval | None = None
    floor: Floor | None = None
    difference: Difference | None = None


@dataclasses.dataclass(frozen=True)
class Bin:
    """One non-empty bin of a reliability diagram.

    Attributes:
      low: its lower edge.
      high: its upper edge.
      count: number of items.
      confidence: their mean confidence.
      accuracy: their accuracy.
      accuracy_low: lower end of the interval of `accuracy`.
      accuracy_high: its upper end.
      band_low: lower end of the range in which a calibrated model's accuracy falls.
      band_high: its upper end.
    """

    low: float
    high: float
    count: int
    confidence: float
    accuracy: float
    accuracy_low: float
    accuracy_high: float
    band_low: float
    band_high: float


@dataclasses.dataclass(frozen=True, kw_only=True)
class Method:
    """One calibrator, or the uncalibrated predictions, on the test items.

    Attributes:
      name: its key in `lm.calibration.calibrators.CALIBRATORS`; "none" for the uncalibrated probabilities.
      label: its name in tables.
      summary: the fitted parameters in short, such as "T = 1.53".
      converged: whether the fit reached its optimum.
      at_bound: whether a parameter ended at the edge of its search range.
      accepted: whether the fit did not increase the loss of its own items; otherwise the predictions stay unchanged.
      message: a warning about the fit; empty if there is none.
      entries: by metric name.
      bins: from low to high confidence.
      risk_coverage: (coverage, risk) along the risk-coverage curve, coverage rising to 1.
      guarantees: sets and answers whose thresholds one half of the test items chose and the other judged; None if there
        are too few items, or they have weights.
    """

    name: str
    label: str
    summary: str = ""
    converged: bool = True
    at_bound: bool = False
    accepted: bool = True
    message: str = ""
    entries: Mapping[str, Entry]
    bins: tuple[Bin, ...]
    risk_coverage: tuple[tuple[float, float], ...]
    guarantees: Guarantees | None = None

    def entry(self, metric: str) -> Entry:
        """The entry of a metric; its numbers are NaN or None if the metric was not measured."""
        return self.entries.get(metric, Entry())


@dataclasses.dataclass(frozen=True)
class Comparison:
    """Results of all calibrators on the same items.

    Attributes:
      title: of the report.
      source: where the predictions come from.
      items: numbers of items.
      settings: bins, resampling, level, seed.
      metrics: in the order in which they are shown.
      methods: the uncalibrated predictions first, then the calibrators.
      notes: what limits the comparison, such as calibrators that could not be fitted.
    """

    title: str
    source: str
    items: Items
    settings: Settings
    metrics: tuple[Metric, ...]
    methods: tuple[Method, ...]
    notes: tuple[str, ...] = ()

    @property
    def uncalibrated(self) -> Method:
        """The predictions without a calibrator."""
        return self.methods[0]

    def method(self, name: str) -> Method:
        """A method by name; raises KeyError if there is none."""
        return {method.name: method for method in self.methods}[name]

    def metric(self, name: str) -> Metric:
        """A metric by name; raises KeyError if there is none."""
        return {metric.name: metric for metric in self.metrics}[name]


def to_json(comparison: Comparison) -> dict[str, Any]:
    """A comparison as JSON types: numbers unrounded, null for those that are not finite."""
    return json_value(
        {
            "title": comparison.title,
            "source": comparison.source,
            "items": dataclasses.asdict(comparison.items),
            "settings": dataclasses.asdict(comparison.settings),
            "metrics": [_metric_json(metric) for metric in comparison.metrics],
            "methods": [_method_json(method) for method in comparison.methods],
            "notes": comparison.notes,
        }
    )


def _metric_json(metric: Metric) -> dict[str, Any]:
    return {name: value for name, value in dataclasses.asdict(metric).items() if name != "binning"}


def _method_json(method: Method) -> dict[str, Any]:
    fields = {field.name: getattr(method, field.name) for field in dataclasses.fields(method)}
    del fields["entries"], fields["bins"], fields["risk_coverage"], fields["guarantees"]
    return {
        **fields,
        "metrics": {name: _entry_json(entry) for name, entry in method.entries.items()},
        "bins": [dataclasses.asdict(one) for one in method.bins],
        "risk_coverage": method.risk_coverage,
        "guarantees": None if method.guarantees is None else dataclasses.asdict(method.guarantees),
    }


def _entry_json(entry: Entry) -> dict[str, Any]:
    low, high = (entry.interval.low, entry.interval.high) if entry.interval else (None, None)
    value: dict[str, Any] = {"value": entry.value, "low": low, "high": high}
    if entry.floor:
        value |= {"floor_mean": entry.floor.mean, "floor_high": entry.floor.high, "p_calibrated": entry.floor.p}
    if entry.difference:
        value["difference"] = dataclasses.asdict(entry.difference)
    return value
