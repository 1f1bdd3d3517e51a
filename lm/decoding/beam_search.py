"""Beam search over a step, in one compiled loop; with one beam it is greedy decoding.

Axes: B sequences, K beams of each, C candidates for their continuation (2K), P prompt positions, T new positions,
V vocabulary, R rows of a model's batch (B times K, the beams of a sequence side by side).
"""

import dataclasses
import functools
from collections.abc import Sequence
from typing import Any

import chex
import flax.struct
import jax
import jax.numpy as jnp
import numpy as np
from jax import Array

from lm.decoding.continuation import Continuation, Decoded
from lm.decoding.step import (
    Caches,
    Calibrator,
    Scores,
    Start,
    Writer,
    batches_of_like_length,
    begin,
    check_writer,
    is_end,
    pad,
    padded_length,
    positions_of,
    score,
    scored,
)
from lm.errors import UserError
from lm.models.decoder_lm import DecoderLM
from lm.models.unrolled import unrolled
from lm.types import Params


@dataclasses.dataclass(frozen=True)
class BeamSearchConfig:
    """Settings of the search.

    Attributes:
      beams: K, the number of open sequences; 1 is greedy.
      max_new_tokens: T, the longest sequence, the token that ends it included.
      length_penalty: sequences are ranked by log-probability / length to this power (Wu et al. 2016, simplified); 0: by
        log-probability alone, which favours short ones.
    """

    beams: int = 4
    max_new_tokens: int = 64
    length_penalty: float = 1.0

    def __post_init__(self):
        if self.beams < 1 or self.max_new_tokens < 1:
            raise UserError("beams and max_new_tokens must be at least 1")
        if self.length_penalty < 0:
            raise UserError(f"length_penalty must not be negative, got {self.length_penalty}")


@flax.struct.dataclass
class _Sequences:
    """Sequences of equal length, the likeliest first; for candidates K is C.

    Attributes:
      tokens_BKT: as in `Decoded`.
      log_probs_BKT: scores of each token, in arrays of that shape.
      totals_BK: log-probability of the sequence, calibrated if there is a calibrator; -inf for empty places.
      last_BK: the last token.
    """

    tokens_BKT: Array
    log_probs_BKT: Scores
    totals_BK: Array
    last_BK: Array


@flax.struct.dataclass
class _Finished:
    """The best finished sequence of each row, its score (-inf if there is none), and how many have finished."""

    best: Decoded
    scores_B: Array
    count_B: Array


def search(
    model: Writer,
    params: Params,
    prompts: Sequence[Sequence[int]],
    config: BeamSearchConfig,
    ends: tuple[int, ...] = (),
    start: int | None = None,
    vocab_size: int | None = None,
    calibrator: Calibrator | None = None,
    batch_size: int = 16,
) -> list[Continuation]:
    """The best continuation of each prompt; of an encoder-decoder, the best output for it.

    Args:
      model: the network.
      params: its parameters.
      prompts: token ids, at least one each. A decoder sees the end of a prompt longer than `max_length - 1`. An
        encoder-decoder reads prompts unchanged: if its inputs ended with an end-of-text token in training, append it.
      config: settings of the search. If a prompt leaves less room in `max_length` than `max_new_tokens`, that room is
        the limit.
      ends: the ids at which a continuation ends.
      start: the id after which an encoder-decoder's output starts.
      vocab_size: as for `lm.decoding.step.score`.
      calibrator: as for `beam_search`.
      batch_size: prompts of similar length that are searched together, at most.

    Returns:
      A `Continuation` for each prompt, independent of the other prompts.

    Raises:
      UserError: for a model that does not generate text, and for an encoder-decoder without `start` or with a prompt
        longer than `max_length`.
      ValueError: for an empty prompt.
    """
    check_writer(model, prompts, start)
    model, params = unrolled(model, params)
    window = model.config.max_length
    keep = window - 1 if isinstance(model, DecoderLM) else window
    limit = min(config.max_new_tokens, window)
    # Few sizes of the loop, to limit compilation.
    config = dataclasses.replace(config, max_new_tokens=padded_length(config.max_new_tokens, window))
    prompts = [list(prompt[-keep:]) for prompt in prompts]
    found: dict[int, Continuation] = {}
    for numbers in batches_of_like_length([len(prompt) for prompt in prompts], window, batch_size):
        prompts_BP, lengths_B = pad([prompts[number] for number in numbers], window)
        limits_B = np.full(len(numbers), limit, np.int32)
        arrays = (prompts_BP, lengths_B, limits_B)
        decoded = _searched(model, params, *arrays, config, ends, start, vocab_size, calibrator=calibrator)
        found |= zip(numbers, decoded.continuations(), strict=True)
    return [found[number] for number in range(len(prompts))]


@functools.partial(jax.jit, static_argnames=("model", "config", "ends", "start", "vocab_size", "calibrator"))
def _searched(
    model: Writer,
    params: Params,
    prompts_BP: Array,
    lengths_B: Array,
    limits_B: Array,
    config: BeamSearchConfig,
    ends: tuple[int, ...],
    start: int | None,
    vocab_size: int | None,
    calibrator: Calibrator | None,
) -> Decoded:
    started = begin(model, params, prompts_BP, lengths_B, config.max_new_tokens, start)
    return beam_search(started, config, ends, vocab_size=vocab_size, limits_B=limits_B, calibrator=calibrator)


def beam_search(
    start: Start,
    config: BeamSearchConfig,
    ends: tuple[int, ...],
    *,
    limits_B: Array | None = None,
    vocab_size: int | None = None,
    calibrator: Calibrator | None = None,
) -> Decoded:
    """Searches for the likeliest continuation of each row (Graves 2012; Sutskever et al. 2014, section 3.2).

    A sequence finishes when a token that ends it is among the K best candidates of its row. A row is done when K
    sequences have finished and no open one scores higher than the best of them, when none can overtake it, or at its
    limit. Finished sequences take precedence over those cut by the limit; without any, the likeliest cut one is
    returned. Compiled by the caller.

    Args:
      start: the model.
      config: settings of the search.
      ends: the ids that end a sequence.
      limits_B: maximum number of new tokens for each row, from 1 to T; None: T. The model's room limits them too.
      vocab_size: as for `lm.decoding.step.score`.
      calibrator: as for `lm.decoding.step.score`. With one, sequences are ranked by calibrated log-probabilities.

    Returns:
      The best sequence of each row, independent of other rows.
    """
    beams, rows = config.beams, start.positions_B.size
    limits_B = jnp.full(rows, config.max_new_tokens, jnp.int32) if limits_B is None else limits_B
    chex.assert_equal_shape([start.positions_B, start.room_B, limits_B])
    limits_B = jnp.minimum(limits_B, start.room_B)
    step = scored(start.step, vocab_size, calibrator)
    wide = start.repeat(beams)

    def one_token(carry: tuple) -> tuple:
        n, done_B, open_sequences, finished, caches = carry
        positions_R1 = jnp.repeat(positions_of(start.positions_B, n - 1, limits_B), beams)[:, None]
        logits, caches = step(open_sequences.last_BK.reshape(-1, 1), positions_R1, caches)
        return extend(n, done_B, open_sequences, finished, caches, logits)

    def extend(
        n: Array, done_B: Array, open_sequences: _Sequences, finished: _Finished, caches: Caches, logits: Scores
    ) -> tuple:
        """With the likeliest tokens after n others."""
        candidates, parents_BC = _candidates(open_sequences, logits.log_probs(), n)
        is_end_BC = is_end(candidates.last_BK, ends)
        kept, kept_BK = _keep_open(candidates, is_end_BC, beams)
        # A finished row stays unchanged while others continue.
        open_sequences = _where(done_B, open_sequences, kept)
        finished = _where(done_B, finished, _finish(finished, candidates, is_end_BC, n + 1, config))
        caches = _of_parents(caches, jnp.take_along_axis(parents_BC, kept_BK, axis=1))
        done_B |= _done(n + 1, open_sequences, finished, limits_B, config)
        return n + 1, done_B, open_sequences, finished, caches

    nothing = Decoded.empty(rows, config.max_new_tokens, calibrated=calibrator is not None, sampled=False)
    none_finished = _Finished(nothing, jnp.full(rows, -jnp.inf), jnp.zeros(rows, jnp.int32))
    empty = (jnp.zeros((), jnp.int32), jnp.zeros(rows, bool), _empty(nothing, beams), none_finished, wide.caches)
    first = extend(*empty, score(wide.logits_BV, vocab_size, calibrator))
    _, _, open_sequences, finished, _ = jax.lax.while_loop(lambda carry: ~carry[1].all(), one_token, first)
    return _best(open_sequences, finished, limits_B)


def _best(open_sequences: _Sequences, finished: _Finished, limits_B: Array) -> Decoded:
    """The best finished sequence of each row or, where there is none, the likeliest one, cut by the limit."""
    likeliest_B1 = jnp.zeros((limits_B.size, 1), jnp.int32)
    cut = _decoded(open_sequences, likeliest_B1, limits_B, jnp.zeros(limits_B.size, bool))
    return _where(finished.count_B > 0, finished.best, cut)


def _empty(nothing: Decoded, beams: int) -> _Sequences:
    """One empty sequence for each row."""
    tokens_BKT, own_BKT, calibrated_BKT = jax.tree.map(
        lambda array_BT: jnp.repeat(array_BT[:, None], beams, axis=1),
        (nothing.tokens_BT, nothing.log_probs_BT, nothing.calibrated_log_probs_BT),
    )
    totals_BK = jnp.full(tokens_BKT.shape[:2], -jnp.inf).at[:, 0].set(0.0)
    last_BK = jnp.zeros(tokens_BKT.shape[:2], jnp.int32)
    return _Sequences(tokens_BKT, Scores(own_BKT, calibrated_BKT), totals_BK, last_BK)


def _decoded(sequences: _Sequences, chosen_B1: Array, lengths_B: Array, finished_B: Array) -> Decoded:
    """One sequence of each row."""
    tokens_BT, log_probs_BT = jax.tree.map(
        lambda values_BKT: _of_beams(values_BKT, chosen_B1)[:, 0], (sequences.tokens_BKT, sequences.log_probs_BKT)
    )
    lengths_B = lengths_B.astype(jnp.int32)
    return Decoded(tokens_BT, log_probs_BT.own, log_probs_BT.calibrated, None, lengths_B, finished_B)


def _done(
    n: Array, open_sequences: _Sequences, finished: _Finished, limits_B: Array, config: BeamSearchConfig
) -> Array:
    """Whether each row is done, given sequences of n tokens, [B]."""
    # More tokens only lower a log-probability; its best possible score divides it by the maximum length.
    likeliest_B = open_sequences.totals_BK[:, 0]
    out_of_reach_B = _score(likeliest_B, limits_B, config) <= finished.scores_B
    # If one token is nearly certain, all K finished sequences may be unlikely.
    behind_B = _score(likeliest_B, n, config) <= finished.scores_B
    return (n >= limits_B) | ((finished.count_B >= config.beams) & behind_B) | out_of_reach_B


def _score(log_probs: Array, lengths: Array, config: BeamSearchConfig) -> Array:
    return log_probs / lengths.astype(jnp.float32) ** config.length_penalty


def _candidates(sequences: _Sequences, log_probs_RV: Scores, n: Array) -> tuple[_Sequences, Array]:
    """The 2K likeliest sequences with one more token, at least K of them open, and the beam that each extends."""
    batch, beams = sequences.totals_BK.shape
    vocab_size = log_probs_RV.own.shape[-1]
    totals_BKV = sequences.totals_BK[:, :, None] + log_probs_RV.deciding.reshape(batch, beams, vocab_size)
    totals_BC, chosen_BC = jax.lax.top_k(totals_BKV.reshape(batch, -1), min(2 * beams, beams * vocab_size))
    parents_BC, tokens_BC = chosen_BC // vocab_size, chosen_BC % vocab_size

    def append(values_BKT: Array, new_RV: Array) -> Array:
        new_BC = jnp.take_along_axis(new_RV.reshape(batch, -1), chosen_BC, axis=1)
        return _of_beams(values_BKT, parents_BC).at[:, :, n].set(new_BC)

    tokens_BCT = _of_beams(sequences.tokens_BKT, parents_BC).at[:, :, n].set(tokens_BC)
    log_probs_BCT = jax.tree.map(append, sequences.log_probs_BKT, log_probs_RV)
    return _Sequences(tokens_BCT, log_probs_BCT, totals_BC, tokens_BC), parents_BC


def _keep_open(candidates: _Sequences, is_end_BC: Array, beams: int) -> tuple[_Sequences, Array]:
    """The K likeliest candidates that have not ended, and their indices."""
    totals_BK, kept_BK = jax.lax.top_k(jnp.where(is_end_BC, -jnp.inf, candidates.totals_BK), beams)
    last_BK = jnp.take_along_axis(candidates.last_BK, kept_BK, axis=1)
    by_token = (candidates.tokens_BKT, candidates.log_probs_BKT)
    tokens_BKT, log_probs_BKT = jax.tree.map(lambda values_BCT: _of_beams(values_BCT, kept_BK), by_token)
    return _Sequences(tokens_BKT, log_probs_BKT, totals_BK, last_BK), kept_BK


def _finish(
    finished: _Finished, candidates: _Sequences, is_end_BC: Array, length: Array, config: BeamSearchConfig
) -> _Finished:
    """Adds the candidates that have ended, if they are among the K likeliest."""
    among_best_1C = jnp.arange(is_end_BC.shape[1])[None, :] < config.beams
    ended_BC = is_end_BC & among_best_1C & (candidates.totals_BK > -jnp.inf)
    scores_BC = jnp.where(ended_BC, _score(candidates.totals_BK, length, config), -jnp.inf)
    best_B1 = scores_BC.argmax(axis=1)[:, None]
    scores_B = jnp.take_along_axis(scores_BC, best_B1, axis=1)[:, 0]
    newest = _decoded(candidates, best_B1, jnp.full(scores_B.shape, length), scores_B > -jnp.inf)
    best = _where(scores_B > finished.scores_B, newest, finished.best)
    count_B = finished.count_B + ended_BC.sum(axis=1, dtype=jnp.int32)
    return _Finished(best, jnp.maximum(scores_B, finished.scores_B), count_B)


def _of_beams(values_BKT: Array, chosen_BC: Array) -> Array:
    return jnp.take_along_axis(values_BKT, chosen_BC[:, :, None], axis=1)


def _of_parents(caches: Caches, parents_BK: Array) -> Caches:
    batch, beams = parents_BK.shape
    if beams == 1:
        return caches
    return caches.take_rows((jnp.arange(batch)[:, None] * beams + parents_BK).reshape(-1))


def _where(condition_B: Array, yes: Any, no: Any) -> Any:
    """Selects one of two pytrees for each row; arrays have the leading axis B."""

    def choose(one: Array, other: Array) -> Array:
        return jnp.where(condition_B.reshape(-1, *[1] * (one.ndim - 1)), one, other)

    return jax.tree.map(choose, yes, no)
