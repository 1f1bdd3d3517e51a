"""The step shared by greedy decoding, sampling and beam search: from one token to the scores of the next.

Axes: B sequences, S input positions, P prompt positions, C positions of a chunk of them, R rows of a model's batch (B,
or B times the beams), D model width, V vocabulary.
"""

import dataclasses
import functools
from collections import defaultdict
from collections.abc import Callable, Hashable, Sequence
from typing import Any, Protocol

import flax.struct
import jax
import jax.numpy as jnp
import numpy as np
from jax import Array

from lm.errors import UserError
from lm.models.decoder_lm import DecoderLM
from lm.models.encoder_decoder_lm import EncoderDecoderLM
from lm.models.unrolled import unrolled
from lm.modules.stack import empty_caches
from lm.types import Params

# Prompts are padded to at least this length.
SHORTEST = 8
# Positions of a prompt that are read at a time. The products run as fast as with more, and scores take less memory.
CHUNK = 256

# The models that generate text.
Writer = DecoderLM | EncoderDecoderLM


class Caches(Protocol):
    """A model's cache while decoding: a pytree that can be reordered, such as `lm.modules.stack.Caches`."""

    @property
    def length(self) -> int:
        """Maximum number of tokens."""

    def take_rows(self, rows_B: Array) -> "Caches":
        """The caches of these rows of the batch, in this order; rows may be repeated."""

    def with_length(self, length: int) -> "Caches":
        """The same with room for more tokens."""


# From tokens [R, 1], their positions [R, 1] and caches to the logits of the tokens after them [R, V] and the caches.
Step = Callable[[Array, Array, Caches], tuple[Array, Caches]]

# From logits [R, V] to calibrated ones. It is a static argument of compiled decoding: a function or a bound method such
# as `Fitted.apply`, which compares equal between calls.
Calibrator = Callable[[Array], Array]


@flax.struct.dataclass
class Scores:
    """Logits or log-probabilities of tokens: the model's own and, separately, calibrated ones.

    Attributes:
      own: the model's: temperature 1, nothing excluded except ids that pad the embedding table.
      calibrated: the same after the calibrator; None without one.
    """

    own: Array
    calibrated: Array | None = None

    @property
    def deciding(self) -> Array:
        """The scores that decide what is generated: calibrated ones if there are any."""
        return self.own if self.calibrated is None else self.calibrated

    def log_probs(self) -> "Scores":
        """Log-probabilities, from logits over the last axis."""
        return jax.tree.map(functools.partial(jax.nn.log_softmax, axis=-1), self)

    def log_probs_of(self, tokens: Array) -> "Scores":
        """The log-probability of one token for each distribution over the last axis, from logits."""
        highest = jax.tree.map(functools.partial(jnp.max, axis=-1), self)

        def log_probs(chosen: Array, scores: Array, highest: Array) -> Array:
            return (chosen - highest) - jnp.log(jnp.exp(scores - highest[..., None]).sum(axis=-1))

        return jax.tree.map(log_probs, self.of_tokens(tokens), self, highest)

    def of_tokens(self, tokens: Array) -> "Scores":
        """Selects one token's score from each distribution over the last axis."""
        return jax.tree.map(lambda scores: jnp.take_along_axis(scores, tokens[..., None], axis=-1)[..., 0], self)


def score(logits_RV: Array, vocab_size: int | None = None, calibrator: Calibrator | None = None) -> Scores:
    """A model's logits and calibrated ones, without ids that pad the embedding table.

    Args:
      logits_RV: the model's output.
      vocab_size: ids from here on are padding: their logits become -inf. None: no padding.
      calibrator: applied to the model's unmodified logits, on which it was fitted.
    """

    def of_vocabulary(logits_RV: Array) -> Array:
        if vocab_size is None:
            return logits_RV
        return jnp.where(jnp.arange(logits_RV.shape[-1])[None, :] < vocab_size, logits_RV, -jnp.inf)

    logits_RV = logits_RV.astype(jnp.float32)
    calibrated_RV = None if calibrator is None else of_vocabulary(calibrator(logits_RV).astype(jnp.float32))
    return Scores(of_vocabulary(logits_RV), calibrated_RV)


def positions_of(first_B: Array, n: Array, limits_B: Array) -> Array:
    """The position of the n-th new token of each row, [B]; rows at their limits stay within the model's room.

    Args:
      first_B: of the first new token.
      n: from 0.
      limits_B: maximum number of new tokens.
    """
    return jnp.maximum(first_B + jnp.minimum(n, limits_B - 2), 0)


def is_end(tokens: Array, ends: tuple[int, ...]) -> Array:
    """Whether each token ends a continuation."""
    return jnp.isin(tokens, jnp.array(ends, jnp.int32))


def scored(
    step: Step, vocab_size: int | None = None, calibrator: Calibrator | None = None
) -> Callable[[Array, Array, Caches], tuple[Scores, Caches]]:
    """The step with `score` applied to its logits."""

    def scored_step(tokens_R1: Array, positions_R1: Array, caches: Caches) -> tuple[Scores, Caches]:
        logits_RV, caches = step(tokens_R1, positions_R1, caches)
        return score(logits_RV, vocab_size, calibrator), caches

    return scored_step


@dataclasses.dataclass(frozen=True)
class Start:
    """A model that has read its prompts, ready to generate. Created and used within one compiled function.

    Attributes:
      step: the model, one token at a time.
      caches: its cache of everything before the first new token.
      logits_BV: of the first new token.
      positions_B: its position.
      room_B: maximum number of new tokens.
    """

    step: Step
    caches: Caches
    logits_BV: Array
    positions_B: Array
    room_B: Array

    def repeat(self, times: int) -> "Start":
        """This start with each row so many times, one after another."""
        if times == 1:
            return self
        rows_R = jnp.repeat(jnp.arange(self.positions_B.size), times)
        caches = self.caches.take_rows(rows_R)
        return Start(self.step, caches, self.logits_BV[rows_R], self.positions_B[rows_R], self.room_B[rows_R])


def prefill(
    model: DecoderLM,
    params: Params,
    tokens_BP: Array,
    lengths_B: Array,
    caches: Caches,
    first: Array | int = 0,
    chunk: int = CHUNK,
) -> tuple[Array, Caches]:
    """Reads tokens into a decoder's caches, a chunk at a time, which bounds the memory of long prompts.

    Args:
      model: the network.
      params: its parameters.
      tokens_BP: token ids. Values after a row's end do not matter: their slots are overwritten before anything sees
        them.
      lengths_B: tokens of each row, 1 or more.
      caches: of what came before.
      first: position of the first token.
      chunk: positions at a time.

    Returns:
      The hidden state of each row's last token, [B, D], and the caches.
    """
    batch, length = tokens_BP.shape
    chunk = min(chunk, length)
    # Positions beyond the caches are not written.
    tokens_BP = jnp.pad(tokens_BP, ((0, 0), (0, -length % chunk)))

    def read(number: Array | int, carry: tuple[Array, Caches]) -> tuple[Array, Caches]:
        last_BD, caches = carry
        begin = number * chunk
        tokens_BC = jax.lax.dynamic_slice_in_dim(tokens_BP, begin, chunk, axis=1)
        positions_BC = jnp.broadcast_to(padded_positions(first + begin, chunk, model.config.max_length), (batch, chunk))
        arrays = (tokens_BC, positions_BC, caches)
        hidden_BCD, caches = model.apply({"params": params}, *arrays, method=DecoderLM.hidden_with_cache)
        places_B = lengths_B - 1 - begin
        found_BCD = jnp.take_along_axis(hidden_BCD, jnp.clip(places_B, 0, chunk - 1)[:, None, None], axis=1)
        is_here_B1 = ((places_B >= 0) & (places_B < chunk))[:, None]
        return jnp.where(is_here_B1, found_BCD[:, 0], last_BD), caches

    nothing = (jnp.zeros((batch, model.config.width), model.config.compute_dtype), caches)
    if chunk == length:
        return read(0, nothing)
    return jax.lax.fori_loop(0, (lengths_B.max() + chunk - 1) // chunk, read, nothing)


def decoder_start(model: DecoderLM, params: Params, prompts_BP: Array, lengths_B: Array, capacity: int) -> Start:
    """A decoder that has read prompts.

    Args:
      model: the network.
      params: its parameters.
      prompts_BP: token ids, as for `prefill`.
      lengths_B: tokens of each prompt, 1 or more.
      capacity: positions of the cache. The last new token is never fed and needs none.
    """
    model, params = unrolled(model, params)
    return continued(model, params, prompts_BP, lengths_B, empty_caches(model.config, len(prompts_BP), capacity))


def continued(
    model: DecoderLM,
    params: Params,
    tokens_BP: Array,
    lengths_B: Array,
    caches: Caches,
    first: Array | int = 0,
) -> Start:
    """A decoder that has read these tokens after what its caches hold. Arguments as for `prefill`."""
    last_BD, caches = prefill(model, params, tokens_BP, lengths_B, caches, first)
    logits_BV = model.apply({"params": params}, last_BD[:, None], method="logits")[:, 0]
    positions_B = first + lengths_B
    room_B = min(caches.length, model.config.max_length) - positions_B + 1
    return Start(step_of(model, params), caches, logits_BV, positions_B, room_B)


def encoder_decoder_start(
    model: EncoderDecoderLM,
    params: Params,
    inputs_BS: Array,
    input_segments_BS: Array,
    capacity: int,
    start: int,
) -> Start:
    """An encoder-decoder that has read its inputs.

    Args:
      model: the network.
      params: its parameters.
      inputs_BS: token ids.
      input_segments_BS: 1 for tokens and 0 for padding.
      capacity: positions of the cache.
      start: the id after which each output starts, as in training.
    """
    model, params = unrolled(model, params)
    variables = {"params": params}
    memory_BSD = model.apply(variables, inputs_BS, input_segments_BS, method=EncoderDecoderLM.encode)
    method = EncoderDecoderLM.start_decoding
    caches = model.apply(variables, memory_BSD, input_segments_BS, capacity, method=method)
    starts_B1 = jnp.full((len(inputs_BS), 1), start, jnp.int32)
    step = step_of(model, params)
    logits_BV, caches = step(starts_B1, jnp.zeros_like(starts_B1), caches)
    room_B = jnp.full_like(starts_B1[:, 0], min(capacity, model.config.max_length))
    return Start(step, caches, logits_BV, jnp.ones_like(room_B), room_B)


def begin(model: Writer, params: Params, prompts_BP: Array, lengths_B: Array, length: int, start: int | None) -> Start:
    """Reads prompts with a decoder or an encoder-decoder, for which they are the inputs.

    Args:
      model: the network.
      params: its parameters.
      prompts_BP: token ids. Values after a prompt's end do not matter.
      lengths_B: tokens of each prompt, 1 or more.
      length: new tokens to make room for, within the model's `max_length`.
      start: as for `encoder_decoder_start`; a decoder needs none.
    """
    window = model.config.max_length
    if isinstance(model, DecoderLM):
        return decoder_start(model, params, prompts_BP, lengths_B, min(prompts_BP.shape[1] + length, window))
    assert start is not None  # as `check_writer` makes sure
    segments_BP = (jnp.arange(prompts_BP.shape[1])[None, :] < lengths_B[:, None]).astype(jnp.int32)
    return encoder_decoder_start(model, params, prompts_BP, segments_BP, min(length, window), start)


def check_writer(model: Any, prompts: Sequence[Sequence[int]], start: int | None) -> None:
    """Checks that a model can continue these prompts.

    Raises:
      UserError: for a model that does not generate text, and for an encoder-decoder without a start token or with
        inputs longer than its `max_length`.
      ValueError: for an empty prompt.
    """
    if not isinstance(model, DecoderLM | EncoderDecoderLM):
        raise UserError(
            f"config.model.architecture={model.config.architecture} does not generate text: choose decoder or "
            "encoder_decoder"
        )
    if not all(len(prompt) for prompt in prompts):
        raise ValueError("every prompt needs at least one token")
    if isinstance(model, DecoderLM):
        return
    if start is None:
        raise UserError("an encoder-decoder starts its output with a special token: the tokenizer needs one")
    window = model.config.max_length
    for number, prompt in enumerate(prompts, 1):
        if len(prompt) > window:
            raise UserError(
                f"prompt {number} has {len(prompt)} tokens, but config.model.max_length={window}: shorten it"
            )


def batches_of_like_length(lengths: Sequence[int], longest: int, size: int) -> list[list[int]]:
    """Indices of rows whose lengths are padded alike, at most `size` together, in the order of the rows."""
    return batches_of_like_shape([padded_length(length, longest, SHORTEST) for length in lengths], size)


def batches_of_like_shape(shapes: Sequence[Hashable], size: int) -> list[list[int]]:
    """Indices of rows with equal shapes, at most `size` together, in the order of the rows."""
    alike = defaultdict(list)
    for number, shape in enumerate(shapes):
        alike[shape].append(number)
    return [numbers[first : first + size] for numbers in alike.values() for first in range(0, len(numbers), size)]


def pad(rows: Sequence[Sequence[int]], longest: int, shortest: int = SHORTEST) -> tuple[np.ndarray, np.ndarray]:
    """Rows of token ids as one array [B, P] with zeros after their ends, and their lengths [B].

    P comes from `padded_length`.
    """
    lengths_B = np.array([len(row) for row in rows], np.int32)
    tokens_BP = np.zeros((len(rows), padded_length(int(lengths_B.max()), longest, shortest)), np.int32)
    for row, tokens in enumerate(rows):
        tokens_BP[row, : len(tokens)] = tokens
    return tokens_BP, lengths_B


def padded_positions(first: Array | int, count: int, longest: int) -> Array:
    """Positions from `first` on, [count]; those of padding stay below `longest`.

    Beyond its table a learned position is NaN, which reaches other tokens though they give it no weight.
    """
    return jnp.minimum(first + jnp.arange(count), longest - 1)


def padded_length(length: int, longest: int, shortest: int = 1) -> int:
    """The next power of two from `shortest` to `longest`, to limit the number of compiled lengths."""
    return min(max(1 << (length - 1).bit_length(), shortest), longest)


def rounded_length(length: int, longest: int) -> int:
    """The next of four lengths to an octave, all multiples of 8, up to `longest`: less padding than `padded_length`."""
    step = max(SHORTEST, (1 << (length - 1).bit_length()) // 8)
    return min(-(-length // step) * step, longest)


def step_of(model: Writer, params: Params) -> Step:
    """A model that has read its prompts, one token at a time."""
    variables = {"params": params}
    decoder = isinstance(model, DecoderLM)
    with_cache = DecoderLM.hidden_with_cache if decoder else EncoderDecoderLM.decode_with_cache

    def step(tokens_R1: Array, positions_R1: Array, caches: Caches) -> tuple[Array, Caches]:
        hidden_R1D, caches = model.apply(variables, tokens_R1, positions_R1, caches, method=with_cache)
        return model.apply(variables, hidden_R1D, method="logits")[:, 0], caches

    return step
