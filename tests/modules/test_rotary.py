"""Rotary positions: the rotation, the share of a head that it turns, and frequencies scaled for long texts."""

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from absl.testing import parameterized

from lm.modules.config import ModelConfig
from lm.modules.rotary import layer_frequencies, rotary_frequencies, rotate

BASE = 10_000.0


def random_heads(seed=0, length=7, width=6):
    return jnp.asarray(np.random.default_rng(seed).normal(size=(2, length, 3, width)), jnp.float32)


def frequencies(base=BASE, width=6):
    return jnp.asarray(rotary_frequencies(base, width), jnp.float32)


def rotate_by_complex_numbers(inputs_BTNH, positions_BT, base):
    """The formula of Su et al. (2021, equation 34), in complex128."""
    inputs_BTNH = np.asarray(inputs_BTNH, np.float64)
    half = inputs_BTNH.shape[-1] // 2
    pairs = inputs_BTNH[..., :half] + 1j * inputs_BTNH[..., half:]
    angles = np.asarray(positions_BT)[:, :, None, None] * base ** (-2 * np.arange(half) / (2 * half))
    turned = pairs * np.exp(1j * angles)
    return np.concatenate([turned.real, turned.imag], axis=-1)


class RotateTest(chex.TestCase):
    @chex.variants(with_jit=True, without_jit=True)
    @parameterized.parameters(BASE, 500_000.0)
    def test_equals_complex_multiplication(self, base):
        inputs, positions = random_heads(), jnp.array([[0, 1, 2, 3, 4, 5, 6], [9, 5, 0, 0, 100, 7, 3]])
        turned = self.variant(rotate)(inputs, positions, frequencies(base))
        np.testing.assert_allclose(turned, rotate_by_complex_numbers(inputs, positions, base), atol=2e-5)

    @chex.variants(with_jit=True, without_jit=True)
    def test_norms_and_position_zero_stay(self):
        inputs, positions = random_heads(), jnp.array([[0, 0, 1, 10, 100, 1000, 8000]])
        turned = self.variant(rotate)(inputs, positions, frequencies())
        turned, inputs = np.asarray(turned), np.asarray(inputs)
        np.testing.assert_allclose(np.linalg.norm(turned, axis=-1), np.linalg.norm(inputs, axis=-1), rtol=1e-5)
        np.testing.assert_array_equal(turned[:, :2], inputs[:, :2])
        assert np.abs(turned[:, 2:] - inputs[:, 2:]).max(axis=(0, 2, 3)).min() > 0.1


def test_rotary_scores_depend_only_on_the_distance():
    queries, keys = random_heads(1), random_heads(2)

    @jax.jit
    def scores(query_shift, key_shift):
        positions = jnp.arange(7)[None, :]
        turned_queries = rotate(queries, positions + query_shift, frequencies())
        return jnp.einsum("btnh,bsnh->bnts", turned_queries, rotate(keys, positions + key_shift, frequencies()))

    chex.assert_trees_all_close(scores(0, 0), scores(1, 1), scores(500, 500), atol=2e-3)
    assert np.abs(np.asarray(scores(3, 0)) - np.asarray(scores(0, 0))).max() > 0.5


def test_rotary_angles_are_float32_for_16_bit_inputs():
    inputs, positions = random_heads().astype(jnp.bfloat16), jnp.full((1, 7), 8001)
    turned = rotate(inputs, positions, frequencies())
    assert turned.dtype == jnp.bfloat16
    expected = rotate_by_complex_numbers(inputs.astype(jnp.float32), positions, BASE)
    np.testing.assert_allclose(turned.astype(jnp.float32), expected, rtol=2**-8, atol=0.01)


def test_the_end_of_a_head_beyond_the_frequencies_stays():
    inputs, positions = random_heads(width=10), jnp.arange(7)[None, :]
    turned = rotate(inputs, positions, frequencies())
    np.testing.assert_array_equal(turned[..., 6:], inputs[..., 6:])
    expected = rotate_by_complex_numbers(inputs[..., :6], positions, BASE)
    np.testing.assert_allclose(turned[..., :6], expected, atol=2e-5)


ROTARY = {"positions": "rotary", "width": 128, "heads": 2, "rotary_base": 500_000.0}


def test_llama3_scales_by_wavelength():
    """The published rule, one frequency at a time (Grattafiori et al. 2024)."""
    config = ModelConfig(**ROTARY, rotary_scaling="llama3", rotary_factor=8.0, rotary_original_length=512)
    plain, expected, cases = rotary_frequencies(500_000.0, 64), [], set()
    for frequency in plain:
        wavelength = 2 * np.pi / frequency
        if wavelength < 512 / 4:
            cases.add("kept")
            expected.append(frequency)
        elif wavelength > 512 / 1:
            cases.add("divided")
            expected.append(frequency / 8)
        else:
            cases.add("between")
            smooth = (512 / wavelength - 1) / (4 - 1)
            expected.append((1 - smooth) * frequency / 8 + smooth * frequency)
    assert cases == {"kept", "divided", "between"}
    np.testing.assert_allclose(layer_frequencies(config, local=False), expected, rtol=1e-6)


def test_linear_scaling_spares_the_layers_with_a_window_and_a_base_of_their_own():
    scaled = {"rotary_scaling": "linear", "rotary_factor": 4.0, "attention_window": 8}
    plain, nearby = rotary_frequencies(500_000.0, 64), rotary_frequencies(100.0, 64)
    one_base, two_bases = ModelConfig(**ROTARY, **scaled), ModelConfig(**ROTARY, **scaled, local_rotary_base=100.0)
    for local in (False, True):
        np.testing.assert_allclose(layer_frequencies(one_base, local), plain / 4, rtol=1e-6)
        expected = nearby if local else plain / 4
        np.testing.assert_allclose(layer_frequencies(two_bases, local), expected, rtol=1e-6)
        scanned = jax.jit(lambda local: layer_frequencies(two_bases, local))(jnp.asarray(local))
        np.testing.assert_array_equal(scanned, layer_frequencies(two_bases, local))


@pytest.mark.parametrize(("fraction", "pairs"), [(1.0, 32), (0.25, 8), (0.75, 24)])
def test_a_fraction_has_its_own_frequencies(fraction, pairs):
    frequencies = layer_frequencies(ModelConfig(**ROTARY, rotary_fraction=fraction), local=False)
    np.testing.assert_allclose(frequencies, [500_000.0 ** (-i / pairs) for i in range(pairs)], rtol=1e-6)
