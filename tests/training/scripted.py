"""A run of the smallest task, whose evaluations follow a script: it tests the loop without a model."""

import jax
import numpy as np

from lm.console import Console
from lm.runs.config import FinetuneConfig, OptimizerConfig, PartitioningConfig, TrainingConfig
from lm.runs.work_directory import WorkDirectory
from lm.training.loop import Trainer
from lm.training.partitioning import make_partitioner
from lm.training.problem import Problem

FALLING = [3.0, 2.0, 2.5, 2.2, 2.1, 1.0, 1.5]  # the best for long is after step 2


class Mean:
    """The smallest task: a number that should be that of the rows."""

    def init(self, key):
        return {"kernel": jax.random.normal(key, (2,))}

    def loss(self, params, batch, dropout_key):
        total = ((params["kernel"][None] - batch["values"]) ** 2).sum()
        return total, {"loss": total, "objective": total, "weight": batch["row_weights"].sum()}


class Values:
    """Endless batches."""

    def __len__(self):
        return 1000

    def __getitem__(self, step):
        return {"values": np.full((8, 2), step, np.float32), "row_weights": np.ones(8, np.float32)}


def scripted(
    folder, script, metric="loss", learning_rate=0.1, initial_params=None, on_evaluation=None, console=None, **training
):
    """A run whose evaluation after each step finds the next number of a script."""
    values = {"steps": len(script), "evaluate_every": 1, "checkpoint_every": 1, "log_every": 1, **training}
    config = FinetuneConfig(
        optimizer=OptimizerConfig("sgd", learning_rate, warmup_steps=0, weight_decay=0.0, ema_decay=0.5),
        training=TrainingConfig(batch_size=8, **{"best_metric": metric} | values),
    )

    def evaluate(state):
        return {"validation/accuracy": 0.5, f"validation/{metric}": script[int(state.step) - 1]}

    rehearsed = {"validation/accuracy": 1.0, f"validation/{metric}": 1.0}
    problem = Problem(Mean(), Values(), evaluate, rehearsed, describe=str, initial_params=initial_params)
    partitioner = make_partitioner(PartitioningConfig(data=8))
    console = console or Console(quiet=True)
    return Trainer(config, problem, partitioner, WorkDirectory(folder), console, on_evaluation=on_evaluation).train()
