"""A work directory: everything about one run, enough to resume it or to use its model.

config.json  tokenizer.json  classes.json  checkpoints/  metrics.jsonl  speed.jsonl  tensorboard/  samples.txt
predictions/  calibration/
"""

import dataclasses
import os
from collections.abc import Sequence
from pathlib import Path
from typing import TypeVar

from lm.configuration import differences
from lm.data.tokenizers import Tokenizer
from lm.errors import UserError
from lm.files import read_json, write_json
from lm.runs.config import FREE_TO_CHANGE, FinetuneConfig, PretrainConfig, RunConfig, stored_config

AnyConfig = TypeVar("AnyConfig", bound=PretrainConfig | FinetuneConfig)


@dataclasses.dataclass(frozen=True)
class WorkDirectory:
    """The paths of a run."""

    path: Path

    @property
    def config(self) -> Path:
        """The config that the run was started with, JSON."""
        return self.path / "config.json"

    @property
    def tokenizer(self) -> Path:
        """The tokenizer, in the format of the `tokenizers` library."""
        return self.path / "tokenizer.json"

    @property
    def classes(self) -> Path:
        """Names of a fine-tuned model's classes, JSON."""
        return self.path / "classes.json"

    @property
    def checkpoints(self) -> Path:
        """Orbax checkpoints, one folder per step."""
        return self.path / "checkpoints"

    @property
    def metrics(self) -> Path:
        """One JSON object per line; the same bytes for the same config, seed and device count."""
        return self.path / "metrics.jsonl"

    @property
    def speed(self) -> Path:
        """One JSON object per line: measurements that depend on the machine."""
        return self.path / "speed.jsonl"

    @property
    def tensorboard(self) -> Path:
        """TensorBoard's event files."""
        return self.path / "tensorboard"

    @property
    def profile(self) -> Path:
        """What `--profile` recorded, for TensorBoard or XProf."""
        return self.path / "profile"

    @property
    def predictions(self) -> Path:
        """Folder of predictions, npz files that `experiments.calibrate` reads."""
        return self.path / "predictions"

    @property
    def calibration(self) -> Path:
        """Folder of calibrators, tables, plots and the report."""
        return self.path / "calibration"

    @property
    def samples(self) -> Path:
        """Texts generated at the end of training."""
        return self.path / "samples.txt"

    def check(self, config: RunConfig) -> None:
        """Checks, without writing anything, that this run can use the directory.

        Raises:
          UserError: if the directory can't be written, or holds a run with another config.
        """
        nearest = self.path.absolute()
        while not nearest.exists() and nearest != nearest.parent:
            nearest = nearest.parent
        if not nearest.is_dir():
            raise UserError(f"--workdir={self.path}: {nearest} is a file, not a directory")
        if not os.access(nearest, os.W_OK | os.X_OK):
            raise UserError(f"--workdir={self.path}: no permission to write in {nearest}")
        if not self.config.exists():
            return
        free = tuple(FREE_TO_CHANGE)
        changed = {
            name: values
            for name, values in differences(self.load_config(), config).items()
            if not name.startswith(free)
        }
        if changed:
            listed = "; ".join(f"config.{name} was {old!r}, is {new!r}" for name, (old, new) in changed.items())
            raise UserError(f"{self.path} holds a run with another config ({listed}): use another --workdir")

    def claim(self, config: RunConfig, tokenizer: Tokenizer, classes: Sequence[str] = ()) -> None:
        """Creates the directory, if it doesn't exist yet, with the config, the tokenizer and the class names.

        Raises:
          UserError: if it cannot be written.
        """
        try:
            self.path.mkdir(parents=True, exist_ok=True)
            if not self.tokenizer.exists():
                tokenizer.save(self.tokenizer)
            if classes:
                write_json(self.classes, list(classes))
            # Last: a directory with a config is complete.
            write_json(self.config, dataclasses.asdict(config))
        except OSError as error:
            raise UserError(f"--workdir={self.path} cannot be written: {error.strerror}") from error

    def load_classes(self) -> tuple[str, ...]:
        """Names of the classes; empty for a task without classes.

        Raises:
          UserError: if the file is not JSON.
        """
        return tuple(read_json(self.classes)) if self.classes.exists() else ()

    def load_config(self) -> RunConfig:
        """The config of the run in this directory.

        Raises:
          UserError: if there is none.
        """
        if not self.config.exists():
            raise UserError(f"--workdir={self.path} has no run: it has no {self.config.name}")
        return stored_config(read_json(self.config), prefix=str(self.config))


def with_vocabulary(config: AnyConfig, tokenizer: Tokenizer) -> AnyConfig:
    """The config with `model.vocab_size` filled in.

    Raises:
      UserError: if it is set and too small for the tokenizer.
    """
    size = config.model.vocab_size or tokenizer.vocab_size
    if size < tokenizer.vocab_size:
        raise UserError(f"config.model.vocab_size={size} is smaller than the tokenizer's {tokenizer.vocab_size}")
    return dataclasses.replace(config, model=dataclasses.replace(config.model, vocab_size=size))


def names_of_runs(directories: Sequence[str]) -> list[str]:
    """Short names: paths relative to the nearest common parent, or the directory's own name if there is one alone."""
    paths = [os.path.abspath(name) for name in directories]
    common = os.path.commonpath([os.path.dirname(path) for path in paths])
    return [os.path.relpath(path, common) for path in paths]
