"""Calibrators of prompted models without labels: their formulas, that no label can reach them, and files."""

import dataclasses
import json
import math

import jax
import numpy as np
import pytest
from scipy import special

from lm.calibration.calibrators import CALIBRATORS, Fitted, fit
from lm.calibration.comparison import compare
from lm.calibration.logits import FactoredLogits
from lm.calibration.outcomes import outcomes
from lm.calibration.predictions import Predictions
from lm.calibration.priors import PRIORS
from lm.calibration.report.wording import verdict
from lm.calibration.results import Settings
from lm.errors import UserError

N, C = 60, 3
LABEL_FREE = [name for name, one in CALIBRATORS.items() if not one.sees_labels]
RIGHT_LINK = ["shift", "batch_probabilities", "contextual", "domain_context", "pmi"]
every = pytest.mark.parametrize("name", LABEL_FREE)

RANDOM = np.random.default_rng(0)
BIAS = np.array([2.0, 0.0, -1.0])
LOGITS = (RANDOM.normal(scale=1.5, size=(N, C)) + BIAS).astype(np.float32)
PRIOR_SCORES = {
    name: (RANDOM.normal(size=(number, C)) + BIAS - 7).astype(np.float32)  # label mass is not 1
    for name, number in zip(PRIORS, (3, 5, 1), strict=True)
}
LATER = RANDOM.normal(scale=2, size=(7, C)).astype(np.float32)


def fitted(name, logits=LOGITS, **more):
    return fit(name, logits, priors=PRIOR_SCORES, **more)


def probabilities(logits):
    return special.softmax(np.asarray(logits, np.float64), axis=-1)


def hand_computed_prior(name, p=None):
    """In float64, from probabilities rather than from their logarithms."""
    p = probabilities(LOGITS) if p is None else p
    match name.split("_")[0]:
        case "shift":
            prior = np.exp(np.log(p).mean(axis=0))
        case "batch":
            prior = p.mean(axis=0)
        case other:
            prior = probabilities(PRIOR_SCORES[{"contextual": "content_free", "pmi": "premise"}.get(other, other)])
            prior = prior.mean(axis=0)
    return prior / prior.sum()


# --- formulas ---


@pytest.mark.parametrize("name", RIGHT_LINK)
def test_probabilities_are_divided_by_the_prior_and_renormalized(name):
    expected = probabilities(LATER) / hand_computed_prior(name)
    expected /= expected.sum(axis=1, keepdims=True)
    np.testing.assert_allclose(probabilities(fitted(name).apply(LATER)), expected, rtol=1e-5)


@pytest.mark.parametrize("name", sorted(set(LABEL_FREE) - {*RIGHT_LINK, "prototypical"}))
def test_published_links_are_softmaxes_of_ratios_and_differences(name):
    p, prior = probabilities(LATER), hand_computed_prior(name)
    expected = probabilities(p / prior if name.endswith("ratio") else p - prior)
    np.testing.assert_allclose(probabilities(fitted(name).apply(LATER)), expected, rtol=1e-5)
    assert "published link softmax(p " in CALIBRATORS[name].label


def test_two_items_by_hand():
    p = np.array([[0.9, 0.1], [0.5, 0.5]])
    logits, later = np.log(p).astype(np.float32), np.log(np.float32([[0.75, 0.25]]))
    # sqrt(.9 * .5) : sqrt(.1 * .5) is 3 : 1, and .7 : .3 is the mean.
    np.testing.assert_allclose(probabilities(fit("shift", logits).apply(later)), [[0.5, 0.5]], rtol=1e-5)
    mean = fit("batch_probabilities", logits)
    np.testing.assert_allclose(probabilities(mean.apply(later)), [[9 / 16, 7 / 16]], rtol=1e-5)
    assert mean.summary == "prior 0.7, 0.3"


def test_a_constant_for_an_item_means_nothing():
    moved = LOGITS + RANDOM.normal(scale=9, size=(N, 1)).astype(np.float32)
    for name in RIGHT_LINK:
        expected = fitted(name).parameters["log_prior"]
        np.testing.assert_allclose(fitted(name, moved).parameters["log_prior"], expected, atol=1e-5)


def test_shifted_items_prefer_no_label():
    shifted = np.asarray(fitted("shift").apply(LOGITS), np.float64)
    np.testing.assert_allclose((shifted - shifted.mean(axis=1, keepdims=True)).mean(axis=0), 0, atol=1e-5)


def test_a_prior_that_is_exact_leaves_a_calibrated_model_and_the_published_links_do_not():
    true = np.random.default_rng(1).normal(scale=1.5, size=(4000, 14))
    labels = (true + np.random.default_rng(2).gumbel(size=true.shape)).argmax(axis=1)
    bias = np.linspace(-1, 1, 14)
    nll = {}
    for name in ("contextual", "contextual_ratio", "contextual_difference"):
        found = fit(name, true + bias, priors={"content_free": bias[None]}).apply(true + bias)
        nll[name] = outcomes(labels, logits=found).nll_N.mean()
    np.testing.assert_allclose(nll["contextual"], outcomes(labels, logits=true).nll_N.mean(), rtol=1e-4)
    assert min(nll["contextual_ratio"], nll["contextual_difference"]) > nll["contextual"] + 0.1


# --- options that items lack ---


@pytest.mark.parametrize("mark", [-np.inf, -1e9])
def test_an_item_counts_for_the_labels_it_has_to_choose(mark):
    lacks = np.zeros((N, C), bool)
    lacks[::2, 1] = True
    logits = np.where(lacks, np.float32(mark), LOGITS)
    p = np.where(lacks, np.nan, probabilities(logits))
    for name, mean in (
        ("shift", np.exp(np.nanmean(np.log(p), axis=0))),
        ("batch_probabilities", np.nanmean(p, axis=0)),
    ):
        prior = np.exp(fitted(name, logits).parameters["log_prior"])
        np.testing.assert_allclose(prior, mean / mean.sum(), rtol=1e-5)


@every
def test_what_an_item_rules_out_stays_so(name):
    later = LATER.copy()
    later[0, 1] = later[2, 0] = -np.inf
    later[1, 2] = -1e9
    found = probabilities(fitted(name).apply(later))
    assert (found[probabilities(later) == 0] == 0).all()


def test_a_label_that_no_item_has_keeps_its_place_among_the_others():
    logits = LOGITS.copy()
    logits[:, 2] = -np.inf
    for name in ("shift", "contextual"):
        priors = {"content_free": np.array([[-1.0, -0.5, -np.inf]])} if name == "contextual" else None
        log_prior = fit(name, logits, priors=priors).parameters["log_prior"]
        assert log_prior[2] == pytest.approx(log_prior[:2].mean(), abs=1e-6)


def test_the_mean_of_probabilities_too_small_for_float32_is_finite():
    logits = np.zeros((4, 2), np.float32) - [0, 300]
    assert fit("batch_probabilities", logits).parameters["log_prior"][1] == pytest.approx(-300, rel=1e-5)


# --- items ---


def test_items_count_by_their_weights():
    times = np.arange(N) % 3
    for name in ("shift", "batch_probabilities", "batch_difference"):
        weighted, repeated = fitted(name, weights=0.1 * times), fitted(name, np.repeat(LOGITS, times, axis=0))
        np.testing.assert_allclose(weighted.parameters["log_prior"], repeated.parameters["log_prior"], atol=1e-5)
        assert not np.allclose(weighted.parameters["log_prior"], fitted(name).parameters["log_prior"], atol=1e-3)


@pytest.mark.parametrize("name", ["shift", "batch_probabilities", "prototypical"])
def test_more_items_without_labels_are_items(name):
    whole, parts = fitted(name), fitted(name, LOGITS[:20], unlabelled=LOGITS[20:])
    np.testing.assert_allclose(parts.apply(LATER), whole.apply(LATER), rtol=1e-5, atol=1e-5)
    assert not np.allclose(fitted(name, LOGITS[:20]).apply(LATER), whole.apply(LATER), atol=1e-3)


def test_factors_stay_factors():
    factors = FactoredLogits(LOGITS[:, :2], LATER[:C, :2])
    product = factors.hidden_ND @ factors.output_CD.T
    found = fit("shift", factors)
    np.testing.assert_allclose(found.parameters["log_prior"], fit("shift", product).parameters["log_prior"], atol=1e-5)
    calibrated = found.apply(factors)
    assert isinstance(calibrated, FactoredLogits)
    expected = probabilities(found.apply(product))
    np.testing.assert_allclose(probabilities(calibrated.hidden_ND @ calibrated.output_CD.T), expected, atol=1e-5)
    with pytest.raises(UserError, match="unlabelled items cannot be added to factors"):
        fit("shift", factors, unlabelled=LATER)


# --- labels ---


@every
def test_labels_change_nothing(name, tmp_path):
    """Not even labels that are none."""
    files = []
    for labels in (None, LOGITS.argmax(axis=1), LOGITS.argmin(axis=1), np.full(N, -7)):
        files.append(tmp_path / f"{len(files)}.json")
        fit(name, LOGITS, labels, priors=PRIOR_SCORES).save(files[-1])
    assert len({file.read_bytes() for file in files}) == 1


@every
def test_a_fit_that_wants_labels_has_none_to_look_at(name, monkeypatch):
    seen = []

    def leak(items):
        seen.extend(items)
        return {"log_prior": np.zeros(C, np.float32) + items.labels_N[0]}

    labels = np.arange(N, dtype=np.int32) % C
    monkeypatch.setitem(CALIBRATORS, name, dataclasses.replace(CALIBRATORS[name], fit=leak))
    with pytest.raises(AttributeError, match="labels_N"):
        fit(name, LOGITS, labels, priors=PRIOR_SCORES)
    assert seen
    assert not any(np.array_equal(labels, each) for each in jax.tree.leaves(seen))


@every
def test_without_a_loss_to_minimize_it_is_accepted(name):
    found = fitted(name)
    assert (found.nll_before, found.nll_after, found.accepted, found.at_bound) == (None, None, True, False)
    assert (found.classes, found.items) == (C, N)


def test_what_needs_labels_says_so():
    with pytest.raises(
        UserError, match="temperature needs labels; without any, fit shift, batch_probabilities, context"
    ):
        fit("temperature", LOGITS)


# --- errors ---


@pytest.mark.parametrize(
    ("name", "array"), [("contextual", "content_free"), ("domain_context_ratio", "domain"), ("pmi", "premise")]
)
def test_a_prior_that_is_missing_is_named(name, array):
    with pytest.raises(UserError) as caught:
        fit(name, LOGITS, priors={other: scores for other, scores in PRIOR_SCORES.items() if other != array})
    assert str(caught.value).startswith(f"the predictions lack the array `prior_{array}`, log-probabilities")
    assert "experiments.prompt writes it" in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("name", ["contextual", "contextual_ratio"])
@pytest.mark.parametrize("least", [-np.inf, -90.0])
def test_a_prior_without_mass_is_an_error(name, least):
    scores = np.float32([[0, -1, least], [-1, 0, least]])
    with pytest.raises(UserError, match=r"`prior_content_free` gives class 2 no probability \(1 in all\)"):
        fit(name, LOGITS, priors={"content_free": scores})
    scores[1, 2] = -20  # one of the inputs is enough
    found = fit(name, LOGITS, priors={"content_free": scores}).apply(LOGITS)
    assert np.isfinite(np.asarray(found)).all()


def test_priors_of_other_classes_are_errors():
    with pytest.raises(UserError, match=r"prior_premise must be floating-point log-probabilities \[inputs, 3\]"):
        fit("pmi", LOGITS, priors={"premise": LATER[:, :2]})
    with pytest.raises(UserError, match="unknown prior 'premises'; known are content_free, domain, premise"):
        fit("pmi", LOGITS, priors={"premises": LATER})


# --- files and use ---


@every
def test_files_keep_every_bit(name, tmp_path):
    fitted(name).save(tmp_path / "calibrator.json")
    loaded = Fitted.load(tmp_path / "calibrator.json")
    np.testing.assert_array_equal(loaded.apply(LATER), fitted(name).apply(LATER))
    facts = ("classes", "items", "nll_before", "nll_after", "accepted", "converged", "at_bound")
    assert [getattr(loaded, fact) for fact in facts] == [getattr(fitted(name), fact) for fact in facts]
    assert loaded.summary == fitted(name).summary


@every
def test_apply_can_be_compiled_as_generation_does(name):
    found = fitted(name)
    np.testing.assert_allclose(jax.jit(found.apply)(LATER), found.apply(LATER), rtol=1e-4, atol=1e-4)


RECORD = {
    "name": "contextual_ratio",
    "parameters": {"log_prior": [-1.0, -2.0, -0.7]},
    "classes": C,
    "items": N,
    "nll_before": None,
    "nll_after": None,
    "converged": True,
    "at_bound": False,
}
GARBAGE = {
    "a loss before": {"nll_before": 1.0},
    "a loss after": {"nll_after": 1.0},
    "too few classes": {"parameters": {"log_prior": [-1.0, -2.0]}},
    "a prior above 1": {"parameters": {"log_prior": [0.1, -2.0, -1.0]}},
    "a prior of almost 0": {"parameters": {"log_prior": [-100.0, -2.0, -1.0]}},
    "a prior of 0": {"parameters": {"log_prior": [-math.inf, -2.0, -1.0]}},
    "no prior": {"parameters": {}},
    "a temperature": {"parameters": {"log_prior": [-1.0, -2.0, -0.7], "temperature": 2.0}},
    "no loss of one that sees labels": {"name": "temperature", "parameters": {"temperature": 2.0}},
}


def test_damaged_files_are_refused(tmp_path):
    path = tmp_path / "calibrator.json"
    path.write_text(json.dumps(RECORD))
    p = probabilities(LATER) / np.exp(RECORD["parameters"]["log_prior"])
    np.testing.assert_allclose(probabilities(Fitted.load(path).apply(LATER)), probabilities(p), rtol=1e-4)
    without = {key: value for key, value in RECORD.items() if key != "nll_after"}
    for damage in (without, *({**RECORD, **change} for change in GARBAGE.values())):
        path.write_text(json.dumps(damage))
        with pytest.raises(UserError, match="is not a calibrator that ") as caught:
            Fitted.load(path)
        assert "\n" not in str(caught.value)


def test_a_comparison_takes_priors_from_the_predictions_to_fit():
    labels = RANDOM.integers(C, size=N)
    priors = {"content_free": PRIOR_SCORES["content_free"]}
    whole = Predictions(LOGITS, labels, np.arange(N), priors=priors, unlabelled_MC=LATER)
    halves = whole.select(np.arange(N) < 30), whole.select(np.arange(N) >= 30)
    comparison, found = compare(*halves, ("shift", "contextual", "pmi"), Settings(resamples=20))
    assert list(found) == ["shift", "contextual"]
    expected = fit("shift", np.concatenate([LOGITS[:30], LATER])).parameters["log_prior"]
    np.testing.assert_allclose(found["shift"].parameters["log_prior"], expected, atol=1e-6)
    method = comparison.method("contextual")
    assert (method.accepted, method.message, method.summary[:6]) == (True, "", "prior ")
    assert comparison.notes[-1].startswith(
        "PMI, domain premise is left out: the predictions lack the array `prior_prem"
    )
    assert "not accepted" not in " ".join(verdict(comparison).notes)
