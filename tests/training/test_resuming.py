"""A run goes on only from what it wrote itself, and says so in one line if it does not."""

import io
import json
import shutil

import pytest

from lm.console import Console
from lm.errors import UserError
from lm.files import with_digest
from lm.runs.config import FinetuneConfig, TrainingConfig
from lm.runs.records import read_record
from lm.runs.work_directory import WorkDirectory
from lm.training.progress import read_metrics
from tests.tiny import files_below
from tests.training.scripted import FALLING, scripted


@pytest.fixture(scope="module")
def stopped(tmp_path_factory):
    """A run of seven steps, the last checkpoint of which is after the sixth."""
    folder = tmp_path_factory.mktemp("stopped") / "run"
    scripted(folder, FALLING)
    shutil.rmtree(folder / "checkpoints" / "7")
    return folder


@pytest.fixture
def run(stopped, tmp_path):
    return shutil.copytree(stopped, tmp_path / "run")


def contents(folder):
    return {name: (folder / name).read_bytes() for name in files_below(folder) if name != "training.lock"}


def told(folder, script=FALLING, **values):
    """What a run prints."""
    file = io.StringIO()
    scripted(folder, script, console=Console(file=file, width=200), **values)
    return file.getvalue()


def test_a_second_trainer_is_refused_by_the_first_and_writes_nothing(run):
    directory, before = WorkDirectory(run), contents(run)
    with directory.locked():
        for train in (lambda: scripted(run, FALLING), lambda: directory.check(FinetuneConfig())):
            with pytest.raises(UserError, match=r"is in use: process \d+ on .* since .* trains there"):
                train()
    assert contents(run) == before
    scripted(run, FALLING)


def test_a_failed_run_leaves_the_directory_free(run):
    def fail(*_):
        raise KeyError("enough")

    with pytest.raises(KeyError):
        scripted(run, FALLING, on_evaluation=fail)
    scripted(run, FALLING)


def drop_a_line(data):
    return b"".join(data.splitlines(keepends=True)[1:])


def change_a_digit(data):
    return data.replace(b"3.0", b"4.0", 1)


def spoil_a_byte(data):
    return data[:60] + b"\xff" + data[61:]


@pytest.mark.parametrize("damage", [drop_a_line, change_a_digit, spoil_a_byte, lambda data: data[:150], lambda _: b""])
def test_changed_metrics_stop_a_resume_before_it_writes(damage, run):
    metrics = run / "metrics.jsonl"
    metrics.write_bytes(damage(metrics.read_bytes()))
    before = contents(run)
    with pytest.raises(UserError, match=r"metrics\.jsonl was changed: .* 12 that the run wrote\. Put .* or delete"):
        scripted(run, FALLING)
    assert contents(run) == before


def test_without_its_metrics_a_run_goes_on_and_says_so(run):
    (run / "metrics.jsonl").unlink()
    assert "metrics.jsonl is gone, with its 12 lines until step 6" in told(run)
    assert [line["step"] for line in read_metrics(run / "metrics.jsonl")] == [7, 7]
    assert "finished at step 7 already" in told(run)


def test_lines_after_the_checkpoint_may_be_damaged(stopped, run):
    with (run / "metrics.jsonl").open("ab") as file:
        file.write(b'{"step": \xff')
    assert "resuming at step 6" in told(run)
    assert (run / "metrics.jsonl").read_bytes() == (stopped / "metrics.jsonl").read_bytes()


def test_checkpoints_of_earlier_versions_have_no_record_of_metrics(run):
    for metadata in run.glob("checkpoints/*/progress/metadata"):
        record = read_record(metadata.parents[1])
        for name in ("metrics", "steps"):
            del record["progress"][name]
        del record["origin"], record["best"]
        metadata.write_text(json.dumps(with_digest(record)))
    assert "resuming at step 6" in told(run)


def test_lost_checkpoints_are_not_replaced_by_a_new_beginning(run):
    shutil.rmtree(run / "checkpoints")
    before = contents(run)
    with pytest.raises(UserError, match=r"goes to step 7, but there is no checkpoint in .* delete metrics\.jsonl"):
        scripted(run, FALLING)
    assert contents(run) == before
    (run / "metrics.jsonl").unlink()
    assert "resuming" not in told(run)


def test_a_run_stopped_before_its_first_checkpoint_begins_anew(stopped, run):
    shutil.rmtree(run / "checkpoints")
    assert "stopped before the first checkpoint, after step 7" in told(run, checkpoint_every=6)
    assert (run / "metrics.jsonl").read_bytes() == (stopped / "metrics.jsonl").read_bytes()


def test_a_finished_run_says_that_it_is_finished(run):
    scripted(run, FALLING)
    before = contents(run / "checkpoints")
    text = told(run)
    assert "finished at step 7 already: raise config.training.steps to go on" in text
    assert "resuming" not in text
    assert contents(run / "checkpoints") == before


def test_a_finished_run_can_be_extended(tmp_path):
    folder = tmp_path / "run"
    scripted(folder, FALLING[:4])
    text = told(folder, FALLING)
    assert "resuming at step 4" in text
    assert "to end at step 4 and now ends at 7: the cosine schedule is that of 7 steps" in text
    assert [line["step"] for line in read_metrics(folder / "metrics.jsonl")[::2]] == list(range(1, 8))
    assert "now ends at" not in told(folder, FALLING)


def test_only_more_steps_are_the_same_run(tmp_path):
    directory = WorkDirectory(tmp_path)
    config = FinetuneConfig(epochs=2, training=TrainingConfig(steps=10))
    directory.config.write_text(json.dumps({"task": {}, "epochs": 2, "training": {"steps": 10}}))
    directory.check(config)
    for epochs, steps in ((3, 10), (2, 11)):
        directory.check(FinetuneConfig(epochs=epochs, training=TrainingConfig(steps=steps)))
    for epochs, steps in ((1, 10), (0, 10), (2, 9)):
        with pytest.raises(UserError, match="another config"):
            directory.check(FinetuneConfig(epochs=epochs, training=TrainingConfig(steps=steps)))


def test_each_start_is_recorded(run):
    scripted(run, FALLING)
    starts = [json.loads(line) for line in (run / "starts.jsonl").read_text().splitlines()]
    assert [start["step"] for start in starts] == [0, 6]
    assert all({"date", "version", "commit", "jax"} <= start.keys() for start in starts)
