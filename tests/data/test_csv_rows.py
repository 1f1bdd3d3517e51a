"""CSV files in the dialects that real programs write: read rightly, or refused with what to set."""

import csv

import pytest

from lm.data.config import ExamplesConfig
from lm.data.files import note
from lm.data.rows import read_examples, read_rows
from lm.errors import UserError

TEXTS = {"text": "text", "label": "label"}
AWKWARD = ['"He said ""hi"", twice"', "a\ttab", "two\nlines", "plain; | ,", '5" wide', "a\u2028b", "x"]


@pytest.fixture(autouse=True)
def folder(tmp_path, monkeypatch):
    note.cache_clear()
    monkeypatch.chdir(tmp_path)
    return tmp_path


def write(name, content):
    with open(name, "wb") as stream:
        stream.write(content.encode() if isinstance(content, str) else content)
    return f"csv:{name}"


def read(source, columns=TEXTS, **values):
    return read_rows(source, columns, "config.data.train", config=ExamplesConfig(**values))


def texts(rows):
    return [row["text"] for row in rows]


def error_of(source, columns=TEXTS, **values):
    with pytest.raises(UserError) as caught:
        read(source, columns, **values)
    assert "\n" not in str(caught.value)
    return str(caught.value)


def test_quotes_and_places():
    source = write("a.csv", '\ufefflabel,text\r\n1,"two\nlines, ""quoted"""\r\n\r\nx,plain\u2028text\r\n')
    assert read(source) == [
        {"text": 'two\nlines, "quoted"', "label": "1", "place": "a.csv:2"},
        {"text": "plain\u2028text", "label": "x", "place": "a.csv:5"},
    ]


@pytest.mark.parametrize("delimiter", [",", ";", "\t", "|"])
@pytest.mark.parametrize("name", ["a.csv", "a.tsv"])
@pytest.mark.parametrize("quoting", [csv.QUOTE_MINIMAL, csv.QUOTE_ALL])
def test_what_python_writes_is_read_back(name, delimiter, quoting, capsys):
    with open(name, "w", newline="", encoding="utf-8") as stream:
        writer = csv.writer(stream, delimiter=delimiter, quoting=quoting)
        writer.writerows([["text", "label"], *([text, "x"] for text in AWKWARD)])
    assert texts(read(f"csv:{name}")) == AWKWARD
    usual = {"a.csv": ",", "a.tsv": "\t"}[name]
    assert ("note: " in capsys.readouterr().err) == (delimiter != usual)


def test_what_pandas_writes_is_read_back():
    pandas = pytest.importorskip("pandas")
    for separator in ",;\t":
        pandas.DataFrame({"text": AWKWARD, "label": range(len(AWKWARD))}).to_csv("a.tsv", sep=separator)
        assert texts(read("csv:a.tsv")) == AWKWARD


def test_in_tsv_without_quoting_a_quote_is_a_quote():
    lines = ['"open, and so on', '5" wide', 'he said "no"', '"Yes" and "no"']
    source = write("a.tsv", "text\tlabel\n" + "".join(f"{line}\tx\n" for line in lines))
    assert texts(read(source)) == lines


def test_tsv_that_may_be_read_in_two_ways_is_refused():
    source = write("a.tsv", 'text\tlabel\n"Great movie"\tx\n')
    assert "a.tsv: do quotation marks, as in '\"Great movie\"', enclose values or belong to them?" in error_of(source)
    assert texts(read(source, quoting="none")) == ['"Great movie"']
    assert texts(read(source, quoting="standard")) == ["Great movie"]
    assert "do quotation marks" in error_of(write("a.tsv", 'text\tlabel\n"a ""b"""\tx\n5" wide\ty\n'))


def test_two_possible_delimiters_are_refused():
    source = write("a.csv", "text;label|other\nx;1|2\n")
    assert "may be separated by a semicolon or a bar: set config.data.delimiter" in error_of(source)
    assert error_of(source, delimiter="|").startswith("a.csv:2 has no column 'text'; it has text;label, other: its val")


def test_wrong_delimiter_is_spoken_of():
    source = write("a.csv", "text;label,other\nx;1,2\n")
    assert "its values seem to be separated by a semicolon: set config.data.delimiter=';'" in error_of(source)
    assert "config.data.delimiter='tab'" in error_of(write("a.csv", "text\tlabel,b\nx\t1,2\n"))


def test_the_delimiter_may_be_set():
    assert texts(read(write("a.csv", "text\tlabel\na,b\t1\n"), delimiter="tab")) == ["a,b"]
    assert texts(read(write("a.txt", "text:label\na,b:1\n"), delimiter=":")) == ["a,b"]


def test_excel_declares_its_delimiter():
    rows = read(write("a.csv", "sep=;\r\ntext;label\r\na, b;1\r\n"))
    assert rows == [{"text": "a, b", "label": "1", "place": "a.csv:3"}]


def test_a_single_column_needs_no_delimiter():
    assert texts(read(write("a.csv", "text\na; b\n\nc | d\n"), {"text": "text"})) == ["a; b", "c | d"]


def test_files_without_a_header():
    source = write("a.csv", "pos,good film\nneg,bad film\n")
    assert "config.data.header=('text', 'label')" in error_of(source)
    rows = read(source, header=("label", "text"))
    assert [(row["label"], row["text"], row["place"]) for row in rows] == [
        ("pos", "good film", "a.csv:1"),
        ("neg", "bad film", "a.csv:2"),
    ]
    message = error_of(source, header=("text", "label", "id"))
    assert message.startswith("a.csv:1 has 2 values, the header 3: ")
    assert message.endswith("name the columns of this file in config.data.header")
    source = write("a.csv", "label,text\nx,y\n")
    assert "a.csv:1 is a header: set config.data.header=()" in error_of(source, header=("label", "text"))


def test_a_header_beside_the_config_s_is_noticed(capsys):
    note.cache_clear()
    rows = "good film,pos\nfine film,pos\nbad film,neg\nold film,neg\n"
    read(write("a.csv", rows), header=("text", "label"))
    assert capsys.readouterr().err == ""
    read(write("b.csv", f"Review,Stars\n{rows}"), header=("text", "label"))
    assert "b.csv:1: no other row has the label 'Stars'; is this a header" in capsys.readouterr().err


def test_the_config_reaches_every_split():
    write("a.csv", "".join(f"text {i}|x\n" for i in range(9)))
    config = ExamplesConfig(train="csv:a.csv", validation="csv:a.csv", header=("text", "label"), delimiter="|")
    assert [len(rows) for rows in read_examples(config, ("text", "label"))] == [9, 9, 0]


def test_empty_values_at_the_end_and_blank_records_change_nothing():
    source = write("a.csv", " text , label,,\nx,1,,\ny,2\n,,\n  \n\nz,3,,,,\n")
    assert error_of(source).startswith("a.csv:3 has 2 values, the header 4")
    source = write("a.csv", "text,label\nx,1,\n,,\ny,2,,\n")
    assert texts(read(source)) == ["x", "y"]
    assert "a.csv:2 has 3 values, the header 2" in error_of(write("a.csv", "text,label\nx,1,2\n"))


def test_long_values():
    text = "long " * 40_000
    assert texts(read(write("a.csv", f'text,label\n"{text}",1\n'))) == [text]


@pytest.mark.parametrize(
    ("content", "words"),
    [
        ("text,label\nx\n", "a:2 has 1 values, the header 2"),
        ("text,label\nfine,1\n\nx,y,z\n", "a:4 has 3 values, the header 2"),
        ('text,label\n"x,y\n', "a:2 is not CSV (unexpected end of data)"),
        ("text,label\rx,1\r", "a:1 has a carriage return inside: end lines by line feeds"),
        ("text,text\n", "a:1: the header has two columns 'text'"),
        ("text,label\n", "config.data.train: csv:a has no rows"),
        ("", "config.data.train: csv:a has no rows"),
        ("text,label\nx\0,1\n", "a:2 has a NUL character"),
    ],
)
def test_bad_files_are_named(content, words):
    assert words in error_of(write("a", content))


@pytest.mark.parametrize(
    ("values", "words"),
    [
        ({"delimiter": ", "}, "config.data.delimiter must be one character or 'tab'"),
        ({"delimiter": "\n"}, "config.data.delimiter must be one character"),
        ({"quoting": "all"}, "config.data.quoting must be one of"),
        ({"header": "text"}, "config.data.header must be a tuple"),
        ({"header": ("a", "a")}, "config.data.header must name each column once"),
    ],
)
def test_bad_settings_are_named(values, words):
    with pytest.raises(UserError, match=words):
        ExamplesConfig(**values)
