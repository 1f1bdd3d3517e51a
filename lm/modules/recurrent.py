"""Recurrent layers that read a text in both directions: LSTM and GRU.

Axes: B batch, T positions, D input width, H state width of one direction, G gates, F = G H. A literal 2 is the axis of
the directions, forward and backward.
"""

from collections.abc import Callable

import flax.linen as nn
import jax
import jax.numpy as jnp
from jax import Array

from lm.modules.config import ModelConfig
from lm.modules.dropout import Dropout

State = tuple[Array, ...]  # what a cell carries from step to step, each [2, B, H]; the first is its output
Cell = Callable[[State, Array, Array], State]


class RecurrentStack(nn.Module):
    """L bidirectional layers (Schuster & Paliwal 1997) with dropout between them."""

    config: ModelConfig

    @nn.compact
    def __call__(self, stream_BTD: Array, segments_BT: Array | None = None) -> Array:
        """Returns the states of the last layer, [B, T, 2 H]. Arguments as in `RecurrentLayer`."""
        for layer in range(self.config.layers):
            if layer:
                stream_BTD = Dropout(self.config)(stream_BTD)
            stream_BTD = RecurrentLayer(self.config, name=f"layer_{layer}")(stream_BTD, segments_BT)
        return stream_BTD


class RecurrentLayer(nn.Module):
    """One bidirectional layer of LSTM or GRU cells, by `config.architecture`.

    Each direction starts from a zero state and resets it wherever the segment changes. This separates packed texts and
    padding (segment 0): the backward direction reaches a text's last token in its initial state.

    It uses the config's `recurrent_width` and dtypes. Initial weights follow the custom for these cells, not
    `initializer_range`: variance-preserving normal for inputs (LeCun et al. 1998), orthogonal for states (Saxe et al.
    2014).
    """

    config: ModelConfig

    @nn.compact
    def __call__(self, inputs_BTD: Array, segments_BT: Array | None = None) -> Array:
        """Runs both directions.

        Args:
          inputs_BTD: a vector per token.
          segments_BT: the text of its row that each token belongs to; 0 at padding. None: the row is one text.

        Returns:
          [B, T, 2 H] in the compute dtype: the state of the forward direction, which has seen the tokens up to this
          one, and that of the backward direction, which has seen those from this one on. States lie within [-1, 1].
          Values at padding are meaningless.
        """
        config = self.config
        batch, length, _ = inputs_BTD.shape
        width = config.recurrent_width or config.width
        gates, cell = _CELLS[config.architecture]
        # The inputs of all steps and both directions in one product: only the states depend on each other.
        dense = nn.Dense(
            2 * gates * width,
            dtype=config.compute_dtype,
            param_dtype=config.storage_dtype,
            bias_init=_forgetting_little if config.architecture == "lstm" else nn.initializers.zeros,
            name="input",
        )
        projected_NF = dense(inputs_BTD.reshape(batch * length, -1))
        forward_BTF, backward_BTF = jnp.split(projected_NF.reshape(batch, length, -1), 2, axis=-1)
        # Two biases, as cuDNN and PyTorch have them: the candidate of a GRU needs both; elsewhere they just add up.
        shape = (2, width, gates * width)
        kernel_2HF = self.param("state_kernel", _orthogonal_gates, shape, config.storage_dtype)
        bias_2F = self.param("state_bias", nn.initializers.zeros, (2, gates * width), config.storage_dtype)

        def step(state: State, inputs: tuple[Array, Array]) -> tuple[State, Array]:
            projected_2BF, continues_2B1 = inputs
            state = tuple(part_2BH * continues_2B1 for part_2BH in state)
            shown_2BH = state[0].astype(config.compute_dtype)
            kernel = kernel_2HF.astype(config.compute_dtype)
            from_state_2BF = jnp.einsum("zbh,zhf->zbf", shown_2BH, kernel, preferred_element_type=jnp.float32)
            from_state_2BF += bias_2F.astype(jnp.float32)[:, None, :]
            state = cell(state, projected_2BF.astype(jnp.float32), from_state_2BF)
            return state, state[0].astype(config.compute_dtype)

        # States in float32: a cell adds to its state at every step, and 16 bits would soon lose the increments.
        zeros_2BH = jnp.zeros((2, batch, width), jnp.float32)
        start: State = (zeros_2BH, zeros_2BH) if config.architecture == "lstm" else (zeros_2BH,)
        inputs = (_by_step(forward_BTF, backward_BTF), _continues(segments_BT, batch, length))
        _, states_T2BH = jax.lax.scan(step, start, inputs)
        return _by_position(states_T2BH)


def lstm_cell(state: State, from_input_2BF: Array, from_state_2BF: Array) -> State:
    """One step of a long short-term memory (Hochreiter & Schmidhuber 1997, with the forget gate of Gers et al. 2000).

    Args:
      state: output and cell state, each [2, B, H].
      from_input_2BF: the token's contribution to the input, forget, candidate and output gates, in this order.
      from_state_2BF: the output state's contribution.

    Returns:
      The state after the step.
    """
    _, memory_2BH = state
    enter, forget, candidate, leave = jnp.split(from_input_2BF + from_state_2BF, 4, axis=-1)
    memory_2BH = jax.nn.sigmoid(forget) * memory_2BH + jax.nn.sigmoid(enter) * jnp.tanh(candidate)
    return jax.nn.sigmoid(leave) * jnp.tanh(memory_2BH), memory_2BH


def gru_cell(state: State, from_input_2BF: Array, from_state_2BF: Array) -> State:
    """One step of a gated recurrent unit (Cho et al. 2014).

    The reset gate multiplies the state's contribution to the candidate, not the state itself, so that one product
    serves all three gates, as in cuDNN and PyTorch.

    Args:
      state: a single array [2, B, H].
      from_input_2BF: the token's contribution to the reset gate, the update gate and the candidate, in this order.
      from_state_2BF: the state's contribution.

    Returns:
      The state after the step.
    """
    (shown_2BH,) = state
    resets, updates, candidates = zip(
        jnp.split(from_input_2BF, 3, axis=-1), jnp.split(from_state_2BF, 3, axis=-1), strict=True
    )
    reset, keep = jax.nn.sigmoid(sum(resets)), jax.nn.sigmoid(sum(updates))
    candidate = jnp.tanh(candidates[0] + reset * candidates[1])
    return (keep * shown_2BH + (1 - keep) * candidate,)


_CELLS: dict[str, tuple[int, Cell]] = {"lstm": (4, lstm_cell), "gru": (3, gru_cell)}


def _by_step(forward_BTF: Array, backward_BTF: Array) -> Array:
    """[T, 2, B, F]: the input of each direction at its t-th step; the backward one starts at the end."""
    return jnp.stack([forward_BTF, backward_BTF[:, ::-1]]).transpose(2, 0, 1, 3)


def _by_position(states_T2BH: Array) -> Array:
    """[B, T, 2 H]: the inverse of `_by_step`, side by side."""
    states_BTF = jnp.concatenate([states_T2BH[:, 0], states_T2BH[::-1, 1]], axis=-1)
    return states_BTF.transpose(1, 0, 2)


def _continues(segments_BT: Array | None, batch: int, length: int) -> Array:
    """[T, 2, B, 1] float32: 1 where a step is in the same segment as the previous step, 0 where a segment starts."""
    if segments_BT is None:
        return jnp.ones((length, 2, batch, 1), jnp.float32)
    same_BT = (segments_BT[:, 1:] == segments_BT[:, :-1]).astype(jnp.float32)
    forward_BT, backward_BT = jnp.pad(same_BT, ((0, 0), (1, 0))), jnp.pad(same_BT, ((0, 0), (0, 1)))
    return _by_step(forward_BT[:, :, None], backward_BT[:, :, None])


def _orthogonal_gates(key: Array, shape: tuple[int, int, int], dtype: jnp.dtype) -> Array:
    """An orthogonal matrix [H, H] for each gate of each direction, [2, H, F]."""
    directions, width, features = shape
    gates = features // width
    keys = jax.random.split(key, directions * gates)
    blocks = jax.vmap(lambda key: nn.initializers.orthogonal()(key, (width, width), jnp.float32))(keys)
    blocks_2GHH = blocks.reshape(directions, gates, width, width)
    return blocks_2GHH.transpose(0, 2, 1, 3).reshape(shape).astype(dtype)


def _forgetting_little(key: Array, shape: tuple[int], dtype: jnp.dtype) -> Array:
    """Biases of an LSTM: 1 for the forget gates (Jozefowicz et al. 2015), else 0."""
    biases_2GH = jnp.zeros((2, 4, shape[0] // 8), dtype)
    return biases_2GH.at[:, 1].set(1).reshape(shape)
