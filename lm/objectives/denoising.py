"""Denoising: the decoder reconstructs a text from a corrupted copy in the encoder (BART: Lewis et al. 2020).

Three kinds of corruption (section 2.2), in this order:
    sentence permutation  the sentences of a document are reordered
    text infilling        spans, with lengths from a Poisson distribution, become one [MASK] each; those of
                          length 0 insert a [MASK]
    token deletion        tokens are deleted

The decoder's side is causal language modelling: it gets the window's first token and predicts all others; documents
begin with the end-of-text token and don't see each other on either side.

Axes: b rows of this host's batch, T tokens that the decoder sees, S = T + 1 tokens of the text and of the input, U
sentences of a row.
"""

import dataclasses
import math
from typing import ClassVar

import numpy as np
from jax.sharding import Mesh

from lm.data.token_texts import ordinary_tokens, sentence_ends
from lm.data.tokenizers import Tokenizer
from lm.models.encoder_decoder_lm import EncoderDecoderLM
from lm.modules.config import ModelConfig
from lm.objectives.corruption import (
    CorruptsWindows,
    RowRandom,
    chosen_units,
    compacted,
    joined_units,
    positions_in_segments,
    units_of,
)
from lm.objectives.objective import ObjectiveConfig, TextProperties, special_id
from lm.objectives.text_to_text import TextToText
from lm.types import HostBatch

MASK = "[MASK]"


def poisson(mean: float, most: int) -> np.ndarray:
    """Probabilities of 0 to `most`."""
    counts = np.arange(most + 1)
    logs = counts * math.log(mean) - mean - np.array([math.lgamma(count + 1) for count in counts])
    return np.exp(logs)


@dataclasses.dataclass(frozen=True, eq=False)
class Damage:
    """How to corrupt a text.

    Attributes:
      objective: gives the rates.
      mask: id of [MASK].
      ordinary_V: whether a token is text: special ones are never changed.
      ends_sentence_V: whether a sentence ends with a token.
    """

    objective: ObjectiveConfig
    mask: int
    ordinary_V: np.ndarray
    ends_sentence_V: np.ndarray

    @classmethod
    def of(cls, objective: ObjectiveConfig, tokenizer: Tokenizer) -> "Damage":
        """From the config, with a tokenizer's ids.

        Raises:
          UserError: if the tokenizer lacks [MASK].
        """
        return cls(objective, special_id(tokenizer, MASK), ordinary_tokens(tokenizer), sentence_ends(tokenizer))

    def __call__(self, windows: HostBatch, random: RowRandom) -> HostBatch:
        """A batch of `lm.objectives.text_to_text` from a batch of windows of T tokens."""
        tokens_bS, segments_bS = whole_text(windows)
        order_bS = self._permutation(tokens_bS, segments_bS, random)
        tokens_bS = np.take_along_axis(tokens_bS, order_bS, axis=1)  # tokens stay in their segment
        inputs_bS, input_segments_bS = self._fill_in_and_delete(tokens_bS, segments_bS, random)
        return windows | {
            "inputs": inputs_bS,
            "input_segments": input_segments_bS,
            "input_positions": positions_in_segments(input_segments_bS),
        }

    def _permutation(self, tokens_bS: np.ndarray, segments_bS: np.ndarray, random: RowRandom) -> np.ndarray:
        """The source index of each token that reorders the sentences of each segment, [b, S]."""
        length = tokens_bS.shape[1]
        special_bS = ~self.ordinary_V[tokens_bS] | (segments_bS == 0)
        after_end_bS = np.pad(self.ends_sentence_V[tokens_bS], ((0, 0), (1, 0)))[:, :-1]
        sentence_bS = units_of(after_end_bS, ~special_bS, segments_bS)
        # All tokens of a sentence share these. Beyond the last sentence nothing moves.
        index_1S = np.arange(length)[None, :]
        segment_bU, special_bU = np.zeros_like(segments_bS), np.ones_like(special_bS)
        np.put_along_axis(segment_bU, sentence_bS, segments_bS, axis=1)
        np.put_along_axis(special_bU, sentence_bS, special_bS, axis=1)
        moves_bU = (random.uniform(length) < self.objective.permutation_rate) & ~special_bU
        score_bU = np.where(moves_bU, random.uniform(length), index_1S)
        # The k-th moving token by segment and score goes to the place of the k-th by segment and position.
        to_bU = np.argsort(~moves_bU, axis=1, kind="stable")
        from_bU = np.lexsort((score_bU, np.where(moves_bU, segment_bU, 0), ~moves_bU), axis=1)
        place_bU = np.empty_like(to_bU)
        np.put_along_axis(place_bU, from_bU, to_bU, axis=1)
        return np.argsort(np.take_along_axis(place_bU, sentence_bS, axis=1), axis=1, kind="stable")

    def _fill_in_and_delete(
        self, tokens_bS: np.ndarray, segments_bS: np.ndarray, random: RowRandom
    ) -> tuple[np.ndarray, np.ndarray]:
        length = tokens_bS.shape[1]
        allowed_bS = self.ordinary_V[tokens_bS] & (segments_bS > 0)
        lengths = poisson(self.objective.mean_span_length, length)
        words_bS = units_of(np.ones_like(allowed_bS), allowed_bS, segments_bS)
        begins_bS = joined_units(words_bS, 1 + random.drawn_from(lengths[1:], length))
        spans_bS = units_of(begins_bS, allowed_bS, segments_bS)
        budget_b = np.rint(self.objective.infilling_rate * allowed_bS.sum(axis=1)).astype(np.int64)
        filled_bS = chosen_units(spans_bS, allowed_bS, budget_b, random)
        starts_bS = filled_bS & (np.diff(spans_bS, axis=1, prepend=-1) > 0)
        inserted_bS = self._insertions(filled_bS, starts_bS, allowed_bS, lengths[0], random)
        deleted_bS = allowed_bS & ~filled_bS & (random.uniform(length) < self.objective.deletion_rate)
        # Two slots per token: one for a [MASK] before it, one for itself.
        kept = np.stack([inserted_bS, (segments_bS > 0) & (~filled_bS | starts_bS) & ~deleted_bS], axis=2)
        tokens = np.stack([np.full_like(tokens_bS, self.mask), np.where(filled_bS, self.mask, tokens_bS)], axis=2)
        segments = np.stack([segments_bS, segments_bS], axis=2)
        kept, tokens, segments = (array.reshape(len(array), -1) for array in (kept, tokens, segments))
        inputs_bS, input_segments_bS = compacted(kept, length, tokens, segments)
        return inputs_bS, input_segments_bS

    def _insertions(
        self, filled_bS: np.ndarray, starts_bS: np.ndarray, allowed_bS: np.ndarray, zero: float, random: RowRandom
    ) -> np.ndarray:
        """The tokens before which to insert a [MASK]: as many as there are draws of 0.

        There is always room, since shortened spans free at least as many slots.
        """
        length = filled_bS.shape[1]
        drawn_b = (starts_bS & (random.uniform(length) < zero / (1 - zero))).sum(axis=1)
        room_b = filled_bS.sum(axis=1) - starts_bS.sum(axis=1)
        score_bS = np.where(allowed_bS & ~filled_bS, random.uniform(length), np.inf)
        rank_bS = np.argsort(np.argsort(score_bS, axis=1), axis=1)
        return (rank_bS < np.minimum(drawn_b, room_b)[:, None]) & np.isfinite(score_bS)


@dataclasses.dataclass(frozen=True)
class Denoising(CorruptsWindows, TextToText):
    """The task, as pure functions of (parameters, batch).

    Attributes:
      damage: how to corrupt a text.
    """

    settings: ClassVar[tuple[str, ...]] = ("mean_span_length", "infilling_rate", "deletion_rate", "permutation_rate")

    damage: Damage

    @classmethod
    def special_tokens(cls, config: ObjectiveConfig) -> tuple[str, ...]:
        """The token that replaces infilled text."""
        return (MASK,)

    @classmethod
    def from_config(
        cls,
        config: ObjectiveConfig,
        model: ModelConfig,
        tokenizer: Tokenizer,
        mesh: Mesh | None,
        text: TextProperties,
    ) -> "Denoising":
        """The task with a model of this shape."""
        return cls(EncoderDecoderLM(model, mesh), config, text.buckets, Damage.of(config, tokenizer))

    @property
    def window_length(self) -> int:
        """One less than the maximum length: the encoder also sees the last target."""
        return self.model.config.size_of_sequence - 1

    def corrupt(self, windows: HostBatch, random: RowRandom) -> HostBatch:
        """Corrupts a copy of each window for the encoder."""
        return self.damage(windows, random)


def whole_text(windows: HostBatch) -> tuple[np.ndarray, np.ndarray]:
    """Tokens and segments of windows followed by the last target, [b, T + 1]."""
    tokens, targets = windows["tokens"], windows["targets"]
    # A last target with weight belongs to the last token's document, or is the token that ends it.
    last_segment_b1 = windows["segments"][:, -1:] * (windows["weights"][:, -1:] > 0)
    tokens_bS = np.concatenate([tokens, targets[:, -1:]], axis=1)
    return tokens_bS, np.concatenate([windows["segments"], last_segment_b1], axis=1).astype(np.int32)
