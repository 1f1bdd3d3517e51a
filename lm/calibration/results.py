"""What a comparison of calibrators found, as dataclasses; `to_json` makes of it what comparison.json holds.

Numbers that could not be computed are NaN, which JSON holds as null.
"""

import dataclasses
import math
from collections.abc import Mapping
from typing import Any

from lm.calibration.metrics import Metric
from lm.calibration.noise_floor import Floor
from lm.files import json_value
from lm.statistics.comparisons import Difference
from lm.statistics.intervals import Interval


@dataclasses.dataclass(frozen=True)
class Settings:
    """How a comparison is made.

    Attributes:
      bins: of the binned errors.
      resamples: of the bootstrap and of the noise floor.
      level: of intervals.
      seed: of all resampling.
    """

    bins: int = 15
    resamples: int = 1000
    level: float = 0.95
    seed: int = 0


@dataclasses.dataclass(frozen=True)
class Items:
    """How many items the calibrators were fitted to and measured on.

    Attributes:
      fit: number of items fitted to.
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
      value: as fraction, nats or number, in the metric's unit.
      interval: at the level of the settings; None where it was not computed.
      floor: what a perfectly calibrated model would show; None for metrics without a noise floor.
      difference: this value minus the uncalibrated one on the same items; None for the uncalibrated method itself.
    """

    value: float = math.nan
    interval: Interval | None = None
    floor: Floor | None = None
    difference: Difference | None = None


@dataclasses.dataclass(frozen=True)
class Bin:
    """One bin of a reliability diagram that holds at least one item.

    Attributes:
      low: its lower edge.
      high: its upper edge.
      count: its items.
      confidence: their mean confidence.
      accuracy: the share that is right.
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
    """One calibrator, or none, on the test items.

    Attributes:
      name: its key in `lm.calibration.calibrators.CALIBRATORS`; "none" for the uncalibrated probabilities.
      label: its name in tables.
      summary: the fitted parameters in short, such as "T = 1.53".
      converged: whether the fit reached its optimum.
      at_bound: whether a parameter ended at the edge of its search range.
      accepted: whether the fit lowered the loss of the items it was fitted to; if not, nothing is changed.
      message: what a reader should know about the fit; may be empty.
      entries: by the names of the metrics.
      bins: from low to high confidence.
      risk_coverage: (coverage, risk) along the risk-coverage curve, coverage rising to 1.
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

    def entry(self, metric: str) -> Entry:
        """The entry of a metric; without any number if it was not measured."""
        return self.entries.get(metric, Entry())


@dataclasses.dataclass(frozen=True)
class Comparison:
    """Calibrators compared on the same items.

    Attributes:
      title: of the report.
      source: where the predictions come from.
      items: how many there are.
      settings: how it was made.
      metrics: the columns, in the order in which they are shown.
      methods: the uncalibrated probabilities first, then the calibrators.
    """

    title: str
    source: str
    items: Items
    settings: Settings
    metrics: tuple[Metric, ...]
    methods: tuple[Method, ...]

    @property
    def uncalibrated(self) -> Method:
        """What every calibrator is compared with."""
        return self.methods[0]

    def method(self, name: str) -> Method:
        """A method by its name; KeyError if there is none."""
        return {method.name: method for method in self.methods}[name]

    def metric(self, name: str) -> Metric:
        """A metric by its name; KeyError if there is none."""
        return {metric.name: metric for metric in self.metrics}[name]


def to_json(comparison: Comparison) -> dict[str, Any]:
    """The same as a value of JSON's own types, numbers unrounded, null for those that are not finite."""
    return json_value(
        {
            "title": comparison.title,
            "source": comparison.source,
            "items": dataclasses.asdict(comparison.items),
            "settings": dataclasses.asdict(comparison.settings),
            "metrics": [_metric_json(metric) for metric in comparison.metrics],
            "methods": [_method_json(method) for method in comparison.methods],
        }
    )


def _metric_json(metric: Metric) -> dict[str, Any]:
    return {name: value for name, value in dataclasses.asdict(metric).items() if name != "binning"}


def _method_json(method: Method) -> dict[str, Any]:
    fields = {field.name: getattr(method, field.name) for field in dataclasses.fields(method)}
    del fields["entries"], fields["bins"], fields["risk_coverage"]
    return {
        **fields,
        "metrics": {name: _entry_json(entry) for name, entry in method.entries.items()},
        "bins": [dataclasses.asdict(one) for one in method.bins],
        "risk_coverage": method.risk_coverage,
    }


def _entry_json(entry: Entry) -> dict[str, Any]:
    low, high = (entry.interval.low, entry.interval.high) if entry.interval else (None, None)
    value: dict[str, Any] = {"value": entry.value, "low": low, "high": high}
    if entry.floor:
        value |= {"floor_mean": entry.floor.mean, "floor_high": entry.floor.high, "p_calibrated": entry.floor.p}
    if entry.difference:
        value["difference"] = dataclasses.asdict(entry.difference)
    return value
