"""A prompted run: results, resuming, use with a calibrator, and nothing read that its owner did not name."""

import json
import shutil

import numpy as np
import pytest

import lm
from experiments import compare, predict, prompt, sweep
from experiments.sweep import SweepConfig
from lm.calibration.predictions import Predictions
from lm.console import Console
from lm.data.config import ExamplesConfig
from lm.errors import UserError
from lm.files import with_digest
from lm.inference.prompted_classifier import PromptedClassifier
from lm.prompting.config import PromptConfig
from lm.runs.prompted_run import PromptedRunConfig
from lm.runs.work_directory import WorkDirectory
from tests.tiny import command_line, files_below, replace, run, tiny_config

LABELS = ("animal", "colour")
WORDS = {"animal": ("cat", "dog", "owl"), "colour": ("red", "blue", "green")}


def write_rows(folder, **counts):
    random = np.random.default_rng(0)
    for name, count in counts.items():
        labels = random.choice(LABELS, count)
        rows = [
            {"text": f"{number} {random.choice(WORDS[label])}", "label": str(label)}
            for number, label in enumerate(labels)
        ]
        (folder / f"{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Rows, and a decoder to prompt."""
    folder = tmp_path_factory.mktemp("prompt")
    write_rows(folder, train=20, validation=30, test=24)
    config = tiny_config(folder, prompts=(), steps=2, evaluate_every=2)
    run(replace(config, model={"layers": 1, "max_length": 64}), folder / "model")
    return folder


def config_in(folder, **how):
    sources = {name: f"jsonl:{folder / name}.jsonl" for name in ("train", "validation", "test")}
    return PromptedRunConfig(
        model=str(folder / "model"),
        data=ExamplesConfig(**sources),
        prompt=PromptConfig(item="{text}:", separator="\n", shots=2),
        validation_rows=10,
        domain_texts=3,
        **how,
    )


@pytest.fixture(scope="module")
def done(folder):
    directory = WorkDirectory(folder / "done")
    return directory, prompt.prompt(config_in(folder), directory)


def test_results_are_those_of_other_runs_and_hold_priors(done):
    directory, evaluations = done
    assert [(each.split, each.rows) for each in evaluations] == [("validation", 10), ("test", 24)]
    test = Predictions.load(directory.predictions / "test.npz")
    assert test.class_names == LABELS
    assert len(test) == 24
    assert {name: prior.shape for name, prior in test.priors.items()} == {
        "content_free": (3, 2),
        "domain": (3, 2),
        "premise": (1, 2),
    }
    model = lm.load(directory.path)
    assert isinstance(model, PromptedClassifier)
    rows = [json.loads(line) for line in (directory.predictions / "test.jsonl").read_text().splitlines()]
    found = model.predict([row["text"] for row in rows])
    assert [each.label for each in found] == [row["predicted"] for row in rows]
    assert [each.label_mass for each in found] == pytest.approx([row["label_mass"] for row in rows])


def test_a_stopped_run_goes_on_where_it_was(done, folder, monkeypatch):
    directory, _ = done
    resumed = WorkDirectory(folder / "resumed")
    monkeypatch.setattr(prompt, "_AT_ONCE", 8)
    prompt.prompt(config_in(folder), resumed)
    whole = (resumed.path / "scores" / "test.jsonl").read_bytes()
    first = b"".join(whole.splitlines(keepends=True)[:8])
    changed = whole.splitlines(keepends=True)[8].replace(b'"log_probs": [-', b'"log_probs": [-1')
    (resumed.path / "scores" / "test.jsonl").write_bytes(first + changed + b'{"place": "half a li')
    shutil.rmtree(resumed.predictions)
    scored = []
    score = PromptedClassifier.answer_scores

    def counted(self, rows, *args, **options):
        scored.extend(rows)
        return score(self, rows, *args, **options)

    monkeypatch.setattr(PromptedClassifier, "answer_scores", counted)
    prompt.prompt(config_in(folder), resumed)
    places = [row["place"] for row in scored if "label" in row]  # the others are of priors
    assert places == [json.loads(line)["place"] for line in whole.splitlines()[8:]]
    assert (resumed.path / "scores" / "test.jsonl").read_bytes() == whole
    theirs, ours = (Predictions.load(each.predictions / "test.npz") for each in (directory, resumed))
    np.testing.assert_allclose(ours.logits, theirs.logits, atol=1e-5)


def test_two_prompts_are_compared_on_the_same_rows(done, folder):
    directory, evaluations = done
    other = WorkDirectory(folder / "no shots")
    config = config_in(folder)
    (_, found) = prompt.prompt(replace(config, prompt={"shots": 0}), other)
    compared = compare.compare([str(directory.path)], [str(other.path)])
    for name in ("accuracy", "loss"):
        expected = found.metrics[name].value - evaluations[1].metrics[name].value
        assert compared[name].difference.value == pytest.approx(expected, abs=1e-6)


def test_another_run_is_refused_in_the_same_directory(done, folder):
    directory, _ = done
    before = {name: (directory.path / name).stat().st_mtime_ns for name in files_below(directory.path)}
    with pytest.raises(UserError, match=r"another prompted run \(config\.validation_rows was 10, is 9.*--workdir"):
        prompt.prompt(replace(config_in(folder), validation_rows=9), directory)
    with pytest.raises(UserError, match="holds a trained run"):
        prompt.prompt(config_in(folder), WorkDirectory(folder / "model"))
    assert before == {name: (directory.path / name).stat().st_mtime_ns for name in files_below(directory.path)}


def test_shots_and_rows_to_fit_come_from_different_splits(done):
    directory, _ = done
    record = json.loads(directory.prompt.read_text())
    assert len(record["shots"]) == 2
    assert all("train.jsonl" in shot["place"] for shot in record["shots"])


def test_a_received_run_reads_no_model_that_its_user_did_not_name(done, folder, tmp_path, monkeypatch):
    directory, _ = done
    monkeypatch.setenv("LM_CACHE_DIR", str(tmp_path / "other user"))
    with pytest.raises(UserError, match=r"was not made by you.*name the model yourself"):
        lm.load(directory.path)
    assert lm.load(directory.path, model=folder / "model").classes == LABELS


def test_another_model_is_refused(done, folder):
    directory, _ = done
    run(
        replace(tiny_config(folder / "more", prompts=(), steps=1), model={"layers": 1, "max_length": 64}),
        folder / "other",
    )
    with pytest.raises(UserError, match="prompts another model than"):
        lm.load(directory.path, model=folder / "other")
    for source in (folder / "model", f"hf:{folder / 'model'}"):
        with pytest.raises(UserError, match="is not a prompted run"):
            lm.load(source, model=folder / "other")


def test_a_changed_prompt_is_refused(done, tmp_path):
    directory, _ = done
    copy = tmp_path / "copy"
    shutil.copytree(directory.path, copy)
    text = (copy / "prompt.json").read_text()
    (copy / "prompt.json").write_text(text.replace("{text}:", "{text}?"))
    with pytest.raises(UserError, match=r"prompt\.json was changed"):
        lm.load(copy)


@pytest.mark.parametrize(
    ("name", "value"), [("shots", [{"text": 1, "label": "animal"}]), ("shots", [{}]), ("classes", 3), ("config", None)]
)
def test_a_damaged_prompt_is_one_line_whatever_its_digest(done, tmp_path, name, value):
    directory, _ = done
    record = json.loads(directory.prompt.read_text()) | {name: value}
    del record["digest"]
    (tmp_path / "prompt.json").write_text(json.dumps(with_digest(record)))
    with pytest.raises(UserError, match=r"prompt\.json is damaged"):
        lm.load(tmp_path)


def test_predictions_are_made_on_the_command_line(done, tmp_path, capsys):
    directory, _ = done
    status = command_line(
        predict.main, predict.define_flags, f"--workdir={directory.path}", "--text=a red", "--text=an owl"
    )
    lines = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    assert status == 0
    assert [set(line) >= {"text", "predicted", "label_mass"} for line in lines] == [True, True]


@pytest.mark.slow
def test_a_sweep_searches_prompts_by_their_validation_rows(folder, tmp_path):
    (tmp_path / "base.py").write_text(
        "from lm.configuration import to_config_dict\n"
        "from tests.experiments.test_prompt import config_in\n"
        f"def get_config(): return to_config_dict(config_in(__import__('pathlib').Path({str(folder)!r})))\n"
    )
    config = SweepConfig(
        str(tmp_path / "base.py"),
        ("prompt.shots=0,2", "prompt.order_seed=0,1"),
        "grid",
        seeds=(0, 1),
        metric="accuracy",
    )
    rows = sweep.sweep(config, tmp_path / "sweep", Console(quiet=True))
    assert [row.state for row in rows] == ["complete"] * 4
    paths = sorted((tmp_path / "sweep" / "trials").iterdir())
    assert len(paths) == 8
    drawn = {path.name: json.loads((path / "prompt.json").read_text())["shots"] for path in paths}
    assert sorted(map(len, drawn.values())) == [0] * 4 + [2] * 4
    with pytest.raises(UserError, match=r"config\.pruning=median is for training"):
        sweep.sweep(replace(config, pruning="median"), tmp_path / "pruned", Console(quiet=True))


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["--config.model="], "config.model is empty"),
        (["--config.prompt.item=Kind:"], "no place for a row"),
        (["--config.prompt.item={question}:"], "config.prompt.item='{question}:' asks for it"),
        (["--config.model=runs/nowhere"], "config.model=runs/nowhere: runs/nowhere has no run"),
        (["--config.prompt.answers=('animal= Tier','colour= Tierchen')"], "begins"),
        (["--config.prompt.shots=40"], "there are 20 training rows"),
        (["--config.prompt.chat=True"], "no chat_template"),
    ],
)
def test_bad_input_gets_one_line_and_writes_nothing(folder, tmp_path, capsys, arguments, said):
    sources = [f"--config.data.{name}=jsonl:{folder / name}.jsonl" for name in ("train", "validation", "test")]
    given = ["--config=configs/prompt.py", f"--config.model={folder / 'model'}", *sources, *arguments]
    status = command_line(prompt.main, prompt.define_flags, *given, f"--workdir={tmp_path / 'new'}")
    error = capsys.readouterr().err
    assert status == 2
    assert said in error
    assert len(error.strip().splitlines()) == 1
    assert not (tmp_path / "new").exists()
