"""Sources: what is read, how it is split, and what is said when it can't be read."""

import importlib.util
import json
import os

import pytest

from lm.data.config import DataConfig
from lm.data.sources import READERS, Source, is_validation
from lm.errors import UserError

needs_tfds = pytest.mark.skipif("TFDS_DATA_DIR" not in os.environ, reason="TFDS_DATA_DIR is not set")


def write_files(folder, texts):
    folder.mkdir(parents=True, exist_ok=True)
    for name, text in texts.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(text.encode() if isinstance(text, str) else text)
    return folder


def read(config):
    source = Source(config)
    return list(source.documents("train")), list(source.documents("validation"))


def error_of(config, split="train"):
    with pytest.raises(UserError) as caught:
        list(Source(config).documents(split))
    assert "\n" not in str(caught.value)
    return str(caught.value)


def text_config(folder, **values):
    return DataConfig(**{"source": f"text:{folder}/**/*.txt", "validation_fraction": 0.3} | values)


@pytest.fixture
def many(tmp_path):
    return write_files(tmp_path / "many", {f"{i:03}.txt": f"document {i % 60}" for i in range(100)})


def test_split_is_a_partition_and_duplicates_never_straddle_it(many):
    train, validation = read(text_config(many))
    assert sorted(train + validation) == sorted(f"document {i % 60}" for i in range(100))
    assert train
    assert validation
    assert not set(train) & set(validation)


def test_split_is_independent_of_file_names_and_order(many, tmp_path):
    other = write_files(tmp_path / "other", {f"x/{99 - i:03}.txt": f"document {i % 60}" for i in range(100)})
    for one, two in zip(read(text_config(many)), read(text_config(other)), strict=True):
        assert sorted(one) == sorted(two)
        assert one != two


def test_split_fraction_is_met_on_average():
    share = sum(is_validation(f"text {i}", 0.2) for i in range(5000)) / 5000
    assert share == pytest.approx(0.2, abs=0.02)


def test_validation_source_is_used_whole(many, tmp_path):
    held_out = write_files(tmp_path / "held_out", {"v.txt": "held out"})
    train, validation = read(text_config(many, validation_source=f"text:{held_out}/*.txt"))
    assert len(train) == 100
    assert validation == ["held out"]


def test_blank_lines_separate_documents(tmp_path):
    folder = write_files(tmp_path, {"a.txt": "one\ntwo\n\n \n\nthree\r\n", "b.txt": "\n\nfour"})
    config = text_config(folder, document_separator="blank_line", validation_fraction=0.0)
    assert list(Source(config).documents("train")) == ["one\ntwo\n", "three\r\n", "four"]


def test_json_lines_end_at_line_feeds_only(tmp_path):
    rows = [{"body": "a\u2028b\u0085c"}, {"body": "d"}]
    lines = "".join(json.dumps(row, ensure_ascii=False) + "\n\n" for row in rows)
    write_files(tmp_path, {"a.jsonl": lines})
    config = DataConfig(source=f"jsonl:{tmp_path}/*.jsonl", field="body", validation_fraction=0.0)
    assert list(Source(config).documents("train")) == ["a\u2028b\u0085c", "d"]


def test_fingerprint_follows_content_not_place(many, tmp_path):
    fingerprint = Source(text_config(many)).fingerprint()
    moved = many.rename(tmp_path / "moved")
    os.utime(moved / "000.txt", (0, 0))
    assert Source(text_config(moved)).fingerprint() == fingerprint
    assert Source(text_config(moved, validation_fraction=0.4)).fingerprint() != fingerprint
    assert Source(text_config(moved, validation_source=f"text:{moved}/*.txt")).fingerprint() != fingerprint
    write_files(moved, {"000.txt": "changed"})
    assert Source(text_config(moved)).fingerprint() != fingerprint


def test_fingerprint_sees_where_one_file_ends(tmp_path):
    one = write_files(tmp_path / "one", {"a.txt": "ab", "b.txt": "c"})
    two = write_files(tmp_path / "two", {"a.txt": "a", "b.txt": "bc"})
    assert Source(text_config(one)).fingerprint() != Source(text_config(two)).fingerprint()


def test_standard_library_has_no_tests():
    source = Source(DataConfig())
    assert source.num_bytes > 5e6
    parts = {part for file in source._reader.files for part in file.parts}
    assert not parts & {"test", "tests", "idle_test", "site-packages"}
    assert "def " in next(source.documents("train"))


def test_unknown_scheme_lists_the_known_ones():
    known = ", ".join(f"{scheme}:" for scheme in READERS)
    assert f"config.data.source must start with one of {known}; got 'csv:x'" in error_of(DataConfig("csv:x"))
    message = error_of(DataConfig(validation_source="nothing"))
    assert "config.data.validation_source" in message
    assert "'nothing'" in message
    assert "python:stdlib" in error_of(DataConfig("python:numpy"))


def test_glob_without_matches(tmp_path):
    assert f"text:{tmp_path}/*.md matches no file" in error_of(DataConfig(f"text:{tmp_path}/*.md"))


@pytest.mark.parametrize("separator", ["file", "blank_line"])
def test_not_utf8_names_file_and_byte(tmp_path, separator):
    write_files(tmp_path, {"a.txt": b"fine\n\nna\xefve"})
    message = error_of(text_config(tmp_path, document_separator=separator))
    assert f"{tmp_path}/a.txt is not UTF-8 at byte 8" in message


@pytest.mark.parametrize(
    ("line", "words"),
    [
        ('{"text": ', "is not JSON"),
        ("[1]", "must be a JSON object, got list"),
        ('{"body": "x", "id": 1}', "no field 'text'; set config.data.field to one of body, id"),
        ('{"text": 3}', "the field 'text' is not text"),
        ('{"text": "\\ud800"}', "surrogate"),
    ],
)
def test_bad_json_line_is_located(tmp_path, line, words):
    write_files(tmp_path, {"a.jsonl": '{"text": "fine"}\n\n' + line + "\n"})
    message = error_of(DataConfig(f"jsonl:{tmp_path}/a.jsonl"))
    assert f"{tmp_path}/a.jsonl:3" in message
    assert words in message


def test_a_file_that_vanished_is_named(many):
    source = Source(text_config(many))
    (many / "007.txt").unlink()
    with pytest.raises(UserError, match=f"cannot read {many}/007.txt"):
        source.fingerprint()


def test_empty_split_says_what_to_change(tmp_path):
    write_files(tmp_path, {"a.txt": "one document"})
    message = error_of(text_config(tmp_path, validation_fraction=0.0), "validation")
    assert message.startswith("the validation split is empty")
    for change in ("config.data.document_separator=blank_line", "larger config.data.validation_fraction"):
        assert change in message
    assert "config.data.validation_source" in message
    assert "the train split is empty" in error_of(text_config(tmp_path, validation_fraction=1.0), "train")
    write_files(tmp_path, {"empty.jsonl": ""})
    held_out = text_config(tmp_path, validation_source=f"jsonl:{tmp_path}/empty.jsonl")
    assert "empty.jsonl gave no documents" in error_of(held_out, "validation")


def test_unprepared_tfds_set_says_how_to_get_it(tmp_path, monkeypatch):
    monkeypatch.setenv("TFDS_DATA_DIR", str(tmp_path))
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    message = error_of(DataConfig("tfds:lm1b"))
    assert str(tmp_path) in message
    assert "set TFDS_DATA_DIR" in message
    assert "pip install 'calibrated-lm[tfds]'" in message
    assert "has no set 'no_such_set'" in error_of(DataConfig("tfds:no_such_set"))


def test_a_tfds_set_that_cannot_be_downloaded_says_why(tmp_path, monkeypatch):
    import tensorflow_datasets as tfds

    def fail(builder):
        assert builder.info.file_format.value == "array_record"
        raise ConnectionError("no route to host\nand more")

    monkeypatch.setenv("TFDS_DATA_DIR", str(tmp_path))
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: name)
    monkeypatch.setattr(tfds.core.DatasetBuilder, "download_and_prepare", fail)
    assert f"tfds:lm1b could not be prepared in {tmp_path}" in error_of(DataConfig("tfds:lm1b"))


@needs_tfds
def test_tfds_split_expressions():
    train, validation = read(DataConfig("tfds:tiny_shakespeare", validation_split="validation+test"))
    assert [len(text) for text in train] == [1_003_854]
    assert [len(text) for text in validation] == [55_770, 55_770]
    sentences = Source(DataConfig("tfds:glue/sst2", train_split="train[:10]", field="sentence"))
    assert len(list(sentences.documents("train"))) == 10


@needs_tfds
def test_tfds_errors():
    message = error_of(DataConfig("tfds:trec"), "validation")
    assert "config.data.validation_split: tfds:trec has no split 'validation'; it has train, test" in message
    assert "no field 'text'; set config.data.field to one of idx, label, sentence" in error_of(
        DataConfig("tfds:glue/sst2")
    )
    assert "gave no documents" in error_of(DataConfig("tfds:tiny_shakespeare", train_split="train[:50%]"))
    assert "config.data.train_split" in error_of(DataConfig("tfds:trec", train_split="train["))
