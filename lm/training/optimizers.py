"""Optimizers and learning-rate schedules by name, all from optax."""

import math
import re
from collections.abc import Callable

import jax
import jax.numpy as jnp
import optax
from jax import Array

from lm.errors import UserError
from lm.models.parameter_paths import by_path, path_name
from lm.runs.config import OptimizerConfig
from lm.types import Params


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
    # The first step already updates: a rate of exactly 0 would waste it.
    ramp = optax.linear_schedule(peak / (warmup + 1), peak, warmup)
    return optax.join_schedules([ramp, main], [warmup])


def warmup_note(config: OptimizerConfig, steps: int) -> str:
    """What to tell someone whose run ends before its warm-up; empty for other runs."""
    if config.warmup_steps < steps:
        return ""
    reached = float(make_schedule(config, steps)(steps - 1)) / config.learning_rate
    return (
        f"the learning rate warms up for config.optimizer.warmup_steps={config.warmup_steps:,} steps, but training "
        f"lasts {steps:,}: it only reaches {reached:.0%} of config.optimizer.learning_rate"
    )


def make_optimizer(config: OptimizerConfig, steps: int) -> optax.GradientTransformation:
    """The configured optimizer: clipping, update rule, weight decay, schedule.

    Args:
      config: of the optimizer.
      steps: optimizer steps in the whole run, for the schedule.
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
        # optax's weight decay differs between rules; the chain keeps one meaning, scaled by the learning rate.
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
    steps_of_rule = [optax.clip_by_global_norm(config.clip_norm), rule] if config.clip_norm else [rule]
    if config.freeze:  # before clipping: frozen parameters do not count in the norm
        steps_of_rule = [_scale_by_path(lambda path, _: 0.0 if is_frozen(path, config) else 1.0), *steps_of_rule]
    if config.freeze or config.layer_decay < 1:
        steps_of_rule.append(_scale_by_path(lambda path, params: update_factor(path, params, config)))
    return optax.chain(*steps_of_rule) if len(steps_of_rule) > 1 else rule


def is_frozen(path: str, config: OptimizerConfig) -> bool:
    """Whether the parameter at this path is frozen."""
    return any(re.search(pattern, path) for pattern in config.freeze)


def update_factor(path: str, params: Params, config: OptimizerConfig) -> float | Array:
    """The factor of one parameter's update: 0 if frozen, else the layer decay to the power of its depth.

    Depth counts from the top: heads have 0, the last layer of a stack of L has 1, its first L, embeddings L + 1. For
    scanned layers it is a vector along the leading axis.
    """
    if is_frozen(path, config):
        return 0.0
    layers = _layer_counts(params)
    if layers and "embedding" in path:  # before the stacks, which may contain an embedding of relative positions
        return config.layer_decay ** (max(layers.values()) + 1)
    for stack, count in layers.items():
        inside = path.removeprefix(f"{stack}/")
        if inside == path:
            continue
        if match := re.match(r"layer_(\d+)/", inside):
            return config.layer_decay ** (count - int(match[1]))
        if inside.startswith("layers/"):
            return config.layer_decay ** jnp.arange(count, 0, -1)
        return 1.0  # the stack's final normalization
    return 1.0


def check_freeze(params: Params, config: OptimizerConfig) -> None:
    """Checks that every pattern of `config.freeze` matches some parameter, and that some parameters remain trainable.

    Raises:
      UserError: if not.
    """
    paths = list(by_path(params))
    for pattern in config.freeze:
        if not any(re.search(pattern, path) for path in paths):
            raise UserError(
                f"config.optimizer.freeze: {pattern!r} matches no parameter; parameters are {', '.join(paths)}"
            )
    if all(is_frozen(path, config) for path in paths):
        raise UserError("config.optimizer.freeze leaves no parameter to train")


def _layer_counts(params: Params) -> dict[str, int]:
    """The number of layers of each stack, by path."""
    counts: dict[str, int] = {}
    for path, leaf in by_path(params).items():
        if match := re.match(r"(.*?)/?layer_(\d+)/", path):
            counts[match[1]] = max(counts.get(match[1], 0), int(match[2]) + 1)
        elif match := re.match(r"(.*?)/?layers/", path):
            counts[match[1]] = leaf.shape[0]
    return counts


def _scale_by_path(factor: Callable[[str, Params], float | Array]) -> optax.GradientTransformation:
    def scale(updates: Params, params: Params | None) -> Params:
        def scaled(path: tuple, update: Array) -> Array:
            by = jnp.asarray(factor(path_name(path), updates), update.dtype)
            return update * by.reshape(by.shape + (1,) * (update.ndim - by.ndim))

        return jax.tree_util.tree_map_with_path(scaled, updates)

    return optax.stateless(scale)


def decay_mask(params: Params, decay_embeddings: bool) -> Params:
    """True for the parameters that weight decay and penalties apply to: matrices, optionally embeddings."""

    def decays(path: tuple, _: Array) -> bool:
        name = path[-1].key
        return name in ("kernel", "state_kernel") or (decay_embeddings and name in ("embedding", "output"))

    return jax.tree_util.tree_map_with_path(decays, params)


def _muon_or_adam(params: Params) -> Params:
    """Muon updates the matrices inside the stack; Adam updates embeddings, norms, biases and heads (Jordan 2024)."""

    def label(path: tuple, _: Array) -> str:
        inside = any(re.fullmatch(r"layers|layer_\d+", part.key) for part in path)
        return "muon" if inside and path[-1].key == "kernel" else "adam"

    return jax.tree_util.tree_map_with_path(label, params)


def _muon_dimensions(params: Params) -> Params:
    """The last two axes are the matrix; scanned layers have one more leading axis."""
    return jax.tree.map(lambda leaf: optax.contrib.MuonDimensionNumbers(leaf.ndim - 2, leaf.ndim - 1), params)


def penalty(params: Params, config: OptimizerConfig) -> Array:
    """l1 * sum |w| + l2 / 2 * sum w^2 over the parameters that decay."""
    mask = decay_mask(params, config.decay_embeddings)
    decayed = [leaf for leaf, keep in zip(jax.tree.leaves(params), jax.tree.leaves(mask), strict=True) if keep]
    absolute = sum(jnp.abs(leaf).sum() for leaf in decayed)
    squares = sum(jnp.square(leaf).sum() for leaf in decayed)
    return jnp.asarray(config.l1 * absolute + config.l2 / 2 * squares)
