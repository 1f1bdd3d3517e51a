"""Progress reports of a run: a progress line, JSON Lines, TensorBoard."""

import contextlib
import hashlib
import json
import logging
import math
import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import IO, Any

from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn
from tensorboardX import SummaryWriter

from lm.console import Console
from lm.errors import TrainingError, UserError
from lm.files import write_atomically
from lm.runs.config import RunConfig
from lm.runs.tensorboard import add_settings, tag_of
from lm.runs.work_directory import WorkDirectory

logger = logging.getLogger(__name__)


class MetricsWriter:
    """Writes metrics to `metrics.jsonl`, speeds to `speed.jsonl`, and both to TensorBoard.

    Metrics depend only on config, seed and device count, so `cmp` shows whether two runs were identical.
    """

    def __init__(self, directory: WorkDirectory, step: int):
        """Resumes after `step`: lines of later steps, from an interrupted run, are dropped.

        Raises:
          UserError: if the files cannot be read or written.
        """
        for path in (directory.metrics, directory.speed):
            drop_lines_after(path, step)
        self._written = _Written(lines_until(directory.metrics, step))
        try:
            self._metrics = directory.metrics.open("a", encoding="utf-8")
            self._speed = directory.speed.open("a", encoding="utf-8")
            self._tensorboard = _open_tensorboard(directory.tensorboard, step)
        except OSError as error:
            raise UserError(f"{error.filename} cannot be written: {error.strerror}") from error

    @property
    def written(self) -> dict[str, Any]:
        """The count and a digest of the lines in `metrics.jsonl`, for `check_metrics`."""
        return self._written.summary()

    def settings(self, config: RunConfig) -> None:
        """Shows the config in TensorBoard."""
        add_settings(self._tensorboard, config, f"validation/{config.training.best_metric}")

    def metrics(self, step: int, values: dict[str, float]) -> None:
        """Adds a line of metrics."""
        self._write(self._metrics, step, values)

    def speed(self, step: int, values: dict[str, float]) -> None:
        """Adds a line of speeds."""
        self._write(self._speed, step, values)

    def flush(self) -> None:
        """Flushes the lines to disk. Call this before writing a checkpoint.

        Raises:
          TrainingError: if they cannot be written.
        """
        for file in (self._metrics, self._speed):
            with _written_to(file):
                file.flush()
                os.fsync(file.fileno())

    def close(self) -> None:
        """Flushes and closes."""
        with contextlib.ExitStack() as stack:
            for resource in (self._tensorboard.close, self._speed.close, self._metrics.close, self.flush):
                stack.callback(resource)

    def _write(self, file: Any, step: int, values: dict[str, float]) -> None:
        # JSON has no NaN; readers expect null.
        finite = {name: value if math.isfinite(value) else None for name, value in values.items()}
        line = json.dumps({"step": step, **finite}, allow_nan=False) + "\n"
        with _written_to(file):
            file.write(line)
        if file is self._metrics:
            self._written.add(line.encode())
        for name, value in values.items():
            self._tensorboard.add_scalar(tag_of(name), value, step)


class NoMetrics:
    """Writes nothing, for all hosts but the first, which writes for all."""

    written: dict[str, Any] = {}  # noqa: RUF012

    def settings(self, config: RunConfig) -> None:
        """Shows nothing."""

    def metrics(self, step: int, values: dict[str, float]) -> None:
        """Adds nothing."""

    def speed(self, step: int, values: dict[str, float]) -> None:
        """Adds nothing."""

    def flush(self) -> None:
        """Has nothing to flush."""

    def close(self) -> None:
        """Has nothing to close."""


@contextlib.contextmanager
def _written_to(file: IO[str]) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        raise TrainingError(f"{file.name} cannot be written: {error.strerror}") from error


def _open_tensorboard(directory: Path, step: int) -> SummaryWriter:
    """A writer whose thread outlives a full disk. Without its thread training would wait for it forever."""
    writer = SummaryWriter(str(directory), purge_step=step + 1 if step else None)
    events = writer.file_writer.event_writer
    events._ev_writer = events._worker._record_writer = _UntilFull(events._ev_writer, directory)
    return writer


class _UntilFull:
    """Writes events to a file until that fails; from then on it does nothing."""

    def __init__(self, writer: Any, directory: Path):
        self._writer, self._directory, self._failed = writer, directory, False

    def write_event(self, event: Any) -> None:
        self._try(lambda: self._writer.write_event(event))

    def flush(self) -> None:
        self._try(self._writer.flush)

    def close(self) -> None:
        self._try(self._writer.close)

    def _try(self, write: Callable[[], Any]) -> None:
        if self._failed:
            return
        try:
            write()
        except OSError as error:
            self._failed = True
            logger.warning("%s cannot be written (%s): going on without it", self._directory, error.strerror)


def check_metrics(path: Path, step: int, written: Mapping[str, Any] | None) -> str:
    """Checks that a metrics file still holds the lines that a run wrote until a step.

    Args:
      path: of the file.
      step: of the checkpoint to resume from.
      written: `MetricsWriter.written` at that step; None for a checkpoint of an earlier version.

    Returns:
      A line to print if the file was deleted, else "".

    Raises:
      UserError: if lines are missing or changed.
    """
    if written is None or _Written(kept := lines_until(path, step)).summary() == written:
        return ""
    if not path.exists():
        return f"{path} is gone, with its {written['lines']:,} lines until step {step}: it begins anew"
    raise UserError(
        f"{path} was changed: its {len(kept):,} lines until step {step} are not the {written['lines']:,} that the run "
        "wrote. Put the former file back, or delete this one to go on without its lines"
    )


def lines_until(path: Path, step: int) -> list[bytes]:
    """The complete lines of a JSON Lines file up to a step; damaged ones are left out.

    Raises:
      UserError: if the file cannot be read.
    """
    return [line for line in _lines(path) if line.endswith(b"\n") and step_of(line) <= step] if path.exists() else []


def step_of(line: bytes) -> float:
    """The step of a line; infinity if it is damaged."""
    try:
        step = json.loads(line)["step"]
    except (ValueError, KeyError, TypeError, RecursionError):
        return math.inf
    return step if isinstance(step, int) else math.inf


def _lines(path: Path) -> list[bytes]:
    try:
        return path.read_bytes().splitlines(keepends=True)
    except OSError as error:
        raise UserError(f"cannot read {path}: {error.strerror}") from error


class _Written:
    """The lines in a file, as a number and a digest."""

    def __init__(self, lines: Sequence[bytes]):
        self._count, self._digest = 0, hashlib.blake2b(digest_size=16)
        for line in lines:
            self.add(line)

    def add(self, line: bytes) -> None:
        self._count += 1
        self._digest.update(line)

    def summary(self) -> dict[str, Any]:
        return {"lines": self._count, "digest": self._digest.hexdigest()}


def drop_lines_after(path: Path, step: int) -> None:
    """Keeps the complete lines of a JSON Lines file up to a step, atomically.

    Raises:
      UserError: if the file cannot be read.
    """
    if path.exists():
        write_atomically(path, b"".join(lines_until(path, step)))


def read_metrics(path: Path) -> list[dict[str, float]]:
    """The lines of a `metrics.jsonl`.

    Raises:
      UserError: if it cannot be read, or a line is damaged.
    """
    lines = _lines(path)
    for number, line in enumerate(lines, 1):
        if math.isinf(step_of(line)):
            raise UserError(f"{path}: line {number} is damaged: fix or remove it")
    return [json.loads(line) for line in lines]


class TrainingProgress:
    """A progress bar on a terminal; one plain line per report elsewhere."""

    def __init__(self, console: Console, first_step: int, steps: int):
        """Starts the display."""
        self._console = console
        self._steps = steps
        columns = (
            TextColumn("training"),
            BarColumn(),
            MofNCompleteColumn(),
            TextColumn("{task.fields[status]}", markup=False),
            TimeRemainingColumn(),
        )
        self._progress = Progress(*columns, console=console, transient=True, disable=not console.is_terminal)
        self._task = self._progress.add_task("", total=steps, completed=first_step, status="")
        self._progress.start()

    def advance(self, step: int) -> None:
        """Moves the bar."""
        self._progress.update(self._task, completed=step)

    def report(self, step: int, status: str) -> None:
        """Shows the newest training metrics."""
        self._progress.update(self._task, status=status)
        if not self._console.is_terminal:
            self.say(f"step {step}/{self._steps}  {status}")

    def say(self, text: str) -> None:
        """Prints a permanent line."""
        self._console.print(text)

    def stop(self) -> None:
        """Clears the progress bar."""
        self._progress.stop()
