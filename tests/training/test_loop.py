"""A run may stop at any moment, by any means, and be the same run."""

import json
import math
import os
import signal

import chex
import numpy as np
import pytest

from lm.data.store import build_corpus
from lm.errors import TrainingError, UserError
from lm.runs.checkpoints import Checkpoints
from lm.training.loop import Interval, Trainer
from lm.training.progress import read_metrics
from tests.tiny import files_below, replace, run, tiny_config
from tests.training.scripted import FALLING, scripted


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """A config, and a run of it that nothing interrupted."""
    folder = tmp_path_factory.mktemp("whole")
    config = tiny_config(folder)
    return config, run(config, folder / "run"), folder / "run"


def assert_same_run(one, other):
    assert (one / "metrics.jsonl").read_bytes() == (other / "metrics.jsonl").read_bytes()


def test_a_run_leaves_a_self_contained_directory(whole):
    _, outcome, directory = whole
    names = {path.name for path in directory.iterdir()}
    assert names == {
        "config.json",
        "data.json",
        "tokenizer.json",
        "checkpoints",
        "metrics.jsonl",
        "speed.jsonl",
        "tensorboard",
        "samples.txt",
        "starts.jsonl",
        "training.lock",
    }
    assert int(outcome.state.step) == 6
    assert not any(name.startswith(".") for name in files_below(directory))


def test_metrics_have_their_names_and_steps(whole):
    _, _, directory = whole
    lines = read_metrics(directory / "metrics.jsonl")
    trained = [line for line in lines if "train/loss" in line]
    evaluated = [line for line in lines if "validation/loss" in line]
    assert [line["step"] for line in trained] == [2, 4, 6]
    assert [line["step"] for line in evaluated] == [3, 6]
    for name in ("loss", "loss_stderr", "perplexity", "bits_per_byte", "accuracy", "confidence", "entropy", "tokens"):
        assert math.isfinite(evaluated[-1][f"validation/{name}"])
    assert evaluated[-1]["validation/perplexity"] == pytest.approx(math.exp(evaluated[-1]["validation/loss"]))
    assert trained[-1]["train/loss"] < trained[0]["train/loss"]


def test_bits_per_byte_and_the_token_count_are_those_of_the_text(whole):
    config, _, directory = whole
    store = build_corpus(config.data, config.tokenizer).validation
    line = read_metrics(directory / "metrics.jsonl")[-1]
    assert line["validation/tokens"] == store.num_tokens - 1
    total = line["validation/loss"] * line["validation/tokens"]
    assert line["validation/bits_per_byte"] == pytest.approx(total / math.log(2) / store.num_bytes)


@pytest.mark.parametrize("at", [1, pytest.param(4, marks=pytest.mark.slow)])
def test_a_signal_saves_and_the_same_command_resumes_exactly(whole, at, tmp_path, monkeypatch):
    config, outcome, directory = whole
    count = Trainer._count

    def interrupt(trainer, step, sums):
        count(trainer, step, sums)
        if step == at:
            os.kill(os.getpid(), signal.SIGTERM)

    monkeypatch.setattr(Trainer, "_count", interrupt)
    stopped = run(config, tmp_path)
    assert stopped.stopped_by == signal.SIGTERM
    assert at <= int(stopped.state.step) <= at + 2
    monkeypatch.undo()
    resumed = run(config, tmp_path)
    assert_same_run(directory, tmp_path)
    chex.assert_trees_all_equal(outcome.state, resumed.state)


@pytest.mark.parametrize("at", ["_log", "_evaluate", "_save"])
@pytest.mark.slow
def test_dying_at_any_station_loses_nothing(whole, at, tmp_path, monkeypatch):
    config, outcome, directory = whole
    station = getattr(Trainer, at)
    calls = []

    def die(trainer, step, *arguments):
        result = station(trainer, step, *arguments)
        calls.append(step)
        if len(calls) == 2:
            raise KeyboardInterrupt
        return result

    monkeypatch.setattr(Trainer, at, die)
    with pytest.raises(KeyboardInterrupt):
        run(config, tmp_path)
    monkeypatch.undo()
    resumed = run(config, tmp_path)
    assert_same_run(directory, tmp_path)
    chex.assert_trees_all_equal(outcome.state, resumed.state)


def test_a_finished_run_is_not_trained_further(whole):
    config, outcome, directory = whole
    before = (directory / "metrics.jsonl").read_bytes()
    again = run(config, directory)
    assert (directory / "metrics.jsonl").read_bytes() == before
    assert again.validation == outcome.validation
    chex.assert_trees_all_equal(again.state, outcome.state)


@pytest.mark.slow
def test_a_damaged_newest_checkpoint_costs_only_the_steps_since_the_one_before(whole, tmp_path, caplog):
    config, outcome, directory = whole
    run(config, tmp_path)
    for data in (tmp_path / "checkpoints/6/params").rglob("d/*"):
        middle = data.stat().st_size // 2
        data.write_bytes(data.read_bytes()[:middle] + b"damaged" + data.read_bytes()[middle + 7 :])
    resumed = run(config, tmp_path)
    assert "checkpoint 6 cannot be read" in caplog.text
    assert_same_run(directory, tmp_path)
    chex.assert_trees_all_equal(outcome.state, resumed.state)


def test_another_config_is_refused_by_the_names_of_the_keys(whole):
    config, _, directory = whole
    before = files_below(directory)
    changed = replace(config, seed=1, optimizer={"learning_rate": 0.5})
    with pytest.raises(UserError) as error:
        run(changed, directory)
    message = str(error.value)
    assert "config.seed was 0, is 1" in message
    assert "config.optimizer.learning_rate" in message
    assert "weight_decay" not in message
    assert "\n" not in message
    assert files_below(directory) == before


def test_what_only_says_where_and_how_often_may_change(whole, tmp_path):
    config, _, directory = whole
    run(replace(config, training={"checkpoint_every": 5, "evaluation_batch_size": 16}), directory)


def test_a_loss_that_is_not_finite_stops_and_keeps_the_last_good_checkpoint(tmp_path):
    config = tiny_config(tmp_path, steps=40, checkpoint_every=1, evaluate_every=40)
    config = replace(config, optimizer={"name": "sgd", "learning_rate": 1e30, "clip_norm": 0.0, "warmup_steps": 0})
    with pytest.raises(TrainingError, match=r"is (nan|inf) at step \d+.*last good checkpoint is at step") as error:
        run(config, tmp_path / "run")
    checkpoints = Checkpoints(tmp_path / "run" / "checkpoints")
    failed = int(str(error.value).split("at step ")[1].split(":")[0])
    assert max(checkpoints.steps) < failed
    assert (tmp_path / "run" / "metrics.jsonl").exists()


def test_interval_covers_what_came_before_the_checkpoint():
    interval = Interval()
    interval.add({"weight": 2.0, "loss": 4.0, "gradient_norm": 1.0})
    resumed = Interval(json.loads(json.dumps(interval.sums)))
    resumed.add({"weight": 6.0, "loss": 4.0, "gradient_norm": 3.0})
    assert resumed.metrics() == {"train/loss": 1.0, "train/gradient_norm": 2.0}


@pytest.mark.slow
def test_validation_does_not_depend_on_the_batch_size(tmp_path):
    config = tiny_config(tmp_path, steps=2)
    results = []
    for rows in (8, 24):
        run(replace(config, training={"evaluation_batch_size": rows}), tmp_path / str(rows))
        results.append(read_metrics(tmp_path / str(rows) / "metrics.jsonl")[-1])
    np.testing.assert_allclose(list(results[0].values()), list(results[1].values()), rtol=1e-4)


@pytest.mark.slow
@pytest.mark.parametrize(
    "sections",
    [
        {"optimizer": {"name": "muon", "learning_rate": 0.02}},
        {"optimizer": {"name": "adafactor", "l1": 1e-5, "l2": 1e-4}, "training": {"micro_batches": 1}},
        {"objective": {"loss_chunk": 20, "z_loss": 1e-4, "label_smoothing": 0.1}},
        {"model": {"scan_layers": True, "rematerialize": "full", "positions": "rotary"}},
    ],
    ids=["muon", "adafactor", "chunked", "scanned"],
)
def test_every_kind_of_run_resumes_exactly(sections, tmp_path):
    config = replace(tiny_config(tmp_path, steps=3, checkpoint_every=2, evaluate_every=3), **sections)
    outcome = run(config, tmp_path / "whole")
    run(config, tmp_path / "cut")
    checkpoints = Checkpoints(tmp_path / "cut" / "checkpoints")
    checkpoints._manager.delete(3)
    checkpoints.close()
    resumed = run(config, tmp_path / "cut")
    assert_same_run(tmp_path / "whole", tmp_path / "cut")
    chex.assert_trees_all_equal(outcome.state, resumed.state)


def best_step(folder):
    checkpoints = Checkpoints(folder / "checkpoints")
    best = checkpoints.best_step
    checkpoints.close()
    return best


@pytest.mark.parametrize(
    ("metric", "script"),
    [
        ("loss", FALLING),
        ("next_sentence_loss", FALLING),
        ("frequency_1of8/ece", FALLING),
        ("accuracy", [1 - value / 4 for value in FALLING]),
        ("bleu", [-value for value in FALLING]),
    ],
)
def test_patience_ends_a_run_and_the_best_checkpoint_is_kept(metric, script, tmp_path):
    outcome = scripted(tmp_path, script, metric, patience=3, keep_checkpoints=1)
    assert int(outcome.state.step) == 5
    assert outcome.out_of_patience
    assert outcome.stopped_by is None
    assert outcome.validation[f"validation/{metric}"] == script[4]
    assert best_step(tmp_path) == 2
    before = (tmp_path / "metrics.jsonl").read_bytes()

    def never(step, metrics):
        raise AssertionError("it goes on")

    again = scripted(tmp_path, script, metric, patience=3, keep_checkpoints=1, on_evaluation=never)
    assert again.out_of_patience
    assert again.validation == outcome.validation
    assert (tmp_path / "metrics.jsonl").read_bytes() == before
    chex.assert_trees_all_equal(again.state, outcome.state)


def test_without_patience_a_run_goes_to_its_end(tmp_path):
    outcome = scripted(tmp_path, FALLING)
    assert int(outcome.state.step) == len(FALLING)
    assert not outcome.out_of_patience
    assert best_step(tmp_path) == 6


def test_improvement_renews_patience_and_equality_does_not(tmp_path):
    outcome = scripted(tmp_path, [3.0, 4.0, 4.0, 2.0, 4.0, 4.0, 1.0, 1.0, 1.0, 1.0, 0.5], patience=3)
    assert int(outcome.state.step) == 10


@pytest.mark.parametrize("checkpoint_every", [1, 100])
def test_patience_outlives_a_stop(checkpoint_every, tmp_path):
    def stop(step, metrics):
        if step == 2:
            os.kill(os.getpid(), signal.SIGTERM)

    values = {"patience": 3, "checkpoint_every": checkpoint_every}
    whole = scripted(tmp_path / "whole", FALLING, **values)
    stopped = scripted(tmp_path / "cut", FALLING, on_evaluation=stop, **values)
    assert stopped.stopped_by == signal.SIGTERM
    assert int(stopped.state.step) == 3
    resumed = scripted(tmp_path / "cut", FALLING, **values)
    assert_same_run(tmp_path / "whole", tmp_path / "cut")
    chex.assert_trees_all_equal(whole.state, resumed.state)


def test_a_nan_evaluation_is_not_the_best(tmp_path):
    script = [2.0, math.nan, math.inf, math.nan]
    outcome = scripted(tmp_path, script, keep_checkpoints=1, patience=3)
    assert outcome.out_of_patience
    assert best_step(tmp_path) == 1


def test_a_metric_that_is_not_logged_is_named_with_those_that_are(tmp_path):
    with pytest.raises(UserError) as caught:
        scripted(tmp_path, [1.0, 1.0], "f1", best_metric="f2")
    assert str(caught.value) == "config.training.best_metric=f2 is not logged by this run; choose one of accuracy, f1"


def test_a_metric_without_a_better_direction_cannot_judge_checkpoints(tmp_path):
    with pytest.raises(UserError, match=r"^config\.training\.best_metric=confidence does not rank models"):
        scripted(tmp_path, [1.0, 1.0], "confidence")


def test_given_parameters_are_those_of_the_first_step_and_not_of_a_resume(tmp_path):
    given = {"kernel": np.array([5.0, 7.0])}
    still = {"learning_rate": 1e-30, "checkpoint_every": 2}
    outcome = scripted(tmp_path, FALLING[:2], initial_params=given, steps=2, **still)
    for params in (outcome.state.params, outcome.state.averaged_params):
        np.testing.assert_array_equal(params["kernel"], given["kernel"])
    resumed = scripted(tmp_path, FALLING, initial_params={"kernel": np.zeros(2)}, **still)
    assert int(resumed.state.step) == len(FALLING)
    np.testing.assert_array_equal(resumed.state.params["kernel"], given["kernel"])


def test_the_callback_sees_each_evaluation_and_may_end_the_run(tmp_path):
    told = []

    def listen(step, metrics):
        told.append((step, metrics["validation/loss"]))
        if step == 6:
            raise KeyError("enough")

    with pytest.raises(KeyError, match="enough"):
        scripted(tmp_path, FALLING, on_evaluation=listen, evaluate_every=3)
    assert told == [(3, FALLING[2]), (6, FALLING[5])]
