"""Log-probabilities of given continuations, such as the answer options of a question.

Axes: B pairs, P positions of what the model reads, C continuation positions, N positions in all, R of them at a time,
D model width, V vocabulary.
"""

import functools
import operator
from collections import defaultdict
from collections.abc import Sequence

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array

from lm.decoding.continuation import Continuation
from lm.decoding.step import SHORTEST, Calibrator, Scores, Writer, check_writer, pad, padded_length, score
from lm.errors import UserError
from lm.models.decoder_lm import DecoderLM
from lm.models.encoder_decoder_lm import EncoderDecoderLM
from lm.types import Params

# Maximum size of the logits in memory (64 MiB).
_MOST_LOGITS = 2**24


def continuation_log_probs(
    model: Writer,
    params: Params,
    prompts: Sequence[Sequence[int]],
    continuations: Sequence[Sequence[int]],
    end_of_text: int | None = None,
    vocab_size: int | None = None,
    calibrator: Calibrator | None = None,
    batch_size: int = 16,
) -> list[Continuation]:
    """The log-probability of each token of each continuation, given its prompt and the tokens before it.

    For a continuation that `generate` produces within `max_length`, this returns the same log-probabilities. Pairs of
    similar length share a batch, with one forward pass per batch.

    Args:
      model: the network.
      params: its parameters.
      prompts: token ids, at least one each; for an encoder-decoder, its inputs, as for `generate`.
      continuations: token ids, one list for each prompt. Append an end-of-text token to score the end too.
      end_of_text: the id that ends a continuation, or None. An encoder-decoder's output also starts after it.
      vocab_size: ids from here on pad the embedding table and have probability 0; None: no padding.
      calibrator: acts on the model's logits.
      batch_size: pairs in a forward pass.

    Returns:
      A `Continuation` for each pair, in order: `tokens` as given (int32 [n]); `log_probs` (float32 [n], nats), the
      model's own at temperature 1, with or without a calibrator; `calibrated_log_probs`, float32 [n] or None without a
      calibrator; `sampling_log_probs` is None; `finished` says whether the last token is `end_of_text`. The sum of
      `log_probs` is the log-probability of the continuation. An empty continuation has arrays of length 0.

    Raises:
      UserError: if a pair is too long for the model, for a model that does not generate text, and for an
        encoder-decoder without `end_of_text`.
      ValueError: for an empty prompt, or if the numbers of prompts and continuations differ.
    """
    if len(prompts) != len(continuations):
        raise ValueError(f"{len(prompts)} prompts, but {len(continuations)} continuations")
    check_writer(model, prompts, end_of_text)
    _check_lengths(model, prompts, continuations)
    read = [_read(model, *pair) for pair in zip(prompts, continuations, strict=True)]
    window = model.config.max_length
    found = [_nothing(calibrator)] * len(read)
    for numbers in _batches(read, continuations, window, batch_size):
        # One-token pairs fill the batch, to limit compiled sizes.
        filler = [[0]] * (padded_length(len(numbers), batch_size) - len(numbers))
        read_BP, lengths_B = pad([*(read[number] for number in numbers), *filler], window)
        targets_BC, counts_B = pad([*(continuations[number] for number in numbers), *filler], window, 1)
        arrays = (read_BP, lengths_B, targets_BC, counts_B)
        log_probs_BC = jax.device_get(_log_probs(model, params, *arrays, end_of_text, vocab_size, calibrator))
        for row, number in enumerate(numbers):
            own = (row, slice(counts_B[row]))
            found[number] = jax.tree.map(operator.itemgetter(own), log_probs_BC)
    return [
        Continuation(
            tokens=np.asarray(tokens, np.int32),
            log_probs=np.asarray(scores.own),
            calibrated_log_probs=None if scores.calibrated is None else np.asarray(scores.calibrated),
            sampling_log_probs=None,
            finished=len(tokens) > 0 and tokens[-1] == end_of_text,
        )
        for tokens, scores in zip(continuations, found, strict=True)
    ]


def _check_lengths(model: Writer, prompts: Sequence[Sequence[int]], continuations: Sequence[Sequence[int]]) -> None:
    """Raises for a pair that is too long."""
    window = model.config.max_length
    for number, (prompt, continuation) in enumerate(zip(prompts, continuations, strict=True), 1):
        room = window + 1 - len(prompt) if isinstance(model, DecoderLM) else window
        if len(continuation) > room:
            raise UserError(
                f"continuation {number} has {len(continuation)} tokens, but after its prompt of {len(prompt)} "
                f"config.model.max_length={window} leaves room for {max(room, 0)}: shorten one of them"
            )


def _read(model: Writer, prompt: Sequence[int], continuation: Sequence[int]) -> list[int]:
    """One row of the model's input: the continuation without its last token, for a decoder after the prompt."""
    return [*prompt, *continuation][:-1] if isinstance(model, DecoderLM) else list(prompt)


def _nothing(calibrator: Calibrator | None) -> Scores:
    nothing = jnp.zeros(0, jnp.float32)
    return Scores(nothing, None if calibrator is None else nothing)


def _batches(
    read: Sequence[Sequence[int]], continuations: Sequence[Sequence[int]], window: int, size: int
) -> list[list[int]]:
    """Indices of pairs of similar length, at most `batch_size` together; empty continuations are left out."""
    alike = defaultdict(list)
    for number, (tokens, continuation) in enumerate(zip(read, continuations, strict=True)):
        if len(continuation):
            lengths = (padded_length(len(tokens), window, SHORTEST), padded_length(len(continuation), window))
            alike[lengths].append(number)
    return [numbers[first : first + size] for numbers in alike.values() for first in range(0, len(numbers), size)]


@functools.partial(jax.jit, static_argnames=("model", "end_of_text", "vocab_size", "calibrator"))
def _log_probs(
    model: Writer,
    params: Params,
    read_BP: Array,
    lengths_B: Array,
    targets_BC: Array,
    counts_B: Array,
    end_of_text: int | None,
    vocab_size: int | None,
    calibrator: Calibrator | None,
) -> Scores:
    """Log-probabilities of the targets, [B, C]; only the first `counts_B` of each row are valid."""
    if isinstance(model, DecoderLM):
        hidden_BCD = _decoder_hidden(model, params, read_BP, lengths_B - counts_B, targets_BC.shape[1])
    else:
        assert end_of_text is not None  # as `check_writer` makes sure
        hidden_BCD = _encoder_decoder_hidden(model, params, read_BP, lengths_B, targets_BC, end_of_text)

    def of_some(hidden_and_targets: tuple[Array, Array]) -> Scores:
        hidden_RD, targets_R = hidden_and_targets
        logits_RV = model.apply({"params": params}, hidden_RD[:, None], method="logits")[:, 0]
        return score(logits_RV, vocab_size, calibrator).log_probs().of_tokens(targets_R)

    # Logits of all positions may not fit in memory at once.
    positions = targets_BC.size
    at_a_time = max(1, min(positions, _MOST_LOGITS // model.config.size_of_vocabulary))
    padding = -positions % at_a_time
    hidden_ND = jnp.pad(hidden_BCD.reshape(positions, -1), ((0, padding), (0, 0)))
    targets_N = jnp.pad(targets_BC.reshape(-1), (0, padding))
    chunks = (hidden_ND.reshape(-1, at_a_time, hidden_ND.shape[-1]), targets_N.reshape(-1, at_a_time))
    log_probs = jax.lax.map(of_some, chunks)
    return jax.tree.map(lambda scores: scores.reshape(-1)[:positions].reshape(targets_BC.shape), log_probs)


def _decoder_hidden(model: DecoderLM, params: Params, read_BP: Array, firsts_B: Array, count: int) -> Array:
    """The hidden states before `count` targets, [B, C, D], starting at position `firsts_B`."""
    # Padding comes last, where no token sees it.
    hidden_BPD = model.apply({"params": params}, read_BP, method=DecoderLM.hidden)
    places_BC = jnp.minimum(firsts_B[:, None] + jnp.arange(count)[None, :], read_BP.shape[1] - 1)
    return jnp.take_along_axis(hidden_BPD, places_BC[:, :, None], axis=1)


def _encoder_decoder_hidden(
    model: EncoderDecoderLM, params: Params, inputs_BP: Array, lengths_B: Array, targets_BC: Array, end_of_text: int
) -> Array:
    """The hidden states before the targets, [B, C, D]."""
    variables = {"params": params}
    segments_BP = (jnp.arange(inputs_BP.shape[1])[None, :] < lengths_B[:, None]).astype(jnp.int32)
    memory_BPD = model.apply(variables, inputs_BP, segments_BP, method=EncoderDecoderLM.encode)
    starts_B1 = jnp.full((inputs_BP.shape[0], 1), end_of_text, jnp.int32)
    fed_BC = jnp.concatenate([starts_B1, targets_BC[:, :-1]], axis=1)
    return model.apply(variables, memory_BPD, segments_BP, fed_BC, method=EncoderDecoderLM.decode)
