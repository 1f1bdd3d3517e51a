"""Comparisons made by hand, of the form that `lm.calibration.comparison.compare` gives."""

import copy

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


def comparison() -> dict:
    """Before, a temperature that mends it, histogram binning without intervals, and a matrix that was not accepted."""
    before = _method("none", "Uncalibrated", "", {"ece": 0.0812, "nll": 2.401, "accuracy": 0.7, "confidence": 0.7812})
    return {
        "title": "quickstart, token level",
        "source": "predictions.npz",
        "items": {"fit": 4000, "test": 5000, "fit_clusters": 40, "test_clusters": None, "classes": 512},
        "settings": {"bins": 15, "resamples": 1000, "level": 0.95, "seed": 0},
        "metrics": [_metric(name, *about) for name, about in METRICS.items()],
        "methods": [
            before,
            _method(
                "temperature", "Temperature", "T = 1.53", {"ece": 0.0131, "nll": 2.345, "confidence": 0.705}, before
            ),
            without_uncertainty(
                _method("histogram", "Histogram binning", "15 bins", {"ece": 0.02, "nll": 2.6}, before)
            ),
            {
                **_method(
                    "matrix", "Matrix scaling", "rank 512", {"ece": 0.1023, "nll": 2.9, "accuracy": 0.66}, before
                ),
                "accepted": False,
                "converged": False,
                "message": "its NLL on the items that it was fitted on is higher than before",
            },
        ],
    }


def changed(name: str, **entries: dict) -> dict:
    """The comparison with parts of one method's entries replaced; `difference` is replaced whole."""
    given = comparison()
    method = next(method for method in given["methods"] if method["name"] == name)
    for metric, entry in entries.items():
        method["metrics"][metric].update(entry)
    return given


def difference(value: float, p: float) -> dict:
    return {"value": value, "low": value - 0.01, "high": value + 0.01, "p": p}


def without_uncertainty(method: dict) -> dict:
    method = copy.deepcopy(method)
    for entry in method["metrics"].values():
        for of in (entry, entry.get("difference", {})):
            of.update({key: None for key in ("low", "high", "p") if key in of})
    return method


def _metric(name: str, label: str, unit: str, better: str | None) -> dict:
    return {
        "name": name,
        "label": label,
        "long": f"{label} in full",
        "unit": unit,
        "better": better,
        "definition": f"What {label} is.",
        "formula": "Σₘ (nₘ / N) |accₘ − confₘ|",
        "source": "Guo et al. 2017",
        "specification": {"bins": 15, "scheme": "equal_width", "edges": "(a, b], 0 in the first"},
    }


def _method(name: str, label: str, summary: str, values: dict, before: dict | None = None) -> dict:
    values = {"accuracy": 0.7, "confidence": 0.73, "aurc": 0.1234, "smooth_ece": values["ece"] * 0.9} | values
    values["ece_equal_mass"] = values["ece"] * 1.02
    values["signed_gap"] = values["confidence"] - values["accuracy"]
    metrics = {}
    for metric in METRICS:
        value = values[metric]
        entry = {"value": value, "low": value - 0.01, "high": value + 0.01}
        if metric.startswith("ece"):
            p = 0.0005 if value > 0.019 else 0.31
            entry |= {"floor_mean": 0.012, "floor_high": 0.019, "p_calibrated": p}
        if before:
            gain = value - before["metrics"][metric]["value"]
            entry["difference"] = {
                "value": gain,
                "low": gain - 0.004,
                "high": gain + 0.004,
                "p": 0.0005 if gain else 1.0,
            }
        metrics[metric] = entry
    return {
        "name": name,
        "label": label,
        "summary": summary,
        "converged": True,
        "at_bound": False,
        "accepted": True,
        "message": "",
        "metrics": metrics,
        "bins": [_bin(number, values["ece"]) for number in range(2, 15)],
        "risk_coverage": [
            [k / 100, (1 - values["accuracy"]) * (k / 100) ** (1.1 + values["ece"])] for k in range(1, 101)
        ],
    }


def _bin(number: int, error: float) -> dict:
    low, high, count = number / 15, (number + 1) / 15, 40 * (number - 1) ** 2
    confidence = (low + high) / 2
    accuracy = confidence - error * min(1, number / 10)
    wide = 0.9 / count**0.5
    return {
        "low": low,
        "high": high,
        "count": count,
        "confidence": confidence,
        "accuracy": accuracy,
        "accuracy_low": max(0.0, accuracy - wide),
        "accuracy_high": min(1.0, accuracy + wide),
        "band_low": max(0.0, confidence - 1.2 * wide),
        "band_high": min(1.0, confidence + 1.2 * wide),
    }
