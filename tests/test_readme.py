"""The README tells the truth about what is here."""

import importlib
import re
import shlex
from pathlib import Path

from lm.command_line import parse
from lm.data.sources import READERS

ROOT = Path(__file__).parents[1]
README = (ROOT / "README.md").read_text()


def commands() -> list[list[str]]:
    """Arguments of every `python -m experiments...` in the README."""
    joined = README.replace("\\\n", " ")
    found = re.findall(r"python -m experiments\.(\w+)([^\n`#]*)", joined)
    return [[name, *shlex.split(rest)] for name, rest in found]


def test_every_command_parses(monkeypatch):
    monkeypatch.chdir(ROOT)
    found = commands()
    assert len(found) >= 4
    for name, *flags in found:
        # An experiment is a file, or a folder that is run by its __main__.
        main = ".__main__" if (ROOT / "experiments" / name).is_dir() else ""
        parse(importlib.import_module(f"experiments.{name}{main}").define_flags, [name, *flags], "")


def test_every_file_that_it_names_is_there():
    for name in re.findall(r"`((?:configs|docs|experiments|lm|benchmarks|tests)/[\w/.]*)(?::\w+)?`", README):
        assert (ROOT / name).exists(), name


def test_every_source_is_described():
    for scheme in READERS:
        assert f"`{scheme}:" in README


def test_both_setup_commands_can_be_found_by_their_marks():
    for mark in ("quickstart command", "test command"):
        block = README.split(f"<!-- {mark} -->")[1].split("```")[1]
        assert block.startswith("bash\npython3 -m venv .venv && ")
        assert block.strip().count("\n") == 1  # one line to copy


def test_no_figure_is_a_placeholder():
    assert "RESULT_" not in README
