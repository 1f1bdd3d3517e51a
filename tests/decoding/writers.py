"""Decoders and an encoder-decoder that write, and what they say of a text when they read it whole."""

import functools

import jax
import jax.numpy as jnp
import numpy as np

from lm.models.build import make_language_model
from lm.modules.config import ModelConfig

WINDOW, VOCAB, PADDED, END = 12, 11, 14, 0  # the last three ids pad the table
SHAPE = {"vocab_size": PADDED, "layers": 1, "width": 16, "heads": 4, "max_length": WINDOW}
T5 = {"positions": "relative", "normalization": "rms_norm", "activation": "gated_gelu", "tie_embeddings": False}
MODELS = {
    "rotary": make_language_model(ModelConfig(**SHAPE, positions="rotary", kv_heads=2, tie_embeddings=False)),
    "learned": make_language_model(ModelConfig(**SHAPE, bias=True)),
    "t5": make_language_model(ModelConfig(**SHAPE, **T5, architecture="encoder_decoder")),
}
PROMPTS = ((1, 2, 3, 4, 5, 6), (7, 8), (9,), (5, 1, 3))


@functools.cache
def params_of(name):
    """Weights large enough that distributions are far from uniform, and largest for the ids of padding."""
    nothing = jnp.zeros((1, 1), jnp.int32)
    tokens = (nothing, nothing) if name == "t5" else (nothing,)
    shapes = jax.eval_shape(MODELS[name].init, jax.random.key(0), *tokens)["params"]
    random = np.random.default_rng(0)
    params = jax.tree.map(lambda leaf: random.normal(size=leaf.shape, scale=0.5).astype(np.float32), shapes)
    (params["output"] if "output" in params else params["token_embedding"]["embedding"])[VOCAB:] *= 4
    return params


@functools.cache
def _forward(name):
    def logits(params, read, segments, fed):
        inputs = (read, fed, segments) if name == "t5" else (fed,)
        return MODELS[name].apply({"params": params}, *inputs)

    return jax.jit(logits)


def logits_before(name, prompt, tokens):
    """The model's logits before each token, [n, V], from one pass over all of them, without a cache."""
    head = [END] if name == "t5" else list(prompt)
    row = [*head, *tokens][:-1]
    fed, read, segments = np.zeros((3, 1, WINDOW), np.int32)  # one shape, one compilation
    fed[0, : len(row)], read[0, : len(prompt)], segments[0, : len(prompt)] = row, prompt, 1
    return np.asarray(_forward(name)(params_of(name), read, segments, fed))[0, len(head) - 1 : len(row)]


def calibrate(logits):
    """A calibrator that changes the order of tokens, and whose outcome for one depends on all, the padding too."""
    biased = 0.5 * logits + jnp.where(jnp.arange(PADDED)[None, :] % 3 == 1, 0.7, 0.0)
    return jnp.log(0.9 * jax.nn.softmax(biased, axis=-1) + 0.1 / PADDED)


def scores_of(name, prompt, tokens, calibrator=None):
    """Logits before each token, perhaps calibrated, within the vocabulary: [n, V] in float64."""
    logits = logits_before(name, prompt, tokens)
    logits = np.asarray(logits if calibrator is None else calibrator(logits), np.float64)
    return np.where(np.arange(PADDED)[None] < VOCAB, logits, -np.inf)


def log_probs_of(name, prompt, tokens, calibrator=None):
    """The log-probability of each token within the vocabulary, in float64."""
    scores = scores_of(name, prompt, tokens, calibrator)
    log_probs = scores - np.log(np.exp(scores).sum(axis=1, keepdims=True))
    return log_probs[range(len(tokens)), list(tokens)]
