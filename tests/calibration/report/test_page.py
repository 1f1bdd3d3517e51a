"""The page is self-contained, complete, and escapes all text of the comparison."""

import dataclasses
import math
import re
from html.parser import HTMLParser
from xml.etree import ElementTree

import pytest

from lm.calibration.report.diagrams import COLOURS
from lm.calibration.report.page import report_html
from lm.calibration.report.wording import verdict
from tests.calibration.comparison_examples import changed, comparison, only

HOSTILE = "</title><script>alert('1')</script><img src=\"http://x.example/\" onerror=alert(1)> & ${x}"


class Page(HTMLParser):
    """Collects the elements of a page and checks that they are properly nested."""

    def __init__(self, page):
        super().__init__()
        self.elements, self.open, self.text = [], [], []
        self.feed(page)
        self.close()
        assert not self.open

    def handle_starttag(self, tag, attributes):
        self.elements.append((tag, dict(attributes)))
        if tag not in ("meta", "hr"):
            self.open.append(tag)

    def handle_startendtag(self, tag, attributes):
        self.elements.append((tag, dict(attributes)))

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        if self.open and self.open[-1] != "style":
            self.text.append(data)

    def all_of(self, attribute):
        return [attributes[attribute] for _, attributes in self.elements if attribute in attributes]


@pytest.fixture(scope="module")
def source():
    return report_html(comparison())


@pytest.fixture(scope="module")
def page(source):
    return Page(source)


def test_the_page_is_self_contained(source, page):
    assert not re.search(r"https?:|//[a-z]|@import|@font-face|javascript:", source)
    assert not {"script", "link", "img", "iframe", "object"} & {tag for tag, _ in page.elements}
    assert all(target.startswith("#") for target in page.all_of("href"))
    assert not page.all_of("src")
    assert "default-src 'none'" in " ".join(page.all_of("content"))


def test_ids_are_unique_and_references_resolve(source, page):
    ids = page.all_of("id")
    assert len(ids) == len(set(ids))
    referenced = [target[1:] for target in page.all_of("href")] + page.all_of("aria-labelledby")
    assert set(referenced) | set(re.findall(r"url\(#([^)]*)\)", source)) <= set(ids)


def test_every_figure_has_a_title(page):
    pictures = [attributes for tag, attributes in page.elements if tag == "svg"]
    assert len(pictures) == 2 + 4 + 2
    assert all(attributes["role"] == "img" and attributes["aria-labelledby"] for attributes in pictures)
    assert "Reliability diagram of Temperature, ECE 1.31%" in page.text


def test_every_method_metric_and_sentence_appears(page):
    given, text = comparison(), " ".join(page.text)
    said = verdict(given)
    for sentence in (said.before, said.after, *said.notes):
        assert sentence in text
    for method in given.methods:
        assert text.count(method.label) >= 3
    for metric in given.metrics:
        for field in ("label", "long", "definition", "formula", "source"):
            assert getattr(metric, field) in text
        assert f"how-{metric.name}" in page.all_of("id")
    for expected in ("8.12%", "7.12 to 9.12", "floor 1.20 to 1.90", "−6.81", "−7.21 to −6.41", "predictions.npz"):
        assert expected in page.text


def test_warnings_name_the_method_and_the_problem(page):
    text = "".join(page.text)
    assert "Matrix scaling: not accepted, did not converge — its NLL on the items" in text
    assert "Temperature: " not in text
    assert "Warnings" not in report_html(only("none", "temperature"))
    noted = dataclasses.replace(only("none", "temperature"), notes=("Vector is left out: <why>",))
    assert "Vector is left out: <why>" in Page(report_html(noted)).text


def test_diagrams_come_before_tables(source):
    headline, diagram, table = (source.index(part) for part in ("class='answer'", "<svg", "<table"))
    assert headline < diagram < table


def test_figures_are_well_formed_xml_whatever_names_hold():
    names = "\x1b[31m\x00 <b>&amp;</b> ]]> \ufffe \ud800 $x$"
    given = only("none", "temperature")
    given = dataclasses.replace(given, methods=tuple(dataclasses.replace(one, label=names) for one in given.methods))
    page = report_html(given)
    page.encode()
    for svg in re.findall(r"<svg.*?</svg>", page, flags=re.DOTALL):
        ElementTree.fromstring(svg)
    assert "\x1b" not in page


def test_every_colour_is_defined_in_light_and_dark(source):
    light, dark = re.findall(r":root\{([^}]*)\}", source)
    used = set(re.findall(r"var\(--(\w+)\)", source)) | set(COLOURS)
    assert "prefers-color-scheme:dark" in source
    for scheme in (light, dark):
        assert used <= set(re.findall(r"--(\w+):#", scheme))


def test_text_is_escaped():
    given = only("none", "temperature")
    texts = dict.fromkeys(("label", "long", "definition", "formula", "source"), HOSTILE)
    given = dataclasses.replace(
        given,
        title=HOSTILE,
        source=HOSTILE,
        methods=tuple(
            dataclasses.replace(one, label=HOSTILE, summary=HOSTILE, message=HOSTILE) for one in given.methods
        ),
        metrics=tuple(dataclasses.replace(one, **texts, specification={HOSTILE: [HOSTILE]}) for one in given.metrics),
    )
    page = Page(report_html(given))
    assert not {"script", "img"} & {tag for tag, _ in page.elements}
    assert not page.all_of("onerror")
    assert HOSTILE in page.text


def test_only_before_and_missing_values():
    given = changed("none", ece={"value": math.nan, "interval": None, "floor": None}, nll={"value": math.inf})
    before = given.uncalibrated
    entries = {name: entry for name, entry in before.entries.items() if name != "aurc"}
    before = dataclasses.replace(before, entries=entries, risk_coverage=())
    page = Page(report_html(dataclasses.replace(given, methods=(before,))))
    assert "No calibrator was fitted." in "".join(page.text)
    assert "nan" not in " ".join(page.text).lower()
    assert "None" not in page.text
