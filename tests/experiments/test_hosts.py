"""Several hosts that train and evaluate one model: real processes, connected over the loopback interface.

Their runs are those of one process, written once, and they end together however one of them ends.
"""

import json
import resource
import signal
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from experiments import sweep
from experiments.pretrain import define_flags, main
from lm.calibration.predictions import Predictions
from tests.processes import ROOT, free_port, together, write_config
from tests.tiny import command_line, files_below
from tests.tiny_tasks import CONFIG

STEPS = 12
FSDP = "--config.partitioning.fsdp=2"
NO_PRODUCTS = "--config.samples.prompts=()", "--config.predictions.tokens=0"


def losses(workdir: Path) -> dict[tuple[int, str], float]:
    """Each logged value but those of rates, by step and name; a step that is logged twice fails."""
    found: dict[tuple[int, str], float] = {}
    for line in map(json.loads, (workdir / "metrics.jsonl").read_text().splitlines()):
        for name, value in line.items():
            assert (line["step"], name) not in found or name == "step"
            found[line["step"], name] = value
    return found


def assert_same_losses(workdir: Path, other: Path) -> None:
    one, two = losses(workdir), losses(other)
    assert one.keys() == two.keys()
    names = list(one)
    np.testing.assert_allclose([one[name] for name in names], [two[name] for name in names], rtol=2e-5, atol=1e-6)
    of_loss = [name for name in names if name[1].endswith("/loss")]
    assert of_loss
    np.testing.assert_allclose([one[name] for name in of_loss], [two[name] for name in of_loss], atol=1e-6 * 6, rtol=0)


def reached(workdir: Path, step: int):
    return lambda: (workdir / "checkpoints" / str(step)).exists()


def done(folder: Path, count: int, *arguments: str, job: str = "experiments.pretrain", cwd: Path = ROOT):
    with together(folder, count, job, *arguments, cwd=cwd) as started:
        ended = started.wait()
    assert [one.status for one in ended] == [0] * count, [one.errors[-2000:] for one in ended]
    return ended


@pytest.fixture(scope="module")
def config(tmp_path_factory) -> str:
    return write_config(tmp_path_factory.mktemp("hosts"), STEPS)


@pytest.fixture(scope="module")
def alone(config, tmp_path_factory) -> Path:
    """The run of one process."""
    folder = tmp_path_factory.mktemp("alone")
    done(folder, 1, config, f"--workdir={folder / 'run'}")
    return folder / "run"


@pytest.mark.slow
@pytest.mark.parametrize(("count", "mesh"), [(2, [FSDP]), (4, [FSDP]), (2, ["--config.partitioning.tensor=2"])])
def test_hosts_train_what_one_process_trains_and_write_it_once(config, alone, tmp_path, count, mesh):
    ended = done(tmp_path / "printed", count, config, *mesh, f"--workdir={tmp_path / 'run'}")
    assert_same_losses(tmp_path / "run", alone)
    kinds = [{path.partition("checkpoints")[0] for path in files_below(run)} for run in (tmp_path / "run", alone)]
    once = [{path for path in found if not path.startswith("tensorboard")} for found in kinds]
    assert once[0] == once[1]
    assert len(kinds[0]) == len(kinds[1])  # TensorBoard's names hold the time
    assert len((tmp_path / "run" / "starts.jsonl").read_text().splitlines()) == 1
    assert (tmp_path / "run" / "samples.txt").read_text() == (alone / "samples.txt").read_text()
    found, expected = (Predictions.load(run / "predictions" / "validation.npz") for run in (tmp_path / "run", alone))
    np.testing.assert_allclose(found.logits, expected.logits, atol=1e-4)
    assert "everything is in" in ended[0].errors
    assert not any(one.errors for one in ended[1:])


@pytest.mark.slow
def test_a_signal_to_one_stops_all_with_a_checkpoint_and_one_process_goes_on(config, alone, tmp_path):
    workdir = tmp_path / "run"
    job = "experiments.pretrain", config, FSDP, *NO_PRODUCTS, f"--workdir={workdir}"
    with together(tmp_path / "printed", 2, *job) as started:
        started.until(lambda: "step 1/" in started.read(0)[1])
        started.processes[1].send_signal(signal.SIGTERM)
        ended = started.wait()
    assert [one.status for one in ended] == [128 + signal.SIGTERM] * 2
    (saved,) = [line for line in ended[0].errors.splitlines() if line.startswith("SIGTERM: saved at step ")]
    step = int(saved.split()[4].rstrip(";"))
    assert step < STEPS
    assert reached(workdir, step)()
    done(tmp_path / "resumed", 1, config, *NO_PRODUCTS, f"--workdir={workdir}")
    assert_same_losses(workdir, alone)


@pytest.mark.slow
def test_what_one_process_began_two_go_on_with(config, alone, tmp_path):
    workdir = tmp_path / "run"
    job = "experiments.pretrain", config, *NO_PRODUCTS, f"--workdir={workdir}"
    with together(tmp_path / "printed", 1, *job) as started:
        started.until(reached(workdir, 4))
        started.processes[0].send_signal(signal.SIGTERM)
        (ended,) = started.wait()
    assert ended.status == 128 + signal.SIGTERM
    done(tmp_path / "resumed", 2, config, FSDP, *NO_PRODUCTS, f"--workdir={workdir}")
    assert_same_losses(workdir, alone)


@pytest.mark.slow
@pytest.mark.parametrize("victim", [0, 1])
def test_when_one_is_killed_the_others_end_with_a_line_and_the_checkpoints_remain(config, alone, tmp_path, victim):
    workdir = tmp_path / "run"
    job = "experiments.pretrain", config, FSDP, f"--workdir={workdir}", "--config.training.steps=5000"
    with together(tmp_path / "printed", 2, *job) as started:
        started.until(reached(workdir, 4))
        started.processes[victim].kill()
        ended = started.wait()
    other = ended[1 - victim]
    assert other.status == 1
    assert other.seconds < 10 + 20
    assert len(other.lines) == 1
    assert "another process was killed or cannot be reached any more" in other.lines[0]
    assert other.errors.splitlines()[-1] == other.lines[0]
    assert reached(workdir, 4)()


@pytest.mark.slow
@pytest.mark.parametrize("victim", [0, 1])
def test_the_full_disk_of_one_ends_all_with_its_line(config, alone, tmp_path, victim):  # `alone` has cached the tokens
    def limit(number: int) -> None:
        if number == victim:
            resource.setrlimit(resource.RLIMIT_FSIZE, (6000, 6000))

    job = "experiments.pretrain", config, FSDP, f"--workdir={tmp_path / 'run'}"
    with together(tmp_path / "printed", 2, *job, before=limit) as started:
        ended = started.wait()
    assert [one.status for one in ended] == [1, 1]
    assert all(len(one.lines) == 1 and "cannot be written: File too large" in one.lines[0] for one in ended)
    assert f"error: process {victim}: " in ended[1 - victim].lines[0]


@pytest.mark.slow
def test_hosts_with_other_configs_end_with_a_line_that_names_the_key(config, tmp_path):
    def own(number: int) -> list[str]:
        return [f"--config.training.batch_size={8 * (1 + number)}"]

    job = "experiments.pretrain", config, f"--workdir={tmp_path / 'run'}"
    with together(tmp_path / "printed", 2, *job, own=own) as started:
        ended = started.wait()
    assert [one.status for one in ended] == [2, 2]
    for one in ended:
        assert len(one.lines) == 1
        assert "config.training.batch_size is 16 on process 1 and 8 on process 0" in one.lines[0]
    assert not (tmp_path / "run").exists()


@pytest.mark.slow
def test_processes_that_do_not_find_each_other_end_with_a_line(config, tmp_path):
    job = "experiments.pretrain", config, f"--workdir={tmp_path / 'run'}", "--distributed", "--processes=2"
    port = free_port()
    nobody, twice = ([f"--coordinator=127.0.0.1:{port}", f"--process_id={number}"] for number in (1, 0))
    with together(tmp_path / "nobody", 1, *job, *nobody, join=3) as started:
        (ended,) = started.wait()
    assert (ended.status, len(ended.lines)) == (2, 1)
    assert f"--coordinator=127.0.0.1:{port} could not be reached in 3 s" in ended.lines[0]
    twice = [together(tmp_path / name, 1, *job, *twice, join=15) for name in ("one", "other")]
    with twice[0] as one, twice[1] as other:
        ended = one.wait() + other.wait()
    for one in ended:
        assert (one.status != 0, len(one.lines)) == (True, 1), one.errors
        assert "--process_id" in one.lines[0]


@pytest.mark.slow
def test_hosts_fine_tune_and_evaluate_as_one_process_does(rows_folder, tmp_path):
    for name, count in (("alone", 1), ("two", 2)):
        workdir = tmp_path / name / "run"
        flags = f"{CONFIG}:classification", "--config.model.dropout=0.0", f"--workdir={workdir}"
        done(tmp_path / name, count, *flags, job="experiments.finetune", cwd=rows_folder)
        for path in (workdir / "predictions").iterdir():
            path.unlink()
        for split in ("validation", "test"):
            flags = f"--workdir={workdir}", f"--config.split={split}"
            done(tmp_path / name, count, *flags, job="experiments.evaluate", cwd=rows_folder)
    assert_same_losses(tmp_path / "two" / "run", tmp_path / "alone" / "run")
    for split in ("validation", "test"):
        found, expected = (
            Predictions.load(tmp_path / name / "run" / "predictions" / f"{split}.npz") for name in ("two", "alone")
        )
        np.testing.assert_array_equal(found.labels_N, expected.labels_N)
        np.testing.assert_allclose(found.logits, expected.logits, atol=1e-5)


QUICK = [
    (["--coordinator=a:1"], "have no effect without --distributed"),
    (["--distributed", "--coordinator=a:1"], "add --processes and --process_id"),
    (["--distributed", "--coordinator=a", "--processes=2", "--process_id=0"], "must be HOST:PORT"),
    (["--distributed", "--coordinator=a:1", "--processes=2", "--process_id=2"], "--process_id=2 must be from 0"),
    (["--distributed", "--coordinator=a:1", "--processes=0", "--process_id=0"], "--processes=0"),
]


@pytest.mark.parametrize(("flags", "line"), QUICK)
def test_flags_that_say_too_little_are_refused(config, tmp_path, capsys, flags, line):
    assert command_line(main, define_flags, config, f"--workdir={tmp_path}", *flags) == 2
    assert line in capsys.readouterr().err


@pytest.mark.slow
def test_where_no_cluster_is_found_the_flags_are_named(config, tmp_path):
    # In a process of its own: JAX looks for a cluster only before its first computation.
    command = [sys.executable, "-m", "experiments.pretrain", config, f"--workdir={tmp_path}", "--distributed"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 2
    assert done.stderr.startswith("error: --distributed finds no SLURM, Kubernetes, MPI or Cloud TPU job here: add ")


def test_a_job_of_one_process_says_that_it_is(capsys):
    assert command_line(sweep.main, sweep.define_flags, "--distributed") == 2
    assert "--distributed: this job runs in one process" in capsys.readouterr().err
