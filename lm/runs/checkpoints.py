"""Checkpoints, written in the background by Orbax; the newest and the best are kept, damaged ones are skipped.

A checkpoint is a folder of items, so that a model can be read without its training state:

    params            the parameters
    averaged_params   their moving average, if the run keeps one
    optimizer         the step and the optimizer's state
    progress          JSON: whatever else a run needs to resume as if it had never stopped, and the checksums

Checkpoints of earlier versions hold the first three in one item, `state`. These can be read too.
"""

import functools
import hashlib
import json
import logging
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import orbax.checkpoint as ocp
from orbax.checkpoint.checkpoint_managers import preservation_policy

from lm.errors import UserError
from lm.models.parameter_paths import by_path, shortened_list
from lm.runs.host_memory import return_freed_memory
from lm.runs.state import TrainState
from lm.types import Params

logger = logging.getLogger(__name__)

# Orbax reports every file; below, one line says what a damaged file means for the run.
for _noisy in ("absl", "asyncio", "orbax"):
    logging.getLogger(_noisy).setLevel(logging.CRITICAL)

_FORMER = "state"


class Checkpoints:
    """The checkpoints of one run, in one directory. Each becomes visible only when it is complete."""

    def __init__(self, directory: Path, keep: int = 2, read_only: bool = False):
        """Opens the directory.

        Args:
          directory: where; created if missing, unless `read_only`.
          keep: how many of the newest to keep, in addition to the one with the lowest score.
          read_only: change nothing, so that a run can be read while it trains.
        """
        self.directory = directory
        newest = preservation_policy.LatestN(keep)
        best = preservation_policy.BestN(
            get_metric_fn=_score, reverse=True, n=1, keep_checkpoints_without_metrics=False
        )
        options = ocp.CheckpointManagerOptions(
            preservation_policy=preservation_policy.AnyPreservationPolicy([newest, best]),
            best_fn=_score,  # without it Orbax writes no metrics
            best_mode="min",
            create=not read_only,
            cleanup_tmp_directories=not read_only,
            read_only=read_only,
        )
        self._manager = ocp.CheckpointManager(directory.absolute(), options=options)

    @property
    def steps(self) -> list[int]:
        """Steps of the complete checkpoints, ascending."""
        return sorted(self._manager.all_steps())

    @property
    def best_step(self) -> int | None:
        """The step with the lowest score among the checkpoints kept, or None if none was evaluated."""
        return self._manager.best_step()

    def save(self, state: TrainState, progress: dict[str, Any], score: float | None = None) -> None:
        """Copies the state off the devices and writes it in the background.

        Args:
          state: its own step names the checkpoint.
          progress: JSON.
          score: validation score of this state, if it was evaluated; lower is better.
        """
        trees = _items(state)
        checksums = {name: checksum(tree) for name, tree in trees.items()}
        record = {"progress": progress, "score": score, "checksums": checksums}
        self._manager.save(
            int(state.step),
            args=ocp.args.Composite(
                **{name: ocp.args.StandardSave(tree) for name, tree in trees.items()},
                progress=ocp.args.JsonSave({**record, "digest": _digest(record)}),
            ),
            metrics=None if score is None else {"score": score},
        )

    def restore(self, like: TrainState, step: int) -> tuple[TrainState, dict[str, Any]]:
        """The state and progress record of one checkpoint.

        Args:
          like: arrays or shapes, with the shardings to restore to, which may differ from those at saving.
          step: one of `steps`.

        Raises:
          UserError: if the parameters' names or shapes differ from `like`.
          ValueError: if its content differs from what was saved. Other damage makes Orbax raise.
        """
        self.wait()  # a checkpoint cannot be read while it is being written
        if self._is_former(step):
            self._check_parameters(like.params, step, _FORMER, "params")
            return self._restore_former(like, step)
        self._check_parameters(like.params, step, "params")
        record = self._record(step)
        trees = self._restore_items(_items(like), step, record)
        state = TrainState(params=trees["params"], averaged_params=trees.get("averaged_params"), **trees["optimizer"])
        return state, record["progress"]

    def restore_params(self, like: Params, step: int) -> Params:
        """The parameters of one checkpoint for use, their average if there is one. Nothing else is read.

        Args:
          like: arrays or shapes, with the shardings to restore to.
          step: one of `steps`.

        Raises:
          As `restore`.
        """
        self.wait()
        if self._is_former(step):
            return self._restore_former_params(like, step)
        record = self._record(step)
        name = "averaged_params" if "averaged_params" in record["checksums"] else "params"
        self._check_parameters(like, step, name)
        with return_freed_memory():
            return self._restore_items({name: like}, step, record)[name]

    def restore_newest(self, like: TrainState) -> tuple[TrainState, dict[str, Any]] | None:
        """The newest checkpoint that can be read, or None if there are no checkpoints.

        A damaged one is renamed to `damaged-STEP` and skipped with a warning.

        Raises:
          UserError: if there are checkpoints and none can be read, or one belongs to another model.
        """
        failure = None
        for step in reversed(self.steps):
            try:
                return self.restore(like, step)
            except UserError:
                raise
            except Exception as error:  # a broken file can raise anything
                failure = error
                aside = self._set_aside(step)
                reason = str(error).splitlines()[0][:200]
                logger.warning(
                    "checkpoint %d cannot be read (%s); renamed to %s; falling back to an older one",
                    step,
                    reason,
                    aside,
                )
        if failure is not None:
            raise UserError(f"none of the checkpoints in {self.directory} can be read: {str(failure).splitlines()[0]}")
        return None

    def wait(self) -> None:
        """Returns when the last save is complete."""
        self._manager.wait_until_finished()

    def close(self) -> None:
        """Waits for pending writes, then stops the threads."""
        self.wait()
        self._manager.close()

    def _folder(self, step: int) -> Path:
        return self.directory.absolute() / str(step)

    def _record(self, step: int) -> dict[str, Any]:
        """What was saved beside the arrays: the progress record, the score and the checksums."""
        found = self._manager.restore(step, args=ocp.args.Composite(progress=ocp.args.JsonRestore()))
        record = dict(found["progress"])
        if record.pop("digest") != _digest(record):
            raise ValueError("its progress record differs from the one that was saved")
        return record

    def _restore_items(self, like: Mapping[str, Any], step: int, record: dict[str, Any]) -> dict[str, Any]:
        arguments = {name: _restore_arguments(tree) for name, tree in like.items()}
        found = self._manager.restore(step, args=ocp.args.Composite(**arguments))
        trees = {name: found[name] for name in like}
        for name, tree in trees.items():
            if checksum(tree) != record["checksums"][name]:
                raise ValueError(f"its {name} differ from what was saved")
        return trees

    def _check_parameters(self, like: Params, step: int, item: str, *inside: str) -> None:
        """Orbax's own message names no parameter."""
        stored = ocp.StandardCheckpointer().metadata(self._folder(step) / item).item_metadata
        for name in inside:
            stored = stored[name]
        if not stored:
            raise ValueError("the names of its parameters are missing")
        here, there = (
            {path: tuple(leaf.shape) for path, leaf in by_path(params).items()} for params in (like, _plain(stored))
        )
        misfits = [
            f"{path} is {here.get(path, 'missing')} here and {there.get(path, 'missing')} there"
            for path in sorted(here | there)
            if here.get(path) != there.get(path)
        ]
        if misfits:
            raise UserError(
                f"checkpoint {step} in {self.directory} does not match the config's model: {shortened_list(misfits)}"
            )

    def _set_aside(self, step: int) -> Path:
        aside = self.directory / f"damaged-{step}"
        if jax.process_index() == 0:
            shutil.rmtree(aside, ignore_errors=True)
            self._folder(step).rename(aside)
        self._manager.reload()
        return aside

    def _is_former(self, step: int) -> bool:
        return (self._folder(step) / _FORMER).exists()

    def _restore_former(self, like: TrainState, step: int) -> tuple[TrainState, dict[str, Any]]:
        arguments = {_FORMER: _restore_arguments(like), "progress": ocp.args.JsonRestore()}
        found = self._manager.restore(step, args=ocp.args.Composite(**arguments))
        if int(former_checksum(found[_FORMER])) != found["progress"].pop("fingerprint"):
            raise ValueError("its arrays differ from what was saved")
        return found[_FORMER], found["progress"]

    def _restore_former_params(self, like: Params, step: int) -> Params:
        stored = ocp.StandardCheckpointer().metadata(self._folder(step) / _FORMER).item_metadata
        name = "params" if stored["averaged_params"] is None else "averaged_params"
        self._check_parameters(like, step, _FORMER, name)
        logger.warning(
            "checkpoint %d was written by an earlier version: its parameters have no separate checksum", step
        )
        item = {name: _shapes(like)}
        arguments = ocp.args.PyTreeRestore(
            item, restore_args=ocp.checkpoint_utils.construct_restore_args(item), partial_restore=True
        )
        return ocp.PyTreeCheckpointer().restore(self._folder(step) / _FORMER, args=arguments)[name]


def _score(metrics: dict[str, float]) -> float:
    return metrics["score"]


def _items(state: TrainState) -> dict[str, Any]:
    """The trees in which a state is stored."""
    trees = {
        "params": state.params,
        "averaged_params": state.averaged_params,
        "optimizer": {"step": state.step, "optimizer_state": state.optimizer_state},
    }
    return {name: tree for name, tree in trees.items() if tree is not None}


def _shapes(like: Any) -> Any:
    return jax.tree.map(ocp.utils.to_shape_dtype_struct, like)


def _restore_arguments(like: Any) -> ocp.args.StandardRestore:
    return ocp.args.StandardRestore(_shapes(like))


def _plain(tree: Any) -> Any:
    """A tree of Orbax's metadata as nested dicts."""
    return {name: _plain(inner) for name, inner in tree.items()} if isinstance(tree, Mapping) else tree


def _digest(record: dict[str, Any]) -> str:
    return hashlib.blake2b(json.dumps(record, sort_keys=True).encode(), digest_size=16).hexdigest()


def checksum(tree: Any) -> int:
    """A checksum of all bits of a tree and their positions, the same on any number of devices.

    Integer sums do not depend on their order. The storage that Orbax uses notices damage to its indices but not to the
    arrays themselves.
    """
    # On one device XLA would first materialize all terms of the sum; on many, each holds only its part.
    sums = [_mixed_sum(leaf, len(leaf.sharding.device_set) == 1) for leaf in map(jnp.asarray, jax.tree.leaves(tree))]
    total = 0
    for of_leaf in sums:
        total = (total * 31 + int(of_leaf)) % 2**32
    return total


@functools.partial(jax.jit, static_argnames="row_by_row")
def _mixed_sum(leaf: jax.Array, row_by_row: bool) -> jax.Array:
    """The sum of all numbers of an array, each mixed with its position."""
    if leaf.ndim < 2 or not row_by_row:
        return _mixed(_bits(leaf), _places(leaf.shape)).sum(dtype=jnp.uint32)
    inner = _places(leaf.shape[1:])

    def add_row(row: jax.Array, total: jax.Array) -> jax.Array:
        places = inner + row.astype(jnp.uint32) * jnp.uint32(inner.size % 2**32)
        return total + _mixed(_bits(leaf[row]), places).sum(dtype=jnp.uint32)

    return jax.lax.fori_loop(0, leaf.shape[0], add_row, jnp.zeros((), jnp.uint32))


def _places(shape: tuple[int, ...]) -> jax.Array:
    """The position of each number in an array, counted row by row."""
    places, stride = jnp.zeros(shape, jnp.uint32), 1
    for axis in reversed(range(len(shape))):
        places += jax.lax.broadcasted_iota(jnp.uint32, shape, axis) * jnp.uint32(stride % 2**32)
        stride *= shape[axis]
    return places


def _mixed(bits: jax.Array, places: jax.Array) -> jax.Array:
    """The finalizer of MurmurHash3 (Appleby 2011): each input bit flips about half of the output bits."""
    mixed = bits ^ (places * jnp.uint32(0x9E3779B1))
    mixed = (mixed ^ (mixed >> 16)) * jnp.uint32(0x85EBCA6B)
    mixed = (mixed ^ (mixed >> 13)) * jnp.uint32(0xC2B2AE35)
    return mixed ^ (mixed >> 16)


@jax.jit
def former_checksum(state: TrainState) -> jax.Array:
    """The checksum of earlier versions, which ignores the order within an array."""
    total = jnp.zeros((), jnp.uint32)
    for leaf in jax.tree.leaves(state):
        total = total * jnp.uint32(31) + _bits(leaf).sum(dtype=jnp.uint32)
    return total


def _bits(leaf: jax.Array) -> jax.Array:
    return jax.lax.bitcast_convert_type(leaf, jnp.dtype(f"uint{8 * leaf.dtype.itemsize}")).astype(jnp.uint32)
