"""How a model learns to generate a target from a source: with an encoder for the source, or as one sequence.

Axes: B batch, S source positions (of an encoder), T positions (of a decoder), D model width.

    encoder-decoder   inputs  source <end>           tokens  <end> target            targets  target <end>
    decoder           tokens  <end> source <end> target      targets  source <end> target <end>
                      or, if a target continues its source, without the <end> between the two

A published tokenizer has its own tokens in these places: those around a text come around the source of an encoder and
before that of a decoder, outputs start after its `start_of_output`, and only the <end> of a target is the same. What a
model writes ends at any of its tokenizer's `ends`.

Weights are 1 where a target counts: at the target's tokens and its end-of-text token, but not at a decoder's source.
"""

import dataclasses
from collections.abc import Mapping, Sequence
from typing import ClassVar, Protocol

import jax.numpy as jnp
import numpy as np
from jax import Array

from lm.data.tokenizers import Tokenizer
from lm.decoding.beam_search import BeamSearchConfig, beam_search
from lm.decoding.continuation import Decoded
from lm.decoding.step import decoder_start, encoder_decoder_start
from lm.errors import UserError
from lm.models.decoder_lm import DecoderLM
from lm.models.encoder_decoder_lm import EncoderDecoderLM
from lm.modules.dropout import dropout_rngs
from lm.tasks.supervised import Example
from lm.types import Batch, Params


class TargetModel(Protocol):
    """A model and the layout of its batches.

    Attributes:
      axes: as in `lm.tasks.supervised.SupervisedTask`.
    """

    axes: ClassVar[Mapping[str, str]]

    def source_room(self, max_target_length: int) -> int:
        """Maximum number of source tokens that leaves room to generate `max_target_length` tokens; may be < 1."""

    def target_room(self, source_length: int) -> int:
        """Maximum number of target tokens after a source of this length, including the end-of-text token."""

    def target(self, text: Sequence[int]) -> list[int]:
        """The tokens to learn for a target: its text's tokens and the end-of-text token."""

    def example(self, source: Sequence[int], target: Sequence[int]) -> Example:
        """The arrays of a pair; `target` has its end-of-text token unless it is truncated."""

    def prompt(self, source: Sequence[int]) -> list[int]:
        """What the model reads before it generates a target."""

    def init(self, key: Array) -> Params:
        """Random parameters."""

    def hidden(self, params: Params, batch: Batch, dropout_key: Array | None) -> Array:
        """The hidden states before each of `batch["targets"]`, [B, T, D]."""

    def generate(self, params: Params, batch: Batch, config: BeamSearchConfig, vocab_size: int) -> Decoded:
        """The target that the model finds likeliest for each row's source."""


@dataclasses.dataclass(frozen=True)
class EncoderDecoderTargets:
    """An encoder reads the source."""

    model: EncoderDecoderLM
    tokenizer: Tokenizer
    end_of_text: int

    axes: ClassVar[Mapping[str, str]] = {
        "inputs": "S",
        "input_segments": "S",
        "tokens": "T",
        "targets": "T",
        "weights": "T",
    }

    def source_room(self, max_target_length: int) -> int:
        """`size_of_sequence` minus the special tokens; targets take no room in the encoder."""
        longest = self.model.config.size_of_sequence
        return longest - len(self.prompt([])) if max_target_length <= longest else 0

    def target_room(self, source_length: int) -> int:
        """`size_of_sequence`, whatever the source."""
        return self.model.config.size_of_sequence

    def target(self, text: Sequence[int]) -> list[int]:
        """The text's tokens, after what a published tokenizer puts before any text, and the end-of-text token."""
        frame = self.tokenizer.frame
        return [*(frame.before if frame else ()), *text, self.end_of_text]

    def example(self, source: Sequence[int], target: Sequence[int]) -> Example:
        """`inputs` and `input_segments` [S]; `tokens`, `targets` and `weights` [T]."""
        inputs = np.array(self.prompt(source), np.int32)
        return {
            "inputs": inputs,
            "input_segments": np.ones_like(inputs),
            "tokens": np.array([self._start, *target[:-1]], np.int32),
            "targets": np.array(target, np.int32),
            "weights": np.ones(len(target), np.float32),
        }

    def prompt(self, source: Sequence[int]) -> list[int]:
        """The encoder's input: the source and the end-of-text token, or what a published tokenizer puts around it."""
        return self.tokenizer.with_frame(source) or [self.end_of_text]

    def init(self, key: Array) -> Params:
        """Random parameters."""
        nothing_11 = jnp.zeros((1, 1), jnp.int32)
        return self.model.init(key, nothing_11, nothing_11)["params"]

    def hidden(self, params: Params, batch: Batch, dropout_key: Array | None) -> Array:
        """The decoder's last hidden states, [B, T, D]."""
        inputs = (batch["inputs"], batch["tokens"], batch["input_segments"])
        return self.model.apply({"params": params}, *inputs, rngs=dropout_rngs(dropout_key), method=_encode_and_decode)

    def generate(self, params: Params, batch: Batch, config: BeamSearchConfig, vocab_size: int) -> Decoded:
        """By beam search."""
        source = (batch["inputs"], batch["input_segments"])
        start = encoder_decoder_start(self.model, params, *source, config.max_new_tokens, self._start)
        return beam_search(start, config, self.tokenizer.ends, limits_B=_limits(batch, config), vocab_size=vocab_size)

    @property
    def _start(self) -> int:
        """What comes before an output."""
        start = self.tokenizer.start_of_output
        return self.end_of_text if start is None else start


@dataclasses.dataclass(frozen=True)
class DecoderTargets:
    """Source and target form one sequence. With `separate`, an end-of-text token comes between them."""

    model: DecoderLM
    tokenizer: Tokenizer
    end_of_text: int
    separate: bool

    axes: ClassVar[Mapping[str, str]] = {"tokens": "T", "targets": "T", "weights": "T"}

    def source_room(self, max_target_length: int) -> int:
        """The rest of `size_of_sequence` after `max_target_length` target tokens, the last of which is not fed."""
        return self.model.config.size_of_sequence - (max_target_length - 1) - self._special_tokens

    def target_room(self, source_length: int) -> int:
        """The room after the source."""
        return self.model.config.size_of_sequence - source_length - self._special_tokens + 1

    def target(self, text: Sequence[int]) -> list[int]:
        """The text's tokens and the end-of-text token."""
        return [*text, self.end_of_text]

    def example(self, source: Sequence[int], target: Sequence[int]) -> Example:
        """`tokens`, `targets` and `weights` [T], and how many tokens come before the target, `source_length`."""
        head = self.prompt(source)
        sequence = np.array([*head, *target], np.int32)
        weights = np.zeros(sequence.size - 1, np.float32)
        weights[len(head) - 1 :] = 1
        return {
            "tokens": sequence[:-1],
            "targets": sequence[1:],
            "weights": weights,
            "source_length": np.array(len(head), np.int32),
        }

    def prompt(self, source: Sequence[int]) -> list[int]:
        """What comes before the target in the sequence."""
        return self.tokenizer.with_start(source) + [self.end_of_text] * self.separate

    def init(self, key: Array) -> Params:
        """Random parameters."""
        return self.model.init(key, jnp.zeros((1, 1), jnp.int32))["params"]

    def hidden(self, params: Params, batch: Batch, dropout_key: Array | None) -> Array:
        """The last hidden states, [B, T, D]."""
        # Padding comes last, where no token sees it: no mask is needed.
        rngs = dropout_rngs(dropout_key)
        return self.model.apply({"params": params}, batch["tokens"], rngs=rngs, method=DecoderLM.hidden)

    def generate(self, params: Params, batch: Batch, config: BeamSearchConfig, vocab_size: int) -> Decoded:
        """By beam search from the end of the source."""
        prompts_BT, lengths_B = batch["tokens"], jnp.maximum(batch["source_length"], 1)
        capacity = prompts_BT.shape[1] + config.max_new_tokens
        start = decoder_start(self.model, params, prompts_BT, lengths_B, capacity)
        return beam_search(start, config, self.tokenizer.ends, limits_B=_limits(batch, config), vocab_size=vocab_size)

    @property
    def _special_tokens(self) -> int:
        return len(self.prompt([]))


def target_model(model: EncoderDecoderLM | DecoderLM, tokenizer: Tokenizer, separate: bool = True) -> TargetModel:
    """How this model reads sources.

    Args:
      model: generates text.
      tokenizer: has an end-of-text token.
      separate: whether an end-of-text token comes between a source and a decoder's target.

    Raises:
      UserError: for a model that cannot generate text, and a tokenizer without an end-of-text token.
    """
    end_of_text = tokenizer.required_end_of_text
    if isinstance(model, EncoderDecoderLM):
        return EncoderDecoderTargets(model, tokenizer, end_of_text)
    if isinstance(model, DecoderLM):
        return DecoderTargets(model, tokenizer, end_of_text, separate)
    raise UserError(
        f"config.model.architecture={model.config.architecture} does not generate text: choose encoder_decoder "
        "or decoder"
    )


def _encode_and_decode(model: EncoderDecoderLM, inputs_BS: Array, tokens_BT: Array, input_segments_BS: Array) -> Array:
    # The tokens' padding comes last, where no token sees it: they need no segments.
    memory_BSD = model.encode(inputs_BS, input_segments_BS)
    return model.decode(memory_BSD, input_segments_BS, tokens_BT)


def _limits(batch: Batch, config: BeamSearchConfig) -> Array:
    """How many tokens to generate; filler rows are done after one."""
    return jnp.where(batch["row_weights"] > 0, config.max_new_tokens, 1)
