"""Per-token statistics of a model's probabilities: the one place that computes them from logits.

Axes: V vocabulary, or one device's part of it. A leading "..." stands for any axes.
"""

import dataclasses
import functools
from typing import NamedTuple

import flax.struct
import jax
import jax.numpy as jnp
from jax import Array


@flax.struct.dataclass
class TokenStatistics:
    """Per-token statistics in float32, of the shape of the targets.

    Attributes:
      nll: negative log-likelihood of the target, in nats.
      correct: 1 where the target has the highest logit, else 0; 1/n where n tokens share the highest.
      confidence: the highest probability.
      entropy: of the predicted distribution, in nats.
      predicted: the id with the highest logit, int32; in a tie, the mean of the ids.
      log_normalizer: the log-sum-exp of the logits, which z-loss keeps near 0.
      mean_logit: over the vocabulary, which label smoothing needs.
    """

    nll: Array
    correct: Array
    confidence: Array
    entropy: Array
    predicted: Array
    log_normalizer: Array
    mean_logit: Array


@dataclasses.dataclass(frozen=True)
class Vocabulary:
    """The last axis of logits: the whole vocabulary, or one device's part of it.

    Attributes:
      axis_name: the mesh axis over which the vocabulary is split, under `shard_map`; None: it is whole.
    """

    axis_name: str | None = None

    def sum(self, sums: Array) -> Array:
        """Sums over the vocabulary, from those over this part."""
        return sums if self.axis_name is None else jax.lax.psum(sums, self.axis_name)

    def max(self, maxima: Array) -> Array:
        """Maxima over the vocabulary, from those over this part."""
        return maxima if self.axis_name is None else jax.lax.pmax(maxima, self.axis_name)

    def size(self, logits: Array) -> int:
        """V."""
        return logits.shape[-1] if self.axis_name is None else logits.shape[-1] * jax.lax.axis_size(self.axis_name)

    def start(self, logits: Array) -> int | Array:
        """The id of the part's first token."""
        return 0 if self.axis_name is None else logits.shape[-1] * jax.lax.axis_index(self.axis_name)

    def logit_of(self, logits: Array, targets: Array) -> Array:
        """The logit of each target, of the shape of `targets`; NaN where the target is no id."""
        places = targets - self.start(logits)
        is_here = (places >= 0) & (places < logits.shape[-1])
        found = jnp.take_along_axis(logits, jnp.where(is_here, places, 0)[..., None], axis=-1)[..., 0]
        is_id = (targets >= 0) & (targets < self.size(logits))
        return jnp.where(is_id, self.sum(jnp.where(is_here, found, 0)), jnp.nan)


WHOLE = Vocabulary()


def token_statistics(logits: Array, targets: Array, vocabulary: Vocabulary = WHOLE) -> TokenStatistics:
    """Statistics of each predicted token.

    Args:
      logits: [..., V], any floating dtype; converted to float32.
      targets: [...], ids below V; any other gives NaN for `nll` and `correct`.
      vocabulary: whether the last axis of `logits` is only a part of it. Results have no gradients then.

    Returns:
      `TokenStatistics` of the shape of `targets`. Under `jit` unused fields are not computed.
    """
    logits = logits.astype(jnp.float32)
    nll, log_normalizer = _nll_and_log_normalizer(logits, targets, vocabulary)
    highest = vocabulary.max(logits.max(axis=-1))
    # Everything that is invariant to a constant added to the logits is computed after subtracting the maximum:
    # differences of large logits are exact, differences of large results are not.
    shifted = logits - jax.lax.stop_gradient(highest)[..., None]
    unnormalized = jnp.exp(shifted)
    normalizer = vocabulary.sum(_sum_of_last_axis(unnormalized))
    # Counting the ties at the top costs one pass over V; an argmax on CPU costs several. With ids next to ones, the
    # same pass also gives the token.
    ids = vocabulary.start(logits) + jnp.arange(logits.shape[-1], dtype=jnp.float32)
    ones_and_ids = jnp.stack([jnp.ones_like(ids), ids], axis=1)
    at_the_top = vocabulary.sum(jnp.matmul((shifted == 0).astype(jnp.float32), ones_and_ids, precision="highest"))
    sharing_the_top, sum_of_ids = at_the_top[..., 0], at_the_top[..., 1]
    target_shifted = vocabulary.logit_of(shifted, targets)
    products = unnormalized * jnp.maximum(shifted, jnp.finfo(jnp.float32).min)
    expected_shifted = vocabulary.sum(_sum_of_last_axis(products)) / normalizer
    return TokenStatistics(
        nll=nll,
        correct=jnp.where(target_shifted < 0, 0, 1 / sharing_the_top + target_shifted).astype(jnp.float32),
        confidence=jnp.exp(highest - log_normalizer),
        entropy=jnp.log(normalizer) - expected_shifted,
        predicted=(sum_of_ids / sharing_the_top).astype(jnp.int32),
        log_normalizer=log_normalizer,
        mean_logit=vocabulary.sum(logits.sum(axis=-1)) / vocabulary.size(logits),
    )


def _sum_of_last_axis(values: Array) -> Array:
    """On CPU a product with ones: XLA's own sum of exponentials is three times slower there."""

    def product(values: Array) -> Array:
        return jnp.matmul(values, jnp.ones(values.shape[-1], values.dtype), precision="highest")

    return jax.lax.platform_dependent(values, cpu=product, default=lambda values: values.sum(axis=-1))


class Normalized(NamedTuple):
    """Logits on their way to probabilities.

    Attributes:
      unnormalized: probabilities times `normalizer`, of the shape of the logits.
      normalizer: the sum of these over the vocabulary.
      log_normalizer: the log-sum-exp of the logits.
      nll: of the targets.
    """

    unnormalized: Array
    normalizer: Array
    log_normalizer: Array
    nll: Array


def normalized(logits: Array, targets: Array, vocabulary: Vocabulary = WHOLE) -> Normalized:
    """What losses need of logits, in two passes over V. Arguments as for `token_statistics`; no gradients."""
    highest = vocabulary.max(logits.max(axis=-1))
    unnormalized = jnp.exp(logits - highest[..., None])
    normalizer = vocabulary.sum(_sum_of_last_axis(unnormalized))
    log_of_sum = jnp.log(normalizer)
    nll = log_of_sum - (vocabulary.logit_of(logits, targets) - highest)
    return Normalized(unnormalized, normalizer, highest + log_of_sum, nll)


@functools.partial(jax.custom_vjp, nondiff_argnums=(2,))
def _nll_and_log_normalizer(logits: Array, targets: Array, vocabulary: Vocabulary) -> tuple[Array, Array]:
    """Both from two passes over V, their gradient from one; a derived gradient needs several."""
    return _nll_forward(logits, targets, vocabulary)[0]


def _nll_forward(
    logits: Array, targets: Array, vocabulary: Vocabulary
) -> tuple[tuple[Array, Array], tuple[Array, ...]]:
    unnormalized, normalizer, log_normalizer, nll = normalized(logits, targets, vocabulary)
    return (nll, log_normalizer), (unnormalized, targets, normalizer)


def _nll_backward(
    vocabulary: Vocabulary, saved: tuple[Array, ...], gradients: tuple[Array, Array]
) -> tuple[Array, None]:
    if vocabulary != WHOLE:
        raise ValueError("statistics of a split vocabulary have no gradients: use linear_cross_entropy")
    unnormalized, targets, normalizer = saved
    of_nll, of_log_normalizer = gradients
    scale = (of_nll + of_log_normalizer) / normalizer
    # A comparison, not a scatter: it fuses into the same pass, and it shards over V.
    is_target = jax.nn.one_hot(targets, unnormalized.shape[-1], dtype=bool)
    return scale[..., None] * unnormalized - jnp.where(is_target, of_nll[..., None], 0), None


_nll_and_log_normalizer.defvjp(_nll_forward, _nll_backward)
