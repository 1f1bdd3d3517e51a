"""From one text to another: translation, summarization (Sutskever et al. 2014; Vaswani et al. 2017).

Axes: B batch, T target positions, N rows.
"""

import dataclasses
import functools
import math
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, ClassVar, Self

import numpy as np
from jax import Array
from jax.sharding import Mesh

from lm.data.tokenizers import Tokenizer
from lm.decoding.beam_search import BeamSearchConfig
from lm.errors import UserError
from lm.evaluation.generation import bleu_scorer, generation_metrics, signatures, tokenization_notes
from lm.models.build import make_language_model
from lm.models.decoder_lm import DecoderLM
from lm.models.encoder_decoder_lm import EncoderDecoderLM
from lm.modules.config import ModelConfig
from lm.modules.linear_cross_entropy import TokenLoss, linear_cross_entropy, linear_token_statistics
from lm.modules.output_layer import OutputLayer
from lm.statistics.metrics import Metric, Ratio
from lm.tasks.supervised import Columns, Encoded, Example, Results, Row, TaskConfig
from lm.tasks.target_models import TargetModel, target_model
from lm.types import Batch, Params


@dataclasses.dataclass(frozen=True)
class SequenceToSequence:
    """The task, as pure functions of (parameters, batch).

    Attributes:
      model: an encoder-decoder, or a decoder that treats source and target as one sequence.
      config: of the task.
      tokenizer: for both texts; has an end-of-text token.
    """

    model: EncoderDecoderLM | DecoderLM
    config: TaskConfig
    tokenizer: Tokenizer

    settings: ClassVar[tuple[str, ...]] = (
        "truncate",
        "label_smoothing",
        "prefix",
        "max_target_length",
        "beams",
        "length_penalty",
        "metric_tokenizer",
    )
    unit: ClassVar[str] = "tokens"
    continues: ClassVar[bool] = False  # whether a target continues its source
    text_columns: ClassVar[tuple[str, str]] = ("source", "target")
    first_metrics: ClassVar[tuple[str, ...]] = ("bleu", "chrf", "rouge1", "rouge2", "rougeL", "perplexity")
    padding: ClassVar[Mapping[str, int]] = {}

    def __post_init__(self):
        bleu_scorer(self.config.metric_tokenizer)  # what is missing is missing before training
        if self._target_model.source_room(self.config.max_target_length) < 1:
            raise UserError(
                f"config.task.max_target_length={self.config.max_target_length} leaves no room within "
                f"{self._length_limit}: lower the first or raise the second"
            )

    @classmethod
    def from_config(
        cls,
        config: TaskConfig,
        model: ModelConfig,
        tokenizer: Tokenizer,
        mesh: Mesh | None,
        classes: tuple[str, ...],
        train_rows: Sequence[Row],
    ) -> Self:
        """The task with its model, as in `lm.tasks.supervised.SupervisedTask`."""
        return cls(make_language_model(model, mesh), config, tokenizer)

    @classmethod
    def columns(cls, config: TaskConfig) -> Columns:
        """The columns of both texts."""
        return Columns(cls.text_columns)

    @classmethod
    def texts(cls, config: TaskConfig, rows: Sequence[Row]) -> list[str]:
        """Both texts of each row."""
        return [row[name] for row in rows for name in cls.text_columns]

    @classmethod
    def labels(cls, rows: Sequence[Row]) -> None:
        """None: there are no classes."""
        return

    @property
    def axes(self) -> Mapping[str, str]:
        """As in `lm.tasks.target_models` for each architecture."""
        return self._target_model.axes

    def encode(self, rows: Sequence[Row]) -> Encoded:
        """Arrays as in `lm.tasks.target_models`.

        A truncated target has no end-of-text token, so the model does not learn to stop there.

        Raises:
          UserError: for a text that is too long, unless `config.truncate`.
        """
        sources, long = self._source_ids(rows)
        targets = self._target_ids(rows)
        rooms = [self._target_model.target_room(len(source)) for source in sources]
        long |= self._check_lengths(rows, self.text_columns[1], targets, rooms)
        pairs = zip(sources, targets, rooms, strict=True)
        examples = [self._target_model.example(source, target[:room]) for source, target, room in pairs]
        notes = tokenization_notes([row[self.text_columns[1]] for row in rows], self.config.metric_tokenizer)
        return Encoded(examples, len(long), notes)

    def prompts(self, rows: Sequence[Row]) -> list[list[int]]:
        """The token ids of each row's source that the model reads before it generates.

        Raises:
          UserError: for a source that is too long, unless `config.truncate`.
        """
        return [self._target_model.prompt(source) for source in self._source_ids(rows)[0]]

    def long_sources(self, rows: Sequence[Row]) -> set[int]:
        """Indices of the rows whose source is truncated."""
        return self._source_ids(rows)[1]

    def init(self, key: Array) -> Params:
        """Random parameters."""
        return self._target_model.init(key)

    def loss(self, params: Params, batch: Batch, dropout_key: Array | None) -> tuple[Array, dict[str, Array]]:
        """The objective summed over the targets' tokens, and sums to report.

        Returns:
          The sum, and sums by name: `weight` (tokens), `loss` (negative log-likelihood) and `objective`.
        """
        states_BTD, layer = self._before_logits(params, batch, dropout_key)
        loss = TokenLoss(self.config.label_smoothing)
        return linear_cross_entropy(layer, states_BTD, batch["targets"], _weights(batch), loss, self.model.mesh)

    def predict(self, params: Params, batch: Batch) -> dict[str, Array]:
        """The generated text for each source, and the likelihood of the true target.

        Returns:
          `generated` and `log_probs` [B, max_target_length] and `lengths` [B], as in
          `lm.decoding.continuation.Decoded`; `nll` [B], the negative log-likelihood of the target, and
          `tokens` [B], their number.
        """
        states_BTD, layer = self._before_logits(params, batch, None)
        statistics = linear_token_statistics(layer, states_BTD, batch["targets"], 0, self.model.mesh)
        weights_BT = _weights(batch)
        decoded = self._target_model.generate(params, batch, self.search, self.tokenizer.vocab_size)
        return {
            "generated": decoded.tokens_BT,
            "log_probs": decoded.log_probs_BT,
            "lengths": decoded.lengths_B,
            "nll": (weights_BT * statistics.nll).sum(axis=1),
            "tokens": weights_BT.sum(axis=1),
        }

    def results(self, rows: Sequence[Row], examples: Sequence[Example], outputs: Sequence[dict[str, Any]]) -> Results:
        """Metrics of generated texts against the targets, and the perplexity of the targets.

        A record's `confidence` is the geometric mean of the probabilities of the generated tokens, including the
        end-of-text token (Malinin & Gales 2021, equation 9).
        """
        source, target = self.text_columns
        written = [self._text(output) for output in outputs]
        targets, tokenizer = [row[target] for row in rows], self.config.metric_tokenizer
        metrics = generation_metrics(written, targets, tokenizer)
        metrics["perplexity"] = perplexity(outputs)
        metrics["loss"] = nats_per_token(outputs)
        first = [name for name in self.first_metrics if name in metrics]
        records = [
            {source: row[source], target: row[target], "predicted": text, "confidence": confidence(output)}
            for row, text, output in zip(rows, written, outputs, strict=True)
        ]
        ordered = {name: metrics[name] for name in dict.fromkeys([*first, *metrics])}
        return Results(ordered, records, signatures=signatures(targets, tokenizer))

    @functools.cached_property
    def _target_model(self) -> TargetModel:
        return target_model(self.model, self.tokenizer)

    @property
    def search(self) -> BeamSearchConfig:
        """How targets are generated."""
        return BeamSearchConfig(self.config.beams, self.config.max_target_length, self.config.length_penalty)

    def _sources(self, rows: Sequence[Row]) -> list[str]:
        return [self.config.prefix + row[self.text_columns[0]] for row in rows]

    def _cut_source(self, source: list[int], room: int) -> list[int]:
        return source[:room]

    @property
    def _length_limit(self) -> str:
        return f"{self.model.config.length_setting}={self.model.config.size_of_sequence}"

    def _source_ids(self, rows: Sequence[Row]) -> tuple[list[list[int]], set[int]]:
        """Token ids of the sources, truncated if too long, and the indices of the truncated rows."""
        room = self._target_model.source_room(self.config.max_target_length)
        sources = self.tokenizer.encode_batch(self._sources(rows))
        long = self._check_lengths(rows, self.text_columns[0], sources, [room] * len(rows))
        return [self._cut_source(source, room) for source in sources], long

    def _target_ids(self, rows: Sequence[Row]) -> list[list[int]]:
        """Token ids of the targets with the end-of-text token."""
        targets = self.tokenizer.encode_batch([row[self.text_columns[1]] for row in rows])
        return [self._target_model.target(ids) for ids in targets]

    def _check_lengths(
        self, rows: Sequence[Row], column: str, texts: Sequence[Sequence[int]], rooms: Sequence[int]
    ) -> set[int]:
        """Indices of the rows whose text is too long.

        Raises:
          UserError: if there are any and `config.truncate` is off.
        """
        long = [number for number, (text, room) in enumerate(zip(texts, rooms, strict=True)) if len(text) > room]
        if long and not self.config.truncate:
            first = long[0]
            raise UserError(
                f"{rows[first]['place']}: the {column} has {len(texts[first])} tokens, but "
                f"{self._length_limit} leaves room for {rooms[first]} "
                f"({len(long)} of {len(rows)} don't fit): raise it, or set config.task.truncate=True to truncate them"
            )
        return set(long)

    def _before_logits(self, params: Params, batch: Batch, dropout_key: Array | None) -> tuple[Array, OutputLayer]:
        """The states before each target, [B, T, D], and the layer that turns them into logits."""
        hidden_BTD = self._target_model.hidden(params, batch, dropout_key)
        return self.model.apply({"params": params}, hidden_BTD, method="before_logits")

    def _text(self, output: Mapping[str, Any]) -> str:
        return self.tokenizer.decode(output["generated"][: output["lengths"]])


def _weights(batch: Batch) -> Array:
    """Of the targets' tokens, [B, T]."""
    return batch["weights"] * batch["row_weights"][:, None]


def perplexity(outputs: Iterable[Mapping[str, Any]]) -> Metric:
    """Over all targets' tokens, from each row's `nll` and `tokens`."""
    sums_N2 = np.array([(output["nll"], output["tokens"]) for output in outputs], np.float64)
    return Metric(sums_N2, lambda sums: np.exp(Ratio()(sums)), better="lower", limits=(1.0, math.inf))


def nats_per_token(outputs: Iterable[Mapping[str, Any]]) -> Metric:
    """The logarithm of the perplexity: nats per token."""
    return dataclasses.replace(perplexity(outputs), of_sums=Ratio(), limits=(0.0, math.inf))


def confidence(output: Mapping[str, Any]) -> float:
    """The geometric mean of the probabilities of the generated tokens."""
    return float(np.exp(np.mean(output["log_probs"][: output["lengths"]], dtype=np.float64)))
