"""What pretraining objectives share: windows of text in, token predictions and weighted sums out.

Each objective is a file with a task: a frozen dataclass around a model that makes its batches (`train_batches`,
`validation_batches`) and predicts tokens from them. This file holds what they all do with the predictions.
`lm.objectives.registry` holds the table of their names.

Axes: B batch, T predicted tokens of a row, V vocabulary, D model width.
"""

import abc
import dataclasses
from typing import Any, ClassVar, Protocol

import flax.linen as nn
import jax.numpy as jnp
from jax import Array
from jax.sharding import Mesh

from lm.data.segmentation import SEGMENTERS
from lm.data.store import Corpus
from lm.data.tokenizers import Tokenizer
from lm.errors import UserError
from lm.evaluation.token_reliability import TokenBuckets, reliability_sums
from lm.evaluation.token_statistics import TokenStatistics
from lm.modules.config import ModelConfig
from lm.modules.linear_cross_entropy import TokenLoss, linear_cross_entropy, linear_token_statistics
from lm.types import Batch, Batches, Params

MASKINGS = ("token", "whole_word", "span")
POOLINGS = ("mean", "first")


@dataclasses.dataclass(frozen=True)
class ObjectiveConfig:
    """The pretraining objective, and what is minimized in addition to each token's negative log-likelihood.

    Ranges are checked on construction; the name and settings that the chosen objective doesn't use are checked by
    `lm.objectives.registry.check_objective`, as every `PretrainConfig` does.

    Attributes:
      name: "causal" (each token from those before it; GPT), "prefix" (the end of a text from its beginning, which is
        encoded in both directions), "masked" (hidden tokens from those around them; BERT, RoBERTa),
        "masked_next_sentence" (also whether one text follows another; BERT), "masked_sentence_order" (also which of two
        texts came first; ALBERT), "span_corruption" (spans cut out of a text; T5), "denoising" (the text from a
        corrupted copy; BART), or "none" (nothing: an imported model that is only used and fine-tuned).
      label_smoothing: the probability mass of each target that is spread uniformly over the vocabulary (Szegedy et al.
        2016).
      z_loss: weight of the squared log-normalizer, which keeps logits from drifting (Chowdhery et al. 2022, section 5).
      loss_chunk: a device holds the logits of so many tokens at a time; 0: of all its tokens. Fewer take less memory.
      mask_rate: for the masked objectives: the share of the text to predict.
      masking: for the masked objectives: whether the tokens to predict are chosen by "token" (Devlin et al. 2019),
        "whole_word" (its later release) or "span" of a few words (SpanBERT: Joshi et al. 2020).
      segmentation: for "whole_word" and "span": "jieba" finds Chinese words (Cui et al. 2021); it needs the extra
        `chinese`. Empty: each character of text without spaces is a word.
      noise_density: for "span_corruption": the share of the text that is cut out.
      sentinels: for "span_corruption": the number of <extra_id_...> tokens in the vocabulary; each span of a row needs
        one.
      mean_span_length: for "span_corruption", of the spans cut out; for "denoising", of the infilled ones (the rate of
        a Poisson distribution).
      infilling_rate: for "denoising": the share of the text in spans that are replaced by one [MASK] each.
      deletion_rate: for "denoising": the share of the remaining tokens that are deleted.
      permutation_rate: for "denoising": the share of each document's sentences that are shuffled.
      pooler: for "none": whether an imported encoder has a pooler, whose parameters are then kept.
      pooling: for "none": how `embed` makes a text's vector of the last hidden states: their "mean", or that of the
        "first" token ([CLS]).
      normalize: for "none": whether `embed` scales each vector to length 1.
    """

    name: str = "causal"
    label_smoothing: float = 0.0
    z_loss: float = 0.0
    loss_chunk: int = 0
    mask_rate: float = 0.15
    masking: str = "token"
    segmentation: str = ""
    noise_density: float = 0.15
    sentinels: int = 100
    mean_span_length: float = 3.0
    infilling_rate: float = 0.3
    deletion_rate: float = 0.0
    permutation_rate: float = 1.0
    pooler: bool = False
    pooling: str = "mean"
    normalize: bool = False

    def __post_init__(self):
        if self.masking not in MASKINGS:
            raise UserError(f"config.objective.masking must be one of {', '.join(MASKINGS)}; got {self.masking!r}")
        if self.pooling not in POOLINGS:
            raise UserError(f"config.objective.pooling must be one of {', '.join(POOLINGS)}; got {self.pooling!r}")
        if self.segmentation not in SEGMENTERS:
            raise UserError(f"config.objective.segmentation must be empty or jieba, got {self.segmentation!r}")
        for name in ("label_smoothing", "infilling_rate", "deletion_rate"):
            if not 0 <= getattr(self, name) < 1:
                raise UserError(f"config.objective.{name} must be in [0, 1), got {getattr(self, name)}")
        for name in ("mask_rate", "noise_density"):
            if not 0 < getattr(self, name) < 1:
                raise UserError(f"config.objective.{name} must be between 0 and 1, got {getattr(self, name)}")
        for name in ("z_loss", "loss_chunk"):
            if getattr(self, name) < 0:
                raise UserError(f"config.objective.{name} must not be negative, got {getattr(self, name)}")
        for name in ("sentinels", "mean_span_length"):
            if getattr(self, name) < 1:
                raise UserError(f"config.objective.{name} must be at least 1, got {getattr(self, name)}")
        if not 0 <= self.permutation_rate <= 1:
            raise UserError(f"config.objective.permutation_rate must be in [0, 1], got {self.permutation_rate}")


@dataclasses.dataclass(frozen=True)
class TextProperties:
    """What is known about the text in advance.

    Attributes:
      one_segment: guarantees that every window lies within one document, so that documents need no mask between them.
      buckets: of the vocabulary, for which reliability is reported separately.
    """

    one_segment: bool = False
    buckets: TokenBuckets = TokenBuckets()

    @classmethod
    def of(cls, corpus: Corpus, vocab_size: int) -> "TextProperties":
        """The properties of a corpus."""
        one_segment = corpus.train.num_documents == corpus.validation.num_documents == 1
        return cls(one_segment, TokenBuckets.of_text(corpus.train.beginning, vocab_size))


class PretrainingTask(Protocol):
    """A task with text, as pure functions of (parameters, batch), and the batches for it.

    Attributes:
      architecture: the `ModelConfig.architecture` that it needs.
      settings: the settings of `ObjectiveConfig` that it uses, in addition to those of all objectives.
      counts_bytes: whether validation predicts every token of the text from the previous ones, so that its loss is also
        the text's code length in bits.
      model: the network.
    """

    architecture: ClassVar[str]
    settings: ClassVar[tuple[str, ...]]
    counts_bytes: ClassVar[bool]

    @property
    def model(self) -> Any:
        """The network."""

    @classmethod
    def special_tokens(cls, config: ObjectiveConfig) -> tuple[str, ...]:
        """Names of the special tokens that the tokenizer must have, in addition to the end-of-text token."""

    @classmethod
    def from_config(
        cls,
        config: ObjectiveConfig,
        model: ModelConfig,
        tokenizer: Tokenizer,
        mesh: Mesh | None,
        text: TextProperties,
    ) -> "PretrainingTask":
        """The task with a model of this shape.

        Raises:
          UserError: if the shape or the tokenizer doesn't fit.
        """

    def init(self, key: Array) -> Params:
        """Random parameters."""

    def loss(self, params: Params, batch: Batch, dropout_key: Array | None) -> tuple[Array, dict[str, Array]]:
        """The objective's weighted sum, and weighted sums to report, `weight` among them."""

    def evaluate(self, params: Params, batch: Batch) -> dict[str, Any]:
        """Weighted sums per row of the batch, [B], and under `reliability` sums over the whole batch."""

    def train_batches(
        self, corpus: Corpus, batch_size: int, seed: int, random_offsets: bool = False, host: int = 0, hosts: int = 1
    ) -> Batches:
        """Batches for training, endless; each is this host's part and a pure function of (seed, step).

        Raises:
          UserError: if the text is too short or hosts does not divide batch_size.
        """

    def validation_batches(self, corpus: Corpus, batch_size: int, host: int = 0, hosts: int = 1) -> Batches:
        """One pass over the validation split, always corrupted in the same way.

        Raises:
          UserError: if the text is too short or hosts does not divide batch_size.
        """


class PredictsTokens(abc.ABC):
    """The loss and the evaluation of a task that predicts tokens, given the hidden states to predict them from."""

    model: Any
    objective: ObjectiveConfig
    buckets: TokenBuckets

    @abc.abstractmethod
    def hidden(self, params: Params, batch: Batch, dropout_key: Array | None) -> Array:
        """A hidden state, [B, T, D], for each of `batch["targets"]`; a key turns dropout on."""

    def token_positions(self, batch: Batch) -> Array:
        """Positions of the predicted tokens in their documents."""
        return batch["positions"]

    def loss(self, params: Params, batch: Batch, dropout_key: Array | None) -> tuple[Array, dict[str, Array]]:
        """The objective summed over the predicted tokens, and the sums to report.

        Returns:
          As for `lm.modules.linear_cross_entropy.linear_cross_entropy`.
        """
        return token_loss(self.model, params, self.hidden(params, batch, dropout_key), batch, self.objective)

    def evaluate(self, params: Params, batch: Batch) -> dict[str, Any]:
        """Weighted sums over each row and reliability, from `row_sums`."""
        statistics = token_statistics(self.model, params, self.hidden(params, batch, None), batch, self.objective)
        vocab_size = self.model.config.size_of_vocabulary
        return row_sums(statistics, self.token_positions(batch), batch["weights"], self.buckets, vocab_size)


def token_loss(
    model: nn.Module, params: Params, hidden_BTD: Array, batch: Batch, objective: ObjectiveConfig
) -> tuple[Array, dict[str, Array]]:
    """The objective summed over the predicted tokens, and the sums to report.

    Args:
      model: has a `mesh`, and a method `before_logits` from hidden states to states and their `OutputLayer`.
      params: the model's.
      hidden_BTD: states to predict from.
      batch: has `targets` and `weights`, [B, T].
      objective: what is minimized.

    Returns:
      As for `lm.modules.linear_cross_entropy.linear_cross_entropy`.
    """
    states_BTD, layer = model.apply({"params": params}, hidden_BTD, method="before_logits")
    loss = TokenLoss(objective.label_smoothing, objective.z_loss, objective.loss_chunk)
    return linear_cross_entropy(layer, states_BTD, batch["targets"], batch["weights"], loss, model.mesh)


def token_statistics(
    model: nn.Module, params: Params, hidden_BTD: Array, batch: Batch, objective: ObjectiveConfig
) -> TokenStatistics:
    """Statistics of the predicted tokens, [B, T]. Arguments as for `token_loss`."""
    states_BTD, layer = model.apply({"params": params}, hidden_BTD, method="before_logits")
    return linear_token_statistics(layer, states_BTD, batch["targets"], objective.loss_chunk, model.mesh)


def row_sums(
    statistics: TokenStatistics, positions_BT: Array, weights_BT: Array, buckets: TokenBuckets, vocab_size: int
) -> dict[str, Any]:
    """Weighted sums over each row, [B], by name: `weight`, `loss`, `accuracy`, `confidence`, `entropy`.

    Also `reliability`: sums over all rows, from `lm.evaluation.token_reliability`.
    """
    per_token = {
        "weight": jnp.ones_like(weights_BT),
        "loss": statistics.nll,
        "accuracy": statistics.correct,
        "confidence": statistics.confidence,
        "entropy": statistics.entropy,
    }
    sums: dict[str, Any] = {name: (weights_BT * value).sum(axis=1) for name, value in per_token.items()}
    sums["reliability"] = reliability_sums(
        statistics, statistics.predicted, positions_BT, weights_BT, buckets, vocab_size
    )
    return sums


def special_id(tokenizer: Tokenizer, name: str) -> int:
    """Id of a special token.

    Raises:
      UserError: if the tokenizer does not have it.
    """
    id_ = tokenizer.special_id(name)
    if id_ is None:
        raise UserError(
            f"the tokenizer has no special token {name}, which this config.objective.name needs: set a "
            "config.tokenizer.kind that is trained, or a config.tokenizer.path whose tokenizer has it"
        )
    return id_
