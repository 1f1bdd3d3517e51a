"""A study in a real PostgreSQL server, shared by processes that may die at any time; runs are computed by a formula."""

import dataclasses
import signal
import socket
import sys
import time
from concurrent.futures import ThreadPoolExecutor

import optuna
import pytest

from lm.errors import UserError
from lm.sweeps import database as database_module
from lm.sweeps.database import Database, read_url
from lm.sweeps.report import as_csv, rows_of
from lm.sweeps.search_space import Parameter
from lm.sweeps.study import Repetition, Search, Study, work
from tests.postgresql import free_port
from tests.sweeps.test_study import assert_resumed_evaluations_count_once, results, start_worker, wait_for
from tests.sweeps.toy_study import BAYES, GRID, ONCE, begun, database, quiet, train

SHORT = dataclasses.replace(BAYES, trials=5)


def journal(directory, search) -> Study:
    """The same sweep, finished, in a journal."""
    directory.mkdir()
    study = Study(directory, search)
    work(study, ONCE, train, quiet)
    return study


@pytest.mark.slow
def test_workers_with_directories_of_their_own_try_each_trial_once(database_url, tmp_path):
    folders = [tmp_path / "one", tmp_path / "other"]
    for folder in folders:
        folder.mkdir()
    workers = [start_worker(folder, "grid", 0.5, database_url) for folder in folders]
    assert [worker.wait(timeout=100) for worker in workers] == [0, 0]
    one, other = map(begun, folders)
    assert sorted(one + other) == list(range(6))
    assert one
    assert other
    study, expected = Study(tmp_path, GRID, database(database_url)), journal(tmp_path / "journal", GRID)
    assert rows_of(study, ONCE) == rows_of(expected, ONCE)
    assert as_csv(rows_of(study), study) == as_csv(rows_of(expected), expected)


@pytest.mark.slow
def test_a_killed_workers_trial_is_taken_over_after_the_grace_period(database_url, tmp_path):
    worker = start_worker(tmp_path, "bayes", 60, database_url)
    wait_for(lambda: begun(tmp_path) == [0])
    worker.send_signal(signal.SIGKILL)
    worker.wait()
    study = Study(tmp_path, SHORT, database(database_url))
    with study.take() as next_one:
        assert (next_one.number, next_one.taken_over) == (1, False)
        time.sleep(4)  # longer than the grace period: a live worker keeps its trial
        with study.take() as taken:
            assert (taken.number, taken.taken_over) == (0, True)
            with study.take() as third:
                assert third.number == 2
    work(study, ONCE, train, quiet)
    assert [trial.number for trial in study.trials] == list(range(5))
    assert {trial.state.name for trial in study.trials} == {"COMPLETE"}


@pytest.mark.slow
def test_a_sweep_can_be_resumed_and_extended(database_url, tmp_path):
    for trials in (2, 2, 5):
        work(Study(tmp_path, dataclasses.replace(SHORT, trials=trials), database(database_url)), ONCE, train, quiet)
    assert results(Study(tmp_path, SHORT, database(database_url))) == results(journal(tmp_path / "journal", SHORT))


@pytest.mark.slow
def test_a_stopped_workers_trial_is_taken_over_at_once_with_its_results(database_url, tmp_path):
    repetitions, calls = [Repetition(0), Repetition(1)], []

    def interrupted(trial, repetition, _):
        calls.append((trial.number, repetition.name, trial.taken_over))
        if len(calls) == 2:
            raise KeyboardInterrupt
        return train(trial, repetition, _)

    with pytest.raises(KeyboardInterrupt):
        work(Study(tmp_path, SHORT, database(database_url)), repetitions, interrupted, quiet)
    work(Study(tmp_path, SHORT, database(database_url)), repetitions, interrupted, quiet)
    assert calls[1:3] == [(0, "seed1", False), (0, "seed1", True)]  # its first run is not repeated
    assert len(calls) == 2 * 5 + 1


@pytest.mark.slow
def test_a_trial_whose_worker_died_before_its_first_heartbeat_is_not_lost(database_url, tmp_path):
    study = Study(tmp_path, GRID, database(database_url))
    optuna.load_study(study_name="sweep", storage=database(database_url).storage).ask()
    with study.take() as trial:
        assert (trial.number, trial.taken_over) == (0, True)


@pytest.mark.slow
def test_no_point_is_taken_twice_at_once(database_url, tmp_path):
    space = (Parameter("a", low=1, high=8), Parameter("b", ("x", "y")))
    search = Search(space, "random", 16, "loss", minimize=True)
    with ThreadPoolExecutor(4) as pool:  # which also create the tables at once
        done = [
            pool.submit(lambda: work(Study(tmp_path, search, database(database_url)), ONCE, train, quiet))
            for _ in range(4)
        ]
        for future in done:
            future.result()
    points = [tuple(trial.params.values()) for trial in Study(tmp_path, search, database(database_url)).trials]
    assert len(set(points)) == len(points) == 16


@pytest.mark.slow
def test_a_lock_is_taken_from_a_worker_whose_machine_vanished(database_url, monkeypatch):
    monkeypatch.setattr(database_module, "_LOCK_SECONDS", 1)
    one, other = database(database_url), database(database_url)
    with (
        pytest.raises(UserError, match="run the same command to continue"),
        one.plain_errors(),
        one.lock(),
        other.lock(),
    ):
        pass


@pytest.mark.slow
def test_a_worker_that_was_cut_off_leaves_what_another_finished(database_url, tmp_path):
    said, other = [], Study(tmp_path, GRID, database(database_url))

    def overtaken(trial, repetition, watch):
        if trial.number == 0:
            other._study.tell(0, 7.0)
        return train(trial, repetition, watch)

    work(Study(tmp_path, GRID, database(database_url)), ONCE, overtaken, said.append)
    assert said[1] == "trial 1: finished by another worker"
    assert [trial.value for trial in other.trials] == [7.0, 1.5, 2.0, 2.5, 3.0, 3.5]


@pytest.mark.slow
def test_bad_points_are_pruned_and_resumed_evaluations_count_once(database_url, tmp_path):
    study = Study(tmp_path, dataclasses.replace(GRID, pruning="median"), database(database_url))
    assert_resumed_evaluations_count_once(study)


@pytest.mark.slow
def test_a_study_of_another_program_is_refused(database_url):
    optuna.create_study(study_name="sweep", storage=database(database_url).storage).ask()
    with pytest.raises(UserError, match=r"holds a study 'sweep' of another program: use another config.study"):
        database(database_url).settings({}, minimize=True, create=True)


@pytest.mark.slow
def test_a_wrong_password_is_one_line_without_it(database_url, monkeypatch):
    monkeypatch.setenv("PGPASSWORD", "incorrect")
    with pytest.raises(UserError, match="password authentication failed") as caught:
        database(database_url)
    assert "\n" not in str(caught.value)
    assert "incorrect" not in str(caught.value)


@pytest.mark.parametrize(
    ("url", "message"),
    [
        ("mysql://host/database", "must begin with postgresql://, got mysql://"),
        ("postgresql+psycopg2://host/database", "must begin with postgresql://, got postgresql\\+psycopg2://"),
        ("host/database", "must be a URL such as postgresql://USER@HOST/DATABASE"),
        ("postgresql://host:port/database", "must be a URL such as"),
        ("postgresql://user:secret@host/database", "must not have a password.*PGPASSWORD"),
        ("mysql://user:secret@host/database", "must not have a password.*PGPASSWORD"),
        ("postgresql://user@host/database?password=secret", "must not have a password"),
        ("postgresql//user:secret@host/database", "must be a URL such as"),
    ],
)
def test_a_bad_url_is_one_line_without_its_password(url, message):
    with pytest.raises(UserError, match=f"^config.storage {message}") as caught:
        read_url(url)
    assert "secret" not in str(caught.value)
    assert "\n" not in str(caught.value)


def test_a_missing_driver_names_the_extra(monkeypatch):
    monkeypatch.setitem(sys.modules, "psycopg", None)
    with pytest.raises(UserError, match=r"^config.storage needs the driver.*pip install -e '\.\[postgresql\]'"):
        Database("postgresql://127.0.0.1/sweeps", "sweep")


def test_a_server_that_is_not_there_is_one_line():
    pytest.importorskip("psycopg")
    port = free_port()
    with pytest.raises(UserError, match=rf"^config.storage=postgresql://127.0.0.1:{port}/a: .*refused") as caught:
        Database(f"postgresql://127.0.0.1:{port}/a", "sweep")
    assert "\n" not in str(caught.value)


@pytest.mark.slow
def test_a_server_that_does_not_answer_is_given_up(monkeypatch):
    pytest.importorskip("psycopg")
    monkeypatch.setattr(database_module, "_CONNECT_SECONDS", 2)
    began = time.monotonic()
    with socket.create_server(("127.0.0.1", 0)) as silent, pytest.raises(UserError, match="timeout"):
        Database(f"postgresql://127.0.0.1:{silent.getsockname()[1]}/a", "sweep")
    assert time.monotonic() - began < 20
