"""A work directory: everything about one run, enough to resume it or to use its model.

config.json  data.json  tokenizer.json  tokenizer_config.json  classes.json  checkpoints/  metrics.jsonl  speed.jsonl
tensorboard/  samples.txt  predictions/  calibration/  starts.jsonl  training.lock
prompt.json  scores/
"""

import contextlib
import dataclasses
import os
import re
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, TypeVar

import jax

from lm.configuration import differences, flatten
from lm.data.tokenizers import Tokenizer
from lm.errors import UserError
from lm.files import check_writable, file_digest, read_json, write_json
from lm.locks import ProcessLock
from lm.modules.config import EXECUTION
from lm.pretrained.hub import KINDS
from lm.runs.config import FREE_TO_CHANGE, FREE_TO_GROW, FinetuneConfig, PretrainConfig, RunConfig, stored_config

_SECONDS_UNTIL_SEEN = 60  # network file systems remember for a while that a file is missing
AnyConfig = TypeVar("AnyConfig", bound=PretrainConfig | FinetuneConfig)


@dataclasses.dataclass(frozen=True)
class WorkDirectory:
    """The paths of a run. A leading `~` in `path` stands for the home directory.

    Raises:
      UserError: if the path is remote, or is the name of a published model instead, such as hf:owner/name.
    """

    path: Path

    def __post_init__(self):
        if str(self.path).startswith(KINDS):
            raise UserError(
                f"{self.path} is a published model, and here the directory of a run is needed: make one with "
                f"experiments.import_model --source={self.path} --workdir=DIRECTORY"
            )
        if re.match(r"[a-z][a-z0-9+.-]+:/", str(self.path)):
            raise UserError(
                f"{self.path} is remote, and a run is written to a folder: mount the bucket, or copy the run at the end"
            )
        object.__setattr__(self, "path", _expanded(self.path))

    @property
    def config(self) -> Path:
        """The config that the run was started with, JSON."""
        return self.path / "config.json"

    @property
    def prompt(self) -> Path:
        """How a model is prompted, JSON; only of a prompted run, which has no config."""
        return self.path / "prompt.json"

    @property
    def tokenizer(self) -> Path:
        """The tokenizer, in the format of the `tokenizers` library."""
        return self.path / "tokenizer.json"

    @property
    def special_tokens(self) -> Path:
        """What a published tokenizer says of its special tokens, JSON; missing for one of our own."""
        return self.path / "tokenizer_config.json"

    @property
    def classes(self) -> Path:
        """Names of a fine-tuned model's classes, JSON."""
        return self.path / "classes.json"

    @property
    def data(self) -> Path:
        """Fingerprints of the data that the run was trained on, JSON."""
        return self.path / "data.json"

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

    def scores(self, name: str) -> Path:
        """File of a prompted model's scores of answers, to the rows of a split or to the texts of a prior."""
        return self.path / "scores" / f"{name}.jsonl"

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

    @property
    def starts(self) -> Path:
        """One JSON object per line: when training started or resumed, and the version of the code."""
        return self.path / "starts.jsonl"

    @property
    def lock(self) -> Path:
        """Locked by the process that trains."""
        return self.path / "training.lock"

    def check(self, config: RunConfig) -> None:
        """Checks, without writing anything, that this run can use the directory.

        Raises:
          UserError: if the directory can't be written, another process trains in it, or it holds a run with another
            config.
        """
        check_writable(self.path, f"--workdir={self.path}")
        if jax.process_index() == 0 and (holder := ProcessLock(self.lock).holder()):
            raise self._in_use(holder)
        if not self.config.exists():
            return
        changed = {
            name: values
            for name, values in differences(self.load_config(), config).items()
            if not name.startswith(tuple(FREE_TO_CHANGE)) and not (name in FREE_TO_GROW and _grew(*values))
        }
        if changed:
            listed = "; ".join(f"config.{name} was {old!r}, is {new!r}" for name, (old, new) in changed.items())
            raise UserError(f"{self.path} holds a run with another config ({listed}): use another --workdir")

    def _in_use(self, holder: str) -> UserError:
        return UserError(
            f"{self.path} is in use: {holder} trains there. Wait until it ends, stop it, or use another --workdir"
        )

    @contextlib.contextmanager
    def locked(self) -> Iterator[None]:
        """A context in which no other process trains in this directory. Of several hosts the first takes the lock.

        Raises:
          UserError: if another process trains there, or the directory can't be written.
        """
        lock = ProcessLock(self.lock)
        if jax.process_index() == 0:
            try:
                self.path.mkdir(parents=True, exist_ok=True)
                taken = lock.acquire()
            except OSError as error:
                raise UserError(f"--workdir={self.path} cannot be written: {error.strerror}") from error
            if not taken:
                raise self._in_use(lock.holder() or "another process")
        try:
            yield
        finally:
            lock.release()

    def claim(self, config: RunConfig, tokenizer: Tokenizer, classes: Sequence[str] = ()) -> None:
        """Creates the directory, if it doesn't exist yet, with the config, the tokenizer and the class names.

        Raises:
          UserError: if it cannot be written.
        """
        try:
            self.path.mkdir(parents=True, exist_ok=True)
            if not self.tokenizer.exists():
                tokenizer.save(self.tokenizer)
            # What a run began with never changes; without a config it did not begin.
            if classes and not (self.config.exists() and self.classes.exists()):
                write_json(self.classes, list(classes))
            # Last: a directory with a config is complete.
            if not self.config.exists() or differences(read_json(self.config), config):
                write_json(self.config, dataclasses.asdict(config))
        except OSError as error:
            raise UserError(f"--workdir={self.path} cannot be written: {error.strerror}") from error

    def check_shared(self) -> None:
        """Checks that this host sees what the first host has written. Call it after `claim`.

        Raises:
          UserError: if not.
        """
        until = time.monotonic() + _SECONDS_UNTIL_SEEN
        while jax.process_index() and not self.config.exists():
            if time.monotonic() > until:
                raise UserError(
                    f"--workdir={self.path} of this host is not that of the first host: name a directory on a file "
                    "system that all hosts share"
                )
            time.sleep(1)

    def origin(self, config: RunConfig) -> dict[str, Any]:
        """What the model of the run is made of, for its checkpoints: digests of files, and the config of the model.

        Args:
          config: of the run, with its vocabulary size.
        """
        files = [path for path in (self.tokenizer, self.special_tokens, self.classes) if path.exists()]
        learned = ("model.", "task.", "objective.")
        used = {
            name: value
            for name, value in flatten(config).items()
            if name.startswith(learned) and name.removeprefix("model.") not in EXECUTION
        }
        return {path.name: file_digest(path) for path in files} | used

    def stored_checkpoint_every(self) -> int:
        """The stored config's steps between checkpoints; 0 if there is no config."""
        return self.load_config().training.checkpoint_every if self.config.exists() else 0

    def load_classes(self) -> tuple[str, ...]:
        """Names of the classes; empty for a task without classes.

        Raises:
          UserError: if the file is not a list of different names.
        """
        if not _exists(self.classes):
            return ()
        names = read_json(self.classes)
        if not isinstance(names, list) or not all(isinstance(name, str) for name in names) or not names:
            raise UserError(f"{self.classes} must be a list of names: it is damaged")
        if len(set(names)) < len(names):
            raise UserError(f"{self.classes} repeats a name: it is damaged")
        return tuple(names)

    def load_config(self) -> RunConfig:
        """The config of the run in this directory.

        Raises:
          UserError: if there is none, or it is damaged.
        """
        if not _exists(self.config):
            raise UserError(f"--workdir={self.path} has no run: it has no {self.config.name}")
        values = read_json(self.config)
        if not isinstance(values, dict):
            raise UserError(f"{self.config} must be a JSON object with the keys of a config: it is damaged")
        if "model_type" in values:
            raise UserError(f"{self.path} holds a published model, not a run: to use it, write hf:{self.path}")
        return stored_config(values, prefix=str(self.config))


def _grew(old: Any, new: Any) -> bool:
    return isinstance(old, int) and isinstance(new, int) and 0 < old < new


def _exists(path: Path) -> bool:
    try:
        return path.exists()
    except OSError as error:  # as for a name that is too long
        raise UserError(f"{path}: {error.strerror}") from error


def _expanded(path: Path) -> Path:
    try:
        return path.expanduser()
    except RuntimeError as error:
        raise UserError(f"{path}: {error}".rstrip(".")) from error


def with_vocabulary(config: AnyConfig, tokenizer: Tokenizer) -> AnyConfig:
    """The config with `model.vocab_size` filled in.

    Raises:
      UserError: if it is set and too small for the tokenizer.
    """
    size = config.model.vocab_size or tokenizer.vocab_size
    if size < tokenizer.vocab_size:
        raise UserError(
            f"config.model.vocab_size={size} is smaller than the tokenizer's {tokenizer.vocab_size}: the model has no "
            "embeddings for its last tokens; use the tokenizer that the model was trained with"
        )
    return dataclasses.replace(config, model=dataclasses.replace(config.model, vocab_size=size))


def names_of_runs(directories: Sequence[str]) -> list[str]:
    """Short names: paths relative to the nearest common parent, or the directory's own name if there is one alone."""
    paths = [os.path.abspath(name) for name in directories]
    common = os.path.commonpath([os.path.dirname(path) for path in paths])
    return [os.path.relpath(path, common) for path in paths]
