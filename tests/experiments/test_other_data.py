"""A run goes on only with the data that it began with, and a refusal changes nothing."""

import dataclasses
import shutil
from pathlib import Path

import pytest

from experiments import finetune
from lm.errors import UserError
from lm.runs.work_directory import WorkDirectory
from tests.tiny import command_line, replace, run, tiny_config
from tests.tiny_tasks import CONFIG, rows_of, write_rows


def contents(folder):
    return {path: path.read_bytes() for path in Path(folder).rglob("*") if path.is_file()}


def other_labels(rows):
    return [{**row, "label": {"animal": "colour", "colour": "animal"}[row["label"]]} for row in rows]


def third_label(rows):
    return [*rows, {"text": "the oak", "label": "plant"}]


def renamed(rows):
    return [{**row, "label": row["label"].upper()} for row in rows]


CHANGES = {
    "labels swapped": ("train", other_labels, "the training data changed (24 rows, of other content)"),
    "third label": ("train", third_label, "the classes were animal, colour, and now are animal, colour, plant"),
    "labels renamed": ("train", renamed, "the classes were animal, colour, and now are ANIMAL, COLOUR"),
    "validation": ("validation", lambda rows: rows[:-1], "the validation data changed from 16 rows to 15 rows"),
}


@pytest.mark.parametrize("change", CHANGES)
def test_rows_changed_under_a_run_are_refused(change, finetuned, here, tmp_path, monkeypatch, capsys):
    workdir = shutil.copytree(finetuned("classification"), tmp_path / "runs" / "it")
    shutil.copytree("rows", tmp_path / "rows")
    monkeypatch.chdir(tmp_path)
    split, changed, message = CHANGES[change]
    write_rows(Path(f"rows/classification/{split}.jsonl"), changed(rows_of("classification", split)))
    before = contents(workdir)
    capsys.readouterr()
    arguments = (f"{CONFIG}:classification", "--workdir=runs/it")
    assert command_line(finetune.main, finetune.define_flags, *arguments) == 2
    (line,) = capsys.readouterr().err.strip().splitlines()
    assert message in line
    assert contents(workdir) == before


@pytest.mark.parametrize("part", ["corpus", pytest.param("other", marks=pytest.mark.slow)])
def test_text_changed_under_a_run_is_refused(part, tmp_path):
    config = tiny_config(tmp_path, prompts=(), steps=2)
    shutil.copytree(tmp_path / "corpus", tmp_path / "other")
    config = replace(config, data={"mixed_source": f"text:{tmp_path}/other/*.txt", "mixed_share": 0.5})
    run(config, tmp_path / "run")
    (tmp_path / part / "new.txt").write_text("the model knows")
    before = contents(tmp_path / "run")
    with pytest.raises(UserError, match=r"since it began, the (training|validation|mixed) data changed"):
        run(config, tmp_path / "run")
    assert contents(tmp_path / "run") == before


def test_nothing_is_written_before_the_checkpoint_has_been_read(tmp_path):
    config = tiny_config(tmp_path, prompts=(), steps=2)
    run(config, tmp_path / "run")
    directory = WorkDirectory(tmp_path / "run")
    for folder in directory.checkpoints.glob("*/params"):
        for path in folder.rglob("*"):
            if path.is_file():
                path.write_bytes(b"")
    kept = {path: path.read_bytes() for path in (directory.config, directory.data, directory.metrics)}
    free = dataclasses.replace(config, training=dataclasses.replace(config.training, keep_checkpoints=7))
    with pytest.raises(UserError):
        run(free, tmp_path / "run")
    assert {path: path.read_bytes() for path in kept} == kept
