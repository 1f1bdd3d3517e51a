"""Masked language modelling: predict hidden tokens from those on both sides (BERT: Devlin et al. 2019).

A row is `[CLS] text [SEP]`: a window of the token stream, whose documents don't see each other. [CLS] belongs to the
first document's segment, [SEP] to the last one's.

Axes: b rows of this host's batch (B of the whole batch), T tokens of a row, K hidden tokens of a row, V vocabulary, D
model width.

Every batch is a dict of
    tokens     int32    [b, T]  what the model sees: the corrupted text
    segments   int32    [b, T]  the document of the row that a token belongs to, from 1; 0 at padding
    positions  int32    [b, T]  position in the segment
    types      int32    [b, T]  0 for the first text of a row, 1 for the second
    places     int32    [b, K]  positions to predict
    targets    int32    [b, K]  the original tokens
    weights    float32  [b, K]  1 where there is something to predict: a row may have fewer than K places
"""

import dataclasses
from typing import ClassVar

import jax.numpy as jnp
import numpy as np
from jax import Array
from jax.sharding import Mesh

from lm.data.token_texts import WordBorders, ordinary_tokens
from lm.data.tokenizers import Tokenizer
from lm.errors import UserError
from lm.evaluation.token_reliability import TokenBuckets
from lm.models.encoder_lm import EncoderLM
from lm.modules.config import ModelConfig
from lm.modules.dropout import dropout_rngs
from lm.objectives.corruption import (
    CorruptsWindows,
    RowRandom,
    chosen_units,
    joined_units,
    positions_in_segments,
    units_of,
)
from lm.objectives.objective import ObjectiveConfig, PredictsTokens, TextProperties, special_id
from lm.types import Batch, HostBatch, Params

SPECIAL_TOKENS = ("[CLS]", "[SEP]", "[MASK]")

# Joshi et al. 2020, section 3.1: the number of words in a span is geometric with p = 0.2, at most 10. The mean is 3.8.
SPAN_LENGTHS = 0.2 * 0.8 ** np.arange(10)


@dataclasses.dataclass(frozen=True, eq=False)
class Masking:
    """Which tokens to hide, and how.

    Attributes:
      classify: id of [CLS].
      separate: id of [SEP].
      mask: id of [MASK].
      rate: the share of a row's ordinary tokens that is hidden.
      mode: what is hidden together: "token", "whole_word" or "span".
      ordinary_V: whether a token may be hidden or replace a hidden one; false for special tokens.
      borders: of words, for "whole_word" and "span".
    """

    classify: int
    separate: int
    mask: int
    rate: float
    mode: str
    ordinary_V: np.ndarray
    borders: WordBorders

    @classmethod
    def of(cls, objective: ObjectiveConfig, tokenizer: Tokenizer) -> "Masking":
        """From the config, with a tokenizer's ids.

        Raises:
          UserError: if the tokenizer lacks a special token, or a setting has no effect.
        """
        if objective.segmentation and objective.masking == "token":
            raise UserError(
                "config.objective.segmentation has no effect with config.objective.masking=token: leave it out, or set "
                "whole_word or span"
            )
        classify, separate, mask = (special_id(tokenizer, name) for name in SPECIAL_TOKENS)
        ordinary_V, borders = ordinary_tokens(tokenizer), WordBorders.of(tokenizer, objective.segmentation)
        return cls(classify, separate, mask, objective.mask_rate, objective.masking, ordinary_V, borders)

    def most_masked(self, length: int) -> int:
        """K: the maximum number of hidden tokens in a row of T."""
        return int(self._budget(np.array([length]))[0])

    def apply(self, batch: HostBatch, random: RowRandom) -> HostBatch:
        """Hides some of `tokens` and records them in `places`, `targets` and `weights`.

        80% of them become [MASK], 10% an ordinary token drawn uniformly from the vocabulary, and 10% stay unchanged
        (Devlin et al. 2019, section 3.1); the tokens of a span are treated alike (Joshi et al. 2020).

        Args:
          batch: `tokens` and `segments`; other arrays pass through.
          random: source of randomness.
        """
        tokens_bT, segments_bT = batch["tokens"], batch["segments"]
        allowed_bT = self.ordinary_V[tokens_bT] & (segments_bT > 0)
        units_bT = self._units(tokens_bT, segments_bT, allowed_bT, random)
        hidden_bT = chosen_units(units_bT, allowed_bT, self._budget(allowed_bT.sum(axis=1)), random)
        fate_bT = random.uniform(tokens_bT.shape[1])
        if self.mode == "span":
            fate_bT = np.take_along_axis(fate_bT, units_bT, axis=1)
        ordinary = np.flatnonzero(self.ordinary_V).astype(tokens_bT.dtype)
        drawn_bT = ordinary[random.integers(len(ordinary), tokens_bT.shape[1])]
        damage_bT = np.where(fate_bT < 0.8, self.mask, np.where(fate_bT < 0.9, drawn_bT, tokens_bT))
        places_bK = np.argsort(~hidden_bT, axis=1, kind="stable")[:, : self.most_masked(tokens_bT.shape[1])]
        return batch | {
            "tokens": np.where(hidden_bT, damage_bT, tokens_bT).astype(np.int32),
            "places": places_bK.astype(np.int32),
            "targets": np.take_along_axis(tokens_bT, places_bK, axis=1).astype(np.int32),
            "weights": np.take_along_axis(hidden_bT, places_bK, axis=1).astype(np.float32),
        }

    def _budget(self, count: np.ndarray) -> np.ndarray:
        """How many of `count` ordinary tokens to hide: at least one, so that every text has something to predict."""
        return np.minimum(np.maximum(np.rint(self.rate * count), 1), count).astype(np.int64)

    def _units(
        self, tokens_bT: np.ndarray, segments_bT: np.ndarray, allowed_bT: np.ndarray, random: RowRandom
    ) -> np.ndarray:
        if self.mode == "token":
            return units_of(np.ones(tokens_bT.shape, bool), allowed_bT, segments_bT)
        words_bT = units_of(self.borders.begins(tokens_bT), allowed_bT, segments_bT)
        if self.mode == "whole_word":
            return words_bT
        return units_of(begins_span(words_bT, random), allowed_bT, segments_bT)


@dataclasses.dataclass(frozen=True)
class MaskedLM(PredictsTokens, CorruptsWindows):
    """The task, as pure functions of (parameters, batch).

    Attributes:
      model: the network.
      objective: what to minimize.
      masking: what to hide.
      buckets: of the vocabulary, for separate reliability metrics.
    """

    architecture: ClassVar[str] = "encoder"
    settings: ClassVar[tuple[str, ...]] = ("mask_rate", "masking", "segmentation")
    counts_bytes: ClassVar[bool] = False

    model: EncoderLM
    objective: ObjectiveConfig
    masking: Masking
    buckets: TokenBuckets = TokenBuckets()

    def __post_init__(self):
        if self.model.config.size_of_sequence < 3:
            raise UserError(
                f"{self.model.config.length_setting} must be at least 3 for config.objective.name=masked, got "
                f"{self.model.config.size_of_sequence}"
            )

    @classmethod
    def special_tokens(cls, config: ObjectiveConfig) -> tuple[str, ...]:
        """Those of BERT."""
        return SPECIAL_TOKENS

    @classmethod
    def from_config(
        cls,
        config: ObjectiveConfig,
        model: ModelConfig,
        tokenizer: Tokenizer,
        mesh: Mesh | None,
        text: TextProperties,
    ) -> "MaskedLM":
        """The task with a model of this shape."""
        return cls(EncoderLM(model, mesh), config, Masking.of(config, tokenizer), text.buckets)

    def init(self, key: Array) -> Params:
        """Random parameters."""
        return self.model.init(key, jnp.zeros((1, 1), jnp.int32))["params"]

    def token_positions(self, batch: Batch) -> Array:
        """Positions of the hidden tokens, [B, K]."""
        return masked_positions(batch)

    @property
    def window_length(self) -> int:
        """The maximum length without [CLS] and [SEP]."""
        return self.model.config.size_of_sequence - 2

    def corrupt(self, windows: HostBatch, random: RowRandom) -> HostBatch:
        """Puts each window between [CLS] and [SEP] and hides some of its tokens."""
        return self.masking.apply(framed(windows, self.masking.classify, self.masking.separate), random)

    def hidden(self, params: Params, batch: Batch, dropout_key: Array | None) -> Array:
        """The states at the hidden tokens, [B, K, D]."""
        return at_hidden_tokens(hidden_states(self.model, params, batch, dropout_key), batch)


def hidden_states(model: EncoderLM, params: Params, batch: Batch, dropout_key: Array | None) -> Array:
    """The encoder's last hidden states for a batch, [B, T, D]."""
    types = batch["types"] if model.config.segment_types else None
    inputs = batch["tokens"], batch["segments"], batch["positions"], types
    return model.apply({"params": params}, *inputs, rngs=dropout_rngs(dropout_key), method=EncoderLM.hidden)


def at_hidden_tokens(hidden_BTD: Array, batch: Batch) -> Array:
    """The states at the hidden tokens, [B, K, D]: the prediction head, the costliest part, runs on these alone."""
    return jnp.take_along_axis(hidden_BTD, batch["places"][..., None], axis=1)


def masked_positions(batch: Batch) -> Array:
    """Positions of the hidden tokens in their documents, [B, K]."""
    return jnp.take_along_axis(batch["positions"], batch["places"], axis=1)


def begins_span(words_bT: np.ndarray, random: RowRandom) -> np.ndarray:
    """Cuts the whole text into spans of words, from which whole spans are drawn later, so that none overlap.

    Args:
      words_bT: index of each token's word.
      random: for the lengths.

    Returns:
      Whether each token begins a span, [b, T].
    """
    return joined_units(words_bT, 1 + random.drawn_from(SPAN_LENGTHS, words_bT.shape[1]))


def framed(windows: HostBatch, classify: int, separate: int) -> HostBatch:
    """Puts [CLS] before and [SEP] after each window: `tokens`, `segments`, `positions` and `types`, [b, T + 2]."""
    tokens_bT, segments_bT = (np.pad(windows[name], ((0, 0), (1, 1))) for name in ("tokens", "segments"))
    rows, length = np.arange(len(tokens_bT)), (segments_bT > 0).sum(axis=1)
    segments_bT[:, 0] = segments_bT[:, 1]
    segments_bT[rows, length + 1] = segments_bT[rows, length]
    tokens_bT[:, 0], tokens_bT[rows, length + 1] = classify, separate
    return {
        "tokens": np.where(segments_bT > 0, tokens_bT, 0),
        "segments": segments_bT,
        "positions": positions_in_segments(segments_bT),
        "types": np.zeros_like(tokens_bT),
    }
