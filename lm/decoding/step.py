"""The step shared by greedy decoding, sampling and beam search: from one token to the scores of the next.

Axes: B sequences, S input positions, P prompt positions, R rows of a model's batch (B, or B times the beams),
V vocabulary.
"""

import dataclasses
import functools
from collections.abc import Callable, Sequence
from typing import Any, Protocol

import flax.struct
import jax
import jax.numpy as jnp
import numpy as np
from jax import Array

from lm.errors import UserError
from lm.models.decoder_lm import DecoderLM
from lm.models.encoder_decoder_lm import EncoderDecoderLM
from lm.modules.stack import empty_caches
from lm.types import Params

# Prompts are padded to at least this length.
SHORTEST = 8

# The models that generate text.
Writer = DecoderLM | EncoderDecoderLM


class Caches(Protocol):
    """A model's cache while decoding: a pytree that can be reordered, such as `lm.modules.stack.Caches`."""

    def take_rows(self, rows_B: Array) -> "Caches":
        """The caches of these rows of the batch, in this order; rows may be repeated."""


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
      caches: its cache of everything before `tokens_B`.
      tokens_B: the last known token of each row, which the step reads first.
      positions_B: its position.
      room_B: maximum number of new tokens.
    """

    step: Step
    caches: Caches
    tokens_B: Array
    positions_B: Array
    room_B: Array


def decoder_start(model: DecoderLM, params: Params, prompts_BP: Array, lengths_B: Array, capacity: int) -> Start:
    """A decoder that has read prompts.

    Args:
      model: the network.
      params: its parameters.
      prompts_BP: token ids. Values after a prompt's end do not matter.
      lengths_B: tokens of each prompt, 1 or more.
      capacity: positions of the cache, P or more. The last new token is never fed and needs none.
    """
    batch, length = prompts_BP.shape
    positions_BP = jnp.broadcast_to(jnp.arange(length), prompts_BP.shape)
    # Slots after a prompt's end are overwritten before anything sees them.
    caches = empty_caches(model.config, batch, capacity)
    method = DecoderLM.hidden_with_cache
    _, caches = model.apply({"params": params}, prompts_BP, positions_BP, caches, method=method)
    # The last token of a prompt is fed again, which leaves the cache unchanged and gives the first logits.
    last_B = lengths_B - 1
    tokens_B = jnp.take_along_axis(prompts_BP, last_B[:, None], axis=1)[:, 0]
    room_B = min(capacity, model.config.max_length) - last_B
    return Start(_step(model, params, method), caches, tokens_B, last_B, room_B)


def encoder_decoder_start(
    model: EncoderDecoderLM,
    params: Params,
    inputs_BS: Array,
    input_segments_BS: Array,
    capacity: int,
    end_of_text: int,
) -> Start:
    """An encoder-decoder that has read its inputs.

    Args:
      model: the network, trained on outputs that start after an end-of-text token.
      params: its parameters.
      inputs_BS: token ids.
      input_segments_BS: 1 for tokens and 0 for padding.
      capacity: positions of the cache.
      end_of_text: the id before each output.
    """
    variables = {"params": params}
    memory_BSD = model.apply(variables, inputs_BS, input_segments_BS, method=EncoderDecoderLM.encode)
    start = (memory_BSD, input_segments_BS, capacity)
    caches = model.apply(variables, *start, method=EncoderDecoderLM.start_decoding)
    tokens_B = jnp.full(inputs_BS.shape[0], end_of_text, jnp.int32)
    room_B = jnp.full_like(tokens_B, min(capacity, model.config.max_length))
    step = _step(model, params, EncoderDecoderLM.decode_with_cache)
    return Start(step, caches, tokens_B, jnp.zeros_like(tokens_B), room_B)


def begin(
    model: Writer, params: Params, prompts_BP: Array, lengths_B: Array, length: int, end_of_text: int | None
) -> Start:
    """Reads prompts with a decoder or an encoder-decoder, for which they are the inputs.

    Args:
      model: the network.
      params: its parameters.
      prompts_BP: token ids. Values after a prompt's end do not matter.
      lengths_B: tokens of each prompt, 1 or more.
      length: new tokens to make room for, within the model's `max_length`.
      end_of_text: as for `encoder_decoder_start`; a decoder needs none.
    """
    window = model.config.max_length
    if isinstance(model, DecoderLM):
        return decoder_start(model, params, prompts_BP, lengths_B, min(prompts_BP.shape[1] + length, window))
    assert end_of_text is not None  # as `check_writer` makes sure
    segments_BP = (jnp.arange(prompts_BP.shape[1])[None, :] < lengths_B[:, None]).astype(jnp.int32)
    return encoder_decoder_start(model, params, prompts_BP, segments_BP, min(length, window), end_of_text)


def check_writer(model: Any, prompts: Sequence[Sequence[int]], end_of_text: int | None) -> None:
    """Checks that a model can continue these prompts.

    Raises:
      UserError: for a model that does not generate text, and for an encoder-decoder without an end-of-text token or
        with inputs longer than its `max_length`.
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
    if end_of_text is None:
        raise UserError("an encoder-decoder starts its output with an end-of-text token: the tokenizer needs one")
    window = model.config.max_length
    for number, prompt in enumerate(prompts, 1):
        if len(prompt) > window:
            raise UserError(
                f"prompt {number} has {len(prompt)} tokens, but config.model.max_length={window}: shorten it"
            )


def pad(rows: Sequence[Sequence[int]], longest: int, shortest: int = SHORTEST) -> tuple[np.ndarray, np.ndarray]:
    """Rows of token ids as one array [B, P] with zeros after their ends, and their lengths [B].

    P comes from `padded_length`.
    """
    lengths_B = np.array([len(row) for row in rows], np.int32)
    tokens_BP = np.zeros((len(rows), padded_length(int(lengths_B.max()), longest, shortest)), np.int32)
    for row, tokens in enumerate(rows):
        tokens_BP[row, : len(tokens)] = tokens
    return tokens_BP, lengths_B


def padded_length(length: int, longest: int, shortest: int = 1) -> int:
    """The next power of two from `shortest` to `longest`, to limit the number of compiled lengths."""
    return min(max(1 << (length - 1).bit_length(), shortest), longest)


def _step(model: Writer, params: Params, with_cache: Callable) -> Step:
    """The step of a model whose method `with_cache` returns hidden states and caches."""
    variables = {"params": params}

    def step(tokens_R1: Array, positions_R1: Array, caches: Caches) -> tuple[Array, Caches]:
        hidden_R1D, caches = model.apply(variables, tokens_R1, positions_R1, caches, method=with_cache)
        return model.apply(variables, hidden_R1D, method="logits")[:, 0], caches

    return step
