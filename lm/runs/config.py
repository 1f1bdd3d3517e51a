"""Everything that determines a run, in one frozen dataclass for pretraining and one for fine-tuning."""

import dataclasses
import re
from collections.abc import Mapping
from typing import Any

from lm.configuration import check_seed, from_config_dict
from lm.data.config import DataConfig, ExamplesConfig, TokenizerConfig
from lm.decoding.sampling import SamplingConfig
from lm.errors import UserError
from lm.modules.config import ModelConfig
from lm.modules.config import idle_settings as idle_model_settings
from lm.objectives.objective import ObjectiveConfig
from lm.objectives.registry import check_objective
from lm.objectives.registry import idle_settings as idle_objective_settings
from lm.tasks.registry import check_task
from lm.tasks.registry import idle_settings as idle_task_settings
from lm.tasks.supervised import TaskConfig

OPTIMIZERS = ("sgd", "momentum", "adam", "adamw", "adafactor", "lion", "muon")
SCHEDULES = ("constant", "cosine", "linear", "warmup_stable_decay", "inverse_square_root")
STRATEGIES = ("jit", "pmap")


@dataclasses.dataclass(frozen=True)
class OptimizerConfig:
    """How parameters are updated, validated on construction.

    Attributes:
      name: "sgd", "momentum", "adam", "adamw", "adafactor", "lion" or "muon" (Muon for the matrices inside the stack,
        Adam for everything else).
      learning_rate: the peak of the schedule.
      schedule: "constant", "cosine", "linear", "warmup_stable_decay" or "inverse_square_root", each after a linear
        warm-up from 0.
      warmup_steps: optimizer steps of warm-up.
      decay_fraction: the final fraction of training, in which "warmup_stable_decay" decays linearly.
      final_learning_rate: where "cosine", "linear" and "warmup_stable_decay" end, as a fraction of `learning_rate`.
      b1: decay of the first moment; also the momentum of "momentum" and "muon".
      b2: decay of the second moment.
      epsilon: added to the root of the second moment.
      weight_decay: decoupled: each step shrinks parameters by the learning rate times this. Not for "adam".
      decay_embeddings: whether weight decay and the penalties also apply to embeddings and the output matrix. They
        never apply to norms and biases.
      adam_learning_rate: for "muon", the rate of the parameters that Adam updates, as a fraction of `learning_rate`.
      clip_norm: gradients with a larger global norm are scaled down to it; 0: never.
      l1: weight of the sum of absolute values, added to the objective per step.
      l2: weight of half the sum of squares, added to the objective per step.
      layer_decay: each layer's learning rate is this times that of the layer above, down to the embeddings; heads use
        the full rate (Howard & Ruder 2018; Clark et al. 2020); 1: the same rate for all.
      freeze: regular expressions for paths of parameters that are not trained, such as "body/.*embedding".
      ema_decay: decay of an exponential moving average of the parameters, which evaluation and generation use; 0: no
        average.
    """

    name: str = "adamw"
    learning_rate: float = 1e-3
    schedule: str = "cosine"
    warmup_steps: int = 100
    decay_fraction: float = 0.2
    final_learning_rate: float = 0.1
    b1: float = 0.9
    b2: float = 0.95
    epsilon: float = 1e-8
    weight_decay: float = 0.1
    decay_embeddings: bool = True
    adam_learning_rate: float = 0.1
    clip_norm: float = 1.0
    l1: float = 0.0
    l2: float = 0.0
    layer_decay: float = 1.0
    freeze: tuple[str, ...] = ()
    ema_decay: float = 0.0

    def __post_init__(self):
        for name, known in (("name", OPTIMIZERS), ("schedule", SCHEDULES)):
            if getattr(self, name) not in known:
                raise UserError(
                    f"config.optimizer.{name} must be one of {', '.join(known)}; got {getattr(self, name)!r}"
                )
        for name in ("warmup_steps", "weight_decay", "clip_norm", "l1", "l2", "final_learning_rate"):
            if getattr(self, name) < 0:
                raise UserError(f"config.optimizer.{name} must not be negative, got {getattr(self, name)}")
        for name in ("b1", "b2", "ema_decay"):
            if not 0 <= getattr(self, name) < 1:
                raise UserError(f"config.optimizer.{name} must be in [0, 1), got {getattr(self, name)}")
        if not 0 < self.layer_decay <= 1:
            raise UserError(f"config.optimizer.layer_decay must be in (0, 1], got {self.layer_decay}")
        if isinstance(self.freeze, str):
            raise UserError(
                f"config.optimizer.freeze must be a tuple of patterns, got {self.freeze!r}: add a trailing comma"
            )
        for pattern in self.freeze:
            try:
                re.compile(pattern)
            except re.error as error:
                raise UserError(f"config.optimizer.freeze: {pattern!r} is not a regular expression: {error}") from error
        if not 0 < self.decay_fraction <= 1:
            raise UserError(f"config.optimizer.decay_fraction must be in (0, 1], got {self.decay_fraction}")
        for name in ("learning_rate", "adam_learning_rate", "epsilon"):
            if getattr(self, name) <= 0:
                raise UserError(f"config.optimizer.{name} must be positive, got {getattr(self, name)}")


@dataclasses.dataclass(frozen=True)
class PartitioningConfig:
    """How the work is divided among devices.

    Attributes:
      strategy: "jit" (a mesh) or "pmap" (data parallel, parameters replicated). Under "pmap" each device draws its own
        dropout masks, so with dropout the two give slightly different losses.
      data: devices along the axis `data`; -1: all that remain.
      fsdp: devices along the axis `fsdp`.
      tensor: devices along the axis `tensor`.
    """

    strategy: str = "jit"
    data: int = -1
    fsdp: int = 1
    tensor: int = 1

    def __post_init__(self):
        if self.strategy not in STRATEGIES:
            raise UserError(
                f"config.partitioning.strategy must be one of {', '.join(STRATEGIES)}; got {self.strategy!r}"
            )
        if self.strategy == "pmap" and (self.fsdp, self.tensor) != (1, 1):
            raise UserError(
                "config.partitioning.strategy=pmap replicates parameters: set fsdp=1 and tensor=1, or use jit"
            )
        if (self.data < 1 and self.data != -1) or self.fsdp < 1 or self.tensor < 1:
            raise UserError("config.partitioning: fsdp and tensor must be at least 1, and data too unless it is -1")


@dataclasses.dataclass(frozen=True)
class TrainingConfig:
    """How long to train, in what batches, and how often to evaluate, save and log.

    Attributes:
      steps: optimizer steps.
      batch_size: windows per step, over all devices.
      micro_batches: number of parts in which a batch is processed, to save memory; the step is the same.
      evaluation_batch_size: windows per batch in evaluation. None: `batch_size`.
      evaluate_every: steps between full passes over the validation split; the last step is always evaluated.
      checkpoint_every: steps between checkpoints; the last step is always saved.
      keep_checkpoints: how many of the newest to keep, in addition to the best.
      best_metric: validation metric by which checkpoints are compared: "loss", or another that the run logs, such as
        "accuracy", "f1_macro" or "bleu".
      patience: stop early after this many evaluations in a row without improvement; 0: never.
      log_every: steps between lines of training metrics.
      loader_threads: threads that prepare batches ahead of time.
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
      prompts: texts to continue, one sample each.
      sampling: how to sample.
    """

    prompts: tuple[str, ...] = ("",)
    sampling: SamplingConfig = SamplingConfig()


@dataclasses.dataclass(frozen=True)
class PredictionsConfig:
    """The predictions written when training ends, for `experiments.calibrate`.

    Attributes:
      tokens: roughly how many tokens of the validation split to predict; 0: none. Restarting a finished run with
        another number rewrites them.
    """

    tokens: int = 0

    def __post_init__(self):
        if self.tokens < 0:
            raise UserError(f"config.predictions.tokens must not be negative, got {self.tokens}")


@dataclasses.dataclass(frozen=True)
class PretrainConfig:
    """A pretraining run.

    Attributes:
      seed: for the initial weights, the order of the data, and dropout.
      init_from: work directory of a pretraining run, or a published model (hf:DIRECTORY, hf:owner/name or gguf:FILE),
        whose parameters and tokenizer to start from. A published model, imported or not, gives its shape too; `model`
        then only says how to execute it. Empty: start from scratch.
      init_checkpoint: which of its checkpoints: "best", "last" or a step.
      model: the network.
      data: the text.
      tokenizer: how text becomes tokens.
      objective: what is minimized.
      optimizer: how.
      training: how long.
      partitioning: on which devices.
      samples: what to write at the end.
      predictions: what to predict at the end.
      imported_from: the published model that the parameters are; set by experiments.import_model, which trains nothing.
      imported_type: its model_type, which an export tries first: some shapes belong to several families.
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
    imported_from: str = ""
    imported_type: str = ""

    def __post_init__(self):
        check_seed("config.seed", self.seed)
        check_objective(self.objective)
        self.model.check_lengths()


@dataclasses.dataclass(frozen=True)
class FinetuneConfig:
    """Training on a task with examples, starting from another run's parameters or random ones.

    Attributes:
      seed: for the initial weights, the order of the data, and dropout.
      init_from: work directory of a run, or a published model (hf:DIRECTORY, hf:owner/name or gguf:FILE). Its
        tokenizer and model shape are used; `model` then only says how to execute it (`lm.modules.config.EXECUTION`).
        Empty: start from scratch.
      init_checkpoint: which of its checkpoints: "best", "last" or a step.
      random_weights: with `init_from`, use its tokenizer and shape but not its parameters, to measure what they
        contribute.
      word_vectors: file of word vectors in the text format of GloVe or word2vec, used to initialize the token
        embedding.
      word_vectors_kept: how many of the file's first words (usually the most frequent) to add to a vocabulary of words
        from the training rows, so that words outside the training rows have vectors too.
      epochs: passes over the training rows, each with an evaluation and a checkpoint at its end; 0: `training.steps`,
        `training.evaluate_every` and `training.checkpoint_every` count.
      buckets: lengths to which examples are padded, in tokens; longer ones are padded to multiples of the last.
      model: the network.
      data: the rows.
      tokenizer: how text becomes tokens, without `init_from`.
      task: what to learn from the rows.
      optimizer: how parameters move.
      training: how long.
      partitioning: on which devices.
      imported_from: the published model that the parameters are; set by experiments.import_model, which trains nothing.
      imported_type: its model_type, which an export tries first: some shapes belong to several families.
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
    imported_from: str = ""
    imported_type: str = ""

    def __post_init__(self):
        check_seed("config.seed", self.seed)
        for name in ("epochs", "word_vectors_kept"):
            if getattr(self, name) < 0:
                raise UserError(f"config.{name} must not be negative, got {getattr(self, name)}")
        if self.random_weights and not self.init_from:
            raise UserError("config.random_weights needs config.init_from, whose parameters it leaves out: set it")
        if self.word_vectors and self.init_from and not self.random_weights:
            raise UserError(
                "config.word_vectors and config.init_from both initialize the token embedding: set only one"
            )
        check_task(self.task)
        if not self.init_from:  # its model may be longer
            self.model.check_lengths()
        if not self.buckets or min(self.buckets) < 1 or list(self.buckets) != sorted(set(self.buckets)):
            raise UserError(f"config.buckets must be increasing lengths, got {self.buckets}")

    @property
    def lengths(self) -> tuple[int, ...]:
        """The buckets, capped at the longest example."""
        return tuple(sorted({min(length, self.model.size_of_sequence) for length in self.buckets}))


RunConfig = PretrainConfig | FinetuneConfig


def stored_config(values: Mapping[str, Any], prefix: str) -> RunConfig:
    """The config of a run, as stored in its work directory.

    Runs of earlier versions may have settings without effect, which new runs may not. These are dropped.

    Args:
      values: from JSON.
      prefix: how to name the values in messages.

    Raises:
      UserError: if they do not form a config.
    """
    cleaned = dict(values)
    for group, idle in (("model", idle_model_settings), ("objective", _idle_objective), ("task", _idle_task)):
        if isinstance(values.get(group), Mapping):
            without_effect = idle(values[group])
            cleaned[group] = {name: value for name, value in values[group].items() if name not in without_effect}
    kind: type[RunConfig] = FinetuneConfig if "task" in values else PretrainConfig
    return from_config_dict(kind, cleaned, prefix)


def _idle_objective(values: Mapping[str, Any]) -> Mapping[str, str]:
    return idle_objective_settings(values.get("name", ObjectiveConfig.name))


def _idle_task(values: Mapping[str, Any]) -> Mapping[str, str]:
    return idle_task_settings(values.get("name", TaskConfig.name))


# A run may resume with other values of these: they change where and how often, not what is computed.
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
# And it may become longer.
FREE_TO_GROW: tuple[str, ...] = ("epochs", "training.steps")
