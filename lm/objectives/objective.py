"""What the pretraining objectives have in common: windows of text in, token predictions and weighted sums out.

Each objective is a file with a task: a frozen dataclass around a model that makes its batches (`train_batches`,
`validation_batches`) and predicts tokens from them. What to make of the predictions is the same for all and is here.
`lm.objectives.registry` holds the table of their names.

Axes: B batch, T predicted tokens of a row, V vocabulary, D model width.
"""

import dataclasses
from typing import Any, ClassVar, Protocol

import flax.linen as nn
import jax.numpy as jnp
from jax import Array
from jax.sharding import Mesh

from lm.data.store import Corpus
from lm.data.tokenizers import Tokenizer
from lm.errors import UserError
from lm.evaluation.token_reliability import TokenBuckets, reliability_sums
from lm.evaluation.token_statistics import TokenStatistics, statistics_in_chunks, token_statistics
from lm.modules.config import ModelConfig
from lm.types import Batch, Batches, Params

MASKINGS = ("token", "whole_word", "span")


@dataclasses.dataclass(frozen=True)
class ObjectiveConfig:
    """What is learned from text, and what is minimized besides each token's negative log-likelihood.

    Ranges are checked when it is made; the name, and settings that the chosen objective doesn't use, by
    `lm.objectives.registry.check_objective`, as every `PretrainConfig` does.

    Attributes:
      name: "causal" (each token from those before it; GPT), "prefix" (the end of a text from its beginning, which sees
        itself in both directions), "masked" (hidden tokens from those around them; BERT, RoBERTa),
        "masked_next_sentence" (besides, whether one piece of text follows another; BERT), "masked_sentence_order"
        (besides, which of two pieces came first; ALBERT), "span_corruption" (cut out spans; T5) or "denoising" (the
        text from a damaged copy; BART).
      label_smoothing: the share of each target that is spread evenly over the vocabulary (Szegedy et al. 2016).
      z_loss: weight of the squared log-normalizer, which keeps logits from drifting (Chowdhery et al. 2022, section 5).
      loss_chunk: 0 holds the logits of a whole batch. A positive number holds those of so many tokens at a time and
        computes them again in the backward pass: less memory, more time.
      mask_rate: for the masked objectives: the share of the text that is to be predicted.
      masking: for the masked objectives: whether the tokens to predict are chosen by "token" (Devlin et al. 2019),
        "whole_word" (its later release) or "span" of a few words (SpanBERT: Joshi et al. 2020).
      noise_density: for "span_corruption": the share of the text that is cut out.
      sentinels: for "span_corruption": how many <extra_id_...> tokens the vocabulary gets; a row has a span for each.
      mean_span_length: for "span_corruption", of the spans cut out; for "denoising", of those filled in (the rate of
        a Poisson distribution).
      infilling_rate: for "denoising": the share of the text that spans replaced by one [MASK] each take.
      deletion_rate: for "denoising": the share of the remaining tokens that are deleted.
      permutation_rate: for "denoising": the share of each document's sentences that are put in random order.
    """

    name: str = "causal"
    label_smoothing: float = 0.0
    z_loss: float = 0.0
    loss_chunk: int = 0
    mask_rate: float = 0.15
    masking: str = "token"
    noise_density: float = 0.15
    sentinels: int = 100
    mean_span_length: float = 3.0
    infilling_rate: float = 0.3
    deletion_rate: float = 0.0
    permutation_rate: float = 1.0

    def __post_init__(self):
        if self.masking not in MASKINGS:
            raise UserError(f"config.objective.masking must be one of {', '.join(MASKINGS)}; got {self.masking!r}")
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
    """What an objective may know of the text beforehand.

    Attributes:
      one_segment: promises that every window lies within one document, so that no mask has to keep documents apart.
      buckets: of the vocabulary, for which reliability is reported separately.
    """

    one_segment: bool = False
    buckets: TokenBuckets = TokenBuckets()

    @classmethod
    def of(cls, corpus: Corpus, vocab_size: int) -> "TextProperties":
        """Those of a corpus."""
        one_segment = corpus.train.num_documents == corpus.validation.num_documents == 1
        return cls(one_segment, TokenBuckets.of_text(corpus.train.tokens, vocab_size))


class PretrainingTask(Protocol):
    """A task with text, as pure functions of (parameters, batch), and the batches for it.

    Attributes:
      architecture: the `ModelConfig.architecture` that it needs.
      settings: those of `ObjectiveConfig` that it uses, besides the ones that all objectives do.
      counts_bytes: whether validation predicts every token of the text from those before it, so that its loss is also
        the text's length in bits.
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
        """Names of the special tokens that the tokenizer must have, besides the end-of-text token."""

    @classmethod
    def from_config(
        cls,
        config: ObjectiveConfig,
        model: ModelConfig,
        tokenizer: Tokenizer,
        mesh: Mesh | None,
        text: TextProperties,
    ) -> "PretrainingTask":
        """The task, around a model of this shape.

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
        """Batches for training, without end; each a pure function of (seed, step) and this host's part of it.

        Raises:
          UserError: if the text is too short or hosts does not divide batch_size.
        """

    def validation_batches(self, corpus: Corpus, batch_size: int, host: int = 0, hosts: int = 1) -> Batches:
        """One pass over the validation split, corrupted in the same way each time.

        Raises:
          UserError: if the text is too short or hosts does not divide batch_size.
        """


def predicted_statistics(
    model: nn.Module, params: Params, hidden_BTD: Array, targets_BT: Array, objective: ObjectiveConfig
) -> TokenStatistics:
    """Statistics of the predicted tokens, [B, T], in chunks where the objective says so.

    Args:
      model: whose method `logits` turns hidden states [..., D] into logits [..., V].
      params: the model's.
      hidden_BTD: where to predict from.
      targets_BT: ids below V.
      objective: gives `loss_chunk`.
    """

    def to_logits(hidden: Array) -> Array:
        return model.apply({"params": params}, hidden, method="logits")

    if objective.loss_chunk:
        return statistics_in_chunks(to_logits, hidden_BTD, targets_BT, objective.loss_chunk)
    return token_statistics(to_logits(hidden_BTD), targets_BT)


def row_sums(
    statistics: TokenStatistics, positions_BT: Array, weights_BT: Array, buckets: TokenBuckets, vocab_size: int
) -> dict[str, Any]:
    """Weighted sums over each row, [B], by name: `weight`, `loss`, `accuracy`, `confidence`, `entropy`.

    Besides `reliability`: sums over all rows, as `lm.evaluation.token_reliability` makes them.
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
      UserError: if the tokenizer has none of that name.
    """
    id_ = tokenizer.special_id(name)
    if id_ is None:
        raise UserError(
            f"the tokenizer has no special token {name}, which this config.objective.name needs: set a "
            "config.tokenizer.kind that is trained, or a config.tokenizer.path whose tokenizer has it"
        )
    return id_
