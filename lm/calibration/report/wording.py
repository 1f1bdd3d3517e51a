"""Formats the numbers of a comparison and states its conclusions in sentences.

Sentences must hold for any numbers: "lower" or "higher" is claimed only of significant differences.
"""

import dataclasses
import math
from collections.abc import Mapping

from lm.calibration.metrics import Metric
from lm.calibration.results import Comparison, Entry, Method
from lm.statistics.comparisons import Difference
from lm.statistics.intervals import Interval

MISSING = "–"


@dataclasses.dataclass(frozen=True)
class Verdict:
    """Conclusions of a comparison.

    Attributes:
      before: about the uncalibrated predictions.
      after: about the best calibrator.
      notes: further sentences, most important first.
      best: the best calibrator; None if none was accepted.
    """

    before: str
    after: str
    notes: tuple[str, ...]
    best: Method | None


def decimals(value: float, unit: str) -> int:
    """How many decimals to show, for two to four significant digits."""
    if unit == "percent":
        return 1 if abs(value) >= 0.1 else 2
    return 2 if abs(value) >= 10 else 4


def format_value(value: float, unit: str, places: int | None = None, signed: bool = False) -> str:
    """A value without its unit; fractions are shown in percent if that is the unit."""
    if math.isnan(value):
        return MISSING
    if math.isinf(value):
        return "∞" if value > 0 else "−∞"
    places = decimals(value, unit) if places is None else places
    rounded = round(100 * value if unit == "percent" else value, places)
    sign = "−" if rounded < 0 else "+" if signed and rounded > 0 else ""
    return f"{sign}{abs(rounded):,.{places}f}"


def with_unit(value: float, unit: str, places: int | None = None) -> str:
    """A value with its unit, for sentences."""
    suffix = {"percent": "%", "nats": " nats"}.get(unit, "")
    return format_value(value, unit, places) + ("" if math.isnan(value) else suffix)


def format_interval(value: float, ends: Interval | Difference | None, unit: str, signed: bool = False) -> str:
    """Such as "7.04 to 9.21", with as many decimals as the value; empty without an interval."""
    if ends is None or math.isnan(value + ends.low + ends.high):
        return ""
    places = decimals(value, unit)
    return f"{format_value(ends.low, unit, places, signed)} to {format_value(ends.high, unit, places, signed)}"


def format_p(p: float) -> str:
    """Such as "p = 0.041" or "p < 0.001", without a line break; empty without one."""
    if math.isnan(p):
        return ""
    return "p\u00a0<\u00a00.001" if p < 0.001 else f"p\u00a0=\u00a0{p:.3f}"


def format_level(level: float) -> str:
    """Such as "95%"."""
    return f"{100 * level:g}%"


def change_of(difference: Difference | None, better: str | None, level: float) -> str | None:
    """Classifies a paired difference.

    Returns:
      "better" or "worse" if it is significant, "changed" if it is but neither direction is better, "unclear" if it is
      not significant, "same" if it is exactly 0, "untested" without p-value and interval; None without a difference.
    """
    if difference is None or math.isnan(difference.value):
        return None
    value, p = difference.value, difference.p
    if value == 0:
        return "same"
    if not math.isnan(p):
        significant = p <= 1 - level
    elif not math.isnan(difference.low + difference.high):
        significant = difference.low > 0 or difference.high < 0
    else:
        return "untested"
    if not significant:
        return "unclear"
    if better is None:
        return "changed"
    return "better" if (value < 0) == (better == "lower") else "worse"


def exceeds_floor(entry: Entry, level: float) -> bool:
    """Whether an error is significantly larger than that of a perfectly calibrated model."""
    return entry.floor is not None and entry.floor.p <= 1 - level


def verdict(comparison: Comparison) -> Verdict:
    """Conclusions before calibration and after the best accepted calibrator.

    That is the one with the lowest held-out NLL of those that lower it significantly, or of all if none does.
    """
    level, before, calibrated = comparison.settings.level, comparison.uncalibrated, comparison.methods[1:]
    metrics = {metric.name: metric for metric in comparison.metrics}
    candidates = [method for method in calibrated if method.accepted and not math.isnan(method.entry("nll").value)]
    candidates.sort(key=lambda method: method.entry("nll").value)
    lower = [method for method in candidates if change_of(method.entry("nll").difference, "lower", level) == "better"]
    best = next(iter([*lower, *candidates]), None)
    notes = [_heaviest_bin(before, level)]
    if best:
        notes += [_movement(metrics[name], before, best, level) for name in ("nll", "accuracy") if name in metrics]
        if not best.converged or best.at_bound:
            why = "did not converge" if not best.converged else "hit its search bound"
            notes.append(f"Treat {best.label} with caution: its fit {why}.")
    rejected = sum(not method.accepted for method in calibrated)
    if rejected:
        were = "was" if rejected == 1 else "were"
        notes.append(f"{rejected} of {len(calibrated)} calibrators {were} not accepted and {were} not considered.")
    if len(candidates) > 1:
        notes.append(
            "The best calibrator was selected on the same items it is evaluated on, which favours it slightly."
        )
    after = "No calibrator was fitted."
    if calibrated:
        after = _after(before, best, candidates[:1] == [best], metrics, level)
    return Verdict(_before(before, metrics, level), after, tuple(filter(None, notes)), best)


def suggested(comparison: Comparison) -> str:
    """The name of the verdict's best calibrator if its NLL is lower than without one; "" otherwise."""
    best, before = verdict(comparison).best, comparison.uncalibrated.entry("nll").value
    return best.name if best is not None and best.entry("nll").value < before else ""


def guaranteed(method: Method) -> tuple[str, ...]:
    """What can be promised with a method: the smallest sets, and answers at each error rate; empty if not measured."""
    found = method.guarantees
    if found is None:
        return ()
    sentences = []
    for one in [each for each in found.sets if each.method == "lac"]:
        report = one.whole
        sentences.append(
            f"{method.label}: sets at {with_unit(found.coverage, 'percent', 0)} have {report.mean_size:.2f} classes on "
            f"average and contained the label of {with_unit(report.coverage, 'percent', 1)} of {report.items:,} items "
            f"({_ends(report.coverage, Interval(report.low, report.high, math.nan))})."
        )
    for each in found.answering:
        risk = with_unit(each.risk, "percent", 0)
        if math.isinf(each.confidence):
            sentences.append(f"{method.label}: an error rate of at most {risk} cannot be promised.")
            continue
        sentences.append(
            f"{method.label}: with an error rate of at most {risk}, {with_unit(each.answered, 'percent', 1)} of the "
            f"items can be answered; of these, {with_unit(each.error_rate, 'percent')} were wrong "
            f"({_ends(each.error_rate, each.interval)})."
        )
    return tuple(sentences)


def _ends(value: float, interval: Interval) -> str:
    ends = format_interval(value, interval, "percent")
    return f"{ends}%" if ends else "no interval"


def _before(method: Method, metrics: Mapping[str, Metric], level: float) -> str:
    accuracy, confidence = method.entry("accuracy").value, method.entry("confidence").value
    sentences = []
    if not math.isnan(accuracy + confidence):
        mean, right = with_unit(confidence, "percent", 1), with_unit(accuracy, "percent", 1)
        gap = method.entry("signed_gap").interval
        lean = ""
        if gap and (gap.low > 0 or gap.high < 0) and mean != right:
            lean = f": the model is {'over' if confidence > accuracy else 'under'}confident"
        sentences.append(f"Mean confidence is {mean} and accuracy is {right}{lean}.")
    entry = method.entry("ece")
    if not math.isnan(entry.value):
        against_floor = _against_floor(entry, level)
        sentences.append(
            f"{_error_with_interval(metrics['ece'], entry, level)}{against_floor and ', ' + against_floor}."
        )
    return " ".join(sentences) or "Calibration was not measured."


def _after(before: Method, best: Method | None, is_lowest: bool, metrics: Mapping[str, Metric], level: float) -> str:
    if best is None:
        return "There is no accepted calibrator to compare with."
    name = best.label + (f" ({best.summary})" if best.summary else "")
    nll = best.entry("nll")
    if nll.value >= before.entry("nll").value:
        sentence = f"No accepted calibrator lowers the held-out NLL; the closest is {name}."
    elif change_of(nll.difference, "lower", level) == "unclear":
        sentence = f"No calibrator lowers the held-out NLL significantly; the lowest is that of {name}."
    elif not is_lowest:
        sentence = f"Of the calibrators that lower the held-out NLL significantly, the best is {name}."
    else:
        sentence = f"The best calibrator by held-out NLL is {name}."
    entry = best.entry("ece")
    if math.isnan(entry.value):
        return sentence
    found = " and ".join(filter(None, [_against_before(entry.difference, level), _against_floor(entry, level)]))
    return f"{sentence} With it, {_error_with_interval(metrics['ece'], entry, level)}{found and ', ' + found}."


def _against_before(difference: Difference | None, level: float) -> str:
    """Such as "significantly lower than before (p < 0.001)"."""
    change = {
        "better": "significantly lower than before",
        "worse": "significantly higher than before",
        "unclear": "not significantly different from before",
        "same": "the same as before",
    }.get(change_of(difference, "lower", level) or "", "")
    if change and difference is not None and difference.value:
        interval = format_interval(difference.value, difference, "percent", signed=True)
        change += f" ({format_p(difference.p) or f'{format_level(level)} interval of the difference {interval}'})"
    return change


def _error_with_interval(metric: Metric, entry: Entry, level: float) -> str:
    interval = format_interval(entry.value, entry.interval, metric.unit)
    unit = "%" if metric.unit == "percent" else ""
    interval = f" ({format_level(level)} interval {interval}{unit})" if interval else ""
    return f"{metric.label} is {with_unit(entry.value, metric.unit)}{interval}"


def _against_floor(entry: Entry, level: float) -> str:
    """Such as "not significantly above the noise floor of 1.20% (p = 0.310)"."""
    if entry.floor is None:
        return ""
    if math.isnan(entry.floor.p):  # one cluster
        return "which a single cluster of items cannot compare with chance"
    floor = f"above the noise floor of {with_unit(entry.floor.mean, 'percent')} ({format_p(entry.floor.p)})"
    return ("" if exceeds_floor(entry, level) else "not ") + "significantly " + floor


def _uncertainty(difference: Difference | None, unit: str, level: float) -> str:
    """Such as " (difference −0.2100 nats, 95% interval −0.9000 to +0.4000, p = 0.310)"."""
    if not difference:
        return ""
    name = " points" if unit == "percent" else " nats" if unit == "nats" else ""
    interval = format_interval(difference.value, difference, unit, signed=True)
    interval = interval and f"{format_level(level)} interval {interval}"
    size = f"difference {format_value(difference.value, unit, signed=True)}{name}"
    return f" ({', '.join(filter(None, [size, interval, format_p(difference.p)]))})"


def _movement(metric: Metric, before: Method, after: Method, level: float) -> str | None:
    """How a metric changed."""
    old, new = before.entry(metric.name).value, after.entry(metric.name).value
    if math.isnan(old + new):
        return None
    difference, unit, label = after.entry(metric.name).difference, metric.unit, metric.label
    places = max(decimals(old, unit), decimals(new, unit))
    old_text, new_text = with_unit(old, unit, places), with_unit(new, unit, places)
    change = change_of(difference, metric.better, level)
    if change is None:
        difference = None
    if change == "same" or (change is None and new == old):
        return f"{label} is unchanged at {new_text}."
    if change in ("better", "worse", "changed"):
        verb = "falls" if new < old else "rises"
        return f"{label} {verb} from {old_text} to {new_text}{_uncertainty(difference, unit, level)}."
    compared = "not significantly different from" if change == "unclear" else "compared with"
    return f"{label} is {new_text}, {compared} {old_text} before{_uncertainty(difference, unit, level)}."


def _heaviest_bin(method: Method, level: float) -> str | None:
    """The bin that contributes most to the ECE, if the ECE is significant."""
    if not method.bins or not exceeds_floor(method.entry("ece"), level):
        return None
    heaviest = max(method.bins, key=lambda one: one.count * abs(one.confidence - one.accuracy))
    edges = f"{with_unit(heaviest.low, 'percent', 0)} to {with_unit(heaviest.high, 'percent', 0)}"
    low, high = with_unit(heaviest.accuracy_low, "percent", 1), with_unit(heaviest.accuracy_high, "percent", 1)
    return (
        f"The bin from {edges} contributes most to the ECE: on its {heaviest.count:,} items, mean confidence is "
        f"{with_unit(heaviest.confidence, 'percent', 1)} and accuracy is "
        f"{with_unit(heaviest.accuracy, 'percent', 1)} ({format_level(level)} interval {low} to {high})."
    )
