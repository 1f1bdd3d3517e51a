"""Everything that determines a pretraining run, in one frozen dataclass."""

import dataclasses

from lm.data.config import DataConfig, TokenizerConfig
from lm.decoding.sampling import SamplingConfig
from lm.errors import UserError
from lm.modules.config import ModelConfig
from lm.tasks.causal_lm import ObjectiveConfig
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
    log_every: int = 10
    loader_threads: int = 1

    def __post_init__(self):
        for field in dataclasses.fields(self):
            value = getattr(self, field.name)
            if value is not None and value < 1:
                raise UserError(f"config.training.{field.name} must be at least 1, got {value}")
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
    model: ModelConfig = ModelConfig()
    data: DataConfig = DataConfig()
    tokenizer: TokenizerConfig = TokenizerConfig()
    objective: ObjectiveConfig = ObjectiveConfig()
    optimizer: OptimizerConfig = OptimizerConfig()
    training: TrainingConfig = TrainingConfig()
    partitioning: PartitioningConfig = PartitioningConfig()
    samples: SamplesConfig = SamplesConfig()
    predictions: PredictionsConfig = PredictionsConfig()


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
