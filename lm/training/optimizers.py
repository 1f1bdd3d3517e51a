"""Optimizers and learning-rate schedules by name, all of them optax's."""

import dataclasses
import math
from typing import Any

import jax
import jax.numpy as jnp
import optax
from jax import Array

from lm.errors import UserError

Params = Any

OPTIMIZERS = ("sgd", "momentum", "adam", "adamw", "adafactor", "lion", "muon")
SCHEDULES = ("constant", "cosine", "linear", "warmup_stable_decay", "inverse_square_root")


@dataclasses.dataclass(frozen=True)
class OptimizerConfig:
    """How parameters move, validated when made.

    Attributes:
      name: "sgd", "momentum", "adam", "adamw", "adafactor", "lion" or "muon" (Muon for the matrices inside the stack,
        Adam for everything else).
      learning_rate: the highest that the schedule reaches.
      schedule: "constant", "cosine", "linear", "warmup_stable_decay" or "inverse_square_root", each after a linear
        warm-up from 0.
      warmup_steps: optimizer steps of warm-up.
      decay_fraction: the last part of training in which "warmup_stable_decay" falls linearly.
      final_learning_rate: where "cosine", "linear" and "warmup_stable_decay" end, as a fraction of `learning_rate`.
      b1: decay of the first moment; also the momentum of "momentum" and "muon".
      b2: decay of the second moment.
      epsilon: added to the root of the second moment.
      weight_decay: decoupled: per step, parameters shrink by learning rate times this. Not for "adam".
      decay_embeddings: whether weight decay and the penalties also act on embeddings and the output matrix. They never
        act on norms and biases.
      adam_learning_rate: for "muon", that of the parameters which Adam moves, as a fraction of `learning_rate`.
      clip_norm: gradients with a larger global norm are scaled down to it; 0: never.
      l1: weight of the sum of absolute values, added to the objective per step.
      l2: weight of half the sum of squares, added to the objective per step.
      ema_decay: keeps an exponential moving average of the parameters, with which evaluation and generation work;
        0: none.
    """

    name: str = "adamw"
    learning_rate: float = 1e-3
    schedule: str = "cosine"
    warmup_steps: int = 100
    decay_fraction: float = 0.2
    final_learning_rate: float = 0.1
    b1: float = 0.9
    b2: float = 0.95
    epsilon: float = 1e-8
    weight_decay: float = 0.1
    decay_embeddings: bool = True
    adam_learning_rate: float = 0.1
    clip_norm: float = 1.0
    l1: float = 0.0
    l2: float = 0.0
    ema_decay: float = 0.0

    def __post_init__(self):
        for name, known in (("name", OPTIMIZERS), ("schedule", SCHEDULES)):
            if getattr(self, name) not in known:
                raise UserError(
                    f"config.optimizer.{name} must be one of {', '.join(known)}; got {getattr(self, name)!r}"
                )
        for name in ("warmup_steps", "weight_decay", "clip_norm", "l1", "l2", "epsilon", "final_learning_rate"):
            if getattr(self, name) < 0:
                raise UserError(f"config.optimizer.{name} must not be negative, got {getattr(self, name)}")
        for name in ("b1", "b2", "ema_decay"):
            if not 0 <= getattr(self, name) < 1:
                raise UserError(f"config.optimizer.{name} must be in [0, 1), got {getattr(self, name)}")
        if not 0 < self.decay_fraction <= 1:
            raise UserError(f"config.optimizer.decay_fraction must be in (0, 1], got {self.decay_fraction}")
        if self.learning_rate <= 0:
            raise UserError(f"config.optimizer.learning_rate must be positive, got {self.learning_rate}")


def make_schedule(config: OptimizerConfig, steps: int) -> optax.Schedule:
    """The learning rate as a function of the optimizer step, which counts from 0 to `steps` - 1."""
    peak, last = config.learning_rate, config.learning_rate * config.final_learning_rate
    warmup = config.warmup_steps
    after = max(steps - warmup, 1)
    if config.schedule == "cosine":
        main = optax.cosine_decay_schedule(peak, after, alpha=config.final_learning_rate)
    elif config.schedule == "linear":
        main = optax.linear_schedule(peak, last, after)
    elif config.schedule == "warmup_stable_decay":
        decay_steps = max(math.ceil(after * config.decay_fraction), 1)
        main = optax.linear_schedule(peak, last, decay_steps, transition_begin=after - decay_steps)
    elif config.schedule == "inverse_square_root":
        shift = max(warmup, 1)
        main = lambda step: peak * jnp.sqrt(shift / (step + shift))  # noqa: E731
    else:
        main = optax.constant_schedule(peak)
    if not warmup:
        return main
    # The first step already moves: a rate of exactly 0 would waste it.
    ramp = optax.linear_schedule(peak / (warmup + 1), peak, warmup)
    return optax.join_schedules([ramp, main], [warmup])


def make_optimizer(config: OptimizerConfig, steps: int) -> optax.GradientTransformation:
    """The configured optimizer: clipping, update rule, weight decay, schedule.

    Args:
      config: which, and its numbers.
      steps: optimizer steps in the whole run, which the schedule needs.
    """
    schedule = make_schedule(config, steps)

    def decays(params: Params) -> Params:
        return decay_mask(params, config.decay_embeddings)

    decoupled = {"weight_decay": config.weight_decay, "mask": decays}
    if config.name == "sgd":
        rule = optax.chain(optax.add_decayed_weights(config.weight_decay, decays), optax.sgd(schedule))
    elif config.name == "momentum":
        decay = optax.add_decayed_weights(config.weight_decay, decays)
        rule = optax.chain(optax.trace(config.b1), decay, optax.scale_by_learning_rate(schedule))
    elif config.name == "adam":
        rule = optax.adam(schedule, config.b1, config.b2, config.epsilon)
    elif config.name == "adamw":
        rule = optax.adamw(schedule, config.b1, config.b2, config.epsilon, **decoupled)
    elif config.name == "lion":
        rule = optax.lion(schedule, config.b1, config.b2, **decoupled)
    elif config.name == "adafactor":
        # optax's own decay is per step, not per step and learning rate: the chain keeps one meaning for all rules.
        rule = optax.chain(
            optax.scale_by_factored_rms(),
            optax.clip_by_block_rms(1.0),
            optax.add_decayed_weights(config.weight_decay, decays),
            optax.scale_by_learning_rate(schedule),
        )
    else:
        muon = optax.contrib.muon(
            schedule,
            beta=config.b1,
            weight_decay=config.weight_decay,
            weight_decay_mask=decays,
            muon_weight_dimension_numbers=_muon_dimensions,
        )
        adam_schedule = lambda step: config.adam_learning_rate * schedule(step)  # noqa: E731
        adam = optax.adamw(adam_schedule, config.b1, config.b2, config.epsilon, **decoupled)
        rule = optax.partition({"muon": muon, "adam": adam}, _muon_or_adam)
    return optax.chain(optax.clip_by_global_norm(config.clip_norm), rule) if config.clip_norm else rule


def decay_mask(params: Params, decay_embeddings: bool) -> Params:
    """True for the parameters that weight decay and penalties act on: matrices, and on demand embeddings."""

    def decays(path: tuple, _: Array) -> bool:
        name = path[-1].key
        return name == "kernel" or (decay_embeddings and name in ("embedding", "output"))

    return jax.tree_util.tree_map_with_path(decays, params)


def _muon_or_adam(params: Params) -> Params:
    """Muon is made for the matrices inside the stack; embeddings, norms and biases are Adam's (Jordan 2024)."""
    return jax.tree_util.tree_map_with_path(lambda path, _: "muon" if path[-1].key == "kernel" else "adam", params)


def _muon_dimensions(params: Params) -> Params:
    """The last two axes are the matrix; scanned layers lead with one more."""
    return jax.tree.map(lambda leaf: optax.contrib.MuonDimensionNumbers(leaf.ndim - 2, leaf.ndim - 1), params)


def penalty(params: Params, config: OptimizerConfig) -> Array:
    """l1 * sum |w| + l2 / 2 * sum w^2 over the parameters that decay."""
    mask = decay_mask(params, config.decay_embeddings)
    decayed = [leaf for leaf, keep in zip(jax.tree.leaves(params), jax.tree.leaves(mask), strict=True) if keep]
    absolute = sum(jnp.abs(leaf).sum() for leaf in decayed)
    squares = sum(jnp.square(leaf).sum() for leaf in decayed)
    return config.l1 * absolute + config.l2 / 2 * squares
