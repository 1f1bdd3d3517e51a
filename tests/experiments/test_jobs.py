"""`calibrated-lm` lists the experiments and runs them by name."""

import runpy
import sys

import pytest

from experiments import __main__ as jobs


def call(monkeypatch, *arguments):
    monkeypatch.setattr(sys, "argv", ["calibrated-lm", *arguments])
    jobs.main()


def test_every_experiment_is_listed_with_its_first_line(monkeypatch, capsys):
    call(monkeypatch)
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
    with pytest.raises(SystemExit) as stopped:
        call(monkeypatch, "pretrian")
    assert stopped.value.code == 2
    assert capsys.readouterr().err == "error: 'pretrian' is not a job; did you mean pretrain?\n"
