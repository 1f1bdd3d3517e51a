"""Everything that determines a pretraining run, in one frozen dataclass."""

import dataclasses

from lm.data.config import DataConfig, ExamplesConfig, TokenizerConfig
from lm.decoding.sampling import SamplingConfig
from lm.errors import UserError
from lm.modules.config import ModelConfig
from lm.objectives.objective import ObjectiveConfig
from lm.tasks.supervised import TaskConfig
from lm.training.optimizers import OptimizerConfig
from lm.training.partitioning import PartitioningConfig


@dataclasses.dataclass(frozen=True)
class TrainingConfig:
    """How long to train, in what portions, and when to look up from it.

    Attributes:
      steps: optimizer steps.
      batch_size: windows in a step, over all devices.
      micro_batches: the batch is worked off in so many parts to save memory; it is the same step.
      evaluation_batch_size: windows at a time in evaluation. None: `batch_size`.
      evaluate_every: steps between full passes over the validation split; the last step always has one.
      checkpoint_every: steps between checkpoints; the last step always has one.
      keep_checkpoints: how many of the newest to keep, besides the best.
      best_metric: of the validation split, by which checkpoints are judged: "loss", or another that the run logs, such
        as "accuracy", "f1_macro" or "bleu".
      patience: stop early when so many evaluations in a row brought no better one; 0: never.
      log_every: steps between lines of training metrics.
      loader_threads: threads that prepare batches ahead.
    """

    steps: int = 1000
    batch_size: int = 16
    micro_batches: int = 1
    evaluation_batch_size: int | None = None
    evaluate_every: int = 250
    checkpoint_every: int = 250
    keep_checkpoints: int = 2
    best_metric: str = "loss"
    patience: int = 0
    log_every: int = 10
    loader_threads: int = 1

    def __post_init__(self):
        for field in dataclasses.fields(self):
            value, least = getattr(self, field.name), 0 if field.name == "patience" else 1
            if isinstance(value, int) and value < least:
                raise UserError(f"config.training.{field.name} must be at least {least}, got {value}")
        if not self.best_metric:
            raise UserError("config.training.best_metric must name a metric, such as loss")
        if self.batch_size % self.micro_batches:
            raise UserError(
                f"config.training.micro_batches={self.micro_batches} does not divide "
                f"config.training.batch_size={self.batch_size}"
            )


@dataclasses.dataclass(frozen=True)
class SamplesConfig:
    """The samples written when training ends.

    Attributes:
      prompts: one sample continues each of these texts.
      sampling: how.
    """

    prompts: tuple[str, ...] = ("",)
    sampling: SamplingConfig = SamplingConfig()


@dataclasses.dataclass(frozen=True)
class PredictionsConfig:
    """The predictions written when training ends, for `experiments.calibrate`.

    Attributes:
      tokens: how many tokens of the validation split to predict, about; 0: none. A finished run writes them when it is
        started again with another number.
    """

    tokens: int = 0

    def __post_init__(self):
        if self.tokens < 0:
            raise UserError(f"config.predictions.tokens must not be negative, got {self.tokens}")


@dataclasses.dataclass(frozen=True)
class PretrainConfig:
    """A pretraining run.

    Attributes:
      seed: of the initial weights, the order of the data, and dropout.
      init_from: work directory of a pretraining run, with whose parameters and tokenizer to begin. Empty: begin anew.
      init_checkpoint: which checkpoint of it: "best", "last" or a step.
      model: the network.
      data: the text.
      tokenizer: how text becomes tokens.
      objective: what is minimized.
      optimizer: how.
      training: how long.
      partitioning: over which devices.
      samples: what to write at the end.
      predictions: what to predict at the end.
    """

    seed: int = 0
    init_from: str = ""
    init_checkpoint: str = "best"
    model: ModelConfig = ModelConfig()
    data: DataConfig = DataConfig()
    tokenizer: TokenizerConfig = TokenizerConfig()
    objective: ObjectiveConfig = ObjectiveConfig()
    optimizer: OptimizerConfig = OptimizerConfig()
    training: TrainingConfig = TrainingConfig()
    partitioning: PartitioningConfig = PartitioningConfig()
    samples: SamplesConfig = SamplesConfig()
    predictions: PredictionsConfig = PredictionsConfig()


@dataclasses.dataclass(frozen=True)
class FinetuneConfig:
    """Training on a task with examples, from another run's parameters or from random ones.

    Attributes:
      seed: of the initial weights, the order of the data, and dropout.
      init_from: work directory of a run of ours. Its tokenizer and the shape of its model are used; of `model`, what
        doesn't shape parameters (dropout, dtypes, attention, rematerialize). Empty: begin anew.
      init_checkpoint: which checkpoint of it: "best", "last" or a step.
      random_weights: with `init_from`, take its tokenizer and shape and leave its parameters: what did they bring?
      word_vectors: file of word vectors in the text format of GloVe or word2vec, from which the token embedding starts.
      word_vectors_kept: how many of the file's first words, the most frequent in the usual files, a vocabulary of words
        gets besides those of the training rows: so words that no training row has are known by their vectors.
      epochs: passes over the training rows, each with an evaluation and a checkpoint at its end; 0: `training.steps`,
        `training.evaluate_every` and `training.checkpoint_every` count.
      buckets: lengths to which examples are padded, in tokens; longer ones to multiples of the last.
      model: the network.
      data: the rows.
      tokenizer: how text becomes tokens, without `init_from`.
      task: what to learn from the rows.
      optimizer: how parameters move.
      training: how long.
      partitioning: over which devices.
    """

    seed: int = 0
    init_from: str = ""
    init_checkpoint: str = "best"
    random_weights: bool = False
    word_vectors: str = ""
    word_vectors_kept: int = 50_000
    epochs: int = 0
    buckets: tuple[int, ...] = (16, 32, 64, 128, 256, 512)
    model: ModelConfig = ModelConfig(architecture="encoder")
    data: ExamplesConfig = ExamplesConfig()
    tokenizer: TokenizerConfig = TokenizerConfig()
    task: TaskConfig = TaskConfig()
    optimizer: OptimizerConfig = OptimizerConfig()
    training: TrainingConfig = TrainingConfig()
    partitioning: PartitioningConfig = PartitioningConfig()

    def __post_init__(self):
        for name in ("epochs", "word_vectors_kept"):
            if getattr(self, name) < 0:
                raise UserError(f"config.{name} must not be negative, got {getattr(self, name)}")
        if self.random_weights and not self.init_from:
            raise UserError("config.random_weights says not to load the parameters of config.init_from: name one")
        if self.word_vectors and self.init_from and not self.random_weights:
            raise UserError(
                "config.word_vectors and config.init_from both give a token embedding to begin with: leave one out"
            )
        if not self.buckets or min(self.buckets) < 1 or list(self.buckets) != sorted(set(self.buckets)):
            raise UserError(f"config.buckets must be lengths in rising order, got {self.buckets}")

    @property
    def lengths(self) -> tuple[int, ...]:
        """The buckets, none of them longer than the model's longest sequence."""
        return tuple(sorted({min(length, self.model.max_length) for length in self.buckets}))


RunConfig = PretrainConfig | FinetuneConfig

# A run may go on with other values of these: they change where and how often, not what.
FREE_TO_CHANGE: tuple[str, ...] = (
    "partitioning.",
    "samples.",
    "predictions.",
    "data.cache_dir",
    "training.evaluation_batch_size",
    "training.checkpoint_every",
    "training.keep_checkpoints",
    "training.loader_threads",
)
