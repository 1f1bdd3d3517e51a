"""Encoders and encoder-decoders spread over a mesh compute what one device does."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from lm.models.encoder_decoder_lm import EncoderDecoderLM
from lm.models.encoder_lm import EncoderLM
from lm.models.sharding import tree_shardings
from lm.modules.config import ModelConfig
from lm.runs.config import PartitioningConfig
from lm.training.partitioning import make_partitioner

SHAPE = {"vocab_size": 48, "layers": 2, "width": 32, "heads": 4, "max_length": 8, "bias": True}
ENCODER = ModelConfig(**SHAPE | {"layers": 1}, architecture="encoder", segment_types=2, normalization_place="after")
ENCODER_DECODER = ModelConfig(
    **SHAPE, architecture="encoder_decoder", positions="relative", kv_heads=2, scan_layers=True
)
TOKENS = np.random.default_rng(0).integers(48, size=(8, 8)).astype(np.int32)
SEGMENTS = (np.arange(8)[None] < np.arange(1, 9)[:, None]).astype(np.int32)


def encoder_loss(model, params, tokens, segments):
    apply = functools.partial(model.apply, {"params": params})
    hidden = apply(tokens, segments, method="hidden")
    pooled = apply(hidden, segments, method="pool")
    return jnp.sin(apply(hidden[:, :3], method="logits")).sum() + apply(pooled, method="next_sentence")[:, 0].sum()


def encoder_decoder_loss(model, params, tokens, segments):
    return jnp.sin(model.apply({"params": params}, tokens, tokens, segments, segments)).sum()


def everything(model, tokens):
    return model(tokens), model.next_sentence(model.pool(model.hidden(tokens)))


CASES = {
    "encoder": (EncoderLM, ENCODER, encoder_loss, {"method": everything}),
    "encoder_decoder": (EncoderDecoderLM, ENCODER_DECODER, encoder_decoder_loss, {"tokens_BT": TOKENS}),
}


@pytest.mark.parametrize("name", ["encoder", pytest.param("encoder_decoder", marks=pytest.mark.slow)])
def test_a_mesh_gives_the_gradients_of_one_device(name):
    make, config, loss, rest = CASES[name]
    partitioner = make_partitioner(PartitioningConfig(data=2, fsdp=2, tensor=2))
    shapes = jax.eval_shape(functools.partial(make(config).init, **rest), jax.random.key(0), TOKENS)["params"]
    random = np.random.default_rng(1)
    params = jax.tree.map(lambda leaf: random.normal(size=leaf.shape, scale=0.2).astype(np.float32), shapes)

    def run(model, params, batch):
        return jax.jit(jax.value_and_grad(functools.partial(loss, model)))(params, **batch)

    batch = {"tokens": TOKENS, "segments": SEGMENTS}
    expected = run(make(config), params, batch)
    shardings = tree_shardings(params, partitioner.mesh)
    on_mesh = jax.device_put(params, shardings)
    actual = run(make(config, partitioner.mesh), on_mesh, partitioner.place_batch(batch))
    np.testing.assert_allclose(actual[0], expected[0], rtol=1e-4)
    for one, other in zip(jax.tree.leaves(actual[1]), jax.tree.leaves(expected[1]), strict=True):
        np.testing.assert_allclose(one, other, rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize("name", CASES)
def test_every_matrix_is_split(name):
    make, config, _, rest = CASES[name]
    mesh = make_partitioner(PartitioningConfig(data=2, fsdp=2, tensor=2)).mesh
    shapes = jax.eval_shape(functools.partial(make(config).init, **rest), jax.random.key(0), TOKENS)["params"]
    whole = {"type_embedding/embedding", "position_embedding/embedding", "next_sentence_head/kernel"}
    whole |= {f"{side}/relative_positions/embedding" for side in ("encoder", "decoder")}
    for path, sharding in jax.tree_util.tree_leaves_with_path(tree_shardings(shapes, mesh)):
        name = jax.tree_util.keystr(path, simple=True, separator="/")
        if name.endswith(("kernel", "embedding")) and name not in whole:
            pieces = 2 if name.startswith(("pooler", "prediction_head")) else 4
            assert np.prod([mesh.shape[axis] for axis in sharding.spec if axis]) == pieces, name
