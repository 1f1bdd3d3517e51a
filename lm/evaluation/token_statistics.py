"""Per-token statistics of a model's probabilities: the one place that computes them from logits.

Axes: B batch, T positions, V vocabulary, D model width. A leading "..." stands for any axes.
"""

from collections.abc import Callable

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


def token_statistics(logits: Array, targets: Array) -> TokenStatistics:
    """Statistics of each predicted token.

    Args:
      logits: [..., V], any floating dtype; converted to float32.
      targets: [...], ids below V; any other gives NaN for `nll` and `correct`.

    Returns:
      `TokenStatistics` of the shape of `targets`. Under `jit` unused fields are not computed.
    """
    logits = logits.astype(jnp.float32)
    vocab_size = logits.shape[-1]
    targets = jnp.where((targets >= 0) & (targets < vocab_size), targets, vocab_size)
    nll, log_normalizer = _nll_and_log_normalizer(logits, targets)
    highest = logits.max(axis=-1)
    # Everything that is invariant to a constant added to the logits is computed after subtracting the maximum:
    # differences of large logits are exact, differences of large results are not.
    shifted = logits - jax.lax.stop_gradient(highest)[..., None]
    unnormalized = jnp.exp(shifted)
    normalizer = _sum_of_last_axis(unnormalized)
    # Counting the ties at the top costs one pass over V; an argmax on CPU costs several. With ids next to ones, the
    # same pass also gives the token.
    ones_and_ids = jnp.stack([jnp.ones(vocab_size), jnp.arange(vocab_size, dtype=jnp.float32)], axis=1)
    at_the_top = jnp.matmul((shifted == 0).astype(jnp.float32), ones_and_ids, precision="highest")
    sharing_the_top, sum_of_ids = at_the_top[..., 0], at_the_top[..., 1]
    target_shifted = _logit_of(shifted, targets)
    expected_shifted = _sum_of_last_axis(unnormalized * jnp.maximum(shifted, jnp.finfo(jnp.float32).min)) / normalizer
    return TokenStatistics(
        nll=nll,
        correct=jnp.where(target_shifted < 0, 0, 1 / sharing_the_top + target_shifted).astype(jnp.float32),
        confidence=jnp.exp(highest - log_normalizer),
        entropy=jnp.log(normalizer) - expected_shifted,
        predicted=(sum_of_ids / sharing_the_top).astype(jnp.int32),
        log_normalizer=log_normalizer,
        mean_logit=logits.mean(axis=-1),
    )


def _logit_of(logits: Array, targets: Array) -> Array:
    """The logit of each target; NaN where the target is V."""
    return jnp.take_along_axis(logits, targets[..., None], axis=-1, mode="fill")[..., 0]


def _sum_of_last_axis(values: Array) -> Array:
    """A product with ones: on CPU, XLA's own sum of exponentials is three times slower."""
    return jnp.matmul(values, jnp.ones(values.shape[-1], values.dtype), precision="highest")


@jax.custom_vjp
def _nll_and_log_normalizer(logits: Array, targets: Array) -> tuple[Array, Array]:
    """Both from two passes over V, their gradient from one; a derived gradient needs several."""
    return _nll_forward(logits, targets)[0]


def _nll_forward(logits: Array, targets: Array) -> tuple[tuple[Array, Array], tuple[Array, ...]]:
    highest = logits.max(axis=-1)
    unnormalized = jnp.exp(logits - highest[..., None])
    normalizer = _sum_of_last_axis(unnormalized)
    log_of_sum = jnp.log(normalizer)
    nll = log_of_sum - (_logit_of(logits, targets) - highest)
    return (nll, highest + log_of_sum), (unnormalized, targets, normalizer)


def _nll_backward(saved: tuple[Array, ...], gradients: tuple[Array, Array]) -> tuple[Array, None]:
    unnormalized, targets, normalizer = saved
    of_nll, of_log_normalizer = gradients
    scale = (of_nll + of_log_normalizer) / normalizer
    # A comparison, not a scatter: it fuses into the same pass, and it shards over V.
    is_target = jax.nn.one_hot(targets, unnormalized.shape[-1], dtype=bool)
    return scale[..., None] * unnormalized - jnp.where(is_target, of_nll[..., None], 0), None


_nll_and_log_normalizer.defvjp(_nll_forward, _nll_backward)


def statistics_in_chunks(
    to_logits: Callable[[Array], Array], hidden_BTD: Array, targets_BT: Array, chunk: int
) -> TokenStatistics:
    """`token_statistics(to_logits(hidden_BTD), targets_BT)`, never holding more than `chunk` rows of logits.

    The backward pass recomputes each chunk's logits: one more matrix product, but memory for `chunk * V` numbers
    instead of `B * T * V`.

    Args:
      to_logits: from [n, D] to [n, V].
      hidden_BTD: last hidden states.
      targets_BT: ids below V.
      chunk: tokens at a time; the last chunk is padded.
    """
    flat_hidden = hidden_BTD.reshape(-1, hidden_BTD.shape[-1])
    flat_targets = targets_BT.reshape(-1)
    tokens = flat_targets.shape[0]
    padding = -tokens % chunk
    chunked_hidden = jnp.pad(flat_hidden, ((0, padding), (0, 0))).reshape(-1, chunk, flat_hidden.shape[-1])
    chunked_targets = jnp.pad(flat_targets, (0, padding)).reshape(-1, chunk)

    @jax.checkpoint
    def one_chunk(hidden_and_targets: tuple[Array, Array]) -> TokenStatistics:
        hidden, targets = hidden_and_targets
        return token_statistics(to_logits(hidden), targets)

    statistics = jax.lax.map(one_chunk, (chunked_hidden, chunked_targets))
    return jax.tree.map(lambda x: x.reshape(-1)[:tokens].reshape(targets_BT.shape), statistics)


def token_loss(
    statistics: TokenStatistics, weights_BT: Array, label_smoothing: float = 0.0, z_loss: float = 0.0
) -> tuple[Array, dict[str, Array]]:
    """The objective summed over the tokens of a batch, and the sums to report.

    Args:
      statistics: of the tokens, [B, T].
      weights_BT: how much each token counts.
      label_smoothing: the probability mass of each target that is spread uniformly over the vocabulary (Szegedy et al.
        2016).
      z_loss: weight of the squared log-normalizer (Chowdhery et al. 2022, section 5).

    Returns:
      The weighted sum of the objective, and weighted sums by name: `weight` (the number of tokens, by which the others
      are divided), `loss` (negative log-likelihood) and `objective`.
    """
    per_token = statistics.nll
    if label_smoothing:
        uniform_nll = statistics.log_normalizer - statistics.mean_logit
        per_token = (1 - label_smoothing) * statistics.nll + label_smoothing * uniform_nll
    if z_loss:
        per_token = per_token + z_loss * jnp.square(statistics.log_normalizer)
    total = (weights_BT * per_token).sum()
    return total, {"weight": weights_BT.sum(), "loss": (weights_BT * statistics.nll).sum(), "objective": total}
