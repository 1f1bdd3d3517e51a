"""Tagging: a tag for each word, as for named entities (Ramshaw & Marcus 1995; with BERT: Devlin et al. 2019).

A word may have several tokens. Its first token predicts the tag; the others have no weight.

Axes: B batch (sentences), T positions (tokens), W words of all sentences, C tags.
"""

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any, ClassVar

import jax
import numpy as np
from jax import Array
from jax.sharding import Mesh
from scipy import special

from lm.calibration.predictions import Predictions
from lm.data.tokenizers import Tokenizer
from lm.errors import UserError
from lm.evaluation.classification import classification_metrics, confusion_matrix
from lm.evaluation.tagging import OUTSIDE, entity_metrics, entity_scheme
from lm.evaluation.token_statistics import token_statistics
from lm.models.heads import TokenClassifier
from lm.modules.config import ModelConfig
from lm.statistics.metrics import SHARE, mean_metric
from lm.tasks import text_encoding
from lm.tasks.classification_loss import ClassificationLoss
from lm.tasks.supervised import Columns, Encoded, Example, Results, Row, TaskConfig, has_column
from lm.types import Batch, Params


@dataclasses.dataclass(frozen=True)
class TokenClassification:
    """The task, as in `lm.tasks.supervised.SupervisedTask`.

    An example holds `tokens`, `segments`, `types`, `targets` (tag indices, int32) and `weights` (float32, 1 where a
    word begins), each [T].

    Attributes:
      model: the network.
      tokenizer: for the words.
      tags: their names, in the order of the classes.
      objective: the loss of a word.
      truncate: whether sentences may be longer than the longest sequence. Words beyond that are predicted "O".
    """

    settings: ClassVar[tuple[str, ...]] = ("classes", "truncate", "label_smoothing", "focal_gamma", "class_weights")
    unit: ClassVar[str] = "tokens"
    axes: ClassVar[Mapping[str, str]] = text_encoding.AXES | {"targets": "T", "weights": "T"}
    padding: ClassVar[Mapping[str, int]] = {}

    model: TokenClassifier
    tokenizer: Tokenizer
    tags: tuple[str, ...]
    objective: ClassificationLoss
    truncate: bool = False

    def __post_init__(self):
        entity_scheme(self.tags)
        if self.truncate and OUTSIDE not in self.tags:
            raise UserError(
                f"config.task.truncate=True needs a tag {OUTSIDE!r} for truncated words: set it to False and "
                f"raise {self.model.config.length_setting}"
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
    ) -> "TokenClassification":
        """The task with its model, as in `lm.tasks.supervised.SupervisedTask`."""
        loss = ClassificationLoss.from_config(config, classes, cls.labels(train_rows))
        return cls(TokenClassifier(model, len(classes), mesh), tokenizer, classes, loss, config.truncate)

    @classmethod
    def columns(cls, config: TaskConfig) -> Columns:
        """`words` and `tags`."""
        return Columns(("words", "tags"))

    @classmethod
    def texts(cls, config: TaskConfig, rows: Sequence[Row]) -> list[str]:
        """The sentences, with a space between words."""
        return [" ".join(row["words"]) for row in rows]

    @classmethod
    def labels(cls, rows: Sequence[Row]) -> list[str]:
        """The tags of the words."""
        return [tag for row in rows for tag in row["tags"]]

    def encode(self, rows: Sequence[Row]) -> Encoded:
        """An example for each sentence; without `targets` where the rows have no tags.

        Raises:
          UserError: for an unknown tag, or a sentence that is too long.
        """
        config = self.model.config
        layout = text_encoding.Layout.of(self.tokenizer, config.architecture)
        room = layout.room(config, pair=False)
        encoded = [self.tokenizer.encode_words(row["words"]) for row in rows]
        lengths, places = [len(ids) for ids, _ in encoded], [row["place"] for row in rows]
        cut = text_encoding.check_lengths(lengths, room, config, self.truncate, places)
        examples = [self._example(layout, ids[:room], np.array(words[:room])) for ids, words in encoded]
        if has_column(rows, "tags"):
            first = len(layout.before)
            for row, example, (_, words) in zip(rows, examples, encoded, strict=True):
                targets = np.zeros_like(example["tokens"])
                targets[first : first + len(words[:room])] = tag_numbers(row, self.tags)[words[:room]]
                example["targets"] = targets
        return Encoded(examples, cut)

    def init(self, key: Array) -> Params:
        """Random parameters."""
        nothing = np.zeros((1, 1), np.int32)
        return self.model.init(key, nothing, nothing, nothing)["params"]

    def loss(self, params: Params, batch: Batch, dropout_key: Array | None) -> tuple[Array, dict[str, Array]]:
        """The objective summed over words, and sums by name: `weight` (of words), `loss`, `objective`, `accuracy`."""
        logits_BTC = self._logits(params, batch, dropout_key)
        statistics = token_statistics(logits_BTC, batch["targets"])
        objective_BT = self.objective(logits_BTC, jax.nn.one_hot(batch["targets"], len(self.tags)))
        weights_BT = batch["weights"] * batch["row_weights"][:, None]
        total = (weights_BT * objective_BT).sum()
        sums = {
            "weight": weights_BT.sum(),
            "loss": (weights_BT * statistics.nll).sum(),
            "objective": total,
            "accuracy": (weights_BT * statistics.correct).sum(),
        }
        return total, sums

    def predict(self, params: Params, batch: Batch) -> dict[str, Array]:
        """`logits` [B, T, C]."""
        return {"logits": self._logits(params, batch, None)}

    def results(self, rows: Sequence[Row], examples: Sequence[Example], outputs: Sequence[dict[str, Any]]) -> Results:
        """See `tagging_results`."""
        return tagging_results(rows, word_logits(examples, outputs), self.tags)

    def _logits(self, params: Params, batch: Batch, dropout_key: Array | None) -> Array:
        rngs = {} if dropout_key is None else {"dropout": dropout_key}
        inputs = (batch["tokens"], batch["segments"], batch["types"])
        return self.model.apply({"params": params}, *inputs, rngs=rngs)

    def _example(self, layout: text_encoding.Layout, ids: Sequence[int], words_T: np.ndarray) -> Example:
        """The example of a sentence without tags, from its tokens and each token's word."""
        example = layout.join(ids)
        weights = np.zeros(example["tokens"].size, np.float32)
        weights[len(layout.before) : len(layout.before) + len(ids)] = np.diff(words_T, prepend=-1) != 0
        return example | {"weights": weights}


def word_logits(examples: Sequence[Example], outputs: Sequence[Mapping[str, Any]]) -> list[np.ndarray]:
    """The logits at each sentence's words, [W, C]; truncated words have none."""
    return [
        np.asarray(output["logits"], np.float32)[np.flatnonzero(example["weights"])]
        for example, output in zip(examples, outputs, strict=True)
    ]


def tagging_results(rows: Sequence[Row], logits: Sequence[np.ndarray], tags: tuple[str, ...]) -> Results:
    """Entity metrics, or word metrics if the tags mark no entities (`lm.evaluation.tagging.entity_scheme`).

    A word's confidence is the probability of the tag predicted for it. Truncated words count as tagged "O", with a
    confidence of None, and the metric `cut_off` is their share. They are not among the `predictions`, since the model
    did not predict them; all other words are, in clusters by sentence.

    Args:
      rows: with `words`, `tags` and `place`.
      logits: of the first words of each row, or of all, [W, C].
      tags: names of the C tags.

    Raises:
      UserError: if a row has an unknown tag.
    """
    records = [_record(*each, tags) for each in zip(rows, logits, strict=True)]
    labels_W, predicted_W = (
        np.concatenate([tag_numbers(record | {"tags": record[name]}, tags) for record in records])
        for name in ("tags", "predicted")
    )
    seen_W = np.array([confidence is not None for record in records for confidence in record["confidence"]])
    places_W = np.array([row["place"] for row in rows for _ in row["words"]])
    ids_W = np.array([f"{row['place']} word {number + 1}" for row in rows for number in range(len(row["words"]))])
    predictions = Predictions(
        np.concatenate(logits).astype(np.float32), labels_W[seen_W], ids_W[seen_W], places_W[seen_W], tags
    )
    scheme, signatures = entity_scheme(tags), {}
    if scheme:
        metrics = entity_metrics([row["tags"] for row in rows], [record["predicted"] for record in records])
        signatures = {"f1": f"of entities, which the tags mark in the scheme {scheme}; as conlleval counts them"}
    else:
        metrics = classification_metrics(labels_W, predicted_W, tags, places_W)
    if not seen_W.all():
        metrics["cut_off"] = mean_metric(~seen_W, better="lower", limits=SHARE).in_clusters(places_W)
    confusion_CC = confusion_matrix(labels_W, predicted_W, len(tags))
    return Results(metrics, records, predictions, confusion_CC, tags, signatures)


def tag_numbers(row: Row, tags: Sequence[str]) -> np.ndarray:
    """The tag index of each word, int32.

    Raises:
      UserError: if a tag is not among `tags`.
    """
    number_of = {tag: number for number, tag in enumerate(tags)}
    unknown = sorted(set(row["tags"]) - set(tags))
    if unknown:
        raise UserError(
            f"{row['place']}: the tag {unknown[0]!r} is not among the tags {', '.join(tags)}: fix the row, or name all "
            "tags in config.task.classes"
        )
    return np.array([number_of[tag] for tag in row["tags"]], np.int32)


def _record(row: Row, logits_WC: np.ndarray, tags: Sequence[str]) -> dict[str, Any]:
    """A human-readable record of a sentence, of which the first words have logits."""
    cut = len(row["words"]) - len(logits_WC)
    confidence_W = special.softmax(logits_WC, axis=1).max(axis=1)
    return {
        "place": row["place"],
        "words": list(row["words"]),
        "tags": list(row["tags"]),
        "predicted": [tags[number] for number in logits_WC.argmax(axis=1)] + [OUTSIDE] * cut,
        "confidence": [float(p) for p in confidence_W] + [None] * cut,
    }
