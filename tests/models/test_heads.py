"""Heads on every body: parameters by path, padding, mixup, and where a span may not be."""

import dataclasses
import functools

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from lm.models.build import make_body
from lm.models.heads import SequenceClassifier, SpanExtractor, TokenClassifier
from lm.modules.config import ModelConfig

VOCAB, LENGTH, CLASSES = 11, 5, 3
SHAPE = {"vocab_size": VOCAB, "layers": 1, "width": 8, "max_length": 8}
CONFIGS = {
    "encoder": ModelConfig(architecture="encoder", **SHAPE, segment_types=2),
    "decoder": ModelConfig(architecture="decoder", **SHAPE),
    "lstm": ModelConfig(architecture="lstm", **SHAPE),
    "gru": ModelConfig(architecture="gru", **SHAPE, dtype="bfloat16"),
}
HEADS = {
    "sequence": lambda config: SequenceClassifier(config, CLASSES),
    "token": lambda config: TokenClassifier(config, CLASSES),
    "span": SpanExtractor,
}
every_body = pytest.mark.parametrize("body", CONFIGS)

TOKENS = np.random.default_rng(0).integers(VOCAB, size=(3, LENGTH)).astype(np.int32)
SEGMENTS = (np.arange(LENGTH)[None] < np.array([5, 3, 4])[:, None]).astype(np.int32)
TYPES = (np.arange(LENGTH)[None] >= np.array([2, 1, 3])[:, None]).astype(np.int32)


@functools.cache
def random_params(head, body):
    """Weights large enough that every part matters."""
    shapes = jax.eval_shape(HEADS[head](CONFIGS[body]).init, jax.random.key(0), TOKENS)["params"]
    random = np.random.default_rng(1)
    return jax.tree.map(lambda leaf: random.normal(size=leaf.shape, scale=0.4).astype(np.float32), shapes)


@functools.cache
def compiled(head, body):
    model = HEADS[head](CONFIGS[body])
    return jax.jit(lambda *inputs, **more: model.apply({"params": random_params(head, body)}, *inputs, **more))


def paths_and_shapes(tree):
    return {jax.tree_util.keystr(path): leaf.shape for path, leaf in jax.tree_util.tree_leaves_with_path(tree)}


@every_body
@pytest.mark.parametrize("head", HEADS)
def test_the_body_has_the_same_parameters_without_a_head(head, body):
    alone = make_body(CONFIGS[body])

    def own(key):
        def call(module):
            hidden_BTD = module.hidden(TOKENS, SEGMENTS)
            return module.pool(hidden_BTD, SEGMENTS) if head == "sequence" else hidden_BTD

        return alone.init(key, method=call)["params"]

    params = random_params(head, body)
    assert set(params) == {"body", "head"}
    assert paths_and_shapes(params["body"]) == paths_and_shapes(jax.eval_shape(own, jax.random.key(0)))
    assert set(params["head"]) == {"kernel", "bias"}
    assert "['token_embedding']['embedding']" in paths_and_shapes(params["body"])


@every_body
def test_logits_are_float32_of_each_class(body):
    for head, shape in (("sequence", (3, CLASSES)), ("token", (3, LENGTH, CLASSES))):
        model = HEADS[head](CONFIGS[body])
        logits = jax.eval_shape(model.apply, {"params": random_params(head, body)}, TOKENS, SEGMENTS, TYPES)
        chex.assert_shape(logits, shape)
        chex.assert_type(logits, jnp.float32)
    variables = {"params": random_params("span", body)}
    for logits in jax.eval_shape(SpanExtractor(CONFIGS[body]).apply, variables, TOKENS, SEGMENTS, TYPES):
        chex.assert_shape(logits, (3, LENGTH))
        chex.assert_type(logits, jnp.float32)


@pytest.mark.parametrize("body", ["encoder", "decoder", "lstm"])
def test_padding_never_changes_what_is_said_of_a_text(body):
    expected = compiled("sequence", body)(TOKENS, SEGMENTS, TYPES)
    other = np.where(SEGMENTS, TOKENS, (TOKENS + 3) % VOCAB)
    np.testing.assert_array_equal(compiled("sequence", body)(other, SEGMENTS, TYPES), expected)
    wider = [np.pad(each, ((0, 0), (0, 2))) for each in (TOKENS, SEGMENTS, TYPES)]
    np.testing.assert_allclose(compiled("sequence", body)(*wider), expected, rtol=1e-4, atol=1e-5)
    assert np.abs(compiled("sequence", body)(TOKENS, np.ones_like(SEGMENTS), TYPES) - expected)[1].max() > 1e-3


def test_types_count_where_the_body_has_an_embedding_of_them():
    for body, differs in (("encoder", True), ("lstm", False)):
        with_types = compiled("sequence", body)(TOKENS, SEGMENTS, TYPES)
        without = compiled("sequence", body)(TOKENS, SEGMENTS, np.zeros_like(TYPES))
        assert (np.abs(with_types - without).max() > 1e-3) == differs


def test_mixup_mixes_the_representations_of_partners():
    classify, partner_B = compiled("sequence", "lstm"), np.array([2, 0, 1])
    plain = np.asarray(classify(TOKENS, SEGMENTS, TYPES))

    def mixed(*shares):
        mix_B = np.array(shares, np.float32)
        return np.asarray(classify(TOKENS, SEGMENTS, TYPES, mix_B=mix_B, partner_B=partner_B))

    np.testing.assert_allclose(mixed(1, 1, 1), plain, rtol=1e-5, atol=1e-6)
    np.testing.assert_allclose(mixed(0, 0, 0), plain[partner_B], rtol=1e-5, atol=1e-6)
    # The head is linear, so that a mixture of vectors gives the mixture of their logits.
    shares = np.array([[0.25], [1.0], [0.6]])
    expected = shares * plain + (1 - shares) * plain[partner_B]
    np.testing.assert_allclose(mixed(*shares[:, 0]), expected, rtol=1e-4, atol=1e-5)


def test_token_logits_are_a_linear_map_of_the_bodys_states():
    params = random_params("token", "lstm")
    hidden = jax.jit(
        lambda: make_body(CONFIGS["lstm"]).apply({"params": params["body"]}, TOKENS, SEGMENTS, method="hidden")
    )()
    expected = np.asarray(hidden) @ params["head"]["kernel"] + params["head"]["bias"]
    np.testing.assert_allclose(compiled("token", "lstm")(TOKENS, SEGMENTS, TYPES), expected, rtol=1e-4, atol=1e-5)


def test_a_span_neither_starts_nor_ends_at_padding_or_where_the_mask_forbids():
    extract = compiled("span", "lstm")
    mask = (np.arange(LENGTH)[None] != np.array([0, 1, 2])[:, None]).astype(np.int32)
    unmasked, masked = extract(TOKENS, SEGMENTS, TYPES), extract(TOKENS, SEGMENTS, TYPES, mask_BT=mask)
    for free, held in zip(unmasked, masked, strict=True):
        np.testing.assert_array_equal(np.asarray(free) == np.float32(-1e30), SEGMENTS == 0)
        np.testing.assert_array_equal(np.asarray(held) == np.float32(-1e30), (SEGMENTS == 0) | (mask == 0))
        kept = (SEGMENTS > 0) & (mask > 0)
        np.testing.assert_allclose(np.asarray(held)[kept], np.asarray(free)[kept], rtol=1e-5, atol=1e-6)
    start, end = (np.asarray(each) for each in unmasked)
    assert np.abs(start - end)[SEGMENTS > 0].min() > 1e-6


@pytest.mark.parametrize("head", ["sequence", "token"])
def test_dropout_acts_before_the_head_only_with_a_key(head):
    params = random_params(head, "lstm")
    # Words of zeros stay zeros when they are dropped, so that what differs was dropped behind the body.
    body = params["body"] | {"token_embedding": {"embedding": np.zeros((VOCAB, 8), np.float32)}}
    model = HEADS[head](dataclasses.replace(CONFIGS["lstm"], dropout=0.5))
    apply = jax.jit(lambda params, rngs: model.apply({"params": params}, TOKENS, SEGMENTS, rngs=rngs))
    one, other = (np.asarray(apply(params | {"body": body}, {"dropout": jax.random.key(seed)})) for seed in (0, 1))
    assert np.abs(one - other).max() > 1e-3
    silent = compiled(head, "lstm")(TOKENS, SEGMENTS, TYPES)
    np.testing.assert_allclose(apply(params, {}), silent, rtol=1e-5, atol=1e-6)


def test_the_head_starts_at_the_initializer_range_and_zero():
    config = ModelConfig(architecture="lstm", **(SHAPE | {"width": 64}), initializer_range=0.05)
    head = jax.jit(SequenceClassifier(config, 50).init)(jax.random.key(0), TOKENS[:1, :1])["params"]["head"]
    np.testing.assert_allclose(np.asarray(head["kernel"]).std(), 0.05, rtol=0.05)
    np.testing.assert_array_equal(head["bias"], 0)
