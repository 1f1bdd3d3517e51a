"""The stack: scanned or unrolled, rematerialized or not, it computes the same; residual branches start small."""

import dataclasses
import functools
import math

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from lm.modules.config import ModelConfig
from lm.modules.stack import Caches, Memory, Stack, empty_caches
from lm.modules.visibility import Visibility, segment_mask

LAYERS = 2
CAUSAL = Visibility(causal=True)
SEGMENTS = np.array([[1, 1, 1, 2, 2, 2]])


def make_config(**values):
    # Derived gradients: the compiler can undo their rematerialization, and a hand-written backward pass hides it.
    shape = {
        "vocab_size": 13,
        "layers": LAYERS,
        "width": 8,
        "heads": 4,
        "kv_heads": 2,
        "max_length": 6,
        "attention": "xla",
    }
    return ModelConfig(**shape | values)


def make_stack(config):
    return Stack(config, causal=True)


def random_params(config):
    """Weights large enough that every part of the stack matters, the same for every unrolled config of this file."""
    stream = jnp.zeros((1, 6, config.width))
    shapes = jax.eval_shape(lambda: make_stack(config).init(jax.random.key(0), stream, None, CAUSAL))["params"]
    random = np.random.default_rng(0)
    return jax.tree.map(lambda leaf: random.normal(size=leaf.shape, scale=0.5).astype(np.float32), shapes)


def stacked(params):
    """Unrolled layers' parameters in the form that `scan_layers` keeps."""
    layers = [params[f"layer_{layer}"] for layer in range(LAYERS)]
    rest = {name: value for name, value in params.items() if not name.startswith("layer_")}
    return {"layers": jax.tree.map(lambda *leaves: np.stack(leaves), *layers)} | rest


@functools.cache
def outputs_and_gradients(rematerialize, scan_layers=False):
    """The stream, its gradients, and the compiled program's text."""
    config = make_config(rematerialize=rematerialize, scan_layers=scan_layers)
    params = random_params(make_config())
    stream = np.random.default_rng(1).normal(size=(1, 6, 8)).astype(np.float32)
    visibility = Visibility(segment_mask(SEGMENTS, SEGMENTS), causal=True)

    def loss(params, stream):
        outputs, _ = make_stack(config).apply({"params": params}, stream, None, visibility)
        return jnp.sin(outputs).sum(), outputs

    function = jax.jit(jax.grad(loss, argnums=(0, 1), has_aux=True))
    compiled = function.lower(stacked(params) if scan_layers else params, stream).compile()
    gradients, outputs = compiled(stacked(params) if scan_layers else params, stream)
    return outputs, gradients, compiled.as_text()


@pytest.mark.parametrize("rematerialize", ["dots", "full"])
def test_rematerialization_changes_no_gradient(rematerialize):
    expected, actual = outputs_and_gradients("none")[:2], outputs_and_gradients(rematerialize)[:2]
    chex.assert_trees_all_close(actual, expected, rtol=1e-4, atol=1e-5)
    assert all(np.abs(leaf).max() > 1e-3 for leaf in jax.tree.leaves(expected))


@pytest.mark.parametrize("scan_layers", [False, True])
def test_rematerialization_computes_again(scan_layers):
    """Equal gradients would also come of a policy that the compiler undid: attention's softmax must be taken twice."""

    def exponentials(rematerialize):
        return outputs_and_gradients(rematerialize, scan_layers)[2].count(" exponential(")

    assert exponentials("full") > exponentials("none")
    if not scan_layers:
        assert exponentials("dots") > exponentials("none")


@pytest.mark.parametrize("rematerialize", ["none", "full"])
def test_scanned_layers_equal_unrolled_ones(rematerialize):
    outputs, (params, stream), _ = outputs_and_gradients("none")
    expected = outputs, (stacked(params), stream)
    chex.assert_trees_all_close(
        outputs_and_gradients(rematerialize, scan_layers=True)[:2], expected, rtol=1e-4, atol=1e-5
    )


@functools.cache
def reading_stack(scan_layers):
    """Outputs and gradients, with respect to all that goes in, of a stack that has every part there is."""
    config = make_config(
        positions="relative",
        relative_buckets=4,
        relative_max_distance=4,
        normalization_place="after",
        attention="explicit",
        scan_layers=scan_layers,
    )
    model, random = Stack(config, causal=True, cross_attention=True), np.random.default_rng(0)
    stream, memory = (random.normal(size=shape).astype(np.float32) for shape in ((1, 6, 8), (1, 3, 8)))
    visibility = Visibility(segment_mask(SEGMENTS, SEGMENTS), causal=True)
    mask = segment_mask(SEGMENTS, np.array([[1, 2, 2]]))
    unrolled = Stack(dataclasses.replace(config, scan_layers=False), causal=True, cross_attention=True)
    init = functools.partial(unrolled.init, jax.random.key(0))
    shapes = jax.eval_shape(init, stream, None, visibility, memory=Memory(memory))["params"]
    params = jax.tree.map(lambda leaf: random.normal(size=leaf.shape, scale=0.5).astype(np.float32), shapes)

    def loss(params, stream, memory):
        inputs = (stream, None, visibility)
        outputs, _ = model.apply({"params": params}, *inputs, memory=Memory(memory, Visibility(mask)))
        return jnp.sin(outputs).sum(), outputs

    given = stacked(params) if scan_layers else params
    (params, stream, memory), outputs = jax.jit(jax.grad(loss, argnums=(0, 1, 2), has_aux=True))(given, stream, memory)
    return (params if scan_layers else stacked(params)), stream, memory, outputs


def test_scanned_layers_that_read_a_memory_equal_unrolled_ones():
    expected = reading_stack(scan_layers=False)
    chex.assert_trees_all_close(reading_stack(scan_layers=True), expected, rtol=1e-4, atol=1e-5)
    assert all(np.abs(leaf).max() > 1e-4 for leaf in jax.tree.leaves(expected)), "a part gets no gradient"
    assert expected[0]["relative_positions"]["embedding"].shape == (4, 4), "layers share the biases"


def test_normalization_before_ends_with_one_and_normalization_after_is_part_of_each_sum():
    """With branches that add nothing only the normalizations are left."""
    stream = np.random.default_rng(0).normal(2, 3, size=(1, 6, 8)).astype(np.float32)
    deviation = stream.std(axis=-1, keepdims=True)
    once = 2 * (stream - stream.mean(axis=-1, keepdims=True)) / deviation
    for place in ("before", "after"):
        config = make_config(normalization_place=place, normalization_epsilon=1e-12)
        params = jax.tree_util.tree_map_with_path(
            lambda path, leaf: np.full_like(leaf, 2 if path[-1].key == "scale" else 0), random_params(config)
        )
        assert ("final_norm" in params) == (place == "before")
        apply = jax.jit(
            lambda params, config=config: make_stack(config).apply({"params": params}, stream, None, CAUSAL)[0]
        )
        outputs = apply(params)
        # Normalizing again undoes the scale of 2 before applying it.
        np.testing.assert_allclose(outputs, once, rtol=1e-4, atol=1e-4)
        if place == "after":
            halved = jax.tree.map(lambda leaf: leaf / 2, params["layer_1"])
            outputs = apply(params | {"layer_1": halved})
            np.testing.assert_allclose(outputs, once / 2, rtol=1e-4, atol=1e-4)


def test_initial_scales():
    config = make_config(layers=8, width=64, head_width=16, activation="swiglu", scan_layers=True)
    # The hardware-like generator compiles faster than the default one.
    key, stream = jax.random.key(0, impl="unsafe_rbg"), jnp.zeros((1, 1, 64))
    init = jax.jit(lambda: make_stack(config).init(key, stream, None, CAUSAL))
    layers = jax.tree.map(np.asarray, init()["params"]["layers"])
    for part, name in (("attention", "output"), ("feed_forward", "down")):
        np.testing.assert_allclose(layers[part][name]["kernel"].std(), 0.02 / math.sqrt(16), rtol=0.03)
    for part, name in (
        ("attention", "query_key_value"),
        ("feed_forward", "up"),
        ("feed_forward", "gate"),
    ):
        np.testing.assert_allclose(layers[part][name]["kernel"].std(), 0.02, rtol=0.03)
        assert len(np.unique(layers[part][name]["kernel"][:, 0, 0])) == 8, "layers share their initial weights"


@pytest.mark.parametrize("scan_layers", [False, True])
def test_every_branch_of_every_layer_draws_its_own_dropout(scan_layers):
    config = make_config(dropout=0.5, bias=True, width=64, head_width=2, scan_layers=scan_layers)
    params = random_params(config)
    # A branch that adds its bias of 1 and nothing else: each entry then counts how many branches it was kept in.
    params = jax.tree_util.tree_map_with_path(
        lambda path, leaf: np.full_like(leaf, 0 if path[-1].key == "kernel" else 1), params
    )

    @jax.jit
    def apply(key):
        stream = jnp.zeros((1, 6, 64))
        return make_stack(config).apply({"params": params}, stream, None, CAUSAL, rngs={"dropout": key})[0]

    rows = np.asarray(apply(jax.random.key(0)))[0].round(3)
    assert len(np.unique(rows, axis=0)) == 6
    assert max(len(np.unique(row)) for row in rows) == 2 * LAYERS + 1


def test_empty_caches_have_the_form_that_the_stack_takes():
    unrolled = empty_caches(make_config(dtype="bfloat16"), 3, 5)
    assert len(unrolled.blocks) == LAYERS
    assert unrolled.length == 5
    chex.assert_shape(jax.tree.leaves(unrolled), (3, 2, 5, 2))
    chex.assert_type(jax.tree.leaves(unrolled), jnp.bfloat16)
    chex.assert_shape(jax.tree.leaves(empty_caches(make_config(scan_layers=True), 3, 5)), (LAYERS, 3, 2, 5, 2))


@pytest.mark.parametrize("scan_layers", [False, True])
def test_rows_of_caches_are_rows_of_the_batch(scan_layers):
    caches = empty_caches(make_config(scan_layers=scan_layers), 3, 5)
    shape = (1, 3, 1, 1, 1) if scan_layers else (3, 1, 1, 1)
    number = lambda leaf: leaf + jnp.arange(3.0).reshape(shape)  # noqa: E731
    caches = Caches(jax.tree.map(number, caches.blocks), np.array([[True], [False], [False]]))
    taken = caches.take_rows(jnp.array([2, 0, 0, 1]))
    assert taken.memory_mask_BS.tolist() == [[False], [True], [True], [False]]
    for leaf in jax.tree.leaves(taken.blocks):
        np.testing.assert_array_equal(leaf[..., 0, 0, 0].reshape(-1, 4)[0], [2, 0, 0, 1])
