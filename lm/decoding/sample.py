"""Sampling and greedy decoding of any number of prompts, of any lengths.

Axes: B prompts, R rows of a batch (each prompt's samples side by side), P prompt positions, T new positions,
V vocabulary.
"""

import dataclasses
import functools
from collections.abc import Callable, Sequence

import jax
import jax.numpy as jnp
import numpy as np

from lm.decoding.continuation import Continuation
from lm.decoding.progress import Choice, Progress, Rows, advanced, begun, resumed
from lm.decoding.sampling import SamplingConfig
from lm.decoding.shared_prefixes import common_length
from lm.decoding.step import Caches, Calibrator, Writer, batches_of_like_length, check_writer, pad, padded_length
from lm.models.decoder_lm import DecoderLM
from lm.models.unrolled import unrolled
from lm.types import Params

# Continuations have room for at least so many tokens, to limit the number of compiled sizes.
_SHORTEST_NEW = 16
# After so many tokens it is seen whether a caller wants a row to stop.
_TOKENS_BETWEEN_LOOKS = 8

# Whether the row with this index should stop, given its new tokens so far.
Halt = Callable[[int, Sequence[int]], bool]


def generate(
    model: Writer,
    params: Params,
    prompts: Sequence[Sequence[int]],
    config: SamplingConfig,
    ends: tuple[int, ...] = (),
    start: int | None = None,
    vocab_size: int | None = None,
    calibrator: Calibrator | None = None,
    batch_size: int = 32,
    halt: Halt | None = None,
) -> list[Continuation]:
    """Continues each prompt; an encoder-decoder encodes it and generates an output.

    A continuation depends on its prompt, its index in the result and the seed, but not on the other prompts or on
    `batch_size`. When a decoder's sequence reaches `max_length`, generation continues with its last half as context,
    and the log-probabilities are conditioned on that shorter context. An encoder-decoder's output ends at `max_length`.

    Args:
      model: the network.
      params: its parameters.
      prompts: token ids, at least one each. A decoder sees the end of a prompt longer than `max_length - 1`. An
        encoder-decoder reads prompts unchanged: if its inputs ended with an end-of-text token in training, append it.
      config: how to sample, and how many samples of each prompt, which is read once.
      ends: the ids at which a continuation ends.
      start: the id after which an encoder-decoder's output starts.
      vocab_size: ids from here on pad the embedding table and are never chosen; None: no padding.
      calibrator: acts on the model's logits before anything else.
      batch_size: rows that are written together, at most, if a prompt's samples are not more.
      halt: called every few tokens with the index and the new tokens of each row that goes on; the row stops if it is
        true.

    Returns:
      `config.samples` continuations for each prompt, side by side.

    Raises:
      UserError: for a model that does not generate text, and for an encoder-decoder without `start` or with a prompt
        longer than `max_length`.
      ValueError: for an empty prompt.
    """
    check_writer(model, prompts, start)
    model, params = unrolled(model, params)
    choice = Choice(config.distribution, ends, vocab_size, calibrator)
    samples, window = config.samples, model.config.max_length
    found: dict[int, Continuation] = {}
    lengths = [min(len(prompt), window) for prompt in prompts]
    for numbers in batches_of_like_length(lengths, window, max(1, batch_size // samples)):
        together = [prompts[number] for number in numbers]
        writing = Writing(model, params, together, config, choice, start, numbers)
        while not writing.done_R.all():
            writing.advance(config.max_new_tokens if halt is None else _TOKENS_BETWEEN_LOOKS)
            if halt is not None:
                writing.stop(halt)
        found |= zip(writing.indices_R.tolist(), writing.continuations(), strict=True)
    return [found[number] for number in range(len(prompts) * samples)]


@dataclasses.dataclass(frozen=True)
class Held:
    """A decoder's caches of one row and the tokens in them, to continue a conversation without reading it again."""

    tokens: list[int]
    caches: Caches


class Writing:
    """A batch of continuations that grow together.

    Args:
      model: the network, unrolled.
      params: its parameters.
      prompts: token ids, at least one each.
      config: the number of tokens and samples, and the seed.
      choice: how tokens are chosen.
      start: the id after which an encoder-decoder's output starts.
      numbers: each prompt's place among all prompts, from which its randomness follows.
      held: for a single row: what was read before. It is used up.

    Attributes:
      indices_R: each row's place among all continuations.
      done_R: whether it has ended.
    """

    _progress: Progress
    _here: list[Continuation]
    _limits_R: np.ndarray
    _n: int

    def __init__(
        self,
        model: Writer,
        params: Params,
        prompts: Sequence[Sequence[int]],
        config: SamplingConfig,
        choice: Choice,
        start: int | None = None,
        numbers: Sequence[int] = (0,),
        held: Held | None = None,
    ):
        self._model, self._params, self._choice, self._start = model, params, choice, start
        self._most = config.max_new_tokens
        self._slides, self._window = isinstance(model, DecoderLM), model.config.max_length
        self._length = padded_length(config.max_new_tokens, self._window, _SHORTEST_NEW)
        samples = config.samples
        self.indices_R = np.array([number * samples + n for number in numbers for n in range(samples)])
        self.done_R = np.zeros(self.indices_R.size, bool)
        self._texts = [list(prompt) for prompt in prompts for _ in range(samples)]
        self._prompt_lengths = [len(text) for text in self._texts]
        self._pieces: list[list[Continuation]] = [[] for _ in self._texts]
        # Rows of one token fill the batch, to limit compiled sizes.
        rows = padded_length(len(prompts), len(prompts) * 2) * samples
        self._filler = rows - self.indices_R.size
        seeds_R = np.pad(self.indices_R, (0, self._filler))
        self._keys_R = jax.vmap(functools.partial(jax.random.fold_in, jax.random.key(config.seed)))(seeds_R)
        self._begin(list(map(list, prompts)), samples, self._window - 1 if self._slides else self._window, held)

    def advance(self, tokens: int) -> None:
        """Chooses so many tokens for each row, or fewer if all are done earlier."""
        while tokens > 0 and not self.done_R.all():
            before = self._n
            if self._is_full:
                self._slide()
            else:
                until = min(self._n + tokens, self._length)
                limits_R = np.where(self._padded(self.done_R, True), 0, self._limits_R)
                self._progress = advanced(
                    self._model, self._params, self._progress, limits_R, until, choice=self._choice
                )
                self._look()
            tokens -= max(self._n - before, 1)

    def stop(self, halt: Halt) -> None:
        """Ends the rows for which `halt` is true."""
        for row in np.flatnonzero(~self.done_R).tolist():
            self.done_R[row] = halt(int(self.indices_R[row]), self.tokens(row))

    def tokens(self, row: int = 0) -> list[int]:
        """The new tokens of a row."""
        return self._texts[row][self._prompt_lengths[row] :] + self._here[row].tokens.tolist()

    def continuations(self) -> list[Continuation]:
        """Those so far, in the order of `indices_R`."""
        whole = []
        for pieces, here in zip(self._pieces, self._here, strict=True):
            # A row that was done before has nothing here, and its last piece says whether it is finished.
            parts = [*pieces, here] if here.tokens.size or not pieces else pieces
            whole.append(functools.reduce(lambda one, other: one + other, parts))
        return whole

    @property
    def held(self) -> Held | None:
        """The first row's tokens and caches; None if it has gone beyond the model's window, or was interrupted."""
        if self._pieces[0] or len(self._texts) > 1 or _is_deleted(self._progress.caches):
            return None
        read = [*self._texts[0], *self.tokens()]
        return Held(read[: self._prompt_lengths[0] + max(self._n - 1, 0)], self._progress.caches)

    @property
    def _is_full(self) -> bool:
        """Whether all open rows have reached the end of the model's window."""
        return bool((self.done_R | (self._n >= self._limits_R[: self.done_R.size])).all())

    def _begin(self, prompts: list[list[int]], samples: int, keep: int, held: Held | None = None) -> None:
        """Reads the last `keep` tokens of prompts, or rather those that are not held."""
        counts_R = np.array([len(text) for text in self._texts]) - self._prompt_lengths
        contexts = [prompt[-keep:] for prompt in prompts] + [[0]] * (self._filler // samples)
        room_R = np.repeat([self._window - len(text) * self._slides for text in contexts], samples)
        limits_R = np.minimum(self._most - self._padded(counts_R, 0), room_R)
        self._limits_R = np.where(self._padded(self.done_R, True), 0, limits_R).astype(np.int32)
        counts_R = self._padded(counts_R, 0).astype(np.int32)
        rows = Rows(self._keys_R, jnp.asarray(counts_R), jnp.asarray(self._limits_R), self._seen())
        first = 0 if held is None else common_length(held.tokens, contexts[0][:-1])
        if held is not None and first and len(prompts[0]) <= keep:
            self._progress = self._resume(contexts[0], first, held.caches, rows)
        else:
            arrays = (*pad(contexts, self._window), rows)
            sizes = {"length": self._length, "samples": samples}
            self._progress = begun(self._model, self._params, *arrays, choice=self._choice, start=self._start, **sizes)
        self._look()

    def _resume(self, prompt: list[int], first: int, caches: Caches, rows: Rows) -> Progress:
        tokens_BP, lengths_B = pad([prompt[first:]], self._window)
        needed = min(first + tokens_BP.shape[1] + self._length, self._window)
        if caches.length < needed:
            caches = caches.with_length(padded_length(needed, self._window))
        arrays = (tokens_BP, lengths_B, rows, caches, np.int32(first))
        return resumed(self._model, self._params, *arrays, choice=self._choice, length=self._length)

    def _slide(self) -> None:
        """Goes on with the last half of each row as its context."""
        for row, here in enumerate(self._here):
            self._pieces[row].append(here)
            self._texts[row] += here.tokens.tolist()
        self._begin(self._texts, 1, max(self._window // 2, 1))

    def _look(self) -> None:
        """Notes what has been written."""
        rows = self.done_R.size
        self._here = self._progress.decoded.continuations()[:rows]
        self._n = int(self._progress.n)
        ended_R = np.array([here.finished for here in self._here])
        counts_R = np.array([len(self.tokens(row)) for row in range(rows)])
        self.done_R |= ended_R | (counts_R >= self._most)
        if not self._slides:
            self.done_R |= self._n >= self._limits_R[:rows]

    def _seen(self) -> jax.Array | None:
        """The tokens of each row's text, of an encoder-decoder only those of its output, as a mask [R, V]."""
        if self._choice.config.repetition_penalty == 1:
            return None
        seen_RV = np.zeros((self.done_R.size + self._filler, self._model.config.size_of_vocabulary), bool)
        for row, text in enumerate(self._texts):
            seen_RV[row, text if self._slides else text[self._prompt_lengths[row] :]] = True
        return jnp.asarray(seen_RV)

    def _padded(self, values_R: np.ndarray, filler: int) -> np.ndarray:
        return np.pad(values_R, (0, self._filler), constant_values=filler)


def _is_deleted(caches: Caches) -> bool:
    """Whether a compiled function that got them never returned."""
    return any(array.is_deleted() for array in jax.tree.leaves(caches))
