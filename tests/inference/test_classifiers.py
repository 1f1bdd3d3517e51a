"""Classifiers, taggers and question answerers in use: what they say is what an evaluation of the same rows says."""

import json
import subprocess
import sys

import jax
import numpy as np
import pytest
from jax.sharding import AxisType

import lm
from lm.calibration.calibrators import Fitted
from lm.calibration.predictions import Predictions
from lm.errors import UserError
from lm.inference.classifiers import Classifier, QuestionAnswerer, Tagger
from tests.tiny_tasks import rows_of


def records_of(workdir, name="test"):
    lines = (workdir / "predictions" / f"{name}.jsonl").read_text(encoding="utf-8").splitlines()
    return [json.loads(line) for line in lines]


def temperature(value, classes):
    parameters = {"temperature": np.float32(value), "converged": True, "at_bound": False}
    return Fitted("temperature", parameters, classes, 41, 1.0, 0.9, True, False)


def softened(probabilities, value):
    """What temperature scaling makes of probabilities."""
    powers = np.asarray(probabilities) ** (1 / value)
    return powers / powers.sum(axis=-1, keepdims=True)


@pytest.fixture
def classifier(finetuned, here):
    return lm.load(finetuned("classification"))


def test_importing_the_package_costs_nothing():
    code = "import sys, lm; lm.__version__; print('jax' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True).stdout == "False\n"


def test_a_classifier_says_of_texts_what_the_evaluation_says_of_rows(classifier, finetuned):
    assert isinstance(classifier, Classifier)
    records = records_of(finetuned("classification"))
    found = classifier.predict([row["text"] for row in rows_of("classification", "test")])
    assert [each.label for each in found] == [record["predicted"] for record in records]
    for each, record in zip(found, records, strict=True):
        assert each.confidence == max(each.probabilities.values()) == pytest.approx(record["confidence"], rel=1e-5)
        assert each.probabilities == pytest.approx(record["probabilities"], rel=1e-5)
        assert each.calibrated_probabilities is None
    assert len({round(each.confidence, 6) for each in found}) > 1


def test_a_text_does_not_depend_on_its_company(classifier):
    texts = ["the one cat", "my red", "a this this the one my my a a a the the the the the this blue dog owl"]
    together = classifier.predict(texts)
    for text, each in zip(texts, together, strict=True):
        (alone,) = classifier.predict([text])
        assert alone.probabilities == pytest.approx(each.probabilities, rel=1e-5)
    assert classifier.predict([]) == []


def test_pairs_are_read_in_their_order(finetuned, here):
    rows = rows_of("pair", "test")
    model = lm.load(finetuned("pair"))
    texts, pairs = ([row[name] for row in rows] for name in ("text", "pair"))
    found = model.predict(texts, pairs)
    assert [each.label for each in found] == [record["predicted"] for record in records_of(finetuned("pair"))]
    assert found[0].probabilities != pytest.approx(model.predict(pairs, texts)[0].probabilities, rel=1e-4)
    with pytest.raises(UserError, match=r"this run classifies pairs of texts: predict\(texts, pairs\)"):
        model.predict(texts)
    with pytest.raises(UserError, match="there are 16 text and 15 pair: give equally many"):
        model.predict(texts, pairs[1:])


def test_texts_are_cleaned_as_the_rows_were(finetuned, here):
    workdir = finetuned("classification", "--config.data.cleaning=('lowercase',)")
    small, large = lm.load(workdir).predict(["the red cat", "THE Red cAt"])
    assert small.probabilities == pytest.approx(large.probabilities, rel=1e-6)


def test_a_calibrator_changes_only_the_calibrated_probabilities(classifier, finetuned, tmp_path):
    texts = [row["text"] for row in rows_of("classification", "test")]
    raw = classifier.predict(texts)
    fitted = temperature(3.0, 2)
    workdir = finetuned("classification")
    fitted.save(workdir / "calibration" / "soft.json")
    fitted.save(tmp_path / "elsewhere.json")
    for given in (fitted, "soft", tmp_path / "elsewhere.json", str(tmp_path / "elsewhere.json")):
        for each, before in zip(lm.load(workdir, calibrator=given).predict(texts), raw, strict=True):
            assert each.probabilities == pytest.approx(before.probabilities, rel=1e-6)
            calibrated = np.array(list(each.calibrated_probabilities.values()))
            np.testing.assert_allclose(calibrated, softened(list(before.probabilities.values()), 3.0), rtol=1e-4)
            assert each.confidence == calibrated.max() < before.confidence
    with pytest.raises(UserError, match=r"the calibrator temperature is for 5 classes, and this model has 2"):
        lm.load(workdir, calibrator=temperature(2.0, 5))
    with pytest.raises(UserError, match=r"calibration/hard.json: no such calibrator"):
        lm.load(workdir, calibrator="hard")


@pytest.mark.slow
def test_tags_are_those_of_the_evaluation(finetuned, here):
    workdir, rows = finetuned("tagging"), rows_of("tagging", "test")
    records = records_of(workdir)
    model = lm.load(workdir, calibrator=temperature(2.0, 3))
    assert isinstance(model, Tagger)
    found = model.predict([row["words"] for row in rows])
    for each, record, row in zip(found, records, rows, strict=True):
        assert (list(each.words), list(each.tags)) == (row["words"], record["predicted"])
        np.testing.assert_allclose(each.probabilities_WC.max(axis=1), record["confidence"], rtol=1e-5)
        np.testing.assert_allclose(each.calibrated_probabilities_WC, softened(each.probabilities_WC, 2.0), rtol=1e-4)
        np.testing.assert_array_equal(each.confidence_W, each.calibrated_probabilities_WC.max(axis=1))
    (split,) = model.predict([" ".join(rows[0]["words"])])
    assert split.tags == found[0].tags


def test_words_that_do_not_fit_are_outside(finetuned, here):
    model = lm.load(finetuned("tagging"))
    with pytest.raises(UserError, match=r"sentence 2: the text has 40 tokens"):
        model.predict(["a cat", "cat " * 40])
    (short, long) = model.predict(["a cat", "cat " * 40], truncate=True)
    assert len(long.tags) == 40
    assert long.tags[32:] == ("O",) * 8
    np.testing.assert_array_equal(np.isnan(long.confidence_W), np.arange(40) >= 32)
    assert not np.isnan(short.confidence_W).any()
    with pytest.raises(UserError, match="sentence 1 has no words"):
        model.predict([" "])


def test_answers_are_those_of_the_evaluation(finetuned, here):
    workdir, rows = finetuned("question_answering"), rows_of("question_answering", "test")
    columns = [row["question"] for row in rows], [row["context"] for row in rows]
    records, logits_N2 = records_of(workdir), Predictions.load(workdir / "predictions" / "test.npz").logits
    model = lm.load(workdir, calibrator=temperature(2.0, 2))
    assert isinstance(model, QuestionAnswerer)
    for n, (each, record) in enumerate(zip(model.predict(*columns), records, strict=True)):
        assert each.text == record["predicted"]
        assert each.probability == pytest.approx(record["confidence"], rel=1e-5)
        expected = np.exp(logits_N2[n] / 2)
        assert each.confidence == each.calibrated_probability == pytest.approx(expected[1] / expected.sum(), rel=1e-4)
    assert lm.load(workdir).predict(*columns)[0].calibrated_probability is None


def test_answers_are_measured_with_a_calibrator_of_their_correctness(finetuned, here):
    workdir = finetuned("question_answering")
    rows = [{**row, "place": str(number)} for number, row in enumerate(rows_of("question_answering", "test"))]
    before, after = (lm.load(workdir, calibrator=each).measure(rows).results for each in (None, temperature(3, 2)))
    assert after.metrics["exact_match"].value == before.metrics["exact_match"].value, "the answers stay"
    p_N = np.array([record["confidence"] for record in before.records])
    expected_N = softened(np.stack([1 - p_N, p_N], axis=1), 3)[:, 1]
    np.testing.assert_allclose([record["confidence"] for record in after.records], expected_N, rtol=1e-4)
    np.testing.assert_allclose(after.predictions.outcomes().confidence_N, expected_N, rtol=1e-4)


def test_vectors_of_texts_are_means_over_their_tokens(classifier):
    vectors_ND = classifier.embed(["the cat", "the cat", "a blue owl"])
    assert vectors_ND.shape == (3, 16)
    np.testing.assert_allclose(vectors_ND[0], vectors_ND[1], rtol=1e-6)
    assert np.abs(vectors_ND[0] - vectors_ND[2]).max() > 1e-3
    tokenizer, params = classifier.tokenizer, classifier.params
    first, last = tokenizer.special_id("[CLS]"), tokenizer.special_id("[SEP]")
    tokens_1T = np.array([[first, *tokenizer.encode("a blue owl"), last]], np.int32)
    hidden_1TD = classifier.model.apply({"params": params}, tokens_1T, method=lambda model, x: model.body.hidden(x))
    np.testing.assert_allclose(vectors_ND[2], np.asarray(hidden_1TD)[0].mean(axis=0), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("ask", ["generate", "log_probs", "fill"])
def test_asking_a_classifier_to_write_is_one_line(classifier, ask):
    with pytest.raises(UserError, match=rf"^this run is a classifier; it has no {ask}: use predict or embed$"):
        getattr(classifier, ask)(["the cat"])


def test_one_text_is_not_taken_for_its_letters(classifier):
    with pytest.raises(UserError, match=r"text must be a list of them, not one text: write \[text\]"):
        classifier.predict("the cat")


@pytest.mark.parametrize("shape", [(8, 1, 1), (2, 2, 2)])
def test_a_mesh_of_devices_gives_what_one_device_gives(classifier, finetuned, shape):
    mesh = jax.make_mesh(shape, ("data", "fsdp", "tensor"), (AxisType.Auto,) * 3)
    shared = lm.load(finetuned("classification"), mesh=mesh)
    kernels = [leaf for leaf in jax.tree.leaves(shared.params) if len(leaf.devices()) == 8]
    assert len(kernels) == len(jax.tree.leaves(shared.params))
    texts = [row["text"] for row in rows_of("classification", "test")]
    for one, other in zip(classifier.predict(texts), shared.predict(texts), strict=True):
        assert one.probabilities == pytest.approx(other.probabilities, rel=1e-4)
    np.testing.assert_allclose(classifier.embed(texts), shared.embed(texts), rtol=1e-3, atol=1e-5)
