"""Damages the files of a run, one at a time, and checks that nothing is silently wrong.

python -m tests.campaigns.damage --damages=1000

A tiny run is pretrained once, and another is fine-tuned, evaluated and calibrated. Then, again and again, one of their
files is damaged at random in a copy, and everything that reads it is tried: `load_run` and resuming, and for the
fine-tuned run also calibrated predictions, calibrating anew, and comparing it with itself. Each must either give what
the undamaged run gives, bit for bit, or say in one line what it found: an error, or a warning if it goes on without
something. Exit status 1 if one does not, or prints a traceback.
"""

import argparse
import collections
import contextlib
import dataclasses
import io
import logging
import os
import random
import shutil
import sys
import tempfile
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import chex
import jax

from experiments import pretrain
from experiments.calibrate import CalibrateConfig, calibrate, predictions_of, read_parts
from experiments.compare import compare
from experiments.evaluate import EvaluateConfig, evaluate
from experiments.finetune import finetune
from lm.calibration.results import Settings
from lm.console import Console
from lm.errors import UserError
from lm.inference.load import load
from lm.runs.config import PretrainConfig
from lm.runs.trained_run import TrainedRun, load_run
from lm.runs.work_directory import WorkDirectory
from lm.training.loop import Outcome, Trainer
from tests.tiny import replace, tiny_config
from tests.tiny_tasks import PARTS, rows_of, tiny_task_config, write_rows

Damage = Callable[[Path, random.Random], None]


def flip_a_bit(path: Path, chance: random.Random) -> None:
    """Flips one bit."""
    data = bytearray(path.read_bytes() or b"\0")
    data[chance.randrange(len(data))] ^= 1 << chance.randrange(8)
    path.write_bytes(data)


def change_a_digit(path: Path, chance: random.Random) -> None:
    """Replaces a digit by another: what is still JSON may have another meaning."""
    data = bytearray(path.read_bytes())
    places = [place for place, byte in enumerate(data) if chr(byte).isdigit()]
    if places:
        place = chance.choice(places)
        data[place] = chance.choice([digit for digit in b"0123456789" if digit != data[place]])
    path.write_bytes(data)


def swap_bytes(path: Path, chance: random.Random) -> None:
    """Swaps two bytes."""
    data = bytearray(path.read_bytes())
    if data:
        one, other = chance.randrange(len(data)), chance.randrange(len(data))
        data[one], data[other] = data[other], data[one]
    path.write_bytes(data)


def cut(path: Path, chance: random.Random) -> None:
    """Keeps a part of the beginning."""
    path.write_bytes(path.read_bytes()[: chance.randrange(path.stat().st_size + 1)])


def empty(path: Path, _: random.Random) -> None:
    """Leaves nothing."""
    path.write_bytes(b"")


def delete(path: Path, _: random.Random) -> None:
    """Removes the file."""
    path.unlink()


def append(path: Path, chance: random.Random) -> None:
    """Adds bytes at the end."""
    with path.open("ab") as file:
        file.write(chance.choice([b"\0" * 512, b"}", b"\n", b"\xff\xfe", path.read_bytes()]))


def put_zeros(path: Path, chance: random.Random) -> None:
    """Zeros a block, as file systems do after a crash."""
    data = bytearray(path.read_bytes())
    start = chance.randrange(len(data) + 1)
    data[start : start + 64] = bytes(len(data[start : start + 64]))
    path.write_bytes(data)


def make_a_folder(path: Path, _: random.Random) -> None:
    """Puts a folder in the place of the file."""
    path.unlink()
    path.mkdir()


def make_unreadable(path: Path, _: random.Random) -> None:
    """Makes reading fail, also for root."""
    path.unlink()
    path.symlink_to("/proc/self/mem")


# How the lines begin that introduce the fine-tuned run.
INTRODUCTION = ("4,162 parameters", "training: ", "validation: ", "test: ", "4 steps, ", "2 test rows are also in")

DAMAGES: tuple[Damage, ...] = (
    flip_a_bit,
    change_a_digit,
    swap_bytes,
    cut,
    empty,
    delete,
    append,
    put_zeros,
    make_a_folder,
    make_unreadable,
)


class Campaign:
    """A run to damage."""

    whole: Path
    uses: Sequence[Callable[[Path], bool]]  # each reads a copy and returns whether all is as in the undamaged run

    def readers(self, file: Path) -> Sequence[Callable[[Path], bool]]:
        """The uses that may read a file."""
        return self.uses

    @property
    def files(self) -> list[Path]:
        """The files of the run, relative to its directory."""
        return sorted(path.relative_to(self.whole) for path in self.whole.rglob("*") if path.is_file())

    def judge(self, file: Path, damage: Damage, chance: random.Random, folder: Path) -> str:
        """Damages a file in a copy and uses the copy; what came of it, in a few words.

        Raises:
          AssertionError: if something is silently wrong, or there is a traceback.
        """
        shutil.copytree(self.whole, folder)
        damage(folder / file, chance)
        results = []
        for use in self.readers(file):
            error = None
            with told() as text:
                try:
                    right = use(folder)
                except UserError as raised:
                    right, error = False, str(raised)
            assert "Traceback" not in text(), f"a traceback: {text()}"
            assert error is None or "\n" not in error, f"not one line: {error}"
            assert right or error or text(), f"silently wrong: {use.__name__}"
            results.append("right" if right else "refused" if error else "told")
        return ", ".join(results)


class Pretrained(Campaign):
    """What is compiled for one copy serves all."""

    def __init__(self, folder: Path):
        """Trains the run."""
        self.uses = (self._load, self._train)
        self._config = tiny_config(folder, steps=6, log_every=1, checkpoint_every=2, evaluate_every=2)
        self._config = replace(self._config, partitioning={"data": -1})
        self.whole = folder / "whole"
        self._trainer: Trainer | None = None
        with self._shortened():
            self._outcome = self._resume(self.whole)
        self._loaded = {which: load_run(WorkDirectory(self.whole), which) for which in ("best", "last")}

    def _load(self, folder: Path) -> bool:
        return all(equal(load_run(WorkDirectory(folder), which), known) for which, known in self._loaded.items())

    def _train(self, folder: Path) -> bool:
        with self._shortened():
            outcome = self._resume(folder)
        chex.assert_trees_all_equal(outcome.state, self._outcome.state)
        assert outcome.validation == self._outcome.validation
        return (folder / "metrics.jsonl").read_bytes() == (self.whole / "metrics.jsonl").read_bytes()

    def _resume(self, folder: Path) -> Outcome:
        return pretrain.pretrain(self._config, WorkDirectory(folder), Console(quiet=True))

    @contextlib.contextmanager
    def _shortened(self) -> Iterator[None]:
        """A context in which all trainers are one, and nothing is written after training."""

        def trainer(config: PretrainConfig, *arguments, **options) -> Trainer:
            made = Trainer(config, *arguments, **options)
            if self._trainer is None:
                self._trainer = made
            made._init, made._train_step = self._trainer._init, self._trainer._train_step
            made._problem = self._trainer._problem
            made._console = Console(file=sys.stderr)
            return made

        known = pretrain.Trainer, pretrain.write_products
        pretrain.Trainer, pretrain.write_products = trainer, lambda *_: None
        try:
            yield
        finally:
            pretrain.Trainer, pretrain.write_products = known


class Finetuned(Campaign):
    """A classifier, with the files that evaluating and calibrating it wrote."""

    def __init__(self, folder: Path):
        """Trains, evaluates and calibrates."""
        kind, self.whole = "classification", folder / "whole"
        config = tiny_task_config(kind)
        sources = {part: write_rows(folder / f"{part}.jsonl", rows_of(kind, part)) for part in PARTS}
        self._config = dataclasses.replace(config, data=dataclasses.replace(config.data, **sources))
        directory = WorkDirectory(self.whole)
        with told():
            self._outcome = self._finetune(self.whole)
        for split in ("validation", "test"):
            evaluate(EvaluateConfig(split, resamples=20), directory)
        self._calibration = CalibrateConfig(calibrators=("temperature",), settings=Settings(resamples=20))
        calibrate(self._calibration, directory, Console(quiet=True))
        self._results = [self._predictions(self.whole), self._parts(self.whole), self._figures(self.whole)]
        self.uses = (self._predict, self._calibrate, self._compare, self._resume)

    def readers(self, file: Path) -> Sequence[Callable[[Path], bool]]:
        """Training reads no results."""
        return self.uses[:-1] if file.parts[0] in ("calibration", "predictions") else self.uses

    def _predict(self, folder: Path) -> bool:
        return self._predictions(folder) == self._results[0]

    def _predictions(self, folder: Path) -> str:
        return repr(load(folder, calibrator="temperature").predict(["the red cat", "my dog"]))

    def _calibrate(self, folder: Path) -> bool:
        return self._parts(folder) == self._results[1]

    def _parts(self, folder: Path) -> str:
        """What calibration would be fitted to and measured on."""
        return repr(read_parts(self._calibration, *predictions_of(self._calibration, WorkDirectory(folder))))

    def _compare(self, folder: Path) -> bool:
        return self._figures(folder) == self._results[2]

    def _figures(self, folder: Path) -> str:
        return repr(compare([str(folder)], [str(self.whole)]))

    def _resume(self, folder: Path) -> bool:
        outcome = self._finetune(folder)
        chex.assert_trees_all_equal(outcome.state, self._outcome.state)
        files = ("metrics.jsonl", "classes.json", "tokenizer.json")
        same = all((folder / name).read_bytes() == (self.whole / name).read_bytes() for name in files)
        return same and outcome.validation == self._outcome.validation

    def _finetune(self, folder: Path) -> Outcome:
        return finetune(self._config, WorkDirectory(folder), Console(file=sys.stderr))


def equal(one: TrainedRun, other: TrainedRun) -> bool:
    """Whether two models are the same in use."""
    same = one.step == other.step and one.tokenizer.digest == other.tokenizer.digest and one.classes == other.classes
    parts = [(run.config.model, getattr(run.config, "objective", None)) for run in (one, other)]
    leaves = [jax.tree.leaves(run.params) for run in (one, other)]
    return same and parts[0] == parts[1] and all((a == b).all() for a, b in zip(*leaves, strict=True))


@contextlib.contextmanager
def told() -> Iterator[Callable[[], str]]:
    """A context that collects what is printed and logged as a warning, but for lines that say that all is well."""
    text, known = io.StringIO(), sys.stderr
    handler = logging.StreamHandler(text)
    logging.getLogger().addHandler(handler)
    sys.stderr = text
    usual = ("resuming at step", "finished at step", "step ", *INTRODUCTION)

    def collected() -> str:
        return "\n".join(line for line in text.getvalue().splitlines() if not line.startswith(usual))

    try:
        yield collected
    finally:
        sys.stderr = known
        logging.getLogger().removeHandler(handler)


def suits(campaign: Campaign, file: Path) -> bool:
    """Whether to damage a file of a run: checkpoints are alike, so those of one run do, and nothing reads pictures."""
    read = file.parts[0] not in ("checkpoints", "tensorboard") and file.suffix in (".json", ".jsonl", ".npz")
    return isinstance(campaign, Pretrained) or read


def run_campaign(damages: int, seed: int, report: Callable[[str], None]) -> int:
    """Damages every file in turn; how many were silently wrong or printed a traceback."""
    chance, results, wrong = random.Random(seed), collections.Counter[str](), 0
    with tempfile.TemporaryDirectory(prefix="damage-") as name:
        campaigns = [Pretrained(Path(name, "pretrained")), Finetuned(Path(name, "finetuned"))]
        files = [(campaign, file) for campaign in campaigns for file in campaign.files if suits(campaign, file)]
        chance.shuffle(files)
        for number in range(damages):
            (campaign, file), damage = files[number % len(files)], DAMAGES[chance.randrange(len(DAMAGES))]
            copy = Path(name, "copy")
            try:
                results[campaign.judge(file, damage, chance, copy)] += 1
            except Exception as error:  # whatever it is, it is a finding
                wrong += 1
                lines = f"{type(error).__name__}: {error}".splitlines()
                report(f"WRONG {file} {damage.__name__}: {' '.join(lines)[:600]}")
            shutil.rmtree(copy)
            if (number + 1) % 100 == 0:
                report(f"{number + 1} damages, {wrong} wrong")
    report(f"{damages} damages to {len(files)} files: {dict(results)}, {wrong} wrong")
    return wrong


def main() -> int:
    """Runs the campaign; returns the exit status."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--damages", type=int, default=300, help="how many")
    parser.add_argument("--seed", type=int, default=0, help="of what is damaged, and how")
    arguments = parser.parse_args()
    os.environ["LM_CACHE_DIR"] = tempfile.mkdtemp(prefix="cache-")
    return min(run_campaign(arguments.damages, arguments.seed, lambda line: print(line, flush=True)), 1)


if __name__ == "__main__":
    sys.exit(main())
