"""Predictions as files: they are read as written, errors are one line, and parts never overlap."""

import zipfile

import numpy as np
import pytest
from scipy import special

from lm.calibration.comparison import compare
from lm.calibration.logits import FactoredLogits
from lm.calibration.predictions import JUDGEMENTS, Predictions, check_disjoint, split
from lm.calibration.results import Settings
from lm.errors import UserError

N, C = 12, 3
RANDOM = np.random.default_rng(0)
LOGITS = RANDOM.normal(size=(N, C)).astype(np.float32)
LABELS = RANDOM.integers(C, size=N)
GOOD = {"logits": LOGITS, "labels": LABELS}
PROBABILITIES = special.softmax(LOGITS, axis=1)


def changed(array, place, value):
    array = array.copy()
    array[place] = value
    return array


def written(path, **arrays):
    np.savez(path, **arrays)
    return path


@pytest.mark.parametrize("form", ["dense", "factors"])
def test_files_keep_everything(form, tmp_path):
    logits = changed(LOGITS, (3, 1), -np.inf)
    if form == "factors":
        logits = FactoredLogits(LOGITS[:, :2], LOGITS[:C, :2] + 1)
    ids, clusters = np.array([f"item {i}" for i in range(N)]), np.arange(N) // 4 * 10
    predictions = Predictions(logits, LABELS, ids, clusters, ("yes", "nö", "maybe"))
    path = tmp_path / "deep" / "predictions.npz"
    predictions.save(path)
    predictions.save(path)  # over it
    loaded = Predictions.load(path)
    for one, other in zip(np.atleast_3d(loaded.logits) if form == "dense" else loaded.logits, logits, strict=True):
        np.testing.assert_array_equal(np.squeeze(one), other)
    for name in ("labels_N", "ids_N", "clusters_N"):
        np.testing.assert_array_equal(getattr(loaded, name), getattr(predictions, name))
    assert loaded.class_names == predictions.class_names
    assert len(loaded) == N
    assert [file.name for file in path.parent.iterdir()] == ["predictions.npz"]


def test_what_may_be_left_out_is(tmp_path):
    Predictions(LOGITS, LABELS, np.arange(N)).save(tmp_path / "a.npz")
    loaded = Predictions.load(tmp_path / "a.npz")
    assert (loaded.clusters_N, loaded.class_names) == (None, None)
    without_ids = Predictions.load(written(tmp_path / "b.npz", **GOOD))
    assert without_ids.ids_N is None


@pytest.mark.parametrize("dtype", [np.float16, np.float32, np.float64])
def test_probabilities_and_log_probs_are_logits_by_name(dtype, tmp_path):
    p = np.round(PROBABILITIES * 64) / 64
    p[:, 0] += 1 - p.sum(axis=1)
    p[0] = [0, 1, 0]
    with np.errstate(divide="ignore"):
        given = {"probabilities": p.astype(dtype), "log_probs": np.log(p).astype(dtype)}
    for name, values in given.items():
        loaded = Predictions.load(written(tmp_path / f"{name}.npz", **{name: values, "labels": LABELS}))
        assert loaded.logits.dtype == np.float32
        np.testing.assert_allclose(special.softmax(loaded.logits, axis=1), p, atol=2e-3)
    assert np.isneginf(loaded.logits[0, [0, 2]]).all()
    small = RANDOM.uniform(size=(N, C)).astype(np.float32)  # logits, though they lie in [0, 1]
    np.testing.assert_array_equal(
        Predictions.load(written(tmp_path / "small.npz", logits=small, labels=LABELS)).logits, small
    )


def test_scores_of_other_inputs_stay_with_every_part(tmp_path):
    priors = {"content_free": changed(LOGITS[:3], (0, 1), -np.inf), "premise": LOGITS[:1].astype(np.float64)}
    whole = Predictions(LOGITS, LABELS, np.arange(N), priors=priors, unlabelled_MC=LOGITS[5:])
    whole.save(tmp_path / "a.npz")
    loaded = Predictions.load(tmp_path / "a.npz")
    assert "unlabelled" not in loaded.unused
    for part in (loaded, *split(loaded, 0.5, seed=0)):
        assert list(part.priors) == ["content_free", "premise"]
        for name, values in part.priors.items():
            np.testing.assert_array_equal(values, priors[name])
            assert values.dtype == np.float32
        np.testing.assert_array_equal(part.unlabelled_MC, LOGITS[5:])
    without = Predictions(LOGITS, LABELS)
    assert (dict(without.priors), without.unlabelled_MC) == ({}, None)
    with pytest.raises(UserError, match="unknown prior 'context'; known are content_free, domain, premise"):
        Predictions(LOGITS, LABELS, priors={"context": LOGITS})


def test_tables_have_no_place_for_other_inputs(tmp_path):
    path = tmp_path / "table.csv"
    path.write_text("label,probability,unlabelled,prior_domain\n0,0.3,x,y\n1,0.6,x,y\n")
    assert Predictions.load(path).unused == ("unlabelled", "prior_domain")


BAD = {
    "no labels": ({"logits": LOGITS}, "the array `labels` is missing; found logits"),
    "nothing": ({}, "the array `labels` is missing; found none"),
    "no scores": ({"labels": LABELS}, "exactly one of logits"),
    "two scores": ({**GOOD, "probabilities": PROBABILITIES}, "not logits and probabilities"),
    "scores and factors": ({**GOOD, "hidden": LOGITS, "output": LOGITS}, "the file has logits, hidden"),
    "factors without output": ({"labels": LABELS, "hidden": LOGITS}, "hidden needs output"),
    "factors that don't fit": ({"labels": LABELS, "hidden": LOGITS, "output": LOGITS[:, :2]}, "the same width"),
    "factors with NaN": (
        {"labels": LABELS, "hidden": changed(LOGITS, (2, 1), np.nan), "output": LOGITS},
        "hidden has NaN",
    ),
    "output with infinity": (
        {"labels": LABELS, "hidden": LOGITS, "output": changed(LOGITS, (2, 1), -np.inf)},
        "output has NaN",
    ),
    "one row of output": ({"labels": 0 * LABELS, "hidden": LOGITS, "output": LOGITS[:1]}, "2 classes"),
    "NaN": ({**GOOD, "logits": changed(LOGITS, (4, 1), np.nan)}, "logits of item 4 has NaN"),
    "infinity": ({**GOOD, "logits": changed(LOGITS, (4, 1), np.inf)}, "logits of item 4 has NaN, +inf"),
    "nothing possible": ({**GOOD, "logits": changed(LOGITS, 4, -np.inf)}, "no finite value"),
    "too large for float32": ({**GOOD, "logits": changed(LOGITS.astype(float), (4, 1), 1e300)}, "+inf"),
    "log_probs too large to exponentiate": (
        {"labels": LABELS, "log_probs": 100 + LOGITS},
        "of item 0 sum to",
    ),
    "whole numbers": ({**GOOD, "logits": LOGITS.astype(int)}, "floating-point"),
    "one axis": ({**GOOD, "logits": LOGITS[:, 0]}, "one of the classes 0 to 1"),
    "three axes": ({**GOOD, "logits": LOGITS[None]}, "[items, classes]"),
    "no class": ({**GOOD, "logits": LOGITS[:, :0]}, "2 classes"),
    "no items": ({"logits": LOGITS[:0], "labels": LABELS[:0]}, "[items, classes]"),
    "fewer labels": ({**GOOD, "labels": LABELS[1:]}, "labels must have shape (12,)"),
    "labels of two axes": ({**GOOD, "labels": LABELS[:, None]}, "labels must have shape (12,)"),
    "labels of floats": ({**GOOD, "labels": LABELS.astype(float)}, "integers"),
    "label too high": ({**GOOD, "labels": changed(LABELS, 5, C)}, "label 3 of item 5"),
    "label below 0": ({**GOOD, "labels": changed(LABELS, 5, -1)}, "label -1 of item 5"),
    "ids repeated": ({**GOOD, "ids": np.arange(N) // 2}, "ids must be unique"),
    "fewer ids": ({**GOOD, "ids": np.arange(N - 1)}, "ids must have shape"),
    "fewer clusters": ({**GOOD, "clusters": np.arange(N - 1)}, "clusters must have shape"),
    "fewer names": ({**GOOD, "class_names": np.array(["a", "b"])}, "2 names for 3 classes"),
    "one name": ({**GOOD, "class_names": np.array("a")}, "class_names"),
    "sum": ({"labels": LABELS, "probabilities": 0.9 * PROBABILITIES}, "sum to 0.9, not to 1 (12 in all)"),
    "logits called probabilities": ({"labels": LABELS, "probabilities": LOGITS}, "give them as logits"),
    "logits called log_probs": ({"labels": LABELS, "log_probs": LOGITS}, "give them as logits"),
    "negative": (
        {"labels": LABELS, "probabilities": changed(PROBABILITIES, 3, [1.1, -0.1, 0])},
        "probabilities of item 3 is -0.1",
    ),
    "a prior with NaN": (
        {**GOOD, "prior_domain": changed(LOGITS, (2, 1), np.nan)},
        "prior_domain of input 2 has NaN, +inf or no finite value (1 in all)",
    ),
    "a prior of an input that allows nothing": (
        {**GOOD, "prior_content_free": changed(LOGITS, 4, -np.inf)},
        "prior_content_free of input 4 has NaN",
    ),
    "a prior too large for float32": ({**GOOD, "unlabelled": changed(LOGITS.astype(float), (0, 1), 1e300)}, "+inf"),
    "a prior of one row": ({**GOOD, "prior_premise": LOGITS[0]}, "prior_premise must be floating-point log-prob"),
    "a prior without rows": ({**GOOD, "prior_premise": LOGITS[:0]}, "one row for each input, not float32 (0, 3)"),
    "a prior of whole numbers": ({**GOOD, "prior_premise": LOGITS.astype(int)}, "not int64 (12, 3)"),
    "a prior of text": ({**GOOD, "prior_premise": LOGITS.astype(str)}, "prior_premise must hold numbers"),
    "fewer classes without labels": ({**GOOD, "unlabelled": LOGITS[:, :2]}, "unlabelled must be floating-point"),
    "objects": ({**GOOD, "ids": np.array([{}] * N, dtype=object)}, "plain arrays"),
    "objects for logits": ({**GOOD, "logits": np.array([[1, None]] * N, dtype=object)}, "plain arrays"),
}


def assert_one_line(path, message):
    with pytest.raises(UserError) as caught:
        Predictions.load(path)
    assert str(caught.value).startswith(str(path))
    assert message in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("what", BAD)
@pytest.mark.filterwarnings("error")
def test_an_invalid_file_is_one_line(what, tmp_path):
    arrays, message = BAD[what]
    assert_one_line(written(tmp_path / "bad.npz", **arrays), message)


def test_files_of_another_kind_are_told(tmp_path):
    assert_one_line(tmp_path / "none.npz", "no such")
    assert_one_line(tmp_path, "no such")
    path = tmp_path / "file.npz"
    np.savez(path, **GOOD)
    whole = path.read_bytes()
    for content in (b"", b"text\nof two lines", whole[:-40], whole[:200], b"PK\x03\x04" + b"\0" * 90):
        path.write_bytes(content)
        assert_one_line(path, "not an npz file")
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("labels.npy", b"no array")
        archive.writestr("logits.npy", b"no array")
    assert_one_line(path, "not an npz file")
    with path.open("wb") as file:
        np.save(file, LOGITS)  # one array, not an archive of them
    assert_one_line(path, "not an npz file")
    np.savez_compressed(path, logits=np.zeros((300, 3), np.float32), labels=np.zeros(300, int))
    damaged = bytearray(path.read_bytes())
    start = damaged.index(b"logits.npy") + 40
    damaged[start : start + 20] = b"\xff" * 20
    path.write_bytes(damaged)
    assert_one_line(path, "not an npz file")


def test_pickles_are_never_run(tmp_path):
    class Trap:
        def __reduce__(self):
            return (tmp_path.joinpath("sprung").touch, ())

    path = written(tmp_path / "trap.npz", **GOOD, ids=np.array([Trap()] * N, dtype=object))
    assert_one_line(path, "plain arrays")
    assert not (tmp_path / "sprung").exists()


# --- parts ---


def predictions(items=60, clusters=True):
    rng = np.random.default_rng(0)
    return Predictions(
        rng.normal(size=(items, C)).astype(np.float32),
        rng.integers(C, size=items),
        rng.permutation(items) + 1000,
        rng.integers(9, size=items) if clusters else None,
    )


@pytest.mark.parametrize("clusters", [False, True])
@pytest.mark.parametrize("fraction", [0.0, 0.3, 0.5, 1.0])
def test_parts_are_disjoint_and_keep_clusters_together(clusters, fraction):
    whole = predictions(clusters=clusters)
    fit, test = split(whole, fraction, seed=3)
    check_disjoint(fit, test)
    assert sorted([*fit.ids_N, *test.ids_N]) == sorted(whole.ids_N)
    assert min(len(fit), len(test)) > 0
    if clusters:
        assert not set(fit.clusters_N) & set(test.clusters_N)
        assert len(set(fit.clusters_N)) == min(max(round(9 * fraction), 1), 8)
    else:
        assert len(fit) == min(max(60 * fraction, 1), 59)
    place = {item: i for i, item in enumerate(whole.ids_N)}
    for part in (fit, test):  # each item keeps what is its own
        index = [place[item] for item in part.ids_N]
        np.testing.assert_array_equal(part.logits, whole.logits[index])
        np.testing.assert_array_equal(part.labels_N, whole.labels_N[index])


def test_the_seed_makes_the_parts():
    whole = predictions(clusters=False)
    one, again, other = (split(whole, 0.5, seed)[0].ids_N.tolist() for seed in (0, 0, 1))
    assert one == again != other


def test_a_single_item_or_cluster_cannot_be_split():
    whole = predictions()
    for single in (
        predictions(clusters=False).select(np.array([3])),
        whole.select(whole.clusters_N == whole.clusters_N[0]),
    ):
        with pytest.raises(UserError, match="at least two"):
            split(single, 0.5, 0)


def test_overlapping_parts_are_an_error():
    whole = predictions()
    with pytest.raises(UserError, match="share 2 ids, such as"):
        check_disjoint(whole.select(np.arange(10)), whole.select(np.arange(8, 20)))
    first = whole.clusters_N == whole.clusters_N[0]
    with pytest.raises(UserError, match="share 1 clusters, such as"):
        check_disjoint(
            whole.select(first & (np.arange(60) < np.flatnonzero(first)[1])),
            whole.select(first & (np.arange(60) >= np.flatnonzero(first)[1])),
        )
    fit, test = split(whole, 0.5, 0)
    with pytest.raises(UserError, match="clusters"):
        check_disjoint(fit, predictions(clusters=False))
    two = Predictions(test.logits[:, :2], 0 * test.labels_N, test.ids_N, test.clusters_N)
    with pytest.raises(UserError, match="have 3 classes, the test predictions 2"):
        check_disjoint(fit, two)


def test_factors_are_selected_like_logits():
    factors = FactoredLogits(LOGITS[:, :2], LOGITS[:C, :2])
    some = Predictions(factors, LABELS, np.arange(N)).select(np.arange(N) % 2 == 0)
    assert some.logits.shape == (N / 2, C)
    np.testing.assert_array_equal(some.logits.hidden_ND, LOGITS[::2, :2])


def test_judged_answers_have_the_probability_of_right_as_confidence():
    right_N = np.array([0.02, 0.3, 0.7, 0.98])
    logits = np.log(np.stack([1 - right_N, right_N], axis=1)).astype(np.float32)
    labels = np.array([0, 0, 1, 0])
    found = Predictions(logits, labels, np.arange(4), None, JUDGEMENTS).outcomes()
    np.testing.assert_allclose(found.confidence_N, right_N, rtol=1e-5)
    np.testing.assert_array_equal(found.correct_N, labels)
    chosen = Predictions(logits, labels, np.arange(4), None, ("no", "yes")).outcomes()
    np.testing.assert_allclose(chosen.confidence_N, [0.98, 0.7, 0.7, 0.98], rtol=1e-5)
    np.testing.assert_array_equal(chosen.correct_N, [1, 1, 1, 0])
    for name in ("nll_N", "brier_N", "entropy_N"):
        np.testing.assert_array_equal(getattr(found, name), getattr(chosen, name))


def test_answers_that_are_all_wrong_are_not_right_by_being_sure_of_it():
    random = np.random.default_rng(3)
    logits = np.stack([np.zeros(60), -random.uniform(4, 9, 60)], axis=1).astype(np.float32)
    predictions = Predictions(logits, np.zeros(60, int), np.arange(60), None, JUDGEMENTS)
    halves = predictions.select(np.arange(60) < 30), predictions.select(np.arange(60) >= 30)
    uncalibrated = compare(*halves, [], Settings(resamples=20))[0].uncalibrated
    assert uncalibrated.entry("accuracy").value == 0
    assert uncalibrated.entry("confidence").value < 0.02
    assert uncalibrated.entry("ece").value == pytest.approx(uncalibrated.entry("confidence").value, rel=1e-4)
