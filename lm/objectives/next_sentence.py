"""Masked language modelling of text pairs, plus predicting whether the two belong together.

Next sentence prediction (Devlin et al. 2019, section 3.1): B continues A in half of the rows, and is from another
document in the other half. Sentence order prediction (Lan et al. 2020, section 3.1): B continues A, or A and B are
swapped. A row is `[CLS] A [SEP] B [SEP]`; A and B are runs of tokens that may begin and end anywhere.

Axes: b rows of this host's batch (B of the whole batch), T tokens of a row, N documents, D model width.

Every batch is as in `lm.objectives.masked_lm`, with one segment per row and
    continues  int32    [b]     0 where the second text continues the first, else 1, as in BERT
"""

import dataclasses
import math
from typing import Any, ClassVar, Self

import jax.numpy as jnp
import numpy as np
from jax import Array
from jax.sharding import Mesh

from lm.data.store import Corpus, TokenStore, TrainingText
from lm.data.tokenizers import Tokenizer
from lm.data.windows import ENDLESS, host_rows
from lm.errors import UserError
from lm.evaluation.token_reliability import TokenBuckets
from lm.evaluation.token_statistics import TokenStatistics
from lm.evaluation.token_statistics import token_statistics as class_statistics
from lm.models.encoder_lm import EncoderLM
from lm.modules.config import ModelConfig
from lm.objectives.corruption import TRAINING, VALIDATION, RowRandom
from lm.objectives.masked_lm import MaskedLM, Masking, at_hidden_tokens, hidden_states, masked_positions
from lm.objectives.objective import ObjectiveConfig, TextProperties, row_sums, token_loss, token_statistics
from lm.types import Batch, HostBatch, Params

SHORT_ROWS = 0.1  # the share of rows cut to a random length, so that short texts occur too


@dataclasses.dataclass(frozen=True)
class NextSentence:
    """The task, as pure functions of (parameters, batch).

    Attributes:
      swaps: whether a second text that doesn't continue the first is the text before it; otherwise it is from another
        document.
      model: the network.
      objective: what to minimize.
      masking: which tokens to hide.
      buckets: of the vocabulary, for separate reliability metrics.
    """

    architecture: ClassVar[str] = "encoder"
    settings: ClassVar[tuple[str, ...]] = MaskedLM.settings
    counts_bytes: ClassVar[bool] = False
    swaps: ClassVar[bool] = False

    model: EncoderLM
    objective: ObjectiveConfig
    masking: Masking
    buckets: TokenBuckets = TokenBuckets()

    def __post_init__(self):
        if self.model.config.segment_types < 2:
            raise UserError(
                f"config.objective.name={self.objective.name} has two texts per row: set config.model.segment_types=2"
            )

    @classmethod
    def special_tokens(cls, config: ObjectiveConfig) -> tuple[str, ...]:
        """Those of BERT."""
        return MaskedLM.special_tokens(config)

    @classmethod
    def from_config(
        cls,
        config: ObjectiveConfig,
        model: ModelConfig,
        tokenizer: Tokenizer,
        mesh: Mesh | None,
        text: TextProperties,
    ) -> Self:
        """The task with a model of this shape."""
        return cls(EncoderLM(model, mesh), config, Masking.of(config, tokenizer), text.buckets)

    def init(self, key: Array) -> Params:
        """Random parameters."""

        def everything(model: EncoderLM, tokens_BT: Array) -> tuple[Array, Array]:
            hidden_BTD = model.hidden(tokens_BT, types_BT=tokens_BT)
            return model.logits(hidden_BTD), model.next_sentence(model.pool(hidden_BTD))

        return self.model.init(key, jnp.zeros((1, 1), jnp.int32), method=everything)["params"]

    def loss(self, params: Params, batch: Batch, dropout_key: Array | None) -> tuple[Array, dict[str, Array]]:
        """The sum of both objectives, and weighted sums to report.

        Each row's pair loss is weighted by the row's number of masked tokens. After division by `weight`, as for all
        sums, this gives BERT's objective: the mean over masked tokens, plus a mean over rows.

        Returns:
          As `lm.modules.linear_cross_entropy.linear_cross_entropy`, and `next_sentence_loss`; `loss` covers only the
          masked tokens.
        """
        hidden_BKD, pair = self._hidden_and_pair(params, batch, dropout_key)
        total, sums = token_loss(self.model, params, hidden_BKD, batch, self.objective)
        pair_loss = (batch["weights"].sum(axis=1) * pair.nll).sum()
        total = total + pair_loss
        return total, sums | {"objective": total, "next_sentence_loss": pair_loss}

    def evaluate(self, params: Params, batch: Batch) -> dict[str, Any]:
        """Weighted sums over each row and reliability, as `lm.objectives.objective.row_sums`.

        Also `next_sentence_loss` and `next_sentence_accuracy`, weighted as in `loss`.
        """
        hidden_BKD, pair = self._hidden_and_pair(params, batch, None)
        tokens = token_statistics(self.model, params, hidden_BKD, batch, self.objective)
        weight_B = batch["weights"].sum(axis=1)
        vocab_size = self.model.config.size_of_vocabulary
        sums = row_sums(tokens, masked_positions(batch), batch["weights"], self.buckets, vocab_size)
        sums |= {"next_sentence_loss": weight_B * pair.nll, "next_sentence_accuracy": weight_B * pair.correct}
        return sums

    def train_batches(
        self, corpus: Corpus, batch_size: int, seed: int, random_offsets: bool = False, host: int = 0, hosts: int = 1
    ) -> "PairBatches":
        """Pairs drawn from the training split, endless. Their starts are always random."""
        pairs = self._pairs(corpus.train, "training")
        return PairBatches(pairs, self.masking, batch_size, (seed, TRAINING), None, host, hosts)

    def validation_batches(self, corpus: Corpus, batch_size: int, host: int = 0, hosts: int = 1) -> "PairBatches":
        """Pairs drawn from the validation split, always the same, with about as many tokens as the split."""
        pairs = self._pairs(corpus.validation, "validation")
        rows = math.ceil(corpus.validation.num_tokens / self.model.config.size_of_sequence)
        return PairBatches(pairs, self.masking, batch_size, (0, VALIDATION), rows, host, hosts)

    def _pairs(self, store: TrainingText, split: str) -> "Pairs":
        if not isinstance(store, TokenStore):
            raise UserError(
                "config.objective.name: pairs of texts need whole documents, which shards and mixtures don't keep: "
                "choose masked or another objective without pairs"
            )
        return Pairs(store, self.model.config.size_of_sequence, self.swaps, split)

    def _hidden_and_pair(
        self, params: Params, batch: Batch, dropout_key: Array | None
    ) -> tuple[Array, TokenStatistics]:
        """States at the masked tokens, [B, K, D], and statistics of whether the texts belong together, [B]."""

        def judge(model: EncoderLM, hidden_BTD: Array) -> Array:
            return model.next_sentence(model.pool(hidden_BTD, batch["segments"]))

        hidden_BTD = hidden_states(self.model, params, batch, dropout_key)
        logits_B2 = self.model.apply({"params": params}, hidden_BTD, method=judge)
        return at_hidden_tokens(hidden_BTD, batch), class_statistics(logits_B2, batch["continues"])


class SentenceOrder(NextSentence):
    """The same, but a second text that doesn't continue the first precedes it (Lan et al. 2020)."""

    swaps = True


class Pairs:
    """Draws pairs of texts from a token store.

    Args:
      store: the text.
      length: T; both texts and three special tokens fit.
      swap: whether negative pairs are consecutive texts in the wrong order; otherwise the second text is from another
        document.
      split: its name, for messages.

    Raises:
      UserError: if the store has too few documents of two tokens or more, or T is too short.
    """

    def __init__(self, store: TokenStore, length: int, swap: bool, split: str = "training"):
        if length < 5:
            raise UserError(
                "config.model.sequence_length (default: max_length) must be at least 5 for pairs of texts, got "
                f"{length}"
            )
        mark = int(store.has_end_of_text)
        begins_N = store.document_starts + mark
        ends_N = np.append(store.document_starts[1:], store.num_tokens - mark)
        long_enough_N = ends_N - begins_N >= 2
        self._begins_N = begins_N[long_enough_N]
        self._lengths_N = (ends_N - begins_N)[long_enough_N]
        self._ends_N = np.cumsum(self._lengths_N)  # in the concatenation of these documents
        self._store, self._length, self._swap = store, length, swap
        if len(self._begins_N) < (1 if swap else 2):
            raise UserError(
                f"the {split} split has {len(self._begins_N)} document(s) of two tokens or more, too few for pairs: "
                "set config.objective.name=masked_sentence_order or masked, or a config.data.source of more documents"
            )

    def draw(self, random: RowRandom, classify: int, separate: int) -> HostBatch:
        """A batch of pairs: `tokens`, `segments`, `positions`, `types` and `continues`.

        Args:
          random: source of randomness.
          classify: id of [CLS].
          separate: id of [SEP].
        """
        room = self._length - 3
        total = np.where(random.uniform() < SHORT_ROWS, 2 + random.integers(room - 1), room)
        document = self._document_at(random.integers(self._ends_N[-1]))
        start, total = self._span(document, total, random)
        first = 1 + random.integers(total - 1)
        one, other = (start, first), (start + first, total - first)
        strange = random.uniform() < 0.5
        if self._swap:
            swapped = other, one
        else:
            swapped = one, self._span(self._another(document, random), total - first, random)
        first_text, second_text = (
            (np.where(strange, apart[0], together[0]), np.where(strange, apart[1], together[1]))
            for apart, together in zip(swapped, (one, other), strict=True)
        )
        return self._rows(first_text, second_text, classify, separate) | {"continues": strange.astype(np.int32)}

    def _document_at(self, place: np.ndarray) -> np.ndarray:
        return np.searchsorted(self._ends_N, place, side="right")

    def _another(self, document: np.ndarray, random: RowRandom) -> np.ndarray:
        """A different document, drawn in proportion to the documents' lengths."""
        length = self._lengths_N[document]
        place = random.integers(self._ends_N[-1] - length)
        return self._document_at(place + np.where(place >= self._ends_N[document] - length, length, 0))

    def _span(self, document: np.ndarray, wanted: np.ndarray, random: RowRandom) -> tuple[np.ndarray, np.ndarray]:
        """The start in the store and the length of a run of a document's tokens: as long as wanted, if possible."""
        length = np.minimum(wanted, self._lengths_N[document])
        return self._begins_N[document] + random.integers(self._lengths_N[document] - length + 1), length

    def _rows(
        self, one: tuple[np.ndarray, np.ndarray], other: tuple[np.ndarray, np.ndarray], classify: int, separate: int
    ) -> HostBatch:
        (start_b1, length_b1), (other_start_b1, other_length_b1) = (
            tuple(each[:, None] for each in text) for text in (one, other)
        )
        place_T = np.arange(self._length)[None, :]
        second_b1 = length_b1 + 2  # where the second text begins
        end_b1 = second_b1 + other_length_b1
        is_second_bT = place_T >= second_b1
        index_bT = np.where(is_second_bT, other_start_b1 + place_T - second_b1, start_b1 + place_T - 1)
        tokens_bT = np.asarray(self._store.tokens)[np.clip(index_bT, 0, self._store.num_tokens - 1)].astype(np.int32)
        tokens_bT[:, 0] = classify
        tokens_bT[(place_T == second_b1 - 1) | (place_T == end_b1)] = separate
        inside_bT = (place_T <= end_b1).astype(np.int32)
        return {
            "tokens": tokens_bT * inside_bT,
            "segments": inside_bT,
            "positions": place_T.astype(np.int32) * inside_bT,
            "types": is_second_bT.astype(np.int32) * inside_bT,
        }


class PairBatches:
    """Batches of pairs with tokens masked: a pure function of (key, step).

    Args:
      pairs: where they come from.
      masking: what to hide.
      batch_size: rows of the global batch.
      key: non-negative integers that determine the batches together with the step.
      rows: number of rows; the last batch is filled with padding. None: practically endless.
      host: index of this host.
      hosts: number of hosts.

    Raises:
      UserError: if hosts does not divide batch_size.
    """

    def __init__(
        self,
        pairs: Pairs,
        masking: Masking,
        batch_size: int,
        key: tuple[int, ...],
        rows: int | None = None,
        host: int = 0,
        hosts: int = 1,
    ):
        self._pairs, self._masking, self._batch_size, self._key = pairs, masking, batch_size, key
        self._num_rows = ENDLESS if rows is None else rows
        self._rows = host_rows(batch_size, host, hosts)

    def __len__(self) -> int:
        return -(-self._num_rows // self._batch_size)

    def __getitem__(self, step: int) -> HostBatch:
        if not 0 <= step < len(self):
            raise IndexError(f"batch {step} of {len(self)}")
        random = RowRandom((*self._key, step), self._batch_size, self._rows)
        pairs = self._pairs.draw(random, self._masking.classify, self._masking.separate)
        numbers = step * self._batch_size + np.arange(self._batch_size)[self._rows]
        exists = numbers < self._num_rows
        if not exists.all():
            pairs = {name: (values.T * exists).T.astype(values.dtype) for name, values in pairs.items()}
        return self._masking.apply(pairs, random)
