"""Rows: each source reads as its format says, each fault is named by its place, and splits keep their promises."""

import gzip
import json
import os
import sys
from collections import Counter

import pytest

from lm.data.config import ExamplesConfig
from lm.data.files import note
from lm.data.rows import read_examples, read_inputs, read_rows
from lm.errors import UserError

needs_data = pytest.mark.skipif("LM_DATA_DIR" not in os.environ, reason="LM_DATA_DIR is not set")
needs_tfds = pytest.mark.skipif("TFDS_DATA_DIR" not in os.environ, reason="TFDS_DATA_DIR is not set")

TEXTS = {"text": "text", "label": "label"}
TAGGING = {"words": "words", "tags": "tags"}
QUESTIONS = {name: name for name in ("id", "context", "question", "answers")}
CONTEXT = "Köln lies on the Rhine."


@pytest.fixture(autouse=True)
def folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    return tmp_path


def write(name, content):
    data = content.encode() if isinstance(content, str) else content
    with (gzip.open if name.endswith(".gz") else open)(name, "wb") as stream:
        stream.write(data)
    return f"{name.removesuffix('.gz').rpartition('.')[2]}:{name}"


def write_rows(name, rows):
    return write(name, "".join(json.dumps(row) + "\n" for row in rows))


def squad(*questions):
    return json.dumps({"data": [{"paragraphs": [{"context": CONTEXT, "qas": questions}]}]})


def question(**values):
    answers = [{"text": "the Rhine", "answer_start": 13}]
    return {"id": "q1", "question": "On what?", "answers": answers} | values


def error_of(source, columns=TEXTS):
    with pytest.raises(UserError) as caught:
        read_rows(source, columns, "config.data.train")
    assert "\n" not in str(caught.value)
    return str(caught.value)


def many(count=200, repeats=1):
    """Rows of three labels, 60%, 30% and 10%."""
    labels = [*["a"] * 6, *["b"] * 3, "c"]
    return [{"text": f"text {i // repeats}", "label": labels[i // repeats % 10]} for i in range(count)]


def without_place(rows):
    return [{name: value for name, value in row.items() if name != "place"} for row in rows]


def places(rows):
    return [row["place"] for row in rows]


def test_an_array_of_objects_may_span_lines():
    rows = [{"text": "[a\nb]", "label": 1}, {"text": "c", "label": "x"}]
    write("a.json", "\n " + json.dumps(rows, indent=2))
    assert read_rows("jsonl:a.json", TEXTS, "k") == [
        {"text": "[a\nb]", "label": "1", "place": "a.json item 1"},
        {"text": "c", "label": "x", "place": "a.json item 2"},
    ]


def test_parquet():
    pyarrow = pytest.importorskip("pyarrow")
    from pyarrow import parquet

    parquet.write_table(pyarrow.table({"text": ["a\0", "é"], "label": [3, 0], "other": [None, [1]]}), "a.parquet")
    assert read_rows("parquet:a.parquet", TEXTS, "k") == [
        {"text": "a\0", "label": "3", "place": "a.parquet row 1"},
        {"text": "é", "label": "0", "place": "a.parquet row 2"},
    ]
    os.truncate("a.parquet", 200)
    assert "cannot read a.parquet as parquet" in error_of("parquet:a.parquet")


def test_without_pyarrow_the_message_names_it(monkeypatch):
    monkeypatch.setitem(sys.modules, "pyarrow", None)
    write("a.parquet", "x")
    assert "a.parquet: pip install pyarrow to read parquet files" in error_of("parquet:a.parquet")


def test_labels_have_no_white_space_around_them():
    rows = read_rows(write("a.csv", "text,label\na,pos\nb, pos\u00a0\n"), TEXTS, "k")
    assert [row["label"] for row in rows] == ["pos", "pos"]
    rows = [{"words": ["a ", "b"], "tags": ["O ", "\u3000O"]}]
    assert without_place(read_rows(write_rows("a.jsonl", rows), TAGGING, "k")) == [
        {"words": ["a ", "b"], "tags": ["O", "O"]}
    ]


@pytest.mark.parametrize(
    ("one", "other"),
    [("1", "1.0"), ("-2.", "-2"), ("pos", "p\u200bos"), ("caf\u00e9", "cafe\u0301"), ("very  good", "very\u00a0good")],
)
def test_labels_that_look_alike_are_refused(one, other):
    rows = [{"text": str(i), "label": label} for i, label in enumerate([one, "x", one, other])]
    message = error_of(write_rows("a.jsonl", rows))
    assert message.startswith("a.jsonl:4: label ")
    assert "at a.jsonl:1: write both in one way" in message
    assert "looks like 'O'" in error_of(
        write_rows("a.jsonl", [{"words": ["a", "b"], "tags": ["O", "\ufeffO"]}]), TAGGING
    )


def test_labels_that_only_resemble_each_other_are_kept(capsys):
    note.cache_clear()
    labels = ["1", "01", "1.5", "10", "a", "A", "1st"]
    rows = [{"text": label, "label": label} for label in labels]
    assert [row["label"] for row in read_rows(write_rows("a.jsonl", rows), TEXTS, "k")] == labels
    assert capsys.readouterr().err.splitlines() == ["note: a.jsonl:6: label 'A' and 'a' at a.jsonl:5 are two classes"]


@pytest.mark.parametrize("name", ["a.jsonl", "a.jsonl.gz"])
def test_json_lines(name):
    source = write(name, '{"text": "a\u2028b\u0085c", "label": 3, "other": []}\n\n{"label": "x", "text": "é"}\n')
    assert read_rows(source, TEXTS, "config.data.train") == [
        {"text": "a\u2028b\u0085c", "label": "3", "place": f"{name}:1"},
        {"text": "é", "label": "x", "place": f"{name}:3"},
    ]


def test_squad_counts_characters_and_knows_questions_without_answers():
    impossible = question(id="q2", is_impossible=True, answers=[], plausible_answers=[{"text": "x", "answer_start": 9}])
    write("a.json", squad(question(), impossible))
    rows = read_rows("squad:a.json", QUESTIONS, "config.data.train")
    assert [row["answers"] for row in rows] == [[{"text": "the Rhine", "start": 13}], []]
    assert places(rows) == ["a.json question q1", "a.json question q2"]
    assert all(row["context"] == CONTEXT for row in rows)


def test_squad_may_leave_out_answers_where_they_are_predicted():
    write("a.json", squad({"id": 7, "question": "On what?"}))
    given = read_inputs("squad:a.json", "config.source", ExamplesConfig(), QUESTIONS)
    assert [one.given for one in given] == [{"id": 7, "context": CONTEXT, "question": "On what?"}]
    assert "a.json question 7 has no column 'answers'" in error_of("squad:a.json", QUESTIONS)


@pytest.mark.parametrize(
    "answer",
    [
        " Köln ",
        ["Köln", " ", "Köln "],
        {"text": ["Köln"], "answer_start": [0]},
        [{"text": "Köln", "answer_start": 0}],
    ],
)
def test_accepted_answers_in_the_spellings_that_files_have(answer):
    source = write_rows("a.jsonl", [{"question": "?", "gold": answer}])
    assert read_rows(source, {"question": "question", "answer": "gold"}, "k")[0]["answer"] == ["Köln"]


@pytest.mark.parametrize("answer", [3, None, [], "", [" "], [3], {"start": 3}, [{"start": 3}]])
def test_a_row_without_an_accepted_answer_is_located(answer):
    source = write_rows("a.jsonl", [{"question": "?", "answer": answer}])
    assert error_of(source, {"question": "question", "answer": "answer"}).startswith("a.jsonl:1: 'answer' ")


@pytest.mark.parametrize(
    "answers",
    [
        [{"text": "Köln", "start": 0}],
        [{"text": "Köln", "answer_start": 0}],
        {"text": ["Köln"], "answer_start": [0]},
        {"text": ["Köln"], "start": [0]},
    ],
)
def test_answers_in_the_spellings_that_files_have(answers):
    source = write_rows("a.jsonl", [{"id": 1, "context": CONTEXT, "question": "?", "answers": answers}])
    assert read_rows(source, QUESTIONS, "k")[0]["answers"] == [{"text": "Köln", "start": 0}]


def test_columns_are_renamed_and_optional_ones_may_miss():
    source = write_rows("a.jsonl", [{"sentence": "x", "gold": 1}])
    columns = {"text": "sentence", "label": "gold", "pair": "pair"}
    assert without_place(read_rows(source, columns, "k", optional=("pair",))) == [{"text": "x", "label": "1"}]


def test_patterns_and_variables(folder, monkeypatch):
    for name in ("b", "a"):
        write_rows(f"{name}.jsonl", [{"text": name, "label": name}])
    monkeypatch.setenv("MY_DATA", str(folder))
    (folder / "elsewhere").mkdir()
    monkeypatch.chdir(folder / "elsewhere")
    rows = read_rows("jsonl:$MY_DATA/*.jsonl", TEXTS, "k")
    assert [row["text"] for row in rows] == ["a", "b"]
    assert places(rows) == [f"{folder.name}/a.jsonl:1", f"{folder.name}/b.jsonl:1"]
    monkeypatch.delenv("MY_DATA")
    message = error_of("jsonl:${MY_DATA}/sst2/train.jsonl")
    assert "set the environment variable MY_DATA to the folder that holds sst2/train.jsonl" in message


@pytest.mark.parametrize(
    ("row", "words"),
    [
        (
            {"sentence": "x", "label": 1},
            "no column 'text'; it has sentence, label: name the right one in config.data.col",
        ),
        ({"text": "", "label": 1}, "'text' is empty"),
        ({"text": " \n", "label": 1}, "'text' is empty"),
        ({"text": None, "label": 1}, "'text' must be text, got nothing (null)"),
        ({"text": ["x"], "label": 1}, "'text' must be text, got ['x'] (list)"),
        ({"text": "\ud800", "label": 1}, "half a surrogate pair in 'text'"),
        ({"text": "x", "label": 1.5}, "'label' must be text or an integer, got 1.5 (float)"),
        ({"text": "x", "label": True}, "'label' must be text or an integer, got True (bool)"),
        ({"text": "x", "label": None}, "'label' must be text or an integer, got nothing"),
        ({"text": "x", "label": ""}, "'label' must be text or an integer, got nothing"),
        ({"text": "x", "label": "NaN"}, "'label' must be text or an integer, got 'NaN', a missing value"),
        ({"text": "x", "label": "\u200b"}, "'label' must be text or an integer, got '\\u200b' (str)"),
        ({"text": "x", "label": "\udfff"}, "half a surrogate pair in 'label'"),
    ],
)
def test_bad_texts_and_labels_are_located(row, words):
    message = error_of(write_rows("a.jsonl", [{"text": "fine", "label": "x"}, row]))
    assert message.startswith("a.jsonl:2")
    assert words in message


@pytest.mark.parametrize(
    ("row", "words"),
    [
        ({"words": ["a", "b"], "tags": ["O"]}, "2 words and 1 tags"),
        ({"words": "a b", "tags": ["O"]}, "'words' must be a list of non-empty words"),
        ({"words": ["a", ""], "tags": ["O", "O"]}, "'words' must be a list of non-empty words"),
        ({"words": ["a"], "tags": [0]}, "'tags' must be a list of non-empty names of tags, got [0] (list)"),
        ({"words": [], "tags": []}, "'words' is empty"),
        ({"words": ["\ud800"], "tags": ["O"]}, "half a surrogate pair"),
    ],
)
def test_bad_words_are_located(row, words):
    message = error_of(write_rows("a.jsonl", [row]), TAGGING)
    assert message.startswith("a.jsonl:1")
    assert words in message


@pytest.mark.parametrize(
    ("answers", "words"),
    [
        (
            [{"text": "Rhine", "start": 16}],
            "the answer 'Rhine' is not at character 16 of the context, where there is ' Rhin'",
        ),
        ([{"text": "Rhine", "start": -6}], "not at character -6"),
        ([{"text": "Rhine"}], "must be a list such as [{'text': 'Paris', 'start': 17}]"),
        ([{"text": "Rhine", "start": "17"}], "must be a list such as"),
        ([{"text": "", "start": 0}], "must be a list such as"),
        (["Rhine"], "must be a list such as"),
        ({"text": ["Rhine"], "start": []}, "must be a list such as"),
        (None, "must be a list such as"),
    ],
)
def test_bad_answers_are_located(answers, words):
    row = {"id": "1", "context": CONTEXT, "question": "?", "answers": answers}
    message = error_of(write_rows("a.jsonl", [row]), QUESTIONS)
    assert message.startswith("a.jsonl:1: ")
    assert words in message


@pytest.mark.parametrize(
    ("source", "content", "words"),
    [
        ("jsonl:a", '{"text": "x", "label": 1}\n\n{"text": \n', "a:3 is not JSON (Expecting value at column"),
        ("jsonl:a", "1", "a:1 must be a JSON object, got int"),
        ("jsonl:a", '[{"text": "x", "label": 1}, 1]', "a item 2 must be a JSON object, got int"),
        ("jsonl:a", "[" * 100_000, "a cannot be read as JSON"),
        ("jsonl:a", '{"text": "x", "text": "y", "label": 1}', "a:1 cannot be read as JSON (it has 'text' twice)"),
        ("jsonl:a", '{"text": "x", "label": 1}\n\0\0', "a:2 has a NUL character"),
        ("jsonl:a", "\n", "config.data.train: jsonl:a has no rows"),
        ("jsonl:a", b"\xff", "a is not UTF-8 at byte 0"),
        ("jsonl:a.gz", b"plain", "cannot read a.gz"),
        ("squad:a", '{"data":\n [}', "a is not JSON (Expecting value at line 2, column 3)"),
        ("squad:a", '{"data": [{}]}', "a does not have SQuAD's layout"),
        ("squad:a", squad({"id": "1", "answers": []}), "a does not have SQuAD's layout"),
        ("squad:a", squad(question(is_impossible="false")), "a question q1: 'is_impossible' must be true or false"),
        ("squad:a", squad(question(is_impossible=True)), "a question q1 has answers, but its 'is_impossible' is true"),
        ("squad:a", "[]", "a must be a JSON object, got list"),
        ("jsonl:b", "", "config.data.train=jsonl:b matches no file"),
        (
            "xml:a",
            "",
            "must start with one of jsonl:, csv:, conll:, parquet:, squad:, tfds:; got 'xml:a'",
        ),
        ("a", "", "config.data.train must start with one of"),
        ("tfds:glue/sst2", "", "name a set together with its split, as in tfds:glue/sst2:train; got 'tfds:glue/sst2'"),
    ],
)
def test_bad_files_are_named(folder, source, content, words):
    name = "a.gz" if source.endswith(".gz") else "a"
    (folder / name).write_bytes(content.encode() if isinstance(content, str) else content)
    assert words in error_of(source)


def read(source, columns=("text", "label"), **values):
    return read_examples(ExamplesConfig(train=source, **values), columns)


def test_held_out_rows_are_stratified_and_independent_of_order():
    rows = many()
    train, validation, test = read(write_rows("a.jsonl", rows), validation_fraction=0.2)
    assert not test
    assert sorted(places(train) + places(validation)) == sorted(f"a.jsonl:{i + 1}" for i in range(200))
    assert Counter(row["label"] for row in validation) == {"a": 24, "b": 12, "c": 4}
    backwards = read(write_rows("b.jsonl", rows[::-1]), validation_fraction=0.2)
    texts = [{row["text"] for row in part} for part in (validation, backwards.validation)]
    assert texts[0] == texts[1]
    assert read("jsonl:a.jsonl", validation_fraction=0.0).validation == []


@pytest.mark.parametrize("values", [{"validation_fraction": 0.3}, {"folds": 4}])
def test_equal_texts_stay_together(values):
    train, validation, _ = read(write_rows("a.jsonl", many(200, repeats=4)), **values)
    assert train
    assert validation
    assert not {row["text"] for row in train} & {row["text"] for row in validation}


def test_questions_about_one_context_stay_together():
    rows = [{"context": f"context {i // 5}", "question": f"{i}?", "answers": [], "id": i} for i in range(100)]
    train, validation, _ = read(write_rows("a.jsonl", rows), QUESTIONS, validation_fraction=0.3)
    assert len(validation) == 30
    assert not {row["context"] for row in train} & {row["context"] for row in validation}


def test_folds_part_the_rows_and_are_stratified():
    source = write_rows("a.jsonl", many())
    splits = [read(source, folds=5, fold=fold) for fold in range(5)]
    held_out = [place for split in splits for place in places(split.validation)]
    assert sorted(held_out) == sorted(f"a.jsonl:{i + 1}" for i in range(200))
    for train, validation, _ in splits:
        assert Counter(row["label"] for row in validation) == {"a": 24, "b": 12, "c": 4}
        assert sorted(places(train) + places(validation)) == sorted(held_out)
    again = read(source, folds=5, fold=2, split_seed=0)
    other = read(source, folds=5, fold=2, split_seed=1)
    assert places(again.validation) == places(splits[2].validation) != places(other.validation)


def test_folds_of_rows_without_labels():
    rows = [{"words": [f"w{i}"], "tags": ["O"]} for i in range(10)]
    assert len(read(write_rows("a.jsonl", rows), TAGGING, folds=5).validation) == 2
    with pytest.raises(UserError, match=r"config\.data\.folds=11 exceeds"):
        read("jsonl:a.jsonl", TAGGING, folds=11)


def test_train_rows_are_nested_draws_and_do_not_change_validation():
    source = write_rows("a.jsonl", many())
    whole, small, large = (read(source, train_rows=count) for count in (0, 20, 90))
    assert (len(small.train), len(large.train)) == (20, 90)
    assert set(places(small.train)) < set(places(large.train)) < set(places(whole.train))
    assert small.validation == large.validation == whole.validation
    assert places(small.train) != places(read(source, train_rows=20, split_seed=1).train)
    with pytest.raises(UserError, match=r"config\.data\.train_rows=181, but there are 180 training rows"):
        read(source, train_rows=181)


def test_sources_are_used_whole_and_repeated_rows_are_counted():
    train = write_rows("a.jsonl", many(30))
    validation = write_rows("b.jsonl", [{"text": "new", "label": "a"}])
    test = write_rows("c.jsonl", [{"text": "text 3", "label": "other"}, {"text": "new", "label": "a"}])
    splits = read(train, validation=validation, test=test)
    assert [len(part) for part in splits] == [30, 1, 2]
    assert splits.test_rows_in_train == 1


def test_cleaning_is_of_texts_only():
    source = write_rows(
        "a.jsonl", [{"text": "Of THE Cats", "pair": "RUNNING", "label": "Of THE"}, {"text": "it", "label": 1}]
    )
    splits = read_examples(
        ExamplesConfig(train=source, cleaning=("english_stop_words", "lowercase"), validation_fraction=0.0),
        ("text", "label"),
        optional=("pair",),
    )
    assert without_place(splits.train) == [
        {"text": "cats", "pair": "running", "label": "Of THE"},
        {"text": "", "label": "1"},
    ]
    source = write("a.conll", "EU\tB\n")
    with pytest.raises(UserError, match=r"config\.data\.cleaning does not apply to rows with words"):
        read(source, TAGGING, cleaning=("lowercase",))


def test_bad_configs_are_named():
    source = write_rows("a.jsonl", many(3))
    with pytest.raises(UserError, match=r"config\.data\.train is empty"):
        read("")
    with pytest.raises(UserError, match=r"config\.data\.columns: the task has no column 'txt'; it has text, label"):
        read_examples(ExamplesConfig(train=source, columns=("txt=text",)), ("text", "label"))
    with pytest.raises(UserError, match="no column 'second'"):
        read_examples(ExamplesConfig(train=source, columns=("pair=second",)), ("text", "label"), optional=("pair",))
    with pytest.raises(UserError, match=r"validation_fraction=0\.1 of 3 distinct rows"):
        read(source)


@needs_data
@pytest.mark.parametrize(
    ("source", "columns", "count"),
    [
        ("jsonl:$LM_DATA_DIR/trec/test.jsonl", TEXTS, 500),
        ("conll:$LM_DATA_DIR/wnut17/dev.conll", TAGGING, 1009),
        ("squad:$LM_DATA_DIR/xquad/xquad.de.json", QUESTIONS, 1190),
    ],
)
def test_real_files(source, columns, count):
    assert len(read_rows(source, columns, "config.data.train")) == count


@needs_tfds
def test_tfds_gives_names_of_classes_and_answers():
    rows = read_rows("tfds:trec:test[:5]", {"text": "text", "label": "label-coarse"}, "k")
    assert {row["label"] for row in rows} <= {"ABBR", "ENTY", "DESC", "HUM", "LOC", "NUM"}
    assert rows[4]["place"] == "tfds:trec:test[:5] row 4"
    answers = read_rows("tfds:xquad/en:test[:5]", QUESTIONS, "k")[0]["answers"]
    assert type(answers[0]["start"]) is int
    assert "'label' must be text or an integer, got nothing" in error_of(
        "tfds:glue/sst2:test[:5]", {"text": "sentence", "label": "label"}
    )
    assert "config.data.train: tfds:trec has no split 'nothing'; it has train, test" in error_of("tfds:trec:nothing")
