"""Log-probabilities of given continuations, such as the answer options of a question.

Axes: B rows, P positions of what the model reads, C continuation positions, U places whose next token is scored, R of
them at a time, K tokens that are scored at a place, D model width, V vocabulary.
"""

import dataclasses
import functools
import operator
from collections.abc import Iterator, Sequence
from typing import NamedTuple

import flax.struct
import jax
import jax.numpy as jnp
import numpy as np
from jax import Array

from lm.decoding.continuation import Continuation
from lm.decoding.shared_prefixes import Group, Row, groups_with_shared_prefix, rows_to_read
from lm.decoding.step import (
    SHORTEST,
    Caches,
    Calibrator,
    Scores,
    Writer,
    batches_of_like_shape,
    check_writer,
    pad,
    padded_length,
    padded_positions,
    prefill,
    rounded_length,
    score,
)
from lm.errors import UserError
from lm.models.decoder_lm import DecoderLM
from lm.models.encoder_decoder_lm import EncoderDecoderLM
from lm.modules.stack import empty_caches
from lm.types import Params

# Maximum size of the logits in memory (64 MiB).
_MOST_LOGITS = 2**24
# Maximum number of positions in the caches of a batch that starts from a shared prefix.
_MOST_SLOTS = 2**14


# What `score` does to logits: `vocab_size` and `calibrator`.
_Rules = tuple[int | None, Calibrator | None]


@dataclasses.dataclass(frozen=True)
class ScoredContinuation(Continuation):
    """A given continuation.

    Attributes:
      greedy: whether greedy decoding would give it: each of its tokens is the likeliest one, after the calibrator.
    """

    greedy: bool

    @property
    def total_log_prob(self) -> float:
        """The model's own log-probability of the whole continuation, in nats."""
        return float(self.log_probs.sum(dtype=np.float64))


@flax.struct.dataclass
class _Found:
    """Log-probabilities of tokens and whether each is the likeliest one."""

    log_probs: Scores
    likeliest: Array


# One pair's index and what was found for it.
_OfPair = tuple[int, _Found]


class _Places(NamedTuple):
    """Where the tokens of continuations are scored. The options of a question share places.

    Attributes:
      row_U: the row of each place.
      position_U: its position in the row.
      targets_UK: tokens to score there.
      of_pairs: for each pair the indices of its tokens in `targets_UK`.
    """

    row_U: np.ndarray
    position_U: np.ndarray
    targets_UK: np.ndarray
    of_pairs: dict[int, list[tuple[int, int]]]

    @classmethod
    def of(
        cls, rows: Sequence[Row], shared: int, prompts: Sequence[Sequence[int]], continuations: Sequence[Sequence[int]]
    ) -> "_Places":
        """The places in a batch of rows, which are read without their first `shared` tokens."""
        targets: dict[tuple[int, int], list[int]] = {}
        of_pairs: dict[int, list[tuple[tuple[int, int], int]]] = {}
        for number, row in enumerate(rows):
            for pair in row.pairs:
                of_pairs[pair] = []
                for position, token in enumerate(continuations[pair], len(prompts[pair]) - 1 - shared):
                    here = targets.setdefault((number, position), [])
                    if token not in here:
                        here.append(token)
                    of_pairs[pair].append(((number, position), here.index(token)))
        numbers = {place: number for number, place in enumerate(targets)}
        row_U, position_U = np.zeros((2, padded_length(len(targets), 2 * len(targets))), np.int32)
        row_U[: len(targets)], position_U[: len(targets)] = np.array(list(targets), np.int32).T
        most = max(map(len, targets.values()))
        targets_UK = np.zeros((len(row_U), padded_length(most, 2 * most)), np.int32)
        for number, tokens in enumerate(targets.values()):
            targets_UK[number, : len(tokens)] = tokens
        indices = {pair: [(numbers[place], k) for place, k in found] for pair, found in of_pairs.items()}
        return cls(row_U, position_U, targets_UK, indices)

    def by_pair(self, found: _Found) -> list[_OfPair]:
        """Each pair's part of arrays [U, K], on the host."""
        found = jax.device_get(found)
        indices = {pair: tuple(np.array(places).T) for pair, places in self.of_pairs.items()}
        return [(pair, jax.tree.map(operator.itemgetter(at), found)) for pair, at in indices.items()]


def continuation_log_probs(
    model: Writer,
    params: Params,
    prompts: Sequence[Sequence[int]],
    continuations: Sequence[Sequence[int]],
    ends: tuple[int, ...] = (),
    start: int | None = None,
    vocab_size: int | None = None,
    calibrator: Calibrator | None = None,
    batch_size: int = 16,
) -> list[ScoredContinuation]:
    """The log-probability of each token of each continuation, given its prompt and the tokens before it.

    For a continuation that `generate` produces within `max_length`, this returns the same log-probabilities. A decoder
    reads each prompt once for all its continuations of one token, and the longest common beginning of similar prompts
    once for all of them. Rows of similar length share a batch.

    Args:
      model: the network.
      params: its parameters.
      prompts: token ids, at least one each; for an encoder-decoder, its inputs, as for `generate`.
      continuations: token ids, one list for each prompt. Append an end-of-text token to score the end too.
      ends: the ids that end a continuation.
      start: the id after which an encoder-decoder's output starts.
      vocab_size: ids from here on pad the embedding table and have probability 0; None: no padding.
      calibrator: acts on the model's logits.
      batch_size: rows in a forward pass.

    Returns:
      A `ScoredContinuation` for each pair, in order: `tokens` as given (int32 [n]); `log_probs` (float32 [n], nats),
      the model's own at temperature 1, with or without a calibrator; `calibrated_log_probs`, float32 [n] or None
      without a calibrator; `sampling_log_probs` is None; `finished` says whether the last token is one of `ends`. An
      empty continuation has arrays of length 0, and is greedy.

    Raises:
      UserError: if a pair is too long for the model, for a model that does not generate text, and for an
        encoder-decoder without `start`.
      ValueError: for an empty prompt, or if the numbers of prompts and continuations differ.
    """
    if len(prompts) != len(continuations):
        raise ValueError(f"{len(prompts)} prompts, but {len(continuations)} continuations")
    check_writer(model, prompts, start)
    _check_lengths(model, prompts, continuations)
    rules: _Rules = (vocab_size, calibrator)
    if isinstance(model, DecoderLM):
        batches = _of_decoder(model, params, prompts, continuations, rules, batch_size)
    else:
        assert start is not None  # as `check_writer` makes sure
        batches = _of_encoder_decoder(model, params, prompts, continuations, start, rules, batch_size)
    found = dict(pair for batch in batches for pair in batch)
    nothing = jnp.zeros(0, jnp.float32)
    empty = _Found(Scores(nothing, None if calibrator is None else nothing), jnp.zeros(0, bool))
    return [_scored(tokens, found.get(pair, empty), ends) for pair, tokens in enumerate(continuations)]


def _scored(tokens: Sequence[int], found: _Found, ends: tuple[int, ...]) -> ScoredContinuation:
    calibrated = found.log_probs.calibrated
    return ScoredContinuation(
        tokens=np.asarray(tokens, np.int32),
        log_probs=np.asarray(found.log_probs.own),
        calibrated_log_probs=None if calibrated is None else np.asarray(calibrated),
        sampling_log_probs=None,
        finished=len(tokens) > 0 and tokens[-1] in ends,
        greedy=bool(np.asarray(found.likeliest).all()),
    )


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


def _of_decoder(
    model: DecoderLM,
    params: Params,
    prompts: Sequence[Sequence[int]],
    continuations: Sequence[Sequence[int]],
    rules: _Rules,
    batch_size: int,
) -> Iterator[list[_OfPair]]:
    window = model.config.max_length
    pairs = [pair for pair, continuation in enumerate(continuations) if len(continuation)]
    read = [[*prompts[pair], *continuations[pair]][:-1] for pair in pairs]
    rows = rows_to_read(read, [len(prompts[pair]) - 1 for pair in pairs])
    for row in rows:
        row.pairs = [pairs[place] for place in row.pairs]
    for group in groups_with_shared_prefix(rows):
        caches, size = _shared_caches(model, params, group), batch_size
        # Rows of similar length come together, so that every batch is full and has little padding.
        in_order = sorted(group.rows, key=lambda row: len(row.tokens))
        if caches is not None:
            longest = rounded_length(len(in_order[-1].tokens) - group.shared, window)
            size = max(1, min(size, _MOST_SLOTS // (caches.length + longest)))
        for first in range(0, len(in_order), size):
            batch = in_order[first : first + size]
            length = rounded_length(len(batch[-1].tokens) - group.shared, window)
            filler = [[0]] * (padded_length(len(batch), size) - len(batch))
            read_BP, _ = pad([*(row.tokens[group.shared :] for row in batch), *filler], length, length)
            places = _Places.of(batch, group.shared, prompts, continuations)
            arrays = (read_BP, places.row_U, places.position_U, places.targets_UK)
            found = _decoder_log_probs(model, params, caches, np.int32(group.shared), *arrays, rules)
            yield places.by_pair(found)


def _shared_caches(model: DecoderLM, params: Params, group: Group) -> Caches | None:
    if not group.shared:
        return None
    length = rounded_length(group.shared, model.config.max_length)
    tokens_1P, length_1 = pad([group.rows[0].tokens[: group.shared]], length, length)
    return _prefix_caches(model, params, tokens_1P, length_1)


@functools.partial(jax.jit, static_argnames=("model",))
def _prefix_caches(model: DecoderLM, params: Params, tokens_1P: Array, length_1: Array) -> Caches:
    caches = empty_caches(model.config, 1, tokens_1P.shape[1])
    return prefill(model, params, tokens_1P, length_1, caches)[1]


@functools.partial(jax.jit, static_argnames=("model", "rules"))
def _decoder_log_probs(
    model: DecoderLM,
    params: Params,
    caches: Caches | None,
    shared: Array,
    read_BP: Array,
    row_U: Array,
    position_U: Array,
    targets_UK: Array,
    rules: _Rules,
) -> _Found:
    """Log-probabilities of the targets, [U, K]."""
    batch, length = read_BP.shape
    # Padding comes last, where no token sees it.
    if caches is None:
        hidden_BPD = model.apply({"params": params}, read_BP, method=DecoderLM.hidden)
    else:
        caches = caches.take_rows(jnp.zeros(batch, jnp.int32)).with_length(caches.length + length)
        positions_P = padded_positions(shared, length, model.config.max_length)
        positions_BP = jnp.broadcast_to(positions_P, read_BP.shape)
        arrays = (read_BP, positions_BP, caches)
        hidden_BPD, _ = model.apply({"params": params}, *arrays, method=DecoderLM.hidden_with_cache)
    return _of_targets(model, params, hidden_BPD[row_U, position_U], targets_UK, rules)


def _of_encoder_decoder(
    model: EncoderDecoderLM,
    params: Params,
    prompts: Sequence[Sequence[int]],
    continuations: Sequence[Sequence[int]],
    start: int,
    rules: _Rules,
    batch_size: int,
) -> Iterator[list[_OfPair]]:
    window = model.config.max_length
    pairs = [pair for pair, continuation in enumerate(continuations) if len(continuation)]
    shapes = [
        (padded_length(len(prompts[pair]), window, SHORTEST), padded_length(len(continuations[pair]), window))
        for pair in pairs
    ]
    for places in batches_of_like_shape(shapes, batch_size):
        together = [pairs[place] for place in places]
        filler = [[0]] * (padded_length(len(together), batch_size) - len(together))
        inputs_BP, lengths_B = pad([*(prompts[pair] for pair in together), *filler], window)
        targets_BC, _ = pad([*(continuations[pair] for pair in together), *filler], window, 1)
        found_BC = jax.device_get(
            _encoder_decoder_log_probs(model, params, inputs_BP, lengths_B, targets_BC, start, rules)
        )
        counts = [len(continuations[pair]) for pair in together]
        yield [
            (pair, jax.tree.map(lambda array_BC, row=row, count=count: array_BC[row, :count], found_BC))
            for row, (pair, count) in enumerate(zip(together, counts, strict=True))
        ]


@functools.partial(jax.jit, static_argnames=("model", "start", "rules"))
def _encoder_decoder_log_probs(
    model: EncoderDecoderLM,
    params: Params,
    inputs_BP: Array,
    lengths_B: Array,
    targets_BC: Array,
    start: int,
    rules: _Rules,
) -> _Found:
    """Log-probabilities of the targets, [B, C]."""
    variables = {"params": params}
    segments_BP = (jnp.arange(inputs_BP.shape[1])[None, :] < lengths_B[:, None]).astype(jnp.int32)
    memory_BPD = model.apply(variables, inputs_BP, segments_BP, method=EncoderDecoderLM.encode)
    starts_B1 = jnp.full((inputs_BP.shape[0], 1), start, jnp.int32)
    fed_BC = jnp.concatenate([starts_B1, targets_BC[:, :-1]], axis=1)
    hidden_BCD = model.apply(variables, memory_BPD, segments_BP, fed_BC, method=EncoderDecoderLM.decode)
    hidden_UD = hidden_BCD.reshape(targets_BC.size, -1)
    found_UK = _of_targets(model, params, hidden_UD, targets_BC.reshape(-1, 1), rules)
    return jax.tree.map(lambda values: values.reshape(targets_BC.shape), found_UK)


def _of_targets(model: Writer, params: Params, hidden_UD: Array, targets_UK: Array, rules: _Rules) -> _Found:
    """From the hidden states before targets; logits of all positions may not fit in memory at once."""

    def of_some(hidden_and_targets: tuple[Array, Array]) -> _Found:
        hidden_RD, targets_RK = hidden_and_targets
        logits_RV = model.apply({"params": params}, hidden_RD[:, None], method="logits")[:, 0]
        scores = score(logits_RV, *rules)
        log_probs = jax.vmap(scores.log_probs_of, in_axes=1, out_axes=1)(targets_RK)
        return _Found(log_probs, scores.deciding.argmax(axis=-1)[:, None] == targets_RK)

    places, tokens = targets_UK.shape
    at_a_time = max(1, min(places, _MOST_LOGITS // model.config.size_of_vocabulary))
    padding = ((0, -places % at_a_time), (0, 0))
    chunks = (
        jnp.pad(hidden_UD, padding).reshape(-1, at_a_time, hidden_UD.shape[-1]),
        jnp.pad(targets_UK, padding).reshape(-1, at_a_time, tokens),
    )
    found = jax.lax.map(of_some, chunks)
    return jax.tree.map(lambda values: values.reshape(-1, tokens)[:places], found)
