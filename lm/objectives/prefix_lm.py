"""Prefix language modelling: the rest of a text from its beginning, which is encoded in both directions.

(Liu et al. 2018; Raffel et al. 2020, section 3.2.1.) Each window is split at a uniformly random point. The first part
is given, and only the second part is predicted.

Axes: b rows of this host's batch (B of the whole batch), T positions.

Every batch is as in `lm.data.windows`, with weight 0 within the prefix, and
    prefix  bool  [b, T]  whether a token belongs to it
"""

import dataclasses
from typing import ClassVar

import jax.numpy as jnp
import numpy as np
from jax import Array
from jax.sharding import Mesh

from lm.data.tokenizers import Tokenizer
from lm.evaluation.token_reliability import TokenBuckets
from lm.models.decoder_lm import DecoderLM
from lm.modules.config import ModelConfig
from lm.modules.dropout import dropout_rngs
from lm.objectives.corruption import CorruptsWindows, RowRandom
from lm.objectives.objective import ObjectiveConfig, PredictsTokens, TextProperties
from lm.types import Batch, HostBatch, Params


@dataclasses.dataclass(frozen=True)
class PrefixLM(PredictsTokens, CorruptsWindows):
    """The task, as pure functions of (parameters, batch).

    Attributes:
      model: the network.
      objective: what to minimize.
      buckets: of the vocabulary, for separate reliability metrics.
    """

    architecture: ClassVar[str] = "decoder"
    settings: ClassVar[tuple[str, ...]] = ()
    counts_bytes: ClassVar[bool] = False  # only a part of the text is predicted

    model: DecoderLM
    objective: ObjectiveConfig
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
    ) -> "PrefixLM":
        """The task with a model of this shape."""
        return cls(DecoderLM(model, mesh), config, text.buckets)

    def init(self, key: Array) -> Params:
        """Random parameters."""
        return self.model.init(key, jnp.zeros((1, 1), jnp.int32))["params"]

    @property
    def window_length(self) -> int:
        """The maximum length of a sequence."""
        return self.model.config.size_of_sequence

    def corrupt(self, windows: HostBatch, random: RowRandom) -> HostBatch:
        """Splits each window."""
        return with_prefix(windows, random)

    def hidden(self, params: Params, batch: Batch, dropout_key: Array | None) -> Array:
        """The states before each target."""
        inputs = batch["tokens"], batch["segments"], batch["positions"]
        return self.model.apply(
            {"params": params},
            *inputs,
            prefix_BT=batch["prefix"],
            rngs=dropout_rngs(dropout_key),
            method=DecoderLM.hidden,
        )


def with_prefix(windows: HostBatch, random: RowRandom) -> HostBatch:
    """Splits each window: the prefix is its first 1 to T tokens, each length equally likely."""
    length = windows["tokens"].shape[1]
    split_b1 = 1 + random.integers(length, 1)
    place_T = np.arange(length)[None, :]
    # The prefix's last token sees only the prefix, so its prediction counts.
    learned_bT = place_T >= split_b1 - 1
    return windows | {"prefix": place_T < split_b1, "weights": windows["weights"] * learned_bT.astype(np.float32)}
