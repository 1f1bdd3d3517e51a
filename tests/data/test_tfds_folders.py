"""Prepared sets of tensorflow-datasets from someone else: nothing that they name is imported, damage is one line."""

import json
import os
import shutil
import sys
from pathlib import Path

import pytest

from lm.data.config import DataConfig
from lm.data.rows import read_rows
from lm.data.sources import Source
from lm.errors import UserError

pytestmark = pytest.mark.skipif("TFDS_DATA_DIR" not in os.environ, reason="TFDS_DATA_DIR is not set")
COLUMNS = {"text": "text", "label": "label-coarse"}


@pytest.fixture
def folder(tmp_path, monkeypatch):
    """A copy of a set under another name, which no code describes."""
    copy = tmp_path / "mine"
    shutil.copytree(Path(os.environ["TFDS_DATA_DIR"]) / "trec", copy)
    monkeypatch.setenv("TFDS_DATA_DIR", str(tmp_path))
    (file,) = copy.glob("*/features.json")
    return file.parent


def error_of(source="tfds:mine:test[:3]"):
    with pytest.raises(UserError) as caught:
        read_rows(source, COLUMNS, "config.data.train")
    assert "\n" not in str(caught.value)
    return str(caught.value)


def test_a_folder_alone_is_a_set(folder):
    assert len(read_rows("tfds:mine:test[:3]", COLUMNS, "config.data.train")) == 3


@pytest.mark.parametrize("legacy", [False, True])
def test_no_module_that_a_folder_names_is_imported(folder, tmp_path, monkeypatch, legacy):
    (tmp_path / "intruder.py").write_text("raise SystemExit('imported')")
    monkeypatch.syspath_prepend(tmp_path)
    features = json.loads((folder / "features.json").read_text())
    if legacy:
        features = {"type": "intruder.Feature", "content": {}}
    else:
        features["featuresDict"]["features"]["text"]["pythonClassName"] = "intruder.Feature"
    (folder / "features.json").write_text(json.dumps(features))
    assert "names 'intruder.Feature', which is code from elsewhere" in error_of()
    with pytest.raises(UserError, match="code from elsewhere"):
        list(Source(DataConfig("tfds:mine", validation_split="test")).documents("train"))
    assert "intruder" not in sys.modules


@pytest.mark.parametrize("name", ["features.json", "dataset_info.json", "trec-test.array_record-00000-of-00001"])
def test_damaged_folders_are_named(folder, name):
    content = (folder / name).read_bytes()
    third = len(content) // 3
    (folder / name).write_bytes(content[:third] + b"7" * 200 + content[third + 200 : 2 * third])
    assert "tfds:mine" in error_of("tfds:mine:test")


def test_other_collections_are_not_asked():
    with pytest.raises(UserError, match="sets of other collections"):
        Source(DataConfig("tfds:huggingface:glue"))
