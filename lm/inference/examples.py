"""A task's predictions for each of its examples, on any device or mesh.

Axes: N choices among classes, C classes.
"""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax
import numpy as np
from jax import Array

from lm.calibration.calibrators import Fitted
from lm.errors import UserError
from lm.tasks.supervised import SupervisedTask
from lm.types import Batch, Batches, HostBatch, Params


def make_prediction_step(
    task: SupervisedTask, axis_name: str | None = None
) -> Callable[[Params, Batch], dict[str, Array]]:
    """A function from (parameters, batch) to the task's predictions for every row of the whole batch, and its `index`.

    Args:
      task: what was learned.
      axis_name: the axis of `pmap` over which to gather, or None under `jit`.
    """

    def step(params: Params, batch: Batch) -> dict[str, Array]:
        # Rows of several hosts come in an order that depends on the devices: they carry their numbers with them.
        outputs = {**task.predict(params, batch), "index": batch["index"]}
        return outputs if axis_name is None else jax.lax.all_gather(outputs, axis_name, tiled=True)

    return step


def predict_examples(
    predict: Callable[[HostBatch], Mapping[str, Array]],
    batches: Batches,
    examples: int,
    advance: Callable[[], object] = lambda: None,
) -> list[dict[str, Any]]:
    """The outputs for each example, in the order of the examples.

    Args:
      predict: from this host's part of a batch to the outputs for the whole batch.
      batches: with an `index` of each row's example, -1 for none.
      examples: how many there are.
      advance: is called after each batch.
    """
    found: list[dict[str, Any]] = [{} for _ in range(examples)]
    for number in range(len(batches)):
        batch = batches[number]
        outputs = jax.tree.map(np.asarray, dict(predict(batch)))
        for row, example in enumerate(outputs.pop("index", batch["index"])):
            if example >= 0:
                found[example] = {name: values[row] for name, values in outputs.items()}
        advance()
    return found


def with_calibrator(outputs: Sequence[Mapping[str, Any]], calibrator: Fitted) -> list[dict[str, Any]]:
    """The outputs with a calibrator applied to their `logits`, which give predicted classes and confidences.

    Raises:
      UserError: if the outputs have no logits.
    """
    if "logits" not in outputs[0]:
        raise UserError("config.calibrator: calibrators need class logits; this task has none")
    flat = [output["logits"].reshape(-1, calibrator.classes) for output in outputs]
    calibrated_NC = np.asarray(calibrator.apply(np.concatenate(flat)))
    parts = np.split(calibrated_NC, np.cumsum([len(part) for part in flat])[:-1])
    return [
        {**output, "logits": part.reshape(output["logits"].shape)} for output, part in zip(outputs, parts, strict=True)
    ]
