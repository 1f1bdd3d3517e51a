"""Sample logs of lm-evaluation-harness as predictions: scores, labels, and what is refused."""

import json

import numpy as np
import pytest
from scipy import special

from lm.calibration.logs.read import read_logs
from lm.errors import UserError
from tests.calibration.logs.harness_writing import line, write_samples


def read(folder, *lines, name="samples_task_2026-11-01T00-00-00.000000.jsonl", **how):
    return read_logs([write_samples(folder / name, lines)], **how)


def test_log_likelihoods_become_logits(tmp_path):
    log = read(tmp_path, line(0, (-2.0, -1.0), 1), line(1, (-3.5, -7.0), 1))
    expected_NC = special.log_softmax([[-2.0, -1.0], [-3.5, -7.0]], axis=1)
    np.testing.assert_allclose(special.log_softmax(log.predictions.logits, axis=1), expected_NC, atol=1e-6)
    assert log.predictions.labels_N.tolist() == [1, 1]
    assert log.predictions.class_names == ("no", "yes")
    assert log.predictions.ids_N.tolist() == ["0", "1"]
    assert log.predictions.clusters_N.tolist() == ["hash 0", "hash 1"]
    assert not log.notes


def test_long_options_do_not_tie(tmp_path):
    """In float32 these two sums are one number."""
    log = read(tmp_path, line(0, (-12345.678, -12345.6781), 0))
    assert log.predictions.logits[0, 0] > log.predictions.logits[0, 1]


def test_other_numbers_of_options_are_padded(tmp_path):
    log = read(tmp_path, line(0, (-2.0, -1.0), 1), line(1, (-1.0, -2.0, -3.0), 2, options=("a", "b", "c")))
    assert np.isneginf(log.predictions.logits).tolist() == [[False, False, True], [False] * 3]
    assert log.predictions.class_names is None


@pytest.mark.parametrize(("normalization", "lengths"), [("sum", (1, 1)), ("characters", (4, 8)), ("bytes", (5, 8))])
def test_normalizations_are_the_harness_s(tmp_path, normalization, lengths):
    log_probs = (-8.0, -12.0)
    accuracy = {"sum": "acc", "characters": "acc_norm", "bytes": "acc_bytes"}[normalization]
    right = float(np.argmax(np.divide(log_probs, lengths)) == 1)
    log = read(
        tmp_path, line(0, log_probs, 1, options=("café", "espresso"), **{accuracy: right}), normalization=normalization
    )
    expected = np.divide(log_probs, lengths)
    np.testing.assert_allclose(log.predictions.logits[0], expected - expected.max(), rtol=1e-6)
    assert not log.notes


def test_mutual_information_takes_options_without_context_off(tmp_path):
    fields = {"options": ("no", "yes") * 2, "contexts": ["Is it?", "Is it?", "", ""], "acc_mutual_info": 0.0}
    made = line(0, (-2.0, -1.0, -3.0, -0.5), 1, **fields)
    log = read(tmp_path, made, normalization="mutual_information")
    np.testing.assert_allclose(log.predictions.logits, [[0, -1.5]], rtol=1e-6)
    assert read(tmp_path, made).predictions.logits.tolist() == [[-1, 0]]
    with pytest.raises(UserError, match="add acc_mutual_info to the task's metrics"):
        read(tmp_path, line(0, (-2.0, -1.0), 1), normalization="mutual_information")


def test_a_target_may_be_a_number_or_an_option(tmp_path):
    assert read(tmp_path, line(0, (-2.0, -1.0), "no")).predictions.labels_N.tolist() == [0]
    numbers = ("2", "1", "0")
    by_number = [line(n, (-1.0, -2.0, -3.0), n, options=numbers) for n in range(3)]
    assert read(tmp_path, *by_number).predictions.labels_N.tolist() == [0, 1, 2]
    by_text = [line(n, (-1.0, -2.0, -3.0), str(n), options=numbers) for n in range(3)]
    assert read(tmp_path, *by_text).predictions.labels_N.tolist() == [2, 1, 0]


def test_options_that_fill_a_context_have_the_label_that_accuracy_tells(tmp_path):
    fields = {"options": ("fell",) * 2, "contexts": ["The cup", "The table"]}
    lines = [line(0, (-2.0, -1.0), "fell", **fields) | {"acc": acc, "doc_id": n} for n, acc in enumerate((1.0, 0.0))]
    assert read(tmp_path, *lines).predictions.labels_N.tolist() == [1, 0]


def test_an_accuracy_that_differs_from_the_log_s_is_told(tmp_path):
    log = read(tmp_path, line(0, (-2.0, -1.0), 1), line(1, (-2.0, -1.0), 1) | {"acc": 0.0})
    assert "the log's acc differs in 1 of 2 items" in log.notes[0]


def test_the_first_of_several_filters_is_used(tmp_path):
    log = read(tmp_path, line(0, (-2.0, -1.0), 1), line(0, (-1.0, -2.0), 1, filter="other"))
    assert len(log.predictions) == 1
    assert "there are 2 filters; only items of none are used" in log.notes[0]


def test_several_tasks_have_distinct_ids_and_share_documents(tmp_path):
    names = ("samples_one_2026-11-01T00-00-00.000000.jsonl", "samples_two.jsonl")
    paths = [write_samples(tmp_path / name, [line(0, (-2.0, -1.0), 1)]) for name in names]
    predictions = read_logs(paths).predictions
    assert predictions.ids_N.tolist() == ["one/0", "two/0"]
    assert predictions.clusters_N.tolist() == ["hash 0", "hash 0"]


def test_older_logs_have_lists_and_numbers(tmp_path):
    new = line(0, (-2.0, -1.0), 1)
    old = new | {"arguments": [["Is it?", " no"], ["Is it?", " yes"]], "filtered_resps": [[-2.0, False], [-1.0, True]]}
    del old["doc_hash"]
    predictions = read(tmp_path, old).predictions
    assert predictions.logits.tolist() == read(tmp_path, new).predictions.logits.tolist()
    assert predictions.clusters_N.tolist() == ["0"]


GOOD = line(0, (-2.0, -1.0), 1)
TEXT = GOOD | {"arguments": {"gen_args_0": {"arg_0": "Is it?", "arg_1": {"until": []}}}, "filtered_resps": ["yes"]}
ROLLING = GOOD | {"arguments": {"gen_args_0": {"arg_0": "a whole text"}}, "filtered_resps": [-3.0]}
SINGLE = line(0, (-2.0,), 0, options=("no",))


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        (TEXT, "line 2 has no options with log-likelihoods: its task generates"),
        (ROLLING, "line 2 has no options with log-likelihoods"),
        (SINGLE, "line 2 scores a single continuation"),
        (GOOD | {"arguments": 3}, "line 2: arguments must be lists"),
        (GOOD | {"filtered_resps": None}, "line 2 has no log-likelihoods in filtered_resps"),
        (GOOD | {"filtered_resps": [["-1", "False"]]}, "line 2 has 1 log-likelihoods for 2 options"),
        (
            GOOD | {"filtered_resps": [["nan", "False"], ["-1", "False"]]},
            "a log-likelihood must be a number, not 'nan'",
        ),
        (GOOD | {"filtered_resps": [[{}, "False"], ["-1", "False"]]}, "a log-likelihood must be a number"),
        (GOOD | {"filtered_resps": [["-inf", "F"], ["-inf", "F"]]}, "line 2: all its options have probability 0"),
        (GOOD | {"target": "maybe"}, "line 2: its target 'maybe' is not one of its options no, yes"),
        (GOOD | {"target": "2"}, "line 2: its target '2' is not one of"),
        (GOOD | {"target": "[0, 1]"}, r"line 2: \[0, 1\] are several right options"),
        ({"doc_id": 1}, "line 2 has no doc_id, arguments and target"),
        ([1], "line 2 has no doc_id"),
        (GOOD, "the item 0 is there twice"),
    ],
)
def test_what_lacks_probabilities_is_refused(tmp_path, wrong, message):
    wrong = wrong | {"doc_id": 1} if isinstance(wrong, dict) and wrong is not GOOD else wrong
    with pytest.raises(UserError, match=message) as refused:
        read(tmp_path, GOOD, wrong)
    assert "\n" not in str(refused.value)


def test_a_truncated_log_is_refused(tmp_path):
    path = write_samples(tmp_path / "samples_task.jsonl", [GOOD, GOOD | {"doc_id": 1}])
    path.write_bytes(path.read_bytes()[:-30])
    with pytest.raises(UserError, match=r"samples_task\.jsonl: line 2 is not JSON .*: if it was cut short"):
        read_logs([path])


@pytest.mark.parametrize("content", [b"", b"\n\n", b"\xff\xfe\x00", b"[" * 100_000, b"1" * 5000])
def test_other_files_are_refused(tmp_path, content):
    path = tmp_path / "samples_task.jsonl"
    path.write_bytes(content)
    with pytest.raises(UserError, match=r"samples_task\.jsonl: "):
        read_logs([path])


def test_a_line_without_end_is_not_read_to_its_end(tmp_path, monkeypatch):
    monkeypatch.setattr("lm.calibration.logs.files._LONGEST_LINE", 100)
    with pytest.raises(UserError, match="line 1 has more than 100 bytes"):
        read(tmp_path, GOOD)


def test_settings_and_files_of_the_wrong_kind_are_refused(tmp_path):
    path, other = (write_samples(tmp_path / name, [GOOD]) for name in ("samples_task.jsonl", "samples.txt"))
    for paths, how, message in (
        ([path], {"confidence": "stated"}, "are for logs of Inspect"),
        ([path], {"normalization": "words"}, "unknown normalization 'words'"),
        ([tmp_path / "none.jsonl"], {}, "no such log"),
        ([other], {}, "logs are samples_"),
        ([], {}, "name one log"),
    ):
        with pytest.raises(UserError, match=message):
            read_logs(paths, **how)


def test_a_log_of_the_harness_is_no_json_of_inspect(tmp_path):
    (tmp_path / "results.json").write_text(json.dumps({"results": {}, "configs": {}}))
    with pytest.raises(UserError, match="name samples_"):
        read_logs([tmp_path / "results.json"])
