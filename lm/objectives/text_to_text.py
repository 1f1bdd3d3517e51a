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
from typing import ClassVar

import jax.numpy as jnp
from jax import Array

from lm.evaluation.token_reliability import TokenBuckets
from lm.models.encoder_decoder_lm import EncoderDecoderLM
from lm.modules.dropout import dropout_rngs
from lm.objectives.objective import ObjectiveConfig, PredictsTokens
from lm.types import Batch, Params


@dataclasses.dataclass(frozen=True)
class TextToText(PredictsTokens):
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

    def hidden(self, params: Params, batch: Batch, dropout_key: Array | None) -> Array:
        """The decoder's states before each target."""

        def of_decoder(model: EncoderDecoderLM) -> Array:
            memory_BSD = model.encode(batch["inputs"], batch["input_segments"], batch["input_positions"])
            output = batch["tokens"], batch["segments"], batch["positions"]
            return model.decode(memory_BSD, batch["input_segments"], *output)

        return self.model.apply({"params": params}, rngs=dropout_rngs(dropout_key), method=of_decoder)
