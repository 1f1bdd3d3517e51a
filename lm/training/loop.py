"""The training loop: step, log, evaluate, checkpoint; stop at any moment and go on as if nothing had happened."""

import contextlib
import dataclasses
import math
import signal
import time
from collections.abc import Iterator
from typing import Any

import jax
import numpy as np
from rich.console import Console

from lm.data.store import Corpus
from lm.data.windows import TrainBatches, ValidationBatches, prefetch
from lm.errors import TrainingError, UserError
from lm.models.accounting import PEAK_FLOPS, training_flops_per_token
from lm.tasks.causal_lm import CausalLM
from lm.training.checkpoints import Checkpoints
from lm.training.config import PretrainConfig
from lm.training.evaluation import evaluate, validation_metrics
from lm.training.metrics import MetricsWriter, TrainingProgress
from lm.training.optimizers import make_optimizer, make_schedule
from lm.training.partitioning import Partitioner
from lm.training.step import TrainState, init_state, make_evaluation_step, make_train_step
from lm.training.work_directory import WorkDirectory


@dataclasses.dataclass(frozen=True)
class Outcome:
    """How training ended.

    Attributes:
      state: the last.
      stopped_by: the signal that ended it early, or None.
      validation: metrics of the last evaluation; empty if there was none.
    """

    state: TrainState
    stopped_by: signal.Signals | None
    validation: dict[str, float]


def check_batch_size(config: PretrainConfig, partitioner: Partitioner) -> None:
    """Checks that the devices divide the batch.

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
    """One run. `train` is the loop; the rest is what it does at its stations."""

    def __init__(
        self,
        config: PretrainConfig,
        task: CausalLM,
        corpus: Corpus,
        partitioner: Partitioner,
        directory: WorkDirectory,
        console: Console,
        profile: range | None = None,
    ):
        """Compiles nothing yet and writes nothing yet.

        Args:
          config: of the run, its vocabulary size known.
          task: what to learn.
          corpus: from which text.
          partitioner: on which devices.
          directory: claimed.
          console: for progress.
          profile: steps to record.
        """
        self._config, self._partitioner, self._directory = config, partitioner, directory
        self._console, self._profile = console, profile or range(0)
        training, length, hosts = config.training, config.model.max_length, jax.process_count()
        shared = {"host": jax.process_index(), "hosts": hosts}
        random_offsets = config.data.random_offsets
        self._train_batches = TrainBatches(
            corpus.train, length, training.batch_size, config.seed, random_offsets=random_offsets, **shared
        )
        evaluation_rows = training.evaluation_batch_size or training.batch_size
        self._validation_batches = ValidationBatches(corpus.validation, length, evaluation_rows, **shared)
        self._validation_bytes = corpus.validation.num_bytes
        optimizer = make_optimizer(config.optimizer, training.steps)
        self._schedule = make_schedule(config.optimizer, training.steps)
        self._init = partitioner.compile_init(lambda key: init_state(task, optimizer, config.optimizer, key))
        step = make_train_step(
            task,
            optimizer,
            config.optimizer,
            seed=config.seed,
            micro_batches=training.micro_batches,
            axis_name=partitioner.axis_name,
        )
        self._train_step = partitioner.compile_train_step(step)
        self._evaluation_step = partitioner.compile_evaluation_step(
            make_evaluation_step(task, axis_name=partitioner.axis_name)
        )
        flops = training_flops_per_token(config.model, length)
        peak = PEAK_FLOPS.get(jax.devices()[0].device_kind)
        self._flops_share = flops / (peak * jax.device_count()) if peak else None

    def train(self) -> Outcome:
        """Trains from the newest checkpoint, or from the beginning, to the last step or the first signal.

        Raises:
          TrainingError: if a loss or a gradient is not finite.
        """
        training = self._config.training
        self._checkpoints = Checkpoints(self._directory.checkpoints, training.keep_checkpoints)
        state, self._interval, validation = self._start()
        first_step = int(state.step)
        self._writer = MetricsWriter(self._directory, first_step)
        self._progress = TrainingProgress(self._console, first_step, training.steps)
        self._clock = Stopwatch()
        batches = prefetch(self._train_batches, first_step, threads=training.loader_threads)
        waiting: tuple[int, Any] | None = None  # sums of the last step, fetched while the next one is computed
        with contextlib.ExitStack() as stack:
            for resource in (self._checkpoints.close, self._writer.close, self._progress.stop):
                stack.callback(resource)
            signals = stack.enter_context(caught_signals())
            for step in range(first_step + 1, training.steps + 1):
                self._record_profile(step)
                state, sums = self._train_step(state, self._partitioner.place_batch(next(batches)))
                if waiting is not None:
                    self._count(*waiting)
                waiting = step, sums
                last = step == training.steps or bool(signals)
                if not last and all(step % every for every in self._stations()):
                    continue
                self._count(*waiting)
                waiting = None
                if step % training.log_every == 0:
                    self._log(step)
                evaluated = step % training.evaluate_every == 0 or step == training.steps
                if evaluated:
                    validation = self._evaluate(step, state)
                if last or step % training.checkpoint_every == 0:
                    self._save(step, state, validation, evaluated)
                if signals:
                    break
        return Outcome(state, signals[0] if signals else None, validation)

    def _stations(self) -> tuple[int, int, int]:
        training = self._config.training
        return training.log_every, training.evaluate_every, training.checkpoint_every

    def _start(self) -> tuple[TrainState, "Interval", dict[str, float]]:
        state = self._init(jax.random.key(self._config.seed))
        restored = self._checkpoints.restore_newest(state)
        if restored is None:
            return state, Interval(), {}
        state, progress = restored
        self._console.print(f"going on after step {int(state.step)} from {self._checkpoints.directory}", soft_wrap=True)
        return state, Interval(progress["interval"]), progress["validation"]

    def _count(self, step: int, sums: dict[str, Any]) -> None:
        values = {name: float(np.asarray(value)) for name, value in sums.items()}
        for name in ("loss", "objective", "gradient_norm"):
            if not math.isfinite(values[name]):
                saved = self._checkpoints.steps
                kept = f"the last good checkpoint is of step {saved[-1]}" if saved else "there is no checkpoint yet"
                raise TrainingError(
                    f"the {name.replace('_', ' ')} is {values[name]} at step {step}: training stopped and {kept}. Try "
                    "a lower config.optimizer.learning_rate or more warmup_steps, in a new --workdir"
                )
        self._interval.add(values)
        self._clock.tokens += values["weight"]
        self._progress.advance(step)

    def _log(self, step: int) -> None:
        metrics = self._interval.metrics()
        metrics["train/learning_rate"] = float(self._schedule(step - 1))
        self._interval.clear()
        self._writer.metrics(step, metrics)
        speed = {"speed/tokens_per_second": self._clock.tokens_per_second()}
        if self._flops_share is not None:
            speed["speed/mfu"] = speed["speed/tokens_per_second"] * self._flops_share
        self._clock = Stopwatch()
        self._writer.speed(step, speed)
        mfu = f"  MFU {speed['speed/mfu']:.1%}" if "speed/mfu" in speed else ""
        self._progress.report(
            step, f"loss {metrics['train/loss']:.4f}  {speed['speed/tokens_per_second']:,.0f} tokens/s{mfu}"
        )

    def _evaluate(self, step: int, state: TrainState) -> dict[str, float]:
        with self._clock.paused():
            batches = (self._validation_batches[i] for i in range(len(self._validation_batches)))
            sums = evaluate(self._evaluation_step, state, batches, self._partitioner)
            metrics = validation_metrics(*sums, self._validation_bytes)
            self._writer.metrics(step, metrics)
            self._progress.say(f"step {step}  " + describe(metrics))
        return metrics

    def _save(self, step: int, state: TrainState, validation: dict[str, float], evaluated: bool) -> None:
        with self._clock.paused():
            self._writer.flush()
            progress = {"interval": self._interval.sums, "validation": validation}
            self._checkpoints.save(state, progress, validation["validation/loss"] if evaluated else None)

    def _record_profile(self, step: int) -> None:
        if self._profile and step == self._profile.start:
            jax.profiler.start_trace(str(self._directory.profile))
        if self._profile and step == self._profile.stop:
            jax.profiler.stop_trace()
            self._progress.say(f"profile of steps {self._profile.start} to {step - 1} is in {self._directory.profile}")


class Interval:
    """Sums since the last logged line, kept in checkpoints so that the next line after a resume covers it all."""

    def __init__(self, sums: dict[str, float] | None = None):
        """Starts from sums that a checkpoint held, or from none."""
        self.sums = dict(sums or {})

    def add(self, values: dict[str, float]) -> None:
        """Adds one step's sums."""
        for name, value in {**values, "steps": 1.0}.items():
            self.sums[name] = self.sums.get(name, 0.0) + value

    def metrics(self) -> dict[str, float]:
        """Means by the names under which they are logged: over tokens, and over steps for what a step has one of."""
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
    """Tokens per second of training, with pauses for everything else."""

    def __init__(self):
        """Starts."""
        self.tokens = 0.0
        self._started = time.perf_counter()

    @contextlib.contextmanager
    def paused(self) -> Iterator[None]:
        """Time inside doesn't count."""
        began = time.perf_counter()
        yield
        self._started += time.perf_counter() - began

    def tokens_per_second(self) -> float:
        """Since the start."""
        return self.tokens / (time.perf_counter() - self._started)


@contextlib.contextmanager
def caught_signals() -> Iterator[list[signal.Signals]]:
    """Collects SIGTERM and SIGINT (Ctrl-C) instead of dying of the first; a second one ends the process at once."""
    caught: list[signal.Signals] = []
    known = {}

    def catch(number: int, _: Any) -> None:
        caught.append(signal.Signals(number))
        for each, handler in known.items():
            signal.signal(each, handler)

    for each in (signal.SIGTERM, signal.SIGINT):
        known[each] = signal.signal(each, catch)
    try:
        yield caught
    finally:
        for each, handler in known.items():
            signal.signal(each, handler)


def describe(metrics: dict[str, float]) -> str:
    """A line about an evaluation, each figure with its standard error."""
    loss, accuracy = metrics["validation/loss"], metrics["validation/accuracy"]
    return (
        f"validation loss {loss:.4f} ± {metrics['validation/loss_stderr']:.4f}  "
        f"perplexity {metrics['validation/perplexity']:.2f}  "
        f"bits per byte {metrics['validation/bits_per_byte']:.4f}  "
        f"accuracy {accuracy:.2%} ± {metrics['validation/accuracy_stderr']:.2%}  "
        f"confidence {metrics['validation/confidence']:.2%}  "
        f"ECE {metrics['validation/ece']:.2%} (floor {metrics['validation/ece_floor']:.2%})"
    )
