"""Looking one token ahead.

Axes: B sequences, T positions, C chosen positions, V vocabulary.
"""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from lm.decoding.look_ahead import check_look_ahead, look_ahead, sample_with_look_ahead
from lm.errors import UserError
from lm.evaluation.token_statistics import token_statistics
from lm.models.decoder_lm import DecoderLM
from lm.modules.config import ModelConfig

V = 7
SHAPES = {
    "rotary": {"positions": "rotary", "kv_heads": 1},
    "learned": {"positions": "learned", "scan_layers": True},
    "padded vocabulary": {"positions": "rotary", "vocab_size": V + 3},
}


def decoder(**settings) -> tuple[DecoderLM, dict]:
    shape = {"layers": 2, "width": 16, "heads": 2, "vocab_size": V, "max_length": 12, "initializer_range": 0.5}
    model = DecoderLM(ModelConfig(**(shape | settings)))
    return model, model.init(jax.random.key(0), jnp.zeros((1, 2), jnp.int32))["params"]


@functools.partial(jax.jit, static_argnames="model")
def predictions(model, params, tokens_BT):
    """Log-probabilities and entropies after each token, by a forward pass without a cache."""
    logits_BTV = model.apply({"params": params}, tokens_BT)[..., :V]
    return jax.nn.log_softmax(logits_BTV), token_statistics(logits_BTV, tokens_BT).entropy


@pytest.mark.parametrize("name", SHAPES)
def test_equals_a_forward_pass_for_each_candidate(name):
    model, params = decoder(**SHAPES[name])
    tokens_BT = np.random.default_rng(0).integers(V, size=(2, 10))
    positions_C = np.array([1, 4, 9])
    log_probs_BCV, entropies_BCV = look_ahead(model, params, tokens_BT, positions_C, V)
    replaced_CVBT = np.tile(tokens_BT, (len(positions_C), V, 1, 1))
    for place, position in enumerate(positions_C):
        replaced_CVBT[place, :, :, position] = np.arange(V)[:, None]
    expected_BTV, entropy_BT = predictions(model, params, replaced_CVBT.reshape(-1, 10))
    expected_CVBTV, entropy_CVBT = (
        expected_BTV.reshape(*replaced_CVBT.shape, V),
        entropy_BT.reshape(replaced_CVBT.shape),
    )
    for place, position in enumerate(positions_C):
        np.testing.assert_allclose(log_probs_BCV[:, place], expected_CVBTV[place, 0, :, position - 1], atol=1e-5)
        np.testing.assert_allclose(entropies_BCV[:, place], entropy_CVBT[place, :, :, position].T, atol=1e-5)


def test_samples_come_from_the_corrected_distribution():
    """The entropies that it returns are those of p(x) exp(-alpha H(x)) along its own texts."""
    model, params = decoder(**SHAPES["rotary"])
    prompts_BP, alpha = np.array([[1, 2, 3], [4, 5, 6]]), 1.5
    tokens_BT, entropy_BT = sample_with_look_ahead(model, params, prompts_BP, alpha, 0, 7, V)
    whole_BT = np.concatenate([prompts_BP, tokens_BT], axis=1)
    log_probs_BCV, entropies_BCV = look_ahead(model, params, whole_BT, np.arange(3, 10), V)
    expected_BT = token_statistics(log_probs_BCV - alpha * entropies_BCV, tokens_BT).entropy
    np.testing.assert_allclose(entropy_BT, expected_BT, atol=1e-5)


def test_a_first_token_is_as_frequent_as_its_probability():
    model, params = decoder(**SHAPES["rotary"])
    prompts_BP = np.tile([[1, 2, 3]], (4000, 1))
    log_probs_BCV, entropies_BCV = look_ahead(model, params, np.array([[1, 2, 3, 0]]), np.array([3]), V)
    tokens_BT, _ = sample_with_look_ahead(model, params, prompts_BP, 2.0, 0, 1, V)
    expected_V = jax.nn.softmax(log_probs_BCV[0, 0] - 2.0 * entropies_BCV[0, 0])
    shares_V = np.bincount(np.asarray(tokens_BT)[:, 0], minlength=V) / 4000
    np.testing.assert_allclose(shares_V, expected_V, atol=0.03)
    assert np.abs(shares_V - np.exp(log_probs_BCV[0, 0])).max() > 0.06  # and not from the model's own


@pytest.mark.parametrize("settings", [{"positions": "relative"}, {"positions": "rotary", "attention_window": 4}])
def test_refuses_what_counts_distances_by_slot(settings):
    with pytest.raises(UserError, match=rf"config.model.{list(settings)[-1]}=.* cannot look ahead"):
        check_look_ahead(ModelConfig(layers=1, width=16, heads=2, max_length=8, **settings))
