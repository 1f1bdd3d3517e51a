"""Fine-tuning runs at toy size, each made once, through the command line."""

import contextlib
from collections.abc import Callable
from pathlib import Path

import pytest

from experiments import finetune
from tests.tiny import command_line
from tests.tiny_tasks import CONFIG, write_all


@pytest.fixture(scope="session")
def rows_folder(tmp_path_factory) -> Path:
    """A folder with the rows of every kind."""
    folder = tmp_path_factory.mktemp("tasks")
    write_all(folder)
    return folder


@pytest.fixture
def here(rows_folder, monkeypatch) -> Path:
    """The folder with the rows is the current one."""
    monkeypatch.chdir(rows_folder)
    return rows_folder


@pytest.fixture(scope="session")
def finetuned(rows_folder) -> Callable[..., Path]:
    """The work directory of a finished run of a kind, relative to the folder with the rows."""
    made: dict[tuple[str, ...], Path] = {}

    def run(kind: str, *flags: str) -> Path:
        if (kind, *flags) not in made:
            workdir = Path("runs") / f"{kind}_{len(made)}"
            with contextlib.chdir(rows_folder):
                status = command_line(
                    finetune.main, finetune.define_flags, f"{CONFIG}:{kind}", f"--workdir={workdir}", *flags
                )
            assert status == 0
            made[kind, *flags] = workdir
        return made[kind, *flags]

    return run
