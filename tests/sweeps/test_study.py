"""A study shared by processes that may die at any time; runs are computed by a formula."""

import dataclasses
import json
import math
import signal
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from xml.etree import ElementTree

import pytest

from lm.errors import TrainingError, UserError
from lm.locks import ProcessLock
from lm.sweeps.report import as_csv, command, conclusion, rows_of, save_picture
from lm.sweeps.search_space import Parameter
from lm.sweeps.study import PointFailed, Repetition, Search, Study, propose, work
from tests.sweeps.toy_study import BAYES, GRID, ONCE, begun, loss, quiet, train

ROOT = Path(__file__).parents[2]


def results(study: Study) -> list[tuple]:
    return [(trial.number, trial.params, trial.state.name, trial.value) for trial in study.trials]


def start_worker(directory: Path, search: str, seconds: float, *url: str) -> subprocess.Popen:
    arguments = [sys.executable, "-m", "tests.sweeps.toy_study", str(directory), search, str(seconds), *url]
    return subprocess.Popen(arguments, cwd=ROOT)


def wait_for(condition, seconds: float = 60) -> None:
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, "timed out"
        time.sleep(0.02)


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory):
    study = Study(tmp_path_factory.mktemp("undisturbed"), BAYES)
    work(study, ONCE, train, quiet)
    return study


def test_a_grid_is_tried_exactly(tmp_path):
    study = Study(tmp_path, GRID)
    work(study, ONCE, train, quiet)
    tried = [tuple(trial.params.values()) for trial in study.trials]
    assert len(tried) == 6
    assert set(tried) == {(a, b) for a in (1, 2, 3) for b in "xy"}
    assert rows_of(study)[0].values == {"a": 1, "b": "x"}


def test_bayes_samples_near_good_points(tmp_path):
    study = Study(tmp_path, dataclasses.replace(BAYES, trials=40))
    work(study, ONCE, train, quiet)
    losses = [trial.value for trial in study.trials]
    assert sum(losses[30:]) < 0.5 * sum(losses[:10])  # the first ten are random


@pytest.mark.parametrize("method", ["bayes", "random"])
def test_points_are_a_function_of_the_seed(method, undisturbed):
    search = dataclasses.replace(BAYES, method=method)
    assert propose(search, undisturbed.trials) == propose(search, undisturbed.trials)
    other = dataclasses.replace(search, seed=1)
    assert propose(search, undisturbed.trials) != propose(other, undisturbed.trials)


@pytest.mark.parametrize("method", ["bayes", "random"])
def test_a_small_space_is_exhausted_without_repeats(method, tmp_path):
    space = (Parameter("a", low=1, high=3), Parameter("b", ("x", "y")))
    study = Study(tmp_path, Search(space, method, 50, "loss", minimize=True))
    work(study, ONCE, train, quiet)
    assert len({tuple(trial.params.values()) for trial in study.trials}) == len(study.trials) == 6


def test_a_sweep_can_be_resumed_and_extended(tmp_path, undisturbed):
    for trials in (5, 5, 14):
        work(Study(tmp_path, dataclasses.replace(BAYES, trials=trials)), ONCE, train, quiet)
    assert results(Study(tmp_path, BAYES)) == results(undisturbed)


def test_an_interrupted_trial_is_taken_over_with_its_results(tmp_path, undisturbed):
    repetitions, calls = [Repetition(0), Repetition(1)], []

    def interrupted(trial, repetition, _):
        calls.append((trial.number, repetition.name, trial.taken_over))
        if len(calls) in (2, 8):
            raise KeyboardInterrupt
        return train(trial, repetition, _)

    for _ in range(2):
        with pytest.raises(KeyboardInterrupt):
            work(Study(tmp_path, BAYES), repetitions, interrupted, quiet)
    study = Study(tmp_path, BAYES)
    work(study, repetitions, interrupted, quiet)
    assert len(calls) == 2 * 14 + 2
    assert calls[1:3] == [(0, "seed1", False), (0, "seed1", True)]  # its first run is not repeated
    assert [trial.params for trial in study.trials] == [trial.params for trial in undisturbed.trials]


def test_a_killed_process_loses_nothing(tmp_path, undisturbed):
    for count in (2, 5):
        worker = start_worker(tmp_path, "bayes", 0.2)
        wait_for(lambda count=count: len(begun(tmp_path)) >= count)
        worker.send_signal(signal.SIGKILL)
        worker.wait()
    study = Study(tmp_path, BAYES)
    assert [trial.state.name for trial in study.trials].count("RUNNING") <= 1
    work(study, ONCE, train, quiet)
    assert results(study) == results(undisturbed)


def test_two_processes_share_the_work(tmp_path):
    workers = [start_worker(tmp_path, "grid", 0.5) for _ in range(2)]
    assert [worker.wait(timeout=100) for worker in workers] == [0, 0]
    assert sorted(begun(tmp_path)) == list(range(6))
    assert {row.state for row in rows_of(Study(tmp_path, GRID))} == {"complete"}


def test_a_live_worker_keeps_its_trial(tmp_path):
    study = Study(tmp_path, GRID)
    with study.take() as one, Study(tmp_path, GRID).take() as other:
        assert (one.number, other.number) == (0, 1)
    assert study.take().number == 0  # closed unfinished


def test_an_incomplete_last_line_of_the_journal_is_repaired(tmp_path):
    work(Study(tmp_path, dataclasses.replace(BAYES, trials=2)), ONCE, train, quiet)
    journal = tmp_path / "study.journal"
    with journal.open("ab") as file:
        file.write(b'{"op_code":5,"wor')
    study = Study(tmp_path, dataclasses.replace(BAYES, trials=4))
    work(study, ONCE, train, quiet)
    assert len(study.trials) == 4
    journal.write_bytes(b"no JSON\n" + journal.read_bytes())
    with pytest.raises(UserError, match=r"study\.journal is damaged"):
        Study(tmp_path, BAYES)


def test_the_sweep_continues_after_a_failed_point(tmp_path):
    def failing(trial, repetition, _):
        if trial.values["b"] == "y":
            raise TrainingError("the loss is nan\nat step 3") if trial.values["a"] == 1 else PointFailed("no memory")
        return {"loss": math.nan} if trial.values["a"] == 3 else {"loss": 1.0, "accuracy": math.nan}

    study = Study(tmp_path, GRID)
    work(study, ONCE, failing, quiet)
    rows = rows_of(study)
    assert [row.state for row in rows] == ["complete"] * 2 + ["failed"] * 4
    assert [row.message for row in rows[2:]] == [
        "the loss is nan at step 3",
        "no memory",
        "loss is nan",
        "no memory",
    ]
    json.dumps([dataclasses.asdict(row) for row in rows], allow_nan=False)


def test_the_sampler_avoids_failures(tmp_path):
    def failing(trial, repetition, watch):
        if trial.values["rate"] > 1e-2:
            raise PointFailed("diverged")
        return train(trial, repetition, watch)

    study = Study(tmp_path, dataclasses.replace(BAYES, method="random", trials=16))
    work(study, ONCE, failing, quiet)
    assert sum(trial.state.name == "COMPLETE" for trial in study.trials) < 10  # too few to learn from by themselves
    rates = [propose(dataclasses.replace(BAYES, seed=seed), study.trials)["rate"] for seed in range(20)]
    assert sum(rate > 1e-2 for rate in rates) < 5


def test_no_point_is_taken_twice_at_once(tmp_path):
    space = (Parameter("a", low=1, high=8), Parameter("b", ("x", "y")))
    search = Search(space, "random", 16, "loss", minimize=True)
    with ThreadPoolExecutor(4) as pool:
        for future in [pool.submit(lambda: work(Study(tmp_path, search), ONCE, train, quiet)) for _ in range(4)]:
            future.result()
    points = [tuple(trial.params.values()) for trial in Study(tmp_path, search).trials]
    assert len(set(points)) == len(points) == 16


def test_a_trial_that_ends_while_another_process_looks_is_not_tried_again(tmp_path, monkeypatch):
    one, other = Study(tmp_path, GRID), Study(tmp_path, GRID)
    first, acquire = one.take(), ProcessLock.acquire

    def acquire_late(lock):
        monkeypatch.setattr(ProcessLock, "acquire", acquire)
        with first:
            first.complete(1.0)
        return acquire(lock)

    monkeypatch.setattr(ProcessLock, "acquire", acquire_late)
    with other.take() as second:
        assert (first.number, second.number) == (0, 1)
        assert not second.taken_over


@pytest.mark.parametrize("pruning", ["median", "hyperband"])
def test_bad_points_are_pruned_after_their_first_evaluations(pruning, tmp_path):
    steps = []

    def watched(trial, repetition, on_evaluation):
        assert (on_evaluation is None) == (repetition.seed > 0)
        if on_evaluation is not None:
            for step in range(100, 1000, 100):
                steps.append(trial.number)
                on_evaluation(step, loss(trial.values) + 100 / step)
        return train(trial, repetition, None)

    search = dataclasses.replace(BAYES, method="random", trials=20, pruning=pruning, evaluations=9)
    study = Study(tmp_path, search)
    work(study, [Repetition(0), Repetition(1)], watched, quiet)
    rows = rows_of(study)
    pruned = [row for row in rows if row.state == "pruned"]
    assert 2 <= len(pruned) < 18
    assert all(not row.runs and row.mean == row.evaluations[-1] for row in pruned)
    assert all(steps.count(row.trial - 1) == len(row.evaluations) for row in rows)
    best = min((trial.params for trial in study.trials), key=loss)
    assert rows[0].values == best  # what was pruned was worse


def assert_resumed_evaluations_count_once(study):
    with study.take() as trial:
        trial.evaluated(100, 3.0)
    with study.take() as trial:
        for step, value in ((100, 3.0), (200, 2.0)):
            trial.evaluated(step, value)
        trial.complete(2.0)
    assert rows_of(study)[0].evaluations == (3.0, 2.0)


def test_an_evaluation_reported_twice_counts_once(tmp_path):
    study = Study(tmp_path, dataclasses.replace(GRID, pruning="median"))
    assert_resumed_evaluations_count_once(study)


def test_runs_of_a_point_are_averaged(tmp_path):
    study = Study(tmp_path, GRID)
    work(study, [Repetition(seed, fold) for seed in (0, 3) for fold in (0, 1)], train, quiet)
    row = rows_of(study)[0]
    assert set(row.runs) == {"seed0-fold0", "seed0-fold1", "seed3-fold0", "seed3-fold1"}
    assert row.mean == 1 + 1.5
    assert row.standard_error == pytest.approx(math.sqrt(4 * 1.5**2 / 3) / 2)
    assert "2.5000 ± 0.8660; 1 more within one standard error" in conclusion(rows_of(study), study)


def test_greater_may_be_better(tmp_path):
    study = Study(tmp_path, dataclasses.replace(GRID, minimize=False))
    work(study, ONCE, train, quiet)
    assert rows_of(study)[0].values == {"a": 3, "b": "y"}


def test_the_report_holds_every_trial(tmp_path):
    study = Study(tmp_path, dataclasses.replace(BAYES, trials=3))
    work(study, ONCE, train, quiet)
    rows = rows_of(study)
    lines = as_csv(rows, study).splitlines()
    assert lines[0] == "trial,rate,layers,loss,standard_error,runs,state,message"
    assert len(lines) == 4
    assert float(lines[1].split(",")[1]) == rows[0].values["rate"]
    save_picture(rows, study, tmp_path)
    first = (tmp_path / "sweep.svg").read_bytes()
    assert b"layers" in first
    save_picture(rows, study, tmp_path)
    assert (tmp_path / "sweep.svg").read_bytes() == first
    save_picture([], study, tmp_path)  # nothing yet


def test_choices_with_control_characters_or_markup_are_in_a_valid_picture(tmp_path):
    choices = ("$x^2$", "a\x1b[31mb", "[/]", "<b>", "\ufffe")
    study = Study(tmp_path, dataclasses.replace(GRID, space=(Parameter("a", (1, 2)), Parameter("b", choices))))
    work(study, ONCE, train, quiet)
    save_picture(rows_of(study), study, tmp_path)
    texts = {"".join(each.itertext()) for each in ElementTree.parse(tmp_path / "sweep.svg").iter()}
    assert texts >= {"$x^2$", "a\\x1b[31mb", "[/]", "<b>", "\\ufffe"}


def test_the_command_is_one_that_a_shell_reads():
    line = command("finetune", "configs/a.py", {"model.dropout": 0.1, "data.cased": True, "task.prefix": "a b"})
    assert line == (
        "python -m experiments.finetune --config=configs/a.py --config.model.dropout=0.1 --config.data.cased=true "
        "'--config.task.prefix=a b' --workdir=runs/best"
    )
