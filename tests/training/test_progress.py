"""Metrics files can be cut off anywhere and still be read and continued."""

import errno
import json
import math
from pathlib import Path

import pytest

from lm.errors import TrainingError, UserError
from lm.runs.work_directory import WorkDirectory
from lm.training.progress import MetricsWriter, drop_lines_after, read_metrics


def test_lines_after_a_step_go_and_so_does_a_line_that_was_cut_off(tmp_path):
    path = tmp_path / "metrics.jsonl"
    whole = "".join(json.dumps({"step": step, "x": step / 3}) + "\n" for step in range(1, 6))
    for cut in range(len(whole) + 1):
        path.write_text(whole[:cut])
        drop_lines_after(path, 3)
        kept = read_metrics(path)
        complete = whole[:cut].count("\n")
        assert [line["step"] for line in kept] == list(range(1, min(complete, 3) + 1))
        assert all(line["x"] == line["step"] / 3 for line in kept)


def test_a_writer_resumes_after_an_interrupted_run(tmp_path):
    directory = WorkDirectory(tmp_path)
    writer = MetricsWriter(directory, 0)
    for step in (1, 2, 3):
        writer.metrics(step, {"train/loss": 1 / step})
        writer.speed(step, {"speed/tokens_per_second": step})
    writer.close()
    writer = MetricsWriter(directory, 2)
    writer.metrics(3, {"train/loss": 1 / 3})
    writer.close()
    assert [line["step"] for line in read_metrics(directory.metrics)] == [1, 2, 3]
    assert [line["step"] for line in read_metrics(directory.speed)] == [1, 2]
    assert any(directory.tensorboard.iterdir())


def test_what_is_not_finite_is_null_as_json_has_it(tmp_path):
    writer = MetricsWriter(WorkDirectory(tmp_path), 0)
    writer.metrics(1, {"validation/loss_stderr": math.nan})
    writer.close()
    assert (tmp_path / "metrics.jsonl").read_text() == '{"step": 1, "validation/loss_stderr": null}\n'


def test_a_full_disk_is_told_and_nothing_waits_for_it(tmp_path, caplog):
    directory = WorkDirectory(tmp_path)
    writer = MetricsWriter(directory, 0)
    events = writer._tensorboard.file_writer.event_writer._ev_writer._writer

    def fail(*_):
        raise OSError(errno.ENOSPC, "No space left on device")

    events.write_event = fail
    for step in range(200):  # more than the queue holds
        writer.metrics(step, {"loss": 1.0})
    writer.close()
    assert caplog.text.count("tensorboard cannot be written (No space left on device): going on without it") == 1
    assert len(read_metrics(directory.metrics)) == 200


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="needs a full device")
def test_metrics_that_cannot_be_written_are_an_error(tmp_path):
    directory = WorkDirectory(tmp_path)
    writer = MetricsWriter(directory, 0)
    writer._metrics = open("/dev/full", "a")  # noqa: SIM115
    writer.metrics(1, {"loss": 1.0})
    with pytest.raises(TrainingError, match="/dev/full cannot be written: No space left on device"):
        writer.flush()


@pytest.mark.parametrize("line", [b"{", b"[1]", b"5", b'{"step": "1"}', b'{"step": null}', b"\xff", b"", b"[" * 10_000])
def test_a_damaged_line_is_named(line, tmp_path):
    path = tmp_path / "metrics.jsonl"
    path.write_bytes(b'{"step": 1}\n' + line + b'\n{"step": 3}\n')
    with pytest.raises(UserError, match=r"metrics\.jsonl: line 2 is damaged"):
        read_metrics(path)
    with pytest.raises(UserError, match="cannot read"):
        read_metrics(tmp_path)
