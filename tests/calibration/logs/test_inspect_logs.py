"""Inspect's logs as predictions: which confidence is read, and what is refused."""

import json
import zipfile

import numpy as np
import pytest
from scipy import special

from lm.calibration.logs.read import read_logs
from lm.errors import UserError
from tests.calibration.logs.inspect_writing import sample, stated, token, write_log

RIGHT_A = [token(" A", 0.6, A=0.1, **{" B": 0.2, "(C)": 0.05})]


def read(folder, *samples, name="log.eval", **how):
    return read_logs([write_log(folder / name, list(samples))], **how)


@pytest.mark.parametrize("name", ["log.eval", "log.json"])
def test_options_are_read_from_the_token_that_answers(tmp_path, name):
    log = read(tmp_path, sample("x", tokens=RIGHT_A), sample("y", answer="B", target="C"), name=name)
    probabilities_NC = special.softmax(log.predictions.logits, axis=1)
    np.testing.assert_allclose(probabilities_NC[0], np.array([0.7, 0.2, 0.05]) / 0.95, rtol=1e-5)
    np.testing.assert_allclose(probabilities_NC[1], np.array([0.1, 0.7, 0.1]) / 0.9, rtol=1e-5)
    assert log.predictions.labels_N.tolist() == [0, 2]
    assert log.predictions.class_names == ("one", "two", "three")
    assert log.predictions.ids_N.tolist() == ["x", "y"]


def test_the_last_token_that_is_the_answer_counts(tmp_path):
    first = token(" A", 0.2, **{" B": 0.7, " C": 0.1})
    log = read(tmp_path, sample("x", tokens=[first, *RIGHT_A]))
    assert special.softmax(log.predictions.logits, axis=1)[0, 0] == pytest.approx(0.7 / 0.95, rel=1e-5)


def test_options_of_other_numbers_are_padded(tmp_path):
    log = read(tmp_path, sample("x"), sample("y", choices=("one", "two")))
    assert np.isneginf(log.predictions.logits).tolist() == [[False] * 3, [False, False, True]]
    assert log.predictions.class_names is None


def test_epochs_of_a_sample_share_a_cluster(tmp_path):
    log = read(tmp_path, sample("x", epoch=1), sample("x", epoch=2), sample("y", epoch=1))
    assert log.predictions.ids_N.tolist() == ["x/epoch 1", "x/epoch 2", "y/epoch 1"]
    assert log.predictions.clusters_N.tolist() == ["x", "x", "y"]


def test_without_all_options_the_answer_is_judged(tmp_path):
    lacking = sample("x", tokens=[token(" A", 0.6, **{" B": 0.3})])
    log = read(tmp_path, lacking, sample("y", answer="B"))
    found = log.predictions.outcomes()
    assert log.predictions.class_names == ("wrong", "right")
    np.testing.assert_allclose(found.confidence_N, [0.6, 0.7], rtol=1e-5)
    assert found.correct_N.tolist() == [1, 0]
    with pytest.raises(UserError, match=r"x_epoch_1.json has no probability of C among the top_logprobs"):
        read(tmp_path, lacking, confidence="options")


def test_a_stated_confidence_is_read_where_there_is_no_other(tmp_path):
    log = read(tmp_path, stated("x", 0.9), stated("y", 0.6, value="I"), stated("z", 0.2, value=1.0))
    found = log.predictions.outcomes()
    np.testing.assert_allclose(found.confidence_N, [0.9, 0.6, 0.2], rtol=1e-6)
    assert found.correct_N.tolist() == [1, 0, 1]
    assert not log.notes


def test_answers_that_are_certain_and_wrong_are_told(tmp_path):
    log = read(tmp_path, stated("x", 1.0, value="I"), stated("y", 1.0), stated("z", 0))
    assert log.predictions.outcomes().confidence_N.tolist() == [1, 1, 0]
    assert "2 items are certain and wrong" in log.notes[0]


def test_samples_that_ended_with_an_error_are_left_out(tmp_path):
    log = read(tmp_path, sample("x"), sample("y", error={"message": "no"}, scores=None))
    assert log.predictions.ids_N.tolist() == ["x"]
    assert "1 samples ended with an error" in log.notes[0]


def test_several_logs_make_one_file_with_distinct_ids(tmp_path):
    paths = [write_log(tmp_path / name, [sample("x")]) for name in ("one.eval", "two.json")]
    assert read_logs(paths).predictions.ids_N.tolist() == ["one/x", "two/x"]


def test_shuffled_letters_are_not_taken_for_the_answer(tmp_path):
    """The scorer says B, in the order of the options, where the model wrote A."""
    shuffled = sample("x", tokens=[token(" A", 0.9)], scores={"choice": {"value": "C", "answer": "B"}})
    with pytest.raises(UserError, match="has no token B, its answer"):
        read(tmp_path, shuffled)


@pytest.mark.parametrize(
    ("made", "how", "message"),
    [
        (sample("x", scores=None), {}, "has no scores: score the log first"),
        (sample("x") | {"scores": {"a": {}, "b": {}}}, {}, "has the scores a, b: choose one with --scorer"),
        (sample("x"), {"scorer": "other"}, "has no score other, only choice"),
        (sample("x", output={}), {}, "has no logprobs in its output: evaluate with --logprobs"),
        (sample("x", output="text"), {"confidence": "answer"}, "has no logprobs"),
        (sample("x", target=["A", "B"]), {"confidence": "options"}, "has no single letter as target"),
        (sample("x", choices=()), {"confidence": "options"}, "has no choices"),
        (sample("x", scores={"choice": {"value": "P", "answer": "A"}}), {"confidence": "answer"}, "its score is 'P'"),
        (stated("x", 85), {}, "confidence is 85, not from 0 to 1: divide percentages"),
        (stated("x", "high"), {}, "confidence must be a number, not 'high'"),
        (stated("x", 0.5), {"stated": "sureness"}, "has no sureness in the metadata"),
        (sample("x", tokens=[{"token": "A", "logprob": 0.5}]), {}, "a logprob is 0.5"),
        (sample("x", tokens=[{"token": "A"}]), {}, "a logprob must be a number, not 'None'"),
        (sample("x", epoch=[]), {}, "sample 0 is not a sample with id and epoch"),
        (sample("x"), {"normalization": "bytes"}, "normalization=bytes is for logs of lm-evaluation-harness"),
    ],
)
def test_what_lacks_probabilities_is_refused(tmp_path, made, how, message):
    with pytest.raises(UserError, match=message) as refused:
        read(tmp_path, made, name="log.json", **how)
    assert "\n" not in str(refused.value)


@pytest.mark.parametrize("share", [0.0, 0.3, 0.9, 0.999])
@pytest.mark.parametrize("name", ["log.eval", "log.json"])
def test_a_truncated_log_is_one_line(tmp_path, name, share):
    path = write_log(tmp_path / name, [sample("x"), sample("y")])
    path.write_bytes(path.read_bytes()[: int(share * path.stat().st_size)])
    with pytest.raises(UserError, match=name) as refused:
        read_logs([path])
    assert "\n" not in str(refused.value)


def test_no_damaged_byte_is_more_than_one_line(tmp_path):
    path = write_log(tmp_path / "log.eval", [sample("x"), sample("y")])
    content = path.read_bytes()
    random = np.random.default_rng(0)
    for _ in range(60):
        damaged = bytearray(content)
        damaged[random.integers(len(content))] ^= 1 << int(random.integers(8))
        path.write_bytes(damaged)
        try:
            read_logs([path])
        except UserError as error:
            assert str(path) in str(error)  # noqa: PT017  # not every bit matters


def test_an_archive_that_unpacks_to_much_more_is_refused(tmp_path, monkeypatch):
    path = tmp_path / "log.eval"
    monkeypatch.setattr("lm.calibration.logs.files._SMALL", 2**20)
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as file:
        file.writestr("samples/x_epoch_1.json", json.dumps(sample("x") | {"store": {"zeros": "0" * 2**24}}))
    with pytest.raises(UserError, match="would unpack to more than 200 times"):
        read_logs([path])


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b'{"results": {}}', "seems to be lm-evaluation-harness's: name samples_"),
        (b"[1]", "not a log of Inspect"),
        (b'{"eval": {}, "samples": [3]}', "sample 0 is not a sample"),
        (b'{"eval": {}}', "has no samples"),
        (b"[" * 100_000, "is not JSON"),
    ],
)
def test_other_json_is_refused(tmp_path, content, message):
    (tmp_path / "log.json").write_bytes(content)
    with pytest.raises(UserError, match=message):
        read_logs([tmp_path / "log.json"])


def test_zstd_as_newer_versions_of_inspect_write_it(tmp_path):
    archive = pytest.importorskip("backports.zstd.zipfile")
    path = write_log(tmp_path / "log.eval", [sample("x", tokens=RIGHT_A)], archive, archive.ZIP_ZSTANDARD)
    plain = read(tmp_path, sample("x", tokens=RIGHT_A), name="log.json")
    assert read_logs([path]).predictions.logits.tolist() == plain.predictions.logits.tolist()


@pytest.mark.parametrize("name", ["log.eval", "log.json"])
def test_inspect_itself_reads_these_logs(tmp_path, name):
    log = pytest.importorskip("inspect_ai.log")
    path = write_log(tmp_path / name, [sample("x", tokens=RIGHT_A), sample("y", answer="B")])
    samples = log.read_eval_log(str(path)).samples
    assert [each.scores["choice"].value for each in samples] == ["C", "I"]
    assert samples[0].output.choices[0].logprobs.content[-1].top_logprobs[1].token == "A"
