"""Confidence in whole answers: results that calibration reads, resuming, samples that never judge what they chose."""

import dataclasses
import json
import shutil

import numpy as np
import pytest

import lm
from experiments.answer_confidence import __main__ as experiment
from experiments.answer_confidence import asking
from experiments.answer_confidence.__main__ import answer_confidence
from experiments.answer_confidence.config import AnswerConfidenceConfig
from experiments.answer_confidence.similarity import SimilarityConfig
from lm.calibration.predictions import JUDGEMENTS, Predictions
from lm.calibration.results import Settings
from lm.data.config import ExamplesConfig
from lm.errors import UserError
from lm.inference.whole_answers import AnsweringConfig, AnswerWriter, WholeAnswer
from lm.prompting.answer_confidence import KINDS
from lm.prompting.config import PromptConfig
from lm.prompting.questions import JudgingConfig, QuestionPrompting
from lm.runs.work_directory import WorkDirectory
from tests.tiny import command_line, files_below, replace, run, tiny_config

# All prompts have 33 to 64 tokens, and rows are asked four at a time with four samples, so that few sizes are compiled.
JUDGING = JudgingConfig(
    item="{context} {question}? {proposed}:", stated="How sure is it from 0 to 100? {question}? {proposed} %", tokens=2
)


def write_rows(folder, **counts):
    for name, count in counts.items():
        rows = [
            {"question": f"{name} {number}", "answer": ["e", "the"], "context": f"{name} {number // 2}"}
            for number in range(count)
        ]
        (folder / f"{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Rows, and a decoder to ask."""
    folder = tmp_path_factory.mktemp("answers")
    write_rows(folder, train=4, validation=8, test=12)
    config = tiny_config(folder, steps=2, evaluate_every=2)
    run(replace(config, model={"layers": 1, "max_length": 64}), folder / "model")
    return folder


@pytest.fixture(scope="module")
def model(folder):
    return lm.load(folder / "model")


@pytest.fixture(scope="module", autouse=True)
def four_at_once():
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(asking, "AT_ONCE", 4)
        yield


def config_in(folder, **how):
    sources = {name: f"jsonl:{folder / name}.jsonl" for name in ("train", "validation", "test")}
    return AnswerConfidenceConfig(
        model=str(folder / "model"),
        data=ExamplesConfig(**sources),
        prompt=PromptConfig(item="{context} {question}:", separator="\n", shots=1),
        judging=JUDGING,
        answering=AnsweringConfig(samples=4, max_new_tokens=2, stop=()),
        similarity=SimilarityConfig(model=str(folder / "model"), least_cosine=0.9),
        settings=Settings(resamples=20),
        **how,
    )


@pytest.fixture(scope="module")
def done(folder, model):
    directory = WorkDirectory(folder / "done")
    return directory, answer_confidence(config_in(folder), directory, model=model)


def test_every_kind_of_confidence_is_predictions_that_calibration_reads(done):
    directory, table = done
    kinds = [line.kind for line in table.lines]
    assert kinds == [kind for kind in KINDS if kind in kinds]
    assert set(kinds) >= set(KINDS) - {"stated"}
    lines = [json.loads(line) for line in (directory.path / "rows" / "test.jsonl").read_text().splitlines()]
    for line in table.lines:
        folder = directory.path / "confidences" / line.kind / "predictions"
        validation, test = (Predictions.load(folder / f"{name}.npz") for name in ("validation", "test"))
        assert test.class_names == JUDGEMENTS
        assert line.kind == "stated" or (len(validation), len(test)) == (8, 12)
        assert np.unique(test.clusters_N).size <= 6
        expected = [each["log_confidence"][line.kind] for each in lines if line.kind in each["log_confidence"]]
        np.testing.assert_allclose(np.log(test.outcomes().confidence_N), expected, rtol=1e-3, atol=1e-5)
    assert {"table.md", "table.csv", "table.json", "risk_coverage.png"} <= files_below(directory.path)
    assert json.loads((directory.path / "table.json").read_text())["kinds"][0]["before"]["ece"]["floor"]["mean"] >= 0


def test_a_stopped_run_goes_on_where_it_was_with_the_same_samples(done, folder, model, monkeypatch):
    directory, _ = done
    resumed = WorkDirectory(folder / "resumed")
    shutil.copytree(directory.path / "answers", resumed.path / "answers")
    path = resumed.path / "answers" / "test.jsonl"
    whole = path.read_bytes()
    lines = whole.splitlines(keepends=True)
    path.write_bytes(b"".join(lines[:6]) + lines[6].replace(b'"text": "', b'"text": "x') + b'{"place": "half')
    asked = []
    write = AnswerWriter.write
    monkeypatch.setattr(AnswerWriter, "write", lambda self, rows, seed: asked.extend(rows) or write(self, rows, seed))
    answer_confidence(config_in(folder), resumed, model=model)
    assert [row["question"] for row in asked] == [f"test {number}" for number in range(4, 12)]
    assert path.read_bytes() == whole


def test_what_does_not_change_the_answers_may_change_and_nothing_else(done, folder, model, monkeypatch):
    directory, table = done
    monkeypatch.setattr(AnswerWriter, "write", None)
    again = answer_confidence(config_in(folder, risk=0.9, least_f1=0.5), directory, model=model)
    assert [line.kind for line in again.lines] == [line.kind for line in table.lines]
    other = replace(config_in(folder), answering={"samples": 5})
    with pytest.raises(UserError, match=r"other answers \(config\.answering\.samples was 4, is 5.*--workdir"):
        answer_confidence(other, directory, model=model)
    with pytest.raises(UserError, match="another kind of run"):
        answer_confidence(other, WorkDirectory(folder / "model"), model=model)


def rows_with(answer):
    return [{"question": f"why {number}", "context": f"context {number}", "answer": [answer]} for number in range(4)]


def test_half_of_the_samples_choose_and_the_others_judge(folder, model):
    prompting = QuestionPrompting(config_in(folder).prompt, JUDGING)
    answering = AnsweringConfig("majority", 2, max_new_tokens=2, stop=())
    for answer in AnswerWriter(model, prompting, answering).write(rows_with("e"), seed=0):
        assert len(answer.samples) == 4
        assert answer.chosen.judges == answer.samples[2:]
        assert answer.chosen.answer in answer.samples[:2]
        changed = dataclasses.replace(answer, samples=(*answer.samples[:2], *reversed(answer.samples[2:])))
        assert changed.chosen.answer == answer.chosen.answer


def test_the_accepted_answers_are_not_looked_at_and_answers_survive_json(folder, model):
    config = config_in(folder)
    writer = AnswerWriter(model, QuestionPrompting(config.prompt, JUDGING), config.answering)
    one, other = (writer.write(rows_with(answer), seed=0) for answer in ("e", "something else"))
    assert one == other
    assert [WholeAnswer.from_json(json.loads(json.dumps(dataclasses.asdict(each))), "") for each in one] == one


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["--config.model="], "config.model is empty"),
        (["--config.answering.samples=0"], "config.answering.samples must be at least 2"),
        (["--config.answering.temperature=0"], "config.answering.temperature must be positive"),
        (["--config.prompt.item={passage} {question}:"], "config.prompt.item='{passage} {question}:' asks for it"),
        (["--config.prompt.letters=True"], "config.prompt.letters is for prompts with classes"),
        (["--config.judging.item={question}:"], "config.judging.item has no {proposed}"),
        (["--config.judging.true=false"], "two different words"),
        (["--config.data.columns=('answer=reply',)"], "has no column 'reply'"),
        (["--config.answering.max_new_tokens=60"], "lower config.answering.max_new_tokens"),
        (["--config.data.test="], "there are no test rows"),
        (["--config.calibrator=magic"], "config.calibrator='magic' is unknown"),
    ],
)
def test_bad_input_gets_one_line_and_writes_nothing(folder, tmp_path, capsys, arguments, said):
    sources = [f"--config.data.{name}=jsonl:{folder / name}.jsonl" for name in ("train", "validation", "test")]
    short = [f"--config.judging.{name}={getattr(JUDGING, name)}" for name in ("item", "stated")]
    given = [
        "--config=configs/answer_confidence.py",
        f"--config.model={folder / 'model'}",
        *sources,
        *short,
        *arguments,
    ]
    status = command_line(experiment.main, experiment.define_flags, *given, f"--workdir={tmp_path / 'new'}")
    error = capsys.readouterr().err
    assert status == 2
    assert said in error
    assert len(error.strip().splitlines()) == 1
    assert not (tmp_path / "new").exists()
