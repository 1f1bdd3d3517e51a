"""Dropout of attention probabilities."""

import dataclasses

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from lm.models.build import make_language_model
from lm.modules.attention import AttentionDropout, attend
from lm.modules.config import ModelConfig
from lm.modules.visibility import Visibility

B, T, N, K, S = 3, 16, 4, 2, 16
RATE = 0.25


def probabilities(seed, gradients="explicit"):
    """Of attention to S keys that are all alike, [B, T, N, S]: each value is the unit vector of its place."""
    q, k = jnp.zeros((B, T, N, S)), jnp.zeros((B, S, K, S))
    v = jnp.broadcast_to(jnp.eye(S)[None, :, None], k.shape)
    dropout = None if seed is None else AttentionDropout(jax.random.key(seed), RATE)
    return np.asarray(attend(q, k, v, Visibility(), implementation="explicit", gradients=gradients, dropout=dropout))


@pytest.mark.parametrize("gradients", ["explicit", "derived"])
def test_probabilities_are_dropped_or_scaled_up_independently(gradients):
    dropped = probabilities(0, gradients)
    kept = dropped > 0
    np.testing.assert_allclose(dropped[kept], 1 / S / (1 - RATE), rtol=1e-6)
    # 3,072 draws: the deviation of their mean is 0.008.
    assert abs(kept.mean() - (1 - RATE)) < 0.03
    rows = kept.transpose(0, 2, 1, 3).reshape(-1, S)
    assert len(np.unique(rows, axis=0)) > 0.9 * len(rows), "rows, heads or queries share their draws"
    # Of two independent draws, (1 - RATE)^2 + RATE^2 = 0.625 agree.
    for one, other in ((kept[0], kept[1]), (kept[:, :, 0], kept[:, :, 1]), (kept[:, 0], kept[:, 1])):
        assert abs((one == other).mean() - 0.625) < 0.1


def test_draws_depend_on_the_key_alone_and_their_mean_is_what_is_not_dropped():
    np.testing.assert_array_equal(probabilities(0), probabilities(0))
    assert (probabilities(0) != probabilities(1)).mean() > 0.2
    mean = np.mean([probabilities(seed) for seed in range(40)], axis=0)
    assert abs(mean.mean() / probabilities(None).mean() - 1) < 0.01
    np.testing.assert_allclose(mean, probabilities(None), rtol=0.5)


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize("softcap", [None, 0.5])
def test_gradients_equal_the_derived_ones(softcap, dtype):
    random = np.random.default_rng(0)
    shapes = [(B, T, N, 8), (B, T, K, 8), (B, T, K, 8), (1, N, T, T), (B, T, N, 8)]
    *arrays, weights = (jnp.asarray(random.normal(size=shape), jnp.float32) for shape in shapes)

    def gradients(kind):
        def total(q, k, v, bias):
            q, k, v = (array.astype(dtype) for array in (q, k, v))
            dropout = AttentionDropout(jax.random.key(3), RATE)
            visibility = Visibility(causal=True, bias_BNTS=bias)
            how = {"implementation": "explicit", "gradients": kind, "softcap": softcap, "dropout": dropout}
            return (weights * attend(q, k, v, visibility, **how)).sum()

        return jax.jit(jax.grad(total, argnums=(0, 1, 2, 3)))(*arrays)

    explicit, derived = gradients("explicit"), gradients("derived")
    tolerance = 1e-5 if dtype == "float32" else 0.05
    chex.assert_trees_all_close(explicit, derived, rtol=tolerance, atol=tolerance)
    assert all(np.abs(gradient).max() > 0.1 for gradient in derived)


@pytest.mark.parametrize("scan_layers", [False, pytest.param(True, marks=pytest.mark.slow)])
@pytest.mark.parametrize("architecture", ["decoder", pytest.param("encoder_decoder", marks=pytest.mark.slow)])
def test_a_model_drops_only_in_training_and_in_every_layer_anew(architecture, scan_layers, monkeypatch):
    sizes = {"vocab_size": 16, "layers": 2, "width": 8, "heads": 2, "max_length": 8, "scan_layers": scan_layers}
    config = ModelConfig(architecture, attention_dropout=0.5, **sizes)
    tokens = jnp.arange(16).reshape(2, 8)
    inputs = (tokens, tokens) if architecture == "encoder_decoder" else (tokens,)
    model = make_language_model(config)
    shapes = jax.eval_shape(model.init, jax.random.key(0), *inputs)
    random = np.random.default_rng(0)
    params = jax.tree.map(lambda leaf: random.normal(0.0, 0.5, leaf.shape).astype(leaf.dtype), shapes)
    keys = []
    draw = jax.random.bernoulli

    def noted(key, *args):
        jax.debug.callback(lambda data: keys.append(tuple(data.tolist())), jax.random.key_data(key))
        return draw(key, *args)

    monkeypatch.setattr(jax.random, "bernoulli", noted)
    one, again, other = (
        jax.jit(model.apply)(params, *inputs, rngs={"dropout": jax.random.key(seed)}) for seed in (0, 0, 1)
    )
    jax.effects_barrier()
    np.testing.assert_array_equal(one, again)
    assert (np.asarray(one) != np.asarray(other)).mean() > 0.9
    # A decoder of an encoder-decoder has two attentions in each layer.
    assert len(set(keys)) == 2 * {"decoder": 2, "encoder_decoder": 6}[architecture]
    without = make_language_model(dataclasses.replace(config, attention_dropout=0.0))
    np.testing.assert_array_equal(model.apply(params, *inputs), without.apply(params, *inputs))
