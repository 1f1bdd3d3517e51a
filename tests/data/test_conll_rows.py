"""CoNLL files of several shared tasks: which lines are words, which fields are asked for, what is refused."""

import re

import pytest

from lm.data.files import note
from lm.data.rows import read_rows
from lm.errors import UserError

TAGGING = {"words": "words", "tags": "tags"}
UNIVERSAL = """# newdoc
# text = don't go
1-2\tdon't\t_\t_\t_\t_\t_\t_\t_\t_
1\tdo\tdo\tAUX\t_\t_\t3\taux\t_\t_
2\tn't\tnot\tPART\t_\t_\t3\tadvmod\t_\t_
3\tgo\tgo\tVERB\t_\t_\t0\troot\t_\t_
3.1\tthere\tthere\tADV\t_\t_\t_\t_\t_\t_

# text = a b
1\ta\ta\tDET\t_\t_\t2\tdet\t_\t_
2\tb\tb\tNOUN\t_\t_\t0\troot\t_\t_
"""


@pytest.fixture(autouse=True)
def folder(tmp_path, monkeypatch):
    note.cache_clear()
    monkeypatch.chdir(tmp_path)


def read(content, columns=TAGGING, optional=()):
    with open("a.conll", "wb") as stream:
        stream.write(content.encode())
    return read_rows("conll:a.conll", columns, "config.data.train", optional)


def error_of(content, columns=TAGGING):
    with pytest.raises(UserError) as caught:
        read(content, columns)
    assert "\n" not in str(caught.value)
    return str(caught.value)


def test_sentences_and_their_places():
    rows = read("-DOCSTART- -X- O\n\nEU\tB-ORG\nrejects\tO\n\n\n\u00a0\tO\nOslo\tB-LOC\r\n")
    assert rows == [
        {"words": ["EU", "rejects"], "tags": ["B-ORG", "O"], "place": "a.conll:3"},
        {"words": ["\u00a0", "Oslo"], "tags": ["O", "B-LOC"], "place": "a.conll:7"},
    ]


def test_fields_end_at_plain_spaces_only():
    rows = read("New\u00a0York NNP B-LOC\n東\u3000京  NNP   B-LOC \n")
    assert rows[0]["words"] == ["New\u00a0York", "東\u3000京"]
    assert rows[0]["tags"] == ["B-LOC", "B-LOC"]


@pytest.mark.parametrize("width", [4, 10, 11])  # CoNLL-U Plus has any number of fields
def test_universal_dependencies(width, capsys):
    content = "\n".join(f"{line}\t*" if line.count("\t") == 9 else line for line in UNIVERSAL.splitlines())
    content = re.sub(rf"(?m)^((?:[^\t\n]*\t){{{width - 1}}}[^\t\n]*).*", r"\1", content)
    rows = read(content, {"words": "2", "tags": "4"})
    assert [(row["words"], row["tags"]) for row in rows] == [
        (["do", "n't", "go"], ["AUX", "PART", "VERB"]),
        (["a", "b"], ["DET", "NOUN"]),
    ]
    said = capsys.readouterr().err
    assert "lines skipped because they are comments: 3" in said
    assert "lines skipped because they are ranges of words or empty nodes: 2" in said


@pytest.mark.parametrize(
    "content",
    [
        UNIVERSAL,
        "1 EU B-ORG\n2 rejects O\n",
        "0\ta\tO\n1\tb\tO\n2\tc\tO\n\n7\tx\tO\n",
        "bc/cnn 0 a O\nbc/cnn 1 b O\nbc/cnn 2 c O\n\nbc/cnn 0 d O\nbc/cnn 1 e O\nbc/cnn 2 f O\n",
    ],
)
def test_numbers_of_words_and_names_of_documents_are_not_words(content):
    message = error_of(content)
    assert "a.conll: the first field is no word but" in message
    assert "config.data.columns=('words=2', 'tags=4')" in message


def test_numbers_may_be_words_if_asked_for_or_among_others():
    content = "1 O\n2 O\n3 O\n"
    assert read(content, {"words": "1", "tags": "2"})[0]["words"] == ["1", "2", "3"]
    assert len(read("1 O\n2 O\n\na O\n")) == 2


def test_a_hash_may_be_a_word():
    rows = read("# sent_id = 4\n#tag\tO\n#\tO\n# 1\tO\n")
    assert rows[0]["words"] == ["#tag", "#", "# 1"]
    rows = read("# sent_id = 4 x\n# a comment of some words\na DT B O\n#tag NN B O\n# # B O\n")
    assert rows[0]["words"] == ["a", "#tag", "#"]


def test_documents_begin_in_any_field_and_end_sentences(capsys):
    rows = read("-DOCSTART-\tO\na\tO\n-DOCSTART-\tO\nb\tO\n")
    assert [row["words"] for row in rows] == [["a"], ["b"]]
    assert "lines skipped because they are -DOCSTART-: 2" in capsys.readouterr().err
    assert len(read("1\t-DOCSTART-\tO\n\n1\ta\tO\n", {"words": "2", "tags": "3"})) == 1


def test_unlabelled_words_where_tags_are_optional():
    assert read("a\nb\n\nc\n", optional=("tags",)) == [
        {"words": ["a", "b"], "place": "a.conll:1"},
        {"words": ["c"], "place": "a.conll:4"},
    ]


@pytest.mark.parametrize(
    ("content", "columns", "words"),
    [
        ("EU\tB\nOslo\n", TAGGING, "a.conll:2 must have a word and its tag separated by a tab or a space, got 'Oslo'"),
        ("EU\t\n", TAGGING, "a.conll:1 must have a word and its tag"),
        ("\tO\n", TAGGING, "a.conll:1 must have a word and its tag"),
        ("a\nb\n", TAGGING, "a.conll:1 must have a word and its tag"),
        ("EU O\nNew York O\nis O\n", TAGGING, "a.conll:2 has 3 fields, other lines have 2"),
        ("a\tO\rb\tO\n", TAGGING, "a.conll:1 has a carriage return inside"),
        ("a b O\n", TAGGING | {"tags": "4"}, "has 3 fields per line, and none is '4'"),
        ("a b O\n", TAGGING | {"tags": "ner"}, "has 3 fields per line, and none is 'ner'"),
        ("a b O\n", TAGGING | {"tags": "0"}, "none is '0'"),
        ("# only = comments\n", TAGGING, "conll:a.conll has no rows"),
    ],
)
def test_bad_files_are_named(content, columns, words):
    assert words in error_of(content, columns)
