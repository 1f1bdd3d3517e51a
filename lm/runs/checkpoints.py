"""Checkpoints, written in the background by Orbax; the newest and the best are kept, damaged ones are skipped.

A checkpoint is a folder of items, so that a model can be read without its training state:

    params            the parameters
    averaged_params   their moving average, if the run keeps one
    optimizer         the step and the optimizer's state
    progress          the record, JSON: the score, the checksums, what the model was made of, and whatever else a run
                      needs to resume as if it had never stopped

Checkpoints of earlier versions hold the first three in one item, `state`. These can be read too.
"""

import contextlib
import glob
import logging
import shutil
import sys
import tempfile
import weakref
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import jax
import orbax.checkpoint as ocp
from orbax.checkpoint.checkpoint_managers import preservation_policy

from lm.errors import TrainingError, UserError
from lm.files import with_digest
from lm.models.parameter_paths import by_path, shortened_list
from lm.runs import quiet_orbax  # noqa: F401
from lm.runs.checksum import checksum, former_checksum
from lm.runs.damage import check_damaged, first_line, reason_not_written
from lm.runs.host_memory import return_freed_memory
from lm.runs.records import FORMER, changed_origin, read_record, read_score
from lm.runs.state import TrainState
from lm.types import Params

logger = logging.getLogger(__name__)

_DELETED = "deleted"
_ATTEMPTS = 5


class Checkpoints:
    """The checkpoints of one run, in one directory. Each becomes visible only when it is complete."""

    def __init__(
        self,
        directory: Path,
        keep: int = 2,
        read_only: bool = False,
        origin: Mapping[str, Any] | None = None,
        alone: bool = False,
    ):
        """Opens the directory.

        Args:
          directory: where; created if missing, unless `read_only`.
          keep: how many of the newest to keep, in addition to the one with the lowest score.
          read_only: change nothing, so that a run can be read while it trains.
          origin: what the models are made of, JSON by name, stored with each. One made of something else is refused.
          alone: this process reads by itself. Otherwise all processes of a job must call everything together.

        Raises:
          UserError: if the directory cannot be read.
        """
        self.directory, self.origin = directory, dict(origin or {})
        self._scores: dict[int, float | None] = {}
        self._unknown: dict[int, Exception] = {}  # why the score cannot be read
        self._lost_best: int | None = None
        kept = [preservation_policy.LatestN(keep), _Best(self._scores, self._unknown)]
        options = ocp.CheckpointManagerOptions(
            preservation_policy=preservation_policy.AnyPreservationPolicy(kept),
            create=not read_only,
            cleanup_tmp_directories=not read_only,
            # Renamed first, a checkpoint is never seen half deleted.
            todelete_subdir=None if read_only else _DELETED,
            read_only=read_only,
            async_options=ocp.AsyncOptions(barrier_sync_fn=None if alone else _meet_unless_failing),
            multiprocessing_options=_this_process() if alone else ocp.options.MultiprocessingOptions(),
        )
        self._writes = not read_only and jax.process_index() == 0
        try:
            if not read_only:
                directory.mkdir(parents=True, exist_ok=True)
            self._opened = self._without_patterns(directory.absolute())
            self._remove_deleted()
            self._manager = self._open(options)
            self._read_scores()
        except OSError as error:
            raise UserError(f"{directory} cannot be opened: {error.strerror or error}") from error

    @property
    def steps(self) -> list[int]:
        """Steps of the complete checkpoints, ascending."""
        return sorted(self._manager.all_steps())

    @property
    def best_step(self) -> int | None:
        """The step with the lowest score among the checkpoints kept, or None if none was evaluated.

        Raises:
          UserError: if a score cannot be read.
        """
        for step, error in self._unknown.items():
            others = ", ".join(str(other) for other in self.steps if other != step) or "none"
            raise UserError(
                f"checkpoint {step} in {self.directory} cannot be read ({first_line(error)}), so it is not known which "
                f"is the best: choose one of {others}"
            )
        best = _lowest(self._scores, self.steps)
        if self._lost_best is not None:
            logger.warning(
                "the best checkpoint, %d, is no longer in %s: the best of the others is %s",
                self._lost_best,
                self.directory,
                best,
            )
        return best

    def save(self, state: TrainState, progress: dict[str, Any], score: float | None = None) -> None:
        """Copies the state off the devices and writes it in the background.

        Args:
          state: its own step names the checkpoint.
          progress: JSON.
          score: validation score of this state, if it was evaluated; lower is better.

        Raises:
          TrainingError: if this checkpoint or the one before cannot be written.
        """
        self.wait()
        self._remove_deleted()
        step = int(state.step)
        trees = _items(state)
        self._scores[step], self._lost_best = score, None
        record = {
            "progress": progress,
            "score": score,
            "best": _lowest(self._scores, self._scores),
            "origin": self.origin,
            "checksums": {name: checksum(tree) for name, tree in trees.items()},
        }
        with self._writing():
            self._manager.save(
                step,
                args=ocp.args.Composite(
                    **{name: ocp.args.StandardSave(tree) for name, tree in trees.items()},
                    progress=ocp.args.JsonSave(with_digest(record)),  # a copy: it is written while training goes on
                ),
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
            self._check_parameters(like.params, step, FORMER, "params")
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

        Damaged ones are renamed to `damaged-STEP` and skipped with a warning, if an older one can be read.

        Raises:
          UserError: if there are checkpoints and none can be read, one belongs to another model, or a file cannot be
            read though it may be whole. Nothing is changed then.
        """
        damaged: dict[int, str] = {}
        for step in reversed(self.steps):
            try:
                found = self.restore(like, step)
            except UserError:
                raise
            except Exception as error:  # a broken file can raise anything
                check_damaged(self._folder(step), error)
                if jax.process_count() > 1:  # another host may have read its part
                    raise UserError(
                        f"checkpoint {step} in {self.directory} cannot be read ({first_line(error)}): run the command "
                        "on one host without --distributed, which resumes from an older one, or put a copy back"
                    ) from error
                damaged[step] = first_line(error)
                continue
            others = {each: first_line(error) for each, error in self._unknown.items() if isinstance(error, ValueError)}
            self._set_aside({**others, **damaged}, step)
            return found
        before = sorted(path.name for path in self.directory.glob("damaged-*"))
        if damaged or before:
            reason = "; ".join([f"{step}: {reason}" for step, reason in damaged.items()] or before)
            raise UserError(
                f"none of the checkpoints in {self.directory} can be read ({reason}): put a copy back, or move "
                f"{self.directory.parent} away to begin anew"
            )
        return None

    def wait(self) -> None:
        """Returns when the last save is complete.

        Raises:
          TrainingError: if it cannot be written.
        """
        with self._writing():
            self._manager.wait_until_finished()

    def close(self) -> None:
        """Waits for pending writes, then stops the threads.

        Raises:
          As `wait`.
        """
        with self._writing():
            self._manager.close()
        self._remove_deleted()

    @contextlib.contextmanager
    def _writing(self) -> Iterator[None]:
        try:
            yield
        except Exception as error:
            reason = reason_not_written(error)
            if reason is None:
                raise
            whole = [int(path.name) for path in self.directory.iterdir() if path.name.isdigit()]
            kept = f"the last complete one is of step {max(whole)}" if whole else "there is none yet"
            raise TrainingError(
                f"a checkpoint in {self.directory} cannot be written: {reason}; {kept}. When this is solved, run the "
                "same command to resume"
            ) from error

    def _open(self, options: ocp.CheckpointManagerOptions) -> ocp.CheckpointManager:
        """Opens the directory, again if the process that trains deletes a checkpoint in the meantime."""
        for _ in range(_ATTEMPTS - 1):
            with contextlib.suppress(FileNotFoundError):
                return ocp.CheckpointManager(self._opened, options=options)
        return ocp.CheckpointManager(self._opened, options=options)

    def _remove_deleted(self) -> None:
        if self._writes:
            shutil.rmtree(self._opened / _DELETED, ignore_errors=True)

    def _without_patterns(self, directory: Path) -> Path:
        """The directory by a name without `[`, `*` and `?`, which Orbax would take for patterns."""
        if not glob.has_magic(str(directory)):
            return directory
        folder = tempfile.mkdtemp(prefix="checkpoints-")
        weakref.finalize(self, shutil.rmtree, folder, ignore_errors=True)
        link = Path(folder, "link")
        link.symlink_to(directory, target_is_directory=True)
        return link

    def _folder(self, step: int) -> Path:
        return self._opened / str(step)

    def _read_scores(self) -> None:
        for step in self.steps:
            try:
                self._scores[step] = read_score(self._folder(step))
            except (OSError, ValueError) as error:
                if self._folder(step).exists():  # the run that trains may have deleted it
                    self._unknown[step] = error
        with contextlib.suppress(OSError, ValueError):  # told when it is read
            best = read_record(self._folder(self.steps[-1])).get("best") if self.steps else None
            self._lost_best = best if best not in self.steps else None

    def _record(self, step: int) -> dict[str, Any]:
        """What was saved beside the arrays: the progress record, the score and the checksums."""
        record = read_record(self._folder(step))
        if changed := changed_origin(record, self.origin):
            raise UserError(
                f"checkpoint {step} in {self.directory} is of a model with other files: {'; '.join(changed)}. Put the "
                "former back"
            )
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

    def _set_aside(self, damaged: Mapping[int, str], step: int) -> None:
        for each, reason in damaged.items():
            aside = self.directory / f"damaged-{each}"
            if jax.process_index() == 0:
                shutil.rmtree(aside, ignore_errors=True)
                self._folder(each).rename(aside)
            self._scores.pop(each, None)
            self._unknown.pop(each, None)
            logger.warning(
                "checkpoint %d cannot be read (%s); renamed to %s; going on from %d", each, reason, aside, step
            )
        if damaged:
            self._manager.reload()

    def _is_former(self, step: int) -> bool:
        return (self._folder(step) / FORMER).exists()

    def _restore_former(self, like: TrainState, step: int) -> tuple[TrainState, dict[str, Any]]:
        arguments = {FORMER: _restore_arguments(like), "progress": ocp.args.JsonRestore()}
        found = self._manager.restore(step, args=ocp.args.Composite(**arguments))
        if int(former_checksum(found[FORMER])) != found["progress"].pop("fingerprint"):
            raise ValueError("its arrays differ from what was saved")
        return found[FORMER], found["progress"]

    def _restore_former_params(self, like: Params, step: int) -> Params:
        stored = ocp.StandardCheckpointer().metadata(self._folder(step) / FORMER).item_metadata
        name = "params" if stored["averaged_params"] is None else "averaged_params"
        self._check_parameters(like, step, FORMER, name)
        logger.warning(
            "checkpoint %d was written by an earlier version: its parameters have no separate checksum", step
        )
        item = {name: _shapes(like)}
        arguments = ocp.args.PyTreeRestore(
            item, restore_args=ocp.checkpoint_utils.construct_restore_args(item), partial_restore=True
        )
        return ocp.PyTreeCheckpointer().restore(self._folder(step) / FORMER, args=arguments)[name]


class _Best(preservation_policy.PreservationPolicy):
    """Keeps the checkpoint with the lowest score, and those whose score cannot be read."""

    def __init__(self, scores: Mapping[int, float | None], unknown: Mapping[int, Any]):
        self._scores, self._unknown = scores, unknown

    def should_preserve(self, checkpoints: Sequence[Any], *, context: Any) -> list[bool]:
        steps = [checkpoint.step for checkpoint in checkpoints]
        best = _lowest(self._scores, steps)
        return [step == best or step in self._unknown for step in steps]


def _lowest(scores: Mapping[int, float | None], steps: Iterable[int]) -> int | None:
    """The step with the lowest score, of equal ones the last; None if none has a score."""
    ranked = [(score, -step) for step in steps if (score := scores.get(step)) is not None]
    return -min(ranked)[1] if ranked else None


def _items(state: TrainState) -> dict[str, Any]:
    """The trees in which a state is stored."""
    trees = {
        "params": state.params,
        "averaged_params": state.averaged_params,
        "optimizer": {"step": state.step, "optimizer_state": state.optimizer_state},
    }
    return {name: tree for name, tree in trees.items() if tree is not None}


def _meet_unless_failing(*, key: str, timeout_ms: int) -> None:
    """Orbax's barrier. A process that could not write its part would wait there for those that wait for this part."""
    error = sys.exception()
    if error is not None:
        raise error
    ocp.multihost.get_barrier_sync_fn()(key=key, timeout_ms=timeout_ms)


def _this_process() -> ocp.options.MultiprocessingOptions:
    number = jax.process_index()
    return ocp.options.MultiprocessingOptions(number, {number}, barrier_sync_key_prefix=f"process_{number}")


def _shapes(like: Any) -> Any:
    return jax.tree.map(ocp.utils.to_shape_dtype_struct, like)


def _restore_arguments(like: Any) -> ocp.args.StandardRestore:
    return ocp.args.StandardRestore(_shapes(like))


def _plain(tree: Any) -> Any:
    """A tree of Orbax's metadata as nested dicts."""
    return {name: _plain(inner) for name, inner in tree.items()} if isinstance(tree, Mapping) else tree
