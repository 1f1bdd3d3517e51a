"""How the numbers of a comparison read, and what they say in plain sentences.

A `comparison` is the dict that `lm.calibration.comparison.compare` gives; a metric is one of its `metrics`, an entry a
value with its interval. Every sentence must be true whatever the numbers are, so that "better" or "worse" is only said
of a difference that the items can tell from none.
"""

import dataclasses
import math

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
    best: dict | None


def is_number(value: float | None) -> bool:
    """Whether there is a value to show, be it infinite."""
    return value is not None and not math.isnan(value)


def decimals(value: float, unit: str) -> int:
    """How many to show, so that two to four digits tell something."""
    if unit == "percent":
        return 1 if abs(value) >= 0.1 else 2
    return 2 if abs(value) >= 10 else 4


def format_value(value: float | None, unit: str, places: int | None = None, signed: bool = False) -> str:
    """A value without the name of its unit; fractions become percent if that is the unit."""
    if not is_number(value):
        return MISSING
    if math.isinf(value):
        return "∞" if value > 0 else "−∞"
    places = decimals(value, unit) if places is None else places
    rounded = round(100 * value if unit == "percent" else value, places)
    sign = "−" if rounded < 0 else "+" if signed and rounded > 0 else ""
    return f"{sign}{abs(rounded):,.{places}f}"


def with_unit(value: float | None, unit: str, places: int | None = None) -> str:
    """A value as it stands in a sentence."""
    suffix = {"percent": "%", "nats": " nats"}.get(unit, "")
    return format_value(value, unit, places) + (suffix if is_number(value) else "")


def format_interval(entry: dict, unit: str, signed: bool = False) -> str:
    """Such as "7.04 to 9.21", with the decimals of the entry's value; empty where there is no interval."""
    low, high = entry.get("low"), entry.get("high")
    if not (is_number(entry.get("value")) and is_number(low) and is_number(high)):
        return ""
    places = decimals(entry["value"], unit)
    return f"{format_value(low, unit, places, signed)} to {format_value(high, unit, places, signed)}"


def format_p(p: float | None) -> str:
    """Such as "p = 0.041" or "p < 0.001", in one piece; empty where there is none."""
    if not is_number(p):
        return ""
    return "p\u00a0<\u00a00.001" if p < 0.001 else f"p\u00a0=\u00a0{p:.3f}"


def format_level(level: float) -> str:
    """Such as "95%"."""
    return f"{100 * level:g}%"


def change_of(difference: dict | None, better: str | None, level: float) -> str | None:
    """What a paired difference says.

    Returns:
      "better" or "worse" if it can be told from none, "changed" if it can but neither direction is better, "unclear" if
      it cannot, "same" if it is exactly 0, "untested" if nothing says how sure it is; None without a difference.
    """
    if not difference or not is_number(difference.get("value")):
        return None
    value, p = difference["value"], difference.get("p")
    if value == 0:
        return "same"
    if is_number(p):
        told = p <= 1 - level
    elif format_interval(difference, "number"):
        told = difference["low"] > 0 or difference["high"] < 0
    else:
        return "untested"
    if not told:
        return "unclear"
    if better is None:
        return "changed"
    return "better" if (value < 0) == (better == "lower") else "worse"


def told_from_calibrated(entry: dict, level: float) -> bool | None:
    """Whether an error is more than chance gives a perfectly calibrated model; None if that was not computed."""
    if is_number(entry.get("p_calibrated")):
        return entry["p_calibrated"] <= 1 - level
    if is_number(entry.get("floor_high")) and is_number(entry.get("value")):
        return entry["value"] > entry["floor_high"]
    return None


def verdict(comparison: dict) -> Verdict:
    """What a comparison says, before and after the accepted calibrator of the lowest held-out NLL."""
    level, methods = comparison["settings"]["level"], comparison["methods"]
    metrics = {metric["name"]: metric for metric in comparison["metrics"]}
    before = methods[0]
    candidates = [method for method in methods[1:] if method["accepted"] and _value(method, "nll") is not None]
    best = min(candidates, key=lambda method: _value(method, "nll"), default=None)
    notes = [_heaviest_bin(before, level)]
    if best:
        notes += [_movement(metrics[name], before, best, level) for name in ("nll", "accuracy") if name in metrics]
        if not best["converged"] or best["at_bound"]:
            why = "did not converge" if not best["converged"] else "ended at a bound of its search"
            notes.append(f"Take {best['label']} with care: its fit {why}.")
    rejected = sum(not method["accepted"] for method in methods[1:])
    if rejected:
        were = "was" if rejected == 1 else "were"
        notes.append(f"{rejected} of {len(methods) - 1} calibrators {were} not accepted and cannot be the best.")
    if len(candidates) > 1:
        notes.append("The best was chosen by the same items that it is judged by, which favours it slightly.")
    sentences = _before(before, metrics, level), _after(before, best, metrics, level)
    return Verdict(*sentences, tuple(filter(None, notes)), best)


def _value(method: dict, name: str) -> float | None:
    value = method["metrics"].get(name, {}).get("value")
    return value if is_number(value) else None


def _before(method: dict, metrics: dict, level: float) -> str:
    accuracy, confidence = _value(method, "accuracy"), _value(method, "confidence")
    sentences = []
    if accuracy is not None and confidence is not None:
        said, right = with_unit(confidence, "percent", 1), with_unit(accuracy, "percent", 1)
        gap = method["metrics"].get("signed_gap", {})
        lean = ""
        if format_interval(gap, "percent") and (gap["low"] > 0 or gap["high"] < 0) and said != right:
            lean = ": it is overconfident" if confidence > accuracy else ": it is underconfident"
        sentences.append(f"The model's confidence is {said} on average and it is right {right} of the time{lean}.")
    if _value(method, "ece") is not None:
        entry = method["metrics"]["ece"]
        sentences.append(f"Its {_error_with_interval(metrics['ece'], entry, level)}{_against_floor(entry, level)}.")
    return " ".join(sentences) or "Its calibration was not measured."


def _after(before: dict, best: dict | None, metrics: dict, level: float) -> str:
    if best is None:
        return "There is no accepted calibrator to compare with."
    name = best["label"] + (f" ({best['summary']})" if best["summary"] else "")
    nll_before, nll = _value(before, "nll"), _value(best, "nll")
    if nll_before is not None and nll >= nll_before:
        sentence = f"No accepted calibrator lowers the held-out NLL; the nearest is {name}."
    else:
        sentence = f"The best calibrator by held-out NLL is {name}."
    if _value(best, "ece") is None:
        return sentence
    entry = best["metrics"]["ece"]
    difference = entry.get("difference")
    change = {
        "better": ", lower than before",
        "worse": ", higher than before",
        "unclear": ", which cannot be told from that before",
        "same": ", the same as before",
    }.get(change_of(difference, "lower", level), "")
    if change and difference["value"]:
        interval = format_interval(difference, "percent", signed=True)
        change += (
            f" ({format_p(difference.get('p')) or f'{format_level(level)} interval of the difference {interval}'})"
        )
    return f"{sentence} Its {_error_with_interval(metrics['ece'], entry, level)}{change}{_against_floor(entry, level)}."


def _error_with_interval(metric: dict, entry: dict, level: float) -> str:
    interval = format_interval(entry, metric["unit"])
    unit = "%" if metric["unit"] == "percent" else ""
    interval = f" ({format_level(level)} interval {interval}{unit})" if interval else ""
    return f"{metric['label']} is {with_unit(entry['value'], metric['unit'])}{interval}"


def _against_floor(entry: dict, level: float) -> str:
    told = told_from_calibrated(entry, level)
    if told is None:
        return ""
    floor = f"noise floor {with_unit(entry['floor_mean'], 'percent')}" if is_number(entry.get("floor_mean")) else ""
    evidence = ", ".join(filter(None, [floor, format_p(entry.get("p_calibrated"))]))
    evidence = f" ({evidence})" if evidence else ""
    how = "would rarely" if told else "could"
    return f"; a perfectly calibrated model {how} show as much by chance{evidence}"


def _uncertainty(difference: dict | None, unit: str, level: float) -> str:
    """Such as " (difference −0.2100 nats, 95% interval −0.9000 to +0.4000, p = 0.310)"."""
    if not difference:
        return ""
    name = " points" if unit == "percent" else " nats" if unit == "nats" else ""
    interval = format_interval(difference, unit, signed=True)
    interval = interval and f"{format_level(level)} interval {interval}"
    size = f"difference {format_value(difference['value'], unit, signed=True)}{name}"
    return f" ({', '.join(filter(None, [size, interval, format_p(difference.get('p'))]))})"


def _movement(metric: dict, before: dict, after: dict, level: float) -> str | None:
    """How a metric went from before to after."""
    old, new = _value(before, metric["name"]), _value(after, metric["name"])
    if old is None or new is None:
        return None
    difference, unit, label = after["metrics"][metric["name"]].get("difference"), metric["unit"], metric["label"]
    places = max(decimals(old, unit), decimals(new, unit))
    old_text, new_text = with_unit(old, unit, places), with_unit(new, unit, places)
    change = change_of(difference, metric["better"], level)
    if change is None:
        difference = None
    if change == "same" or (change is None and new == old):
        return f"{label} stays {new_text}."
    if change in ("better", "worse", "changed"):
        verb = "falls" if new < old else "rises"
        return f"{label} {verb} from {old_text} to {new_text}{_uncertainty(difference, unit, level)}."
    chance = ", a difference that chance can explain" if change == "unclear" else ""
    return f"{label} is {new_text} against {old_text} before{chance}{_uncertainty(difference, unit, level)}."


def _heaviest_bin(method: dict, level: float) -> str | None:
    """The bin that adds most to the ECE, if there is an error to speak of."""
    if not method["bins"] or not told_from_calibrated(method["metrics"].get("ece", {}), level):
        return None
    heaviest = max(method["bins"], key=lambda one: one["count"] * abs(one["confidence"] - one["accuracy"]))
    said = f"{with_unit(heaviest['low'], 'percent', 0)} to {with_unit(heaviest['high'], 'percent', 0)}"
    low, high = with_unit(heaviest["accuracy_low"], "percent", 1), with_unit(heaviest["accuracy_high"], "percent", 1)
    return (
        f"The bin that adds most to the ECE is {said}: on its {heaviest['count']:,} items the model says "
        f"{with_unit(heaviest['confidence'], 'percent', 1)} on average and is right "
        f"{with_unit(heaviest['accuracy'], 'percent', 1)} of the time ({low} to {high})."
    )
