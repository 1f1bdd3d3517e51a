"""The record of a run's data: what changes it, and whose it is."""

import dataclasses
import os
import shutil

import numpy as np
import pytest

from lm.data.config import DataConfig
from lm.data.store import TokenStore
from lm.errors import UserError
from lm.files import read_json, write_json
from lm.runs.config import PretrainConfig
from lm.runs.data_record import Fingerprint, check_data, check_own, is_own, recorded_data, write_data_record
from lm.runs.work_directory import WorkDirectory

ROWS = [{"text": "the cat", "label": "animal", "place": "a:1"}, {"text": "red", "label": "colour", "place": "a:2"}]
CHANGED = {
    "label": [{**ROWS[0], "label": "colour"}, ROWS[1]],
    "text": [{**ROWS[0], "text": "the cat "}, ROWS[1]],
    "order": ROWS[::-1],
    "missing row": ROWS[:1],
    "moved words": [{"text": "the", "label": "cat animal"}, ROWS[1]],
    "other column": [{"pair": "the cat", "label": "animal"}, ROWS[1]],
}


@pytest.fixture
def directory(tmp_path, monkeypatch):
    monkeypatch.setenv("LM_CACHE_DIR", str(tmp_path / "cache"))
    made = WorkDirectory(tmp_path / "run")
    made.path.mkdir()
    write_json(made.config, dataclasses.asdict(CONFIG))
    return made


CONFIG = PretrainConfig(data=DataConfig(source="text:/etc/*.conf", cache_dir="/elsewhere"))


@pytest.mark.parametrize("change", CHANGED)
def test_every_change_of_rows_is_seen(change):
    assert Fingerprint.of_rows(CHANGED[change]) != Fingerprint.of_rows(ROWS)


def test_where_rows_are_stored_does_not_matter():
    moved = [{**row, "place": f"b:{number}"} for number, row in enumerate(ROWS)]
    assert Fingerprint.of_rows(moved) == Fingerprint.of_rows(ROWS)


def test_every_change_of_text_is_seen():
    def of(tokens, starts, dtype=np.uint16):
        return Fingerprint.of_text(TokenStore(np.array(tokens, dtype), np.array(starts, np.int64), 9))

    known = of([0, 5, 0, 7, 0], [0, 2])
    assert known == of([0, 5, 0, 7, 0], [0, 2])
    for other in (([0, 5, 0, 8, 0], [0, 2]), ([0, 5, 0, 7, 0], [0, 3]), ([0, 7, 0, 5, 0], [0, 2])):
        assert of(*other) != known


def test_training_goes_on_with_the_same_data_alone(directory):
    found = {"training": Fingerprint.of_rows(ROWS), "validation": Fingerprint.of_rows(ROWS[:1])}
    (note,) = check_data(directory, found)
    assert "does not say on what data it began" in note
    write_data_record(directory, CONFIG, found)
    assert recorded_data(directory) == found
    assert check_data(directory, found) == []
    for split in found:
        with pytest.raises(UserError, match=f"since it began, the {split} data changed .*another --workdir"):
            check_data(directory, {**found, split: Fingerprint.of_rows(CHANGED["label"])})
    with pytest.raises(UserError, match="the validation data changed from 1 row to none"):
        check_data(directory, {"training": found["training"]})


def test_other_test_data_is_said(directory):
    found = {"training": Fingerprint.of_rows(ROWS), "test": Fingerprint.of_rows(ROWS[:1])}
    write_data_record(directory, CONFIG, found)
    (note,) = check_data(directory, {**found, "test": Fingerprint.of_rows(ROWS[1:])})
    assert note == "the test data changed (1 row, of other content): the results on it are renewed"


def test_the_classes_of_a_run_without_a_record_are_compared(directory):
    write_json(directory.classes, ["animal", "colour"])
    with pytest.raises(UserError, match="the classes were animal, colour, and now are animal, plant"):
        check_data(directory, {}, ["animal", "plant"])


def test_only_this_users_runs_with_these_settings_are_their_own(directory, tmp_path, monkeypatch):
    assert not is_own(directory, CONFIG)
    with pytest.raises(UserError, match=r"has no data.json to show that you trained it .* if you want that, add this"):
        check_own(directory, CONFIG, ["source"], "add this")
    write_data_record(directory, CONFIG, {})
    assert is_own(directory, CONFIG)
    check_own(directory, CONFIG, ["source"], "")
    moved = WorkDirectory(shutil.copytree(directory.path, tmp_path / "moved"))
    assert is_own(moved, CONFIG)
    for change in ({"source": "text:/home/*"}, {"cache_dir": "/tmp"}):
        other = dataclasses.replace(CONFIG, data=dataclasses.replace(CONFIG.data, **change))
        assert not is_own(directory, other)
    monkeypatch.setenv("LM_CACHE_DIR", str(tmp_path / "somebody_else"))
    assert not is_own(directory, CONFIG)
    with pytest.raises(UserError) as caught:
        check_own(directory, CONFIG, ["source", "validation_source"], "add --config.trust=True")
    for part in ("was not trained by you", "read text:/etc/*.conf and write to /elsewhere", "add --config.trust=True"):
        assert part in str(caught.value)


def test_the_key_is_secret_and_no_key_means_no_own_runs(directory, tmp_path, monkeypatch):
    write_data_record(directory, CONFIG, {})
    assert os.stat(tmp_path / "cache" / "signing_key").st_mode & 0o077 == 0
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("LM_CACHE_DIR", str(tmp_path / "file" / "below"))
    write_data_record(directory, CONFIG, {})
    assert read_json(directory.data)["signature"] is None
    assert not is_own(directory, CONFIG)


@pytest.mark.parametrize("content", ["[1]", '{"splits": 5}', '{"splits": {"test": {"rows": 3}}}', "nothing"])
def test_a_damaged_record_is_one_line(directory, content):
    directory.data.write_text(content)
    with pytest.raises(UserError, match=r"data\.json"):
        recorded_data(directory)
