"""From a model's next-token logits to the sampling distribution, and a token drawn from it.

Axes: B batch, V vocabulary, M the likeliest tokens, the likeliest first.
"""

import dataclasses
import math

import jax
import jax.numpy as jnp
from jax import Array

from lm.configuration import check_seed
from lm.errors import UserError

# So many of the likeliest tokens nearly always include all that top-k, top-p and min-p allow; sorting a vocabulary of
# 49,152 would take a quarter of a small model's step.
_SHORTLIST = 256


@dataclasses.dataclass(frozen=True)
class SamplingConfig:
    """How the next token is chosen.

    Attributes:
      max_new_tokens: maximum number of tokens; generation also stops at the end of the text.
      temperature: logits are divided by it; 0 is greedy.
      top_k: only the k most likely tokens; 0: all.
      top_p: nucleus sampling (Holtzman et al. 2020): only the fewest tokens, most likely first, whose probabilities
        (after temperature and top-k) sum to at least this; 1: all.
      min_p: only tokens whose probability (after temperature) is at least this share of the likeliest one's (Nguyen et
        al. 2024); 0: all.
      repetition_penalty: logits of tokens that the prompt or the continuation already has are divided by it if
        positive and multiplied by it if negative (CTRL, Keskar et al. 2019, section 4.1); 1: no penalty. An
        encoder-decoder's output is compared with itself only.
      stop: strings at which a text ends; it is cut before the first of them. Code without a tokenizer ignores them.
      samples: continuations of each prompt.
      seed: of the samples.
    """

    max_new_tokens: int = 128
    temperature: float = 1.0
    top_k: int = 0
    top_p: float = 1.0
    min_p: float = 0.0
    repetition_penalty: float = 1.0
    stop: tuple[str, ...] = ()
    samples: int = 1
    seed: int = 0

    def __post_init__(self):
        if self.max_new_tokens < 1 or self.samples < 1:
            raise UserError("max_new_tokens and samples must be at least 1")
        check_seed("seed", self.seed)
        if self.temperature < 0:
            raise UserError(f"temperature must not be negative, got {self.temperature}")
        if self.top_k < 0:
            raise UserError(f"top_k must not be negative, got {self.top_k}")
        if not 0 < self.top_p <= 1:
            raise UserError(f"top_p must be in (0, 1], got {self.top_p}")
        if not 0 <= self.min_p <= 1:
            raise UserError(f"min_p must be in [0, 1], got {self.min_p}")
        if not 0 < self.repetition_penalty < math.inf:
            raise UserError(f"repetition_penalty must be positive, got {self.repetition_penalty}")
        if not all(self.stop):
            raise UserError("stop must not have an empty string: every text would end before it begins")

    @property
    def restricts(self) -> bool:
        """Whether it excludes unlikely tokens."""
        return self.top_k > 0 or self.top_p < 1 or self.min_p > 0

    @property
    def distribution(self) -> "SamplingConfig":
        """The settings that shape the distribution of a token; the others have their defaults."""
        return dataclasses.replace(self, max_new_tokens=1, stop=(), samples=1, seed=0)


def penalized(logits_BV: Array, seen_BV: Array, penalty: float) -> Array:
    """The logits, those of tokens in `seen_BV` (bool) lowered as `SamplingConfig.repetition_penalty` says."""
    lowered_BV = jnp.where(logits_BV < 0, logits_BV * penalty, logits_BV / penalty)
    return jnp.where(seen_BV, lowered_BV, logits_BV)


def sampling_log_probs(logits_BV: Array, config: SamplingConfig) -> Array:
    """The log-probabilities of the sampling distribution, [B, V]; -inf for excluded tokens.

    Temperature comes first, then top-k, then top-p, each applied to the renormalized result of the previous one, then
    min-p. Tokens that tie with the last allowed one are allowed too.
    """
    if config.temperature == 0:
        highest = jnp.argmax(logits_BV, axis=-1)
        return jnp.where(jax.nn.one_hot(highest, logits_BV.shape[-1], dtype=bool), 0.0, -jnp.inf)
    logits_BV = logits_BV / config.temperature
    if config.restricts:
        total_B1 = jax.nn.logsumexp(logits_BV, axis=-1, keepdims=True)
        least_B1 = _least_allowed(-jnp.sort(-logits_BV, axis=-1), total_B1, config)
        logits_BV = jnp.where(logits_BV >= least_B1, logits_BV, -jnp.inf)
    return jax.nn.log_softmax(logits_BV, axis=-1)


def choose(logits_BV: Array, keys_B: Array, config: SamplingConfig) -> tuple[Array, Array]:
    """Draws a token of each row from its sampling distribution.

    Args:
      logits_BV: of the next token.
      keys_B: a random key for each row; the row's token depends on nothing else of the batch.
      config: the distribution.

    Returns:
      The tokens, int32 [B], and their log-probabilities under the sampling distribution, float32 [B].
    """
    if config.temperature == 0:
        return jnp.argmax(logits_BV, axis=-1).astype(jnp.int32), jnp.zeros(logits_BV.shape[0], jnp.float32)
    logits_BV = logits_BV / config.temperature
    if not config.restricts:
        tokens_B = jnp.argmax(logits_BV + _noise(keys_B, logits_BV.shape[-1]), axis=-1)
        log_probs_B = _of(logits_BV, tokens_B) - jax.nn.logsumexp(logits_BV, axis=-1)
        return tokens_B.astype(jnp.int32), log_probs_B
    size = logits_BV.shape[-1]
    if size <= _SHORTLIST:
        return _choose_among(logits_BV, keys_B, size, config)[:2]
    *chosen, complete = _choose_among(logits_BV, keys_B, max(_SHORTLIST, min(2 * config.top_k, size)), config)
    return jax.lax.cond(complete, lambda: tuple(chosen), lambda: _choose_among(logits_BV, keys_B, size, config)[:2])


def _choose_among(logits_BV: Array, keys_B: Array, size: int, config: SamplingConfig) -> tuple[Array, Array, Array]:
    """Draws among the `size` likeliest tokens; also returns whether these include all that are allowed.

    Noise belongs to ranks, and the first numbers of a key are the same however many are drawn, so that a row's token
    does not depend on `size` if its shortlist is complete.
    """
    values_BM, ids_BM = jax.lax.top_k(logits_BV, size)
    total_B1 = jax.nn.logsumexp(logits_BV, axis=-1, keepdims=True)
    least_B1 = _least_allowed(values_BM, total_B1, config)
    allowed_BM = jnp.where(values_BM >= least_B1, values_BM, -jnp.inf)
    ranks_B = jnp.argmax(allowed_BM + _noise(keys_B, size), axis=-1)
    log_probs_B = _of(allowed_BM, ranks_B) - jax.nn.logsumexp(allowed_BM, axis=-1)
    return _of(ids_BM, ranks_B).astype(jnp.int32), log_probs_B, (values_BM[:, -1:] < least_B1).all()


def _least_allowed(values_BM: Array, total_B1: Array, config: SamplingConfig) -> Array:
    """The smallest logit that is allowed, [B, 1].

    Args:
      values_BM: the highest logits, in descending order.
      total_B1: the log of the sum of all exponentiated logits, also of those that are not among them.
      config: its top-k, top-p and min-p.

    Returns:
      At most the last value if other logits may be allowed too.
    """
    least_B1 = jnp.full_like(total_B1, -jnp.inf)
    if 0 < config.top_k < values_BM.shape[-1]:
        least_B1 = values_BM[:, config.top_k - 1 : config.top_k]
        values_BM = jnp.where(values_BM >= least_B1, values_BM, -jnp.inf)
        total_B1 = jax.nn.logsumexp(values_BM, axis=-1, keepdims=True)
    if config.top_p < 1:
        probabilities_BM = jnp.exp(values_BM - total_B1)
        mass_before_BM = jnp.cumsum(probabilities_BM, axis=-1) - probabilities_BM
        inside_BM = jnp.where(mass_before_BM < config.top_p, values_BM, jnp.inf)
        least_B1 = jnp.maximum(least_B1, inside_BM.min(axis=-1, keepdims=True))
    if config.min_p > 0:
        least_B1 = jnp.maximum(least_B1, values_BM[:, :1] + math.log(config.min_p))
    return least_B1


def _noise(keys_B: Array, size: int) -> Array:
    """Gumbel noise: the largest of noisy logits is a sample of their softmax."""
    return jax.vmap(lambda key: jax.random.gumbel(key, (size,)))(keys_B)


def _of(values_BM: Array, places_B: Array) -> Array:
    return jnp.take_along_axis(values_BM, places_B[:, None], axis=-1)[:, 0]
