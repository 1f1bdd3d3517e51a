"""What a run says at its end: how good its best and its last checkpoint are, what to do next, or where it stopped."""

import math
import shlex
from collections.abc import Callable

from lm.runs.checkpoints import Checkpoints
from lm.runs.work_directory import WorkDirectory
from lm.training.loop import Outcome
from lm.training.progress import read_metrics


def summary(directory: WorkDirectory, outcome: Outcome, describe: Callable[[dict[str, float]], str]) -> str:
    """A line about the best checkpoint, and one about the last if that is another.

    Args:
      directory: of the run, with its checkpoints closed.
      outcome: of its training, not stopped early by a signal.
      describe: a line about an evaluation's metrics.
    """
    last = int(outcome.state.step)
    of_last = f"step {last}, {describe(outcome.validation)}" if outcome.validation else f"step {last}"
    checkpoints = Checkpoints(directory.checkpoints, read_only=True, alone=True)
    best = checkpoints.best_step
    checkpoints.close()
    if best is None:
        return f"done: no evaluation ranks a checkpoint as the best; last checkpoint: {of_last}"
    if best == last:
        return f"done: the last checkpoint is the best: {of_last}"
    of_best = _logged(directory, best, outcome.validation)
    described = f"step {best}, {describe(of_best)}" if of_best else f"step {best}"
    return f"done: best checkpoint: {described}\n      last checkpoint: {of_last}"


def next_command(directory: WorkDirectory) -> str:
    """Where everything is, and a command that goes on from a finished run. Print it unwrapped."""
    workdir = shlex.quote(str(directory.path))
    if (directory.predictions / "validation.npz").exists():
        # Next tokens are classes by the thousand, which a matrix of parameters would not suit.
        config = "calibrate_quickstart" if directory.samples.exists() else "calibrate"
        job = f"calibrate --config={config} --workdir={workdir}"
    elif directory.samples.exists():
        job = f"generate --workdir={workdir} --prompt=TEXT"
    elif directory.predictions.exists():
        job = f"predict --workdir={workdir} --config.source=FILE"
    else:
        job = f"finetune --config=classify --config.init_from={workdir} --config.data.train=FILE --workdir=DIRECTORY"
    return f"everything is in {directory.path}\nnext: python -m experiments.{job}"


def _logged(directory: WorkDirectory, step: int, like: dict[str, float]) -> dict[str, float] | None:
    """The metrics of the evaluation at a step, with the names of another one; None if there was none."""
    for line in read_metrics(directory.metrics):
        if line["step"] == step and like.keys() <= line.keys():
            return {name: math.nan if line[name] is None else line[name] for name in like}
    return None


def stopped(outcome: Outcome) -> str:
    """A line about a run that a signal stopped."""
    assert outcome.stopped_by is not None
    return f"{outcome.stopped_by.name}: saved at step {int(outcome.state.step)}; run the same command to resume"
