"""Figures show the numbers they are given, and their SVG can share a page."""

import dataclasses
import re
import warnings

import numpy as np
import pytest
from matplotlib.colors import to_hex
from matplotlib.image import imread

from lm.calibration.report.diagrams import COLOURS, Start, forest, inline_svg, reliability, risk_coverage, save_pictures
from tests.calibration.comparison_examples import comparison, only, with_method


@pytest.fixture(scope="module")
def example():
    return comparison()


def texts(axes):
    return [text.get_text() for text in axes.texts]


def test_reliability_shows_each_bin(example):
    before, after = example.methods[:2]
    figure = reliability([before, after], 0.95)
    upper, _, lower, _ = figure.axes
    points = next(line for line in upper.lines if line.get_marker() == "o")
    np.testing.assert_allclose(points.get_xdata(), [one.confidence for one in before.bins])
    np.testing.assert_allclose(points.get_ydata(), [one.accuracy for one in before.bins])
    (bars,) = upper.collections
    for segment, one in zip(bars.get_segments(), before.bins, strict=True):
        expected = [[one.confidence, one.accuracy_low], [one.confidence, one.accuracy_high]]
        np.testing.assert_allclose(segment, expected)
    for box, one in zip(upper.patches, before.bins, strict=True):
        np.testing.assert_allclose(
            [*box.get_xy(), box.get_x() + box.get_width(), box.get_y() + box.get_height()],
            [one.low, one.band_low, one.high, one.band_high],
        )
    np.testing.assert_allclose(sum(bar.get_height() for bar in lower.patches), 1)
    assert texts(upper) == ["ECE 8.12%\n95%: 7.12 to 9.12\nnoise floor 1.20%"]
    assert [axes.get_title(loc="left") for axes in figure.axes[:2]] == ["Uncalibrated", "Temperature"]


def test_missing_intervals_are_not_written(example):
    assert texts(reliability([example.method("histogram")], 0.95).axes[0]) == ["ECE 2.00%\nnoise floor 1.20%"]


def test_the_note_avoids_the_points():
    bins = tuple(dataclasses.replace(one, accuracy_high=1.0) for one in comparison().uncalibrated.bins)
    (note,) = reliability([with_method("none", bins=bins).uncalibrated], 0.95).axes[0].texts
    assert note.get_position()[0] > 0.5 > note.get_position()[1]


def test_forest_has_a_row_per_method_and_hollow_points_for_rejected_ones(example):
    (axes,) = forest(example).axes
    assert [label.get_text() for label in axes.get_yticklabels()] == [one.label for one in example.methods]
    points = [line for line in axes.lines if line.get_marker() == "o"]
    floors = [line for line in axes.lines if line.get_marker() == "|"]
    assert [line.get_xdata()[0] for line in points] == [one.entry("ece").value for one in example.methods]
    assert [line.get_xdata()[0] for line in floors] == [0.019] * 4
    assert [line.get_markerfacecolor() == "none" for line in points] == [False, False, False, True]
    assert len(axes.collections) == 3  # one method has no interval


@pytest.mark.parametrize("number", [1, 2])
def test_nothing_is_cut_off(example, number):
    for figure in (reliability(example.methods[:number], 0.95), forest(example), risk_coverage(example)):
        figure.draw_without_rendering()
        inside, paper = figure.get_tightbbox(), figure.get_size_inches()
        assert inside.x0 >= 0
        assert inside.y0 >= 0
        assert inside.x1 <= paper[0]
        assert inside.y1 <= paper[1]


def test_curves_differ_in_colour_or_dashes(example):
    methods = [dataclasses.replace(example.methods[1], name=f"m{number}") for number in range(14)]
    many = dataclasses.replace(example, methods=(example.uncalibrated, *methods))
    (axes,) = risk_coverage(many).axes
    looks = {(to_hex(line.get_color()), str(line._dash_pattern)) for line in axes.lines}
    assert len(looks) == 15
    coverage, risk = axes.lines[0].get_data()
    np.testing.assert_allclose(np.transpose([coverage, risk]), example.uncalibrated.risk_coverage)


def test_figures_are_written(tmp_path):
    label = r"$\frac{ <b> \undefined$ " + "long " * 20
    given = only("none", "temperature")
    odd = dataclasses.replace(given.methods[1], name="../matrix/1", label=label)
    given = dataclasses.replace(given, methods=(given.uncalibrated, odd))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        written = save_pictures(given, tmp_path / "pictures")
    assert sorted(path.name for path in (tmp_path / "pictures").iterdir()) == sorted(path.name for path in written)
    assert {"ece.png", "risk_coverage.png", "reliability_none.png"} < {path.name for path in written}
    for path in written:
        assert imread(path)[..., :3].std() > 0.02, f"{path.name} is blank"


def test_inline_svg_has_its_own_ids_and_no_fixed_colours(example):
    figures = [reliability(example.methods[:1], 0.95) for _ in range(2)]
    one, other = (inline_svg(figure, name) for figure, name in zip(figures, ("one", "other"), strict=True))
    ids = re.findall(r'\bid="([^"]*)"', one)
    assert ids
    assert all(name.startswith("one-") for name in ids)
    assert set(re.findall(r'(?:href="|url\()#([^")]*)', one)) <= set(ids)
    assert one.replace("one-", "other-") == other  # the same figure gives the same bytes
    assert "http" not in one
    assert "xlink" not in one
    assert "<style" not in one
    assert set(re.findall(r"#[0-9a-fA-F]{6}\b", one)) == set()
    assert set(re.findall(r"var\(--(\w+)\)", one)) <= set(COLOURS)
    assert ">Uncalibrated</text>" in one


def test_the_axes_of_two_classes_begin_at_one_half():
    given = comparison()
    of_two = dataclasses.replace(given.items, classes=2)
    upper = [
        dataclasses.replace(one, bins=tuple(each for each in one.bins if each.low >= 0.5)) for one in given.methods
    ]
    given = dataclasses.replace(given, items=of_two, methods=tuple(upper))
    start = Start.of(given)
    assert start.confidence == 0.5
    assert start.accuracy <= min(min(b.accuracy_low, b.band_low) for one in upper for b in one.bins)
    axes, bars = reliability([given.uncalibrated], 0.95, start).axes
    assert axes.get_xlim() == bars.get_xlim() == (0.5, 1)
    assert Start.of(comparison()) == (0, 0)
    low = dataclasses.replace(given.uncalibrated.bins[0], low=0.1, high=0.2)
    judged = dataclasses.replace(given.uncalibrated, bins=(low,))
    assert Start.of(dataclasses.replace(given, methods=(judged,))) == (0, 0)
