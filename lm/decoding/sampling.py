"""From a model's next-token distribution to the sampling distribution.

Axes: B batch, V vocabulary.
"""

import dataclasses

import jax
import jax.numpy as jnp
from jax import Array

from lm.configuration import check_seed
from lm.errors import UserError


@dataclasses.dataclass(frozen=True)
class SamplingConfig:
    """How the next token is chosen.

    Attributes:
      max_new_tokens: maximum number of tokens; generation also stops at the end of the text.
      temperature: logits are divided by it; 0 is greedy.
      top_k: only the k most likely tokens; 0: all.
      top_p: nucleus sampling (Holtzman et al. 2020): only the fewest tokens, most likely first, whose probabilities
        (after temperature and top-k) sum to at least this; 1: all.
      samples: continuations of each prompt.
      seed: of the samples.
    """

    max_new_tokens: int = 128
    temperature: float = 1.0
    top_k: int = 0
    top_p: float = 1.0
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


def sampling_log_probs(logits_BV: Array, config: SamplingConfig) -> Array:
    """The log-probabilities of the sampling distribution, [B, V]; -inf for excluded tokens.

    Temperature comes first, then top-k, then top-p, each applied to the renormalized result of the previous one. Tokens
    that tie with the last allowed one are allowed too.
    """
    if config.temperature == 0:
        highest = jnp.argmax(logits_BV, axis=-1)
        return jnp.where(jax.nn.one_hot(highest, logits_BV.shape[-1], dtype=bool), 0.0, -jnp.inf)
    logits_BV = logits_BV / config.temperature
    if 0 < config.top_k < logits_BV.shape[-1]:
        least_B1 = jax.lax.top_k(logits_BV, config.top_k)[0][:, -1:]
        logits_BV = jnp.where(logits_BV >= least_B1, logits_BV, -jnp.inf)
    if config.top_p < 1:
        sorted_BV = -jnp.sort(-logits_BV, axis=-1)
        probabilities_BV = jax.nn.softmax(sorted_BV, axis=-1)
        mass_before_BV = jnp.cumsum(probabilities_BV, axis=-1) - probabilities_BV
        least_B1 = jnp.where(mass_before_BV < config.top_p, sorted_BV, jnp.inf).min(axis=-1, keepdims=True)
        logits_BV = jnp.where(logits_BV >= least_B1, logits_BV, -jnp.inf)
    return jax.nn.log_softmax(logits_BV, axis=-1)
