"""The stack: scanned or unrolled, rematerialized or not, it computes the same; residual branches start small."""

import functools
import math

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from lm.modules.config import ModelConfig
from lm.modules.decoder import Decoder, empty_caches

LAYERS = 2
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


def random_params(config):
    """Weights large enough that every part of the stack matters, the same for every unrolled config of this file."""
    stream = jnp.zeros((1, 6, config.width))
    shapes = jax.eval_shape(lambda: Decoder(config).init(jax.random.key(0), stream, None, None, None))["params"]
    random = np.random.default_rng(0)
    return jax.tree.map(lambda leaf: random.normal(size=leaf.shape, scale=0.5).astype(np.float32), shapes)


def stacked(params):
    """Unrolled layers' parameters in the form that `scan_layers` keeps."""
    layers = [params[f"layer_{layer}"] for layer in range(LAYERS)]
    return {"layers": jax.tree.map(lambda *leaves: np.stack(leaves), *layers), "final_norm": params["final_norm"]}


@functools.cache
def outputs_and_gradients(rematerialize, scan_layers=False):
    """The stream, its gradients, and the compiled program's text."""
    config = make_config(rematerialize=rematerialize, scan_layers=scan_layers)
    params = random_params(make_config())
    stream = np.random.default_rng(1).normal(size=(1, 6, 8)).astype(np.float32)
    mask = jnp.asarray(SEGMENTS[:, :, None] == SEGMENTS[:, None, :])

    def loss(params, stream):
        outputs, _ = Decoder(config).apply({"params": params}, stream, None, mask, None)
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


def test_initial_scales():
    config = make_config(layers=8, width=64, head_width=16, activation="swiglu", scan_layers=True)
    # The hardware-like generator compiles faster than the default one.
    key, stream = jax.random.key(0, impl="unsafe_rbg"), jnp.zeros((1, 1, 64))
    init = jax.jit(lambda: Decoder(config).init(key, stream, None, None, None))
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
        return Decoder(config).apply({"params": params}, stream, None, None, None, rngs={"dropout": key})[0]

    rows = np.asarray(apply(jax.random.key(0)))[0].round(3)
    assert len(np.unique(rows, axis=0)) == 6
    assert max(len(np.unique(row)) for row in rows) == 2 * LAYERS + 1


def test_empty_caches_have_the_form_that_the_stack_takes():
    unrolled = empty_caches(make_config(dtype="bfloat16"), 3, 5)
    assert len(unrolled) == LAYERS
    chex.assert_shape(jax.tree.leaves(unrolled), (3, 5, 2, 2))
    chex.assert_type(jax.tree.leaves(unrolled), jnp.bfloat16)
    chex.assert_shape(jax.tree.leaves(empty_caches(make_config(scan_layers=True), 3, 5)), (LAYERS, 3, 5, 2, 2))
