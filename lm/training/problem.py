"""What a run is about, as the training loop sees it."""

import dataclasses
from collections.abc import Callable, Mapping

from lm.runs.state import TrainState
from lm.training.step import Task
from lm.types import Batches, Params


@dataclasses.dataclass(frozen=True)
class Problem:
    """Something to learn, and how to see whether it was learned.

    Attributes:
      task: what is learned.
      train_batches: this host's part of each step's batch, by the number of the step from 0.
      evaluate: metrics of the validation split, under `validation/...`.
      rehearsed: metrics of the same names with made-up values, from before anything was trained.
      describe: a line about an evaluation.
      unit: what the weight of a batch counts.
      flops_per_unit: floating-point operations to train on one, for MFU; None: not known.
      initial_params: to begin with, instead of the task's random ones: a tree like theirs on the host.
    """

    task: Task
    train_batches: Batches
    evaluate: Callable[[TrainState], dict[str, float]]
    rehearsed: Mapping[str, float]
    describe: Callable[[dict[str, float]], str]
    unit: str = "tokens"
    flops_per_unit: int | None = None
    initial_params: Params | None = None
