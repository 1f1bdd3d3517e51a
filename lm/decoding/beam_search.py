"""Beam search over a key-value cache, in one compiled loop; with one beam it is greedy decoding.

Axes: B sequences, K beams of each, C candidates to follow them (2K), T new positions, V vocabulary, R rows of a model's
batch (B times K, the beams of a sequence side by side).
"""

import dataclasses
from collections.abc import Callable
from typing import Any, Protocol

import chex
import flax.struct
import jax
import jax.numpy as jnp
from jax import Array

from lm.errors import UserError


class Caches(Protocol):
    """What a model keeps while it decodes: a pytree that can be reordered, such as `lm.modules.stack.Caches`."""

    def take_rows(self, rows_B: Array) -> "Caches":
        """The caches of these rows of the batch, in this order; a row may come more than once."""


# From tokens [R, 1], their positions [R, 1] and caches to the logits of the tokens after them [R, V] and the caches.
Step = Callable[[Array, Array, Caches], tuple[Array, Caches]]


@dataclasses.dataclass(frozen=True)
class BeamSearchConfig:
    """How widely to search.

    Attributes:
      beams: K, sequences kept open; 1 is greedy.
      max_new_tokens: T, the longest sequence, the end-of-text token included.
      length_penalty: sequences compete by log-probability / length to this power (Wu et al. 2016, simplified); 0: by
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
class Decoded:
    """The best sequence found for each row.

    Attributes:
      tokens_BT: its tokens, the end-of-text token included where it ends with one; 0 after its end.
      log_probs_BT: the model's own log-probability of each, without a length penalty; 0 after its end.
      lengths_B: its number of tokens.
      finished_B: whether it ends with the end-of-text token; otherwise the limit cut it.
    """

    tokens_BT: Array
    log_probs_BT: Array
    lengths_B: Array
    finished_B: Array

    @property
    def total_log_probs_B(self) -> Array:
        """The model's log-probability of the whole sequence."""
        return self.log_probs_BT.sum(axis=1)


@flax.struct.dataclass
class _Sequences:
    """Sequences of equal length, the likeliest first; K stands for C where they are candidates.

    Attributes:
      tokens_BKT, log_probs_BKT: as in `Decoded`.
      totals_BK: log-probability of the whole; -inf where there is no such sequence.
      last_BK: the last token.
    """

    tokens_BKT: Array
    log_probs_BKT: Array
    totals_BK: Array
    last_BK: Array


@flax.struct.dataclass
class _Finished:
    """The best finished sequence of each row, its score (-inf where there is none), and how many have finished."""

    best: Decoded
    scores_B: Array
    count_B: Array


def beam_search(
    step: Step,
    caches: Caches,
    tokens_B: Array,
    positions_B: Array,
    config: BeamSearchConfig,
    end_of_text: int | None,
    *,
    vocab_size: int | None = None,
    limits_B: Array | None = None,
) -> Decoded:
    """Searches for the likeliest continuation of each row (Graves 2012; Sutskever et al. 2014, section 3.2).

    A sequence finishes when its end-of-text token is among the K best candidates of its row. A row is done when K
    sequences have finished, when no open one can overtake the best finished one, or at its limit. A finished sequence
    goes before those that the limit cuts, of which otherwise the likeliest is returned.

    Args:
      step: the model, one token at a time.
      caches: what the model left of all before `tokens_B`, for B rows.
      tokens_B: the last token known of each row, the first to be fed to the model.
      positions_B: its position.
      config: how widely to search.
      end_of_text: the id that ends a sequence, or None.
      vocab_size: ids from here on are padding of the embedding table and never chosen; None: there are none.
      limits_B: how many new tokens each row may have, from 1 to T; None: T.

    Returns:
      The best sequence of each row, which depends on no other row.
    """
    chex.assert_equal_shape([tokens_B, positions_B])
    beams = config.beams
    limits_B = jnp.full(tokens_B.shape, config.max_new_tokens) if limits_B is None else limits_B
    caches = caches.take_rows(jnp.repeat(jnp.arange(tokens_B.size), beams))

    def unfinished(carry: tuple) -> Array:
        n, open_sequences, finished, _ = carry
        return ~_done(n, open_sequences, finished, limits_B, config).all()

    def one_token(carry: tuple) -> tuple:
        n, open_sequences, finished, caches = carry
        done_B = _done(n, open_sequences, finished, limits_B, config)
        # A row that is done must not run out of the model's positions.
        positions_R1 = jnp.repeat(positions_B + jnp.minimum(n, limits_B - 1), beams)[:, None]
        logits_RV, caches = step(open_sequences.last_BK.reshape(-1, 1), positions_R1, caches)
        candidates, parents_BC = _candidates(open_sequences, _log_probs(logits_RV, vocab_size), n)
        is_end_BC = candidates.last_BK == (-1 if end_of_text is None else end_of_text)
        kept, kept_BK = _keep_open(candidates, is_end_BC, beams)
        # A row that is done stays as it is, however long the others take.
        open_sequences = _where(done_B, open_sequences, kept)
        finished = _where(done_B, finished, _finish(finished, candidates, is_end_BC, n + 1, config))
        caches = _of_parents(caches, jnp.take_along_axis(parents_BC, kept_BK, axis=1))
        return n + 1, open_sequences, finished, caches

    first = (jnp.zeros((), jnp.int32), *_start(tokens_B, config), caches)
    _, open_sequences, finished, _ = jax.lax.while_loop(unfinished, one_token, first)
    cut = Decoded(
        open_sequences.tokens_BKT[:, 0],
        open_sequences.log_probs_BKT[:, 0],
        limits_B.astype(jnp.int32),
        jnp.zeros(tokens_B.shape, bool),
    )
    return _where(finished.count_B > 0, finished.best, cut)


def _start(tokens_B: Array, config: BeamSearchConfig) -> tuple[_Sequences, _Finished]:
    """One empty sequence for each row, and none that has finished."""
    batch, beams, length = tokens_B.shape[0], config.beams, config.max_new_tokens
    shape = (batch, beams, length)
    totals_BK = jnp.full((batch, beams), -jnp.inf).at[:, 0].set(0.0)
    last_BK = jnp.repeat(tokens_B.astype(jnp.int32)[:, None], beams, axis=1)
    empty = _Sequences(jnp.zeros(shape, jnp.int32), jnp.zeros(shape), totals_BK, last_BK)
    zeros_B = jnp.zeros(batch, jnp.int32)
    nothing = Decoded(jnp.zeros((batch, length), jnp.int32), jnp.zeros((batch, length)), zeros_B, zeros_B > 0)
    return empty, _Finished(nothing, jnp.full(batch, -jnp.inf), zeros_B)


def _done(
    n: Array, open_sequences: _Sequences, finished: _Finished, limits_B: Array, config: BeamSearchConfig
) -> Array:
    """Whether each row needs no further token, [B]."""
    # More tokens only lower a log-probability, and what helps its score most is to be divided by the longest length.
    within_reach_B = _score(open_sequences.totals_BK[:, 0], limits_B, config)
    return (n >= limits_B) | (finished.count_B >= config.beams) | (within_reach_B <= finished.scores_B)


def _score(log_probs: Array, lengths: Array, config: BeamSearchConfig) -> Array:
    return log_probs / lengths.astype(jnp.float32) ** config.length_penalty


def _log_probs(logits_RV: Array, vocab_size: int | None) -> Array:
    if vocab_size is not None:
        is_token_1V = jnp.arange(logits_RV.shape[-1])[None, :] < vocab_size
        logits_RV = jnp.where(is_token_1V, logits_RV, -jnp.inf)
    return jax.nn.log_softmax(logits_RV.astype(jnp.float32), axis=-1)


def _candidates(sequences: _Sequences, log_probs_RV: Array, n: Array) -> tuple[_Sequences, Array]:
    """The 2K likeliest sequences of one token more, of which at least K are open, and the beam that each comes from."""
    batch, beams = sequences.totals_BK.shape
    vocab_size = log_probs_RV.shape[-1]
    log_probs_BKV = log_probs_RV.reshape(batch, beams, vocab_size)
    totals_BKV = sequences.totals_BK[:, :, None] + log_probs_BKV
    totals_BC, chosen_BC = jax.lax.top_k(totals_BKV.reshape(batch, -1), min(2 * beams, beams * vocab_size))
    parents_BC, tokens_BC = chosen_BC // vocab_size, chosen_BC % vocab_size
    log_probs_BC = jnp.take_along_axis(log_probs_BKV.reshape(batch, -1), chosen_BC, axis=1)
    tokens_BCT = _of_beams(sequences.tokens_BKT, parents_BC).at[:, :, n].set(tokens_BC)
    log_probs_BCT = _of_beams(sequences.log_probs_BKT, parents_BC).at[:, :, n].set(log_probs_BC)
    return _Sequences(tokens_BCT, log_probs_BCT, totals_BC, tokens_BC), parents_BC


def _keep_open(candidates: _Sequences, is_end_BC: Array, beams: int) -> tuple[_Sequences, Array]:
    """The K likeliest candidates that have not ended, and which they are."""
    totals_BK, kept_BK = jax.lax.top_k(jnp.where(is_end_BC, -jnp.inf, candidates.totals_BK), beams)
    last_BK = jnp.take_along_axis(candidates.last_BK, kept_BK, axis=1)
    tokens_BKT, log_probs_BKT = (_of_beams(x, kept_BK) for x in (candidates.tokens_BKT, candidates.log_probs_BKT))
    return _Sequences(tokens_BKT, log_probs_BKT, totals_BK, last_BK), kept_BK


def _finish(
    finished: _Finished, candidates: _Sequences, is_end_BC: Array, length: Array, config: BeamSearchConfig
) -> _Finished:
    """Takes in the candidates that have ended, if they are among the K likeliest."""
    among_best_1C = jnp.arange(is_end_BC.shape[1])[None, :] < config.beams
    ended_BC = is_end_BC & among_best_1C & (candidates.totals_BK > -jnp.inf)
    scores_BC = jnp.where(ended_BC, _score(candidates.totals_BK, length, config), -jnp.inf)
    best_B1 = scores_BC.argmax(axis=1)[:, None]
    scores_B = jnp.take_along_axis(scores_BC, best_B1, axis=1)[:, 0]
    newest = Decoded(
        _of_beams(candidates.tokens_BKT, best_B1)[:, 0],
        _of_beams(candidates.log_probs_BKT, best_B1)[:, 0],
        jnp.full(scores_B.shape, length, jnp.int32),
        scores_B > -jnp.inf,
    )
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
    """For each row one of two pytrees whose arrays lead with B."""

    def choose(one: Array, other: Array) -> Array:
        return jnp.where(condition_B.reshape(-1, *[1] * (one.ndim - 1)), one, other)

    return jax.tree.map(choose, yes, no)
