"""Comparing two classifiers on the same rows."""

import dataclasses
import json
import re
from pathlib import Path

import numpy as np
import pytest

from experiments.compare import compare, define_flags, items_needed, main, undecided
from lm.calibration import comparison as calibration_comparison
from lm.calibration.errors import expected_calibration_error
from lm.calibration.logits import FactoredLogits
from lm.calibration.predictions import Predictions
from lm.errors import UserError
from lm.evaluation.generation import generation_metrics
from lm.evaluation.tagging import entity_metrics
from lm.runs.results import write_results
from lm.runs.work_directory import WorkDirectory
from lm.tasks.sequence_classification import classification_results
from tests.tiny import command_line

ROWS = 400


def write(folder, share_right: float, seed: int, ids=None) -> str:
    """A run that is right on a share of the same rows, with a confidence of 0.8."""
    labels_N = np.arange(ROWS) % 2
    right_N = np.random.default_rng(seed).random(ROWS) < share_right
    predicted_N = np.where(right_N, labels_N, 1 - labels_N)
    logits_NC = np.log(np.where(np.eye(2)[predicted_N] > 0, 0.8, 0.2)).astype(np.float32)
    ids_N = np.arange(ROWS) if ids is None else ids
    Predictions(logits_NC, labels_N, ids_N).save(folder / "predictions" / "test.npz")
    return str(folder)


def test_a_better_training_method_is_distinguished_from_chance(tmp_path):
    worse = [write(tmp_path / f"worse{seed}", 0.6, seed) for seed in range(3)]
    better = [write(tmp_path / f"better{seed}", 0.8, 10 + seed) for seed in range(3)]
    one, other, difference, items = compare(worse, better)["accuracy"]
    assert one.seeds == other.seeds == 3
    assert items == ROWS
    assert difference.value == pytest.approx(other.mean - one.mean)
    assert 0.1 < difference.low < difference.value < difference.high < 0.3
    assert difference.p < 0.01
    assert compare(worse, better)["loss"][2].high < 0
    assert compare(better, worse)["accuracy"][2].value == pytest.approx(-difference.value)


def test_a_run_does_not_differ_from_itself(tmp_path):
    run = write(tmp_path / "run", 0.7, 0)
    difference = compare([run], [run])["accuracy"][2]
    assert (difference.value, difference.low, difference.high, difference.p) == (0, 0, 0, 1)


@pytest.mark.slow
def test_compare_and_calibrate_give_the_same_p_for_the_same_question(tmp_path):
    """The change of NLL and of accuracy by a calibrator, on 60 rows in 12 clusters."""
    rng = np.random.default_rng(0)
    logits_NC = rng.normal(scale=2, size=(120, 3)).astype(np.float32)
    labels_N = (logits_NC / 2 + rng.gumbel(size=logits_NC.shape)).argmax(axis=1)
    fit_part, test_part = (
        Predictions(logits_NC[rows], labels_N[rows], rows, rows // 5) for rows in (np.arange(60), np.arange(60, 120))
    )
    found, fitted = calibration_comparison.compare(fit_part, test_part, ("vector",))
    after = dataclasses.replace(test_part, logits=np.asarray(fitted["vector"].apply(test_part.logits)))
    for name, predictions in (("before", test_part), ("after", after)):
        predictions.save(tmp_path / name / "predictions" / "test.npz")
    compared = compare([str(tmp_path / "before")], [str(tmp_path / "after")])
    for name, other in (("loss", "nll"), ("accuracy", "accuracy")):
        expected = found.method("vector").entry(other).difference
        assert 0 < expected.p < 1
        assert dataclasses.asdict(compared[name][2]) == pytest.approx(dataclasses.asdict(expected))


def test_calibration_errors_are_compared_too(tmp_path):
    """The same answers, once with the right confidence and once with too much; seeds may differ in number."""
    right = [write(tmp_path / f"right{seed}", 0.8, seed) for seed in range(2)]
    bold = []
    for seed in range(3):
        path = Path(write(tmp_path / f"bold{seed}", 0.8, seed)) / "predictions" / "test.npz"
        predictions = Predictions.load(path)
        dataclasses.replace(predictions, logits=4 * predictions.logits).save(path)
        bold.append(str(tmp_path / f"bold{seed}"))
    found = compare(right, bold)
    assert set(found) == {"accuracy", "loss", "brier", "ece"}
    assert found["accuracy"].difference.p > 0.05
    for name in ("loss", "brier", "ece"):
        one, other, difference, _ = found[name]
        assert difference.value == pytest.approx(other.mean - one.mean)
        assert difference.low > 0
        assert difference.p < 0.01
    labels, logits = Predictions.load(path).labels_N, Predictions.load(path).logits
    ece = expected_calibration_error(labels, logits=logits).value
    assert compare(right, bold[-1:])["ece"].other.mean == pytest.approx(ece, rel=1e-5)


def write_tagged(folder, predicted, reported=None) -> str:
    gold = [["B-PER", "I-PER", "O"], ["O", "B-LOC", "O"]] * 40
    records = [
        {"place": f"test:{i}", "words": ["a", "b", "c"], "tags": tags, "predicted": guess, "confidence": [0.5] * 3}
        for i, (tags, guess) in enumerate(zip(gold, predicted, strict=True))
    ]
    (folder / "predictions").mkdir(parents=True)
    (folder / "predictions" / "test.jsonl").write_text("\n".join(map(json.dumps, records)) + "\n")
    f1 = entity_metrics(gold, predicted)["f1"].value if reported is None else reported
    (folder / "predictions" / "test.metrics.json").write_text(json.dumps({"metrics": {"f1": {"value": f1}}}))
    return str(folder)


def test_entities_are_compared_by_the_records_of_sentences(tmp_path):
    gold = [["B-PER", "I-PER", "O"], ["O", "B-LOC", "O"]] * 40
    rng = np.random.default_rng(0)
    worse = write_tagged(tmp_path / "worse", [tags if rng.random() < 0.2 else ["O"] * 3 for tags in gold])
    # Finds another type, which the other run never predicts.
    better = write_tagged(tmp_path / "better", [tags if rng.random() < 0.9 else ["B-ORG", "O", "O"] for tags in gold])
    found = compare([worse], [better])
    assert set(found) == {"f1"}
    assert found["f1"].difference.value > 0.1
    assert found["f1"].difference.p < 0.01
    elsewhere = write_tagged(tmp_path / "elsewhere", gold, reported=0.123)
    with pytest.raises(UserError, match="no metric in common"):  # it was computed in another way
        compare([worse], [elsewhere])


@pytest.mark.parametrize("file", ["test.jsonl", "test.npz", "test.metrics.json"])
@pytest.mark.parametrize("change", ["digit", "deleted"])
def test_files_that_do_not_belong_together_are_refused(file, change, tmp_path):
    """Otherwise metrics would be missing, or be those of other predictions, without a word."""
    classes = ("no", "yes")
    labels_N = np.arange(20) % 2
    logits_NC = np.random.default_rng(0).normal(size=(20, 2)).astype(np.float32)
    rows = [{"place": f"rows:{number}", "label": classes[label]} for number, label in enumerate(labels_N)]
    write_results(classification_results(rows, logits_NC, classes), WorkDirectory(tmp_path), "test", 20, 1)
    compare([str(tmp_path)], [str(tmp_path)])
    path = tmp_path / "predictions" / file
    if change == "deleted":
        path.unlink()
    elif path.suffix == ".npz":
        predictions = Predictions.load(path)
        dataclasses.replace(predictions, logits=2 * predictions.logits).save(path)
    else:
        path.write_text(path.read_text().replace("0.", "0.1", 1))
    with pytest.raises(UserError, match=rf"{file}.* run (it|experiments.evaluate) again"):
        compare([str(tmp_path)], [str(tmp_path)])


def test_translations_are_compared_by_their_texts(tmp_path):
    runs = []
    texts = [f"the cat number {i} sat on the mat" for i in range(20)]
    for name, words in (("one", 5), ("other", 8)):
        records = [
            {"source": t, "target": t, "predicted": " ".join(t.split()[:words]), "confidence": 0.5} for t in texts
        ]
        folder = tmp_path / name / "predictions"
        folder.mkdir(parents=True)
        (folder / "test.jsonl").write_text("\n".join(map(json.dumps, records)) + "\n")
        of_texts = generation_metrics([record["predicted"] for record in records], texts)
        figures = {metric: {"value": each.value} for metric, each in of_texts.items()}
        (folder / "test.metrics.json").write_text(json.dumps({"metrics": figures}))
        runs.append(str(tmp_path / name))
    found = compare(runs[:1], runs[1:])
    assert found["bleu"].other.mean == pytest.approx(100)
    assert found["bleu"].difference.low > 0
    assert found["exact_match"].difference.value == 1


def test_next_tokens_have_a_perplexity(tmp_path):
    rng = np.random.default_rng(0)
    hidden, labels = rng.normal(size=(200, 3)).astype(np.float32), rng.integers(5, size=200)
    for name in ("one", "other"):
        logits = FactoredLogits(hidden, rng.normal(size=(5, 3)).astype(np.float32))
        Predictions(logits, labels, np.arange(200), np.arange(200) // 20).save(
            tmp_path / name / "predictions" / "validation.npz"
        )
    found = compare([str(tmp_path / "one")], [str(tmp_path / "other")], "validation")
    assert found["perplexity"].one.mean == pytest.approx(np.exp(found["loss"].one.mean))
    assert found["perplexity"].items == 10
    assert (found["perplexity"].difference.value > 0) == (found["loss"].difference.value > 0)


def test_what_chance_may_explain_says_how_many_rows_would_tell(tmp_path):
    one, other = write(tmp_path / "one", 0.70, 0), write(tmp_path / "other", 0.65, 2)
    compared = compare([one], [other])["accuracy"]
    needed = items_needed(compared)
    match = re.match(r"accuracy: not distinguishable at N = 400; about ([\d,]+) items", undecided("accuracy", compared))
    assert len(match[1].rstrip("0,").replace(",", "")) <= 2
    assert int(match[1].replace(",", "")) == pytest.approx(needed, rel=0.05)
    # With so many rows of the same kind, the interval ends 2.8 standard errors from 0.
    error = (compared.difference.high - compared.difference.low) / 2 / 1.966
    assert abs(compared.difference.value) / (error * np.sqrt(ROWS / needed)) == pytest.approx(2.80, abs=0.02)
    assert undecided("accuracy", compare([one], [one])["accuracy"]) == "accuracy: not distinguishable at N = 400"
    assert undecided("accuracy", compare([one], [write(tmp_path / "far", 0.9, 2)])["accuracy"]) == ""


def test_runs_are_named_relative_to_their_common_parent(tmp_path, capsys):
    runs = [write(tmp_path / "deep" / name, 0.7, seed) for seed, name in enumerate(("[bold]red", "blue"))]
    assert command_line(main, define_flags, f"--one={runs[0]}", f"--other={runs[1]}") == 0
    out = capsys.readouterr().out
    assert "blue minus [bold]red, on the test rows" in out
    assert str(tmp_path) not in out
    assert max(map(len, out.splitlines())) <= 80 or "would be needed" in out


def test_one_cluster_has_neither_interval_nor_p(tmp_path, capsys):
    runs = [write(tmp_path / name, share, 0) for name, share in (("one", 0.6), ("other", 0.8))]
    for run in runs:
        path = tmp_path / run / "predictions" / "test.npz"
        dataclasses.replace(Predictions.load(path), clusters_N=np.zeros(ROWS, int)).save(path)
    arguments = (f"--one={runs[0]}", f"--other={runs[1]}")
    assert command_line(main, define_flags, *arguments) == 0
    assert "need at least two rows" in capsys.readouterr().out
    assert command_line(main, define_flags, *arguments, "--json") == 0
    assert json.loads(capsys.readouterr().out)["accuracy"][2]["p"] is None


def test_other_rows_and_missing_predictions_are_errors(tmp_path):
    run, other = write(tmp_path / "run", 0.7, 0), write(tmp_path / "other", 0.7, 0, ids=np.arange(ROWS) + 1)
    with pytest.raises(UserError, match="for other rows"):
        compare([run], [other])
    with pytest.raises(UserError, match=rf"experiments\.evaluate --workdir={run} --config\.split=validation"):
        compare([run], [run], "validation")
    with pytest.raises(UserError, match="nowhere does not exist: train a run there, or name another"):
        compare(["nowhere"], [run], "validation")


@pytest.mark.parametrize("name", ["labels", "clusters", "weights"])
def test_the_same_rows_with_other_labels_clusters_or_weights_are_an_error(name, tmp_path):
    run, other = write(tmp_path / "run", 0.7, 0), write(tmp_path / "other", 0.7, 0)
    path = Path(other) / "predictions" / "test.npz"
    dataclasses.replace(Predictions.load(path), **{f"{name}_N": np.arange(ROWS) // 2 % 2}).save(path)
    with pytest.raises(UserError, match=f"other: the {name} of its rows differ"):
        compare([run], [other])


def test_rows_of_weight_0_do_not_count(tmp_path):
    runs = {name: Path(write(tmp_path / name, share, 0)) for name, share in (("one", 0.6), ("other", 0.8))}
    for name, run in runs.items():
        path = run / "predictions" / "test.npz"
        predictions = Predictions.load(path)
        dataclasses.replace(predictions, weights_N=np.arange(ROWS) < 100).save(path)
        predictions.select(np.arange(100)).save(tmp_path / f"part {name}" / "predictions" / "test.npz")
    weighted = compare([str(runs["one"])], [str(runs["other"])])
    part = compare([str(tmp_path / "part one")], [str(tmp_path / "part other")])
    for name in ("accuracy", "loss", "brier", "ece"):
        assert weighted[name].difference.value == pytest.approx(part[name].difference.value, abs=1e-6)
    assert weighted["accuracy"].difference.p == pytest.approx(part["accuracy"].difference.p)


def test_the_command_line_prints_json_or_a_table(tmp_path, capsys):
    run, other = write(tmp_path / "run", 0.6, 0), write(tmp_path / "other", 0.9, 1)
    assert command_line(main, define_flags, f"--one={run}", f"--other={other}", "--json") == 0
    found = json.loads(capsys.readouterr().out)
    assert found["accuracy"][2]["value"] > 0.2
    assert command_line(main, define_flags, f"--one={run}", f"--other={other}") == 0
    assert "95% interval" in capsys.readouterr().out
    assert command_line(main, define_flags, f"--one={run}") == 2
