"""Sampling and greedy decoding, in one compiled loop over a step.

Axes: B sequences, P prompt positions, T new positions, V vocabulary.
"""

import dataclasses
import functools
from collections.abc import Sequence

import chex
import jax
import jax.numpy as jnp
import numpy as np
from jax import Array

from lm.decoding.continuation import Continuation, Decoded
from lm.decoding.sampling import SamplingConfig, sampling_log_probs
from lm.decoding.step import Calibrator, Scores, Start, Writer, begin, check_writer, pad, scored
from lm.models.decoder_lm import DecoderLM
from lm.types import Params


def generate(
    model: Writer,
    params: Params,
    prompts: Sequence[Sequence[int]],
    config: SamplingConfig,
    end_of_text: int | None = None,
    vocab_size: int | None = None,
    calibrator: Calibrator | None = None,
) -> list[Continuation]:
    """Continues each prompt; an encoder-decoder encodes it and generates an output.

    A continuation depends on its prompt, the prompt's index in `prompts` and the seed, but not on the other prompts.
    When a decoder's sequence reaches `max_length`, generation continues with its last half as context, and the
    log-probabilities are conditioned on that shorter context. An encoder-decoder's output ends at `max_length`.

    Args:
      model: the network.
      params: its parameters.
      prompts: token ids, at least one each. A decoder sees the end of a prompt longer than `max_length - 1`. An
        encoder-decoder reads prompts unchanged: if its inputs ended with an end-of-text token in training, append it.
      config: how to sample; expanding `config.samples` is up to the caller.
      end_of_text: the id at which a continuation ends, or None. An encoder-decoder also starts with it.
      vocab_size: ids from here on pad the embedding table and are never chosen; None: no padding.
      calibrator: acts on the model's logits before anything else.

    Returns:
      A `Continuation` for each prompt.

    Raises:
      UserError: for a model that does not generate text, and for an encoder-decoder without `end_of_text` or with a
        prompt longer than `max_length`.
      ValueError: for an empty prompt.
    """
    check_writer(model, prompts, end_of_text)
    # Settings that do not change the compiled loop must not recompile it.
    distribution = dataclasses.replace(config, seed=0, max_new_tokens=1, samples=1)
    sampled = functools.partial(
        _sampled,
        model,
        params,
        key=jax.random.key(config.seed),
        config=distribution,
        end_of_text=end_of_text,
        vocab_size=vocab_size,
        calibrator=calibrator,
    )
    texts, window = [list(prompt) for prompt in prompts], model.config.max_length
    counts_B, done_B = np.zeros(len(texts), np.int32), np.zeros(len(texts), bool)
    pieces: list[list[Continuation]] = [[] for _ in texts]
    slides = isinstance(model, DecoderLM)
    keep = window - 1 if slides else window
    while not done_B.all():
        prompts_BP, lengths_B = pad([text[-keep:] for text in texts], window)
        room_B = window - lengths_B if slides else window
        limits_B = np.where(done_B, 0, np.minimum(config.max_new_tokens - counts_B, room_B)).astype(np.int32)
        written = sampled(prompts_BP, lengths_B, limits_B, counts_B).continuations()
        for row, piece in enumerate(written):
            pieces[row].append(piece)
            texts[row] += piece.tokens.tolist()
            counts_B[row] += piece.tokens.size
            done_B[row] |= piece.finished or counts_B[row] >= config.max_new_tokens or not slides
        keep = max(window // 2, 1)
    return [functools.reduce(lambda one, other: one + other, row) for row in pieces]


def sample(
    start: Start,
    config: SamplingConfig,
    key: Array,
    end_of_text: int | None,
    *,
    length: int,
    limits_B: Array,
    counts_B: Array,
    vocab_size: int | None = None,
    calibrator: Calibrator | None = None,
) -> Decoded:
    """Continues each row's prompt, one token at a time. Compiled by the caller.

    Args:
      start: the model.
      config: the distribution; its `max_new_tokens`, `samples` and `seed` are ignored.
      key: of all randomness; each row's key is derived from it and the row's index.
      end_of_text: the id that ends a row, or None.
      length: T.
      limits_B: maximum number of new tokens for each row, from 0 to T, within the model's room.
      counts_B: how many tokens of each row were generated before, from which the next random keys are derived.
      vocab_size: as for `lm.decoding.step.score`.
      calibrator: as for `lm.decoding.step.score`.
    """
    chex.assert_equal_shape([start.tokens_B, start.positions_B, limits_B, counts_B])
    step = scored(start.step, vocab_size, calibrator)
    batch = start.tokens_B.shape[0]
    limits_B = jnp.minimum(jnp.minimum(limits_B, length), start.room_B)
    keys_B = jax.vmap(functools.partial(jax.random.fold_in, key))(jnp.arange(batch))

    def unfinished(carry: tuple) -> Array:
        n, _, _, decoded = carry
        return (~decoded.finished_B & (n < limits_B)).any()

    def one_token(carry: tuple) -> tuple:
        n, last_B, caches, decoded = carry
        active_B = ~decoded.finished_B & (n < limits_B)
        # A finished row must not exceed the model's positions.
        positions_B = start.positions_B + jnp.minimum(n, jnp.maximum(limits_B - 1, 0))
        logits, caches = step(last_B[:, None], positions_B[:, None], caches)
        sampling_BV = sampling_log_probs(logits.deciding, config)
        tokens_B = _draw(keys_B, counts_B + n, sampling_BV)
        sampling_B = jnp.take_along_axis(sampling_BV, tokens_B[:, None], axis=1)[:, 0]
        decoded = _append(decoded, n, active_B, tokens_B, logits.log_probs().of_tokens(tokens_B), sampling_B)
        if end_of_text is not None:
            ends_B = active_B & (tokens_B == end_of_text)
            decoded = dataclasses.replace(decoded, finished_B=decoded.finished_B | ends_B)
        return n + 1, tokens_B, caches, decoded

    nothing = Decoded.empty(batch, length, calibrated=calibrator is not None, sampled=True)
    first = (jnp.zeros((), jnp.int32), start.tokens_B.astype(jnp.int32), start.caches, nothing)
    return jax.lax.while_loop(unfinished, one_token, first)[-1]


@functools.partial(jax.jit, static_argnames=("model", "config", "end_of_text", "vocab_size", "calibrator"))
def _sampled(
    model: Writer,
    params: Params,
    prompts_BP: Array,
    lengths_B: Array,
    limits_B: Array,
    counts_B: Array,
    *,
    key: Array,
    config: SamplingConfig,
    end_of_text: int | None,
    vocab_size: int | None,
    calibrator: Calibrator | None,
) -> Decoded:
    # As long as the model allows, whatever the limits, so that another limit does not recompile.
    length = model.config.max_length
    start = begin(model, params, prompts_BP, lengths_B, length, end_of_text)
    return sample(
        start,
        config,
        key,
        end_of_text,
        length=length,
        limits_B=limits_B,
        counts_B=counts_B,
        vocab_size=vocab_size,
        calibrator=calibrator,
    )


def _draw(keys_B: Array, counts_B: Array, log_probs_BV: Array) -> Array:
    """Samples a token for each row, from its key and token count."""

    def draw(key: Array, count: Array, log_probs_V: Array) -> Array:
        return jax.random.categorical(jax.random.fold_in(key, count), log_probs_V)

    return jax.vmap(draw)(keys_B, counts_B, log_probs_BV).astype(jnp.int32)


def _append(
    decoded: Decoded, n: Array, active_B: Array, tokens_B: Array, log_probs: Scores, sampling_B: Array
) -> Decoded:
    """Appends the n-th token of each active row."""
    values = {
        "tokens_BT": tokens_B,
        "log_probs_BT": log_probs.own,
        "calibrated_log_probs_BT": log_probs.calibrated,
        "sampling_log_probs_BT": sampling_B,
    }
    written = {
        name: getattr(decoded, name).at[:, n].set(jnp.where(active_B, values_B, 0))
        for name, values_B in values.items()
        if values_B is not None
    }
    return dataclasses.replace(decoded, **written, lengths_B=decoded.lengths_B + active_B)
