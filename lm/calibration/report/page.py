"""A comparison as one self-contained HTML page: no scripts, no network, no fonts, light and dark.

The page opens with the conclusions, then shows diagrams, then the numbers, then how each was computed. Text from the
comparison (titles, labels, messages) is untrusted: everything not written in this file goes through `_text`.
"""

import dataclasses
import html
import json
import math
from collections.abc import Sequence

from lm.calibration.conformal import SetReport
from lm.calibration.guarantees import Answering, SetResult
from lm.calibration.metrics import Metric
from lm.calibration.report import diagrams
from lm.calibration.report.style import style_sheet
from lm.calibration.report.wording import (
    MISSING,
    change_of,
    format_interval,
    format_level,
    format_p,
    format_value,
    guaranteed,
    verdict,
    with_unit,
)
from lm.calibration.results import Comparison, Entry, Method
from lm.console import printable
from lm.statistics.intervals import Interval

_CHANGE_WORDS = {
    "better": "better",
    "worse": "worse",
    "changed": "changed",
    "unclear": "not significant",
    "same": "no change",
    "untested": "not tested",
}
_COVERAGES = (0.25, 0.5, 0.75, 0.9, 1.0)


def report_html(comparison: Comparison) -> str:
    """The page.

    Args:
      comparison: from `lm.calibration.comparison.compare`.

    Returns:
      A complete document in UTF-8. Its content security policy forbids loading or running anything.
    """
    heading = f"Calibration: {_text(comparison.title)}"
    sections = [
        f"<header><h1>{heading}</h1><p class='quiet'>{_about_the_items(comparison)}</p></header>",
        _answer(comparison),
        _warnings(comparison),
        _before_and_after(comparison),
        _all_methods(comparison),
        _risk_coverage(comparison),
        _guarantees(comparison),
        _every_reliability(comparison),
        _how_computed(comparison),
        _how_to_reproduce(comparison),
    ]
    return (
        "<!DOCTYPE html>\n<html lang='en'>\n<head>\n<meta charset='utf-8'>\n"
        "<meta name='viewport' content='width=device-width, initial-scale=1'>\n"
        "<meta http-equiv='Content-Security-Policy' content=\"default-src 'none'; style-src 'unsafe-inline'\">\n"
        f"<title>{heading}</title>\n<style>{style_sheet()}</style>\n</head>\n<body>\n<main>\n"
        + "\n".join(filter(None, sections))
        + "\n</main>\n</body>\n</html>\n"
    )


def _text(value: object) -> str:
    return html.escape(printable(str(value)), quote=True)


def _about_the_items(comparison: Comparison) -> str:
    items = comparison.items
    parts = [
        _text(comparison.source),
        f"tested on {_counted(items.test, items.test_clusters)}",
        f"fitted on {_counted(items.fit, items.fit_clusters)}" if items.fit else "nothing fitted",
        f"{items.classes:,} classes",
    ]
    return " · ".join(parts)


def _counted(items: int, clusters: int | None) -> str:
    return f"{items:,} items" + (f" in {clusters:,} clusters" if clusters else "")


def _answer(comparison: Comparison) -> str:
    said = verdict(comparison)
    notes = "".join(f"<li>{_text(note)}</li>" for note in said.notes)
    return (
        "<section class='answer' aria-label='Result'>"
        f"<p><b class='before'>Before</b> {_text(said.before)}</p><p><b class='after'>After</b> {_text(said.after)}</p>"
        + (f"<ul>{notes}</ul>" if notes else "")
        + "</section>"
    )


def _warnings(comparison: Comparison) -> str:
    lines = []
    for method in comparison.methods:
        faults = _faults(method)
        if faults or method.message:
            message = f" — {_text(method.message)}" if method.message else ""
            lines.append(f"<li><b>{_text(method.label)}</b>: {', '.join(faults) or 'note'}{message}</li>")
    lines += [f"<li>{_text(note)}</li>" for note in comparison.notes]
    return f"<section class='warnings'><h2>Warnings</h2><ul>{''.join(lines)}</ul></section>" if lines else ""


def _faults(method: Method) -> list[str]:
    faults = {
        "not accepted": not method.accepted,
        "did not converge": not method.converged,
        "hit its search bound": method.at_bound,
    }
    return [fault for fault, has in faults.items() if has]


def _before_and_after(comparison: Comparison) -> str:
    """Diagrams and every metric, before calibration and with the best calibrator."""
    level, before, best = comparison.settings.level, comparison.uncalibrated, verdict(comparison).best
    shown = [before] if best is None else [before, best]
    start = diagrams.Start.of(comparison)
    pictures = "".join(
        _reliability_figure(method, level, f"pair{number}", start) for number, method in enumerate(shown)
    )
    columns = ["Before", "After", "Difference"] if best else ["Before"]
    rows = []
    for metric in comparison.metrics:
        cells = [_value_cell(method.entry(metric.name), metric) for method in shown]
        if best:
            cells.append(f"<td>{_difference(best.entry(metric.name), metric, level)}</td>")
        rows.append(_row(_metric_link(metric), cells))
    heading = f"Before and after: {_text(best.label)}" if best else "Without a calibrator"
    return (
        f"<section><h2>{heading}</h2><div class='pair'>{pictures}</div>"
        f"{_table(['Metric', *columns], rows, 'stacks')}{_legend(level)}</section>"
    )


def _legend(level: float) -> str:
    return (
        f"<p class='quiet'>Beside each value: its {format_level(level)} interval. Calibration errors also have a noise "
        "floor, the error of a perfectly calibrated model with the same confidences due to chance (mean to 95% "
        "quantile), and p, the probability that such a model shows at least this error. Differences are after minus "
        "before on the same items; for percentages, in points.</p>"
    )


def _all_methods(comparison: Comparison) -> str:
    """Every metric of every method, in one table per kind of metric to keep them narrow."""
    level, methods = comparison.settings.level, comparison.methods
    kinds: dict[str, list[Metric]] = {
        "Calibration errors with a noise floor": [],
        "Scores and other errors": [],
        "Metrics with no preferred direction": [],
    }
    binned, scored, plain = kinds.values()
    for metric in comparison.metrics:
        has_floor = any(method.entry(metric.name).floor for method in methods)
        (plain if metric.better is None else binned if has_floor else scored).append(metric)
    tables = []
    for kind, metrics in kinds.items():
        rows = []
        for method in methods:
            cells = []
            for metric in metrics:
                entry = method.entry(metric.name)
                cells.append(_value_cell(entry, metric, _difference(entry, metric, level)))
            summary = f"<small>{_text(method.summary)}</small>" if method.summary else ""
            faults = "".join(f"<small class='worse'>{fault}</small>" for fault in _faults(method))
            rows.append(_row(_text(method.label) + summary + faults, cells))
        if metrics:
            tables.append(f"<h3>{kind}</h3>" + _table(["Method", *map(_metric_link, metrics)], rows, "wide"))
    picture = _figure(
        diagrams.forest(comparison),
        "forest",
        f"ECE of every method with its {format_level(level)} interval",
        "A perfectly calibrated model stays to the left of its mark 95% of the time.",
    )
    return f"<section><h2>All methods</h2><div class='single'>{picture}</div>{''.join(tables)}</section>"


def _metric_link(metric: Metric) -> str:
    better = f"<small>{_text(metric.better)} is better</small>" if metric.better else ""
    return f"<a href='#how-{_text(metric.name)}'>{_text(metric.label)}</a>{better}"


def _value_cell(entry: Entry, metric: Metric, more: str = "") -> str:
    unit = metric.unit
    value = with_unit(entry.value, unit).removesuffix(" nats")
    lines = [f"<span>{value}</span>"]
    interval = format_interval(entry.value, entry.interval, unit)
    if interval:
        lines.append(f"<small>{interval}</small>")
    if entry.floor:
        floor = f"{format_value(entry.floor.mean, unit)} to {format_value(entry.floor.high, unit)}"
        lines += [f"<small>floor {floor}</small>", f"<small>{_text(format_p(entry.floor.p))}</small>"]
    return f"<td>{''.join(lines)}{more and '<hr>' + more}</td>"


def _difference(entry: Entry, metric: Metric, level: float) -> str:
    difference = entry.difference
    change = change_of(difference, metric.better, level)
    if difference is None or change is None:
        return ""
    lines = [f"<span>{format_value(difference.value, metric.unit, signed=True)}</span>"]
    interval = format_interval(difference.value, difference, metric.unit, signed=True)
    if interval:
        lines.append(f"<small>{interval}</small>")
    p = format_p(difference.p)
    if p:
        lines.append(f"<small>{_text(p)}</small>")
    lines.append(f"<small class='{change}'>{_CHANGE_WORDS[change]}</small>")
    return "".join(lines)


def _risk_coverage(comparison: Comparison) -> str:
    methods = [method for method in comparison.methods if method.risk_coverage]
    if not methods:
        return ""
    picture = _figure(
        diagrams.risk_coverage(comparison),
        "risk",
        "Risk-coverage curves of all methods",
        "Error rate when only the most confident items are answered. Lower is better.",
    )
    heads = ["Error rate at coverage", *(f"{share:.0%}" for share in _COVERAGES)]
    rows = [
        _row(_text(method.label), [f"<td>{_risk_at(method.risk_coverage, share)}</td>" for share in _COVERAGES])
        for method in methods
    ]
    return (
        "<section><h2>Risk and coverage</h2><div class='beside even'>"
        f"<div>{picture}</div><div>{_table(heads, rows)}<p class='quiet'>Read from the curves, to within one point "
        "of coverage.</p></div></div></section>"
    )


def _risk_at(curve: Sequence[tuple[float, float]], share: float) -> str:
    coverage, risk = min(curve, key=lambda point: abs(point[0] - share))
    return with_unit(risk, "percent") if abs(coverage - share) < 0.0101 else MISSING


def _guarantees(comparison: Comparison) -> str:
    """Sets and answers with a guarantee, before calibration and with the best calibrator."""
    shown = [comparison.uncalibrated, *filter(None, [verdict(comparison).best])]
    methods = [(method.label, method.guarantees) for method in shown if method.guarantees]
    if not methods:
        return ""
    first = methods[0][1]
    sentences = "".join(f"<p>{_text(sentence)}</p>" for sentence in guaranteed(shown[-1]))
    tables = ""
    if first.sets:
        heads = ["Sets", "Coverage", "Mean size", "Median size", "Least covered class"]
        rows = [
            _row(f"{_text(label)}<small>{_text(found.method.upper())}</small>", _set_cells(found))
            for label, each in methods
            for found in each.sets
        ]
        tables += f"<h3>Sets at {with_unit(first.coverage, 'percent', 0)}</h3>" + _table(heads, rows, "wide")
    heads = ["Error allowed", "Answer from a confidence of", "Answered", "Error rate"]
    rows = [
        _row(f"{_text(label)}<small>at most {with_unit(found.risk, 'percent', 0)}</small>", _answering_cells(found))
        for label, each in methods
        for found in each.answering
    ]
    tables += f"<h3>Answering only when confident</h3>{_table(heads, rows, 'wide')}"
    return (
        f"<section><h2>With a guarantee</h2>{sentences}{tables}<p class='quiet'>Half of the test items, which no "
        f"calibrator was fitted to, chose the thresholds ({first.chosen_on:,}, one of each cluster if there are any); "
        f"the others ({first.judged_on:,}) are what the figures are of, with 95% intervals. Sets contain the label "
        "with the probability named, on average over items, not for each class. Error rates stay below what is allowed "
        f"with {with_unit(first.assurance, 'percent', 0)} assurance; ∞ where nothing could be promised.</p></section>"
    )


def _set_cells(found: SetResult) -> list[str]:
    report = found.whole
    cells = [_with_ends(report.coverage, Interval(report.low, report.high, math.nan), "percent")]
    cells += [_with_ends(report.mean_size, report.size_interval, "number"), f"{report.median_size:g}"]
    worst: tuple[str, SetReport] | None = min(found.by_class.items(), key=lambda each: each[1].coverage, default=None)
    if worst is None:
        return [f"<td>{cell}</td>" for cell in (*cells, MISSING)]
    name, of_class = worst
    covered = _with_ends(of_class.coverage, Interval(of_class.low, of_class.high, math.nan), "percent")
    return [f"<td>{cell}</td>" for cell in (*cells, f"{covered}<small>{_text(name)}, {of_class.items:,} items</small>")]


def _answering_cells(found: Answering) -> list[str]:
    confidence, answered = (with_unit(value, "percent", 1) for value in (found.confidence, found.answered))
    return [
        f"<td>{cell}</td>" for cell in (confidence, answered, _with_ends(found.error_rate, found.interval, "percent"))
    ]


def _with_ends(value: float, interval: Interval, unit: str) -> str:
    ends = format_interval(value, interval, unit)
    return f"<span>{with_unit(value, unit)}</span>" + (f"<small>{ends}</small>" if ends else "")


def _every_reliability(comparison: Comparison) -> str:
    level, start = comparison.settings.level, diagrams.Start.of(comparison)
    parts = []
    for number, method in enumerate(comparison.methods):
        picture = _reliability_figure(method, level, f"each{number}", start)
        parts.append(
            f"<details><summary>{_text(method.label)}</summary><div class='beside even'>{picture}"
            f"<div>{_bins_table(method)}</div></div></details>"
        )
    return f"<section><h2>Reliability of each method by bin</h2>{''.join(parts)}</section>"


def _bins_table(method: Method) -> str:
    rows = []
    for one in method.bins:
        edges = f"{format_value(one.low, 'percent', 0)} to {with_unit(one.high, 'percent', 0)}"
        accuracy = f"<span>{with_unit(one.accuracy, 'percent', 1)}</span>"
        cells = [
            f"{one.count:,}",
            with_unit(one.confidence, "percent", 1),
            f"{accuracy}<small>{_range(one.accuracy_low, one.accuracy_high)}</small>",
            f"<small>{_range(one.band_low, one.band_high)}</small>",
        ]
        rows.append(_row(edges, [f"<td>{cell}</td>" for cell in cells]))
    return _table(["Confidence", "Items", "Mean confidence", "Accuracy", "If calibrated"], rows)


def _range(low: float, high: float) -> str:
    return f"{format_value(low, 'percent', 1)} to {format_value(high, 'percent', 1)}"


def _reliability_figure(method: Method, level: float, name: str, start: diagrams.Start) -> str:
    ece = method.entry("ece").value
    title = f"Reliability diagram of {method.label}" + ("" if math.isnan(ece) else f", ECE {with_unit(ece, 'percent')}")
    return _figure(diagrams.reliability([method], level, start), name, title, "")


def _figure(figure: diagrams.Figure, name: str, title: str, caption: str) -> str:
    label = f"<svg role='img' aria-labelledby='{name}-title'"
    svg = diagrams.inline_svg(figure, name).replace("<svg", label, 1)
    opening, rest = svg.split(">", 1)
    caption = f"<figcaption>{_text(caption)}</figcaption>" if caption else ""
    return f"<figure>{opening}><title id='{name}-title'>{_text(title)}</title>{rest}{caption}</figure>"


def _how_computed(comparison: Comparison) -> str:
    parts = []
    for metric in comparison.metrics:
        specification = "".join(
            f"<dt>{_text(key)}</dt><dd>{_text(value if isinstance(value, str) else json.dumps(value))}</dd>"
            for key, value in metric.specification.items()
        )
        parts.append(
            f"<details id='how-{_text(metric.name)}'><summary>{_text(metric.label)}"
            f"<small>{_text(metric.long)}</small></summary><p>{_text(metric.definition)}</p>"
            f"<pre>{_text(metric.formula)}</pre>"
            f"<dl><dt>source</dt><dd>{_text(metric.source)}</dd><dt>unit</dt><dd>{_text(metric.unit)}</dd>"
            f"{specification}</dl></details>"
        )
    return f"<section class='computed'><h2>How each metric is computed</h2>{''.join(parts)}</section>"


def _how_to_reproduce(comparison: Comparison) -> str:
    items = comparison.items
    given = {
        "predictions": comparison.source,
        "fitted on": _counted(items.fit, items.fit_clusters),
        "tested on": _counted(items.test, items.test_clusters),
        "classes": f"{items.classes:,}",
        **dataclasses.asdict(comparison.settings),
    }
    listed = "".join(f"<dt>{_text(key)}</dt><dd>{_text(value)}</dd>" for key, value in given.items())
    return (
        "<section><h2>How to reproduce</h2><p>comparison.json holds every number, unrounded. The same predictions "
        f"with these settings give the same numbers.</p><dl>{listed}</dl></section>"
    )


def _table(heads: list[str], rows: list[str], kind: str = "") -> str:
    """A table in a scrolling box of its own; heads and rows are HTML."""
    head = "".join(f"<th scope='col'>{one}</th>" for one in heads)
    return (
        f"<div class='scroll {kind}' tabindex='0' role='region' aria-label='Table'><table>"
        f"<thead><tr>{head}</tr></thead><tbody>{''.join(rows)}</tbody></table></div>"
    )


def _row(head: str, cells: list[str]) -> str:
    return f"<tr><th scope='row'>{head}</th>{''.join(cells)}</tr>"
