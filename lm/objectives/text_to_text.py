"""What encoder-decoder objectives share: an input for the encoder, and a text that the decoder predicts from it.

Axes: B batch, S input positions, T output positions, D model width.

Every batch is a dict of
    inputs           int32    [b, S]  what the encoder sees
    input_segments   int32    [b, S]  the document that a token belongs to, from 1; 0 at padding
    input_positions  int32    [b, S]  position in the segment
    tokens           int32    [b, T]  what the decoder sees
    targets          int32    [b, T]  what it predicts there
    weights          float32  [b, T]  1 where the target counts
    segments         int32    [b, T]  as for the input: the decoder sees its own segment on both sides
    positions        int32    [b, T]
"""

import dataclasses
from typing import Any, ClassVar

import jax.numpy as jnp
from jax import Array

from lm.evaluation.token_reliability import TokenBuckets
from lm.evaluation.token_statistics import TokenStatistics, token_loss
from lm.models.encoder_decoder_lm import EncoderDecoderLM
from lm.modules.dropout import dropout_rngs
from lm.objectives.objective import ObjectiveConfig, predicted_statistics, row_sums
from lm.types import Batch, Params


@dataclasses.dataclass(frozen=True)
class TextToText:
    """A task without its batches, as pure functions of (parameters, batch).

    Attributes:
      model: the network.
      objective: what to minimize.
      buckets: of the vocabulary, for separate reliability metrics.
    """

    architecture: ClassVar[str] = "encoder_decoder"
    counts_bytes: ClassVar[bool] = False

    model: EncoderDecoderLM
    objective: ObjectiveConfig
    buckets: TokenBuckets

    def init(self, key: Array) -> Params:
        """Random parameters."""
        one_token = jnp.zeros((1, 1), jnp.int32)
        return self.model.init(key, one_token, one_token)["params"]

    def loss(self, params: Params, batch: Batch, dropout_key: Array | None) -> tuple[Array, dict[str, Array]]:
        """The objective summed over the targets, as `lm.evaluation.token_statistics.token_loss`."""
        return token_loss(
            self._statistics(params, batch, dropout_key),
            batch["weights"],
            self.objective.label_smoothing,
            self.objective.z_loss,
        )

    def evaluate(self, params: Params, batch: Batch) -> dict[str, Any]:
        """Weighted sums over each row and reliability, from `lm.objectives.objective.row_sums`."""
        statistics = self._statistics(params, batch, None)
        vocab_size = self.model.config.size_of_vocabulary
        return row_sums(statistics, batch["positions"], batch["weights"], self.buckets, vocab_size)

    def _statistics(self, params: Params, batch: Batch, dropout_key: Array | None) -> TokenStatistics:
        def hidden(model: EncoderDecoderLM) -> Array:
            memory_BSD = model.encode(batch["inputs"], batch["input_segments"], batch["input_positions"])
            output = batch["tokens"], batch["segments"], batch["positions"]
            return model.decode(memory_BSD, batch["input_segments"], *output)

        hidden_BTD = self.model.apply({"params": params}, rngs=dropout_rngs(dropout_key), method=hidden)
        return predicted_statistics(self.model, params, hidden_BTD, batch["targets"], self.objective)
