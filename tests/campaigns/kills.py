"""Kills jobs again and again, at random moments, and checks that they end as if nothing had happened.

python -m tests.campaigns.kills --kills=20

Each job is first done without a kill. Then the same command is started, killed by SIGKILL after a random time, and
started again until it ends by itself: training, a sweep, an evaluation, a calibration. What it leaves must then be what
the first left, bit for bit: metrics, the parameters of every checkpoint, tables, predictions and calibrators. Beside
every trainer another process reads its run again and again: it must always find a whole one, or none yet. Exit status 1
if anything is lost or torn.
"""

import argparse
import collections
import dataclasses
import math
import os
import random
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import chex

from lm.errors import UserError
from lm.runs.checkpoints import Checkpoints
from lm.runs.trained_run import load_run
from lm.runs.work_directory import WorkDirectory
from tests.tiny import write_corpus
from tests.tiny_tasks import CONFIG, write_all

ROOT = Path(__file__).parents[2]
TRAINING = ["--config.training.checkpoint_every=4", "--config.training.log_every=1"]
SWEEP = f"""
from experiments.sweep import SweepConfig
from lm.configuration import to_config_dict

def get_config():
    base = "{CONFIG.removeprefix("--config=")}:classification"
    rates = ("optimizer.learning_rate=0.01,0.02,0.03",)
    return to_config_dict(SweepConfig(base=base, parameters=rates, method="grid"))
"""


@dataclasses.dataclass(frozen=True)
class Job:
    """What is killed.

    Attributes:
      command: without the work directory.
      after: the job whose work directory it needs.
      outputs: patterns of the files that must be the same.
      is_training: whether the directory is that of one run in training.
    """

    command: tuple[str, ...]
    outputs: tuple[str, ...]
    after: str = ""
    is_training: bool = False


def jobs(folder: Path) -> dict[str, Job]:
    """The jobs, each after the one it needs."""
    source = write_corpus(folder / "corpus")
    write_all(folder)
    (folder / "sweep.py").write_text(SWEEP)
    shape = ["layers=2", "width=32", "heads=2", "max_length=32"]
    pretrain = (
        "experiments.pretrain",
        f"--config={ROOT}/configs/quickstart.py",
        f"--config.data.source={source}",
        f"--config.data.cache_dir={folder / 'cache'}",
        "--config.data.validation_fraction=0.2",
        "--config.tokenizer.kind=bytes",
        *(f"--config.model.{value}" for value in shape),
        "--config.training.steps=80",
        "--config.training.evaluate_every=16",
        "--config.predictions.tokens=400",
        *TRAINING,
    )
    finetune = (
        "experiments.finetune",
        f"{CONFIG}:classification",
        "--config.training.steps=80",
        "--config.training.evaluate_every=16",
        *TRAINING,
    )
    calibrate = (
        "experiments.calibrate",
        f"--config={ROOT}/configs/calibrate.py",
        "--config.predictions=pretrain-whole/predictions/validation.npz",
        "--config.settings.resamples=50",
        "--config.title=kills",  # not the name of the directory
    )
    return {
        "pretrain": Job(pretrain, ("metrics.jsonl", "predictions/*"), is_training=True),
        "finetune": Job(finetune, ("metrics.jsonl", "predictions/*"), is_training=True),
        "sweep": Job(("experiments.sweep", "--config=sweep.py"), ("table.csv", "trials/*/metrics.jsonl")),
        "evaluate": Job(("experiments.evaluate", "--config.split=validation"), ("predictions/*",), after="finetune"),
        "calibrate": Job(
            calibrate, ("calibration/*.json", "calibration/*.csv", "calibration/*.html"), after="pretrain"
        ),
    }


def start(folder: Path, command: tuple[str, ...], workdir: Path) -> subprocess.Popen:
    """Starts a job; what it prints goes into a file beside its work directory."""
    return subprocess.Popen(
        [sys.executable, "-m", *command, f"--workdir={workdir}"],
        cwd=folder,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        stdout=workdir.with_suffix(".log").open("a"),
        stderr=subprocess.STDOUT,
    )


def prepare(folder: Path, job: Job, workdir: Path) -> Path:
    """The work directory as the job finds it."""
    if job.after:
        shutil.copytree(folder / f"{job.after}-whole", workdir)
        for path in outputs(job, workdir):
            path.unlink()
    return workdir


def killed_until_done(folder: Path, job: Job, workdir: Path, longest: float, chance: random.Random) -> int:
    """Kills and starts again until the job ends by itself; how often it was killed.

    Raises:
      AssertionError: if it ends with an error, or leaves an output torn.
    """
    kills = 0
    while True:
        process = start(folder, job.command, workdir)
        try:
            status = process.wait(chance.uniform(0.2, 0.9) * longest if kills < 8 else None)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()
            kills += 1
            continue
        assert status == 0, f"exit status {status}: {workdir.with_suffix('.log').read_text()[-2000:]}"
        return kills


def outputs(job: Job, workdir: Path) -> list[Path]:
    """The files that must be the same; hidden ones, which a killed writer leaves, are not among them."""
    found = [path for pattern in job.outputs for path in workdir.glob(pattern)]
    return sorted(path for path in found if path.is_file() and not path.name.startswith("."))


def check_equal(job: Job, whole: Path, cut: Path) -> None:
    """Raises AssertionError unless two jobs left the same outputs and checkpoints."""
    names = [[path.relative_to(directory) for path in outputs(job, directory)] for directory in (whole, cut)]
    assert names[0] == names[1], f"files {names[1]}, not {names[0]}"
    for name in names[0]:
        assert (whole / name).read_bytes() == (cut / name).read_bytes(), f"{name} differs"
    if job.is_training:
        check_equal_checkpoints(whole, cut)


def check_equal_checkpoints(whole: Path, cut: Path) -> None:
    """Raises AssertionError unless both runs have the same checkpoints."""
    steps = []
    for directory in (whole, cut):
        checkpoints = Checkpoints(directory / "checkpoints", read_only=True)
        steps.append(checkpoints.steps)
        checkpoints.close()
    assert steps[0] == steps[1], f"checkpoints of steps {steps[1]}, not {steps[0]}"
    for step in steps[0]:
        one, other = (load_run(WorkDirectory(directory), str(step)).params for directory in (whole, cut))
        chex.assert_trees_all_equal(one, other)


def read_again_and_again(workdir: Path) -> int:
    """Reads a run until the parent process is gone; whatever is neither a whole run nor none yet is an error."""
    parent, reads = os.getppid(), 0
    while os.getppid() == parent:
        try:
            load_run(WorkDirectory(workdir))
        except UserError as error:
            if "has no" not in str(error):
                raise
        else:
            reads += 1
            print(f"read {reads}", flush=True)
        time.sleep(0.3)
    return 0


class Reader:
    """A process that reads a run while it trains."""

    def __init__(self, folder: Path, workdir: Path):
        """Starts it."""
        self._log = workdir.with_suffix(".reader")
        self._process = subprocess.Popen(
            [sys.executable, "-m", "tests.campaigns.kills", f"--read={workdir}"],
            cwd=folder,
            env={**os.environ, "PYTHONPATH": str(ROOT)},
            stdout=self._log.open("w"),
            stderr=subprocess.STDOUT,
        )

    def end(self) -> int:
        """Ends it; how often it read the run.

        Raises:
          AssertionError: if it failed.
        """
        status = self._process.poll()
        self._process.kill()
        self._process.wait()
        text = self._log.read_text()
        assert status is None, f"a reader failed: {text[-2000:]}"
        assert "Traceback" not in text, f"a reader printed a traceback: {text[-2000:]}"
        return text.count("read ")


def campaign(folder: Path, kills: int, chance: random.Random) -> None:
    """Kills jobs in turn.

    Raises:
      AssertionError: if something is lost or torn.
    """
    longest: dict[str, float] = {}
    todo = jobs(folder)
    for name, job in todo.items():
        # The second has its programs from the cache, as all that follow.
        for directory in (folder / f"{name}-first", folder / f"{name}-whole"):
            prepare(folder, job, directory)
            began = time.perf_counter()
            assert start(folder, job.command, directory).wait() == 0, directory.with_suffix(".log").read_text()[-2000:]
            longest[name] = min(longest.get(name, math.inf), time.perf_counter() - began)
        check_equal(job, folder / f"{name}-first", folder / f"{name}-whole")
        print(f"{name}: {longest[name]:.0f} s without a kill", flush=True)
    counts, reads, number = collections.Counter[str](), 0, 0
    while counts.total() < kills:
        name = list(todo)[number % len(todo)]
        cut = prepare(folder, todo[name], folder / f"{name}-{number}")
        reader = Reader(folder, cut) if todo[name].is_training else None
        counts[name] += killed_until_done(folder, todo[name], cut, longest[name], chance)
        reads += reader.end() if reader else 0
        check_equal(todo[name], folder / f"{name}-whole", cut)
        shutil.rmtree(cut)
        number += 1
        print(f"{counts.total()} kills, the same to the last bit: {dict(counts)}; {reads} reads beside", flush=True)


def main() -> int:
    """Runs the campaign; returns the exit status."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--kills", type=int, default=20, help="how many at least")
    parser.add_argument("--seed", type=int, default=0, help="of the moments")
    parser.add_argument("--read", type=Path, help="only read this run until the parent process is gone")
    arguments = parser.parse_args()
    if arguments.read:
        return read_again_and_again(arguments.read)
    with tempfile.TemporaryDirectory(prefix="kills-") as name:
        os.environ["LM_CACHE_DIR"] = str(Path(name, "cache"))
        campaign(Path(name), arguments.kills, random.Random(arguments.seed))
    return 0


if __name__ == "__main__":
    sys.exit(main())
