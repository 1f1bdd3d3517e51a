"""Progress reports of a run: a progress line, JSON Lines, TensorBoard."""

import json
import math
import os
from pathlib import Path
from typing import Any

from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn
from tensorboardX import SummaryWriter

from lm.console import Console
from lm.files import write_atomically
from lm.runs.config import RunConfig
from lm.runs.tensorboard import add_settings, tag_of
from lm.runs.work_directory import WorkDirectory


class MetricsWriter:
    """Writes metrics to `metrics.jsonl`, speeds to `speed.jsonl`, and both to TensorBoard.

    Metrics depend only on config, seed and device count, so `cmp` shows whether two runs were identical.
    """

    def __init__(self, directory: WorkDirectory, step: int):
        """Resumes after `step`: lines of later steps, from an interrupted run, are dropped."""
        for path in (directory.metrics, directory.speed):
            drop_lines_after(path, step)
        self._metrics = directory.metrics.open("a", encoding="utf-8")
        self._speed = directory.speed.open("a", encoding="utf-8")
        self._tensorboard = SummaryWriter(str(directory.tensorboard), purge_step=step + 1 if step else None)

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
        """Flushes the lines to disk. Call this before writing a checkpoint."""
        for file in (self._metrics, self._speed):
            file.flush()
            os.fsync(file.fileno())

    def close(self) -> None:
        """Flushes and closes."""
        self.flush()
        self._metrics.close()
        self._speed.close()
        self._tensorboard.close()

    def _write(self, file: Any, step: int, values: dict[str, float]) -> None:
        # JSON has no NaN; readers expect null.
        finite = {name: value if math.isfinite(value) else None for name, value in values.items()}
        file.write(json.dumps({"step": step, **finite}, allow_nan=False) + "\n")
        for name, value in values.items():
            self._tensorboard.add_scalar(tag_of(name), value, step)


def drop_lines_after(path: Path, step: int) -> None:
    """Keeps the lines of a JSON Lines file up to a step, atomically; an incomplete line is dropped too."""
    if not path.exists():
        return
    kept = []
    for line in path.read_text(encoding="utf-8").splitlines(keepends=True):
        try:
            if not line.endswith("\n") or json.loads(line)["step"] > step:
                continue
        except (ValueError, KeyError, TypeError):
            continue
        kept.append(line)
    write_atomically(path, "".join(kept))


def read_metrics(path: Path) -> list[dict[str, float]]:
    """The lines of a `metrics.jsonl`."""
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


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
