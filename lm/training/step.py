"""One training step and one evaluation step, as pure functions.

Losses stay sums and weights until the end, so that a step gives the same update however its tokens are distributed over
micro-batches and devices, whatever the padding.
"""

from collections.abc import Callable
from typing import Any, Protocol

import jax
import jax.numpy as jnp
import optax
from jax import Array

from lm.objectives.objective import PretrainingTask
from lm.runs.config import OptimizerConfig
from lm.runs.state import TrainState
from lm.training.optimizers import penalty
from lm.types import Batch, Params


class Task(Protocol):
    """What training needs of a task: every `PretrainingTask` and every `SupervisedTask` is one."""

    def init(self, key: Array) -> Params:
        """Random parameters."""

    def loss(self, params: Params, batch: Batch, dropout_key: Array | None) -> tuple[Array, dict[str, Array]]:
        """The objective's weighted sum, and weighted sums to report, `weight` among them."""


def init_state(task: Task, optimizer: optax.GradientTransformation, config: OptimizerConfig, key: Array) -> TrainState:
    """The state before the first step."""
    params = task.init(key)
    # A copy, because a step donates its buffers and a buffer cannot be donated twice.
    averaged = jax.tree.map(jnp.copy, params) if config.ema_decay else None
    return TrainState(jnp.zeros((), jnp.int32), params, optimizer.init(params), averaged)


def make_train_step(
    task: Task,
    optimizer: optax.GradientTransformation,
    config: OptimizerConfig,
    *,
    seed: int,
    micro_batches: int = 1,
    axis_name: str | None = None,
) -> Callable[[TrainState, Batch], tuple[TrainState, dict[str, Array]]]:
    """A function of (state, batch) to (state, sums).

    Args:
      task: what is learned.
      optimizer: from `make_optimizer`.
      config: the penalties and the decay of the moving average.
      seed: of dropout; keys depend only on it and the step.
      micro_batches: number of parts in which the batch is processed sequentially, to save memory. Each part's gradient
        is of a sum, and the total is divided by the total weight.
      axis_name: the axis of `pmap` over which to sum, or None under `jit`.

    Returns:
      The step. Its second result holds weighted sums, `gradient_norm` and, if there is one, `penalty`.
    """

    def gradients_of_sum(params: Params, batch: Batch, key: Array) -> tuple[Params, dict[str, Array]]:
        return jax.grad(task.loss, has_aux=True)(params, batch, key)

    def step(state: TrainState, batch: Batch) -> tuple[TrainState, dict[str, Array]]:
        key = jax.random.fold_in(jax.random.key(seed), state.step)
        if axis_name is not None:
            key = jax.random.fold_in(key, jax.lax.axis_index(axis_name))
        if micro_batches == 1:
            gradients, sums = gradients_of_sum(state.params, batch, key)
        else:
            gradients, sums = _accumulate(gradients_of_sum, state.params, batch, key, micro_batches)
        if axis_name is not None:
            gradients, sums = jax.lax.psum((gradients, sums), axis_name)
        # A batch of only padding has weight 0 and gradient 0; it must not become NaN.
        scale = 1 / jnp.maximum(sums["weight"], 1e-9)
        gradients = jax.tree.map(lambda gradient: gradient * scale, gradients)
        if config.l1 or config.l2:
            sums["penalty"], penalty_gradients = jax.value_and_grad(penalty)(state.params, config)
            gradients = jax.tree.map(jnp.add, gradients, penalty_gradients)
        sums["gradient_norm"] = optax.tree.norm(gradients)
        updates, optimizer_state = optimizer.update(gradients, state.optimizer_state, state.params)
        params = optax.apply_updates(state.params, updates)
        averaged = state.averaged_params
        if averaged is not None:
            averaged = optax.incremental_update(params, averaged, 1 - config.ema_decay)
        return TrainState(state.step + 1, params, optimizer_state, averaged), sums

    return step


def _accumulate(
    gradients_of_sum: Callable, params: Params, batch: Batch, key: Array, micro_batches: int
) -> tuple[Params, dict[str, Array]]:
    # Row r goes to part r % micro_batches: each part takes rows from every device, so no data moves.
    parts = jax.tree.map(lambda x: x.reshape(-1, micro_batches, *x.shape[1:]).swapaxes(0, 1), batch)

    def add_part(totals: tuple, indexed_part: tuple[Array, Batch]) -> tuple[tuple, None]:
        index, part = indexed_part
        return jax.tree.map(jnp.add, totals, gradients_of_sum(params, part, jax.random.fold_in(key, index))), None

    shapes = jax.eval_shape(gradients_of_sum, params, jax.tree.map(lambda x: x[0], parts), key)
    zeros = jax.tree.map(lambda x: jnp.zeros(x.shape, x.dtype), shapes)
    totals, _ = jax.lax.scan(add_part, zeros, (jnp.arange(micro_batches), parts))
    return totals


def make_evaluation_step(
    task: PretrainingTask, *, axis_name: str | None = None
) -> Callable[[TrainState, Batch], dict[str, Any]]:
    """A function of (state, batch) to weighted sums per row of the whole batch, [B], known to every device.

    Its `reliability` is a dict of `BinSums` over the whole batch.
    """

    def step(state: TrainState, batch: Batch) -> dict[str, Any]:
        sums = task.evaluate(state.evaluation_params, batch)
        reliability = sums.pop("reliability")
        if axis_name is not None:
            sums = jax.lax.all_gather(sums, axis_name, tiled=True)
            reliability = {kind: each.carried() for kind, each in jax.lax.psum(reliability, axis_name).items()}
        return {**sums, "reliability": reliability}

    return step
