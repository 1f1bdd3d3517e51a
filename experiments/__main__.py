"""Lists the experiments, or runs one: `calibrated-lm JOB FLAGS` is `python -m experiments.JOB FLAGS`."""

import ast
import difflib
import runpy
import sys
import textwrap
from pathlib import Path
from typing import NoReturn

import lm
from lm.command_line import exit_with, fail
from lm.config_help import WIDTH

_USAGE = """\
calibrated-lm JOB --config=NAME --workdir=DIRECTORY ...
calibrated-lm JOB --help       flags and config keys
calibrated-lm --version

Jobs:"""


def main() -> NoReturn:
    """Runs the job that the first argument names, in this process, and exits."""
    exit_with(_run_job)


def _run_job() -> None:
    jobs = descriptions()
    job = sys.argv[1].removeprefix("experiments.").replace("-", "_") if len(sys.argv) > 1 else "help"
    if job == "__version":
        print(f"calibrated-lm {lm.__version__}")
    elif job in ("help", "__help", "_h"):
        print(_USAGE, *(_listed(f"{name:<11} {about}") for name, about in jobs.items()), sep="\n")
    elif job not in jobs:
        close = difflib.get_close_matches(job, jobs, n=1)
        hint = f"did you mean {close[0]}?" if close else f"known jobs: {', '.join(jobs)}"
        fail(f"{sys.argv[1]!r} is not a job; {hint}", 2)
    else:
        sys.argv = [f"calibrated-lm {job}", *sys.argv[2:]]
        runpy.run_module(f"experiments.{job}", run_name="__main__", alter_sys=False)


def _listed(job: str) -> str:
    return textwrap.fill(job, WIDTH, initial_indent="  ", subsequent_indent=" " * 14)


def descriptions() -> dict[str, str]:
    """The first line of each job's docstring; nothing is imported."""
    folder = Path(__file__).parent
    files = {path.stem: path for path in folder.glob("[a-z]*.py")}
    files |= {path.parent.name: path for path in folder.glob("[a-z]*/__main__.py")}
    return {name: (_docstring(path)).partition("\n")[0] for name, path in sorted(files.items())}


def _docstring(path: Path) -> str:
    return ast.get_docstring(ast.parse(path.read_text(encoding="utf-8"))) or ""


if __name__ == "__main__":
    main()
