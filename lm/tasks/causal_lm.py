"""Causal language modelling: predict each token from those before it.

Axes: B batch (windows of text), T positions, V vocabulary, D model width.
"""

import dataclasses
from typing import Any

import jax.numpy as jnp
from jax import Array

from lm.errors import UserError
from lm.evaluation.token_statistics import TokenStatistics, statistics_in_chunks, token_statistics
from lm.models.decoder_lm import DecoderLM
from lm.tasks.token_reliability import TokenBuckets, reliability_sums

Batch = dict[str, Array]
Params = Any


@dataclasses.dataclass(frozen=True)
class ObjectiveConfig:
    """What is minimized for each token, besides its negative log-likelihood.

    Attributes:
      label_smoothing: the share of each target that is spread evenly over the vocabulary (Szegedy et al. 2016).
      z_loss: weight of the squared log-normalizer, which keeps logits from drifting (Chowdhery et al. 2022, section 5).
      loss_chunk: 0 holds the logits of a whole batch. A positive number holds those of so many tokens at a time and
        computes them again in the backward pass: less memory, more time.
    """

    label_smoothing: float = 0.0
    z_loss: float = 0.0
    loss_chunk: int = 0

    def __post_init__(self):
        if not 0 <= self.label_smoothing < 1:
            raise UserError(f"config.objective.label_smoothing must be in [0, 1), got {self.label_smoothing}")
        if self.z_loss < 0:
            raise UserError(f"config.objective.z_loss must not be negative, got {self.z_loss}")
        if self.loss_chunk < 0:
            raise UserError(f"config.objective.loss_chunk must not be negative, got {self.loss_chunk}")


@dataclasses.dataclass(frozen=True)
class CausalLM:
    """The task, as pure functions of (parameters, batch).

    Attributes:
      model: the network.
      objective: what to minimize.
      one_segment: promises that every window lies within one document, so that no segment mask is needed.
      buckets: of the vocabulary, by which reliability is told apart.
    """

    model: DecoderLM
    objective: ObjectiveConfig = ObjectiveConfig()
    one_segment: bool = False
    buckets: TokenBuckets = TokenBuckets()

    def init(self, key: Array) -> Params:
        """Random parameters."""
        return self.model.init(key, jnp.zeros((1, 1), jnp.int32))["params"]

    def loss(self, params: Params, batch: Batch, dropout_key: Array | None) -> tuple[Array, dict[str, Array]]:
        """The objective summed over the tokens of a batch, and the sums to report.

        Args:
          params: the model's.
          batch: `tokens`, `targets`, `weights`, `positions`, `segments`, each [B, T].
          dropout_key: turns dropout on.

        Returns:
          The weighted sum of the objective, and weighted sums by name: `weight` (the number of tokens, by which the
          others are to be divided), `loss` (negative log-likelihood) and `objective`.
        """
        statistics = self._statistics(params, batch, dropout_key)
        objective = self.objective
        smoothing = objective.label_smoothing
        per_token = statistics.nll
        if smoothing:
            uniform_nll = statistics.log_normalizer - statistics.mean_logit
            per_token = (1 - smoothing) * statistics.nll + smoothing * uniform_nll
        if objective.z_loss:
            per_token = per_token + objective.z_loss * jnp.square(statistics.log_normalizer)
        weights = batch["weights"]
        total = (weights * per_token).sum()
        sums = {
            "weight": weights.sum(),
            "loss": (weights * statistics.nll).sum(),
            "objective": total,
        }
        return total, sums

    def evaluate(self, params: Params, batch: Batch) -> dict[str, Any]:
        """Weighted sums over each window, [B], by name: `weight`, `loss`, `accuracy`, `confidence`, `entropy`.

        Besides `reliability`: sums over all windows, as `lm.tasks.token_reliability` makes them.
        """
        statistics = self._statistics(params, batch, None)
        weights = batch["weights"]
        per_token = {
            "weight": jnp.ones_like(weights),
            "loss": statistics.nll,
            "accuracy": statistics.correct,
            "confidence": statistics.confidence,
            "entropy": statistics.entropy,
        }
        sums = {name: (weights * value).sum(axis=1) for name, value in per_token.items()}
        sums["reliability"] = reliability_sums(
            statistics, statistics.predicted, batch["positions"], weights, self.buckets, self.model.config.vocab_size
        )
        return sums

    def _statistics(self, params: Params, batch: Batch, dropout_key: Array | None) -> TokenStatistics:
        variables = {"params": params}
        rngs = {} if dropout_key is None else {"dropout": dropout_key}
        segments = None if self.one_segment else batch["segments"]
        positions = None if self.one_segment else batch["positions"]
        hidden_BTD = self.model.apply(
            variables, batch["tokens"], segments, positions, rngs=rngs, method=DecoderLM.hidden
        )

        def to_logits(hidden: Array) -> Array:
            return self.model.apply(variables, hidden, method=DecoderLM.logits)

        if self.objective.loss_chunk:
            return statistics_in_chunks(to_logits, hidden_BTD, batch["targets"], self.objective.loss_chunk)
        return token_statistics(to_logits(hidden_BTD), batch["targets"])
