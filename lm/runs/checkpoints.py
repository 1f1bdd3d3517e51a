"""Checkpoints: written in the background by Orbax, the newest and the best kept, a damaged one passed over."""

import logging
import shutil
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import orbax.checkpoint as ocp
from orbax.checkpoint.checkpoint_managers import preservation_policy

from lm.errors import UserError
from lm.models.parameter_paths import by_path, told_misfits
from lm.runs.state import TrainState

logger = logging.getLogger(__name__)

# Orbax tells of every file; what a damaged file means for the run is told below, in one line.
for _noisy in ("absl", "asyncio", "orbax"):
    logging.getLogger(_noisy).setLevel(logging.CRITICAL)


class Checkpoints:
    """The checkpoints of one run, in one directory.

    A checkpoint holds the state (arrays) and a progress record (JSON): whatever else a run must know to go on as if it
    had never stopped. It becomes visible only when it is complete.
    """

    def __init__(self, directory: Path, keep: int = 2):
        """Opens or makes the directory.

        Args:
          directory: where; made when missing.
          keep: how many of the newest to keep, besides the one with the lowest score.
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
            cleanup_tmp_directories=True,
        )
        self._manager = ocp.CheckpointManager(directory.absolute(), options=options)

    @property
    def steps(self) -> list[int]:
        """Steps of the complete checkpoints, ascending."""
        return sorted(self._manager.all_steps())

    @property
    def best_step(self) -> int | None:
        """The step with the lowest score of those kept, or None if none was evaluated."""
        return self._manager.best_step()

    def save(self, state: TrainState, progress: dict[str, Any], score: float | None = None) -> None:
        """Copies the state off the devices and writes it in the background.

        Args:
          state: its own step names the checkpoint.
          progress: JSON.
          score: of this state, if it was evaluated; the lowest is the best.
        """
        self._manager.save(
            int(state.step),
            args=ocp.args.Composite(
                state=ocp.args.StandardSave(state),
                progress=ocp.args.JsonSave({**progress, "fingerprint": int(fingerprint(state))}),
            ),
            metrics=None if score is None else {"score": score},
        )

    def restore(self, like: TrainState, step: int) -> tuple[TrainState, dict[str, Any]]:
        """The state and progress record of one checkpoint.

        Args:
          like: arrays or shapes, with the shardings to restore to, whatever they were when it was saved.
          step: one of `steps`.

        Raises:
          UserError: if parameters have other names or shapes than here.
          ValueError: if the arrays are not those that were saved. Whatever else is broken makes Orbax raise.
        """
        self.wait()  # one that is being written cannot be looked at
        self._check_parameters(like, step)
        target = jax.tree.map(ocp.utils.to_shape_dtype_struct, like)
        restored = self._manager.restore(
            step, args=ocp.args.Composite(state=ocp.args.StandardRestore(target), progress=ocp.args.JsonRestore())
        )
        if int(fingerprint(restored.state)) != restored.progress.pop("fingerprint"):
            raise ValueError("its arrays differ from those that were saved")
        return restored.state, restored.progress

    def restore_newest(self, like: TrainState) -> tuple[TrainState, dict[str, Any]] | None:
        """The newest checkpoint that can be read, or None if there is none at all.

        A damaged one is renamed to `damaged-STEP` and passed over with a warning.

        Raises:
          UserError: if there are checkpoints and none can be read, or one is of another model.
        """
        failure = None
        for step in reversed(self.steps):
            try:
                return self.restore(like, step)
            except UserError:
                raise
            except Exception as error:  # whatever a broken file makes the readers below raise
                failure = error
                aside = self._set_aside(step)
                reason = str(error).splitlines()[0][:200]
                logger.warning("checkpoint %d cannot be read (%s); it is now %s; falling back", step, reason, aside)
        if failure is not None:
            raise UserError(f"none of the checkpoints in {self.directory} can be read: {str(failure).splitlines()[0]}")
        return None

    def wait(self) -> None:
        """Returns when the last save is complete."""
        self._manager.wait_until_finished()

    def close(self) -> None:
        """Waits, then frees threads."""
        self.wait()
        self._manager.close()

    def _check_parameters(self, like: TrainState, step: int) -> None:
        """Orbax's own message names no parameter."""
        stored = ocp.StandardCheckpointer().metadata(self.directory.absolute() / str(step) / "state").item_metadata
        here, there = (
            {path: tuple(leaf.shape) for path, leaf in by_path(params).items()}
            for params in (like.params, stored["params"])
        )
        misfits = [
            f"{path} is {here.get(path, 'missing')} here and {there.get(path, 'missing')} there"
            for path in sorted(here | there)
            if here.get(path) != there.get(path)
        ]
        if misfits:
            raise UserError(
                f"checkpoint {step} in {self.directory} is of another model than the config: {told_misfits(misfits)}"
            )

    def _set_aside(self, step: int) -> Path:
        aside = self.directory / f"damaged-{step}"
        if jax.process_index() == 0:
            shutil.rmtree(aside, ignore_errors=True)
            (self.directory / str(step)).rename(aside)
        self._manager.reload()
        return aside


def _score(metrics: dict[str, float]) -> float:
    return metrics["score"]


@jax.jit
def fingerprint(state: TrainState) -> jax.Array:
    """A checksum of every bit of a state, the same on any number of devices: integer sums don't depend on their order.

    The storage below Orbax notices damage to its indices but not to the arrays themselves.
    """
    total = jnp.zeros((), jnp.uint32)
    for leaf in jax.tree.leaves(state):
        bits = jax.lax.bitcast_convert_type(leaf, jnp.dtype(f"uint{8 * leaf.dtype.itemsize}"))
        total = total * jnp.uint32(31) + bits.astype(jnp.uint32).sum(dtype=jnp.uint32)
    return total
