"""Span corruption: spans are cut out of a text, and the decoder generates them (T5: Raffel et al. 2020, section 3.1).

    text     the model knows what it knows .
    inputs   the model <extra_id_0> it <extra_id_1> . E
    targets  <extra_id_0> knows what <extra_id_1> knows E

where E is the end-of-text token. The numbers of tokens and spans cut out depend only on the lengths, so the rows of a
batch have equal lengths and need no padding. Documents of a row don't see each other: every token keeps its document's
segment, a sentinel takes that of the first token of its span, and E that of the last token.

Axes: b rows of this host's batch, R tokens of a row's text, S of its input, T of its targets, N spans of a row.
"""

import dataclasses
from collections.abc import Sequence
from typing import ClassVar

import numpy as np
from jax.sharding import Mesh

from lm.data.tokenizers import Tokenizer
from lm.errors import UserError
from lm.models.encoder_decoder_lm import EncoderDecoderLM
from lm.modules.config import ModelConfig
from lm.objectives.corruption import CorruptsWindows, RowRandom, positions_in_segments
from lm.objectives.objective import ObjectiveConfig, TextProperties, special_id
from lm.objectives.text_to_text import TextToText
from lm.types import HostBatch


def sentinel_name(number: int) -> str:
    """The special token that stands for a span, as T5 names it."""
    return f"<extra_id_{number}>"


@dataclasses.dataclass(frozen=True)
class Lengths:
    """The lengths that follow from a text of R tokens.

    Attributes:
      text: R.
      noise: tokens cut out.
      spans: N.
    """

    text: int
    noise: int
    spans: int

    @classmethod
    def of_text(cls, text: int, noise_density: float, mean_span_length: float) -> "Lengths":
        """With the published rounding."""
        noise = min(max(round(text * noise_density), 1), text - 1)
        spans = max(round(noise / mean_span_length), 1)
        return cls(text, noise, min(spans, noise, text - noise))

    @classmethod
    def of_inputs(cls, inputs: int, noise_density: float, mean_span_length: float) -> "Lengths":
        """The lengths for the longest text whose input and targets have at most `inputs` tokens.

        Raises:
          UserError: if there is none.
        """
        if inputs < 3:
            raise UserError(
                "config.model.sequence_length (default: max_length) must be at least 3 for span_corruption, got "
                f"{inputs}"
            )
        fitting = cls.of_text(2, noise_density, mean_span_length)
        longer = fitting
        while max(longer.inputs, longer.targets) <= inputs:
            fitting = longer
            longer = cls.of_text(fitting.text + 1, noise_density, mean_span_length)
        return fitting

    @property
    def inputs(self) -> int:
        """S: the remaining tokens, a sentinel for each span, and E."""
        return self.text - self.noise + self.spans + 1

    @property
    def targets(self) -> int:
        """T: the removed tokens, a sentinel for each span, and E."""
        return self.noise + self.spans + 1


@dataclasses.dataclass(frozen=True, eq=False)
class SpanCutter:
    """Cuts spans out of windows.

    Attributes:
      lengths: of text, noise and spans.
      sentinels_N: their ids, in order.
      end: id of E, which ends inputs and targets and starts each document in the decoder.
    """

    lengths: Lengths
    sentinels_N: np.ndarray
    end: int

    @classmethod
    def of(cls, objective: ObjectiveConfig, tokenizer: Tokenizer, inputs: int) -> "SpanCutter":
        """From the config, with a tokenizer's ids, for inputs and targets of at most `inputs` tokens.

        Raises:
          UserError: if the tokenizer lacks a special token, or a row needs more sentinels than there are.
        """
        lengths = Lengths.of_inputs(inputs, objective.noise_density, objective.mean_span_length)
        if lengths.spans > objective.sentinels:
            raise UserError(
                f"config.objective.sentinels={objective.sentinels} are too few for the {lengths.spans} spans of a row: "
                "set more of them, a larger config.objective.mean_span_length or a smaller config.model.sequence_length"
            )
        if tokenizer.end_of_text is None:
            raise UserError("config.objective.name=span_corruption needs config.tokenizer.end_of_text=True")
        sentinels = [special_id(tokenizer, sentinel_name(number)) for number in range(lengths.spans)]
        return cls(lengths, np.array(sentinels, np.int32), tokenizer.end_of_text)

    def __call__(self, windows: HostBatch, random: RowRandom) -> HostBatch:
        """A batch of `lm.objectives.text_to_text` from a batch of windows of R tokens."""
        tokens_bR, segments_bR = windows["tokens"], windows["segments"]
        number_bR, is_noise_bR = self._spans(random)
        starts_bR = np.diff(number_bR, axis=1, prepend=-1) > 0
        # A sentinel marks the start of its span in the input, and the start of the preceding text in the targets.
        noise_starts = np.nonzero(is_noise_bR & starts_bR)
        span_segments_bN = segments_bR[noise_starts].reshape(-1, self.lengths.spans)
        inputs, input_segments = self._joined(tokens_bR, segments_bR, ~is_noise_bR, noise_starts, span_segments_bN)
        text_starts = np.nonzero(~is_noise_bR & starts_bR)
        targets, segments = self._joined(tokens_bR, segments_bR, is_noise_bR, text_starts, span_segments_bN)
        return {
            "inputs": inputs,
            "input_segments": input_segments,
            "input_positions": positions_in_segments(input_segments),
            "tokens": shifted(targets, segments, self.end),
            "targets": targets,
            "weights": (segments > 0).astype(np.float32),
            "segments": segments,
            "positions": positions_in_segments(segments),
        }

    def _spans(self, random: RowRandom) -> tuple[np.ndarray, np.ndarray]:
        """For each token the index of its run and whether the run is noise; [b, R] each.

        Noise and the rest are randomly divided into equally many parts, which alternate, the rest first.
        """
        lengths = self.lengths
        parts = [random_parts(total, lengths.spans, random) for total in (lengths.text - lengths.noise, lengths.noise)]
        ends = np.cumsum(np.stack(parts, axis=2).reshape(-1, 2 * lengths.spans), axis=1)
        begins_bR = np.zeros((len(ends), lengths.text), np.int64)
        np.put_along_axis(begins_bR, ends[:, :-1], 1, axis=1)
        number_bR = np.cumsum(begins_bR, axis=1)
        return number_bR, number_bR % 2 == 1

    def _joined(
        self,
        tokens_bR: np.ndarray,
        segments_bR: np.ndarray,
        kept_bR: np.ndarray,
        places: tuple[np.ndarray, ...],
        span_segments_bN: np.ndarray,
    ) -> tuple[np.ndarray, np.ndarray]:
        """The kept tokens with sentinels in place and E at the end, and their segments."""
        tokens_bR, segments_bR, kept_bR = tokens_bR.copy(), segments_bR.copy(), kept_bR.copy()
        kept_bR[places] = True
        tokens_bR[places] = np.tile(self.sentinels_N, len(tokens_bR))
        last_b1 = segments_bR[:, -1:].copy()
        segments_bR[places] = span_segments_bN.reshape(-1)
        ends_b1 = np.full_like(last_b1, self.end)
        batch = len(tokens_bR)
        tokens = np.concatenate([tokens_bR[kept_bR].reshape(batch, -1), ends_b1], axis=1)
        segments = np.concatenate([segments_bR[kept_bR].reshape(batch, -1), last_b1], axis=1)
        return np.where(segments > 0, tokens, 0).astype(np.int32), segments.astype(np.int32)


@dataclasses.dataclass(frozen=True)
class SpanCorruption(CorruptsWindows, TextToText):
    """The task, as pure functions of (parameters, batch).

    Attributes:
      cutter: what to cut out.
    """

    settings: ClassVar[tuple[str, ...]] = ("noise_density", "sentinels", "mean_span_length")

    cutter: SpanCutter

    @classmethod
    def special_tokens(cls, config: ObjectiveConfig) -> tuple[str, ...]:
        """The sentinels."""
        return tuple(sentinel_name(number) for number in range(config.sentinels))

    @classmethod
    def from_config(
        cls,
        config: ObjectiveConfig,
        model: ModelConfig,
        tokenizer: Tokenizer,
        mesh: Mesh | None,
        text: TextProperties,
    ) -> "SpanCorruption":
        """The task with a model of this shape."""
        cutter = SpanCutter.of(config, tokenizer, model.size_of_sequence)
        return cls(EncoderDecoderLM(model, mesh), config, text.buckets, cutter)

    @property
    def window_length(self) -> int:
        """The text length for which the input has the maximum length."""
        return self.cutter.lengths.text

    def corrupt(self, windows: HostBatch, random: RowRandom) -> HostBatch:
        """Cuts spans out of each window."""
        return self.cutter(windows, random)


def random_parts(total: int, parts: int, random: RowRandom) -> np.ndarray:
    """Divides `total` into `parts` positive integers, all ways equally likely: [b, parts]."""
    cuts = np.argsort(random.uniform(total - 1), axis=1)[:, : parts - 1] + 1
    borders = np.pad(np.sort(cuts, axis=1), ((0, 0), (1, 1)))
    borders[:, -1] = total
    return np.diff(borders, axis=1)


def shifted(targets_bT: np.ndarray, segments_bT: np.ndarray, start: int) -> np.ndarray:
    """The decoder's input for each target: the previous target, or `start` at the beginning of a segment."""
    tokens_bT = np.full_like(targets_bT, start)
    tokens_bT[:, 1:] = np.where(segments_bT[:, 1:] == segments_bT[:, :-1], targets_bT[:, :-1], start)
    return np.where(segments_bT > 0, tokens_bT, 0)


def reconstruct(inputs: Sequence[int], targets: Sequence[int], sentinels: Sequence[int], end: int) -> list[int]:
    """The text of a pair of input and targets. Targets may come from a model: spans missing there are left out.

    Args:
      inputs: ends at the last `end`, if there is one.
      targets: likewise.
      sentinels: ids, in order.
      end: id of E.
    """
    known = {int(id_) for id_ in sentinels}
    spans: dict[int, list[int]] = {}
    span: list[int] = []
    for token in _without_end(targets, end):
        if token in known:
            span = spans.setdefault(token, [])
        else:
            span.append(token)
    text = []
    for token in _without_end(inputs, end):
        text += spans.get(token, []) if token in known else [token]
    return text


def _without_end(tokens: Sequence[int], end: int) -> list[int]:
    tokens = [int(token) for token in tokens]
    ends = [place for place, token in enumerate(tokens) if token == end]
    return tokens[: ends[-1]] if ends else tokens
