"""Plans as one self-contained HTML page: no scripts, no network, no fonts, light and dark."""

import html
from collections.abc import Sequence

from experiments.plan.planning import Plan
from experiments.plan.table import GB, collective_cells, compiler_said, shown_mesh, summary
from lm.calibration.report.style import style_sheet
from lm.console import printable
from lm.training.roofline import ASSUMPTIONS

_WIDTH, _ROW = 760, 46  # of a picture and of a bar with its label, in units of SVG
_MOST_COLLECTIVES = 20

Part = tuple[str, float, str]


def plan_page(plans: Sequence[Plan], command: str) -> str:
    """The page.

    Args:
      plans: in the order in which to show them.
      command: that made it.

    Returns:
      A complete document in UTF-8. Its content security policy forbids loading or running anything.
    """
    heading = "What a run will need"
    sections = [
        f"<header><h1>{heading}</h1><p class='quiet'>One training step, planned without the machine. Bytes and "
        "operations are those of one chip; GB are 10<sup>9</sup> bytes.</p></header>",
        f"<section><h2>Memory of a chip</h2>{_memory_picture(plans)}</section>",
        f"<section><h2>Time of a step</h2>{_time_picture(plans)}</section>",
        _table(plans),
        f"<section><h2>Communication</h2>{''.join(map(_communication, plans))}</section>",
        _assumptions(),
        f"<section><h2>Made by</h2><pre>{_text(command)}</pre></section>",
    ]
    return (
        "<!DOCTYPE html>\n<html lang='en'>\n<head>\n<meta charset='utf-8'>\n"
        "<meta name='viewport' content='width=device-width, initial-scale=1'>\n"
        "<meta http-equiv='Content-Security-Policy' content=\"default-src 'none'; style-src 'unsafe-inline'\">\n"
        f"<title>{heading}</title>\n<style>{style_sheet()}</style>\n</head>\n<body>\n<main>\n"
        + "\n".join(sections)
        + "\n</main>\n</body>\n</html>\n"
    )


def _text(value: object) -> str:
    return html.escape(printable(str(value)), quote=True)


def _label(plan: Plan) -> str:
    changed = ", ".join(f"{key.rpartition('.')[2]}={value}" for key, value in plan.settings.items())
    return f"{plan.config_name} on {plan.target.name} ({changed or shown_mesh(plan)})"


def _memory_picture(plans: Sequence[Plan]) -> str:
    largest = max(max(plan.needed_bytes, plan.target.chip.memory if plan.target.chip else 0) for plan in plans)
    rows = []
    for plan in plans:
        parts = [("parameters", plan.parameter_bytes, "--after"), ("optimizer", plan.optimizer_bytes, "--sky")]
        parts += [("batch", plan.batch_bytes, "--pink")]
        rest = plan.needed_bytes - sum(part[1] for part in parts)
        parts.append(("gradients and activations", max(rest, 0), "--green"))
        mark = plan.target.chip.memory if plan.target.chip else None
        said = f"{'' if plan.compiled else 'about '}{plan.needed_bytes / GB:.1f} GB"
        if mark is not None:
            said += f" of {mark / GB:.1f} GB" + ("" if plan.fits else ": does not fit")
        rows.append((_label(plan), parts, mark, said))
    note = "The line is the chip's memory. Lengths after “about” are estimates; --compile asks the compiler."
    return _picture(rows, largest, "Memory of a chip") + f"<p class='quiet'>{note}</p>"


def _time_picture(plans: Sequence[Plan]) -> str:
    rows = []
    for plan in plans:
        if (bounds := plan.roofline) is None:
            continue
        local, name = max((bounds.compute, "compute"), (bounds.memory, "memory"))
        parts = [(name, local, "--after" if name == "compute" else "--orange"), ("network", bounds.network, "--before")]
        overlapped, serial = bounds.mfu
        said = f"{bounds.serial:.3g} s, MFU at most {overlapped:.0%}, serial {serial:.0%}; limited by {bounds.limit}"
        rows.append((_label(plan), parts, bounds.ideal, said))
    if not rows:
        return "<p>Targets of CPUs have no peak to compare with.</p>"
    # Targets differ by orders of magnitude: each bar is as long as its own step.
    longest = [sum(part[1] for part in parts) for _, parts, _, _ in rows]
    note = "Each bar is one step by the serial bound; the line, where it would end with the model's operations alone."
    shares = [
        (label, [(name, size / total, colour) for name, size, colour in parts], mark / total, said)
        for (label, parts, mark, said), total in zip(rows, longest, strict=True)
    ]
    return _picture(shares, 1.0, "Time of a step") + f"<p class='quiet'>{note}</p>"


def _picture(rows: Sequence[tuple[str, Sequence[Part], float | None, str]], largest: float, title: str) -> str:
    """Bars of coloured parts, each with a label above it, a mark on it and a text behind the label."""
    drawn, colours = [], {}
    for number, (label, parts, mark, said) in enumerate(rows):
        top = number * _ROW
        drawn.append(f"<text x='0' y='{top + 14}' font-size='12' fill='var(--ink)'>{_text(label)}</text>")
        end = f"x='{_WIDTH}' y='{top + 14}' font-size='12' text-anchor='end'"
        drawn.append(f"<text {end} fill='var(--muted)'>{_text(said)}</text>")
        left = 0.0
        for name, length, colour in parts:
            width = length / largest * _WIDTH
            drawn.append(
                f"<rect x='{left:.1f}' y='{top + 20}' width='{width:.1f}' height='16' fill='var({colour})'>"
                f"<title>{_text(name)}</title></rect>"
            )
            left, colours[name] = left + width, colour
        if mark is not None:
            place = min(mark / largest * _WIDTH, _WIDTH - 1)
            drawn.append(
                f"<line x1='{place:.1f}' x2='{place:.1f}' y1='{top + 17}' y2='{top + 39}' stroke='var(--ink)' "
                "stroke-width='2'/>"
            )
    legend = "".join(
        f"<span><svg viewBox='0 0 10 10' style='display:inline;width:.8em'><rect width='10' height='10' "
        f"fill='var({colour})'/></svg> {_text(name)}</span> "
        for name, colour in colours.items()
    )
    size = f"0 0 {_WIDTH} {len(rows) * _ROW}"
    return f"<p class='quiet'>{legend}</p><svg viewBox='{size}' role='img' aria-label='{title}'>{''.join(drawn)}</svg>"


def _table(plans: Sequence[Plan]) -> str:
    heads = ("Plan", "Parameters", "Optimizer", "Needed", "Compute", "Memory", "Network", "MFU bound", "Limited by")
    rows = "".join(_table_row(plan) for plan in plans)
    cells = "".join(f"<th>{head}</th>" for head in heads)
    return (
        "<section><h2>Numbers</h2><p class='quiet'>Memory in GB a chip, times in seconds a step; MFU with all "
        f"communication hidden, and with none.</p><div class='scroll'><table><thead><tr>{cells}</tr></thead>"
        f"<tbody>{rows}</tbody></table></div></section>"
    )


def _table_row(plan: Plan) -> str:
    about = "" if plan.compiled else "~"
    cells = [f"{plan.parameter_bytes / GB:.2f}", f"{plan.optimizer_bytes / GB:.2f}"]
    cells.append(f"{about}{plan.needed_bytes / GB:.2f}")
    if plan.roofline is None:
        cells += ["–"] * 5
    else:
        bounds = plan.roofline
        cells += [f"{each:.3g}" for each in (bounds.compute, bounds.memory, bounds.network)]
        cells += [" / ".join(f"{share:.0%}" for share in bounds.mfu), bounds.limit]
    return f"<tr><th>{_text(_label(plan))}</th>{''.join(f'<td>{cell}</td>' for cell in cells)}</tr>"


def _communication(plan: Plan) -> str:
    found = sorted(plan.collectives, key=lambda each: -each.sent)
    rows = "".join(
        "<tr>"
        + "".join(f"<{tag}>{_text(cell)}</{tag}>" for tag, cell in zip(("th", *["td"] * 4), cells, strict=True))
        + "</tr>"
        for cells in map(collective_cells, found[:_MOST_COLLECTIVES])
    )
    more = f"<p class='quiet'>and {len(found) - _MOST_COLLECTIVES} more</p>" if len(found) > _MOST_COLLECTIVES else ""
    heads = "".join(f"<th>{head}</th>" for head in ("Collective", "Array", "Devices", "Times a step", "GB sent"))
    return (
        f"<details><summary>{_text(_label(plan))}<small>{plan.sent / GB:.3g} GB sent by each chip in a step</small>"
        f"</summary><pre>{_text(summary(plan))}</pre><p class='quiet'>{_text(compiler_said(plan))}</p>"
        f"<div class='scroll'><table><thead><tr>{heads}</tr></thead><tbody>{rows}</tbody></table></div>{more}</details>"
    )


def _assumptions() -> str:
    items = "".join(f"<li>{_text(line)}</li>" for line in ASSUMPTIONS)
    return f"<section><h2>What is assumed</h2><p>The times are bounds, not forecasts.</p><ul>{items}</ul></section>"
