"""The loss straight from hidden states: against its formula, on meshes, and what crosses the network."""

import dataclasses
import functools
import math
import re

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import AxisType, NamedSharding
from jax.sharding import PartitionSpec as P

from lm.evaluation.token_statistics import token_statistics
from lm.modules.linear_cross_entropy import TokenLoss, linear_cross_entropy, linear_token_statistics
from lm.modules.output_layer import OutputLayer

B, T, D, V = 8, 5, 16, 104
RANDOM = np.random.default_rng(0)
STATES = RANDOM.normal(size=(B, T, D)).astype(np.float32)
TARGETS = RANDOM.integers(V, size=(B, T)).astype(np.int32)
WEIGHTS = RANDOM.uniform(0, 2, size=(B, T)).astype(np.float32)
MATRIX = RANDOM.normal(size=(V, D)).astype(np.float32)
BIAS = RANDOM.normal(size=V).astype(np.float32)
PLAIN = OutputLayer(MATRIX)
CAPPED = OutputLayer(MATRIX, BIAS, scale=0.5, softcap=3.0)


def formula(layer, states, targets, weights, loss):
    """The objective and the negative log-likelihood, by definition."""
    products = jnp.einsum("btd,vd->btv", states, layer.matrix_VD)
    logits = layer.scale * products + (0 if layer.bias_V is None else layer.bias_V[None, None])
    if layer.softcap is not None:
        logits = layer.softcap * jnp.tanh(logits / layer.softcap)
    log_probs = jax.nn.log_softmax(logits)
    smoothed = (1 - loss.label_smoothing) * jax.nn.one_hot(targets, V) + loss.label_smoothing / V
    per_token = -(smoothed * log_probs).sum(axis=-1)
    per_token += loss.z_loss * jnp.square(jax.nn.logsumexp(logits, axis=-1))
    nll = -jnp.take_along_axis(log_probs, targets[..., None], axis=-1)[..., 0]
    return (weights * per_token).sum(), (weights * nll).sum()


def mesh_of(*shape):
    return jax.make_mesh(shape, ("data", "fsdp", "tensor"), (AxisType.Auto,) * 3)


def differentiated(loss, mesh=None):
    function = functools.partial(linear_cross_entropy, loss=loss, mesh=mesh)
    return jax.jit(jax.value_and_grad(function, argnums=(0, 1), has_aux=True))


LOSSES = [TokenLoss(), TokenLoss(chunk=7), TokenLoss(0.2, 0.1, chunk=B * T + 1), TokenLoss(0.2, 0.1, chunk=16)]


@pytest.mark.parametrize("layer", [PLAIN, CAPPED], ids=["plain", "capped"])
@pytest.mark.parametrize("loss", LOSSES, ids=str)
def test_values_and_gradients_are_those_of_the_formula(layer, loss):
    (total, sums), gradients = differentiated(loss)(layer, STATES, TARGETS, WEIGHTS)
    derived = jax.value_and_grad(formula, argnums=(0, 1), has_aux=True)
    (expected, nll), expected_gradients = derived(layer, STATES, TARGETS, WEIGHTS, loss)
    np.testing.assert_allclose(total, expected, rtol=1e-6)
    np.testing.assert_allclose([sums["loss"], sums["objective"]], [nll, expected], rtol=1e-6)
    np.testing.assert_allclose(sums["weight"], WEIGHTS.sum(), rtol=1e-6)
    chex.assert_trees_all_close(gradients, expected_gradients, rtol=1e-4, atol=1e-5)
    # Without a gradient it is the same number, and the gradient is that of a factor too.
    np.testing.assert_allclose(linear_cross_entropy(layer, STATES, TARGETS, WEIGHTS, loss, None)[0], total, rtol=1e-6)
    tripled = jax.grad(lambda states: 3 * linear_cross_entropy(layer, states, TARGETS, WEIGHTS, loss, None)[0])
    np.testing.assert_allclose(tripled(STATES), 3 * gradients[1], rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("target", [-1, V])
def test_a_target_that_is_no_id_makes_the_loss_nan(target):
    targets = TARGETS.copy()
    targets[2, 3] = target
    assert np.isnan(linear_cross_entropy(PLAIN, STATES, targets, WEIGHTS, TokenLoss(), None)[0])


def test_sixteen_bit_factors_keep_logits_and_the_sum_of_gradients_in_float32():
    narrow = dataclasses.replace(PLAIN, dtype=jnp.dtype("bfloat16"))
    states = STATES.astype(jnp.bfloat16)
    (total, _), (of_layer, of_states) = differentiated(TokenLoss(chunk=3))(narrow, states, TARGETS, WEIGHTS)
    rounded = dataclasses.replace(PLAIN, matrix_VD=MATRIX.astype(jnp.bfloat16).astype(np.float32))
    exact = differentiated(TokenLoss())(rounded, states.astype(np.float32), TARGETS, WEIGHTS)
    np.testing.assert_allclose(total, exact[0][0], rtol=1e-6)
    assert of_layer.matrix_VD.dtype == jnp.float32
    assert of_states.dtype == jnp.bfloat16
    # The factors of the gradients' products are rounded to 8 bits, each sum of them is not.
    for found, expected in ((of_layer.matrix_VD, exact[1][0].matrix_VD), (of_states, exact[1][1])):
        error = np.abs(np.asarray(found, np.float32) - expected).max() / np.abs(expected).max()
        assert error < 2**-7


MESHES = [(8, 1, 1), (1, 8, 1), (1, 1, 8), (2, 2, 2)]


@pytest.mark.parametrize("shape", MESHES, ids=str)
@pytest.mark.parametrize("loss", [TokenLoss(), TokenLoss(0.2, 0.1, chunk=3)], ids=str)
def test_every_mesh_gives_the_same(shape, loss):
    expected = differentiated(loss)(CAPPED, STATES, TARGETS, WEIGHTS)
    found = differentiated(loss, mesh_of(*shape))(CAPPED, STATES, TARGETS, WEIGHTS)
    np.testing.assert_allclose(found[0][0], expected[0][0], rtol=1e-6)
    chex.assert_trees_all_close(found, expected, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize(("rows", "vocab_size", "width"), [(6, V, D), (B, V - 1, D), (B, V, D - 1)])
def test_sizes_that_the_devices_cannot_share_evenly_give_the_same(rows, vocab_size, width):
    layer, states = OutputLayer(MATRIX[:vocab_size, :width]), STATES[:rows, :, :width]
    arguments = layer, states, TARGETS[:rows] % vocab_size, WEIGHTS[:rows]
    found = differentiated(TokenLoss(chunk=3), mesh_of(2, 2, 2))(*arguments)
    chex.assert_trees_all_close(found, differentiated(TokenLoss())(*arguments), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize(("shape", "chunk"), [((2, 2, 2), 3), ((1, 1, 8), 0), ((2, 4, 1), 0)])
def test_statistics_on_a_mesh_are_those_of_the_logits(shape, chunk):
    states, targets = STATES.copy(), TARGETS.copy()
    states[0] = 0  # all logits equal: every token is at the top
    mesh = mesh_of(*shape)
    found = jax.jit(functools.partial(linear_token_statistics, chunk=chunk, mesh=mesh))(PLAIN, states, targets)
    expected = token_statistics(PLAIN(states), targets)
    chex.assert_trees_all_close(found, expected, rtol=1e-5, atol=1e-5)


def collectives(function, mesh, *arguments):
    """The shapes that cross the network in the compiled function: [(kind, dimensions)]."""
    text = function.lower(*arguments).compile().as_text()
    pattern = r"= \(?([^=]*?)\)? (all-reduce|all-gather|reduce-scatter|all-to-all|collective-permute)(?:-start)?\("
    found = []
    for shapes, kind in re.findall(pattern, text):
        for dimensions in re.findall(r"\w+\[([\d,]*)\]", shapes):
            found.append((kind, tuple(int(size) for size in dimensions.split(",") if size)))
    return found


def test_logits_of_a_chunk_are_all_that_is_held():
    def largest(chunk):
        program = jax.make_jaxpr(differentiated(TokenLoss(chunk=chunk)))(PLAIN, STATES, TARGETS, WEIGHTS)
        sizes = re.findall(r"f32\[([\d,]+)\]", str(program))
        return max(math.prod(map(int, size.split(","))) for size in sizes)

    assert largest(0) == B * T * V
    assert largest(4) == V * D  # the matrix itself


def placed(mesh, layer, states, targets, weights):
    rows, matrix = NamedSharding(mesh, P(("data", "fsdp"))), NamedSharding(mesh, P("tensor", "fsdp"))
    return jax.device_put(layer, matrix), *(jax.device_put(x, rows) for x in (states, targets, weights))


def sends_logits(found):
    """Whether something with V, or a part of it, as its last axis crosses the network; D divides neither."""
    return any(shape and shape[-1] in (V, V // 2, V // 4, V // 8) for _, shape in found)


@pytest.mark.parametrize("shape", [(1, 8, 1), (2, 2, 2)], ids=str)
def test_no_logits_cross_the_network(shape):
    mesh = mesh_of(*shape)
    arguments = placed(mesh, PLAIN, STATES, TARGETS, WEIGHTS)
    whole, chunked = (collectives(differentiated(TokenLoss(chunk=chunk), mesh), mesh, *arguments) for chunk in (0, 2))
    assert whole
    assert not sends_logits(whole)
    assert not sends_logits(chunked)
    # The matrix and its gradient are sent as often as without chunks, whose loop sends only states.
    matrices = [sorted(each for each in found if each[1] and each[1][0] >= V // 2) for found in (whole, chunked)]
    assert matrices[0] == matrices[1]
    assert matrices[0]


def test_left_to_the_compiler_the_logits_would_cross_it():
    """The test above can fail: a chunked loss without placement is what it looks for."""
    mesh = mesh_of(1, 8, 1)

    def chunked(layer, states, targets, weights):
        def one(part):
            return layer(part)

        parts = states.reshape(-1, 4, D)
        logits = jax.lax.map(jax.checkpoint(one), parts).reshape(B, T, V)
        return (weights * token_statistics(logits, targets).nll).sum()

    arguments = placed(mesh, PLAIN, STATES, TARGETS, WEIGHTS)
    assert sends_logits(collectives(jax.jit(jax.grad(chunked, argnums=(0, 1))), mesh, *arguments))
