"""Rows without labels get what an evaluation of the same rows with labels predicts."""

import csv
import datetime
import io
import json
import sys
from decimal import Decimal

import pytest

from experiments import predict
from experiments.predict import PredictConfig, inputs_of_source
from lm.calibration.calibrators import Fitted
from lm.console import Console
from lm.data.config import ExamplesConfig
from lm.data.rows import Input
from lm.errors import UserError
from lm.tasks.supervised import Columns
from tests.tiny import command_line, files_below
from tests.tiny_tasks import rows_of, write_rows

TARGETS = {
    "classification": "label",
    "pair": "label",
    "tagging": "tags",
    "question_answering": "answers",
    "sequence_to_sequence": "target",
    "completion": "completion",
}

COLUMNS = Columns(("text", "label"))


def predict_with(workdir, *flags):
    return command_line(predict.main, predict.define_flags, f"--workdir={workdir}", *flags)


def printed(capsys):
    out, err = capsys.readouterr()
    return [json.loads(line) for line in out.splitlines()], err


def without_targets(kind, **more):
    rows = [{name: row[name] for name in row if name != TARGETS[kind]} for row in rows_of(kind, "test")]
    return [{"key": number, **row, **more} for number, row in enumerate(rows)]


@pytest.mark.parametrize(
    "kind", [pytest.param(kind, marks=[pytest.mark.slow] * (kind != "classification")) for kind in TARGETS]
)
def test_rows_without_targets_get_the_evaluation_s_predictions(kind, finetuned, here, tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(predict, "_BATCHES_AT_ONCE", 1)
    rows, workdir = without_targets(kind), finetuned(kind)
    capsys.readouterr()
    assert predict_with(workdir, f"--config.source={write_rows(tmp_path / 'rows.jsonl', rows)}") == 0
    found, err = printed(capsys)
    lines = (workdir / "predictions" / "test.jsonl").read_text(encoding="utf-8").splitlines()
    for one, row, line in zip(found, rows, lines, strict=True):
        record = json.loads(line)
        assert {name: one[name] for name in row} == row, "the row's own columns stay"
        assert one["predicted"] == record["predicted"]
        assert one["confidence"] == pytest.approx(record["confidence"], rel=1e-4)
    assert "16 predictions of checkpoint" in err
    assert "not used" not in err


def test_texts_come_from_flags_or_lines_and_go_to_csv_or_json(finetuned, here, tmp_path, capsys, monkeypatch):
    workdir, texts = finetuned("classification"), ["the one cat", "my, red"]
    capsys.readouterr()
    assert predict_with(workdir, *(f"--text={text}" for text in texts)) == 0
    by_flags, _ = printed(capsys)
    assert [one["text"] for one in by_flags] == texts
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO("\ufeffthe one cat\r\nmy, red\n".encode())))
    assert predict_with(workdir, "--output=out.csv") == 0
    assert capsys.readouterr().out == ""
    with open("out.csv", encoding="utf-8", newline="") as file:
        for cells, one in zip(csv.DictReader(file), by_flags, strict=True):
            assert (cells["text"], cells["predicted"]) == (one["text"], one["predicted"])
            assert float(cells["probabilities.animal"]) == pytest.approx(one["probabilities"]["animal"])


@pytest.mark.parametrize("suffix", ["jsonl", "csv"])
def test_columns_of_types_that_json_lacks_are_written_as_text(suffix, tmp_path):
    given = {"day": datetime.date(2024, 1, 2), "days": [datetime.date(2024, 1, 2)], "size": Decimal("1.50")}
    predict._write(iter([given]), [Input({}, given)], tmp_path / f"out.{suffix}")
    written = (tmp_path / f"out.{suffix}").read_text(encoding="utf-8")
    assert written.count("2024-01-02") == 2
    assert "1.50" in written


def test_labels_are_ignored_aloud_and_a_calibrator_is_applied(finetuned, here, tmp_path, capsys):
    parameters = {"temperature": 3.0, "converged": True, "at_bound": False}
    Fitted("temperature", parameters, 2, 41, 1.0, 0.9, True, False).save(tmp_path / "soft.json")
    source = write_rows(tmp_path / "rows.jsonl", [{"text": "the one cat", "label": "no class of the run"}])
    assert (
        predict_with(finetuned("classification"), f"--config.source={source}", f"--calibrator={tmp_path}/soft.json")
        == 0
    )
    (one,), err = printed(capsys)
    assert "the column 'label' is not used" in err
    assert one["confidence"] == max(one["calibrated_probabilities"].values()) < max(one["probabilities"].values())
    assert one["label"] == "no class of the run"


@pytest.mark.parametrize(
    ("rows", "flags", "message"),
    [
        ([{"text": "a", "predicted": "x"}], (), "the rows have a column 'predicted', as predictions do: rename it"),
        ([{"sentence": "a"}], (), "has no column 'text'"),
        ([{"text": "a " * 99}], (), "more than config.model.max_length=32"),
        ([{"text": "a"}], ("--text=b",), "--text and --config.source are two sources"),
        (None, ("--text=b", "--config.columns=text=review"), "config.columns has no effect without config.source"),
        ([{"text": "a"}], ("--output=out.txt",), "must end in .jsonl or .csv"),
        ([{"text": "a"}], ("--output=nowhere/out.csv",), "there is no such folder"),
        (None, ("--text=",), "text 1 is empty"),
    ],
)
def test_a_mistake_is_one_line_and_writes_nothing(rows, flags, message, finetuned, here, tmp_path, capsys):
    workdir = finetuned("classification")
    source = () if rows is None else (f"--config.source={write_rows(tmp_path / 'rows.jsonl', rows)}",)
    before = files_below(tmp_path)
    capsys.readouterr()
    output = () if any(flag.startswith("--output") for flag in flags) else (f"--output={tmp_path}/out.jsonl",)
    assert predict_with(workdir, *source, *flags, *output) == 2
    out, err = capsys.readouterr()
    assert out == ""
    assert message in err
    assert files_below(tmp_path) == before


@pytest.mark.parametrize(
    ("content", "values"),
    [
        ("good, or bad", {"header": ("text",), "delimiter": "|"}),
        ('text,stars\n"good, or bad",5\n', {"header": (), "delimiter": ","}),
        ("stars\ttext\n5\tgood, or bad\n", {"header": (), "delimiter": "tab", "quoting": "none"}),
        ("5;good, or bad", {}),
    ],
)
def test_a_file_may_be_written_in_another_way_than_the_run_s_own(content, values, tmp_path):
    own = ExamplesConfig(train="csv:own.csv", delimiter=";", header=("label", "text"))
    (tmp_path / "new.csv").write_text(content, encoding="utf-8")
    config = PredictConfig(source=f"csv:{tmp_path}/new.csv", **values)
    (one,) = inputs_of_source(config, own, COLUMNS, Console(quiet=True))
    assert one.row["text"] == "good, or bad"


def test_what_a_file_lacks_is_named_with_the_setting_for_it(tmp_path):
    own = ExamplesConfig(train="csv:own.csv", header=("label", "text"))
    (tmp_path / "new.csv").write_text("good\n", encoding="utf-8")
    with pytest.raises(
        UserError, match=r"has 1 values, the header 2: .* name the columns of this file in config.header"
    ):
        inputs_of_source(PredictConfig(source=f"csv:{tmp_path}/new.csv"), own, COLUMNS, Console(quiet=True))


def test_texts_of_another_language_are_named(finetuned, here, capsys):
    assert predict_with(finetuned("classification"), "--text=猫 睡觉 了") == 0
    assert "(!) 100% of the tokens are unknown to the run's tokenizer" in capsys.readouterr().err


def test_two_texts_per_row_need_a_file(finetuned, here, capsys):
    assert predict_with(finetuned("question_answering"), "--text=who") == 2
    assert "this run reads context and question: name a file that has these columns" in capsys.readouterr().err
