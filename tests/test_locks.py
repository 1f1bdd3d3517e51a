"""A lock is held by one live process, and is free as soon as that process is not alive, however it ended."""

import errno
import fcntl
import json
import os
import subprocess
import sys
import time
from pathlib import Path

import pytest

from lm import locks
from lm.locks import ProcessLock

ROOT = Path(__file__).parents[1]
HOLD = "import sys, time; from pathlib import Path; from lm.locks import ProcessLock\n"
HOLD += "assert ProcessLock(Path(sys.argv[1])).acquire(); print('held', flush=True); time.sleep(100)"


@pytest.fixture
def path(tmp_path):
    return tmp_path / "a.lock"


def test_one_holder_at_a_time_which_is_named(path):
    lock = ProcessLock(path)
    assert lock.holder() is None
    assert not path.exists()
    assert lock.acquire()
    assert not ProcessLock(path).acquire()
    assert f"process {os.getpid()} on " in ProcessLock(path).holder()
    lock.release()
    assert lock.holder() is None
    assert ProcessLock(path).acquire()


def test_a_killed_process_holds_nothing(path):
    process = subprocess.Popen([sys.executable, "-c", HOLD, str(path)], cwd=ROOT, stdout=subprocess.PIPE)
    process.stdout.readline()
    assert f"process {process.pid} on " in ProcessLock(path).holder()
    assert not ProcessLock(path).acquire()
    process.kill()
    process.communicate()
    assert ProcessLock(path).holder() is None
    assert ProcessLock(path).acquire()


def test_a_process_that_only_has_the_number_of_the_former_holder_holds_nothing(path):
    path.write_text(json.dumps({**locks._this_process(), "process": os.getpid()}))
    assert ProcessLock(path).holder() is None
    assert ProcessLock(path).acquire()


@pytest.mark.parametrize("content", [b"", b"{", b"[1]", b'"x"', b"\xff", b'{"machine": null}'])
def test_a_damaged_record_is_no_holder(content, path):
    path.write_bytes(content)
    assert ProcessLock(path).holder() is None
    assert ProcessLock(path).acquire()


def test_a_holder_on_another_machine_is_alive_while_it_touches_its_file(path, monkeypatch):
    path.write_text(json.dumps({"machine": "another", "host": "there", "process": 1, "began": "today"}))
    assert not ProcessLock(path).acquire()
    assert ProcessLock(path).holder() == "process 1 on there since today"
    long_ago = time.time() - 2 * locks.STALE_SECONDS
    os.utime(path, (long_ago, long_ago))
    assert ProcessLock(path).holder() is None
    monkeypatch.setattr(locks, "HEARTBEAT_SECONDS", 0.01)
    lock = ProcessLock(path)
    assert lock.acquire()
    os.utime(path, (long_ago, long_ago))
    deadline = time.monotonic() + 20
    while time.time() - path.stat().st_mtime > 60:  # until the heartbeat
        assert time.monotonic() < deadline
        time.sleep(0.01)
    lock.release()


def test_file_systems_without_locks_can_be_used(path, monkeypatch):
    def refuse(*_):
        raise OSError(errno.ENOLCK, "No locks available")

    monkeypatch.setattr(fcntl, "flock", refuse)
    lock = ProcessLock(path)
    assert lock.acquire()
    lock.release()


@pytest.mark.parametrize("seconds", [-3600, 3600])
def test_a_holder_on_another_machine_that_is_not_alive_now_holds_nothing(path, seconds):
    """Copied directories can have times in the future: nobody would ever train there."""
    path.write_text(json.dumps({"machine": "another", "host": "far", "process": 1, "began": "then"}))
    assert ProcessLock(path).holder()
    os.utime(path, (time.time() + seconds,) * 2)
    lock = ProcessLock(path)
    assert lock.holder() is None
    assert lock.acquire()
    lock.release()
