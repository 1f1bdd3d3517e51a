"""Causal language modelling: predict each token from those before it.

Axes: B batch (windows of text), T positions, V vocabulary, D model width.
"""

import dataclasses
from typing import Any, ClassVar

import jax.numpy as jnp
from jax import Array
from jax.sharding import Mesh

from lm.data.store import Corpus
from lm.data.tokenizers import Tokenizer
from lm.data.windows import TrainBatches, ValidationBatches
from lm.evaluation.token_reliability import TokenBuckets
from lm.evaluation.token_statistics import TokenStatistics, token_loss
from lm.models.decoder_lm import DecoderLM
from lm.modules.config import ModelConfig
from lm.modules.dropout import dropout_rngs
from lm.objectives.objective import ObjectiveConfig, TextProperties, predicted_statistics, row_sums
from lm.types import Batch, Params


@dataclasses.dataclass(frozen=True)
class CausalLM:
    """The task, as pure functions of (parameters, batch).

    Attributes:
      model: the network.
      objective: what to minimize.
      one_segment: guarantees that every window lies within one document, so that no segment mask is needed.
      buckets: of the vocabulary, for separate reliability metrics.
    """

    architecture: ClassVar[str] = "decoder"
    settings: ClassVar[tuple[str, ...]] = ()
    counts_bytes: ClassVar[bool] = True

    model: DecoderLM
    objective: ObjectiveConfig = ObjectiveConfig()
    one_segment: bool = False
    buckets: TokenBuckets = TokenBuckets()

    @classmethod
    def special_tokens(cls, config: ObjectiveConfig) -> tuple[str, ...]:
        """None."""
        return ()

    @classmethod
    def from_config(
        cls,
        config: ObjectiveConfig,
        model: ModelConfig,
        tokenizer: Tokenizer,
        mesh: Mesh | None,
        text: TextProperties,
    ) -> "CausalLM":
        """The task with a model of this shape."""
        return cls(DecoderLM(model, mesh), config, text.one_segment, text.buckets)

    def init(self, key: Array) -> Params:
        """Random parameters."""
        return self.model.init(key, jnp.zeros((1, 1), jnp.int32))["params"]

    def loss(self, params: Params, batch: Batch, dropout_key: Array | None) -> tuple[Array, dict[str, Array]]:
        """The objective summed over the tokens of a batch, and the sums to report.

        Args:
          params: the model's.
          batch: `tokens`, `targets`, `weights`, `positions`, `segments`, each [B, T].
          dropout_key: turns dropout on.

        Returns:
          As for `lm.evaluation.token_statistics.token_loss`.
        """
        return token_loss(
            self._statistics(params, batch, dropout_key),
            batch["weights"],
            self.objective.label_smoothing,
            self.objective.z_loss,
        )

    def evaluate(self, params: Params, batch: Batch) -> dict[str, Any]:
        """Weighted sums over each window and reliability, from `lm.objectives.objective.row_sums`."""
        statistics = self._statistics(params, batch, None)
        vocab_size = self.model.config.size_of_vocabulary
        return row_sums(statistics, batch["positions"], batch["weights"], self.buckets, vocab_size)

    def train_batches(
        self, corpus: Corpus, batch_size: int, seed: int, random_offsets: bool = False, host: int = 0, hosts: int = 1
    ) -> TrainBatches:
        """Shuffled windows of the training split."""
        length = self.model.config.max_length
        return TrainBatches(corpus.train, length, batch_size, seed, random_offsets, host, hosts)

    def validation_batches(self, corpus: Corpus, batch_size: int, host: int = 0, hosts: int = 1) -> ValidationBatches:
        """Consecutive windows of the validation split."""
        return ValidationBatches(corpus.validation, self.model.config.max_length, batch_size, host, hosts)

    def _statistics(self, params: Params, batch: Batch, dropout_key: Array | None) -> TokenStatistics:
        segments = None if self.one_segment else batch["segments"]
        positions = None if self.one_segment else batch["positions"]
        inputs = batch["tokens"], segments, positions
        rngs = dropout_rngs(dropout_key)
        hidden_BTD = self.model.apply({"params": params}, *inputs, rngs=rngs, method=DecoderLM.hidden)
        return predicted_statistics(self.model, params, hidden_BTD, batch["targets"], self.objective)
