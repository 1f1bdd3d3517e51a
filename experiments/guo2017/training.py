"""Trains small text classifiers on one device, one compiled call per epoch.

A model is a Flax module called as `model.apply(variables, words_BT, mask_BT, train)`, like `DeepAveragingNetwork`.

Axes: N texts, T words of a text with padding, B texts of a batch, S batches of an epoch, C classes.
"""

import functools
from collections.abc import Iterator
from typing import Any, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax import Array

from experiments.guo2017.texts import Words
from lm.errors import TrainingError

_PREDICTED_AT_A_TIME = 256  # keeps the processor busy; the embeddings of a whole data set would not fit in memory


class _State(NamedTuple):
    variables: Any
    optimizer: Any
    key: Array


def train_epochs(
    model: nn.Module,
    optimizer: optax.GradientTransformation,
    words: Words,
    labels_N: np.ndarray,
    *,
    batch_size: int,
    seed: int,
) -> Iterator[tuple[Any, float]]:
    """Trains indefinitely, reshuffling each epoch and dropping the last incomplete batch.

    Args:
      model: the model.
      optimizer: pass the same object again to compile once.
      words: the texts.
      labels_N: their classes.
      batch_size: B; reduced to the number of texts if there are fewer.
      seed: of initialization, order and dropout.

    Yields:
      After each epoch, the model's variables (donated to the next epoch, so use them before it) and the mean loss in
      nats.

    Raises:
      TrainingError: if the loss is not finite.
    """
    init_key, key = jax.random.split(jax.random.key(seed))
    rng = np.random.default_rng(seed)
    words, labels_N = jax.device_put((words, labels_N))
    batch_size = min(batch_size, len(labels_N))
    variables = jax.jit(model.init)(init_key, *_inputs(words, np.arange(1)))
    state = _State(variables, optimizer.init(variables["params"]), key)
    while True:
        order_N = rng.permutation(len(labels_N)).astype(np.int32)
        order_SB = order_N[: order_N.size // batch_size * batch_size].reshape(-1, batch_size)
        state, loss = _epoch(model, optimizer, state, words, labels_N, order_SB)
        if not jnp.isfinite(loss):
            raise TrainingError(f"the loss of seed {seed} is {loss}: lower the learning rate")
        yield state.variables, float(loss)


@functools.partial(jax.jit, static_argnames=("model", "optimizer"), donate_argnames="state")
def _epoch(
    model: nn.Module,
    optimizer: optax.GradientTransformation,
    state: _State,
    words: Words,
    labels_N: Array,
    order_SB: Array,
) -> tuple[_State, Array]:
    def step(state: _State, rows_B: Array) -> tuple[_State, Array]:
        key, dropout_key = jax.random.split(state.key)
        params, statistics = state.variables["params"], {k: v for k, v in state.variables.items() if k != "params"}

        def loss(params: Any) -> tuple[Array, Any]:
            logits_BC, new_statistics = model.apply(
                {"params": params, **statistics},
                *_inputs(words, rows_B),
                train=True,
                rngs={"dropout": dropout_key},
                mutable=list(statistics),
            )
            losses_B = optax.softmax_cross_entropy_with_integer_labels(logits_BC, labels_N[rows_B])
            return losses_B.mean(), new_statistics

        (value, new_statistics), gradient = jax.value_and_grad(loss, has_aux=True)(params)
        updates, optimizer_state = optimizer.update(gradient, state.optimizer, params)
        variables = {"params": optax.apply_updates(params, updates), **new_statistics}
        return _State(variables, optimizer_state, key), value

    state, losses_S = jax.lax.scan(step, state, order_SB)
    return state, losses_S.mean()


@functools.partial(jax.jit, static_argnames="model")
def predict(model: nn.Module, variables: Any, words: Words) -> Array:
    """Logits of each text, [N, C]."""

    def one(words: Words) -> Array:
        return model.apply(variables, *_inputs(jax.tree.map(lambda x: x[None], words), jnp.arange(1)))[0]

    return jax.lax.map(one, words, batch_size=_PREDICTED_AT_A_TIME)


def _inputs(words: Words, rows_B: Array | np.ndarray) -> tuple[Array, Array]:
    """Ids and mask of the selected texts, both [B, T]."""
    ids_BT = words.ids_NT[rows_B]
    return ids_BT, jnp.arange(ids_BT.shape[1])[None, :] < words.length_N[rows_B][:, None]
