"""The training loop: step, log, evaluate, checkpoint; it can be stopped at any time and resumes exactly."""

import contextlib
import dataclasses
import math
import signal
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from lm.console import Console
from lm.data.windows import prefetch
from lm.errors import TrainingError, UserError
from lm.hosts import failing_together, meet
from lm.models.accounting import PEAK_FLOPS
from lm.runs.checkpoints import Checkpoints
from lm.runs.config import RunConfig, TrainingConfig
from lm.runs.starts import record_start
from lm.runs.state import TrainState
from lm.runs.work_directory import WorkDirectory
from lm.statistics.directions import BETTER, is_lower_better
from lm.training.optimizers import check_freeze, make_optimizer, make_schedule, warmup_note
from lm.training.partitioning import Partitioner
from lm.training.problem import Problem
from lm.training.progress import MetricsWriter, NoMetrics, TrainingProgress, check_metrics, lines_until, step_of
from lm.training.signals import StopVote, caught_signals
from lm.training.step import init_state, make_train_step
from lm.types import Params


@dataclasses.dataclass(frozen=True)
class Outcome:
    """How training ended.

    Attributes:
      state: the final state.
      stopped_by: the signal that stopped it early, or None.
      validation: metrics of the last evaluation; empty if there was none.
      out_of_patience: whether evaluations stopped improving before the last step.
    """

    state: TrainState
    stopped_by: signal.Signals | None
    validation: dict[str, float]
    out_of_patience: bool = False


def check_batch_size(config: RunConfig, partitioner: Partitioner) -> None:
    """Checks that the batch can be divided among the devices.

    Raises:
      UserError: if they don't.
    """
    training = config.training
    rows = training.batch_size // training.micro_batches
    if rows % partitioner.batch_shards:
        raise UserError(
            f"config.training.batch_size={training.batch_size} in {training.micro_batches} micro-batches cannot be "
            f"divided over {partitioner.batch_shards} devices: make it a multiple of "
            f"{training.micro_batches * partitioner.batch_shards}"
        )
    evaluation_rows = training.evaluation_batch_size
    if evaluation_rows is not None and evaluation_rows % partitioner.batch_shards:
        raise UserError(
            f"config.training.evaluation_batch_size={evaluation_rows} cannot be divided over "
            f"{partitioner.batch_shards} devices"
        )


class Trainer:
    """One run. `train` is the loop; the other methods are its parts."""

    def __init__(
        self,
        config: RunConfig,
        problem: Problem,
        partitioner: Partitioner,
        directory: WorkDirectory,
        console: Console,
        *,
        on_evaluation: Callable[[int, dict[str, float]], None] | None = None,
        profile: range | None = None,
    ):
        """Sets up the run without compiling or writing anything.

        Args:
          config: of the run.
          problem: what to learn; `config.training.best_metric` must be among its metrics.
          partitioner: on which devices.
          directory: of the run.
          console: for progress.
          on_evaluation: is called with the step and the metrics of each evaluation, and may raise to end the run.
          profile: steps to record.

        Raises:
          UserError: for a `best_metric` that isn't measured, or patterns of `config.optimizer.freeze` that match
            nothing.
        """
        self._config, self._problem, self._partitioner, self._directory = config, problem, partitioner, directory
        self._console, self._profile, self._on_evaluation = console, profile or range(0), on_evaluation
        Patience(config.training).score(problem.rehearsed)  # raises if `best_metric` is not among them
        task = problem.task
        optimizer = make_optimizer(config.optimizer, config.training.steps)
        self._schedule = make_schedule(config.optimizer, config.training.steps)
        check_freeze(jax.eval_shape(task.init, jax.random.key(0)), config.optimizer)
        self._init = partitioner.compile_init(lambda key: init_state(task, optimizer, config.optimizer, key))
        step = make_train_step(
            task,
            optimizer,
            config.optimizer,
            seed=config.seed,
            micro_batches=config.training.micro_batches,
            axis_name=partitioner.axis_name,
        )
        self._train_step = partitioner.compile_train_step(step)
        peak = PEAK_FLOPS.get(jax.devices()[0].device_kind)
        flops = problem.flops_per_unit
        self._flops_share = flops / (peak * jax.device_count()) if peak and flops else None

    def train(self, claim: Callable[[], None] = lambda: None) -> Outcome:
        """Trains from the newest checkpoint, or from scratch, to the last step or the first signal.

        Args:
          claim: writes the rest of the directory, once the checkpoint has been read.

        Raises:
          UserError: if another process trains in this directory, or it cannot be resumed.
          TrainingError: if a loss or a gradient is not finite, or a checkpoint cannot be written.
        """
        with self._directory.locked():
            outcome = self._train(claim)
        meet()  # what the first host wrote last is there for all
        return outcome

    def _train(self, claim: Callable[[], None]) -> Outcome:
        training = self._config.training
        origin = self._directory.origin(self._config)
        self._checkpoints = Checkpoints(self._directory.checkpoints, training.keep_checkpoints, origin=origin)
        state, self._interval, self._patience, validation = self._start()
        if jax.process_index() == 0:
            claim()
        meet()
        self._directory.check_shared()
        self._checkpoints.origin = self._directory.origin(self._config)  # a new run has its files only now
        first_step = int(state.step)
        if jax.process_index() == 0:
            record_start(self._directory.starts, first_step)
        self._writer = MetricsWriter(self._directory, first_step) if jax.process_index() == 0 else NoMetrics()
        self._writer.settings(self._config)
        self._progress = TrainingProgress(self._console, first_step, training.steps)
        if (note := warmup_note(self._config.optimizer, training.steps)) and not first_step:
            self._progress.say(note)
        self._clock = Stopwatch()
        batches = prefetch(self._problem.train_batches, first_step, threads=training.loader_threads)
        waiting: tuple[int, Any] | None = None  # sums of the last step, fetched while the next one is computed
        with contextlib.ExitStack() as stack:
            for resource in (self._checkpoints.close, self._writer.close, self._progress.stop):
                stack.callback(resource)
            signals, vote, stop = stack.enter_context(caught_signals(self._progress.say)), StopVote(), None
            stack.enter_context(failing_together())
            for step in range(first_step + 1, 1 if self._patience.is_over else training.steps + 1):
                self._record_profile(step)
                state, sums = self._train_step(state, self._partitioner.place_batch(next(batches)))
                if waiting is not None:
                    self._count(*waiting)
                waiting = step, sums
                stop = vote(signals)
                last = step == training.steps or stop is not None
                if not last and all(step % every for every in self._stations()):
                    continue
                self._count(*waiting)
                waiting = None
                if step % training.log_every == 0:
                    self._log(step)
                evaluated = step % training.evaluate_every == 0 or step == training.steps
                if evaluated:
                    validation = self._evaluate(step, state)
                    last |= self._patience.is_over
                if last or step % training.checkpoint_every == 0:
                    self._save(step, state, validation, evaluated)
                if last:
                    break
        over = self._patience.is_over
        return Outcome(state, None if over else stop, validation, over)

    def _stations(self) -> tuple[int, int, int]:
        training = self._config.training
        return training.log_every, training.evaluate_every, training.checkpoint_every

    def _start(self) -> tuple[TrainState, "Interval", "Patience", dict[str, float]]:
        state = self._init(jax.random.key(self._config.seed))
        restored = self._checkpoints.restore_newest(state)
        if restored is None:
            self._check_beginning()
            if self._problem.initial_params is not None:
                state = with_params(state, self._problem.initial_params)
            return state, Interval(), Patience(self._config.training), {}
        state, progress = restored
        step = int(state.step)
        if jax.process_index() == 0:
            lost = check_metrics(self._directory.metrics, step, progress.get("metrics"))
            if lost:
                self._console.print(lost)
        patience = Patience(self._config.training, **progress["patience"])
        self._introduce(step, progress.get("steps", self._config.training.steps), patience)
        return state, Interval(progress["interval"]), patience, progress["validation"]

    def _check_beginning(self) -> None:
        """Checks that without a checkpoint there is nothing that would be lost.

        Raises:
          UserError: if there must have been a checkpoint.
        """
        if jax.process_index():
            return
        metrics = self._directory.metrics
        lines = lines_until(metrics, sys.maxsize)
        reached = step_of(lines[-1]) if lines else 0
        # While one checkpoint is being written training goes on, but not beyond the next.
        if reached > 2 * max(self._config.training.checkpoint_every, self._directory.stored_checkpoint_every()):
            raise UserError(
                f"{metrics} goes to step {reached}, but there is no checkpoint in {self._checkpoints.directory}: put "
                f"the checkpoints back, or delete {metrics.name} to begin anew"
            )
        if lines:
            self._console.print(f"stopped before the first checkpoint, after step {reached}: beginning anew")

    def _introduce(self, step: int, former_steps: int, patience: "Patience") -> None:
        """Prints from where training goes on, or that it does not, and how a longer run changes the schedule."""
        training, optimizer = self._config.training, self._config.optimizer
        if step >= training.steps or patience.is_over:
            go_on = "" if patience.is_over else ": raise config.training.steps to go on"
            self._console.print(f"finished at step {step} already{go_on}")
            return
        self._console.print(f"resuming at step {step} from {self._checkpoints.directory}")
        if former_steps != training.steps:
            before, now = (
                float(make_schedule(optimizer, steps)(min(step, steps - 1))) for steps in (former_steps, training.steps)
            )
            self._console.print(
                f"the run was to end at step {former_steps} and now ends at {training.steps}: the {optimizer.schedule} "
                f"schedule is that of {training.steps} steps, and the learning rate goes from {before:.3g} to {now:.3g}"
            )

    def _count(self, step: int, sums: dict[str, Any]) -> None:
        values = {name: float(np.asarray(value)) for name, value in sums.items()}
        for name in ("loss", "objective", "gradient_norm"):
            if not math.isfinite(values[name]):
                saved = self._checkpoints.steps
                kept = f"the last good checkpoint is at step {saved[-1]}" if saved else "there is no checkpoint yet"
                raise TrainingError(
                    f"the {name.replace('_', ' ')} is {values[name]} at step {step}: training stopped and {kept}. Try "
                    "a lower config.optimizer.learning_rate or more warmup_steps, in a new --workdir"
                )
        self._interval.add(values)
        self._clock.units += values["weight"]
        self._progress.advance(step)

    def _log(self, step: int) -> None:
        metrics = self._interval.metrics()
        metrics["train/learning_rate"] = float(self._schedule(step - 1))
        self._interval.clear()
        self._writer.metrics(step, metrics)
        rate = self._clock.units_per_second()
        speed = {f"speed/{self._problem.unit}_per_second": rate}
        if self._flops_share is not None:
            speed["speed/mfu"] = rate * self._flops_share
        self._clock = Stopwatch()
        self._writer.speed(step, speed)
        mfu = f"  MFU {speed['speed/mfu']:.1%}" if "speed/mfu" in speed else ""
        self._progress.report(step, f"loss {metrics['train/loss']:.4f}  {rate:,.0f} {self._problem.unit}/s{mfu}")

    def _evaluate(self, step: int, state: TrainState) -> dict[str, float]:
        with self._clock.paused():
            metrics = self._problem.evaluate(state)
            self._patience.see(metrics)
            self._writer.metrics(step, metrics)
            self._progress.say(f"step {step}  " + self._problem.describe(metrics))
            if self._patience.is_over:
                best_metric = self._config.training.best_metric
                self._progress.say(
                    f"stopping early: {self._patience.since_best} evaluations without improvement in {best_metric}"
                )
            if self._on_evaluation is not None:
                self._on_evaluation(step, metrics)
        return metrics

    def _save(self, step: int, state: TrainState, validation: dict[str, float], evaluated: bool) -> None:
        with self._clock.paused():
            self._writer.flush()
            patience = {"best": self._patience.best, "since_best": self._patience.since_best}
            progress = {
                "interval": self._interval.sums,
                "validation": validation,
                "patience": patience,
                "metrics": self._writer.written,
                "steps": self._config.training.steps,
            }
            score = self._patience.score(validation) if evaluated else math.nan
            # Orbax would treat a NaN score as the best of all.
            self._checkpoints.save(state, progress, score if math.isfinite(score) else None)

    def _record_profile(self, step: int) -> None:
        if jax.process_index() or not self._profile:
            return
        if step == self._profile.start:
            jax.profiler.start_trace(str(self._directory.profile))
        if step == self._profile.stop:
            jax.profiler.stop_trace()
            self._progress.say(f"profile of steps {self._profile.start} to {step - 1} is in {self._directory.profile}")


class Patience:
    """Counts evaluations since the best one; stored in checkpoints."""

    def __init__(self, config: TrainingConfig, best: float | None = None, since_best: int = 0):
        """Starts from a checkpoint's record, or from zero."""
        self._config, self.best, self.since_best = config, best, since_best

    def score(self, metrics: Mapping[str, float]) -> float:
        """The metric that ranks checkpoints, negated if necessary so that lower is better.

        Raises:
          UserError: if the run does not log it, or neither direction is better.
        """
        name = self._config.best_metric
        if f"validation/{name}" not in metrics:
            logged = (key.removeprefix("validation/") for key in metrics)
            known = ", ".join(name for name in logged if name in BETTER)
            raise UserError(f"config.training.best_metric={name} is not logged by this run; choose one of {known}")
        value = metrics[f"validation/{name}"]
        return value if is_lower_better(name, "config.training.best_metric") else -value

    def see(self, metrics: dict[str, float]) -> None:
        """Counts one evaluation. NaN is never an improvement."""
        score = self.score(metrics)
        if math.isfinite(score) and (self.best is None or score < self.best):
            self.best, self.since_best = score, 0
        else:
            self.since_best += 1

    @property
    def is_over(self) -> bool:
        """Whether training should stop."""
        return 0 < self._config.patience <= self.since_best


class Interval:
    """Sums since the last logged line, stored in checkpoints so that the line after a resume covers all steps."""

    def __init__(self, sums: dict[str, float] | None = None):
        """Starts from a checkpoint's sums, or from none."""
        self.sums = dict(sums or {})

    def add(self, values: dict[str, float]) -> None:
        """Adds one step's sums."""
        for name, value in {**values, "steps": 1.0}.items():
            self.sums[name] = self.sums.get(name, 0.0) + value

    def metrics(self) -> dict[str, float]:
        """Means by the names under which they are logged: over tokens, or over steps for per-step values."""
        per_step = ("gradient_norm", "penalty")
        weight, steps = self.sums["weight"], self.sums["steps"]
        return {
            f"train/{name}": total / (steps if name in per_step else weight)
            for name, total in self.sums.items()
            if name not in ("weight", "steps")
        }

    def clear(self) -> None:
        """Starts a new interval."""
        self.sums = {}


class Stopwatch:
    """Tokens (or examples) per second of training, excluding everything else."""

    def __init__(self):
        """Starts."""
        self.units = 0.0
        self._started = time.perf_counter()

    @contextlib.contextmanager
    def paused(self) -> Iterator[None]:
        """A context whose time does not count."""
        began = time.perf_counter()
        yield
        self._started += time.perf_counter() - began

    def units_per_second(self) -> float:
        """Since the start of the stopwatch."""
        return self.units / (time.perf_counter() - self._started)


def with_params(state: TrainState, params: Params) -> TrainState:
    """The state with these parameters (host arrays), sharded like its own. Optimizers start from zero moments."""
    placed = jax.tree.map(
        lambda old, new: jax.device_put(np.asarray(new, old.dtype), old.sharding), state.params, params
    )
    # A copy, because a step donates its buffers.
    averaged = None if state.averaged_params is None else jax.tree.map(jnp.copy, placed)
    return dataclasses.replace(state, params=placed, averaged_params=averaged)
