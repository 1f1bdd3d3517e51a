"""The sequence that a model finds likeliest: what it makes of an input, or how it continues a prompt.

Axes: B sequences, S input positions, T prompt positions, R rows (B times the beams), V vocabulary.
"""

from collections.abc import Callable
from typing import Any

import flax.linen as nn
import jax.numpy as jnp
from jax import Array

from lm.decoding.beam_search import BeamSearchConfig, Decoded, Step, beam_search
from lm.models.decoder_lm import DecoderLM
from lm.models.encoder_decoder_lm import EncoderDecoderLM
from lm.modules.stack import Caches, empty_caches
from lm.types import Params


def best_outputs(
    model: EncoderDecoderLM,
    params: Params,
    inputs_BS: Array,
    input_segments_BS: Array,
    config: BeamSearchConfig,
    end_of_text: int,
    *,
    vocab_size: int | None = None,
    limits_B: Array | None = None,
) -> Decoded:
    """What an encoder-decoder makes of each input. Compiled by the caller.

    Args:
      model: the network, trained on outputs that begin after an end-of-text token and end with one.
      params: its parameters.
      inputs_BS: token ids.
      input_segments_BS: 1 for tokens and 0 for padding.
      config: how widely to search; its `max_new_tokens` must not exceed the model's `max_length`.
      end_of_text: the id before and after each output.
      vocab_size: as for `beam_search`.
      limits_B: as for `beam_search`.
    """
    variables = {"params": params}
    memory_BSD = model.apply(variables, inputs_BS, input_segments_BS, method=EncoderDecoderLM.encode)
    start = (memory_BSD, input_segments_BS, config.max_new_tokens)
    caches = model.apply(variables, *start, method=EncoderDecoderLM.start_decoding)
    step = _step(model, variables, EncoderDecoderLM.decode_with_cache)
    first_B = jnp.full(inputs_BS.shape[0], end_of_text, jnp.int32)
    limits = {"vocab_size": vocab_size, "limits_B": limits_B}
    return beam_search(step, caches, first_B, jnp.zeros_like(first_B), config, end_of_text, **limits)


def best_continuations(
    model: DecoderLM,
    params: Params,
    prompts_BT: Array,
    lengths_B: Array,
    config: BeamSearchConfig,
    end_of_text: int,
    *,
    vocab_size: int | None = None,
    limits_B: Array | None = None,
) -> Decoded:
    """How a decoder continues each prompt. Compiled by the caller.

    Args:
      model: the network.
      params: its parameters.
      prompts_BT: token ids. What comes after a prompt's end does not matter.
      lengths_B: tokens of each prompt, 1 or more. A prompt and `config.max_new_tokens` together exceed the model's
        `max_length` by 1 at the most: the last new token is never fed.
      config: how widely to search.
      end_of_text: the id that ends a continuation.
      vocab_size: as for `beam_search`.
      limits_B: as for `beam_search`.
    """
    variables = {"params": params}
    batch, length = prompts_BT.shape
    positions_BT = jnp.broadcast_to(jnp.arange(length), prompts_BT.shape)
    # Slots after a prompt's end are written anew before anything sees them.
    caches = empty_caches(model.config, batch, length + config.max_new_tokens)
    _, caches = model.apply(variables, prompts_BT, positions_BT, caches, method=DecoderLM.hidden_with_cache)
    step = _step(model, variables, DecoderLM.hidden_with_cache)
    # The last token of a prompt is fed again, which changes nothing in the cache and gives the first logits.
    last_B = lengths_B - 1
    last_tokens_B = jnp.take_along_axis(prompts_BT, last_B[:, None], axis=1)[:, 0]
    limits = {"vocab_size": vocab_size, "limits_B": limits_B}
    return beam_search(step, caches, last_tokens_B, last_B, config, end_of_text, **limits)


def _step(model: nn.Module, variables: Any, with_cache: Callable) -> Step:
    """One token through a model whose method `with_cache` gives hidden states and caches."""

    def step(tokens_R1: Array, positions_R1: Array, caches: Caches) -> tuple[Array, Caches]:
        hidden_R1D, caches = model.apply(variables, tokens_R1, positions_R1, caches, method=with_cache)
        return model.apply(variables, hidden_R1D, method="logits")[:, 0], caches

    return step
