"""The same weights give the same outputs as transformers' BERT and T5, whose weights are copied across here."""

import functools
import types

import jax
import numpy as np
import pytest

from lm.models.encoder_decoder_lm import EncoderDecoderLM
from lm.models.encoder_lm import EncoderLM
from lm.modules.config import ModelConfig
from lm.modules.relative_positions import relative_buckets

torch = pytest.importorskip("torch")
transformers = pytest.importorskip("transformers")

LAYERS, WIDTH, HEADS, HEAD_WIDTH, VOCAB = 2, 16, 4, 6, 29
RANDOM = np.random.default_rng(0)
INPUTS = RANDOM.integers(VOCAB, size=(3, 13)).astype(np.int32)
INPUT_SEGMENTS = (np.arange(13)[None] < np.array([[13], [8], [1]])).astype(np.int32)
TYPES = np.where(np.arange(13)[None] < np.array([[5], [3], [1]]), 0, 1).astype(np.int32) * INPUT_SEGMENTS
OUTPUTS = RANDOM.integers(VOCAB, size=(3, 9)).astype(np.int32)


def random_weights(reference):
    """A reference model with weights large enough that all matter, and these as NumPy arrays by name."""
    reference.eval()
    random = np.random.default_rng(1)
    with torch.no_grad():
        for name, weight in reference.named_parameters():
            # Near 1 for normalizations' scales.
            mean = float(name.lower().endswith(("layernorm.weight", "layer_norm.weight")))
            values = random.normal(mean, 0.2, size=tuple(weight.shape))
            weight.copy_(torch.from_numpy(values.astype(np.float32)))
    return {name: weight.numpy().copy() for name, weight in reference.state_dict().items()}


def as_torch(array):
    return torch.from_numpy(np.asarray(array, np.int64))


def fused(heads_of_each, arrays):
    """Projections side by side in the order of `MultiHeadAttention`: for each head its part of each array."""
    split = [array.reshape(-1, heads_of_each, array.shape[-1] // heads_of_each) for array in arrays]
    return np.concatenate(split, axis=-1).reshape(-1, sum(array.shape[-1] for array in arrays))


def linear(weights, name):
    return {"kernel": weights[f"{name}.weight"].T, "bias": weights[f"{name}.bias"]}


def norm(weights, name):
    return {"scale": weights[f"{name}.weight"], "bias": weights[f"{name}.bias"]}


def bert_params(weights):
    """Parameters of `EncoderLM` from those of `BertForMaskedLM`, or of a model that lacks some parts of it."""

    def block(prefix):
        parts = [f"{prefix}.attention.self.{part}" for part in ("query", "key", "value")]
        return {
            "attention": {
                "query_key_value": {
                    "kernel": fused(HEADS, [weights[f"{part}.weight"].T for part in parts]),
                    "bias": fused(HEADS, [weights[f"{part}.bias"][None] for part in parts])[0],
                },
                "output": linear(weights, f"{prefix}.attention.output.dense"),
            },
            "attention_norm": norm(weights, f"{prefix}.attention.output.LayerNorm"),
            "feed_forward": {
                "up": linear(weights, f"{prefix}.intermediate.dense"),
                "down": linear(weights, f"{prefix}.output.dense"),
            },
            "feed_forward_norm": norm(weights, f"{prefix}.output.LayerNorm"),
        }

    tables = {
        "token_embedding": "word_embeddings",
        "position_embedding": "position_embeddings",
        "type_embedding": "token_type_embeddings",
    }
    return {
        **{ours: {"embedding": weights[f"bert.embeddings.{theirs}.weight"]} for ours, theirs in tables.items()},
        "embedding_norm": norm(weights, "bert.embeddings.LayerNorm"),
        "encoder": {f"layer_{layer}": block(f"bert.encoder.layer.{layer}") for layer in range(LAYERS)},
        "pooler": linear(weights, "bert.pooler.dense"),
        "next_sentence_head": linear(weights, "cls.seq_relationship"),
        "prediction_head": {
            "dense": linear(weights, "cls.predictions.transform.dense"),
            "norm": norm(weights, "cls.predictions.transform.LayerNorm"),
            "bias": weights["cls.predictions.bias"],
        },
    }


def test_encoder_equals_bert():
    """Hidden states, pooled states, masked-LM and next-sentence logits, with padding and two types of text."""
    shape = transformers.BertConfig(
        vocab_size=VOCAB,
        hidden_size=WIDTH,
        num_hidden_layers=LAYERS,
        num_attention_heads=HEADS,
        intermediate_size=24,
        max_position_embeddings=15,
    )
    reference = transformers.BertForPreTraining(shape)
    params = bert_params(random_weights(reference))
    with torch.no_grad():
        expected = reference(as_torch(INPUTS), as_torch(INPUT_SEGMENTS), as_torch(TYPES), output_hidden_states=True)
        pooled = reference.bert.pooler(expected.hidden_states[-1])
    model = EncoderLM(
        ModelConfig(
            architecture="encoder",
            vocab_size=VOCAB,
            layers=LAYERS,
            width=WIDTH,
            heads=HEADS,
            feed_forward_width=24,
            max_length=15,
            segment_types=2,
            normalization_place="after",
            normalize_embeddings=True,
            normalization_epsilon=1e-12,
            activation="gelu",
            bias=True,
        )
    )

    @jax.jit
    def outputs(params):
        apply = functools.partial(model.apply, {"params": params})
        hidden = apply(INPUTS, INPUT_SEGMENTS, None, TYPES, method="hidden")
        pooled = apply(hidden, INPUT_SEGMENTS, method="pool")
        return hidden, pooled, apply(hidden, method="logits"), apply(pooled, method="next_sentence")

    hidden, pool, logits, next_sentence = outputs(params)
    seen = INPUT_SEGMENTS > 0  # what padding becomes concerns nobody
    np.testing.assert_allclose(hidden[seen], expected.hidden_states[-1].numpy()[seen], atol=1e-5)
    np.testing.assert_allclose(pool, pooled.numpy(), atol=1e-5)
    np.testing.assert_allclose(logits[seen], expected.prediction_logits.numpy()[seen], atol=1e-5)
    np.testing.assert_allclose(next_sentence, expected.seq_relationship_logits.numpy(), atol=1e-5)
    assert np.abs(pooled.numpy()).min() < 0.9, "tanh is saturated"


def t5_params(weights):
    """Parameters of `EncoderDecoderLM` from those of `T5Model`."""
    # T5 does not divide scores by sqrt(H); here its queries are larger by as much.
    unscaled = np.float32(np.sqrt(HEAD_WIDTH))

    def projections(prefix):
        q, k, v, o = (weights[f"{prefix}.{part}.weight"].T for part in "qkvo")
        return types.SimpleNamespace(q=q * unscaled, k=k, v=v, output={"kernel": o})

    def block(prefix, cross_attention):
        own, last = projections(f"{prefix}.0.SelfAttention"), 2 if cross_attention else 1
        names = {"wi": "up", "wi_1": "up", "wi_0": "gate", "wo": "down"}
        dense = f"{prefix}.{last}.DenseReluDense"
        params = {
            "attention": {
                "query_key_value": {"kernel": fused(HEADS, [own.q, own.k, own.v])},
                "output": own.output,
            },
            "attention_norm": {"scale": weights[f"{prefix}.0.layer_norm.weight"]},
            "feed_forward": {
                ours: {"kernel": weights[f"{dense}.{theirs}.weight"].T}
                for theirs, ours in names.items()
                if f"{dense}.{theirs}.weight" in weights
            },
            "feed_forward_norm": {"scale": weights[f"{prefix}.{last}.layer_norm.weight"]},
        }
        if cross_attention:
            cross = projections(f"{prefix}.1.EncDecAttention")
            params["memory_attention"] = {
                "query": {"kernel": cross.q},
                "key_value": {"kernel": fused(HEADS, [cross.k, cross.v])},
                "output": cross.output,
            }
            params["memory_attention_norm"] = {"scale": weights[f"{prefix}.1.layer_norm.weight"]}
        return params

    def stack(side):
        biases = weights[f"{side}.block.0.layer.0.SelfAttention.relative_attention_bias.weight"]
        return {
            **{f"layer_{i}": block(f"{side}.block.{i}.layer", side == "decoder") for i in range(LAYERS)},
            "relative_positions": {"embedding": biases},
            "final_norm": {"scale": weights[f"{side}.final_layer_norm.weight"]},
        }

    return {
        "token_embedding": {"embedding": weights["shared.weight"]},
        "encoder": stack("encoder"),
        "decoder": stack("decoder"),
    }


@pytest.mark.parametrize(("activation", "theirs"), [("relu", "relu"), ("gated_gelu", "gated-gelu")])
def test_encoder_decoder_equals_t5(activation, theirs):
    """Of T5 1.0 and 1.1: hidden states of both sides, with padding of the input."""
    shape = transformers.T5Config(
        vocab_size=VOCAB,
        d_model=WIDTH,
        d_kv=HEAD_WIDTH,
        d_ff=24,
        num_layers=LAYERS,
        num_heads=HEADS,
        relative_attention_num_buckets=8,
        relative_attention_max_distance=10,
        feed_forward_proj=theirs,
    )
    reference = transformers.T5Model(shape)
    params = t5_params(random_weights(reference))
    with torch.no_grad():
        expected = reference(as_torch(INPUTS), as_torch(INPUT_SEGMENTS), decoder_input_ids=as_torch(OUTPUTS))
    model = EncoderDecoderLM(
        ModelConfig(
            architecture="encoder_decoder",
            vocab_size=VOCAB,
            layers=LAYERS,
            width=WIDTH,
            heads=HEADS,
            head_width=HEAD_WIDTH,
            feed_forward_width=24,
            max_length=13,
            positions="relative",
            relative_buckets=8,
            relative_max_distance=10,
            normalization="rms_norm",
            normalization_epsilon=1e-6,
            activation=activation,
        )
    )

    @jax.jit
    def outputs(params):
        apply = functools.partial(model.apply, {"params": params})
        memory = apply(INPUTS, INPUT_SEGMENTS, method="encode")
        return memory, apply(memory, INPUT_SEGMENTS, OUTPUTS, method="decode")

    memory, hidden = outputs(params)
    seen = INPUT_SEGMENTS > 0
    np.testing.assert_allclose(memory[seen], expected.encoder_last_hidden_state.numpy()[seen], atol=1e-5)
    np.testing.assert_allclose(hidden, expected.last_hidden_state.numpy(), atol=1e-5)


@pytest.mark.parametrize("bidirectional", [True, False])
@pytest.mark.parametrize(("buckets", "max_distance"), [(32, 128), (8, 10), (64, 1000)])
def test_relative_buckets_equal_those_of_t5(bidirectional, buckets, max_distance):
    from transformers.models.t5.modeling_t5 import T5Attention

    distances = np.arange(-1500, 1501)
    expected = T5Attention._relative_position_bucket(torch.from_numpy(distances), bidirectional, buckets, max_distance)
    actual = relative_buckets(distances, bidirectional, buckets, max_distance)
    np.testing.assert_array_equal(actual, expected.numpy())
