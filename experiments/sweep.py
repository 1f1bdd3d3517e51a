"""Searches for the config values that train the best model, or prompt it best.

python -m experiments.sweep --config=configs/sweep_quickstart.py --workdir=runs/sweep

The same command resumes a sweep that was stopped or killed, from within the run it was at. Several processes can share
one directory and the work, on several devices or machines; without a common file system, they share a PostgreSQL
database (--config.storage=postgresql://USER@HOST/DATABASE). With --report nothing is trained and the results so far are
reported. The directory holds table.csv, sweep.json, the figure sweep.png (and .svg), and each run in trials/.
"""

import contextlib
import dataclasses
import functools
import math
import re
import signal
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import jax
from absl import flags

from experiments.finetune import finetune
from experiments.pretrain import pretrain
from experiments.prompt import prompt, scorer_of
from lm.command_line import define_config_file, run
from lm.config_files import load_config
from lm.configuration import check_seed, differences
from lm.console import Console
from lm.data.config import check_overridden_sources
from lm.errors import TrainingError, UserError
from lm.files import check_writable, read_json, write_atomically, write_json
from lm.inference.model_in_use import ModelInUse
from lm.runs.config import (
    FREE_TO_CHANGE,
    FinetuneConfig,
    PredictionsConfig,
    PretrainConfig,
    RunConfig,
    SamplesConfig,
)
from lm.runs.prompted_run import PromptedRunConfig
from lm.runs.work_directory import WorkDirectory
from lm.statistics.directions import BETTER, is_lower_better
from lm.sweeps.report import Row, as_csv, as_table, command, conclusion, rows_of, save_picture
from lm.sweeps.search_space import Parameter, Values, grid, read_space, with_values
from lm.sweeps.study import (
    METHODS,
    PRUNINGS,
    Metrics,
    OnEvaluation,
    PointFailed,
    Repetition,
    Search,
    Study,
    Trial,
    directory_of,
    work,
)
from lm.training.loop import Outcome

if TYPE_CHECKING:  # slow to import, and only needed for a database
    from lm.sweeps.database import Database

AnyConfig = RunConfig | PromptedRunConfig
OnMetrics = Callable[[int, dict[str, float]], None]


class Finished(NamedTuple):
    """The part of a training run's `Outcome` that a search needs.

    Attributes:
      validation: metrics of the last evaluation.
      stopped_by: the signal that stopped the run.
    """

    validation: Metrics
    stopped_by: signal.Signals | None = None


TrainRun = Callable[[AnyConfig, WorkDirectory, Console, OnMetrics | None], Outcome | Finished]


@dataclasses.dataclass(frozen=True)
class SweepConfig:
    """A search for config values.

    Attributes:
      base: the config file that every run starts from, FILE.py[:arguments], of `experiments.pretrain`,
        `experiments.finetune` or `experiments.prompt`.
      parameters: the values to vary: "KEY=LOW..HIGH", "KEY=LOW..HIGH log" or "KEY=A,B,C".
      method: "bayes" (the tree-structured Parzen estimator), "random" or "grid" (every combination of lists).
      trials: number of points, for "bayes" and "random". It can be raised later to continue a sweep.
      metric: validation metric at the end of training. Empty: `training.best_metric` of the base; of prompts, "loss".
      seeds: every point is trained with each seed and judged by the mean.
      folds: for fine-tuning, number of cross-validation folds that every point is trained on; 0: as in the base.
      pruning: "none", "median" or "hyperband": stop a point's first run early if it does worse than others.
      seed: for choosing points.
      storage: "postgresql://USER@HOST/DATABASE", shared by workers on any number of machines (`docs/sweeps.md`); its
        password is in PGPASSWORD or ~/.pgpass. Empty: a journal in the work directory.
      study: name of the sweep in `storage`, one for each sweep.
    """

    base: str = "configs/quickstart.py"
    parameters: tuple[str, ...] = ()
    method: str = "bayes"
    trials: int = 20
    metric: str = ""
    seeds: tuple[int, ...] = (0,)
    folds: int = 0
    pruning: str = "none"
    seed: int = 0
    storage: str = ""
    study: str = "sweep"

    def __post_init__(self):
        if self.storage:
            from lm.sweeps.database import read_url

            read_url(self.storage)
        if not self.study:
            raise UserError("config.study is empty: name the sweep")
        for name, choices in (("method", METHODS), ("pruning", PRUNINGS)):
            if getattr(self, name) not in choices:
                raise UserError(f"config.{name} must be one of {', '.join(choices)}, got {getattr(self, name)!r}")
        if not self.parameters:
            raise UserError('config.parameters is empty: name what to vary, such as "model.dropout=0.0,0.1,0.3"')
        if self.trials < 1:
            raise UserError(f"config.trials must be at least 1, got {self.trials}")
        check_seed("config.seed", self.seed)
        if self.folds < 0 or self.folds == 1:
            raise UserError(f"config.folds must be 0 or at least 2, got {self.folds}")
        if not self.seeds or len(set(self.seeds)) < len(self.seeds) or any(type(one) is not int for one in self.seeds):
            raise UserError(f"config.seeds must be one or more distinct integers, got {self.seeds}")
        for seed in self.seeds:
            check_seed("config.seeds", seed)

    @property
    def repetitions(self) -> list[Repetition]:
        """The runs of each point."""
        return [Repetition(seed, fold) for fold in (range(self.folds) if self.folds else [None]) for seed in self.seeds]


_EXPERIMENTS = {PretrainConfig: "pretrain", FinetuneConfig: "finetune", PromptedRunConfig: "prompt"}


class Stopped(Exception):
    """A signal arrived; the current run has saved its state."""

    def __init__(self, by: signal.Signals):
        """Records the signal."""
        super().__init__(by.name)
        self.by = by


def define_flags(values: flags.FlagValues) -> None:
    """Defines the command line."""
    define_config_file(values, SweepConfig)
    flags.DEFINE_string(
        "workdir", None, "Directory of the sweep; created if missing, resumed if not.", flag_values=values
    )
    flags.DEFINE_bool("report", False, "Train nothing; report the results so far.", flag_values=values)


def main(values: flags.FlagValues) -> int:
    """Searches and reports; returns the exit status."""
    if not values.workdir:
        raise UserError("--workdir is missing: name a directory for the sweep, such as --workdir=runs/sweep")
    config, directory = values.config, WorkDirectory(Path(values.workdir)).path
    console = Console(stderr=True)
    if values.report and not config.storage and not (directory / "sweep_config.json").exists():
        raise UserError(f"--workdir={directory} holds no sweep to report: remove --report to start one")
    try:
        sweep(config, directory, console, None if values.report else train_run, results=Console())
    except (Stopped, KeyboardInterrupt) as stopped:
        by = stopped.by if isinstance(stopped, Stopped) else signal.SIGINT
        console.print(f"{by.name}: stopped; run the same command to continue")
        return 128 + by
    return 0


def train_run(
    config: AnyConfig, directory: WorkDirectory, console: Console, on_evaluation: OnMetrics | None
) -> Outcome | Finished:
    """One run of the experiment that the config is for, on the data that the sweep began with."""
    if isinstance(config, PromptedRunConfig):
        found = prompt(config, directory, console, _scorer(config.model, config.checkpoint, config.dtype))
        if found[0].split != "validation":
            raise UserError("a sweep chooses by validation rows: set config.data.validation or validation_fraction")
        return Finished({name: figure.value for name, figure in found[0].metrics.items()})
    other = _run_on_the_same_data(config, directory)
    if isinstance(config, FinetuneConfig):
        return finetune(config, directory, console, on_evaluation=on_evaluation, compared_with=other)
    quick = dataclasses.replace(config, predictions=PredictionsConfig(tokens=0), samples=SamplesConfig(prompts=()))
    return pretrain(quick, directory, console, on_evaluation=on_evaluation, compared_with=other)


@functools.lru_cache(maxsize=1)
def _scorer(model: str, checkpoint: str, dtype: str) -> ModelInUse:
    """The model to prompt, loaded once for all runs of a process."""
    return scorer_of(PromptedRunConfig(model=model, checkpoint=checkpoint, dtype=dtype))


def _run_on_the_same_data(config: RunConfig, directory: WorkDirectory) -> WorkDirectory | None:
    """Another run of the sweep whose config names the same data, if one has begun."""
    names = ("data", "tokenizer", "init_from", "objective")
    named = [getattr(config, name, None) for name in names]
    for path in sorted(directory.path.parent.glob("*/config.json")):
        other = WorkDirectory(path.parent)
        if other != directory and [getattr(other.load_config(), name, None) for name in names] == named:
            return other
    return None


def sweep(
    config: SweepConfig,
    directory: Path,
    console: Console,
    train: TrainRun | None = train_run,
    results: Console | None = None,
) -> list[Row]:
    """Runs or resumes a sweep in a directory and writes the report.

    Args:
      config: of the sweep.
      directory: of the sweep.
      console: for progress.
      train: trains one run; None to only report.
      results: for the report. None: `console`.

    Returns:
      The trials, best first.

    Raises:
      UserError: if the config, the base config or the directory is invalid.
      TrainingError: if every trial failed.
      Stopped: if a signal arrived. The sweep can be resumed.
    """
    base = read_base(config)
    search = make_search(config, base)
    with _database(config, base, search, create=train is not None) as database:
        claim(config, base, directory)
        study = Study(directory, search, database)
        if train is not None:
            runs = Runs(base, search, config.folds, directory, console, train)
            work(
                study,
                config.repetitions,
                runs.train,
                lambda line: console.print(line),
            )
        return report(config, base, study, directory, results or console)


@contextlib.contextmanager
def _database(config: SweepConfig, base: AnyConfig, search: Search, create: bool) -> "Iterator[Database | None]":
    """The database of a sweep, if it has one, with its study; its errors are user errors inside the context."""
    if not config.storage:
        yield None
        return
    from lm.sweeps.database import Database

    database = Database(config.storage, config.study)
    with database.plain_errors():
        asked = _settings(config, base)
        where = f"config.storage={config.storage} holds a study {config.study!r}"
        check_same(database.settings(asked, search.minimize, create), asked, where, "config.study")
        yield database


def read_base(config: SweepConfig) -> AnyConfig:
    """The config that every run starts from; its keys show which experiment it is for.

    Raises:
      UserError: if it is for neither experiment, or has no folds although the sweep needs them.
    """
    try:
        base = load_config(config.base, (PretrainConfig, FinetuneConfig, PromptedRunConfig))
    except UserError as error:
        raise UserError(f"config.base={config.base}: {error}") from error
    if config.folds:
        if not isinstance(base, FinetuneConfig):
            raise UserError("config.folds is for fine-tuning, which alone has rows that can be split: set it to 0")
        with_values(base, {"data.folds": config.folds})
    return base


def make_search(config: SweepConfig, base: AnyConfig) -> Search:
    """The search of a config.

    Raises:
      UserError: for a parameter that the base config does not have, or that the sweep sets itself, or if sources of the
        base would be used beside another training source.
    """
    space = read_space(config.parameters, type(base))
    for parameter in space:
        if parameter.key in ("seed", "data.fold", "data.folds"):
            raise UserError(f"config.parameters: {parameter.key} cannot be searched: use config.seeds and config.folds")
    check_overridden_sources(base.data, [parameter.key for parameter in space], "in config.parameters")
    if config.method == "grid":
        grid(space)
    prompts = isinstance(base, PromptedRunConfig)
    if prompts and config.pruning != "none":
        raise UserError(f"config.pruning={config.pruning} is for training; a prompt is evaluated once: leave it out")
    metric = config.metric or ("loss" if prompts else base.training.best_metric)
    return Search(
        space,
        config.method,
        config.trials,
        metric,
        minimize=is_lower_better(metric, "config.metric" if config.metric else "config.training.best_metric"),
        pruning=config.pruning,
        evaluations=1 if prompts else _evaluations(base),
        seed=config.seed,
    )


def _evaluations(base: RunConfig) -> int:
    return getattr(base, "epochs", 0) or math.ceil(base.training.steps / base.training.evaluate_every)


def claim(config: SweepConfig, base: AnyConfig, directory: Path) -> None:
    """Creates the directory, or checks that the sweep in it has this config.

    Raises:
      UserError: if it has another config, or the directory cannot be written.
    """
    work_directory, path = WorkDirectory(directory), directory / "sweep_config.json"
    if work_directory.config.exists() or work_directory.prompt.exists():
        raise UserError(f"--workdir={directory} holds a run: use another directory for the sweep")
    check_writable(directory, f"--workdir={directory}")
    asked = _settings(config, base)
    if not path.exists():
        directory.mkdir(parents=True, exist_ok=True)
        write_json(path, asked)
        return
    known = read_json(path)
    # Earlier versions had neither.
    known["config"] = {"storage": SweepConfig.storage, "study": SweepConfig.study, **known.get("config", {})}
    storage = known["config"]["storage"]
    if bool(storage) != bool(config.storage):
        raise UserError(f"{directory} holds a sweep with config.storage={storage!r}: set it, or use another --workdir")
    check_same(known, asked, f"{directory} holds a sweep", "--workdir")


def _settings(config: SweepConfig, base: AnyConfig) -> dict[str, Any]:
    return {"config": dataclasses.asdict(config), "base": dataclasses.asdict(base)}


def check_same(known: dict[str, Any], asked: dict[str, Any], where: str, free: str) -> None:
    """Compares the settings of a sweep that exists with those of one that would go there.

    Args:
      known: settings of the sweep.
      asked: other settings.
      where: the sweep, in words.
      free: what to change to begin another sweep.

    Raises:
      UserError: if they differ.
    """
    # The base file may be renamed, as its values are compared; machines may reach a database by different addresses.
    free_to_change = ("config.trials", "config.base", "config.storage", *(f"base.{name}" for name in FREE_TO_CHANGE))
    pairs = {name: pair for name, pair in differences(known, asked).items() if not name.startswith(free_to_change)}
    if changed := [f"{name} was {old!r}, is {new!r}" for name, (old, new) in pairs.items()]:
        raise UserError(f"{where} with another config ({'; '.join(changed)}): use another {free}")


class Runs:
    """The runs of a sweep, each in a directory below trials/ named after its values, seed and fold."""

    def __init__(self, base: AnyConfig, search: Search, folds: int, directory: Path, console: Console, train: TrainRun):
        """Does not train yet."""
        self._base, self._search, self._folds, self._directory = base, search, folds, directory
        self._console, self._train = console, train

    def train(self, trial: Trial, repetition: Repetition, on_evaluation: OnEvaluation | None) -> Metrics:
        """Trains once and returns the metrics of the last evaluation.

        Raises:
          PointFailed: if the config rejects the point, or it runs out of device memory.
          TrainingError: if training diverges.
          UserError: for errors that do not depend on the point.
          Stopped: if a signal arrived.
        """
        directory = WorkDirectory(self._directory / directory_of(trial.values, repetition))
        try:
            config = self._config(trial.values, repetition)
        except UserError as error:
            raise PointFailed(str(error)) from error
        try:
            outcome = self._train(config, directory, self._console, self._watch(on_evaluation))
        except UserError as error:
            if is_about(str(error), self._search.space):
                raise PointFailed(str(error)) from error
            raise
        except jax.errors.JaxRuntimeError as error:
            if "RESOURCE_EXHAUSTED" not in str(error):
                raise
            raise PointFailed(f"out of memory: {str(error).splitlines()[0]}") from error
        if outcome.stopped_by:
            raise Stopped(outcome.stopped_by)
        return self._without_prefix(outcome.validation)

    def _watch(self, on_evaluation: OnEvaluation | None) -> OnMetrics | None:
        if on_evaluation is None:
            return None
        return lambda step, metrics: on_evaluation(step, self._without_prefix(metrics)[self._search.metric])

    def _config(self, values: Values, repetition: Repetition) -> AnyConfig:
        folds = {} if repetition.fold is None else {"data.folds": self._folds, "data.fold": repetition.fold}
        return with_values(self._base, {**values, "seed": repetition.seed, **folds})

    def _without_prefix(self, validation: Metrics) -> Metrics:
        metrics = {name.removeprefix("validation/"): value for name, value in validation.items()}
        if self._search.metric not in metrics:
            known = ", ".join(name for name in metrics if name in BETTER)
            raise UserError(f"config.metric={self._search.metric} is not logged by this run; use one of {known}")
        return metrics


def is_about(message: str, space: Sequence[Parameter]) -> bool:
    """Whether a message names a parameter of the sweep, and so concerns this point rather than all."""
    return any(re.search(rf"config\.{re.escape(parameter.key)}\b", message) for parameter in space)


def report(config: SweepConfig, base: AnyConfig, study: Study, directory: Path, console: Console) -> list[Row]:
    """Writes table.csv, sweep.json and the figure, and prints the best point.

    Raises:
      TrainingError: if every trial failed.
    """
    rows, search = rows_of(study, config.repetitions), study.search
    experiment = _EXPERIMENTS[type(base)]
    best = rows[0] if rows and rows[0].state == "complete" else None
    again = command(experiment, config.base, best.values) if best else None
    found = {
        "config": dataclasses.asdict(config),
        "metric": search.metric,
        "lower_is_better": search.minimize,
        "trials": [dataclasses.asdict(row) for row in rows],
        "command": again,
    }
    with study.lock:  # one process writes at a time
        write_atomically(directory / "table.csv", as_csv(rows, study))
        write_json(directory / "sweep.json", found)
        save_picture(rows, study, directory)
    if rows and len(rows) == search.total and all(row.state == "failed" for row in rows):
        raise TrainingError(f"all {len(rows)} trials failed; trial {rows[0].trial}: {rows[0].message}")
    console.print(as_table(rows, study))
    states = [row.state for row in rows]
    counts = {state: states.count(state) for state in ("complete", "pruned", "failed", "unfinished") if state in states}
    console.print(f"{search.total} trials: " + ", ".join(f"{count} {state}" for state, count in counts.items()))
    for line in (conclusion(rows, study), again or ""):
        if line:
            console.print(line, soft_wrap=True)  # so that the command can be copied
    console.print(f"everything is in {directory}")
    return rows


if __name__ == "__main__":
    run(main, define_flags, __doc__.strip())
