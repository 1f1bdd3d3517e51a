"""`calibrated-lm` lists the experiments and runs them by name."""

import runpy
import subprocess
import sys
from pathlib import Path

import pytest

from experiments import __main__ as jobs

ROOT = Path(__file__).parents[2]


def call(monkeypatch, *arguments):
    """The exit status."""
    monkeypatch.setattr(sys, "argv", ["calibrated-lm", *arguments])
    with pytest.raises(SystemExit) as stopped:
        jobs.main()
    return stopped.value.code


def test_every_experiment_is_listed_with_its_first_line(monkeypatch, capsys):
    assert call(monkeypatch) == 0
    text = capsys.readouterr().out
    assert "  pretrain    Pretrains a language model" in text
    assert "  guo2017     Reproduces" in text
    assert "__" not in text


def test_a_job_gets_its_flags(monkeypatch):
    seen = []
    monkeypatch.setattr(runpy, "run_module", lambda name, **_: seen.append((name, sys.argv)))
    call(monkeypatch, "self-train", "--workdir=x")
    assert seen == [("experiments.self_train", ["calibrated-lm self_train", "--workdir=x"])]


def test_a_near_miss_is_one_line(monkeypatch, capsys):
    assert call(monkeypatch, "pretrian") == 2
    assert capsys.readouterr().err == "error: 'pretrian' is not a job; did you mean pretrain?\n"


def test_a_closed_pipe_and_a_full_disk_leave_no_traceback():
    """As in `calibrated-lm | head -1`."""
    listing = f"{sys.executable} -m experiments"
    for command, status in ((f"{listing} | true; exit ${{PIPESTATUS[0]}}", 141), (f"{listing} > /dev/full", 2)):
        done = subprocess.run(["bash", "-c", command], cwd=ROOT, capture_output=True, text=True)
        assert done.returncode == status
        assert "Traceback" not in done.stderr
