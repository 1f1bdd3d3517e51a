"""Kills training again and again, at random moments, and checks that it ends as if nothing had happened.

python -m tests.campaigns.kills --kills=20

Each run is first made without a kill. Then the same command is started, killed by SIGKILL after a random time, and
started again until it ends by itself. `metrics.jsonl` and the parameters of every checkpoint must then be those of the
first run, bit for bit. Exit status 1 if they are not.
"""

import argparse
import os
import random
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import chex

from lm.runs.checkpoints import Checkpoints
from lm.runs.trained_run import load_run
from lm.runs.work_directory import WorkDirectory
from tests.tiny import write_corpus
from tests.tiny_tasks import CONFIG, write_all

ROOT = Path(__file__).parents[2]
TRAINING = ["--config.training.checkpoint_every=4", "--config.training.log_every=1"]


def commands(folder: Path) -> dict[str, list[str]]:
    """The command of each kind of run, without its work directory."""
    source = write_corpus(folder / "corpus")
    write_all(folder)
    shape = ["layers=2", "width=32", "heads=2", "max_length=32"]
    pretrain = [
        "experiments.pretrain",
        "--config=configs/quickstart.py",
        f"--config.data.source={source}",
        f"--config.data.cache_dir={folder / 'cache'}",
        "--config.data.validation_fraction=0.2",
        "--config.tokenizer.kind=bytes",
        *(f"--config.model.{value}" for value in shape),
        "--config.training.steps=80",
        "--config.training.evaluate_every=16",
        "--config.predictions.tokens=0",
        *TRAINING,
    ]
    finetune = [
        "experiments.finetune",
        f"{CONFIG}:classification",
        *(f"--config.data.{part}=jsonl:{folder}/rows/classification/{part}.jsonl" for part in ("train", "validation")),
        "--config.data.test=",
        "--config.epochs=0",
        "--config.training.steps=80",
        "--config.training.evaluate_every=16",
        *TRAINING,
    ]
    return {"pretrain": pretrain, "finetune": finetune}


def start(command: list[str], workdir: Path) -> subprocess.Popen:
    """Starts a run; what it prints goes into a file beside its work directory."""
    log = workdir.with_suffix(".log").open("a")
    return subprocess.Popen(
        [sys.executable, "-m", *command, f"--workdir={workdir}"], cwd=ROOT, stdout=log, stderr=subprocess.STDOUT
    )


def killed_until_done(command: list[str], workdir: Path, longest: float, chance: random.Random) -> int:
    """Kills and starts again until the run ends by itself; how often it was killed.

    Raises:
      AssertionError: if it ends with an error.
    """
    kills = 0
    while True:
        process = start(command, workdir)
        try:
            status = process.wait(chance.uniform(0.2, 1.0) * longest if kills < 8 else None)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()
            kills += 1
            continue
        assert status == 0, f"exit status {status}: {workdir.with_suffix('.log').read_text()[-2000:]}"
        return kills


def check_equal(whole: Path, cut: Path) -> None:
    """Raises AssertionError unless both runs have the same metrics and checkpoints."""
    assert (whole / "metrics.jsonl").read_bytes() == (cut / "metrics.jsonl").read_bytes(), "metrics.jsonl differs"
    steps = []
    for directory in (whole, cut):
        checkpoints = Checkpoints(directory / "checkpoints", read_only=True)
        steps.append(checkpoints.steps)
        checkpoints.close()
    assert steps[0] == steps[1], f"checkpoints of steps {steps[1]}, not {steps[0]}"
    for step in steps[0]:
        one, other = (load_run(WorkDirectory(directory), str(step)).params for directory in (whole, cut))
        chex.assert_trees_all_equal(one, other)


def main() -> int:
    """Runs the campaign; returns the exit status."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--kills", type=int, default=20, help="how many at least")
    parser.add_argument("--seed", type=int, default=0, help="of the moments")
    arguments = parser.parse_args()
    chance, kills = random.Random(arguments.seed), 0
    folder = Path(tempfile.mkdtemp(prefix="kills-"))
    os.environ["LM_CACHE_DIR"] = str(folder / "cache")
    wholes, longest = {}, {}
    kinds = commands(folder)
    for name, command in kinds.items():
        # The second has its programs from the cache, as all that follow.
        for directory in (folder / f"{name}-first", folder / f"{name}-whole"):
            began = time.perf_counter()
            assert start(command, directory).wait() == 0, directory.with_suffix(".log").read_text()[-2000:]
            wholes[name], longest[name] = directory, time.perf_counter() - began
        check_equal(folder / f"{name}-first", wholes[name])
    for number in range(1000):
        if kills >= arguments.kills:
            break
        name = list(kinds)[number % len(kinds)]
        cut = folder / f"{name}-{number}"
        count = killed_until_done(kinds[name], cut, longest[name], chance)
        check_equal(wholes[name], cut)
        kills += count
        print(f"{name}: killed {count} times, the same to the last bit; {kills} kills so far", flush=True)
    shutil.rmtree(folder)
    return 0


if __name__ == "__main__":
    sys.exit(main())
