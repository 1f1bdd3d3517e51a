"""Looking for the settings with which a config runs fastest on a target, among those that fit."""

import dataclasses
import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from experiments.plan.planning import Plan, make_plan
from lm.console import Console
from lm.errors import UserError
from lm.modules.config import REMATERIALIZATIONS
from lm.runs.config import PretrainConfig
from lm.training.chips import Target

Settings = Mapping[str, Any]
_CHUNK = 4096  # tokens


def search(name: str, config: PretrainConfig, target: Target, console: Console) -> list[Plan]:
    """Plans of the settings that were tried, the best first.

    One setting at a time is changed to its best value, and this is repeated until no change helps. Among settings that
    fit, less time by the serial bound is better; among others, less memory.

    Args:
      name: of the config.
      config: to begin with.
      target: the devices.
      console: for progress.

    Raises:
      UserError: if nothing fits.
    """
    if target.chip is None:
        raise UserError(f"--search: --target={target.name} has no chip to compare times on: name tpu or cuda")
    tried: dict[tuple, Plan | None] = {}

    def plan_of(settings: Settings) -> Plan | None:
        key = tuple(sorted(settings.items()))
        if key not in tried:
            tried[key] = _planned(name, config, target, settings)
            console.print(f"{_shown(settings)}: {_outcome(tried[key])}")
        return tried[key]

    best = _descend(_start(config, target), config, target, plan_of)
    found = sorted((plan for plan in tried.values() if plan is not None), key=rank)
    if best is None or not best.fits:
        least = min((plan.needed_bytes for plan in found), default=0)
        needed = f"the least that was found is {least / 1e9:,.1f} GB a chip" if found else "no mesh divides its batch"
        raise UserError(
            f"--search: nothing fits for {name} on {target.name} with {target.chip.memory / 1e9:,.0f} GB: {needed}; "
            "take more chips, or a smaller model or config.training.batch_size"
        )
    return found


def rank(plan: Plan) -> tuple[bool, float]:
    """The order of plans, the best first."""
    if not plan.fits or plan.roofline is None:
        return True, plan.needed_bytes
    return False, plan.roofline.serial


def _descend(
    start: Settings, config: PretrainConfig, target: Target, plan_of: Callable[[Settings], Plan | None]
) -> Plan | None:
    settings, best = dict(start), plan_of(start)
    improved = True
    while improved:
        improved = False
        for key in start:
            for change in _changes(key, settings, config, target):
                plan = plan_of(settings | change)
                if plan is not None and (best is None or rank(plan) < rank(best)):
                    settings, best, improved = settings | change, plan, True
    return best


def _start(config: PretrainConfig, target: Target) -> dict[str, Any]:
    """The config's own settings, all parameters divided over all devices."""
    return {
        "partitioning.fsdp": target.devices,
        "partitioning.tensor": 1,
        "training.micro_batches": config.training.micro_batches,
        "model.rematerialize": config.model.rematerialize,
        "objective.loss_chunk": config.objective.loss_chunk,
    }


def _changes(key: str, settings: Settings, config: PretrainConfig, target: Target) -> list[dict[str, Any]]:
    """What to try for one setting, beside the others as they are."""
    shards = settings["partitioning.fsdp"] * settings["partitioning.tensor"]
    if key == "partitioning.tensor":  # over as many devices as before
        tensors = [size for size in _powers(min(config.model.num_kv_heads, 8)) if shards % size == 0]
        return [{key: size, "partitioning.fsdp": shards // size} for size in tensors]
    values: dict[str, Sequence[Any]] = {
        "partitioning.fsdp": _powers(target.devices // settings["partitioning.tensor"]),
        "training.micro_batches": _powers(config.training.batch_size),
        "model.rematerialize": REMATERIALIZATIONS,
        "objective.loss_chunk": (0, config.objective.loss_chunk or _CHUNK),
    }
    return [{key: value} for value in values[key]]


def _powers(limit: int) -> list[int]:
    """Powers of two up to a limit that they divide."""
    return [2**power for power in range(int(math.log2(limit)) + 1) if limit % 2**power == 0]


def _planned(name: str, config: PretrainConfig, target: Target, settings: Settings) -> Plan | None:
    try:
        return make_plan(name, with_settings(config, settings), target, settings)
    except UserError:
        return None  # a mesh that does not divide the batch, or the like


def with_settings(config: PretrainConfig, settings: Settings) -> PretrainConfig:
    """The config with values by dotted key; `partitioning.data` takes all devices that remain."""
    groups: dict[str, dict[str, Any]] = {"partitioning": {"data": -1}}
    for key, value in settings.items():
        group, _, field = key.partition(".")
        groups.setdefault(group, {})[field] = value
    return dataclasses.replace(
        config, **{group: dataclasses.replace(getattr(config, group), **values) for group, values in groups.items()}
    )


def _shown(settings: Settings) -> str:
    return "  ".join(f"{key.partition('.')[2]}={value}" for key, value in settings.items())


def _outcome(plan: Plan | None) -> str:
    if plan is None or plan.roofline is None:
        return "does not divide the batch"
    fits = "" if plan.fits else ", does not fit"
    return f"{plan.roofline.serial:.3g} s, {plan.needed_bytes / 1e9:.3g} GB{fits}"
