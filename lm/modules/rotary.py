"""Rotary positions: queries and keys turned by angles that grow with the position (Su et al. 2021).

Axes: B batch, T positions, N heads, H head width, R rotary frequencies.
"""

import math

import jax.numpy as jnp
import numpy as np
from jax import Array

from lm.modules.config import ModelConfig


def layer_frequencies(config: ModelConfig, local: bool | Array) -> Array:
    """The frequencies of one layer, [R], in float32.

    Args:
      config: with "rotary" positions.
      local: whether the layer has a window; an array where layers are scanned.
    """
    everywhere_R = scaled_frequencies(config)
    if config.local_rotary_base is None:
        return jnp.asarray(everywhere_R, jnp.float32)
    nearby_R = rotary_frequencies(config.local_rotary_base, config.rotary_width)
    if isinstance(local, bool):
        return jnp.asarray(nearby_R if local else everywhere_R, jnp.float32)
    return jnp.where(local, jnp.asarray(nearby_R, jnp.float32), jnp.asarray(everywhere_R, jnp.float32))


def rotary_frequencies(base: float, width: int) -> np.ndarray:
    """How far each of the R = `width / 2` pairs turns from one position to the next, in radians, fastest first, [R]."""
    half = width // 2
    return base ** -(np.arange(half) / half)


def scaled_frequencies(config: ModelConfig) -> np.ndarray:
    """Frequencies, [R], by `config.rotary_scaling`, so that a model trained on short texts can read long ones.

    "linear" divides them all (Chen et al. 2023). "llama3" divides only those that turn seldom within the texts of
    training, keeps those that turn often, and interpolates between (Grattafiori et al. 2024, section 3.4.2).
    """
    frequencies_R = rotary_frequencies(config.rotary_base, config.rotary_width)
    if config.rotary_scaling == "none":
        return frequencies_R
    if config.rotary_scaling == "linear":
        return frequencies_R / config.rotary_factor
    low, high = config.rotary_low_frequency, config.rotary_high_frequency
    turns_R = config.rotary_original_length * frequencies_R / (2 * math.pi)
    kept_R = np.clip((turns_R - low) / (high - low), 0, 1)
    return kept_R * frequencies_R + (1 - kept_R) * frequencies_R / config.rotary_factor


def rotate(inputs_BTNH: Array, positions_BT: Array, frequencies_R: Array) -> Array:
    """Rotates the first 2 R numbers of each head, in the half-split layout (as in GPT-NeoX and Llama).

    Coordinate i is paired with coordinate i + R and the pair is rotated by `position * frequency`. Angles are float32:
    at position 8,000 a 16-bit angle would be off by full rotations.

    Args:
      inputs_BTNH: queries or keys; H is at least 2 R.
      positions_BT: of each token, from 0. Its batch axis may be 1.
      frequencies_R: from `layer_frequencies`.

    Returns:
      The rotated vectors, in the dtype of `inputs_BTNH`.
    """
    width = 2 * frequencies_R.shape[0]
    angles = positions_BT[:, :, None, None].astype(jnp.float32) * frequencies_R[None, None, None, :]
    cos, sin = jnp.cos(angles), jnp.sin(angles)
    first, second = jnp.split(inputs_BTNH[..., :width].astype(jnp.float32), 2, axis=-1)
    turned = jnp.concatenate([first * cos - second * sin, second * cos + first * sin], axis=-1)
    turned = turned.astype(inputs_BTNH.dtype)
    return turned if width == inputs_BTNH.shape[-1] else jnp.concatenate([turned, inputs_BTNH[..., width:]], axis=-1)
