"""What the training loop needs to know about a run."""

import dataclasses
from collections.abc import Callable, Mapping

from lm.runs.state import TrainState
from lm.training.step import Task
from lm.types import Batches, Params


@dataclasses.dataclass(frozen=True)
class Problem:
    """A task with its data and evaluation.

    Attributes:
      task: what is learned.
      train_batches: this host's part of each step's batch, by step from 0.
      evaluate: metrics of the validation split, under `validation/...`.
      rehearsed: metrics with the same names and made-up values, available before training.
      describe: a line about an evaluation.
      unit: what a batch's weight counts.
      flops_per_unit: floating-point operations to train on one unit, for MFU; None: unknown.
      initial_params: initial parameters instead of the task's random ones: a tree of the same structure on the host.
    """

    task: Task
    train_batches: Batches
    evaluate: Callable[[TrainState], dict[str, float]]
    rehearsed: Mapping[str, float]
    describe: Callable[[dict[str, float]], str]
    unit: str = "tokens"
    flops_per_unit: int | None = None
    initial_params: Params | None = None
