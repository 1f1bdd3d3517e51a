"""What tasks with examples share: rows in, arrays through a model, results out.

A row is one example of a file, by column: texts, labels, words, tags, answers. A task turns rows into examples, which
are batched (`lm.data.example_batches`), and turns the model's predictions into results: metrics with intervals,
human-readable records, and predictions for `experiments.calibrate`.
"""

import dataclasses
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, ClassVar, NamedTuple, Protocol

import numpy as np
from jax import Array
from jax.sharding import Mesh

from lm.calibration.predictions import Predictions
from lm.data.tokenizers import Tokenizer
from lm.errors import UserError
from lm.evaluation.generation import TOKENIZERS
from lm.modules.config import ModelConfig
from lm.statistics.metrics import Metric
from lm.types import Batch, Params

Row = Mapping[str, Any]
Example = dict[str, np.ndarray]


@dataclasses.dataclass(frozen=True)
class TaskConfig:
    """The task and its settings.

    Ranges are checked on construction; the name and settings that the chosen task doesn't use are checked by
    `lm.tasks.registry.check_task`, as every `FinetuneConfig` does.

    Attributes:
      name: "classification" (of one text, or of a text and its pair), "tagging" (a tag for each word),
        "question_answering" (the span of a context that answers a question, or none), "sequence_to_sequence"
        (translation, summarization) or "completion" (of a prompt, by a decoder).
      pair: for "classification": whether rows have a second text, in the column `pair`.
      classes: names of the classes or tags, in their order. Empty: those of the training rows, sorted.
      truncate: truncate texts that are longer than `config.model.sequence_length`, and count them; otherwise they are
        an error.
      label_smoothing: the probability mass of each target that is spread uniformly over the classes (Szegedy et al.
        2016).
      focal_gamma: weights each item's loss by (1 - p)^gamma, p being its class's probability (Lin et al. 2017); 0: off.
      mixup: the parameter of the Beta distribution that mixes the representations and the labels of two texts (Zhang et
        al. 2018; for sentences: Guo et al. 2019), for "classification"; 0: off.
      class_weights: "none", "balanced" (inverse to their frequency in the training rows) or weights in the order of the
        classes, such as "1,2.5".
      stride: for "question_answering": number of tokens by which consecutive windows of a long context overlap.
      max_answer_length: for "question_answering": the longest answer, in tokens.
      unanswerable: for "question_answering": whether a question may have no answer (SQuAD 2.0: Rajpurkar et al. 2018).
      prefix: for "sequence_to_sequence": text put before each source (T5's "translate German to English: ").
      max_target_length: for "sequence_to_sequence" and "completion": the longest text generated, in tokens.
      beams: for "sequence_to_sequence": number of beams (1: greedy).
      metric_tokenizer: for "sequence_to_sequence" and "completion": how BLEU and ROUGE split texts into words, by
        sacreBLEU's names: "13a" (English and similar languages), "intl" (any language with spaces), "zh", "ja-mecab",
        "ko-mecab", "char", "flores101", "flores200" or "none".
      length_penalty: for beam search: scores are divided by length to this power (Wu et al. 2016, simplified).
    """

    name: str = "classification"
    pair: bool = False
    classes: tuple[str, ...] = ()
    truncate: bool = False
    label_smoothing: float = 0.0
    focal_gamma: float = 0.0
    mixup: float = 0.0
    class_weights: str = "none"
    stride: int = 64
    max_answer_length: int = 30
    unanswerable: bool = False
    prefix: str = ""
    max_target_length: int = 64
    beams: int = 4
    length_penalty: float = 1.0
    metric_tokenizer: str = "13a"

    def __post_init__(self):
        if not 0 <= self.label_smoothing < 1:
            raise UserError(f"config.task.label_smoothing must be in [0, 1), got {self.label_smoothing}")
        for name in ("focal_gamma", "mixup", "stride", "length_penalty"):
            if getattr(self, name) < 0:
                raise UserError(f"config.task.{name} must not be negative, got {getattr(self, name)}")
        for name in ("max_answer_length", "max_target_length", "beams"):
            if getattr(self, name) < 1:
                raise UserError(f"config.task.{name} must be at least 1, got {getattr(self, name)}")
        if len(self.classes) == 1 or len(set(self.classes)) < len(self.classes) or not all(self.classes):
            raise UserError(f"config.task.classes must be two or more different names, got {', '.join(self.classes)!r}")
        if self.metric_tokenizer not in TOKENIZERS:
            known = ", ".join(TOKENIZERS)
            raise UserError(f"config.task.metric_tokenizer must be one of {known}; got {self.metric_tokenizer!r}")


@dataclasses.dataclass(frozen=True)
class Results:
    """A task's results for some rows.

    Attributes:
      metrics: by name, the most important first.
      records: one for each row, JSON-compatible: the row, the prediction and its confidence.
      predictions: for calibration; None for tasks without class logits.
      confusion_CC: how often class i (row) was predicted as class j (column); None for tasks without classes.
      class_names: of the C classes.
      signatures: exactly how a metric was computed, if there is a standard notation (sacreBLEU).
    """

    metrics: dict[str, Metric]
    records: list[dict[str, Any]]
    predictions: Predictions | None = None
    confusion_CC: np.ndarray | None = None
    class_names: tuple[str, ...] = ()
    signatures: dict[str, str] = dataclasses.field(default_factory=dict)


class Encoded(NamedTuple):
    """Rows as arrays.

    Attributes:
      examples: of the rows in order; a row may have several.
      cut: how many rows were too long and were truncated, which `TaskConfig.truncate` allows.
      notes: what else the user should know of these rows, a line each.
    """

    examples: list[Example]
    cut: int
    notes: tuple[str, ...] = ()


class Columns(NamedTuple):
    """Names of the columns of rows.

    Attributes:
      needed: required by the task.
      possible: used if present.
    """

    needed: tuple[str, ...]
    possible: tuple[str, ...] = ()


class SupervisedTask(Protocol):
    """A task with examples. `lm.tasks.registry` holds the table of their names.

    Attributes:
      settings: the settings of `TaskConfig` that it uses.
      unit: what a batch's weight counts: "examples" or "tokens".
    """

    settings: ClassVar[tuple[str, ...]]
    unit: ClassVar[str]

    @classmethod
    def from_config(
        cls,
        config: TaskConfig,
        model: ModelConfig,
        tokenizer: Tokenizer,
        mesh: Mesh | None,
        classes: tuple[str, ...],
        train_rows: Sequence[Row],
    ) -> "SupervisedTask":
        """The task with its model. Arguments as in `lm.tasks.registry.make_supervised_task`.

        Raises:
          UserError: if the shape of the model or the tokenizer doesn't fit.
        """

    @classmethod
    def columns(cls, config: TaskConfig) -> Columns:
        """The columns of its rows."""

    @classmethod
    def texts(cls, config: TaskConfig, rows: Sequence[Row]) -> list[str]:
        """All texts of the rows, for training a tokenizer."""

    @classmethod
    def labels(cls, rows: Sequence[Row]) -> Iterable[str] | None:
        """Class names of the rows, with repetitions; None for a task without classes."""

    @property
    def axes(self) -> Mapping[str, str]:
        """The axis along which each array of an example is padded, such as {"tokens": "T"}.

        Arrays that share an axis are padded to the same length. Arrays not listed here are scalars.
        """

    @property
    def padding(self) -> Mapping[str, int]:
        """The value to pad each array with; 0 by default."""

    def encode(self, rows: Sequence[Row]) -> Encoded:
        """Arrays of the rows. If rows lack labels or targets, only what `predict` needs.

        Raises:
          UserError: for rows that don't fit the task; names their place in the file.
        """

    def init(self, key: Array) -> Params:
        """Random parameters."""

    def loss(self, params: Params, batch: Batch, dropout_key: Array | None) -> tuple[Array, dict[str, Array]]:
        """The objective's weighted sum, and weighted sums to report, `weight` among them.

        `batch["row_weights"]` [B] is 0 for filler rows.
        """

    def predict(self, params: Params, batch: Batch) -> dict[str, Array]:
        """What `results` needs from the model: arrays with the leading axis B. Compiled by the caller."""

    def results(self, rows: Sequence[Row], examples: Sequence[Example], outputs: Sequence[dict[str, Any]]) -> Results:
        """Turns predictions into results.

        Args:
          rows: as given to `encode`.
          examples: from `encode`, for these rows.
          outputs: for each example, its part of the output of `predict`: NumPy arrays without the batch axis, padded as
            in the batch.
        """


def has_column(rows: Sequence[Row], name: str) -> bool:
    """Whether every row has this column."""
    return all(name in row for row in rows)
