"""A trained model, read back from its work directory."""

import dataclasses
from collections.abc import Mapping
from typing import Any

import jax
from jax.sharding import Mesh

from lm.data.tokenizers import Tokenizer
from lm.errors import UserError
from lm.models.sharding import placed_shapes
from lm.modules.config import ModelConfig
from lm.objectives.objective import PretrainingTask
from lm.objectives.registry import make_task
from lm.runs.checkpoints import Checkpoints
from lm.runs.config import FinetuneConfig, RunConfig
from lm.runs.damage import first_line
from lm.runs.work_directory import WorkDirectory, with_vocabulary
from lm.tasks.registry import make_supervised_task
from lm.tasks.supervised import SupervisedTask
from lm.types import Params

# How often to choose a checkpoint anew if the run that trains deletes the chosen one.
_ATTEMPTS = 3


@dataclasses.dataclass(frozen=True)
class TrainedRun:
    """The model in a work directory.

    Attributes:
      config: of the run, with its vocabulary size.
      tokenizer: of the run.
      classes: names of the classes, of a fine-tuned classifier.
      task: what was learned, for one device.
      params: of the chosen checkpoint; their moving average, if the run kept one.
      step: of the checkpoint.
    """

    config: RunConfig
    tokenizer: Tokenizer
    classes: tuple[str, ...]
    task: PretrainingTask | SupervisedTask
    params: Params
    step: int

    @property
    def model_config(self) -> ModelConfig:
        """The shape of the model."""
        return self.config.model


def load_run(
    directory: WorkDirectory, which: str = "best", flag: str = "--checkpoint", mesh: Mesh | None = None
) -> TrainedRun:
    """Reads a run.

    Args:
      directory: of the run.
      which: the "best" checkpoint by its validation metric, the "last", or a step.
      flag: the flag that chose it, for messages.
      mesh: of the devices that share the parameters, those of all hosts; None: this host's first device holds them.

    Raises:
      UserError: if the run or the checkpoint cannot be read, or does not match the config.
    """
    config = directory.load_config()
    tokenizer = Tokenizer.load(directory.tokenizer)
    config = with_vocabulary(config, tokenizer)
    classes = directory.load_classes()
    task: PretrainingTask | SupervisedTask
    if isinstance(config, FinetuneConfig):
        task = make_supervised_task(config.task, config.model, tokenizer, classes, mesh=mesh)
    else:
        task = make_task(config.objective, config.model, tokenizer, mesh)
    like = placed_shapes(jax.eval_shape(task.init, jax.random.key(0)), mesh)
    for _ in range(_ATTEMPTS):
        found = _restore(directory, directory.origin(config), which, flag, like, alone=mesh is None)
        if found is not None:
            return TrainedRun(config, tokenizer, classes, task, *found)
    raise UserError(f"the checkpoints in {directory.checkpoints} were deleted while they were read: try again")


def _restore(
    directory: WorkDirectory, origin: Mapping[str, Any], which: str, flag: str, like: Params, alone: bool
) -> tuple[Params, int] | None:
    """Parameters and their step; None if the run that trains deleted the checkpoint in the meantime."""
    none_yet = UserError(f"{directory.path} has no checkpoint yet: train first")
    if not directory.checkpoints.exists():
        raise none_yet
    checkpoints = Checkpoints(directory.checkpoints, read_only=True, origin=origin, alone=alone)
    if not checkpoints.steps:
        raise none_yet
    step = _chosen(checkpoints, which, flag)
    try:
        return checkpoints.restore_params(like, step), step
    except UserError:
        raise
    except Exception as error:  # a broken file can raise anything
        if not (directory.checkpoints / str(step)).exists():
            return None
        others = ", ".join(str(other) for other in checkpoints.steps if other != step) or "none"
        raise UserError(
            f"checkpoint {step} in {directory.checkpoints} cannot be read ({first_line(error)}); other values for "
            f"{flag}: {others}"
        ) from error
    finally:
        checkpoints.close()


def _chosen(checkpoints: Checkpoints, which: str, flag: str) -> int:
    steps = checkpoints.steps
    if which == "last":
        return steps[-1]
    if which == "best":
        best = checkpoints.best_step
        return steps[-1] if best is None else best
    if not (which.isascii() and which.isdigit() and int(which) in steps):
        known = ", ".join(str(step) for step in steps)
        raise UserError(f"{flag}={which} does not exist: choose best, last or one of {known}")
    return int(which)
