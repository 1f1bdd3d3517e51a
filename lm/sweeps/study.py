"""A study: points of a search space, tried by any number of processes that share a directory or a database.

A trial is one point. Its parameters are a pure function of the seed, its number and the trials before it. When a
process died, however it died, the next one that looks for work takes over its trial, with its number, parameters and
reported results, so nothing is lost and nothing is tried twice. `lm.sweeps.journal` and `lm.sweeps.database` know where
the study is kept and whose process is alive.
"""

import dataclasses
import hashlib
import itertools
import math
import statistics
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any, Protocol, cast

import numpy as np
import optuna
from optuna.distributions import BaseDistribution, CategoricalDistribution, FloatDistribution, IntDistribution
from optuna.exceptions import UpdateFinishedTrialError
from optuna.storages import BaseStorage
from optuna.trial import FrozenTrial, TrialState

from lm.errors import TrainingError
from lm.locks import FileLock
from lm.sweeps.journal import Journal
from lm.sweeps.search_space import Parameter, Value, Values, format_values, grid, space_size

METHODS = ("bayes", "random", "grid")
PRUNINGS = ("none", "median", "hyperband")

# Proposals that the sampler may repeat before a random point is drawn.
_PROPOSALS = 20

optuna.logging.set_verbosity(optuna.logging.WARNING)

Metrics = dict[str, float]
OnEvaluation = Callable[[int, float], None]


@dataclasses.dataclass(frozen=True)
class Search:
    """How to search.

    Attributes:
      space: the parameters to vary.
      method: "bayes" (the tree-structured Parzen estimator, Bergstra et al. 2011), "random" (Bergstra and Bengio 2012)
        or "grid".
      trials: number of points; a finite space has at most all of its points.
      metric: the metric to optimize.
      minimize: whether lower is better.
      pruning: "none", "median" (worse than the median of the trials before at the same evaluation) or "hyperband" (Li
        et al. 2018).
      evaluations: number of evaluations of a complete run, for "hyperband".
      seed: of the points.
    """

    space: tuple[Parameter, ...]
    method: str
    trials: int
    metric: str
    minimize: bool
    pruning: str = "none"
    evaluations: int = 1
    seed: int = 0

    @property
    def total(self) -> int:
        """Total number of trials."""
        size = space_size(self.space)
        return int(size) if self.method == "grid" else int(min(self.trials, size))


@dataclasses.dataclass(frozen=True)
class Repetition:
    """One of the runs of each point.

    Attributes:
      seed: of the run.
      fold: the validation fold of cross-validation; None without cross-validation.
    """

    seed: int
    fold: int | None = None

    @property
    def name(self) -> str:
        """Part of the name of the run's directory."""
        return f"seed{self.seed}" + ("" if self.fold is None else f"-fold{self.fold}")


def directory_of(values: Values, repetition: Repetition) -> str:
    """The directory of a run of a point, relative to the sweep's; a pure function of both."""
    digest = hashlib.sha256(format_values(dict(sorted(values.items()))).encode()).hexdigest()
    return f"trials/{digest[:10]}-{repetition.name}"


class PointFailed(Exception):
    """A point that cannot be trained; the message says why. The sweep continues with the others."""


class Hold(Protocol):
    """Of a process on a trial; while it lives, no other process takes the trial over."""

    def release(self) -> None:
        """Ends it. Another process may then take the trial, if it is unfinished."""


class Home(Protocol):
    """Where a study is kept, and how a trial whose worker lives is told from one whose worker died."""

    @property
    def storage(self) -> BaseStorage:
        """Of the study, once it is open."""

    def lock(self) -> AbstractContextManager[Any]:
        """Held while a process takes a trial."""

    def open(self, **how: Any) -> optuna.Study:
        """Opens or creates the study, with these arguments of `optuna.create_study`."""

    def hold(self, number: int) -> Hold:
        """Makes a new trial that of this process, which holds the lock."""

    def abandoned(self, running: Sequence[FrozenTrial]) -> Iterable[tuple[int, Hold]]:
        """The numbers of the trials whose worker died, each held by this process, which holds the lock."""


class Study:
    """The trials of one sweep, shared by all processes that open it."""

    def __init__(self, directory: Path, search: Search, home: Home | None = None):
        """Opens or creates the study.

        Args:
          directory: of the sweep; it exists.
          search: how to search.
          home: where the study is kept. None: in a journal in the directory.

        Raises:
          UserError: if it cannot be read.
        """
        self.search = search
        self.lock = FileLock(directory / "study.lock")  # held while writing the report
        self._home: Home = home or Journal(directory)
        self._study = self._home.open(
            direction="minimize" if search.minimize else "maximize",
            sampler=optuna.samplers.RandomSampler(),  # unused: `propose` chooses
            pruner=_make_pruner(search),
        )

    @property
    def trials(self) -> list[FrozenTrial]:
        """The current trials, in the order in which they started."""
        return self._study.get_trials(deepcopy=False)

    def take(self) -> "Trial | None":
        """The next trial to work on: one whose worker died, else a new one; None when all are done."""
        with self._home.lock():
            trials = self.trials
            for number, hold in self._home.abandoned([old for old in trials if old.state == TrialState.RUNNING]):
                if self.trials[number].state != TrialState.RUNNING:  # it ended in the meantime
                    hold.release()
                    continue
                return self._begin(self._trial(number), hold, taken_over=True)
            # A trial is already waiting if a process died between enqueue and ask.
            if all(trial.state != TrialState.WAITING for trial in trials):
                if len(trials) >= self.search.total:
                    return None
                self._study.enqueue_trial(propose(self.search, trials))
            trial = self._study.ask()
            return self._begin(trial, self._home.hold(trial.number), taken_over=False)

    def _trial(self, number: int) -> optuna.trial.Trial:
        storage = self._home.storage
        study = storage.get_study_id_from_name(self._study.study_name)
        return optuna.trial.Trial(self._study, storage.get_trial_id_from_study_id_trial_number(study, number))

    def _begin(self, trial: optuna.trial.Trial, hold: Hold, taken_over: bool) -> "Trial":
        values = {parameter.key: _suggest(trial, parameter) for parameter in self.search.space}
        return Trial(self._study, trial, values, hold, taken_over)


class Trial:
    """A trial that this process works on while it is open. A trial closed unfinished is taken over later."""

    def __init__(
        self,
        study: optuna.Study,
        trial: optuna.trial.Trial,
        values: Values,
        hold: Hold,
        taken_over: bool,
    ):
        """Created by `Study.take`.

        Args:
          study: the study of the trial.
          trial: the trial.
          values: the point.
          hold: of this process.
          taken_over: whether another process started the trial and died or was stopped.
        """
        self.number, self.values, self.taken_over = trial.number, values, taken_over
        self._study, self._trial, self._hold = study, trial, hold

    def __enter__(self) -> "Trial":
        return self

    def __exit__(self, *_) -> None:
        self._hold.release()

    @property
    def runs(self) -> dict[str, Metrics]:
        """Metrics of finished runs, by the name of the repetition."""
        return self._trial.user_attrs.get("runs", {})

    def add_run(self, name: str, metrics: Metrics) -> None:
        """Stores the metrics of a finished run."""
        finite = {key: value for key, value in metrics.items() if math.isfinite(value)}  # JSON has no NaN
        self._trial.set_user_attr("runs", {**self.runs, name: finite})

    def evaluated(self, step: int, value: float) -> None:
        """Reports an evaluation, which may prune the trial. A step repeated after an interruption counts once.

        Raises:
          optuna.TrialPruned: if the trial is pruned.
        """
        # Pruners see the number of the evaluation, whether it comes after an epoch or 1,000 steps.
        steps = self._trial.user_attrs.get("steps", [])
        if step not in steps:
            steps = [*steps, step]
            self._trial.report(value, len(steps))
            self._trial.set_user_attr("steps", steps)
        if self._trial.should_prune():
            raise optuna.TrialPruned(f"after evaluation {len(steps)}")

    def complete(self, value: float) -> None:
        """Completes the trial with its value."""
        self._study.tell(self.number, value, skip_if_finished=True)

    def prune(self) -> None:
        """Prunes the trial; the value of its last evaluation is kept."""
        self._study.tell(self.number, state=TrialState.PRUNED, skip_if_finished=True)

    def fail(self, message: str) -> None:
        """Fails the trial, without a value."""
        self._trial.set_user_attr("message", message)
        self._study.tell(self.number, state=TrialState.FAIL, skip_if_finished=True)


def work(
    study: Study,
    repetitions: Sequence[Repetition],
    train: Callable[[Trial, Repetition, OnEvaluation | None], Metrics],
    say: Callable[[str], None],
) -> None:
    """Works on trials until all are done. An exception from `train` other than those below leaves its trial open.

    Args:
      study: the study.
      repetitions: the runs of each point, which is judged by their mean.
      train: trains once and returns metrics, including the study's. If it is given a function, it calls it with the
        step and the metric of each evaluation and does not catch what that raises. It raises `PointFailed` or
        `TrainingError` if this point cannot be trained.
      say: receives a line about each trial.
    """
    while (trial := study.take()) is not None:
        with trial:
            try:
                value = _mean_of_runs(study, trial, repetitions, train, say)
            except optuna.TrialPruned as pruned:
                trial.prune()
                say(f"trial {trial.number + 1}: pruned {pruned}")
            except (PointFailed, TrainingError) as error:
                trial.fail(" ".join(str(error).split()))
                say(f"trial {trial.number + 1}: failed: {error}")
            except UpdateFinishedTrialError:  # cut off for so long that another took the trial over
                say(f"trial {trial.number + 1}: finished by another worker")
            else:
                trial.complete(value)
                say(
                    f"trial {trial.number + 1}: {study.search.metric} {format_mean(*mean_and_error(study, trial.runs))}"
                )


def _mean_of_runs(
    study: Study,
    trial: Trial,
    repetitions: Sequence[Repetition],
    train: Callable[[Trial, Repetition, OnEvaluation | None], Metrics],
    say: Callable[[str], None],
) -> float:
    for number, repetition in enumerate(repetitions):
        if repetition.name in trial.runs:
            continue
        which = f", {repetition.name}" if len(repetitions) > 1 else ""
        again = ", resumed" if trial.taken_over else ""
        say(f"trial {trial.number + 1} of {study.search.total}{which}{again}: {format_values(trial.values, 4)}")
        # Pruning compares first runs, of the same seed and fold, before more compute is spent.
        watched = number == 0 and study.search.pruning != "none"
        metrics = train(trial, repetition, trial.evaluated if watched else None)
        if not math.isfinite(metrics[study.search.metric]):
            raise PointFailed(f"{study.search.metric} is {metrics[study.search.metric]}")
        trial.add_run(repetition.name, metrics)
    return mean_and_error(study, trial.runs)[0]


def mean_and_error(study: Study, runs: Mapping[str, Metrics]) -> tuple[float, float | None]:
    """Mean of the study's metric over runs, and its standard error for two or more runs.

    Folds of a cross-validation share training rows, which the standard error ignores: it is too small (Bengio and
    Grandvalet 2004).
    """
    values = [metrics[study.search.metric] for metrics in runs.values()]
    error = statistics.stdev(values) / math.sqrt(len(values)) if len(values) > 1 else None
    return statistics.fmean(values), error


def format_mean(mean: float, error: float | None) -> str:
    """A mean with its standard error, if there is one."""
    return f"{mean:.4f}" + ("" if error is None else f" ± {error:.4f}")


def propose(search: Search, trials: Sequence[FrozenTrial]) -> Values:
    """The next point after these trials: a pure function of search and trials, never a repeated point."""
    if search.method == "grid":
        return grid(search.space)[len(trials)]
    tried = [trial.params for trial in trials]
    # Sample in an in-memory copy, so that only the final point is written to the study.
    study = optuna.create_study(direction="minimize" if search.minimize else "maximize")
    study.add_trials([_as_sampler_sees(trial) for trial in trials])
    distributions = {parameter.key: _distribution(parameter) for parameter in search.space}
    for attempt in itertools.count():
        seed = int(np.random.SeedSequence((search.seed, len(trials), attempt)).generate_state(1)[0])
        bayes = search.method == "bayes" and attempt < _PROPOSALS
        study.sampler = (optuna.samplers.TPESampler if bayes else optuna.samplers.RandomSampler)(seed=seed)
        point = study.ask(distributions).params
        if point not in tried:
            return point
    raise AssertionError("there is always a next attempt")


def _as_sampler_sees(trial: FrozenTrial) -> FrozenTrial:
    """Presents a failed trial as worse than all others; the sampler would otherwise ignore it and return there."""
    if trial.state != TrialState.FAIL:
        return trial
    return optuna.trial.create_trial(state=TrialState.PRUNED, params=trial.params, distributions=trial.distributions)


def _distribution(parameter: Parameter) -> BaseDistribution:
    if parameter.choices:
        return CategoricalDistribution(parameter.choices)
    low, high = parameter.low, parameter.high
    if isinstance(low, int) and isinstance(high, int):
        return IntDistribution(low, high, log=parameter.log)
    return FloatDistribution(low, high, log=parameter.log)


def _suggest(trial: optuna.trial.Trial, parameter: Parameter) -> Value:
    """The proposed value; written to the study unless it already is."""
    if parameter.choices:
        return cast(Value, trial.suggest_categorical(parameter.key, parameter.choices))  # None is never a choice
    low, high = parameter.low, parameter.high
    if isinstance(low, int) and isinstance(high, int):
        return trial.suggest_int(parameter.key, low, high, log=parameter.log)
    return trial.suggest_float(parameter.key, low, high, log=parameter.log)


def _make_pruner(search: Search) -> optuna.pruners.BasePruner:
    if search.pruning == "median":
        return optuna.pruners.MedianPruner(n_startup_trials=5)
    if search.pruning == "hyperband":
        return optuna.pruners.HyperbandPruner(min_resource=1, max_resource=search.evaluations)
    return optuna.pruners.NopPruner()
