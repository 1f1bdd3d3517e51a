"""The sweep as an experiment: its config, its directory, its report; runs are a formula but for one sweep."""

import csv
import dataclasses
import json
import re
import shlex
import signal

import jax
import pytest

from experiments.sweep import Stopped, SweepConfig, define_flags, main, make_search, sweep, train_run
from lm.config_files import load_config
from lm.console import Console
from lm.data.config import ExamplesConfig
from lm.errors import TrainingError, UserError
from lm.files import json_value
from lm.runs.config import FinetuneConfig
from lm.runs.work_directory import WorkDirectory
from lm.training.loop import Outcome
from tests.tiny import command_line, files_below, replace, tiny_config

QUIET = Console(quiet=True)
FILE = """
from lm.configuration import from_config_dict, to_config_dict
from lm.runs.config import {kind}
import json

def get_config():
    return to_config_dict(from_config_dict({kind}, json.loads({values!r})))
"""


def write_base(folder, config):
    path = folder / f"{type(config).__name__}.py"
    text = FILE.format(kind=type(config).__name__, values=json.dumps(dataclasses.asdict(config)))
    path.write_text(text)
    return str(path)


@pytest.fixture(scope="module")
def base(tmp_path_factory):
    folder = tmp_path_factory.mktemp("base")
    return write_base(folder, tiny_config(folder, steps=3, evaluate_every=1))


@pytest.fixture(scope="module")
def finetune_base(tmp_path_factory):
    return write_base(tmp_path_factory.mktemp("base"), FinetuneConfig())


def grid_config(base_file, **changes):
    return SweepConfig(
        **{
            "base": base_file,
            "parameters": ("model.dropout=0.0,0.1", "model.layers=1,2,3"),
            "method": "grid",
            **changes,
        }
    )


def formula(config, directory, console, on_evaluation):
    """The metrics of a run that takes no time."""
    fold = getattr(config.data, "fold", 0)
    loss = config.model.dropout + (config.model.layers - 2) ** 2 + config.seed / 4 + fold / 8
    return Outcome(None, None, {"validation/loss": loss, "validation/accuracy": -loss, "validation/loss/std": 1.0})


def test_the_report_names_the_directory_of_every_run(base, tmp_path):
    seen = {}

    def noted(config, directory, *rest):
        seen[str(directory.path.relative_to(tmp_path / "sweep"))] = config
        return formula(config, directory, *rest)

    rows = sweep(grid_config(base, seeds=(0, 2)), tmp_path / "sweep", QUIET, noted)
    assert len(seen) == 12
    assert sorted(name for row in rows for name in row.directories) == sorted(seen)
    for row in rows:
        for name, seed in zip(row.directories, (0, 2), strict=True):
            assert seen[name].seed == seed
            assert seen[name].model.layers == row.values["model.layers"]
    assert rows[0].values == {"model.dropout": 0.0, "model.layers": 2}
    assert rows[0].mean == 0.25
    again = sweep(grid_config(base, seeds=(0, 2)), tmp_path / "sweep", QUIET, lambda *_: pytest.fail("all was done"))
    assert again == rows


def test_the_report_can_be_read_and_its_command_run(base, tmp_path):
    rows = sweep(grid_config(base), tmp_path, QUIET, formula)
    assert files_below(tmp_path) >= {"table.csv", "sweep.json", "sweep.png", "sweep.svg", "sweep_config.json"}
    found = json.loads((tmp_path / "sweep.json").read_text())
    assert found["trials"] == json_value([dataclasses.asdict(row) for row in rows])
    assert found["lower_is_better"] is True
    words = shlex.split(found["command"])
    assert words[:4] == ["python", "-m", "experiments.pretrain", f"--config={base}"]
    assert {"--config.model.dropout=0.0", "--config.model.layers=2"} < set(words)
    with (tmp_path / "table.csv").open() as file:
        lines = list(csv.DictReader(file))
    assert [float(line["loss"]) for line in lines] == sorted(row.mean for row in rows)


def test_greater_accuracy_is_better(base, tmp_path):
    assert sweep(grid_config(base, metric="accuracy"), tmp_path, QUIET, formula)[0].values["model.layers"] == 2


def test_training_sources_are_not_compared_on_the_validation_rows_of_the_base_by_accident(tmp_path):
    data = ExamplesConfig(train="csv:a.csv", validation="csv:b.csv")
    base = write_base(tmp_path, FinetuneConfig(data=data))
    trains, validation = "data.train=csv:c.csv,csv:d.csv", "data.validation=csv:b.csv"
    with pytest.raises(
        UserError, match=r"data\.train is set in config\.parameters, but config\.data\.validation=csv:b"
    ):
        make_search(grid_config(base, parameters=(trains,)), load_config(base, (FinetuneConfig,)))
    make_search(grid_config(base, parameters=(trains, validation)), load_config(base, (FinetuneConfig,)))


def test_folds_are_of_the_data(finetune_base, tmp_path):
    folds = []

    def noted(config, *rest):
        folds.append((config.data.folds, config.data.fold))
        return formula(config, *rest)

    config = SweepConfig(base=finetune_base, parameters=("model.layers=2,3",), method="grid", folds=3, seeds=(0, 1))
    rows = sweep(config, tmp_path, QUIET, noted)
    assert sorted(set(folds)) == [(3, 0), (3, 1), (3, 2)]
    assert len(folds) == 2 * 2 * 3
    assert rows[0].standard_error > 0
    assert "experiments.finetune" in (tmp_path / "sweep.json").read_text()


def test_a_signal_stops_the_sweep_and_it_can_be_resumed(base, tmp_path):
    calls = []

    def stopped(config, *rest):
        calls.append(config)
        outcome = formula(config, *rest)
        return dataclasses.replace(outcome, stopped_by=signal.SIGTERM) if len(calls) == 3 else outcome

    with pytest.raises(Stopped) as caught:
        sweep(grid_config(base), tmp_path, QUIET, stopped)
    assert caught.value.by == signal.SIGTERM
    rows = sweep(grid_config(base), tmp_path, QUIET, None)
    assert [row.state for row in rows] == ["complete", "complete", "unfinished"]
    rows = sweep(grid_config(base), tmp_path, QUIET, stopped)
    assert [row.state for row in rows] == ["complete"] * 6
    assert calls[3] == calls[2]
    assert len(calls) == 7


def test_an_error_about_one_point_fails_only_that_point(base, tmp_path):
    def failing(config, *rest):
        if config.model.layers == 1:
            raise TrainingError("the loss is nan at step 3")
        if config.model.layers == 3:
            raise UserError("config.model.layers=3 is too deep")
        if config.model.dropout:
            raise jax.errors.JaxRuntimeError("RESOURCE_EXHAUSTED: Out of memory while trying to allocate 8 bytes.")
        return formula(config, *rest)

    rows = sweep(grid_config(base), tmp_path, QUIET, failing)
    assert [row.state for row in rows] == ["complete"] + ["failed"] * 5
    assert "out of memory" in {row.message[:13] for row in rows}


def test_an_impossible_point_fails_and_all_of_them_are_an_error(base, tmp_path):
    config = SweepConfig(base=base, parameters=("model.dropout=-1.0,2.0",), method="grid")
    with pytest.raises(TrainingError, match=r"all 2 trials failed; trial 1: config\.model\.dropout"):
        sweep(config, tmp_path, QUIET, formula)


def test_an_error_about_all_points_ends_the_sweep(base, tmp_path):
    def missing(*_):
        raise UserError("config.data.source=text:nowhere: there is no such file")

    with pytest.raises(UserError, match="nowhere"):
        sweep(grid_config(base), tmp_path, QUIET, missing)
    assert {row.state for row in sweep(grid_config(base), tmp_path, QUIET, formula)} == {"complete"}


def test_a_directory_belongs_to_one_sweep(base, tmp_path):
    config = SweepConfig(base=base, parameters=("model.dropout=0..0.5",), method="random", trials=2)
    sweep(config, tmp_path / "sweep", QUIET, formula)
    assert len(sweep(dataclasses.replace(config, trials=4), tmp_path / "sweep", QUIET, formula)) == 4
    with pytest.raises(UserError, match=r"config.seed was 0, is 1.*use another --workdir"):
        sweep(dataclasses.replace(config, seed=1), tmp_path / "sweep", QUIET, formula)
    other = write_base(tmp_path, tiny_config(tmp_path, steps=4))
    with pytest.raises(UserError, match=r"base.training.steps was 3, is 4"):
        sweep(dataclasses.replace(config, base=other), tmp_path / "sweep", QUIET, formula)
    directory = WorkDirectory(tmp_path / "run")
    directory.path.mkdir()
    directory.config.write_text("{}")
    with pytest.raises(UserError, match="holds a run: use another"):
        sweep(config, directory.path, QUIET, formula)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"parameters": ()}, "config.parameters is empty"),
        ({"parameters": ("model.layer=1,2",)}, "not a known config key; did you mean config.model.layers"),
        ({"parameters": ("seed=1,2",)}, "use config.seeds"),
        ({"parameters": ("model.dropout=0..1",)}, "method=grid needs a list"),
        ({"method": "best"}, "config.method must be one of bayes"),
        ({"pruning": "hard"}, "config.pruning must be one of none"),
        ({"trials": 0}, "config.trials must be at least 1"),
        ({"seeds": (1, 1)}, "config.seeds must be one or more distinct"),
        ({"seeds": ("1",)}, "config.seeds must be one or more distinct integers"),
        ({"folds": 1}, "config.folds must be 0"),
        ({"folds": 2}, "config.folds is for fine-tuning"),
        ({"metric": "confidence"}, "config.metric=confidence does not rank models"),
        ({"metric": "f1"}, "config.metric=f1 is not logged by this run; use one of loss, accuracy"),
        ({"base": "nowhere.py"}, "there is no config file nowhere.py"),
        (
            {"base": "configs/calibrate.py"},
            "config.base=configs/calibrate.py: configs/calibrate.py holds a Cal",
        ),
    ],
)
def test_a_user_error_is_one_line(base, tmp_path, changes, message):
    with pytest.raises(UserError) as caught:
        sweep(grid_config(base, **changes), tmp_path / "sweep", QUIET, formula)
    assert message in str(caught.value)
    assert "\n" not in str(caught.value)


def test_a_report_needs_a_sweep(tmp_path, capsys):
    flags = ("--config=configs/sweep_quickstart.py", f"--workdir={tmp_path / 'new'}")
    assert command_line(main, define_flags, *flags, "--report") == 2
    assert "holds no sweep" in capsys.readouterr().err
    assert not (tmp_path / "new").exists()


@pytest.mark.slow
def test_runs_of_a_sweep_share_their_data(tmp_path):
    config = tiny_config(tmp_path / "texts", steps=1)
    config = replace(config, data={"validation_source": config.data.source})
    base = write_base(tmp_path, config)
    swept = SweepConfig(base=base, parameters=("training.log_every=1,2",), method="grid")
    trained = []

    def one(*arguments):
        if trained:
            raise Stopped(signal.SIGTERM)
        trained.append(arguments[1].path)
        return train_run(*arguments)

    with pytest.raises(Stopped):
        sweep(swept, tmp_path / "sweep", QUIET, one)
    for path in (tmp_path / "texts").rglob("*.txt"):
        path.write_text(f"{path.read_text()}One more sentence.\n")
    before = files_below(tmp_path / "sweep/trials")
    with pytest.raises(UserError, match=re.escape(f"since {trained[0]} was trained, the training data changed")):
        sweep(swept, tmp_path / "sweep", QUIET, train_run)
    assert files_below(tmp_path / "sweep/trials") == before


@pytest.mark.slow
def test_an_interrupted_real_run_ends_like_an_uninterrupted_one(base, tmp_path):
    # How often to log changes neither the model nor what is compiled, so both points must come to the same.
    config = SweepConfig(base=base, parameters=("training.log_every=1,3",), method="grid", pruning="median")
    evaluations = []

    def interrupted(config, directory, console, on_evaluation):
        def watch(step, metrics):
            on_evaluation(step, metrics)
            evaluations.append(step)
            if len(evaluations) == 1:
                signal.raise_signal(signal.SIGINT)

        return train_run(config, directory, console, watch)

    with pytest.raises(Stopped):
        sweep(config, tmp_path, QUIET, interrupted)
    first, second = sweep(config, tmp_path, QUIET, interrupted)
    assert evaluations == [1, 2, 3, 1, 2, 3]
    assert first.evaluations == second.evaluations
    assert first.mean == second.mean == first.evaluations[-1]
    for row in (first, second):
        lines = (tmp_path / row.directories[0] / "metrics.jsonl").read_text().splitlines()
        assert json.loads(lines[-1])["validation/loss"] == row.mean
