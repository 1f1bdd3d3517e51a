"""Classification of a text, or of a text and its pair: sentiment, topic, inference, matching.

Axes: B batch, T positions, C classes, N rows.
"""

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any, ClassVar

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array
from jax.sharding import Mesh
from scipy import special

from lm.calibration.predictions import Predictions
from lm.data.tokenizers import Tokenizer
from lm.errors import UserError
from lm.evaluation.classification import classification_metrics, confusion_matrix
from lm.models.heads import SequenceClassifier
from lm.modules.config import RECURRENT, ModelConfig
from lm.tasks import text_encoding
from lm.tasks.classification_loss import ClassificationLoss
from lm.tasks.supervised import Columns, Encoded, Example, Results, Row, TaskConfig, has_column
from lm.types import Batch, Params


@dataclasses.dataclass(frozen=True)
class SequenceClassification:
    """The task, as pure functions of (parameters, batch).

    Attributes:
      model: a body and its head.
      config: of the task.
      tokenizer: how texts become tokens.
      classes: names of the C classes.
      loss_of: the loss of each text.
    """

    model: SequenceClassifier
    config: TaskConfig
    tokenizer: Tokenizer
    classes: tuple[str, ...]
    loss_of: ClassificationLoss = ClassificationLoss()

    settings: ClassVar[tuple[str, ...]] = (
        "pair",
        "classes",
        "truncate",
        "label_smoothing",
        "focal_gamma",
        "mixup",
        "class_weights",
    )
    unit: ClassVar[str] = "examples"
    axes: ClassVar[Mapping[str, str]] = text_encoding.AXES
    padding: ClassVar[Mapping[str, int]] = {}

    @classmethod
    def from_config(
        cls,
        config: TaskConfig,
        model: ModelConfig,
        tokenizer: Tokenizer,
        mesh: Mesh | None,
        classes: tuple[str, ...],
        train_rows: Sequence[Row],
    ) -> "SequenceClassification":
        """The task with its model, as in `lm.tasks.supervised.SupervisedTask`."""
        compares = config.pair and model.architecture in RECURRENT
        network = SequenceClassifier(model, len(classes), mesh, compares)
        loss = ClassificationLoss.from_config(config, classes, cls.labels(train_rows))
        return cls(network, config, tokenizer, classes, loss)

    @classmethod
    def columns(cls, config: TaskConfig) -> Columns:
        """`text`, `label` and, where texts have one, `pair`."""
        return Columns(("text", "label", "pair")) if config.pair else Columns(("text", "label"), ("pair",))

    @classmethod
    def texts(cls, config: TaskConfig, rows: Sequence[Row]) -> list[str]:
        """The texts and their pairs."""
        return [row[name] for row in rows for name in (("text", "pair") if config.pair else ("text",))]

    @classmethod
    def labels(cls, rows: Sequence[Row]) -> list[str]:
        """The labels of the texts."""
        return [row["label"] for row in rows]

    def encode(self, rows: Sequence[Row]) -> Encoded:
        """`tokens`, `segments` and `types` [T] and the `label` of each row. Without labels, the first three.

        Raises:
          UserError: for a row that is too long, has an unknown label, or lacks its pair.
        """
        labels_N = label_numbers(rows, self.classes) if has_column(rows, "label") else None
        encoded = text_encoding.encode_texts(
            self.tokenizer,
            self.model.config,
            [row["text"] for row in rows],
            _pairs(rows) if self.config.pair else None,
            self.config.truncate,
            [row["place"] for row in rows],
        )
        if labels_N is None:
            return encoded
        examples = [{**example, "label": label} for example, label in zip(encoded.examples, labels_N, strict=True)]
        return encoded._replace(examples=examples)

    def init(self, key: Array) -> Params:
        """Random parameters."""
        ones_BT = jnp.ones((1, 2), jnp.int32)
        return self.model.init(key, ones_BT, ones_BT, ones_BT)["params"]

    def loss(self, params: Params, batch: Batch, dropout_key: Array | None) -> tuple[Array, dict[str, Array]]:
        """The objective summed over texts, and sums to report: `weight` (texts), `loss` (NLL), `objective`, `accuracy`.

        With mixup they are all computed on mixed texts and labels.
        """
        target_BC = jax.nn.one_hot(batch["label"], len(self.classes))
        weight_B = batch["row_weights"]
        mixing = {}
        if self.config.mixup and dropout_key is not None:
            share_B, partner_B = self._mixture(dropout_key, weight_B)
            mixing = {"mix_B": share_B, "partner_B": partner_B}
            target_BC = share_B[:, None] * target_BC + (1 - share_B)[:, None] * target_BC[partner_B]
        logits_BC = self._logits(params, batch, dropout_key, **mixing)
        nll_B = -(target_BC * jax.nn.log_softmax(logits_BC)).sum(axis=-1)
        right_B = jnp.take_along_axis(target_BC, logits_BC.argmax(axis=-1)[:, None], axis=1)[:, 0]
        total = (weight_B * self.loss_of(logits_BC, target_BC)).sum()
        sums = {"loss": (weight_B * nll_B).sum(), "accuracy": (weight_B * right_B).sum()}
        return total, {"weight": weight_B.sum(), "objective": total, **sums}

    def predict(self, params: Params, batch: Batch) -> dict[str, Array]:
        """`logits`, [B, C]."""
        return {"logits": self._logits(params, batch, None)}

    def results(self, rows: Sequence[Row], examples: Sequence[Example], outputs: Sequence[dict[str, Any]]) -> Results:
        """See `classification_results`."""
        return classification_results(rows, np.stack([output["logits"] for output in outputs]), self.classes)

    def _logits(self, params: Params, batch: Batch, dropout_key: Array | None, **mixing: Array) -> Array:
        rngs = {} if dropout_key is None else {"dropout": dropout_key}
        inputs = batch["tokens"], batch["segments"], batch["types"]
        return self.model.apply({"params": params}, *inputs, rngs=rngs, **mixing)

    def _mixture(self, key: Array, weight_B: Array) -> tuple[Array, Array]:
        """The weight of each text's own vector, and the row that it is mixed with: its neighbour in the batch."""
        batch = weight_B.shape[0]
        share_B = jax.random.beta(jax.random.fold_in(key, 1), self.config.mixup, self.config.mixup, (batch,))
        partner_B = jnp.roll(jnp.arange(batch), 1)
        # Filler rows are not texts to mix with.
        return jnp.where(weight_B[partner_B] > 0, jnp.maximum(share_B, 1 - share_B), 1.0), partner_B


def classification_results(rows: Sequence[Row], logits_NC: np.ndarray, classes: tuple[str, ...]) -> Results:
    """Accuracy and related metrics; each text's prediction and its probability.

    Args:
      rows: with `text`, `label` and perhaps `pair`.
      logits_NC: of each row.
      classes: names of the C classes.

    Raises:
      UserError: if a row has an unknown label.
    """
    labels_N = label_numbers(rows, classes)
    predicted_N = logits_NC.argmax(axis=1)
    probabilities_NC = special.softmax(logits_NC, axis=-1)
    records = [
        {
            **{name: row[name] for name in ("place", "text", "pair", "label") if name in row},
            "predicted": classes[best],
            "confidence": float(p_C[best]),
            "probabilities": {name: float(p) for name, p in zip(classes, p_C, strict=True)},
        }
        for row, best, p_C in zip(rows, predicted_N, probabilities_NC, strict=True)
    ]
    places_N = np.array([row["place"] for row in rows])
    return Results(
        metrics=classification_metrics(labels_N, predicted_N, classes),
        records=records,
        predictions=Predictions(logits_NC.astype(np.float32), labels_N, places_N, None, classes),
        confusion_CC=confusion_matrix(labels_N, predicted_N, len(classes)),
        class_names=classes,
    )


def label_numbers(rows: Sequence[Row], classes: Sequence[str]) -> np.ndarray:
    """The class index of each row, int32.

    Raises:
      UserError: if it is not among the classes.
    """
    number = {name: index for index, name in enumerate(classes)}
    for row in rows:
        if row["label"] not in number:
            raise UserError(
                f"{row['place']}: the label {row['label']!r} is not among the classes {', '.join(classes)}: fix the "
                "row, or name all classes in config.task.classes"
            )
    return np.array([number[row["label"]] for row in rows], np.int32)


def _pairs(rows: Sequence[Row]) -> list[str]:
    for row in rows:
        if "pair" not in row:
            raise UserError(f"{row['place']}: the row has no pair, which config.task.pair requires")
    return [row["pair"] for row in rows]
