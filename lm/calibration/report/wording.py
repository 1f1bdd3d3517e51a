"""How the numbers of a comparison read, and what they say in plain sentences.

Every sentence must be true whatever the numbers are, so that "better" or "worse" is only said
of a difference that the items can tell from none.
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
    """What a comparison says.

    Attributes:
      before: about the uncalibrated probabilities.
      after: about the best calibrator.
      notes: further sentences, most telling first.
      best: the method that `after` is about; None if there is none.
    """

    before: str
    after: str
    notes: tuple[str, ...]
    best: Method | None


def decimals(value: float, unit: str) -> int:
    """How many to show, so that two to four digits tell something."""
    if unit == "percent":
        return 1 if abs(value) >= 0.1 else 2
    return 2 if abs(value) >= 10 else 4


def format_value(value: float, unit: str, places: int | None = None, signed: bool = False) -> str:
    """A value without the name of its unit; fractions become percent if that is the unit."""
    if math.isnan(value):
        return MISSING
    if math.isinf(value):
        return "∞" if value > 0 else "−∞"
    places = decimals(value, unit) if places is None else places
    rounded = round(100 * value if unit == "percent" else value, places)
    sign = "−" if rounded < 0 else "+" if signed and rounded > 0 else ""
    return f"{sign}{abs(rounded):,.{places}f}"


def with_unit(value: float, unit: str, places: int | None = None) -> str:
    """A value as it stands in a sentence."""
    suffix = {"percent": "%", "nats": " nats"}.get(unit, "")
    return format_value(value, unit, places) + ("" if math.isnan(value) else suffix)


def format_interval(value: float, ends: Interval | Difference | None, unit: str, signed: bool = False) -> str:
    """Such as "7.04 to 9.21", with as many decimals as the value; empty where there is no interval."""
    if ends is None or math.isnan(value + ends.low + ends.high):
        return ""
    places = decimals(value, unit)
    return f"{format_value(ends.low, unit, places, signed)} to {format_value(ends.high, unit, places, signed)}"


def format_p(p: float) -> str:
    """Such as "p = 0.041" or "p < 0.001", in one piece; empty where there is none."""
    if math.isnan(p):
        return ""
    return "p\u00a0<\u00a00.001" if p < 0.001 else f"p\u00a0=\u00a0{p:.3f}"


def format_level(level: float) -> str:
    """Such as "95%"."""
    return f"{100 * level:g}%"


def change_of(difference: Difference | None, better: str | None, level: float) -> str | None:
    """What a paired difference says.

    Returns:
      "better" or "worse" if it can be told from none, "changed" if it can but neither direction is better, "unclear" if
      it cannot, "same" if it is exactly 0, "untested" if nothing says how sure it is; None without a difference.
    """
    if difference is None or math.isnan(difference.value):
        return None
    value, p = difference.value, difference.p
    if value == 0:
        return "same"
    if not math.isnan(p):
        told = p <= 1 - level
    elif not math.isnan(difference.low + difference.high):
        told = difference.low > 0 or difference.high < 0
    else:
        return "untested"
    if not told:
        return "unclear"
    if better is None:
        return "changed"
    return "better" if (value < 0) == (better == "lower") else "worse"


def told_from_calibrated(entry: Entry, level: float) -> bool | None:
    """Whether an error is more than chance gives a perfectly calibrated model; None if that was not computed."""
    return None if entry.floor is None else entry.floor.p <= 1 - level


def verdict(comparison: Comparison) -> Verdict:
    """What a comparison says, before and after the accepted calibrator of the lowest held-out NLL."""
    level, before, calibrated = comparison.settings.level, comparison.uncalibrated, comparison.methods[1:]
    metrics = {metric.name: metric for metric in comparison.metrics}
    candidates = [method for method in calibrated if method.accepted and not math.isnan(method.entry("nll").value)]
    best = min(candidates, key=lambda method: method.entry("nll").value, default=None)
    notes = [_heaviest_bin(before, level)]
    if best:
        notes += [_movement(metrics[name], before, best, level) for name in ("nll", "accuracy") if name in metrics]
        if not best.converged or best.at_bound:
            why = "did not converge" if not best.converged else "ended at a bound of its search"
            notes.append(f"Take {best.label} with care: its fit {why}.")
    rejected = sum(not method.accepted for method in calibrated)
    if rejected:
        were = "was" if rejected == 1 else "were"
        notes.append(f"{rejected} of {len(calibrated)} calibrators {were} not accepted and cannot be the best.")
    if len(candidates) > 1:
        notes.append("The best was chosen by the same items that it is judged by, which favours it slightly.")
    sentences = _before(before, metrics, level), _after(before, best, metrics, level)
    return Verdict(*sentences, tuple(filter(None, notes)), best)


def _before(method: Method, metrics: Mapping[str, Metric], level: float) -> str:
    accuracy, confidence = method.entry("accuracy").value, method.entry("confidence").value
    sentences = []
    if not math.isnan(accuracy + confidence):
        said, right = with_unit(confidence, "percent", 1), with_unit(accuracy, "percent", 1)
        gap = method.entry("signed_gap").interval
        lean = ""
        if gap and (gap.low > 0 or gap.high < 0) and said != right:
            lean = ": it is overconfident" if confidence > accuracy else ": it is underconfident"
        sentences.append(f"The model's confidence is {said} on average and it is right {right} of the time{lean}.")
    entry = method.entry("ece")
    if not math.isnan(entry.value):
        sentences.append(f"Its {_error_with_interval(metrics['ece'], entry, level)}{_against_floor(entry, level)}.")
    return " ".join(sentences) or "Its calibration was not measured."


def _after(before: Method, best: Method | None, metrics: Mapping[str, Metric], level: float) -> str:
    if best is None:
        return "There is no accepted calibrator to compare with."
    name = best.label + (f" ({best.summary})" if best.summary else "")
    if best.entry("nll").value >= before.entry("nll").value:
        sentence = f"No accepted calibrator lowers the held-out NLL; the nearest is {name}."
    else:
        sentence = f"The best calibrator by held-out NLL is {name}."
    entry = best.entry("ece")
    if math.isnan(entry.value):
        return sentence
    difference = entry.difference
    change = {
        "better": ", lower than before",
        "worse": ", higher than before",
        "unclear": ", which cannot be told from that before",
        "same": ", the same as before",
    }.get(change_of(difference, "lower", level), "")
    if change and difference.value:
        interval = format_interval(difference.value, difference, "percent", signed=True)
        change += f" ({format_p(difference.p) or f'{format_level(level)} interval of the difference {interval}'})"
    return f"{sentence} Its {_error_with_interval(metrics['ece'], entry, level)}{change}{_against_floor(entry, level)}."


def _error_with_interval(metric: Metric, entry: Entry, level: float) -> str:
    interval = format_interval(entry.value, entry.interval, metric.unit)
    unit = "%" if metric.unit == "percent" else ""
    interval = f" ({format_level(level)} interval {interval}{unit})" if interval else ""
    return f"{metric.label} is {with_unit(entry.value, metric.unit)}{interval}"


def _against_floor(entry: Entry, level: float) -> str:
    if entry.floor is None:
        return ""
    evidence = f"noise floor {with_unit(entry.floor.mean, 'percent')}, {format_p(entry.floor.p)}"
    how = "would rarely" if told_from_calibrated(entry, level) else "could"
    return f"; a perfectly calibrated model {how} show as much by chance ({evidence})"


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
    """How a metric went from before to after."""
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
        return f"{label} stays {new_text}."
    if change in ("better", "worse", "changed"):
        verb = "falls" if new < old else "rises"
        return f"{label} {verb} from {old_text} to {new_text}{_uncertainty(difference, unit, level)}."
    chance = ", a difference that chance can explain" if change == "unclear" else ""
    return f"{label} is {new_text} against {old_text} before{chance}{_uncertainty(difference, unit, level)}."


def _heaviest_bin(method: Method, level: float) -> str | None:
    """The bin that adds most to the ECE, if there is an error to speak of."""
    if not method.bins or not told_from_calibrated(method.entry("ece"), level):
        return None
    heaviest = max(method.bins, key=lambda one: one.count * abs(one.confidence - one.accuracy))
    said = f"{with_unit(heaviest.low, 'percent', 0)} to {with_unit(heaviest.high, 'percent', 0)}"
    low, high = with_unit(heaviest.accuracy_low, "percent", 1), with_unit(heaviest.accuracy_high, "percent", 1)
    return (
        f"The bin that adds most to the ECE is {said}: on its {heaviest.count:,} items the model says "
        f"{with_unit(heaviest.confidence, 'percent', 1)} on average and is right "
        f"{with_unit(heaviest.accuracy, 'percent', 1)} of the time ({low} to {high})."
    )
