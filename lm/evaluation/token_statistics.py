"""What a model's probabilities say of each token: the one place where logits become numbers.

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
      log_normalizer: the log-sum-exp of the logits, which z-loss keeps near 0.
      mean_logit: over the vocabulary, which label smoothing needs.
    """

    nll: Array
    correct: Array
    confidence: Array
    entropy: Array
    log_normalizer: Array
    mean_logit: Array


def token_statistics(logits: Array, targets: Array) -> TokenStatistics:
    """Statistics of each predicted token.

    Args:
      logits: [..., V], any floating dtype; computed with in float32.
      targets: [...], ids below V.

    Returns:
      `TokenStatistics` of the shape of `targets`. Under `jit` the fields that are not used are not computed.
    """
    logits = logits.astype(jnp.float32)
    target_logit = jnp.take_along_axis(logits, targets[..., None], axis=-1)[..., 0]
    highest = jax.lax.stop_gradient(logits.max(axis=-1))
    unnormalized = jnp.exp(logits - highest[..., None])
    normalizer = unnormalized.sum(axis=-1)
    log_normalizer = highest + jnp.log(normalizer)
    # Counting those that share the top costs a pass over V; an argmax on CPU costs several.
    sharing_the_top = (logits == highest[..., None]).sum(axis=-1)
    expected_logit = (unnormalized * jnp.maximum(logits, jnp.finfo(jnp.float32).min)).sum(axis=-1) / normalizer
    return TokenStatistics(
        nll=log_normalizer - target_logit,
        correct=jnp.where(target_logit == highest, 1 / sharing_the_top, 0).astype(jnp.float32),
        confidence=1 / normalizer,
        entropy=log_normalizer - expected_logit,
        log_normalizer=log_normalizer,
        mean_logit=logits.mean(axis=-1),
    )


def statistics_in_chunks(
    to_logits: Callable[[Array], Array], hidden_BTD: Array, targets_BT: Array, chunk: int
) -> TokenStatistics:
    """`token_statistics(to_logits(hidden_BTD), targets_BT)`, never holding more than `chunk` rows of logits.

    The backward pass computes each chunk's logits again, so that one more matrix product buys memory of
    `chunk * V` numbers in place of `B * T * V`.

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
