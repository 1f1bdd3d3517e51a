"""Causal language modelling: predict each token from those before it.

Axes: B batch (windows of text), T positions, V vocabulary, D model width.
"""

import dataclasses
from typing import ClassVar

import jax.numpy as jnp
from jax import Array
from jax.sharding import Mesh

from lm.data.store import Corpus
from lm.data.tokenizers import Tokenizer
from lm.data.windows import TrainBatches, ValidationBatches
from lm.evaluation.token_reliability import TokenBuckets
from lm.models.decoder_lm import DecoderLM
from lm.modules.config import ModelConfig
from lm.modules.dropout import dropout_rngs
from lm.objectives.objective import ObjectiveConfig, PredictsTokens, TextProperties
from lm.types import Batch, Params


@dataclasses.dataclass(frozen=True)
class CausalLM(PredictsTokens):
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

    def train_batches(
        self, corpus: Corpus, batch_size: int, seed: int, random_offsets: bool = False, host: int = 0, hosts: int = 1
    ) -> TrainBatches:
        """Shuffled windows of the training split."""
        length = self.model.config.size_of_sequence
        return TrainBatches(corpus.train, length, batch_size, seed, random_offsets, host, hosts)

    def validation_batches(self, corpus: Corpus, batch_size: int, host: int = 0, hosts: int = 1) -> ValidationBatches:
        """Consecutive windows of the validation split."""
        return ValidationBatches(corpus.validation, self.model.config.size_of_sequence, batch_size, host, hosts)

    def hidden(self, params: Params, batch: Batch, dropout_key: Array | None) -> Array:
        """The states before each target."""
        segments = None if self.one_segment else batch["segments"]
        positions = None if self.one_segment else batch["positions"]
        inputs = batch["tokens"], segments, positions
        rngs = dropout_rngs(dropout_key)
        return self.model.apply({"params": params}, *inputs, rngs=rngs, method=DecoderLM.hidden)
