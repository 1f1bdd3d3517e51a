"""One training step: the same update however the batch is cut, from nothing but the state and the batch."""

import dataclasses
import functools
import math

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from lm.models.decoder_lm import DecoderLM
from lm.modules.config import ModelConfig
from lm.objectives.causal_lm import CausalLM
from lm.runs.config import OptimizerConfig
from lm.training.optimizers import make_optimizer
from lm.training.step import init_state, make_evaluation_step, make_train_step

SGD = OptimizerConfig("sgd", 0.5, "constant", warmup_steps=0, weight_decay=0.0, clip_norm=0.0)
RANDOM = np.random.default_rng(0)
# Rows of very different weight, one of none: a mean of means would be far off.
BATCH = {
    "inputs": RANDOM.normal(size=(4, 3, 5)).astype(np.float32),
    "targets": RANDOM.normal(size=(4, 3)).astype(np.float32),
    "weights": np.array([[1, 1, 1], [0, 0, 0], [0.5, 0, 0], [1, 0, 1]], np.float32),
}


class Regression:
    """The smallest task there is: a line through weighted points. Its sums tell which noise each call was given."""

    def init(self, key):
        return {"kernel": jax.random.normal(key, (5,)), "bias": jnp.full((), 0.3)}

    def loss(self, params, batch, dropout_key):
        residuals = batch["inputs"] @ params["kernel"] + params["bias"] - batch["targets"]
        total, noise = (batch["weights"] * residuals**2).sum(), jax.random.normal(dropout_key)
        return total, {"loss": total, "weight": batch["weights"].sum(), "noise": noise, "noise_squared": noise**2}

    def evaluate(self, params, batch):
        squares = (batch["inputs"] @ params["kernel"] + params["bias"] - batch["targets"]) ** 2
        sums = {"loss": (batch["weights"] * squares).sum(axis=1), "weight": batch["weights"].sum(axis=1)}
        return {**sums, "reliability": {}}


TASK = Regression()


@functools.cache
def setup(config=SGD, **choices):
    """The first state and the compiled step."""
    optimizer = make_optimizer(config, 10)
    step = jax.jit(make_train_step(TASK, optimizer, config, **{"seed": 0} | choices))
    return jax.jit(lambda key: init_state(TASK, optimizer, config, key))(jax.random.key(1)), step


def without_noise(state_and_sums):
    state, sums = state_and_sums
    return state, {name: total for name, total in sums.items() if not name.startswith("noise")}


@functools.cache
def whole_batch():
    state, step = setup()
    return state, *without_noise(step(state, BATCH))


def test_update_is_that_of_the_mean_over_tokens():
    state, after, sums = whole_batch()
    kernel, weights = np.asarray(state.params["kernel"], np.float64), BATCH["weights"]
    residuals = BATCH["inputs"] @ kernel + 0.3 - BATCH["targets"]
    gradient = 2 * np.einsum("bt,bt,btd->d", weights, residuals, BATCH["inputs"]) / weights.sum()
    of_bias = 2 * (weights * residuals).sum() / weights.sum()
    np.testing.assert_allclose(after.params["kernel"], kernel - 0.5 * gradient, rtol=1e-5)
    np.testing.assert_allclose(sums["gradient_norm"], math.hypot(*gradient, of_bias), rtol=1e-5)
    np.testing.assert_allclose(sums["loss"], (weights * residuals**2).sum(), rtol=1e-5)
    assert sums["weight"] == weights.sum()
    assert (state.step, after.step) == (0, 1)


@pytest.mark.parametrize("micro_batches", [2, 4])
def test_accumulation_equals_one_big_batch(micro_batches):
    state, step = setup(micro_batches=micro_batches)
    chex.assert_trees_all_close(without_noise(step(state, BATCH)), whole_batch()[1:], rtol=1e-5)


def test_devices_sum_to_one_big_batch():
    """`axis_name` sums over devices, here over a mapped axis of two halves."""
    state, step = setup(axis_name="devices")
    halves = jax.tree.map(lambda leaf: leaf.reshape(2, 2, *leaf.shape[1:]), BATCH)
    parts = without_noise(jax.vmap(step, in_axes=(None, 0), axis_name="devices")(state, halves))
    for part in range(2):
        chex.assert_trees_all_close(jax.tree.map(lambda leaf: leaf[part], parts), whole_batch()[1:], rtol=1e-5)  # noqa: B023


def test_a_batch_of_padding_leaves_no_nan():
    config = OptimizerConfig("adamw", 0.1, "constant", warmup_steps=0, weight_decay=0.0, ema_decay=0.75)
    state, step = setup(config, micro_batches=2)
    padded, sums = step(state, BATCH | {"weights": np.zeros((4, 3), np.float32)})
    chex.assert_trees_all_equal(padded.params, state.params)
    assert sums["weight"] == sums["loss"] == sums["gradient_norm"] == 0
    chex.assert_tree_all_finite(step(padded, BATCH))


def test_moving_average_equals_its_formula():
    state, step = setup(dataclasses.replace(SGD, ema_decay=0.75))
    chex.assert_trees_all_equal(state.averaged_params, state.params)
    expected = state.params
    for _ in range(3):
        state, _ = step(state, BATCH)
        expected = jax.tree.map(lambda average, new: 0.75 * average + 0.25 * new, expected, state.params)
        chex.assert_trees_all_close(state.averaged_params, expected, rtol=1e-5)
        chex.assert_trees_all_equal(state.evaluation_params, state.averaged_params)
    assert abs(float(state.params["bias"] - state.averaged_params["bias"])) > 1e-3
    without = whole_batch()[0]
    assert without.averaged_params is None
    assert without.evaluation_params is without.params


def test_averages_start_as_a_copy():
    """A step may donate its state, and one buffer can't be given away twice."""
    config = dataclasses.replace(SGD, ema_decay=0.75)
    state = init_state(TASK, make_optimizer(config, 10), config, jax.random.key(1))
    for name, leaf in state.params.items():
        assert leaf.unsafe_buffer_pointer() != state.averaged_params[name].unsafe_buffer_pointer()


def test_penalties_add_their_gradient_once_per_step():
    config, (state, plain, plain_sums) = dataclasses.replace(SGD, l1=0.1, l2=0.3), whole_batch()
    kernel = np.asarray(state.params["kernel"])
    for micro_batches in (1, 2):
        after, sums = setup(config, micro_batches=micro_batches)[1](state, BATCH)
        pulled = np.asarray(plain.params["kernel"]) - np.asarray(after.params["kernel"])
        np.testing.assert_allclose(pulled, 0.5 * (0.1 * np.sign(kernel) + 0.3 * kernel), rtol=1e-4)
        np.testing.assert_allclose(after.params["bias"], plain.params["bias"], rtol=1e-5)
        np.testing.assert_allclose(sums["penalty"], 0.1 * abs(kernel).sum() + 0.15 * (kernel**2).sum(), rtol=1e-5)
        np.testing.assert_allclose(sums["loss"], plain_sums["loss"], rtol=1e-5)
    assert "penalty" not in plain_sums


def test_a_step_is_a_function_of_state_batch_and_seed():
    state, step = setup()
    chex.assert_trees_all_equal(step(state, BATCH), step(state, BATCH))
    draws = [step(dataclasses.replace(state, step=jnp.asarray(n)), BATCH)[1]["noise"] for n in range(3)]
    draws.append(setup(seed=1)[1](state, BATCH)[1]["noise"])
    assert len({float(draw) for draw in draws}) == 4, "two steps or two seeds share their dropout"


def test_micro_batches_and_devices_draw_their_own_dropout():
    state, step = setup(micro_batches=2)
    of_micro_batches = step(state, BATCH)[1]
    halves = jax.tree.map(lambda leaf: leaf.reshape(2, 2, *leaf.shape[1:]), BATCH)
    of_devices = jax.vmap(setup(axis_name="devices")[1], in_axes=(None, 0), axis_name="devices")(state, halves)[1]
    for sums in (of_micro_batches, jax.tree.map(lambda leaf: leaf[0], of_devices)):
        # Of two numbers, the sum squared is twice the sum of squares just where they are equal.
        assert float(sums["noise"]) ** 2 != pytest.approx(2 * float(sums["noise_squared"]), rel=1e-3)


def test_evaluation_uses_the_average_and_keeps_rows_separate():
    state, step = setup(dataclasses.replace(SGD, ema_decay=0.75))
    state, _ = step(state, BATCH)
    rows = jax.jit(make_evaluation_step(TASK))(state, BATCH)
    chex.assert_trees_all_close(rows, TASK.evaluate(state.averaged_params, BATCH), rtol=1e-5)
    assert np.abs(np.asarray(rows["loss"]) - np.asarray(TASK.evaluate(state.params, BATCH)["loss"])).max() > 1e-3
    halves = jax.tree.map(lambda leaf: leaf.reshape(2, 2, *leaf.shape[1:]), BATCH)
    gather = make_evaluation_step(TASK, axis_name="devices")
    mapped = jax.vmap(gather, in_axes=(None, 0), axis_name="devices")(state, halves)
    for part in range(2):
        chex.assert_trees_all_close(jax.tree.map(lambda leaf: leaf[part], mapped), rows, rtol=1e-5)  # noqa: B023


VOCAB = 50
MODEL = DecoderLM(ModelConfig(vocab_size=VOCAB, layers=1, width=16, heads=2, max_length=8))
ADAMW = OptimizerConfig(warmup_steps=0, learning_rate=0.01, epsilon=1e-3)


def model_batch():
    tokens = np.random.default_rng(3).integers(VOCAB, size=(4, 9)).astype(np.int32)
    segments = np.array([[1] * 8, [1] * 3 + [2] * 5, [1] * 2 + [0] * 6, [0] * 8], np.int32)
    positions = np.array([[*range(8)], [*range(3), *range(5)], [0, 1] + [0] * 6, [0] * 8], np.int32)
    return {
        "tokens": tokens[:, :-1],
        "targets": tokens[:, 1:],
        "weights": (segments > 0).astype(np.float32),
        "positions": positions,
        "segments": segments,
    }


@functools.cache
def first_step_of_a_model(micro_batches):
    task, optimizer = CausalLM(MODEL), make_optimizer(ADAMW, 10)
    state = jax.jit(lambda key: init_state(task, optimizer, ADAMW, key))(jax.random.key(0))
    step = make_train_step(task, optimizer, ADAMW, seed=0, micro_batches=micro_batches)
    return state, *jax.jit(step)(state, model_batch())


def test_accumulation_of_a_model_equals_one_big_batch():
    """Packed documents, ragged weights, Adam: parameters and sums after one step."""
    (before, whole, sums), (_, cut, sums_of_cut) = first_step_of_a_model(1), first_step_of_a_model(2)
    chex.assert_trees_all_close(sums_of_cut, sums, rtol=1e-4)
    chex.assert_trees_all_close(cut.params, whole.params, atol=1e-5)
    moved = jax.tree.map(lambda old, new: np.abs(np.asarray(new) - np.asarray(old)).max(), before.params, whole.params)
    assert min(jax.tree.leaves(moved)) > 1e-4


GOLDEN = {"loss": 3.93678, "gradient_norm": 1.40489}


def test_golden_first_step():
    sums = first_step_of_a_model(1)[2]
    measured = {"loss": float(sums["loss"] / sums["weight"]), "gradient_norm": float(sums["gradient_norm"])}
    assert sums["weight"] == 18
    assert measured["loss"] == pytest.approx(math.log(VOCAB), abs=0.05), (
        f"an untrained model knows nothing: its loss must be near log({VOCAB}) = {math.log(VOCAB):.3f}"
    )
    assert measured == pytest.approx(GOLDEN, abs=1e-4), (
        "the first step of a fixed model on a fixed batch changed. If initialization, the model, the loss or the random"
        f" keys were meant to change, put {measured} into GOLDEN and say so; otherwise something broke"
    )
