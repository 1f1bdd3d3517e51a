"""One token further: how uncertain a decoder would be after each token that may come next.

All V candidates of a place are read in one pass over a shared cache, as if each alone had been appended.

Axes: B sequences, P prompt positions, T positions, C chosen positions, V vocabulary, K key-value heads, S slots of the
cache, H head width. The last V slots of a cache are for candidates.
"""

import functools

import flax.struct
import jax
import jax.numpy as jnp
from jax import Array

from lm.decoding.step import Caches, decoder_start
from lm.errors import UserError
from lm.evaluation.token_statistics import token_statistics
from lm.models.decoder_lm import DecoderLM
from lm.models.unrolled import unrolled
from lm.modules.attention import KeyValues
from lm.modules.config import ModelConfig
from lm.modules.stack import BlockCache
from lm.modules.stack import Caches as DecoderCaches
from lm.types import Params


@flax.struct.dataclass
class _CandidateKeyValues(KeyValues):
    """Keys and values of the tokens so far, with the candidates' in the last slots, whatever their positions."""

    def write(self, keys_BTKH: Array, values_BTKH: Array, positions_BT: Array) -> "_CandidateKeyValues":
        """A copy with the candidates' keys and values."""
        first = self.keys_BKSH.shape[2] - positions_BT.shape[1]
        return _CandidateKeyValues(
            self.keys_BKSH.at[:, :, first:].set(jnp.swapaxes(keys_BTKH, 1, 2)),
            self.values_BKSH.at[:, :, first:].set(jnp.swapaxes(values_BTKH, 1, 2)),
        )


@flax.struct.dataclass
class _CandidateCaches(DecoderCaches):
    """Caches in which each candidate sees the tokens before its position, and itself."""

    def visible_slots(self, positions_BT: Array) -> Array:
        """The mask, [B, T, S]."""
        candidates = positions_BT.shape[1]
        earlier_BTS = jnp.arange(self.length - candidates)[None, None, :] < positions_BT[:, :, None]
        itself_BTS = jnp.broadcast_to(jnp.eye(candidates, dtype=bool), (len(positions_BT), candidates, candidates))
        return jnp.concatenate([earlier_BTS, itself_BTS], axis=2)


def check_look_ahead(config: ModelConfig) -> None:
    """Checks that candidates can share a cache.

    Raises:
      UserError: for what counts distances by slot: relative positions and windows.
    """
    if config.architecture != "decoder":
        raise UserError(f"config.model.architecture={config.architecture} cannot look ahead: choose a decoder")
    if config.positions == "relative":
        raise UserError("config.model.positions=relative cannot look ahead: choose learned, sinusoidal or rotary")
    if config.attention_window is not None:
        raise UserError(f"config.model.attention_window={config.attention_window} cannot look ahead: leave it out")


def candidate_entropies(model: DecoderLM, params: Params, caches: Caches, positions_B: Array, vocab_size: int) -> Array:
    """The entropy of the model's prediction after each candidate for a position, in nats, [B, V].

    Args:
      model: the network, unrolled.
      params: its parameters.
      caches: of the tokens before the positions, with V slots to spare at the end. They stay as they are.
      positions_B: of the candidates in each row.
      vocab_size: V.
    """
    assert isinstance(caches, DecoderCaches), "of a decoder"
    assert isinstance(caches.blocks, tuple), "of an unrolled one"
    blocks = tuple(BlockCache(_CandidateKeyValues(**vars(block.tokens))) for block in caches.blocks)
    shape = (positions_B.size, vocab_size)
    tokens_BV = jnp.broadcast_to(jnp.arange(vocab_size)[None, :], shape)
    positions_BV = jnp.broadcast_to(positions_B[:, None], shape)
    arrays = (tokens_BV, positions_BV, _CandidateCaches(blocks))
    hidden_BVD, _ = model.apply({"params": params}, *arrays, method=DecoderLM.hidden_with_cache)
    logits_BVV = model.apply({"params": params}, hidden_BVD, method="logits")[..., :vocab_size]
    return token_statistics(logits_BVV, tokens_BV).entropy


@functools.partial(jax.jit, static_argnames=("model", "vocab_size"))
def look_ahead(
    model: DecoderLM, params: Params, tokens_BT: Array, positions_C: Array, vocab_size: int
) -> tuple[Array, Array]:
    """What a decoder predicts at some positions of given texts, and how uncertain it would be after each prediction.

    Args:
      model: the network.
      params: its parameters.
      tokens_BT: token ids.
      positions_C: which tokens are predicted, from those before them; 1 or more.
      vocab_size: V; ids from here on pad the embedding table.

    Returns:
      The log-probabilities of these tokens, [B, C, V], and the entropies of the tokens after them, in nats, [B, C, V].
    """
    model, params = unrolled(model, params)
    batch, length = tokens_BT.shape
    hidden_BTD = model.apply({"params": params}, tokens_BT, method=DecoderLM.hidden)
    before_BCD = jnp.take(hidden_BTD, positions_C - 1, axis=1)
    logits_BCV = model.apply({"params": params}, before_BCD, method="logits")[..., :vocab_size]
    lengths_B = jnp.full(batch, length, jnp.int32)
    caches = decoder_start(model, params, tokens_BT, lengths_B, length + vocab_size).caches

    def of_position(position: Array) -> Array:
        return candidate_entropies(model, params, caches, jnp.full(batch, position), vocab_size)

    return jax.nn.log_softmax(logits_BCV, axis=-1), jnp.swapaxes(jax.lax.map(of_position, positions_C), 0, 1)


@functools.partial(jax.jit, static_argnames=("model", "new_tokens", "vocab_size"))
def sample_with_look_ahead(
    model: DecoderLM,
    params: Params,
    prompts_BP: Array,
    alpha: Array | float,
    seed: int,
    new_tokens: int,
    vocab_size: int,
) -> tuple[Array, Array]:
    """Samples texts from p(x) exp(-alpha H(x)), normalized, where H(x) is the entropy after x.

    This is the correction of Braverman et al. 2020 (arXiv 1906.05664) with one step of look-ahead, at temperature 1.

    Args:
      model: the network.
      params: its parameters.
      prompts_BP: token ids, equally many for all.
      alpha: weight of the entropies, in 1/nats; 0 samples from the model itself.
      seed: of the samples. A row's depends on its place in the batch.
      new_tokens: T.
      vocab_size: V; ids from here on pad the embedding table.

    Returns:
      The new tokens, int32 [B, T], and the entropy of the distribution that each was drawn from, in nats, [B, T].
    """
    model, params = unrolled(model, params)
    batch, read = prompts_BP.shape
    lengths_B = jnp.full(batch, read, jnp.int32)
    start = decoder_start(model, params, prompts_BP, lengths_B, read + new_tokens + vocab_size)

    def one_token(carry: tuple[Array, Caches], n: Array) -> tuple[tuple[Array, Caches], tuple[Array, Array]]:
        logits_BV, caches = carry
        positions_B = jnp.full(batch, read + n)
        entropies_BV = candidate_entropies(model, params, caches, positions_B, vocab_size)
        corrected_BV = logits_BV[:, :vocab_size] - alpha * entropies_BV
        tokens_B = jax.random.categorical(jax.random.fold_in(jax.random.key(seed), n), corrected_BV).astype(jnp.int32)
        found = tokens_B, token_statistics(corrected_BV, tokens_B).entropy
        return start.step(tokens_B[:, None], positions_B[:, None], caches), found

    _, (tokens_TB, entropies_TB) = jax.lax.scan(one_token, (start.logits_BV, start.caches), jnp.arange(new_tokens))
    return tokens_TB.T, entropies_TB.T
