import io

import pytest
from rich.table import Table

import lm.console
from lm.console import Console, printable

HOSTILE = ["[bold]red[/bold]", "[/]", "[link=file:///etc]x", ":smile:", "a\x1b[31mb", "a\rb", "\udcff", "x\u202ey"]


def printed(renderable) -> str:
    stream = io.StringIO()
    Console(file=stream, width=60).print(renderable)
    return stream.getvalue()


@pytest.mark.parametrize("text", HOSTILE)
def test_text_is_printed_as_it_is(text):
    assert printed(text) == printable(text) + "\n"


@pytest.mark.parametrize("text", HOSTILE)
def test_tables_are_printed_as_they_are(text):
    table = Table(text, title=text)
    table.add_row(text)
    lines = printed(table)
    assert lines.count(printable(text)) == 3
    assert "\x1b" not in lines


def test_a_status_is_no_markup():
    Console(file=io.StringIO()).status("reading [/]").renderable.render(0)


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("Zürich 東京 👩‍👩‍👧 عربي\u200f", "Zürich 東京 👩‍👩‍👧 عربي\u200f"),
        ("two\nlines\tand a tab", "two\nlines\tand a tab"),
        ("\x1b[31m", "\\x1b[31m"),
        ("\x9b\u2028\ud800", "\\x9b\\u2028\\ud800"),
    ],
)
def test_only_control_characters_are_escaped(text, expected):
    assert printable(text) == expected


def test_a_terminal_gets_lines_that_are_broken_between_words():
    path = "/a/path/that/is/longer/than/a/line"
    text = f"  one two  three four five\n{path} six"
    wrapped, whole = (io.StringIO() for _ in range(2))
    Console(file=wrapped, force_terminal=True, width=20).print(text)
    Console(file=whole, width=20).print(text)
    assert whole.getvalue() == f"{text}\n"
    lines = wrapped.getvalue().splitlines()
    assert lines[0] == "  one two  three"
    assert lines[1] == "    four five"
    assert lines[2].strip() == path
    assert " ".join(lines).split() == text.split()


def test_a_notebook_gets_lines_that_can_be_read_without_scrolling(monkeypatch):
    shown = []
    monkeypatch.setattr("rich.jupyter.display", lambda segments, text: shown.append(text))
    Console(force_jupyter=True, width=20).print("one two three four five six")
    assert [line.strip() for line in shown[0].splitlines()] == ["one two three four", "five six"]


def test_progress_on_a_terminal_disappears():
    stream = io.StringIO()
    console = Console(file=stream, force_terminal=True, width=80)
    with console.progress("calibrating [/]", 3) as advance, console.progress("fitting") as inner:
        advance(1, "[bold]isotonic")
        inner()
    text = stream.getvalue()
    assert "calibrating [/]" in text
    assert "1 of 3" in text
    assert "[bold]isotonic" in text
    assert text.endswith("\x1b[2K")  # the last thing written erases the line


def test_progress_elsewhere_is_a_plain_line_now_and_then(monkeypatch):
    stream = io.StringIO()
    with Console(file=stream).progress("decoding", 4) as advance:
        advance()
    assert stream.getvalue() == ""
    monkeypatch.setattr(lm.console, "_SECONDS_BETWEEN_LINES", 0)
    with Console(file=stream).progress("decoding", 4) as advance:
        advance(4)
    assert stream.getvalue() == "decoding: 4 of 4, about 0 s left\n"
