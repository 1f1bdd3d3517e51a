"""Recurrent layers: what each direction has seen, where it starts, and agreement with PyTorch."""

import dataclasses
import functools

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from lm.modules.config import ModelConfig
from lm.modules.recurrent import RecurrentLayer, RecurrentStack

BATCH, LENGTH, WIDTH, STATE = 2, 6, 3, 4
CONFIGS = {
    kind: ModelConfig(architecture=kind, layers=1, width=WIDTH, recurrent_width=STATE) for kind in ("lstm", "gru")
}
both = pytest.mark.parametrize("kind", CONFIGS)

INPUTS = np.random.default_rng(0).normal(size=(BATCH, LENGTH, WIDTH)).astype(np.float32)
ONES = np.ones((BATCH, LENGTH), np.int32)
TWO_TEXTS = np.array([[1, 1, 2, 2, 2, 0]] * BATCH, np.int32)


@functools.cache
def random_params(kind):
    """Weights large enough that every part matters."""
    shapes = jax.eval_shape(RecurrentLayer(CONFIGS[kind]).init, jax.random.key(0), INPUTS)["params"]
    random = np.random.default_rng(1)
    return jax.tree.map(lambda leaf: random.normal(size=leaf.shape, scale=0.7).astype(np.float32), shapes)


@functools.cache
def compiled(kind):
    return jax.jit(lambda *inputs: RecurrentLayer(CONFIGS[kind]).apply({"params": random_params(kind)}, *inputs))


def states_of(kind, inputs, segments):
    return np.asarray(compiled(kind)(inputs, segments))


@functools.cache
def influence(kind):
    """How much each direction's state depends on each input, of one text and of two texts and padding: [T, S]."""
    direction = np.random.default_rng(2).normal(size=(2, STATE)).astype(np.float32)

    @jax.jit
    def jacobian(segments):
        def outputs(inputs):
            states_BTF = RecurrentLayer(CONFIGS[kind]).apply({"params": random_params(kind)}, inputs[None], segments)
            return (states_BTF[0].reshape(LENGTH, 2, STATE) * direction[None]).sum(axis=-1)

        return jnp.linalg.norm(jax.jacrev(outputs)(INPUTS[0]), axis=-1)

    return np.asarray(jacobian(ONES[:1])), np.asarray(jacobian(TWO_TEXTS[:1]))


@both
def test_one_direction_has_seen_what_precedes_and_the_other_what_follows(kind):
    before = np.tri(LENGTH, dtype=bool)
    one_text_T2S, _ = influence(kind)
    np.testing.assert_array_equal(one_text_T2S[:, 0] != 0, before)
    np.testing.assert_array_equal(one_text_T2S[:, 1] != 0, before.T)


@both
def test_neither_direction_crosses_a_segment_border(kind):
    same = TWO_TEXTS[0][:, None] == TWO_TEXTS[0][None, :]
    _, two_texts_T2S = influence(kind)
    np.testing.assert_array_equal(two_texts_T2S[:, 0] != 0, same & np.tri(LENGTH, dtype=bool))
    np.testing.assert_array_equal(two_texts_T2S[:, 1] != 0, same & np.tri(LENGTH, dtype=bool).T)


@both
def test_packed_and_padded_texts_equal_each_alone(kind):
    packed = states_of(kind, INPUTS, TWO_TEXTS)
    for first, last in ((0, 2), (2, 5)):
        alone = states_of(kind, INPUTS[:, first:last], ONES[:, first:last])
        np.testing.assert_allclose(packed[:, first:last], alone, rtol=1e-5, atol=1e-6)
    whole = states_of(kind, INPUTS[:, :5], ONES[:, :5])
    assert np.abs(packed[:, :5] - whole).max() > 0.01, "the segments make no difference"


@both
def test_without_segments_a_row_is_one_text(kind):
    np.testing.assert_array_equal(compiled(kind)(INPUTS), states_of(kind, INPUTS, ONES))


@both
def test_equals_pytorch_on_texts_of_different_lengths(kind):
    torch = pytest.importorskip("torch")
    params = random_params(kind)
    module = {"lstm": torch.nn.LSTM, "gru": torch.nn.GRU}[kind](WIDTH, STATE, bidirectional=True, batch_first=True)
    kernels, biases = np.split(params["input"]["kernel"], 2, axis=1), np.split(params["input"]["bias"], 2)
    for direction, suffix in enumerate(("", "_reverse")):
        values = {
            "weight_ih": kernels[direction].T,
            "weight_hh": params["state_kernel"][direction].T,
            "bias_ih": biases[direction],
            "bias_hh": params["state_bias"][direction],
        }
        for name, value in values.items():
            getattr(module, f"{name}_l0{suffix}").data = torch.tensor(value)
    lengths = [6, 4]
    packed = torch.nn.utils.rnn.pack_padded_sequence(torch.tensor(INPUTS), lengths, batch_first=True)
    expected, _ = torch.nn.utils.rnn.pad_packed_sequence(module(packed)[0], batch_first=True)
    segments = (np.arange(LENGTH)[None] < np.array(lengths)[:, None]).astype(np.int32)
    found = states_of(kind, INPUTS, segments) * segments[:, :, None]
    np.testing.assert_allclose(found, expected.detach().numpy(), rtol=1e-5, atol=1e-6)


@both
def test_initial_weights_keep_norms_and_memories(kind):
    config = dataclasses.replace(CONFIGS[kind], recurrent_width=16)
    params = jax.jit(RecurrentLayer(config).init)(jax.random.key(0), INPUTS)["params"]
    gates = {"lstm": 4, "gru": 3}[kind]
    blocks = np.asarray(params["state_kernel"]).reshape(2, 16, gates, 16).transpose(0, 2, 1, 3)
    products = blocks @ blocks.swapaxes(-1, -2)
    np.testing.assert_allclose(products, np.broadcast_to(np.eye(16), products.shape), atol=1e-5)
    assert np.abs(blocks[0, 0] - blocks[1, 0]).max() > 0.1, "the directions start alike"
    biases = np.asarray(params["input"]["bias"]).reshape(2, gates, 16)
    forget = 1 if kind == "lstm" else None
    for gate in range(gates):
        np.testing.assert_array_equal(biases[:, gate], gate == forget)
    np.testing.assert_array_equal(params["state_bias"], 0)


@both
def test_16_bit_layers_carry_their_states_in_32(kind):
    config = dataclasses.replace(CONFIGS[kind], dtype="bfloat16")
    apply = jax.make_jaxpr(lambda inputs: RecurrentLayer(config).apply({"params": random_params(kind)}, inputs))
    program = apply(INPUTS)
    scan = next(each for each in program.eqns if each.primitive.name == "scan")
    carried = [each for each in scan.outvars if each.aval.shape[0] != INPUTS.shape[1]]  # not an output of each step
    assert carried
    assert {each.aval.dtype for each in carried} == {jnp.dtype("float32")}
    assert program.out_avals[0].dtype == jnp.bfloat16
    found = jax.jit(lambda inputs: RecurrentLayer(config).apply({"params": random_params(kind)}, inputs))(INPUTS)
    np.testing.assert_allclose(found.astype(np.float32), states_of(kind, INPUTS, ONES), atol=0.05)


def test_a_stack_feeds_each_layer_to_the_next_with_dropout_between():
    config = dataclasses.replace(CONFIGS["gru"], layers=2, dropout=0.5)
    stack = RecurrentStack(config)
    params = jax.jit(stack.init)(jax.random.key(0), INPUTS)["params"]
    chex.assert_shape(params["layer_1"]["input"]["kernel"], (2 * STATE, 2 * 3 * STATE))
    apply = jax.jit(lambda rngs: stack.apply({"params": params}, INPUTS, TWO_TEXTS, rngs=rngs))
    layer = jax.jit(lambda params, inputs: RecurrentLayer(config).apply({"params": params}, inputs, TWO_TEXTS))
    expected = layer(params["layer_1"], layer(params["layer_0"], INPUTS))
    np.testing.assert_allclose(apply({}), expected, rtol=1e-5, atol=1e-6)
    one, again, other = (np.asarray(apply({"dropout": jax.random.key(seed)})) for seed in (0, 0, 1))
    np.testing.assert_array_equal(one, again)
    assert np.abs(one - other).max() > 0.01
    single = RecurrentStack(dataclasses.replace(config, layers=1))
    rngs = {"dropout": jax.random.key(0)}
    dropped = single.apply({"params": {"layer_0": params["layer_0"]}}, INPUTS, TWO_TEXTS, rngs=rngs)
    np.testing.assert_allclose(dropped, layer(params["layer_0"], INPUTS), rtol=1e-5, atol=1e-6)
