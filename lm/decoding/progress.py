"""Continuations under way: compiled functions that begin them and choose more tokens.

Axes: B prompts, P prompt positions, R rows of the batch (each prompt's samples side by side), T new positions,
V vocabulary.
"""

import dataclasses
import functools

import flax.struct
import jax
import jax.numpy as jnp
from jax import Array

from lm.decoding.continuation import Decoded
from lm.decoding.sampling import SamplingConfig, choose, penalized
from lm.decoding.step import (
    Caches,
    Calibrator,
    Scores,
    Start,
    Writer,
    begin,
    continued,
    is_end,
    positions_of,
    score,
    step_of,
)
from lm.models.decoder_lm import DecoderLM
from lm.types import Params


@dataclasses.dataclass(frozen=True)
class Choice:
    """How tokens are chosen: what compiled functions are compiled for.

    Attributes:
      config: the distribution.
      ends: the ids at which a continuation ends.
      vocab_size: ids from here on pad the embedding table and are never chosen; None: no padding.
      calibrator: acts on the model's logits before anything else.
    """

    config: SamplingConfig
    ends: tuple[int, ...] = ()
    vocab_size: int | None = None
    calibrator: Calibrator | None = None


@flax.struct.dataclass
class Rows:
    """What a row's tokens depend on, apart from the text.

    Attributes:
      keys_R: of all its randomness.
      counts_R: how many tokens it got before this cache, from which the next random keys are derived.
      limits_R: maximum number of new tokens, from 0 to T, within the model's room.
      seen_RV: True for tokens that the repetition penalty is for; None without one.
    """

    keys_R: Array
    counts_R: Array
    limits_R: Array
    seen_RV: Array | None = None


@flax.struct.dataclass
class Progress:
    """Continuations under way.

    Attributes:
      caches: of everything but the last chosen token.
      decoded: the tokens so far.
      rows: what else they depend on.
      last_R: the last chosen token.
      first_R: position of the first new token.
      n: number of chosen tokens.
    """

    caches: Caches
    decoded: Decoded
    rows: Rows
    last_R: Array
    first_R: Array
    n: Array


@functools.partial(jax.jit, static_argnames=("model", "choice", "start", "length", "samples"))
def begun(
    model: Writer,
    params: Params,
    prompts_BP: Array,
    lengths_B: Array,
    rows: Rows,
    *,
    choice: Choice,
    start: int | None,
    length: int,
    samples: int = 1,
) -> Progress:
    """Reads prompts and chooses the first token of each continuation.

    Args:
      model: the network.
      params: its parameters.
      prompts_BP: token ids. Values after a prompt's end do not matter.
      lengths_B: tokens of each prompt, 1 or more.
      rows: of each sample, those of a prompt side by side.
      choice: how tokens are chosen.
      start: the id after which an encoder-decoder's output starts.
      length: T, new tokens to make room for.
      samples: continuations of each prompt, which is read once.
    """
    started = begin(model, params, prompts_BP, lengths_B, length, start).repeat(samples)
    return _first(started, rows, choice, length)


@functools.partial(jax.jit, static_argnames=("model", "choice", "length"), donate_argnames=("caches",))
def resumed(
    model: DecoderLM,
    params: Params,
    tokens_BP: Array,
    lengths_B: Array,
    rows: Rows,
    caches: Caches,
    first: Array,
    *,
    choice: Choice,
    length: int,
) -> Progress:
    """As `begun`, for a decoder whose caches, given up to it, hold what comes before these tokens."""
    return _first(continued(model, params, tokens_BP, lengths_B, caches, first), rows, choice, length)


@functools.partial(jax.jit, static_argnames=("model", "choice"), donate_argnames=("progress",))
def advanced(
    model: Writer, params: Params, progress: Progress, limits_R: Array, until: Array, *, choice: Choice
) -> Progress:
    """Chooses tokens until there are `until`, or every row is finished or at its limit.

    Args:
      model: the network.
      params: its parameters.
      progress: given up to this function.
      limits_R: new limits.
      until: number of chosen tokens.
      choice: how tokens are chosen.
    """
    step = step_of(model, params)
    rows = dataclasses.replace(progress.rows, limits_R=limits_R)

    def unfinished(progress: Progress) -> Array:
        return (progress.n < until) & (~progress.decoded.finished_B & (progress.n < limits_R)).any()

    def one_token(progress: Progress) -> Progress:
        positions_R = positions_of(progress.first_R, progress.n - 1, limits_R)
        logits_RV, caches = step(progress.last_R[:, None], positions_R[:, None], progress.caches)
        return _chosen(dataclasses.replace(progress, caches=caches), logits_RV, choice)

    return jax.lax.while_loop(unfinished, one_token, dataclasses.replace(progress, rows=rows))


def _first(started: Start, rows: Rows, choice: Choice, length: int) -> Progress:
    batch = started.positions_B.size
    nothing = Decoded.empty(batch, length, calibrated=choice.calibrator is not None, sampled=True)
    rows = dataclasses.replace(rows, limits_R=jnp.minimum(rows.limits_R, started.room_B))
    none, zero = jnp.zeros(batch, jnp.int32), jnp.zeros((), jnp.int32)
    return _chosen(Progress(started.caches, nothing, rows, none, started.positions_B, zero), started.logits_BV, choice)


def _chosen(progress: Progress, logits_RV: Array, choice: Choice) -> Progress:
    """With one more token of each row that is not done."""
    n, rows, decoded, config = progress.n, progress.rows, progress.decoded, choice.config
    scores = score(logits_RV, choice.vocab_size, choice.calibrator)
    deciding_RV = scores.deciding
    if rows.seen_RV is not None:
        deciding_RV = penalized(deciding_RV, rows.seen_RV, config.repetition_penalty)
    keys_R = jax.vmap(jax.random.fold_in)(rows.keys_R, rows.counts_R + n)
    tokens_R, sampling_R = choose(deciding_RV, keys_R, config)
    active_R = ~decoded.finished_B & (n < rows.limits_R)
    decoded = _append(decoded, n, active_R, tokens_R, scores.log_probs_of(tokens_R), sampling_R)
    finished_R = decoded.finished_B | (active_R & is_end(tokens_R, choice.ends))
    if rows.seen_RV is not None:
        seen_RV = rows.seen_RV.at[jnp.arange(tokens_R.size), tokens_R].set(True)
        rows = dataclasses.replace(rows, seen_RV=seen_RV)
    decoded = dataclasses.replace(decoded, finished_B=finished_R)
    return dataclasses.replace(progress, decoded=decoded, rows=rows, last_R=tokens_R, n=n + 1)


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
